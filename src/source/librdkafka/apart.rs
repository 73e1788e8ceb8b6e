//! A second, short-lived reader beside the group: one partition, from an offset on. It joins nothing and commits nothing.
//!
//! It answers two questions that the group's consumer cannot: what the offsets are that this one passed over, and how far a
//! partition can be read whose log is damaged somewhere.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::context::Context;
use super::convert::{self, record};
use super::errors::{self, Meaning};
use super::settings;
use crate::config;
use crate::core::hole::Look;
use crate::core::offsets::{self, Offsets};
use crate::core::record::TopicPartition;
use crate::source::{Chunk, Ended, SourceError, topic_id};

const POLL: Duration = Duration::from_millis(100);
const REQUEST: Duration = Duration::from_secs(3);

/// Looks at a range of offsets once more: which of them can be read, which only without regard to transactions, which are not
/// there. Fails when the range is not below the end of what is committed, and when the deadline passes.
pub fn look_again(kafka: &config::Kafka, at: &TopicPartition, range: Offsets, deadline: Instant) -> Result<Look, SourceError> {
    let mut committed = Apart::with(kafka, "read_committed")?;
    let left = || deadline.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), REQUEST);
    // Under read_committed the high one is the last stable offset.
    let (low, stable) = (committed.consumer.fetch_watermarks(&at.topic, at.partition, left()))
        .map_err(|e| committed.failed(&format!("read the watermarks of {}/{}", at.topic, at.partition), e))?;
    if range.end > stable {
        let why = format!("{}/{} is committed up to {stable}, and {} was asked for", at.topic, at.partition, range.end);
        return Err(SourceError::Request(why));
    }
    let whole = range.start.max(low).min(range.end)..range.end;
    let gone = range.start..whole.start;
    // Not being permitted to ask is an answer; a broker that does not answer now may do so later.
    let settings = topic_id::settings(&committed.consumer, &at.topic, left())
        .map_err(|e| committed.failed("read the topic's settings", e))?;
    let readable = committed.offsets(at, &whole, deadline)?;
    drop(committed);
    let there = Apart::with(kafka, "read_uncommitted")?.offsets(at, &whole, deadline)?;
    let absent = offsets::minus(&offsets::minus(&[whole], &there), &readable);
    Ok(Look {
        aborted: offsets::minus(&there, &readable),
        readable,
        absent,
        gone: if gone.is_empty() { Vec::new() } else { vec![gone] },
        compacted: settings.map(|found| convert::settings(found).compacted),
    })
}

/// A reader of one partition at a time, apart from the group. Under read_committed, with the group's security and checks.
pub struct Apart {
    consumer: BaseConsumer<Context>,
    group: String,
    /// What is read, and the lowest offset that may still come.
    at: Option<(TopicPartition, i64)>,
}

impl Apart {
    /// Nothing is asked of the cluster yet.
    pub fn open(kafka: &config::Kafka) -> Result<Self, SourceError> {
        Self::with(kafka, "read_committed")
    }

    fn with(kafka: &config::Kafka, isolation: &str) -> Result<Self, SourceError> {
        let mut client = settings::client_config(kafka, None)?;
        // The group's name only because librdkafka assigns nothing without one; nothing of it is joined or committed.
        client.set("enable.auto.commit", "false");
        client.set("enable.partition.eof", "true");
        client.set("isolation.level", isolation);
        client.set("statistics.interval.ms", "0");
        let consumer =
            client.create_with_context(Context::default()).map_err(|e| SourceError::Settings(settings::refusal(&e)))?;
        Ok(Self { consumer, group: kafka.group.clone(), at: None })
    }

    /// From now on reads this partition, beginning at exactly this offset.
    pub fn begin(&mut self, at: &TopicPartition, from: i64) -> Result<(), SourceError> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&at.topic, at.partition, Offset::Offset(from))
            .and_then(|()| self.consumer.assign(&list))
            .map_err(|e| SourceError::Request(format!("failed to read {}/{} at {from}: {e}", at.topic, at.partition)))?;
        self.at = Some((at.clone(), from));
        Ok(())
    }

    /// Goes on from where it stands until it has so many records or bytes, or cannot go on. After `Damaged` and
    /// `PositionLost` it must be dropped: the client may have lost its place.
    pub fn read(&mut self, rows: usize, bytes: usize, deadline: Instant) -> Result<Chunk, SourceError> {
        let topic = self.at.as_ref().map(|(at, _)| at.topic.clone());
        let topics: Vec<Arc<str>> = topic.into_iter().collect();
        let (mut records, mut size) = (Vec::new(), 0);
        let ended = self.each(deadline, |message| {
            let record = record(message, &topics);
            size += record.size();
            records.push(record);
            if records.len() >= rows || size >= bytes { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(Chunk { records, next: self.at.as_ref().map_or(0, |(_, next)| *next), ended })
    }

    /// Which offsets of `range` come.
    fn offsets(&mut self, at: &TopicPartition, range: &Offsets, deadline: Instant) -> Result<Vec<Offsets>, SourceError> {
        let mut found = Vec::new();
        if range.is_empty() {
            return Ok(found);
        }
        self.begin(at, range.start)?;
        let ended = self.each(deadline, |message| {
            if message.offset() >= range.end {
                return ControlFlow::Break(());
            }
            offsets::add(&mut found, message.offset());
            ControlFlow::Continue(())
        })?;
        let (topic, partition) = (&at.topic, at.partition);
        match ended {
            Ended::Full | Ended::EndOfLog => Ok(found),
            Ended::Damaged(why) => Err(SourceError::Damaged(format!("{topic}/{partition}: {why}"))),
            Ended::Late(why) => Err(SourceError::Request(format!("failed to read {topic}/{partition} in time{why}"))),
            Ended::PositionLost(_) => {
                Err(SourceError::Request(format!("{topic}/{partition} has lost offset {} just now", range.start)))
            }
        }
    }

    /// Gives records to `take` in order, until it wants no more or none comes.
    fn each(
        &mut self,
        deadline: Instant,
        mut take: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<Ended, SourceError> {
        let Some((at, next)) = &mut self.at else { return Ok(Ended::EndOfLog) };
        let mut trouble = String::new();
        let ended = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Ended::Late(trouble);
            }
            let error = match self.consumer.poll(left.min(POLL).max(Duration::from_millis(1))) {
                None => continue,
                // Left over from what was read before.
                Some(Ok(message)) if message.partition() != at.partition || message.topic() != &*at.topic => continue,
                Some(Ok(message)) => {
                    if message.offset() < *next {
                        return Err(SourceError::Request(format!("offset {} came where {next} was next", message.offset())));
                    }
                    *next = message.offset() + 1;
                    if take(&message).is_break() {
                        break Ended::Full;
                    }
                    continue;
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if partition != at.partition => continue,
                Some(Err(KafkaError::PartitionEOF(_))) => break Ended::EndOfLog,
                Some(Err(error)) => error,
            };
            let fatal = self.consumer.client().fatal_error();
            match errors::meaning(&error, fatal, &self.consumer.context().told(), &self.group) {
                Meaning::PositionLost(why) => break Ended::PositionLost(why),
                Meaning::Trouble(said) => trouble = format!("; {}", said.text),
                Meaning::Broken(SourceError::Damaged(why)) => break Ended::Damaged(why),
                Meaning::Broken(error) => return Err(error),
            }
        };
        // Behind markers and aborted records; what is queued and was not given out is not passed.
        if let Ok(list) = self.consumer.position()
            && let Some(Offset::Offset(position)) = list.elements().first().map(|element| element.offset())
        {
            *next = position.max(*next);
        }
        Ok(ended)
    }

    fn failed(&self, what: &str, error: impl std::fmt::Display) -> SourceError {
        for _ in 0..100 {
            // Errors and log lines wait for a poll, one each.
            let _ = self.consumer.poll(Duration::ZERO);
        }
        let told = self.consumer.context().told().connection;
        let told = told.map(|(kind, words)| format!("; {}", errors::sentence(kind, &words, &self.group))).unwrap_or_default();
        SourceError::Request(format!("failed to {what}: {error}{told}"))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // No offset is stored, so that nothing is waited for.
        self.consumer.context().close();
        let _ = self.consumer.unassign();
    }
}
