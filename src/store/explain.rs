//! The facts that `explain` decides from, of one moment.

use std::time::Duration;

use postgres::{IsolationLevel, Row, Transaction};

use super::look::outcome;
use super::sql::{
    ALL_POSITIONS, EXPLAIN_ATTEMPTS, EXPLAIN_CLAIMS, EXPLAIN_MENTIONS, EXPLAIN_PIPELINE, EXPLAIN_PLACE, EXPLAIN_TX, NEWEST_ID,
    SHOW_ATTEMPTS, TX_AT,
};
use super::{Session, StoreError};
use crate::core::explain::{
    Act, Attempt, Dead, Facts, Gate, Holder, Open, Pause, Place, Reached, Rejected, Transaction as Stored,
};

/// A place in Kafka, as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinates {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

struct Statements {
    tx: postgres::Statement,
    attempts: postgres::Statement,
    last: postgres::Statement,
    claims: postgres::Statement,
    pipeline: postgres::Statement,
    mentions: postgres::Statement,
    place: postgres::Statement,
    positions: postgres::Statement,
    tx_at: postgres::Statement,
    newest: postgres::Statement,
}

impl Session {
    /// Everything that is known of the transaction with this id, or of what stands at `at`. `asked` is what is said of it.
    pub fn facts(
        &mut self,
        transaction_id: Option<&str>,
        at: Option<&Coordinates>,
        asked: String,
        (give_up_after, kept): (Duration, Option<Duration>),
    ) -> Result<Facts, StoreError> {
        let s = self.explain_statements()?;
        let mut snapshot =
            self.client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start()?;
        let (place, found) = match at {
            Some(at) => at_place(&mut snapshot, &s, at)?,
            None => (None, None),
        };
        let wanted = transaction_id.map(str::to_owned).or(found);
        let transaction = match &wanted {
            Some(id) => stored(&mut snapshot, &s, id)?,
            None => None,
        };
        // Whoever asks with a place wants to know what stands there.
        let asked = match (transaction_id, &transaction) {
            (None, Some(transaction)) => format!("{asked} ({})", transaction.id),
            _ => asked,
        };
        let mentions = match (transaction_id, &transaction) {
            (Some(id), None) => snapshot.query(&s.mentions, &[&id.as_bytes()])?.iter().map(|row| rejected(row, 0)).collect(),
            _ => Vec::new(),
        };
        let read_to = snapshot.query(&s.positions, &[])?.iter().map(reached).collect();
        let row = snapshot.query_one(&s.pipeline, &[])?;
        snapshot.rollback()?;
        Ok(Facts {
            now: row.get(0),
            asked,
            transaction,
            place,
            mentions,
            read_to,
            pause: pause(&row),
            gate: gate(&row),
            processes: row.get(5),
            last_heard: row.get(6),
            give_up_after,
            kept,
        })
    }

    /// Whether delivering is paused, by whom and why.
    pub fn paused(&mut self) -> Result<Option<Pause>, StoreError> {
        let pipeline = self.prepare(&EXPLAIN_PIPELINE)?;
        Ok(pause(&self.client.query_one(&pipeline, &[])?))
    }

    fn explain_statements(&mut self) -> Result<Statements, StoreError> {
        Ok(Statements {
            tx: self.prepare(&EXPLAIN_TX)?,
            attempts: self.prepare(&EXPLAIN_ATTEMPTS)?,
            last: self.prepare(&SHOW_ATTEMPTS)?,
            claims: self.prepare(&EXPLAIN_CLAIMS)?,
            pipeline: self.prepare(&EXPLAIN_PIPELINE)?,
            mentions: self.prepare(&EXPLAIN_MENTIONS)?,
            place: self.prepare(&EXPLAIN_PLACE)?,
            positions: self.prepare(&ALL_POSITIONS)?,
            tx_at: self.prepare(&TX_AT)?,
            newest: self.prepare(&NEWEST_ID)?,
        })
    }
}

/// Out of a row of [`EXPLAIN_PIPELINE`].
fn pause(row: &Row) -> Option<Pause> {
    let since: Option<_> = row.get(1);
    since.map(|since| Pause { since, until: row.get(2), by: row.get(3), reason: row.get(4) })
}

fn stored(snapshot: &mut Transaction<'_>, s: &Statements, transaction_id: &str) -> Result<Option<Stored>, StoreError> {
    let Some(row) = snapshot.query_opt(&s.tx, &[&transaction_id])? else { return Ok(None) };
    let id: i64 = row.get(0);
    let tried = snapshot.query_one(&s.attempts, &[&id])?;
    let last = snapshot.query_opt(&s.last, &[&id, &1i64])?;
    let claims = snapshot.query_one(&s.claims, &[&id])?;
    let accepted = |row: &Row, at: usize| row.get::<_, Option<_>>(at).zip(row.get::<_, Option<i32>>(at + 1));
    Ok(Some(Stored {
        id: transaction_id.to_owned(),
        received_at: row.get(5),
        open: open(&row),
        dead: row.get::<_, Option<_>>(15).map(|at| Dead {
            at,
            reason: row.get(16),
            http_status: row.get(17),
            attempts: row.get(18),
            error: row.get(19),
        }),
        resolved: act(&row, 20),
        erased: act(&row, 23),
        delivered: accepted(&tried, 2),
        late: accepted(&tried, 4),
        last: last.map(|row| Attempt {
            n: row.get("n"),
            at: row.get("finished_at"),
            outcome: outcome(row.get("outcome")),
            http_status: row.get("http_status"),
            error: row.get("error"),
        }),
        attempts: tried.get(0),
        unknown: tried.get(1),
        duplicates: claims.get(0),
        conflicts: (claims.get(1), claims.get(2)),
    }))
}

/// Of `explain_pipeline`: shut where no process's gate is open.
fn gate(row: &Row) -> Option<Gate> {
    row.get::<_, Option<bool>>(7)?;
    let why: Option<String> = row.get(9);
    Some(Gate { since: row.get(8), why: why.unwrap_or_else(|| "the service fails".to_owned()), next_probe_at: row.get(10) })
}

fn open(row: &Row) -> Option<Open> {
    let due_at = row.get::<_, Option<_>>(6)?;
    let holder = row.get::<_, Option<i64>>(10).map(|id| Holder {
        id,
        host: row.get(11),
        pid: row.get(12),
        seen_at: row.get(13),
        ended: row.get::<_, Option<std::time::SystemTime>>(14).is_some(),
    });
    let spent_ms: i64 = row.get(9);
    let spent = Duration::from_millis(spent_ms.max(0).unsigned_abs());
    Some(Open { due_at, leased: row.get(7), holder, attempt: row.get(8), spent })
}

fn act(row: &Row, at: usize) -> Option<Act> {
    let when = row.get::<_, Option<_>>(at)?;
    Some(Act { at: when, who: row.get(at + 1), reason: row.get(at + 2) })
}

fn reached(row: &Row) -> Reached {
    let (topic, partition): (String, i32) = (row.get(0), row.get(1));
    Reached { partition: format!("{topic}/{partition}"), next_offset: row.get(3), age: row.get(5) }
}

/// Of `explain_mentions`.
fn rejected(row: &Row, at: usize) -> Rejected {
    let (topic, partition, offset): (String, i32, i64) = (row.get(at + 1), row.get(at + 2), row.get(at + 3));
    Rejected {
        id: row.get(at),
        place: format!("{topic}/{partition}/{offset}"),
        reason: row.get(at + 4),
        detail: row.get::<_, Option<String>>(at + 5).unwrap_or_default(),
        received_at: row.get(at + 6),
        resolved: row.get::<_, Option<std::time::SystemTime>>(at + 7).is_some(),
    }
}

/// What stands there, and the transaction if it is one.
fn at_place(
    snapshot: &mut Transaction<'_>,
    s: &Statements,
    at: &Coordinates,
) -> Result<(Option<Place>, Option<String>), StoreError> {
    let Coordinates { topic, partition, offset } = at;
    let Some(row) = snapshot.query_opt(&s.place, &[topic, partition, offset])? else {
        return Ok((Some(Place::Unknown), None));
    };
    let next: i64 = row.get("next_offset");
    let incarnation: Option<i16> = row.get("incarnation");
    let first: Option<i64> = row.get("first_offset");
    let rejected = row.get::<_, Option<i64>>("id").map(|id| Rejected {
        id,
        place: format!("{topic}/{partition}/{offset}"),
        reason: row.get("reason"),
        detail: row.get::<_, Option<String>>("detail").unwrap_or_default(),
        received_at: row.get("received_at"),
        resolved: row.get::<_, Option<std::time::SystemTime>>("resolved_at").is_some(),
    });
    if let Some(became) = row.get::<_, Option<String>>("became") {
        return Ok((Some(Place::Transaction), Some(became)));
    }
    if let (Some(topic_id), Some(incarnation)) = (row.get::<_, Option<i16>>("topic_id"), incarnation)
        && let Some(found) = find_by_offset(snapshot, s, (topic_id, *partition, incarnation), *offset)?
    {
        return Ok((Some(Place::Transaction), Some(found)));
    }
    let place = match rejected {
        Some(rejected) => Place::Rejected(rejected),
        None if row.get("duplicate") => Place::Duplicate(row.get("repeats")),
        None if row.get("skipped") => Place::Skipped,
        None => match row.get::<_, Option<String>>("gap") {
            Some(reason) => Place::Gap(reason),
            None if *offset >= next => Place::NotYet(next),
            None if first.is_some_and(|first| *offset < first) => Place::BeforeStart(first.unwrap_or_default()),
            None if row.get("purged") => Place::Purged,
            None => Place::Nowhere,
        },
    };
    Ok((Some(place), None))
}

/// By halving the ids: within a partition they follow the offsets.
fn find_by_offset(
    snapshot: &mut Transaction<'_>,
    s: &Statements,
    (topic_id, partition, incarnation): (i16, i32, i16),
    offset: i64,
) -> Result<Option<String>, StoreError> {
    let (mut from, mut to) = (0i64, snapshot.query_one(&s.newest, &[])?.get::<_, i64>(0) + 1);
    while from < to {
        let middle = from + (to - from) / 2;
        let found = snapshot.query_opt(&s.tx_at, &[&topic_id, &partition, &incarnation, &middle, &to])?;
        match found.map(|row| (row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, String>(2))) {
            Some((_, at, id)) if at == offset => return Ok(Some(id)),
            Some((id, at, _)) if at < offset => from = id + 1,
            _ => to = middle,
        }
    }
    Ok(None)
}
