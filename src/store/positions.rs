//! The next offset to read per partition: kept here, not in Kafka.

use std::sync::Arc;

use super::sql::{BEGIN_POSITIONS, INSERT_GAP, MOVE_POSITION, OWN, POSITIONS, TOPIC_POSITIONS};
use super::{ProcessId, Session, StoreError};
use crate::core::record::{LogId, TopicPartition};
use crate::failpoint::failpoint;

/// A partition's position as PostgreSQL holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Which partition.
    pub at: TopicPartition,
    /// Lives of its topic.
    pub incarnation: i16,
    /// Next offset to read.
    pub next_offset: i64,
    /// Raised by each owner.
    pub epoch: i64,
    /// Offsets that were passed over so far, in this life.
    pub skipped: i64,
    /// Whose log it is.
    pub log: LogId,
}

/// A gap to be recorded with the move of a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Incarnation that the offsets belong to.
    pub incarnation: i16,
    /// First offset that is gone.
    pub from_offset: i64,
    /// The one after the last that is gone.
    pub to_offset: i64,
    /// retention, recreated, truncated, unexplained.
    pub reason: &'static str,
}

impl Session {
    /// Positions of these partitions; those never read are left out.
    pub fn positions(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Position>, StoreError> {
        let statement = self.prepare(&POSITIONS)?;
        let (topics, numbers) = columns(partitions);
        let rows = self.client.query(&statement, &[&topics, &numbers])?;
        Ok(rows.iter().map(|row| position(row, partitions)).collect())
    }

    /// How many of this topic's partitions have been taken up by anybody. Some: it has been started, and `kafka.start` no
    /// longer applies to it.
    pub fn count_positions(&mut self, topic: &str) -> Result<i64, StoreError> {
        let statement = self.prepare(&TOPIC_POSITIONS)?;
        Ok(self.client.query_one(&statement, &[&topic])?.get(0))
    }

    /// Writes the first positions of a topic, before its first fetch. Another process may have been first: then nothing changes.
    pub fn begin_positions(&mut self, topic: &str, offsets: &[(i32, i64)], log: &LogId) -> Result<(), StoreError> {
        let statement = self.prepare(&BEGIN_POSITIONS)?;
        let (partitions, offsets): (Vec<i32>, Vec<i64>) = offsets.iter().copied().unzip();
        self.client.execute(&statement, &[&topic, &partitions, &offsets, &log.topic, &log.cluster])?;
        failpoint("step-began");
        Ok(())
    }

    /// Takes partitions for `process`: raises their epochs. Each comes with the offset to begin at where nothing is known and
    /// whose log it is at present. Only called when the group has assigned them; a reconnect only reads.
    pub fn own(&mut self, process: ProcessId, wanted: &[(TopicPartition, i64, LogId)]) -> Result<Vec<Position>, StoreError> {
        let statement = self.prepare(&OWN)?;
        let mut wanted = wanted.to_vec();
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        let partitions: Vec<TopicPartition> = wanted.iter().map(|w| w.0.clone()).collect();
        let (topics, numbers) = columns(&partitions);
        let first: Vec<i64> = wanted.iter().map(|w| w.1).collect();
        let ids: Vec<_> = wanted.iter().map(|w| w.2.topic).collect();
        let clusters: Vec<Option<&str>> = wanted.iter().map(|w| w.2.cluster.as_deref()).collect();
        let rows = self.client.query(&statement, &[&topics, &numbers, &first, &ids, &process, &clusters])?;
        failpoint("step-owned");
        Ok(rows.iter().map(|row| position(row, &partitions)).collect())
    }

    /// Moves a lost position and records the gap, in one transaction. `Fenced` when the partition is no longer ours.
    pub fn move_position(&mut self, from: &Position, to: &Position, gap: Option<&Gap>) -> Result<(), StoreError> {
        let (update, insert) = (self.prepare(&MOVE_POSITION)?, self.prepare(&INSERT_GAP)?);
        let mut transaction = self.client.transaction()?;
        let topic: &str = &from.at.topic;
        let moved = transaction.query_one(
            &update,
            &[
                &topic,
                &from.at.partition,
                &from.epoch,
                &from.next_offset,
                &to.incarnation,
                &to.next_offset,
                &to.log.topic,
                &to.log.cluster,
            ],
        )?;
        if moved.get::<_, i64>(0) != 1 {
            return Err(StoreError::Fenced(format!("partition {} of {topic} has another owner", from.at.partition)));
        }
        if let Some(gap) = gap {
            transaction.execute(
                &insert,
                &[&topic, &from.at.partition, &gap.incarnation, &gap.from_offset, &gap.to_offset, &gap.reason],
            )?;
        }
        failpoint("step-move-commit");
        transaction.commit()?;
        failpoint("step-moved");
        Ok(())
    }
}

fn columns(partitions: &[TopicPartition]) -> (Vec<&str>, Vec<i32>) {
    partitions.iter().map(|p| (&*p.topic, p.partition)).unzip()
}

/// Row: topic, partition, incarnation, next_offset, epoch, topic_id, cluster_id, skipped. The topic's name is shared with `known`.
fn position(row: &postgres::Row, known: &[TopicPartition]) -> Position {
    let topic: &str = row.get(0);
    let shared = known.iter().find(|p| &*p.topic == topic).map(|p| p.topic.clone());
    Position {
        at: TopicPartition { topic: shared.unwrap_or_else(|| Arc::from(topic)), partition: row.get(1) },
        incarnation: row.get(2),
        next_offset: row.get(3),
        epoch: row.get(4),
        log: LogId { topic: row.get(5), cluster: row.get(6) },
        skipped: row.get(7),
    }
}
