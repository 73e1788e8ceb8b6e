//! Storing a batch of records: transactions, duplicates, conflicts, rejected records, positions and counters in one
//! transaction, so that every offset below a position is in exactly one place.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postgres::Transaction;

use self::rows::{
    Rejected, Seen, advance, conflict, insert_duplicates, insert_rejected, insert_skipped, insert_whole, place, seen,
};
pub(super) use self::rows::{Statements, insert};
use super::sql::{LEASED_ROWS, NEW_TOPIC, TOPIC_ID};
use super::{ProcessId, Session, StoreError};
use crate::core::offsets::Offsets;
use crate::core::record::{Record, TopicPartition};
use crate::failpoint::failpoint;

mod rows;

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
        let mut done = None;
        if let Some(places) = perhaps_all_new(batch) {
            done = insert_whole(&mut transaction, &statements, writer, topics, batch, &places)?;
            if done.is_none() {
                transaction.rollback()?;
                transaction = self.client.transaction()?;
            }
        }
        let done = match done {
            Some(done) => done,
            None => store(&mut transaction, &statements, writer, topics, batch)?,
        };
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

/// Places in order of id, then of reading: two processes that insert the same ids in different orders deadlock.
pub(super) fn sort(candidates: &[Candidate]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    places.sort_by(|&a, &b| candidates[a].transaction_id.cmp(&candidates[b].transaction_id).then(a.cmp(&b)));
    places
}

/// What nearly every batch is: records next to each other in Kafka, each with an id of its own. One statement stores it if none of
/// the ids is known. The places of its candidates as [`sort`] has them; `None`: there is more to it.
fn perhaps_all_new(batch: &Batch) -> Option<Vec<usize>> {
    let plain = |advance: &Advance| advance.skipped.is_empty() && advance.unexplained.is_empty();
    if batch.candidates.is_empty() || !batch.rejects.is_empty() || !batch.advances.iter().all(plain) {
        return None;
    }
    let places = sort(&batch.candidates);
    let id = |place: usize| &batch.candidates[place].transaction_id;
    places.windows(2).all(|two| id(two[0]) != id(two[1])).then_some(places)
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
