//! `list`: transactions, newest first, page by page.

use std::path::Path;
use std::time::SystemTime;

use super::table::{Cell, Table};
use super::{Exit, json, look, printed, when};
use crate::core::times::{absolute, both};
use crate::store::{Filter, ListRow, Session, StoreError};

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Only those in this state
    #[arg(long, value_name = "S",
        value_parser = ["pending", "in_flight", "retrying", "delivered", "dead", "resolved", "unaccounted"])]
    state: Option<String>,
    /// Only those of which an attempt was sent and never answered: the service may have got them more than once
    #[arg(long)]
    unknown: bool,
    /// Only those received at or after this (dead: died, resolved: closed): 2h, today, or RFC 3339
    #[arg(long, value_name = "T", value_parser = when::parse)]
    since: Option<SystemTime>,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// The first page is small, so that something is to be seen at once; the others are as large as pays.
const PAGES: [usize; 2] = [100, 1000];

const COLUMNS: &[&str] = &["ID", "STATE", "RECEIVED", "ATTEMPTS", "LAST", "DELIVERED OR NEXT", "ERROR"];

pub(super) fn list(file: &Path, sets: &[String], args: &ListArgs) -> Exit {
    look(file, sets, "list", |_, session, now| print(session, args, now))
}

fn print(session: &mut Session, args: &ListArgs, now: SystemTime) -> Result<Exit, StoreError> {
    let filter = Filter { state: args.state.clone(), unknown: args.unknown, since: args.since };
    let mut table = Table::new(COLUMNS);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut before = Some(i64::MAX);
    let mut rows = PAGES[0];
    while let Some(from) = before.filter(|_| left > 0) {
        let page = session.list(&filter, from, rows)?;
        let shown = page.rows.iter().take(usize::try_from(left).unwrap_or(usize::MAX));
        for row in shown {
            let done = if args.json {
                table.plain(&json::transaction(row).to_string())
            } else {
                table.row(cells(row, now, table.is_on_a_terminal()))
            };
            if done.is_err() {
                return Ok(printed(done));
            }
            left -= 1;
        }
        let done = table.flush();
        if done.is_err() {
            return Ok(printed(done));
        }
        before = page.before;
        rows = PAGES[1];
    }
    Ok(Exit::Done)
}

fn cells(row: &ListRow, now: SystemTime, terminal: bool) -> Vec<Cell> {
    let time = |time: SystemTime| if terminal { both(time, now) } else { absolute(time) };
    let last = match (row.last_outcome, row.last_http_status) {
        (Some(outcome), Some(status)) => format!("{outcome} {status}"),
        (Some(outcome), None) => outcome.to_owned(),
        _ => String::new(),
    };
    let then = row.delivered_at.or(row.next_attempt_at).map_or_else(String::new, time);
    let wrong = matches!(row.state.as_str(), "dead" | "unaccounted");
    vec![
        Cell::from(&row.transaction_id).wrong_if(wrong),
        Cell::from(&row.state),
        Cell::from(time(row.received_at)),
        Cell::from(row.attempts.to_string()),
        Cell::from(last),
        Cell::from(then),
        Cell::from(row.last_error.as_deref().unwrap_or_default()),
    ]
}
