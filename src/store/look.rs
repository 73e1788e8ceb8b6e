//! What `list` and `show` read: pages by key, newest first, so that no statement is long however many rows there are.

use std::time::SystemTime;

use postgres::{IsolationLevel, Row};
use serde_json::Value;

use super::sql::{
    CLOCK, FIND_ID, LIST_ALL, LIST_DEAD, LIST_OPEN, LIST_RESOLVED, LIST_ROWS, LIST_UNKNOWN, SHOW_ATTEMPTS, SHOW_CONTENT,
    SHOW_DUPLICATES, SHOW_REJECTED,
};
use super::{Session, StoreError};
use crate::core::outcome::Outcome;

/// Which transactions.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// As view `transaction_status` names states.
    pub state: Option<String>,
    /// Only those that may have been posted more than once.
    pub unknown: bool,
    /// Received at or after this; of dead and resolved ones: died or closed.
    pub since: Option<SystemTime>,
}

/// What view `transaction_status` says, without what it contains.
#[derive(Debug, Clone)]
pub struct ListRow {
    /// `tx.id`
    pub id: i64,
    /// Its id.
    pub transaction_id: String,
    /// Its state.
    pub state: String,
    /// Where it was read.
    pub topic: String,
    /// Where it was read.
    pub partition: i32,
    /// Life of the topic.
    pub incarnation: i16,
    /// Where it was read.
    pub kafka_offset: i64,
    /// When it was stored.
    pub received_at: SystemTime,
    /// Attempts begun.
    pub attempts: i32,
    /// Sent, and never answered.
    pub unknown_attempts: i64,
    /// When it is due.
    pub next_attempt_at: Option<SystemTime>,
    /// When the service accepted it.
    pub delivered_at: Option<SystemTime>,
    /// Label of the newest attempt's outcome.
    pub last_outcome: Option<&'static str>,
    /// Status of its answer.
    pub last_http_status: Option<i16>,
    /// Its error.
    pub last_error: Option<String>,
}

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// Those of it that fit, newest first.
    pub rows: Vec<ListRow>,
    /// Where the next page begins; `None`: this was the last.
    pub before: Option<i64>,
}

/// What a transaction contains, and what people did to it.
#[derive(Debug, Clone)]
pub struct Content {
    /// Kafka's time of the record.
    pub record_at: Option<SystemTime>,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The headers, as stored.
    pub headers: Option<Value>,
    /// The value.
    pub payload: Option<Vec<u8>>,
    /// When, by whom and why it was closed.
    pub resolved: Option<(SystemTime, String, String)>,
    /// When, by whom and why its content was erased, and the payload's SHA-256.
    pub erased: Option<(SystemTime, String, String, Vec<u8>)>,
    /// When and by which rule it was given up.
    pub died: Option<(SystemTime, String)>,
}

/// An attempt.
#[derive(Debug, Clone)]
pub struct AttemptRow {
    /// Its number.
    pub n: i32,
    /// When it ended.
    pub finished_at: SystemTime,
    /// Label of its outcome.
    pub outcome: &'static str,
    /// Status of the answer.
    pub http_status: Option<i16>,
    /// How long it took.
    pub latency_ms: Option<i32>,
    /// Whether it reached the service: no, yes, unknown.
    pub sent: &'static str,
    /// It came too late to change anything.
    pub stale: bool,
    /// The transport's error, or the beginning of the answer.
    pub error: Option<String>,
}

/// A record that repeats a transaction.
#[derive(Debug, Clone)]
pub struct RepeatRow {
    /// Where it stands.
    pub topic: String,
    /// Where it stands.
    pub partition: i32,
    /// Where it stands.
    pub kafka_offset: i64,
    /// When it was read.
    pub seen_at: SystemTime,
}

/// A rejected record that has to do with a transaction.
#[derive(Debug, Clone)]
pub struct RejectedRef {
    /// `rejected.id`
    pub id: i64,
    /// Where it stands.
    pub topic: String,
    /// Where it stands.
    pub partition: i32,
    /// Where it stands.
    pub kafka_offset: i64,
    /// Label of the reason.
    pub reason: String,
    /// For people.
    pub detail: Option<String>,
    /// When it was read.
    pub received_at: SystemTime,
    /// When a person closed it.
    pub resolved_at: Option<SystemTime>,
    /// It became this transaction; otherwise it claims its id with other bytes.
    pub became: bool,
}

/// Everything about one transaction.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Where it stands.
    pub row: ListRow,
    /// What it contains.
    pub content: Content,
    /// Its newest attempts, newest first, and how many there are.
    pub attempts: (Vec<AttemptRow>, i64),
    /// The newest records that repeat it, and how many there are.
    pub duplicates: (Vec<RepeatRow>, i64),
    /// Rejected records that claim its id, or became it.
    pub rejected: Vec<RejectedRef>,
}

/// The server's clock.
#[derive(Debug, Clone, Copy)]
pub struct ServerClock {
    /// Its time.
    pub now: SystemTime,
    /// A standby; so many seconds behind, as far as it can tell.
    pub standby: Option<f64>,
}

/// As views name a code.
pub(super) fn outcome(code: i16) -> &'static str {
    Outcome::from_code(code).map_or("lost", Outcome::label)
}

/// As views name a code.
pub(super) fn sent(code: i16) -> &'static str {
    match code {
        0 => "no",
        1 => "yes",
        _ => "unknown",
    }
}

impl Session {
    /// The server's clock, and whether it is a standby.
    pub fn server_clock(&mut self) -> Result<ServerClock, StoreError> {
        let statement = self.prepare(&CLOCK)?;
        let row = self.client.query_one(&statement, &[])?;
        let standby = row.get::<_, bool>(1).then(|| row.get::<_, Option<f64>>(2).unwrap_or(0.0));
        Ok(ServerClock { now: row.get(0), standby })
    }

    /// The page of `rows` looked at below `before` (`i64::MAX`: the first).
    pub fn list(&mut self, filter: &Filter, before: i64, rows: usize) -> Result<Page, StoreError> {
        let limit = rows as i64;
        let state = filter.state.as_deref();
        let since = &filter.since;
        let ids: Vec<i64> = match state {
            _ if filter.unknown => self.ids(&LIST_UNKNOWN, &[&before, &limit])?,
            Some("pending" | "in_flight" | "retrying") => self.ids(&LIST_OPEN, &[&before, &state, &limit])?,
            Some("dead") => self.ids(&LIST_DEAD, &[&before, since, &limit])?,
            Some("resolved") => self.ids(&LIST_RESOLVED, &[&before, since, &limit])?,
            _ => self.ids(&LIST_ALL, &[&before, &limit])?,
        };
        let next = if ids.len() < rows { None } else { ids.last().copied() };
        let statement = self.prepare(&LIST_ROWS)?;
        let mut found: Vec<ListRow> = self.client.query(&statement, &[&ids])?.iter().map(list_row).collect();
        // Ids follow the order of receipt but for some seconds: a page that is older altogether is the last.
        let all_older = filter.since.is_some_and(|since| {
            let margin = std::time::Duration::from_secs(60);
            !found.is_empty() && found.iter().all(|row| row.received_at + margin < since)
        });
        let by_receipt = !matches!(state, Some("dead" | "resolved")) || filter.unknown;
        if by_receipt && let Some(since) = filter.since {
            found.retain(|row| row.received_at >= since);
        }
        if let Some(state) = state {
            found.retain(|row| row.state == state);
        }
        Ok(Page { rows: found, before: if by_receipt && all_older { None } else { next } })
    }

    fn ids(&mut self, sql: &super::Sql, values: &[&(dyn postgres::types::ToSql + Sync)]) -> Result<Vec<i64>, StoreError> {
        let statement = self.prepare(sql)?;
        Ok(self.client.query(&statement, values)?.iter().map(|row| row.get(0)).collect())
    }

    /// Everything about one, of one moment, with at most `most` attempts and repeats; `None`: not stored.
    pub fn show(&mut self, transaction_id: &str, most: i64) -> Result<Option<Shown>, StoreError> {
        let statements =
            [&FIND_ID, &LIST_ROWS, &SHOW_CONTENT, &SHOW_ATTEMPTS, &SHOW_DUPLICATES, &SHOW_REJECTED].map(|sql| self.prepare(sql));
        let [find, list, content, attempts, duplicates, rejected] = statements;
        let mut snapshot =
            self.client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start()?;
        let Some(found) = snapshot.query_opt(&find?, &[&transaction_id])? else { return Ok(None) };
        let id: i64 = found.get(0);
        let row = list_row(&snapshot.query_one(&list?, &[&vec![id]])?);
        let content = content_of(&snapshot.query_one(&content?, &[&id])?);
        let attempts = snapshot.query(&attempts?, &[&id, &most])?;
        let duplicates = snapshot.query(&duplicates?, &[&id, &most])?;
        let rejected = snapshot.query(&rejected?, &[&id, &most])?;
        snapshot.rollback()?;
        let count = |rows: &[Row], column: &str| rows.first().map_or(0, |row| row.get(column));
        Ok(Some(Shown {
            row,
            content,
            attempts: (attempts.iter().map(attempt_row).collect(), count(&attempts, "all")),
            duplicates: (duplicates.iter().map(repeat_row).collect(), count(&duplicates, "all")),
            rejected: rejected.iter().map(rejected_ref).collect(),
        }))
    }
}

fn list_row(row: &Row) -> ListRow {
    ListRow {
        id: row.get("id"),
        transaction_id: row.get("transaction_id"),
        state: row.get("state"),
        topic: row.get("topic"),
        partition: row.get("partition"),
        incarnation: row.get("incarnation"),
        kafka_offset: row.get("kafka_offset"),
        received_at: row.get("received_at"),
        attempts: row.get("attempts"),
        unknown_attempts: row.get("unknown_attempts"),
        next_attempt_at: row.get("next_attempt_at"),
        delivered_at: row.get("delivered_at"),
        last_outcome: row.get::<_, Option<i16>>("last_outcome").map(outcome),
        last_http_status: row.get("last_http_status"),
        last_error: row.get("last_error"),
    }
}

fn content_of(row: &Row) -> Content {
    let resolved: Option<SystemTime> = row.get(4);
    let erased: Option<SystemTime> = row.get(7);
    let died: Option<SystemTime> = row.get(11);
    Content {
        record_at: row.get(0),
        key: row.get(1),
        headers: row.get(2),
        payload: row.get(3),
        resolved: resolved.map(|at| (at, row.get(5), row.get(6))),
        erased: erased.map(|at| (at, row.get(8), row.get(9), row.get(10))),
        died: died.map(|at| (at, row.get(12))),
    }
}

fn attempt_row(row: &Row) -> AttemptRow {
    AttemptRow {
        n: row.get("n"),
        finished_at: row.get("finished_at"),
        outcome: outcome(row.get("outcome")),
        http_status: row.get("http_status"),
        latency_ms: row.get("latency_ms"),
        sent: sent(row.get("sent")),
        stale: row.get("stale"),
        error: row.get("error"),
    }
}

fn repeat_row(row: &Row) -> RepeatRow {
    RepeatRow {
        topic: row.get("topic"),
        partition: row.get("partition"),
        kafka_offset: row.get("kafka_offset"),
        seen_at: row.get("seen_at"),
    }
}

fn rejected_ref(row: &Row) -> RejectedRef {
    RejectedRef {
        id: row.get("id"),
        topic: row.get("topic"),
        partition: row.get("partition"),
        kafka_offset: row.get("kafka_offset"),
        reason: row.get("reason"),
        detail: row.get("detail"),
        received_at: row.get("received_at"),
        resolved_at: row.get("resolved_at"),
        became: row.get("became"),
    }
}
