//! The batch being built: records as read, and what they become.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::core::identify::{IdRule, identify};
use crate::core::record::{Record, TopicPartition};
use crate::store::{Candidate, Reject};

/// Rows per transaction; beyond it nothing is gained (reference measurements on PostgreSQL 15), and the ids of a batch have
/// 1,024 places.
pub const MAX_ROWS: usize = 500;
/// Bytes per transaction.
pub const MAX_BYTES: usize = 8 << 20;

/// Records that are read and not committed.
#[derive(Debug, Default)]
pub struct Reading {
    records: Vec<Record>,
    bytes: usize,
    since: Option<Instant>,
}

impl Reading {
    /// Time since its first record; zero while there is none.
    pub fn age(&self) -> Duration {
        self.since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Every record that the source returned belongs to the batch: caps close it after adding.
    pub fn add(&mut self, record: Record) {
        self.bytes += record.size();
        self.since.get_or_insert_with(Instant::now);
        self.records.push(record);
    }

    /// Whether it should be committed before more is read.
    pub fn is_full(&self) -> bool {
        self.records.len() >= MAX_ROWS || self.bytes >= MAX_BYTES
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Takes out what belongs to partitions that are no longer this process's.
    pub fn forget(&mut self, partitions: &[TopicPartition]) {
        self.records.retain(|record| !partitions.contains(&record.at));
        self.bytes = self.records.iter().map(Record::size).sum();
    }

    /// Takes everything out.
    pub fn take(&mut self) -> Vec<Record> {
        self.bytes = 0;
        self.since = None;
        std::mem::take(&mut self.records)
    }
}

/// Per partition of a batch: how many records, and the last one's offset.
pub type Extents = HashMap<TopicPartition, (i64, i64)>;

/// Counts a batch by partition.
pub fn extents(records: &[Record]) -> Extents {
    let mut extents = Extents::new();
    for record in records {
        // Looked up before inserted: the key is cloned once a partition, not once a record.
        match extents.get_mut(&record.at) {
            Some((n, last)) => (*n, *last) = (*n + 1, record.offset.max(*last)),
            None => drop(extents.insert(record.at.clone(), (1, record.offset))),
        }
    }
    extents
}

/// The offsets of one partition's records, in the order of reading.
pub fn offsets_of<'a>(records: &'a [Record], at: &'a TopicPartition) -> impl Iterator<Item = i64> + 'a {
    records.iter().filter(move |record| record.at == *at).map(|record| record.offset)
}

/// Sorts records into those that can become transactions and those that cannot. `incarnation` knows the topics' lives.
pub fn sort_out(
    records: Vec<Record>,
    rule: &IdRule,
    record_max: usize,
    incarnation: impl Fn(&TopicPartition) -> i16,
) -> (Vec<Candidate>, Vec<Reject>) {
    let (mut candidates, mut rejects) = (Vec::with_capacity(records.len()), Vec::new());
    for record in records {
        let incarnation = incarnation(&record.at);
        match identify(rule, &record, record_max) {
            Ok(id) => candidates.push(Candidate { transaction_id: id.transaction_id, record, incarnation }),
            Err(reject) => {
                rejects.push(Reject { reason: reject.reason.label(), detail: reject.detail, tx_id: None, record, incarnation })
            }
        }
    }
    (candidates, rejects)
}
