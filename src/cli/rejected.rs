//! `rejected list` and `rejected show`: records that could not become transactions. Of a conflict both records are named.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Exit, complain, connect, load_to_connect, say, store_failed, when};
use crate::core::identify::Reason;
use crate::store::{RejectedFilter, RejectedRecord, RejectedRow, Session, StoreError, Stored};

/// Rows of one question.
const PAGE: i64 = 1000;
/// So much of a value is shown.
const SHOWN: usize = 2000;

/// The group's commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum RejectedCommand {
    /// Lists them: number, place, when, why, and for a conflict the transaction that has the id
    List(ListArgs),
    /// Shows one with its bytes, and for a conflict both records
    Show {
        /// Its number, as in the list
        #[arg(value_name = "NUMBER")]
        id: i64,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Only those of this reason
    #[arg(long, value_name = "REASON", value_parser = Reason::ALL.map(Reason::label))]
    reason: Option<String>,
    /// Only those of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Also those that are closed
    #[arg(long)]
    all: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn rejected(file: &Path, sets: &[String], command: &RejectedCommand) -> Exit {
    let config = match load_to_connect(file, sets) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let done = connect(&config, "rejected").and_then(|mut session| match command {
        RejectedCommand::List(args) => list(&mut session, args),
        RejectedCommand::Show { id, json } => show(&mut session, *id, *json),
    });
    done.unwrap_or_else(|error| store_failed(&error))
}

fn list(session: &mut Session, args: &ListArgs) -> Result<Exit, StoreError> {
    let filter = RejectedFilter { reason: args.reason.clone(), topic: args.topic.clone(), closed: args.all };
    let mut after = 0;
    loop {
        let rows = session.rejected(&filter, after, PAGE)?;
        for row in &rows {
            say(&if args.json { in_json(row).to_string() } else { line(row) });
        }
        match rows.last() {
            Some(last) if rows.len() as i64 == PAGE => after = last.id,
            _ => return Ok(Exit::Done),
        }
    }
}

fn show(session: &mut Session, id: i64, as_json: bool) -> Result<Exit, StoreError> {
    let Some(record) = session.rejected_record(id)? else {
        complain(&format!("txrelay: there is no rejected record {id}: `txrelay rejected list --all` has them"));
        return Ok(Exit::Failed);
    };
    say(if as_json { record_in_json(&record).to_string() } else { on_a_screen(&record) }.trim_end());
    Ok(Exit::Done)
}

fn line(row: &RejectedRow) -> String {
    let closed = row.resolved_at.map_or_else(String::new, |at| format!(", closed {}", when::show(at)));
    let other = match (&row.stored, row.tx_id) {
        (Some(stored), Some(id)) => format!(": {} (row {id}) is stored from {}", stored.transaction_id, place_of(stored)),
        (None, Some(id)) => format!(": row {id}, which is not stored any more"),
        _ => row.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}")),
    };
    format!("{} {} {} {}{other}{closed}", row.id, when::show(row.received_at), row.reason, place(row))
}

fn place(row: &RejectedRow) -> String {
    at(&row.topic, row.partition, row.incarnation, row.offset)
}

pub(super) fn place_of(stored: &Stored) -> String {
    at(&stored.topic, stored.partition, stored.incarnation, stored.offset)
}

/// A place in a log, for people.
pub(super) fn at(topic: &str, partition: i32, incarnation: i16, offset: i64) -> String {
    let life = if incarnation == 0 { String::new() } else { format!(" (life {})", incarnation + 1) };
    format!("{topic}/{partition} offset {offset}{life}")
}

fn on_a_screen(record: &RejectedRecord) -> String {
    let row = &record.row;
    let mut out = format!("rejected record {}\n", row.id);
    let mut line = |what: &str, text: &str| {
        let _ = writeln!(out, "  {what:<12} {text}");
    };
    line("place", &place(row));
    line("received", &when::show(row.received_at));
    line("reason", &row.reason);
    if let Some(detail) = &row.detail {
        line("", detail);
    }
    line("closed", &row.resolved_at.map_or_else(|| "no".to_owned(), when::show));
    line("key", &record.key.as_deref().map_or_else(|| "null".to_owned(), text));
    if let Some(headers) = &record.headers {
        line("headers", &headers.to_string());
    }
    line("value", &described(record.payload.as_deref()));
    line("", &record.payload.as_deref().map_or_else(String::new, text));
    match (&row.stored, row.tx_id) {
        (Some(stored), Some(id)) => {
            line("conflicts", &format!("with transaction {} (row {id})", stored.transaction_id));
            line("place", &place_of(stored));
            line("received", &when::show(stored.received_at));
            line("value", &described(record.stored_payload.as_deref()));
            line("", &record.stored_payload.as_deref().map_or_else(String::new, text));
        }
        (None, Some(id)) => line("conflicts", &format!("with row {id}, which is not stored any more")),
        _ => {}
    }
    out
}

fn described(value: Option<&[u8]>) -> String {
    value.map_or_else(|| "null".to_owned(), |bytes| format!("{} bytes, SHA-256 {}", bytes.len(), hash(bytes)))
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The first of it, on one line: a terminal must not obey what a producer wrote.
fn text(bytes: &[u8]) -> String {
    let shown = bytes.len().min(SHOWN);
    let more = if shown < bytes.len() { " ..." } else { "" };
    format!("{}{more}", String::from_utf8_lossy(&bytes[..shown]).chars().map(printable).collect::<String>())
}

fn printable(c: char) -> char {
    if c.is_control() { '\u{b7}' } else { c }
}

fn in_json(row: &RejectedRow) -> Value {
    let stored = row.stored.as_ref().map(|stored| {
        json!({ "tx_id": row.tx_id, "transaction_id": stored.transaction_id, "topic": stored.topic, "partition": stored.partition,
            "incarnation": stored.incarnation, "offset": stored.offset, "received_at": when::show(stored.received_at) })
    });
    json!({ "id": row.id, "topic": row.topic, "partition": row.partition, "incarnation": row.incarnation, "offset": row.offset,
        "reason": row.reason, "detail": row.detail, "received_at": when::show(row.received_at),
        "resolved_at": row.resolved_at.map(when::show), "bytes": row.bytes, "tx_id": row.tx_id, "conflicts_with": stored })
}

fn record_in_json(record: &RejectedRecord) -> Value {
    let mut out = in_json(&record.row);
    let value = |bytes: Option<&[u8]>| {
        bytes.map(|bytes| json!({ "sha256": hash(bytes), "text": std::str::from_utf8(bytes).ok(), "hex": hex(bytes) }))
    };
    out["key"] = value(record.key.as_deref()).into();
    out["headers"] = record.headers.clone().into();
    out["value"] = value(record.payload.as_deref()).into();
    if record.row.stored.is_some() {
        out["conflicts_with"]["value"] = value(record.stored_payload.as_deref()).into();
    }
    out
}

/// Only where it is not text.
fn hex(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).err()?;
    Some(bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    }))
}
