//! Storing a batch of records: transactions, duplicates, conflicts, rejected records, positions and counters in one
//! transaction, so that every offset below a position is in exactly one place.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postgres::Transaction;
use serde_json::Value;

use super::sql::{
    ADVANCE, INGEST, INSERT_DUPLICATES, INSERT_GAP, INSERT_REJECTED, INSERT_SKIPPED, LEASED_ROWS, NEW_TOPIC, SEEN, TOPIC_ID,
};
use super::{ProcessId, Session, StoreError, slot};
use crate::core::headers;
use crate::core::identify::Reason;
use crate::core::offsets::{self, Offsets};
use crate::core::record::{Record, TopicPartition};
use crate::failpoint::failpoint;

/// Numbers of the topics in table `topic`.
pub type Topics = HashMap<Arc<str>, i16>;

/// A record that can become a transaction.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its id.
    pub transaction_id: String,
    /// The record.
    pub record: Record,
    /// Life of its topic.
    pub incarnation: i16,
}

/// A record that cannot.
#[derive(Debug, Clone)]
pub struct Reject {
    /// Label of the reason, as in table `rejected`.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
    /// The transaction that it conflicts with.
    pub tx_id: Option<i64>,
    /// The record.
    pub record: Record,
    /// Life of its topic.
    pub incarnation: i16,
}

/// A position's move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// Which partition.
    pub at: TopicPartition,
    /// Life of its log.
    pub incarnation: i16,
    /// The epoch under which this process owns it.
    pub epoch: i64,
    /// Where it stands.
    pub expected: i64,
    /// Where it will stand.
    pub new: i64,
    /// Offsets in between that the client passed over, ascending.
    pub skipped: Vec<Offsets>,
    /// Offsets in between that no rule explains, ascending: each becomes a known gap.
    pub unexplained: Vec<Offsets>,
}

/// What one transaction stores.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// At most 1,024, in the order in which they were read.
    pub candidates: Vec<Candidate>,
    /// In any order.
    pub rejects: Vec<Reject>,
    /// One for each partition of the batch.
    pub advances: Vec<Advance>,
    /// Random number under which new rows are born leased; `None`: born due.
    pub lease: Option<i64>,
}

/// What became of a batch. Counts are of records.
#[derive(Debug, Default)]
pub struct Ingested {
    /// New transactions: place in `Batch::candidates`, `tx.id`, and when PostgreSQL stored them.
    pub new: Vec<(usize, i64, SystemTime)>,
    /// Places of equal repeats.
    pub duplicates: Vec<usize>,
    /// Rejected records as stored, conflicts among them: reason and record's place in the log.
    pub rejected: Vec<(&'static str, TopicPartition, i64)>,
}

/// Who stores, for how long what is born leased stays so.
#[derive(Debug, Clone, Copy)]
pub struct Writer {
    /// This process.
    pub process: ProcessId,
    /// Length of a lease.
    pub lease: Duration,
}

/// An id whose owner neither won nor lost this often is not chance.
const TRIES: usize = 3;

impl Session {
    /// The numbers of these topics, made on first use.
    pub fn topics(&mut self, names: &[Arc<str>]) -> Result<Topics, StoreError> {
        let (statement, new) = (self.prepare(&TOPIC_ID)?, self.prepare(&NEW_TOPIC)?);
        let mut topics = Topics::new();
        for name in names {
            self.client.execute(&new, &[&&**name])?;
            topics.insert(name.clone(), self.client.query_one(&statement, &[&&**name])?.get(0));
        }
        Ok(topics)
    }

    /// Stores the batch in one transaction. `Fenced`: a partition is no longer this process's, nothing was stored.
    /// `Connection`: perhaps it was stored; the positions tell (see [`Session::leased_rows`]).
    pub fn ingest(&mut self, writer: Writer, topics: &Topics, batch: &Batch) -> Result<Ingested, StoreError> {
        let statements = self.statements()?;
        let mut transaction = self.client.transaction()?;
        let done = store(&mut transaction, &statements, writer, topics, batch)?;
        failpoint("step-ingest-commit");
        transaction.commit()?;
        Ok(done)
    }

    /// After a COMMIT whose answer was lost and whose positions show that it was done: the rows that carry this batch's
    /// lease, as `Ingested::new`.
    pub fn leased_rows(&mut self, batch: &Batch, lease: i64) -> Result<Vec<(usize, i64, SystemTime)>, StoreError> {
        let statement = self.prepare(&LEASED_ROWS)?;
        let ids: Vec<&str> = batch.candidates.iter().map(|c| c.transaction_id.as_str()).collect();
        let rows = self.client.query(&statement, &[&ids, &lease])?;
        Ok(rows.iter().map(|row| (place(row.get(0)), row.get(0), row.get(1))).collect())
    }
}

impl Session {
    pub(super) fn statements(&mut self) -> Result<Statements, StoreError> {
        Ok(Statements {
            ingest: self.prepare(&INGEST)?,
            seen: self.prepare(&SEEN)?,
            rejected: self.prepare(&INSERT_REJECTED)?,
            duplicates: self.prepare(&INSERT_DUPLICATES)?,
            advance: self.prepare(&ADVANCE)?,
            skipped: self.prepare(&INSERT_SKIPPED)?,
            gap: self.prepare(&INSERT_GAP)?,
        })
    }
}

pub(super) struct Statements {
    ingest: postgres::Statement,
    seen: postgres::Statement,
    rejected: postgres::Statement,
    duplicates: postgres::Statement,
    advance: postgres::Statement,
    skipped: postgres::Statement,
    gap: postgres::Statement,
}

/// Ids are made of a block and the place in the batch (migration 0001).
fn place(id: i64) -> usize {
    (id & 1023) as usize
}

/// Places in order of id, then of reading: two processes that insert the same ids in different orders deadlock.
pub(super) fn sort(candidates: &[Candidate]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    places.sort_by(|&a, &b| candidates[a].transaction_id.cmp(&candidates[b].transaction_id).then(a.cmp(&b)));
    places
}

/// All of a batch; the caller commits.
pub(super) fn store(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    writer: Writer,
    topics: &Topics,
    batch: &Batch,
) -> Result<Ingested, StoreError> {
    let mut done = Ingested::default();
    let sorted = sort(&batch.candidates);
    let mut repeats = Vec::new();
    let mut conflicts = Vec::new();
    let mut reread = 0;
    // Of equal ids in one batch the first read wins; the others are compared with what is stored then.
    let (mut wanted, mut losers): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for &place in &sorted {
        let id = &batch.candidates[place].transaction_id;
        match wanted.last() {
            Some(&last) if batch.candidates[last].transaction_id == *id => losers.push(place),
            _ => wanted.push(place),
        }
    }
    for round in 0.. {
        if !wanted.is_empty() {
            insert(transaction, statements, writer, topics, batch, &wanted, &mut done)?;
        }
        let inserted: std::collections::HashSet<usize> = done.new.iter().map(|new| new.0).collect();
        wanted.retain(|place| !inserted.contains(place));
        let mut unknown: Vec<usize> = wanted.iter().copied().chain(losers.drain(..)).collect();
        if unknown.is_empty() {
            break;
        }
        let found = seen(transaction, statements, topics, batch, &unknown)?;
        for seen in found.values() {
            match seen {
                // The same place with other bytes is no re-read: that log was truncated or replaced.
                Seen { same_record: true, equal: true, .. } => reread += 1,
                Seen { equal: true, place, tx_id, .. } => repeats.push((*place, *tx_id)),
                Seen { place, tx_id, .. } => conflicts.push((*place, *tx_id)),
            }
        }
        unknown.retain(|place| !found.contains_key(place));
        if unknown.is_empty() {
            break;
        }
        // Neither inserted nor there: its rival rolled back, or retention took it this moment. Never skipped.
        if round + 1 == TRIES {
            return Err(StoreError::Refused(format!(
                "{} ids were neither inserted nor found: does a trigger or a rule keep them out of table tx?",
                unknown.len()
            )));
        }
        unknown.sort_by(|a, b| batch.candidates[*a].transaction_id.cmp(&batch.candidates[*b].transaction_id).then(a.cmp(b)));
        unknown.dedup_by(|b, a| {
            let same = batch.candidates[*a].transaction_id == batch.candidates[*b].transaction_id;
            if same {
                losers.push(*b);
            }
            same
        });
        wanted = unknown;
    }
    let stored_repeats = insert_duplicates(transaction, statements, writer, batch, &repeats)?;
    let rejects: Vec<Rejected<'_>> = batch
        .rejects
        .iter()
        .map(|r| Rejected {
            reason: r.reason,
            detail: r.detail.clone(),
            tx_id: r.tx_id,
            record: &r.record,
            incarnation: r.incarnation,
        })
        .chain(conflicts.iter().map(|&(place, tx_id)| conflict(&batch.candidates[place], tx_id)))
        .collect();
    let stored_rejects = insert_rejected(transaction, statements, writer, &rejects)?;
    reread += repeats.len() - stored_repeats + rejects.len() - stored_rejects;
    let read = batch.candidates.len() + batch.rejects.len() - reread;
    advance(transaction, statements, writer, &batch.advances, read)?;
    insert_skipped(transaction, statements, &batch.advances)?;
    done.duplicates = repeats.iter().map(|repeat| repeat.0).collect();
    done.rejected = rejects.iter().map(|r| (r.reason, r.record.at.clone(), r.record.offset)).collect();
    Ok(done)
}

/// The new ones among these places; ids that are there are left alone.
pub(super) fn insert(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    writer: Writer,
    topics: &Topics,
    batch: &Batch,
    places: &[usize],
    done: &mut Ingested,
) -> Result<(), StoreError> {
    let rows = || places.iter().map(|&place| &batch.candidates[place]);
    let ids: Vec<&str> = rows().map(|c| c.transaction_id.as_str()).collect();
    let keys: Vec<Option<&[u8]>> = rows().map(|c| c.record.key.as_deref()).collect();
    let headers: Vec<Option<Value>> = rows().map(|c| headers::to_json(&c.record.headers)).collect();
    let payloads: Vec<Option<&[u8]>> = rows().map(|c| c.record.value.as_deref()).collect();
    let partitions: Vec<i32> = rows().map(|c| c.record.at.partition).collect();
    let offsets: Vec<i64> = rows().map(|c| c.record.offset).collect();
    let times: Vec<Option<SystemTime>> = rows().map(|c| c.record.timestamp_ms.and_then(to_time)).collect();
    let ordinals: Vec<i32> = places.iter().map(|&place| place as i32).collect();
    let topic_ids: Vec<i16> = rows().map(|c| topics[&c.record.at.topic]).collect();
    let incarnations: Vec<i16> = rows().map(|c| c.incarnation).collect();
    let lease_ms = writer.lease.as_millis() as i64;
    let stored = transaction.query(
        &statements.ingest,
        &[
            &ids,
            &keys,
            &headers,
            &payloads,
            &partitions,
            &offsets,
            &times,
            &ordinals,
            &topic_ids,
            &incarnations,
            &batch.lease,
            &writer.process,
            &lease_ms,
            &slot(writer.process, 0),
        ],
    )?;
    done.new.extend(stored.iter().map(|row| (place(row.get(0)), row.get(0), row.get(1))));
    Ok(())
}

/// A record's time as PostgreSQL can hold it: years 1970 to 9999, otherwise none (producers write nonsense).
fn to_time(ms: i64) -> Option<SystemTime> {
    (0..=253_402_300_799_999).contains(&ms).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(ms as u64))
}

struct Seen {
    place: usize,
    tx_id: i64,
    equal: bool,
    same_record: bool,
}

fn seen(
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
    let found = transaction.query(&statements.seen, &[&ids, &values, &topic_ids, &partitions, &incarnations, &offsets])?;
    let seen = |row: &postgres::Row| {
        let ordinal: i32 = row.get(0);
        let place = places[ordinal as usize - 1];
        (place, Seen { place, tx_id: row.get(1), equal: row.get(2), same_record: row.get(3) })
    };
    Ok(found.iter().map(seen).collect())
}

struct Rejected<'a> {
    reason: &'static str,
    detail: String,
    tx_id: Option<i64>,
    record: &'a Record,
    incarnation: i16,
}

fn conflict(candidate: &Candidate, tx_id: i64) -> Rejected<'_> {
    Rejected {
        reason: Reason::Conflict.label(),
        detail: "a transaction with this id is stored with other bytes".to_owned(),
        tx_id: Some(tx_id),
        record: &candidate.record,
        incarnation: candidate.incarnation,
    }
}

fn insert_rejected(
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

fn insert_duplicates(
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

fn advance(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    writer: Writer,
    advances: &[Advance],
    read: usize,
) -> Result<(), StoreError> {
    // In order of partition: two processes that (by mistake) both move them wait for each other instead of deadlocking.
    let mut advances: Vec<&Advance> = advances.iter().collect();
    advances.sort_by(|a, b| a.at.cmp(&b.at));
    let topics: Vec<&str> = advances.iter().map(|a| &*a.at.topic).collect();
    let partitions: Vec<i32> = advances.iter().map(|a| a.at.partition).collect();
    let epochs: Vec<i64> = advances.iter().map(|a| a.epoch).collect();
    let expected: Vec<i64> = advances.iter().map(|a| a.expected).collect();
    let new: Vec<i64> = advances.iter().map(|a| a.new).collect();
    let skipped: Vec<i64> = advances.iter().map(|a| offsets::count(&a.skipped)).collect();
    let moved: i64 = transaction
        .query_one(
            &statements.advance,
            &[&topics, &partitions, &epochs, &expected, &new, &skipped, &slot(writer.process, 0), &(read as i64)],
        )?
        .get(0);
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
fn insert_skipped(transaction: &mut Transaction<'_>, statements: &Statements, advances: &[Advance]) -> Result<(), StoreError> {
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
