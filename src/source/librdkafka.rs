//! The source over librdkafka (crate rdkafka, `BaseConsumer`): Kafka 2.1 to 4.x, a consumer group with cooperative
//! rebalance, TLS, SASL, every codec, headers.
//!
//! A rebalance is answered in two steps. librdkafka announces it by an event that is served inside `BaseConsumer::poll`; the
//! callback only writes it down, and `poll` returns it. librdkafka's group thread then waits (it keeps heartbeating, and has
//! paused what is assigned) for a call of `incremental_assign` or `incremental_unassign`, from wherever it comes, up to
//! `max.poll.interval.ms`. So PostgreSQL may be asked in between, and nothing is read before its answer.
//! A *parked* partition is one that the group gave us and librdkafka's assignment does not hold: there is no fetcher for it,
//! so that nothing can be delivered, prefetched or reported out of range.

mod apart;
mod context;
mod convert;
mod errors;
mod settings;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

pub use self::apart::{Apart, look_again};
use self::context::{Context, Rebalance};
use self::convert::{list_of, only_offset, record, shared_name};
use self::errors::Meaning;
pub(super) use self::settings::{prefetched, session_timeout};
use super::topic_id;
use super::{MessageSource, Polled, SourceError, TopicInfo, TopicSettings, Watermarks};
use crate::config::{self, Start};
use crate::core::record::{Record, TopicPartition};

/// How far a partition of ours is.
#[derive(Debug, Clone, Copy)]
enum Reading {
    /// Not in librdkafka's assignment.
    Parked,
    /// Read; the number is the lowest offset that may still come.
    From(i64),
}

/// A consumer group member.
pub(super) struct Librdkafka {
    consumer: BaseConsumer<Context>,
    topics: Vec<Arc<str>>,
    group: String,
    /// Whether the group was joined; the first `poll` does it.
    joined: bool,
    paused: bool,
    /// Everything that the group gave us.
    partitions: HashMap<TopicPartition, Reading>,
    /// The rebalance that librdkafka waits to be answered.
    unanswered: Option<Rebalance>,
}

impl Librdkafka {
    /// Makes the client; nothing is asked of the cluster and no group joined before the first call.
    pub(super) fn open(kafka: &config::Kafka, instance: Option<&str>) -> Result<Self, SourceError> {
        let consumer = settings::client_config(kafka, instance)?
            .create_with_context(Context::default())
            .map_err(|e| SourceError::Settings(settings::refusal(&e)))?;
        Ok(Self {
            consumer,
            topics: kafka.topics.iter().map(|t| Arc::from(t.as_str())).collect(),
            group: kafka.group.clone(),
            joined: false,
            paused: false,
            partitions: HashMap::new(),
            unanswered: None,
        })
    }

    fn join(&mut self) -> Result<(), SourceError> {
        if !self.joined {
            let topics: Vec<&str> = self.topics.iter().map(|t| &**t).collect();
            self.consumer.subscribe(&topics).map_err(|e| SourceError::Rebuild(format!("failed to subscribe: {e}")))?;
            self.joined = true;
        }
        Ok(())
    }

    /// Checks that a record may come now. Those of partitions that are not read are librdkafka's leftovers: dropped, because
    /// whoever reads the partition next begins at PostgreSQL's position.
    fn accept(&mut self, record: Record) -> Result<Option<Polled>, SourceError> {
        match self.partitions.get_mut(&record.at) {
            Some(Reading::From(next)) if record.offset >= *next => {
                *next = record.offset + 1;
                Ok(Some(Polled::Record(record)))
            }
            Some(Reading::From(next)) => Err(SourceError::Rebuild(format!(
                "reading went backwards: {}/{} brought offset {} where {next} was next",
                record.at.topic, record.at.partition, record.offset
            ))),
            Some(Reading::Parked) | None => Ok(None),
        }
    }

    /// The rebalance that the last poll may have served.
    fn rebalanced(&mut self) -> Option<Polled> {
        let rebalance = self.consumer.context().take_rebalance()?;
        self.unanswered = Some(rebalance.clone());
        Some(match rebalance {
            Rebalance::Assigned(partitions) => {
                let partitions: Vec<TopicPartition> = partitions.iter().map(|p| self.shared(p)).collect();
                self.partitions.extend(partitions.iter().map(|p| (p.clone(), Reading::Parked)));
                Polled::Assigned(partitions)
            }
            Rebalance::Revoked { partitions, lost } => {
                Polled::Revoked { partitions: partitions.iter().map(|p| self.shared(p)).collect(), lost }
            }
        })
    }

    /// The same partition with the topic's one shared name.
    fn shared(&self, at: &(String, i32)) -> TopicPartition {
        TopicPartition { topic: shared_name(&self.topics, &at.0), partition: at.1 }
    }

    /// Answers a rebalance that the caller left without answer, so that the group never waits for us: what was assigned is
    /// parked, what was revoked is released.
    fn answer(&mut self) -> Result<(), SourceError> {
        match self.unanswered {
            None => Ok(()),
            Some(Rebalance::Assigned(_)) => self.park(&[]),
            Some(Rebalance::Revoked { .. }) => self.release(&[]),
        }
    }

    /// Any call of `incremental_assign` answers an assignment, whatever it contains. Whether there was one to answer.
    fn assignment_answered(&mut self) -> bool {
        self.unanswered.take_if(|r| matches!(r, Rebalance::Assigned(_))).is_some()
    }

    /// Which of these librdkafka reads.
    fn started(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Vec<TopicPartition> {
        partitions.into_iter().filter(|p| matches!(self.partitions.get(p), Some(Reading::From(_)))).collect()
    }

    fn all_started(&self) -> Vec<TopicPartition> {
        self.started(self.partitions.keys().cloned())
    }

    /// Takes partitions out of librdkafka's assignment; an empty list is an answer, too.
    fn unassign(&self, partitions: &[TopicPartition]) -> Result<(), SourceError> {
        let list = list_of(partitions);
        if self.paused {
            // The application's pause sticks to a partition beyond its assignment: it would never be read again.
            let _ = self.consumer.resume(&list);
        }
        self.consumer.incremental_unassign(&list).map_err(|e| SourceError::Rebuild(format!("failed to give up partitions: {e}")))
    }

    fn assign(&self, list: &TopicPartitionList) -> Result<(), SourceError> {
        self.consumer.incremental_assign(list).map_err(|e| SourceError::Rebuild(format!("failed to take partitions: {e}")))
    }

    /// What an error of `poll` means for the caller.
    fn fault(&mut self, error: &KafkaError) -> Result<Option<Polled>, SourceError> {
        let fatal = self.consumer.client().fatal_error();
        match errors::meaning(error, fatal, &self.consumer.context().told(), &self.group) {
            // Left over from a partition that is not ours any more.
            Meaning::PositionLost(_) if self.all_started().is_empty() => Ok(None),
            Meaning::PositionLost(text) => Ok(Some(Polled::PositionLost(text))),
            Meaning::Trouble(trouble) => Ok(Some(Polled::Trouble(trouble))),
            Meaning::Broken(error) => Err(error),
        }
    }

    /// A request failed: says so together with the last thing that librdkafka said about its connections.
    fn request_failed(&mut self, what: &str, error: impl std::fmt::Display) -> SourceError {
        if !self.joined {
            // Errors and log lines wait for a poll, one each; without a group it cannot bring a record. `None` may be a line.
            for _ in 0..100 {
                let _ = self.consumer.poll(Duration::ZERO);
            }
        }
        let told = self.consumer.context().told().connection;
        let told = told.map(|(kind, words)| format!("; {}", errors::sentence(kind, &words, &self.group))).unwrap_or_default();
        SourceError::Request(format!("failed to {what}: {error}{told}"))
    }
}

impl MessageSource for Librdkafka {
    fn poll(&mut self, timeout: Duration) -> Result<Option<Polled>, SourceError> {
        self.join()?;
        self.answer()?;
        // Whole milliseconds: rdkafka cuts the rest off and spins through it.
        let timeout = Duration::from_millis(u64::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(u64::MAX));
        let fault = match self.consumer.poll(timeout) {
            None => return Ok(self.rebalanced()),
            Some(Ok(message)) => {
                let record = record(&message, &self.topics);
                drop(message);
                return self.accept(record);
            }
            Some(Err(error)) => error,
        };
        self.fault(&fault)
    }

    fn start(&mut self, at: &[(TopicPartition, i64)]) -> Result<(), SourceError> {
        let ours: Vec<&(TopicPartition, i64)> = at.iter().filter(|(p, _)| self.partitions.contains_key(p)).collect();
        let moved = self.started(ours.iter().map(|(p, _)| p.clone()));
        if !moved.is_empty() {
            // Not `seek`: it is refused after AutoOffsetReset, which is when a partition is moved.
            self.unassign(&moved)?;
        }
        let mut list = TopicPartitionList::with_capacity(ours.len());
        for (p, offset) in &ours {
            list.add_partition_offset(&p.topic, p.partition, Offset::Offset(*offset))
                .map_err(|e| SourceError::Rebuild(format!("failed to start {}/{} at {offset}: {e}", p.topic, p.partition)))?;
        }
        self.assign(&list)?;
        self.assignment_answered();
        for (p, offset) in ours {
            self.partitions.insert(p.clone(), Reading::From(*offset));
        }
        if self.paused {
            let _ = self.consumer.pause(&list);
        }
        Ok(())
    }

    fn park(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError> {
        let started = self.started(partitions.iter().cloned());
        if !started.is_empty() {
            self.unassign(&started)?;
        }
        for p in started {
            self.partitions.insert(p, Reading::Parked);
        }
        if self.assignment_answered() {
            self.assign(&TopicPartitionList::new())?;
        }
        Ok(())
    }

    fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError> {
        let mut leaving: Vec<TopicPartition> = partitions.to_vec();
        let unanswered = self.unanswered.take();
        if let Some(Rebalance::Revoked { partitions, .. }) = &unanswered {
            leaving.extend(partitions.iter().map(|p| self.shared(p)));
        }
        leaving.sort();
        leaving.dedup();
        let started = self.started(leaving.iter().cloned());
        for p in &leaving {
            self.partitions.remove(p);
        }
        if unanswered.is_some() || !started.is_empty() {
            self.unassign(&started)?;
        }
        Ok(())
    }

    fn positions(&mut self) -> Vec<(TopicPartition, i64)> {
        let Ok(list) = self.consumer.position() else { return Vec::new() };
        let mut positions = Vec::with_capacity(list.count());
        for element in list.elements() {
            let at = TopicPartition { topic: shared_name(&self.topics, element.topic()), partition: element.partition() };
            let (Offset::Offset(offset), Some(Reading::From(next))) = (element.offset(), self.partitions.get_mut(&at)) else {
                continue;
            };
            // Below `next` it would be from an earlier life of this partition here; unknown, then.
            if offset >= *next {
                // A record below what was said to be passed must never come: `accept` holds it against this.
                *next = offset;
                positions.push((at, offset));
            }
        }
        positions
    }

    fn store(&mut self, next: &[(TopicPartition, i64)]) {
        let mut list = TopicPartitionList::with_capacity(next.len());
        for (p, offset) in next {
            if matches!(self.partitions.get(p), Some(Reading::From(_))) {
                let _ = list.add_partition_offset(&p.topic, p.partition, Offset::Offset(*offset));
            }
        }
        // Best effort: the position that counts is PostgreSQL's.
        let _ = self.consumer.store_offsets(&list);
    }

    fn pause(&mut self) {
        let _ = self.consumer.pause(&list_of(&self.all_started()));
        self.paused = true;
    }

    fn resume(&mut self) {
        let _ = self.consumer.resume(&list_of(&self.all_started()));
        self.paused = false;
    }

    fn cluster_id(&mut self, timeout: Duration) -> Result<Option<String>, SourceError> {
        let began = Instant::now();
        let mut known = topic_id::cluster_id(&self.consumer, Duration::ZERO);
        if known.is_none() {
            // Asking for it sends no request; only the answer to another one brings it (librdkafka's own comes after 1 s).
            let _ = topic_id::describe(&self.consumer, &self.topics, timeout);
            known = topic_id::cluster_id(&self.consumer, timeout.saturating_sub(began.elapsed()));
        }
        // Every broker since 0.10.1 has one, and librdkafka answers a timeout with the same "none".
        match known {
            Some(id) => Ok(Some(id)),
            None => Err(self.request_failed("learn the cluster's id", format_args!("no answer within {timeout:?}"))),
        }
    }

    fn topics(&mut self, timeout: Duration) -> Result<Vec<TopicInfo>, SourceError> {
        topic_id::describe(&self.consumer, &self.topics, timeout).map_err(|e| self.request_failed("describe the topics", e))
    }

    fn settings(&mut self, topic: &str, timeout: Duration) -> Result<Option<TopicSettings>, SourceError> {
        let found = topic_id::settings(&self.consumer, topic, timeout);
        found.map(|found| found.map(convert::settings)).map_err(|e| self.request_failed("read the topic's settings", e))
    }

    fn watermarks(&mut self, at: &TopicPartition, timeout: Duration) -> Result<Watermarks, SourceError> {
        match self.consumer.fetch_watermarks(&at.topic, at.partition, timeout) {
            Ok((low, high)) => Ok(Watermarks { low, high }),
            Err(e) => Err(self.request_failed(&format!("read the watermarks of {}/{}", at.topic, at.partition), e)),
        }
    }

    fn resolve(&mut self, at: &TopicPartition, start: Start, timeout: Duration) -> Result<i64, SourceError> {
        let found = match start {
            Start::Earliest => return Ok(self.watermarks(at, timeout)?.low),
            Start::Latest => return Ok(self.watermarks(at, timeout)?.high),
            Start::Committed => self.consumer.committed_offsets(list_of(std::slice::from_ref(at)), timeout),
            Start::Time(ms) => {
                let mut list = TopicPartitionList::with_capacity(1);
                list.add_partition_offset(&at.topic, at.partition, Offset::Offset(ms.max(0)))
                    .and_then(|()| self.consumer.offsets_for_times(list, timeout))
            }
        };
        match (found.and_then(|list| only_offset(&list)), start) {
            (Ok(Offset::Offset(offset)), _) => Ok(offset),
            (Ok(_), Start::Time(_)) => Ok(self.watermarks(at, timeout)?.high),
            (Ok(_), _) => Ok(self.watermarks(at, timeout)?.low),
            (Err(e), _) => Err(self.request_failed(&format!("find where to start {}/{}", at.topic, at.partition), e)),
        }
    }

    fn high_watermarks(&mut self) -> Vec<(TopicPartition, i64)> {
        let known = self.consumer.context().high_watermarks();
        known
            .iter()
            .map(|(at, high)| (self.shared(at), *high))
            .filter(|(at, _)| matches!(self.partitions.get(at), Some(Reading::From(_))))
            .collect()
    }

    fn look_for_topics(&mut self, timeout: Duration) {
        // All of them: the answer to a question for some changes nothing about what the group is joined for.
        let _ = self.consumer.fetch_metadata(None, timeout);
    }

    fn is_up(&self) -> bool {
        self.consumer.context().is_up()
    }

    fn close(self: Box<Self>, deadline: Duration) {
        let (done, closed) = bounded::<()>(0);
        let thread = std::thread::Builder::new().name("kafka-close".into()).spawn(move || {
            drop(self);
            drop(done);
        });
        // Not joined: with the brokers away a drop lasts up to session.timeout.ms, and the process is about to end.
        if thread.is_ok() {
            let _ = closed.recv_timeout(deadline);
        }
    }
}

impl Drop for Librdkafka {
    /// Answers what is open; `BaseConsumer`'s own drop, which follows, would otherwise wait for ever for that answer.
    fn drop(&mut self) {
        let _ = self.answer();
        while self.rebalanced().is_some() {
            let _ = self.answer();
        }
        self.consumer.context().close();
    }
}
