//! `bed measure`: what a running daemon does and what it costs, a JSON line a run; and tables and plots of those lines.

mod plot;
mod process;
mod scrape;
mod tables;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use postgres::{Client, NoTls};
use serde_json::{Value, json};

use self::process::{Snapshot, rss_peak_mb};
use self::scrape::Scrapes;
pub use self::tables::{Column, table};
use crate::{http, produce, shared};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Writes records and waits until all are delivered
    Run(Box<RunArgs>),
    /// Waits until so many of those that are open have been delivered
    Drain {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        count: u64,
    },
    /// Waits until so many transactions are stored
    Persist {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        schema: String,
        #[arg(long)]
        count: u64,
    },
    /// Waits, with nothing to do
    Idle {
        #[command(flatten)]
        target: Target,
        #[arg(long, value_parser = shared::duration, default_value = "20s")]
        time: Duration,
    },
    /// Medians and ranges of one scenario
    Table { file: PathBuf },
    /// Medians and ranges by scenario and contender
    Contest { file: PathBuf },
    /// An SVG of medians and ranges
    Plot(plot::Args),
}

/// What is measured, and where the result goes.
#[derive(clap::Args, Clone)]
pub struct Target {
    #[arg(long)]
    ledger_url: String,
    #[arg(long)]
    dsn: String,
    /// Pids of what is measured; what they have started counts with them
    #[arg(long, required = true)]
    daemon: Vec<u32>,
    /// Pid of PostgreSQL's first process
    #[arg(long)]
    postgres: u32,
    /// Who is measured
    #[arg(long, default_value = "txrelay")]
    contender: String,
    /// How
    #[arg(long, default_value = "burst")]
    scenario: String,
    /// What is varied within the scenario, for plots
    #[arg(long)]
    x: Option<f64>,
    /// Until it is done
    #[arg(long, value_parser = shared::duration, default_value = "300s")]
    limit: Duration,
    /// Its metrics, which are read while it is measured
    #[arg(long)]
    metrics: Option<String>,
    /// Append the result as a JSON line
    #[arg(long)]
    out: PathBuf,
}

#[derive(clap::Args)]
struct RunArgs {
    #[command(flatten)]
    produce: produce::Args,
    /// Transactions sent and delivered before anything is measured
    #[arg(long, default_value_t = 2000)]
    warm_up: u64,
    #[command(flatten)]
    target: Target,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Run(args) => measure(&args.produce, args.warm_up, &args.target),
        Command::Drain { target, count } => drain(target, *count),
        Command::Persist { target, schema, count } => persist(target, schema, *count),
        Command::Idle { target, time } => idle(target, *time),
        Command::Table { file } => table(&std::fs::read_to_string(file)?, &tables::COLUMNS),
        Command::Contest { file } => tables::contest(&std::fs::read_to_string(file)?),
        Command::Plot(args) => plot::run(args),
    }
}

/// PostgreSQL's sessions hand their counts in about once a second, and the last settle is on its way.
const AFTERWARDS: Duration = Duration::from_secs(2);

impl Target {
    fn connect(&self) -> anyhow::Result<Client> {
        Client::connect(&self.dsn, NoTls).context("failed to connect to PostgreSQL")
    }

    fn control(&self, method: &str, path: &str) -> anyhow::Result<String> {
        http::request(method, &format!("{}/_/{path}", self.ledger_url), None)
    }

    fn summary(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.control("GET", "summary")?)?)
    }

    /// Until `count` says at least `n`.
    fn wait(&self, n: u64, what: &str, mut count: impl FnMut() -> anyhow::Result<u64>) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let now = count()?;
            if now >= n {
                return Ok(());
            }
            if began.elapsed() > self.limit {
                bail!("{now} of {n} {what} after {} s", self.limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_for_accepted(&self, n: u64) -> anyhow::Result<()> {
        self.wait(n, "delivered", || Ok(self.summary()?["accepted"].as_u64().unwrap_or(0)))
    }

    /// Adds what was used for `n` messages between the two, and writes the line.
    fn note(&self, n: f64, before: &Snapshot, after: &Snapshot, mut result: Value) -> anyhow::Result<()> {
        let (daemon, postgres) =
            ((after.daemon_us - before.daemon_us) as f64 / n, (after.postgres_us - before.postgres_us) as f64 / n);
        let common = json!({
            "contender": self.contender,
            "scenario": self.scenario,
            "x": self.x,
            "daemon_us": daemon,
            "postgres_us": postgres,
            "sum_us": daemon + postgres,
            "commits": (after.commits - before.commits) as f64 / n,
            "wal_bytes": (after.wal_bytes - before.wal_bytes) as f64 / n,
            "rss_peak_mb": rss_peak_mb(&self.daemon),
        });
        if let (Some(result), Value::Object(common)) = (result.as_object_mut(), common) {
            result.extend(common);
        }
        let mut out = OpenOptions::new().create(true).append(true).open(&self.out)?;
        writeln!(out, "{result}")?;
        println!("{result}");
        Ok(())
    }
}

fn measure(wanted: &produce::Args, warm_up: u64, target: &Target) -> anyhow::Result<()> {
    let mut client = target.connect()?;
    let warm = produce::Args { count: warm_up, rate: None, prefix: format!("{}-warm", wanted.prefix), ..wanted.clone() };
    target.control("POST", "reset")?;
    produce::produce(&warm)?;
    target.wait_for_accepted(warm_up)?;
    std::thread::sleep(AFTERWARDS);
    target.control("POST", "reset")?;

    let before = Snapshot::take(target, &mut client)?;
    let file = target.out.with_extension("produced");
    produce::produce(&produce::Args { ledger: Some(file.clone()), ..wanted.clone() })?;
    target.wait_for_accepted(wanted.count)?;
    std::thread::sleep(AFTERWARDS);
    let after = Snapshot::take(target, &mut client)?;

    let produced = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    let (arrivals, latencies) = arrivals(&produced, &target.control("GET", "accepted")?)?;
    let result = json!({
        "deliveries_per_second": per_second(&arrivals),
        "p50_ms": shared::quantile(&latencies, 0.5),
        "p99_ms": shared::quantile(&latencies, 0.99),
        "sent_twice": target.summary()?["accepted_twice"],
    });
    target.note(arrivals.len() as f64, &before, &after, result)
}

/// The daemon is paused when this begins. With more open than is waited for, it goes on meanwhile.
fn drain(target: &Target, count: u64) -> anyhow::Result<()> {
    let mut client = target.connect()?;
    let before = Snapshot::take(target, &mut client)?;
    let scrapes = target.metrics.as_deref().map(Scrapes::start);
    target.wait_for_accepted(count)?;
    let seen = scrapes.map_or(Ok(Value::Null), Scrapes::end)?;
    std::thread::sleep(AFTERWARDS);
    let after = Snapshot::take(target, &mut client)?;
    let list = target.control("GET", "accepted")?;
    let mut arrivals: Vec<u64> = accepted(&list)?.into_iter().map(|(_, at)| at).collect();
    arrivals.sort_unstable();
    let result = json!({
        "deliveries_per_second": per_second(&arrivals),
        "sent_twice": target.summary()?["accepted_twice"],
        "scrape_ms": seen["scrape_ms"],
        "claim_ms": seen["claim_ms"],
    });
    target.note(arrivals.len() as f64, &before, &after, result)
}

/// Asks the counter, not the table: counting a million rows again and again would be the load.
fn persist(target: &Target, schema: &str, count: u64) -> anyhow::Result<()> {
    let mut client = target.connect()?;
    let stored = format!("select coalesce(sum(n), 0)::bigint from \"{schema}\".counter where name = 2");
    let before = Snapshot::take(target, &mut client)?;
    let began = Instant::now();
    target.wait(count, "stored", || Ok(client.query_one(&stored, &[])?.get::<_, i64>(0) as u64))?;
    let seconds = began.elapsed().as_secs_f64();
    std::thread::sleep(AFTERWARDS);
    let after = Snapshot::take(target, &mut client)?;
    target.note(count as f64, &before, &after, json!({ "rows_per_second": count as f64 / seconds }))
}

/// "Per message" is per second here.
fn idle(target: &Target, time: Duration) -> anyhow::Result<()> {
    let mut client = target.connect()?;
    let before = Snapshot::take(target, &mut client)?;
    std::thread::sleep(time);
    let after = Snapshot::take(target, &mut client)?;
    let seconds = time.as_secs_f64();
    let percent = (after.daemon_us - before.daemon_us + after.postgres_us - before.postgres_us) as f64 / seconds / 10_000.0;
    target.note(seconds, &before, &after, json!({ "core_percent": percent }))
}

/// Between 10 % and 90 % of sorted arrivals in ms.
fn per_second(arrivals: &[u64]) -> f64 {
    let middle = shared::quantile(arrivals, 0.9).saturating_sub(shared::quantile(arrivals, 0.1)).max(1);
    arrivals.len() as f64 * 0.8 * 1000.0 / middle as f64
}

/// Arrivals in unix ms and latencies in ms, both sorted, of what was produced.
fn arrivals(produced: &str, list: &str) -> anyhow::Result<(Vec<u64>, Vec<u64>)> {
    let mut due = HashMap::new();
    for line in produced.lines() {
        let record: Value = serde_json::from_str(line)?;
        due.insert(record["id"].as_str().unwrap_or_default().to_owned(), record["at"].as_u64().unwrap_or(0));
    }
    let (mut arrivals, mut latencies) = (Vec::new(), Vec::new());
    for (id, at) in accepted(list)? {
        if let Some(due) = due.get(&shared::percent_decode(id)) {
            arrivals.push(at);
            latencies.push(at.saturating_sub(*due));
        }
    }
    arrivals.sort_unstable();
    latencies.sort_unstable();
    Ok((arrivals, latencies))
}

/// Encoded ids and arrivals in unix ms from the service's list.
fn accepted(list: &str) -> anyhow::Result<Vec<(&str, u64)>> {
    let line = |line| {
        let mut fields = str::split(line, '\t');
        let (Some(id), Some(at)) = (fields.next(), fields.nth(1)) else { bail!("bad line `{line}`") };
        Ok((id, at.parse()?))
    };
    list.lines().map(line).collect()
}
