//! The rows of a batch, a statement for each table, and what is stored already.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use postgres::Transaction;
use postgres::types::ToSql;
use serde_json::Value;

use super::{Advance, Batch, Candidate, Ingested, Topics, Writer};
use crate::core::headers;
use crate::core::identify::Reason;
use crate::core::offsets::{self, Offsets};
use crate::core::record::Record;
use crate::store::sql::{ADVANCE, INGEST, INGEST_WHOLE, INSERT_DUPLICATES, INSERT_GAP, INSERT_REJECTED, INSERT_SKIPPED, SEEN};
use crate::store::{Session, StoreError, slot};

impl Session {
    pub(in crate::store) fn statements(&mut self) -> Result<Statements, StoreError> {
        // They insert, and move rows of a small table by its key. `seen` is the exception, and sees to it itself.
        let all = [&INGEST_WHOLE, &INGEST, &SEEN, &INSERT_REJECTED, &INSERT_DUPLICATES, &ADVANCE, &INSERT_SKIPPED, &INSERT_GAP];
        let [whole, ingest, seen, rejected, duplicates, advance, skipped, gap] = self.prepare_to_plan_once(all)?;
        Ok(Statements {
            whole: whole?,
            ingest: ingest?,
            seen: seen?,
            rejected: rejected?,
            duplicates: duplicates?,
            advance: advance?,
            skipped: skipped?,
            gap: gap?,
        })
    }
}

pub(in crate::store) struct Statements {
    whole: postgres::Statement,
    ingest: postgres::Statement,
    seen: postgres::Statement,
    rejected: postgres::Statement,
    duplicates: postgres::Statement,
    advance: postgres::Statement,
    skipped: postgres::Statement,
    gap: postgres::Statement,
}

/// Ids are made of a block and the place in the batch (migration 0001).
pub(super) fn place(id: i64) -> usize {
    (id & 1023) as usize
}

/// Candidates as the columns of `ingest`.
struct NewRows<'a> {
    ids: Vec<&'a str>,
    keys: Vec<Option<&'a [u8]>>,
    headers: Vec<Option<Value>>,
    payloads: Vec<Option<&'a [u8]>>,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    times: Vec<Option<SystemTime>>,
    places: Vec<i32>,
    topics: Vec<i16>,
    incarnations: Vec<i16>,
    lease: Option<i64>,
    process: i64,
    lease_ms: i64,
    slot: i32,
}

impl<'a> NewRows<'a> {
    fn of(writer: Writer, topics: &Topics, batch: &'a Batch, places: &[usize]) -> Self {
        let rows = || places.iter().map(|&place| &batch.candidates[place]);
        Self {
            ids: rows().map(|c| c.transaction_id.as_str()).collect(),
            keys: rows().map(|c| c.record.key.as_deref()).collect(),
            headers: rows().map(|c| headers::to_json(&c.record.headers)).collect(),
            payloads: rows().map(|c| c.record.value.as_deref()).collect(),
            partitions: rows().map(|c| c.record.at.partition).collect(),
            offsets: rows().map(|c| c.record.offset).collect(),
            times: rows().map(|c| c.record.timestamp_ms.and_then(to_time)).collect(),
            places: places.iter().map(|&place| place as i32).collect(),
            topics: rows().map(|c| topics[&c.record.at.topic]).collect(),
            incarnations: rows().map(|c| c.incarnation).collect(),
            lease: batch.lease,
            process: writer.process,
            lease_ms: writer.lease.as_millis() as i64,
            slot: slot(writer.process, 0),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 14] {
        [
            &self.ids,
            &self.keys,
            &self.headers,
            &self.payloads,
            &self.partitions,
            &self.offsets,
            &self.times,
            &self.places,
            &self.topics,
            &self.incarnations,
            &self.lease,
            &self.process,
            &self.lease_ms,
            &self.slot,
        ]
    }
}

/// The new ones among these places; ids that are there are left alone.
pub(in crate::store) fn insert(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    writer: Writer,
    topics: &Topics,
    batch: &Batch,
    places: &[usize],
    done: &mut Ingested,
) -> Result<(), StoreError> {
    let stored = transaction.query(&statements.ingest, &NewRows::of(writer, topics, batch, places).parameters())?;
    done.new.extend(stored.iter().map(|row| (place(row.get(0)), row.get(0), row.get(1))));
    Ok(())
}

/// A batch that may bring nothing but new transactions, in one statement; `places` are all of its candidates, no id twice. `None`: it
/// brings something else too, and the transaction must be rolled back.
pub(super) fn insert_whole(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    writer: Writer,
    topics: &Topics,
    batch: &Batch,
    places: &[usize],
) -> Result<Option<Ingested>, StoreError> {
    let (rows, moves) = (NewRows::of(writer, topics, batch, places), Moves::of(&batch.advances));
    let parameters = [&rows.parameters()[..], &moves.parameters()[..]].concat();
    let stored = transaction.query(&statements.whole, &parameters)?;
    let moved = stored.first().map_or(0, |row| row.get::<_, i64>(2));
    if stored.len() < places.len() || moved as usize != batch.advances.len() {
        return Ok(None);
    }
    let new = stored.iter().map(|row| (place(row.get(0)), row.get(0), row.get(1))).collect();
    Ok(Some(Ingested { new, ..Ingested::default() }))
}

/// A record's time as PostgreSQL can hold it: years 1970 to 9999, otherwise none (producers write nonsense).
fn to_time(ms: i64) -> Option<SystemTime> {
    (0..=253_402_300_799_999).contains(&ms).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(ms as u64))
}

/// What is stored under a candidate's id.
pub(super) struct Seen {
    pub place: usize,
    pub tx_id: i64,
    /// The value's bytes are the same.
    pub equal: bool,
    /// It was read at the same place.
    pub same_record: bool,
}

pub(super) fn seen(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    topics: &Topics,
    batch: &Batch,
    places: &[usize],
) -> Result<HashMap<usize, Seen>, StoreError> {
    let rows = || places.iter().map(|&place| &batch.candidates[place]);
    let ids: Vec<&str> = rows().map(|c| c.transaction_id.as_str()).collect();
    let values: Vec<Option<&[u8]>> = rows().map(|c| c.record.value.as_deref()).collect();
    let topic_ids: Vec<i16> = rows().map(|c| topics[&c.record.at.topic]).collect();
    let partitions: Vec<i32> = rows().map(|c| c.record.at.partition).collect();
    let incarnations: Vec<i16> = rows().map(|c| c.incarnation).collect();
    let offsets: Vec<i64> = rows().map(|c| c.record.offset).collect();
    // A plan for a table that was small would be kept while it grows.
    transaction.batch_execute("set local plan_cache_mode = force_custom_plan")?;
    let found = transaction.query(&statements.seen, &[&ids, &values, &topic_ids, &partitions, &incarnations, &offsets])?;
    let seen = |row: &postgres::Row| {
        let ordinal: i32 = row.get(0);
        let place = places[ordinal as usize - 1];
        (place, Seen { place, tx_id: row.get(1), equal: row.get(2), same_record: row.get(3) })
    };
    Ok(found.iter().map(seen).collect())
}

/// A row of `rejected`.
pub(super) struct Rejected<'a> {
    pub reason: &'static str,
    pub detail: String,
    pub tx_id: Option<i64>,
    pub record: &'a Record,
    pub incarnation: i16,
}

pub(super) fn conflict(candidate: &Candidate, tx_id: i64) -> Rejected<'_> {
    Rejected {
        reason: Reason::Conflict.label(),
        detail: "a transaction with this id is stored with other bytes".to_owned(),
        tx_id: Some(tx_id),
        record: &candidate.record,
        incarnation: candidate.incarnation,
    }
}

pub(super) fn insert_rejected(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    writer: Writer,
    rejects: &[Rejected<'_>],
) -> Result<usize, StoreError> {
    if rejects.is_empty() {
        return Ok(0);
    }
    let topics: Vec<&str> = rejects.iter().map(|r| &*r.record.at.topic).collect();
    let partitions: Vec<i32> = rejects.iter().map(|r| r.record.at.partition).collect();
    let incarnations: Vec<i16> = rejects.iter().map(|r| r.incarnation).collect();
    let offsets: Vec<i64> = rejects.iter().map(|r| r.record.offset).collect();
    let reasons: Vec<&str> = rejects.iter().map(|r| r.reason).collect();
    let details: Vec<&str> = rejects.iter().map(|r| r.detail.as_str()).collect();
    let tx_ids: Vec<Option<i64>> = rejects.iter().map(|r| r.tx_id).collect();
    let keys: Vec<Option<&[u8]>> = rejects.iter().map(|r| r.record.key.as_deref()).collect();
    let headers: Vec<Option<Value>> = rejects.iter().map(|r| headers::to_json(&r.record.headers)).collect();
    let payloads: Vec<Option<&[u8]>> = rejects.iter().map(|r| r.record.value.as_deref()).collect();
    let stored: i64 = transaction
        .query_one(
            &statements.rejected,
            &[
                &topics,
                &partitions,
                &incarnations,
                &offsets,
                &reasons,
                &details,
                &tx_ids,
                &keys,
                &headers,
                &payloads,
                &slot(writer.process, 0),
            ],
        )?
        .get(0);
    Ok(stored as usize)
}

pub(super) fn insert_duplicates(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    writer: Writer,
    batch: &Batch,
    repeats: &[(usize, i64)],
) -> Result<usize, StoreError> {
    if repeats.is_empty() {
        return Ok(0);
    }
    let rows = || repeats.iter().map(|&(place, _)| &batch.candidates[place]);
    let topics: Vec<&str> = rows().map(|c| &*c.record.at.topic).collect();
    let partitions: Vec<i32> = rows().map(|c| c.record.at.partition).collect();
    let incarnations: Vec<i16> = rows().map(|c| c.incarnation).collect();
    let offsets: Vec<i64> = rows().map(|c| c.record.offset).collect();
    let tx_ids: Vec<i64> = repeats.iter().map(|repeat| repeat.1).collect();
    let stored: i64 = transaction
        .query_one(&statements.duplicates, &[&topics, &partitions, &incarnations, &offsets, &tx_ids, &slot(writer.process, 0)])?
        .get(0);
    Ok(stored as usize)
}

/// Positions to be moved, as the columns of `advance`.
struct Moves<'a> {
    topics: Vec<&'a str>,
    partitions: Vec<i32>,
    epochs: Vec<i64>,
    expected: Vec<i64>,
    new: Vec<i64>,
    skipped: Vec<i64>,
}

impl<'a> Moves<'a> {
    fn of(advances: &'a [Advance]) -> Self {
        // In order of partition: two processes that (by mistake) both move them wait for each other instead of deadlocking.
        let mut advances: Vec<&Advance> = advances.iter().collect();
        advances.sort_by(|a, b| a.at.cmp(&b.at));
        Self {
            topics: advances.iter().map(|a| &*a.at.topic).collect(),
            partitions: advances.iter().map(|a| a.at.partition).collect(),
            epochs: advances.iter().map(|a| a.epoch).collect(),
            expected: advances.iter().map(|a| a.expected).collect(),
            new: advances.iter().map(|a| a.new).collect(),
            skipped: advances.iter().map(|a| offsets::count(&a.skipped)).collect(),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 6] {
        [&self.topics, &self.partitions, &self.epochs, &self.expected, &self.new, &self.skipped]
    }
}

pub(super) fn advance(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    writer: Writer,
    advances: &[Advance],
    read: usize,
) -> Result<(), StoreError> {
    let (moves, slot, read) = (Moves::of(advances), slot(writer.process, 0), read as i64);
    let parameters = [&moves.parameters()[..], &[&slot, &read]].concat();
    let moved: i64 = transaction.query_one(&statements.advance, &parameters)?.get(0);
    if moved as usize != advances.len() {
        // The transaction is rolled back when it is dropped.
        return Err(StoreError::Fenced(format!(
            "{moved} of {} positions could be moved: another process owns the rest",
            advances.len()
        )));
    }
    Ok(())
}

/// Which offsets were passed over, or are gone: a row a partition and batch, and only where there are some.
pub(super) fn insert_skipped(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    advances: &[Advance],
) -> Result<(), StoreError> {
    let some: Vec<&Advance> = advances.iter().filter(|advance| !advance.skipped.is_empty()).collect();
    if !some.is_empty() {
        let topics: Vec<&str> = some.iter().map(|a| &*a.at.topic).collect();
        let partitions: Vec<i32> = some.iter().map(|a| a.at.partition).collect();
        let incarnations: Vec<i16> = some.iter().map(|a| a.incarnation).collect();
        let first: Vec<i64> = some.iter().map(|a| a.skipped[0].start).collect();
        let ranges: Vec<String> = some.iter().map(|a| multirange(&a.skipped)).collect();
        transaction.execute(&statements.skipped, &[&topics, &partitions, &incarnations, &first, &ranges])?;
    }
    for advance in advances {
        for gap in &advance.unexplained {
            let topic: &str = &advance.at.topic;
            transaction.execute(
                &statements.gap,
                &[&topic, &advance.at.partition, &advance.incarnation, &gap.start, &gap.end, &"unexplained"],
            )?;
        }
    }
    Ok(())
}

/// As PostgreSQL writes an `int8multirange`.
fn multirange(ranges: &[Offsets]) -> String {
    let ranges: Vec<String> = ranges.iter().map(|range| format!("[{},{})", range.start, range.end)).collect();
    format!("{{{}}}", ranges.join(","))
}
