//! `stats`: per hour, what was received, what was tried, and how long it took.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::table::{Cell, Table};
use super::{Exit, json as values, look, printed, when};
use crate::core::outcome::Outcome;
use crate::core::percentile::percentile;
use crate::core::times::absolute;
use crate::store::{HourCounts, Session, StoreError};

#[derive(Debug, clap::Args)]
pub(super) struct StatsArgs {
    /// From the hour of this on: 2h, today, or RFC 3339
    #[arg(long, value_name = "T", value_parser = when::parse, default_value = "24h")]
    since: SystemTime,
    /// Up to the hour of this
    #[arg(long, value_name = "T", value_parser = when::parse)]
    until: Option<SystemTime>,
    /// One JSON object an hour
    #[arg(long)]
    json: bool,
}

const HOUR: u64 = 3600;

const COLUMNS: &[&str] = &[
    "HOUR",
    "RECEIVED",
    "ATTEMPTS",
    "DELIVERED",
    "RETRY",
    "THROTTLED",
    "DOWN",
    "MISCONFIGURED",
    "REFUSED",
    "LOST",
    "P50 MS",
    "P99 MS",
];

pub(super) fn stats(file: &Path, sets: &[String], args: &StatsArgs) -> Exit {
    look(file, sets, "stats", |_, session, now| print(session, args, now))
}

/// One statement an hour, so that none is long.
fn print(session: &mut Session, args: &StatsArgs, now: SystemTime) -> Result<Exit, StoreError> {
    let mut table = Table::new(COLUMNS);
    let seconds = args.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut hour = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds / HOUR * HOUR);
    let last = args.until.unwrap_or(now).min(now);
    while hour <= last {
        let next = hour + Duration::from_secs(HOUR);
        let counts = session.counts(hour, next)?;
        let of = |outcome: Outcome| counted(&counts, |code| code == outcome.code());
        let (p50, p99) = latencies(&counts);
        let done = if args.json {
            let outcomes: serde_json::Map<String, serde_json::Value> =
                Outcome::ALL.iter().map(|outcome| (outcome.label().to_owned(), of(*outcome).into())).collect();
            table.plain(
                &json!({ "hour": values::time(Some(hour)), "received": counts.received, "attempts": counted(&counts, |_| true),
                    "outcomes": outcomes, "p50_ms": p50, "p99_ms": p99 })
                .to_string(),
            )
        } else {
            let number = |n: i64| Cell::from(n.to_string());
            let ms = |ms: Option<i32>| Cell::from(ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string()));
            let mut cells = vec![Cell::from(absolute(hour)), number(counts.received), number(counted(&counts, |_| true))];
            cells.extend(Outcome::ALL.iter().map(|outcome| number(of(*outcome))));
            cells.extend([ms(p50), ms(p99)]);
            table.row(cells)
        };
        let done = done.and_then(|()| if table.is_on_a_terminal() { Ok(()) } else { table.flush() });
        if done.is_err() {
            return Ok(printed(done));
        }
        hour = next;
    }
    Ok(printed(table.flush()))
}

fn counted(counts: &HourCounts, is: impl Fn(i16) -> bool) -> i64 {
    counts.attempts.iter().filter(|(code, ..)| is(*code)).map(|(.., n)| n).sum()
}

/// Of the requests that were answered or given up: median and 99th percentile.
fn latencies(counts: &HourCounts) -> (Option<i32>, Option<i32>) {
    let known: Vec<(i32, i64)> = counts.attempts.iter().filter(|(_, ms, _)| *ms >= 0).map(|(_, ms, n)| (*ms, *n)).collect();
    (percentile(&known, 50), percentile(&known, 99))
}
