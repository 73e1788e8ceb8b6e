//! `bed watch`: the daemon's progress, from its /metrics and the ledger's summary; in place on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::Value;

use crate::http;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    metrics: String,
    #[arg(long)]
    ledger_url: String,
    /// Watch this long
    #[arg(long = "for", value_parser = crate::shared::duration)]
    duration: Duration,
    /// Be done as soon as the service has accepted so many transactions and the daemon has none open; an error if it
    /// does not come to that
    #[arg(long)]
    until_accepted: Option<u64>,
    /// Since when seconds are counted, unix ms
    #[arg(long)]
    since: Option<u64>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let pause = Duration::from_millis(if terminal { 250 } else { 2000 });
    let began = Instant::now();
    let since = args.since.unwrap_or_else(crate::shared::now_ms);
    let mut last: Option<(u64, Instant)> = None;
    let mut first = true;
    loop {
        let accepted = http::get(&format!("{}/_/summary", args.ledger_url)).ok().and_then(|text| accepted(&text));
        let metrics = http::get(&args.metrics).ok();
        let states = metrics.as_deref().map(states).unwrap_or_default();
        let rate = match (accepted, last) {
            (Some(now), Some((before, at))) => now.saturating_sub(before) as f64 / at.elapsed().as_secs_f64(),
            _ => 0.0,
        };
        last = accepted.map(|n| (n, Instant::now()));
        if std::mem::take(&mut first) {
            std::thread::sleep(Duration::from_millis(250)); // there is no rate without a second look
            continue;
        }
        let seconds = crate::shared::now_ms().saturating_sub(since) / 1000;
        let count = |state: &str| states.get(state).copied().unwrap_or(0.0);
        // Narrow enough for a terminal of 80 columns: a line that wraps could not be written in place.
        let line = match metrics {
            None => format!("{seconds:>3} s  txrelay does not answer"),
            Some(_) => format!(
                "{seconds:>3} s  pending {:>5} in_flight {:>3} retrying {:>5} delivered {:>5} dead {} {rate:>4.0}/s",
                count("pending"),
                count("in_flight"),
                count("retrying"),
                count("delivered"),
                count("dead"),
            ),
        };
        let open = count("pending") + count("in_flight") + count("retrying");
        let done = args.until_accepted.is_some_and(|n| accepted >= Some(n) && open == 0.0 && !states.is_empty());
        let over = done || began.elapsed() >= args.duration;
        match (terminal, over) {
            (true, false) => print!("\r\x1b[K{line}"),
            (true, true) => println!("\r\x1b[K{line}"),
            _ => println!("{line}"),
        }
        std::io::stdout().flush()?;
        if done || over && args.until_accepted.is_none() {
            return Ok(());
        }
        if over {
            bail!("not done after {} s", args.duration.as_secs());
        }
        std::thread::sleep(pause.min(args.duration.saturating_sub(began.elapsed())));
    }
}

fn accepted(summary: &str) -> Option<u64> {
    serde_json::from_str::<Value>(summary).ok()?["accepted"].as_u64()
}

/// `txrelay_transactions{state="..."}` by state.
fn states(metrics: &str) -> BTreeMap<String, f64> {
    let series = metrics.lines().filter_map(|line| line.strip_prefix("txrelay_transactions{"));
    let value = |rest: &str| {
        let (labels, value) = rest.split_once('}')?;
        let state = labels.split("state=\"").nth(1)?.split('"').next()?;
        Some((state.to_owned(), value.trim().parse().ok()?))
    };
    series.filter_map(value).collect()
}
