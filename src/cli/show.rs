//! `show`: everything about one transaction.

use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::{Exit, complain, json as values, look, non_empty, say, unknown};
use crate::config::visible;
use crate::core::times::both;
use crate::store::{AttemptRow, RejectedRef, RepeatRow, Shown};

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// The transaction's id
    #[arg(value_parser = non_empty())]
    id: String,
    /// As one JSON object, with the whole payload
    #[arg(long)]
    json: bool,
}

/// Attempts and repeats that are shown.
const MOST: i64 = 100;

/// Bytes of the payload that are shown on a screen.
const PAYLOAD_SHOWN: usize = 4096;

pub(super) fn show(file: &Path, sets: &[String], args: &ShowArgs) -> Exit {
    look(file, sets, "show", |_, session, now| {
        let Some(shown) = session.show(&args.id, MOST)? else {
            complain(&unknown(&args.id));
            return Ok(Exit::Failed);
        };
        say(&if args.json { in_json(&shown).to_string() } else { on_a_screen(&shown, now) });
        Ok(Exit::Done)
    })
}

fn on_a_screen(shown: &Shown, now: SystemTime) -> String {
    let Shown { row, content, attempts, duplicates, rejected } = shown;
    let mut out = format!("{}\n", visible(&row.transaction_id));
    let mut line = |what: &str, text: String| {
        let _ = writeln!(out, "  {what:<10} {}", visible(&text));
    };
    line("state", row.state.clone());
    let life = if row.incarnation == 0 { String::new() } else { format!(", life {}", row.incarnation + 1) };
    line("read from", format!("{}/{}/{}{life}", row.topic, row.partition, row.kafka_offset));
    if let Some(at) = content.record_at {
        line("written", both(at, now));
    }
    line("received", both(row.received_at, now));
    if let Some(at) = row.delivered_at {
        line("delivered", both(at, now));
    }
    if let Some(at) = row.next_attempt_at {
        line(if row.state == "in_flight" { "leased to" } else { "next" }, both(at, now));
    }
    if let Some((at, reason)) = &content.died {
        line("died", format!("{}, {reason}", both(*at, now)));
    }
    if let Some((at, who, reason)) = &content.resolved {
        line("resolved", format!("{} by {who}: {reason}", both(*at, now)));
    }
    if let Some((at, who, reason, sha)) = &content.erased {
        line("erased", format!("{} by {who}: {reason}", both(*at, now)));
        line("sha256", values::hex(sha));
    }
    for repeat in &duplicates.0 {
        line("repeated", described(repeat, now));
    }
    more(&mut line, duplicates.0.len(), duplicates.1);
    for reference in rejected {
        line(if reference.became { "became of" } else { "CONFLICT" }, rejection(reference, now));
    }
    line("attempts", format!("{}, {} of them without an answer", row.attempts, row.unknown_attempts));
    for attempt in &attempts.0 {
        line("", tried(attempt, now));
    }
    more(&mut line, attempts.0.len(), attempts.1);
    if let Some(key) = &content.key {
        line("key", text(key));
    }
    for header in content.headers.iter().filter_map(Value::as_array).flatten() {
        let value =
            header.get(1).map_or_else(String::new, |value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        line("header", format!("{}: {value}", header.get(0).and_then(Value::as_str).unwrap_or_default()));
    }
    if let Some(payload) = &content.payload {
        line("payload", format!("{} bytes", payload.len()));
        line("", text(&payload[..payload.len().min(PAYLOAD_SHOWN)]));
        if payload.len() > PAYLOAD_SHOWN {
            line("", "... (--json shows the whole)".to_owned());
        }
    }
    out.truncate(out.trim_end().len());
    out
}

fn more(line: &mut impl FnMut(&str, String), shown: usize, all: i64) {
    let hidden = all - shown as i64;
    if hidden > 0 {
        line("", format!("... and {hidden} older ones (view attempt_history, table duplicate)"));
    }
}

fn tried(attempt: &AttemptRow, now: SystemTime) -> String {
    let AttemptRow { n, finished_at, outcome, http_status, latency_ms, sent, stale, error } = attempt;
    let status = http_status.map_or_else(String::new, |status| format!(" {status}"));
    let took = latency_ms.map_or_else(String::new, |ms| format!(" after {ms} ms"));
    let sent = if *sent == "yes" { String::new() } else { format!(", sent: {sent}") };
    let late = if *stale { ", too late to count" } else { "" };
    let error = error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    format!("#{n} {}: {outcome}{status}{took}{sent}{late}{error}", both(*finished_at, now))
}

fn described(repeat: &RepeatRow, now: SystemTime) -> String {
    format!("{}/{}/{}, read {}", repeat.topic, repeat.partition, repeat.kafka_offset, both(repeat.seen_at, now))
}

fn rejection(reference: &RejectedRef, now: SystemTime) -> String {
    let RejectedRef { id, topic, partition, kafka_offset, reason, received_at, resolved_at, .. } = reference;
    let resolved = resolved_at.map_or_else(|| ", not resolved".to_owned(), |at| format!(", resolved {}", both(at, now)));
    format!("rejected record {id} ({reason}) at {topic}/{partition}/{kafka_offset}, read {}{resolved}", both(*received_at, now))
}

/// Bytes for a screen.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        // A cut character at the end is no reason to show hexadecimal digits.
        Err(error) if error.error_len().is_none() => String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned(),
        Err(_) => format!("hex {}", values::hex(bytes)),
    }
}

fn in_json(shown: &Shown) -> Value {
    let Shown { row, content, attempts, duplicates, rejected } = shown;
    let mut whole = values::transaction(row);
    let repeat = |r: &RepeatRow| json!({ "topic": r.topic, "partition": r.partition, "kafka_offset": r.kafka_offset, "seen_at": values::time(Some(r.seen_at)) });
    let reference = |r: &RejectedRef| {
        json!({ "rejected_id": r.id, "topic": r.topic, "partition": r.partition, "kafka_offset": r.kafka_offset,
            "reason": r.reason, "detail": r.detail, "received_at": values::time(Some(r.received_at)),
            "resolved_at": values::time(r.resolved_at), "became_this": r.became })
    };
    let act = |at: &SystemTime, who: &str, reason: &str| json!({ "at": values::time(Some(*at)), "who": who, "reason": reason });
    let more = json!({
        "record_at": values::time(content.record_at),
        "died_at": values::time(content.died.as_ref().map(|died| died.0)),
        "dead_reason": content.died.as_ref().map(|died| died.1.clone()),
        "resolved": content.resolved.as_ref().map(|(at, who, reason)| act(at, who, reason)),
        "erased": content.erased.as_ref().map(|(at, who, reason, _)| act(at, who, reason)),
        "payload_sha256": content.erased.as_ref().map(|erased| values::hex(&erased.3)),
        "key": values::bytes(content.key.as_deref()),
        "headers": content.headers,
        "payload": values::bytes(content.payload.as_deref()),
        "attempt_history": attempts.0.iter().map(values::attempt).collect::<Vec<_>>(),
        "attempt_history_total": attempts.1,
        "duplicates": duplicates.0.iter().map(repeat).collect::<Vec<_>>(),
        "duplicates_total": duplicates.1,
        "rejected": rejected.iter().map(reference).collect::<Vec<_>>(),
    });
    if let (Some(whole), Value::Object(more)) = (whole.as_object_mut(), more) {
        whole.extend(more);
    }
    whole
}
