//! `tail`: attempts as they happen, by looking once a second.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::table::{Cell, Table};
use super::{Exit, json, look, printed, when};
use crate::core::times::absolute;
use crate::store::{Session, StoreError, TailRow};

#[derive(Debug, clap::Args)]
pub(super) struct TailArgs {
    /// Begin with what happened at or after this: 2m, today, or RFC 3339. Without it, now
    #[arg(long, value_name = "T", value_parser = when::parse)]
    since: Option<SystemTime>,
    /// End after so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Attempts a look.
const ROWS: usize = 5_000;

const PACE: Duration = Duration::from_secs(1);

/// An attempt carries the time at which its transaction began, and can be seen when that has ended: what is younger than this
/// is looked at again.
const SETTLING: Duration = Duration::from_secs(5);

const COLUMNS: &[&str] = &["AT", "ID", "ATTEMPT", "OUTCOME", "STATUS", "MS", "SENT", "ERROR"];

pub(super) fn tail(file: &Path, sets: &[String], args: &TailArgs) -> Exit {
    look(file, sets, "tail", |_, session, now| follow(session, args, args.since.unwrap_or(now)))
}

fn follow(session: &mut Session, args: &TailArgs, mut from: SystemTime) -> Result<Exit, StoreError> {
    let mut table = Table::new(COLUMNS);
    let mut left = args.limit.unwrap_or(u64::MAX);
    // What has been printed and would be read again: bounded by what happens within SETTLING.
    let mut printed_already: HashSet<(SystemTime, i64, i32, &'static str)> = HashSet::new();
    loop {
        let rows = session.tail(from, ROWS)?;
        for row in &rows {
            if left == 0 || !printed_already.insert(key(row)) {
                continue;
            }
            let done = if args.json { table.plain(&in_json(row)) } else { table.row(cells(row)) };
            if done.is_err() {
                return Ok(printed(done));
            }
            left -= 1;
        }
        let done = table.flush();
        if done.is_err() || left == 0 {
            return Ok(printed(done));
        }
        let newest = rows.last().map_or(from, |row| row.attempt.finished_at);
        let full = rows.len() == ROWS;
        // A full page goes on from its end; then everything that may still appear is looked at again.
        let settled = session.server_clock()?.now - SETTLING;
        from = if full { newest } else { newest.min(settled).max(from) };
        printed_already.retain(|key| key.0 >= from);
        if !full {
            std::thread::park_timeout(PACE);
        }
    }
}

fn key(row: &TailRow) -> (SystemTime, i64, i32, &'static str) {
    (row.attempt.finished_at, row.tx_id, row.attempt.n, row.attempt.outcome)
}

fn cells(row: &TailRow) -> Vec<Cell> {
    let attempt = &row.attempt;
    let number = |n: Option<String>| Cell::from(n.unwrap_or_default());
    let outcome = format!("{}{}", attempt.outcome, if attempt.stale { " (late)" } else { "" });
    vec![
        Cell::from(absolute(attempt.finished_at)),
        Cell::from(row.transaction_id.as_deref().unwrap_or("-")),
        Cell::from(attempt.n.to_string()),
        Cell::from(outcome).wrong_if(attempt.outcome == "refused"),
        number(attempt.http_status.map(|status| status.to_string())),
        number(attempt.latency_ms.map(|ms| ms.to_string())),
        Cell::from(attempt.sent),
        Cell::from(attempt.error.as_deref().unwrap_or_default()),
    ]
}

fn in_json(row: &TailRow) -> String {
    let mut object = json::attempt(&row.attempt);
    if let Value::Object(object) = &mut object {
        object.insert("transaction_id".to_owned(), row.transaction_id.clone().into());
    }
    object.to_string()
}
