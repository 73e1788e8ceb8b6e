//! Taking partitions up: which offset to begin at, and what to do when a position has left its log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::consumer::{Consumer, Held, Leave};
use crate::config::{OnLostPosition, Start};
use crate::core::record::TopicPartition;
use crate::ops::pulse;
use crate::source::{MessageSource, SourceError, TopicInfo, Watermarks};
use crate::store::{Gap, Position, StoreError};

/// One request to the cluster.
const REQUEST: Duration = Duration::from_secs(3);
/// Shortest and longest wait before parked partitions are tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// A position above its log's end is believed when it is seen again after this time: a leader may lag for a moment.
const BELIEVE_TRUNCATION: Duration = Duration::from_secs(30);

/// Why partitions cannot be read yet.
enum Unready {
    Store(StoreError),
    Source(SourceError),
    /// Somebody has to decide; in words.
    Person(String),
}

impl From<StoreError> for Unready {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<SourceError> for Unready {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl Consumer {
    /// Begins to read partitions that the group has assigned, at PostgreSQL's positions. What cannot be read yet is parked
    /// and tried again, after waits that grow; one partition without a leader must not keep the others.
    pub(super) fn take_up(&mut self, source: &mut dyn MessageSource, partitions: &[TopicPartition]) -> Option<Leave> {
        pulse::at("taking partitions up", pulse::REMOTE);
        let ready = self.positions_to_read(source, partitions).unwrap_or_else(|unready| {
            self.say_unready(unready);
            Vec::new()
        });
        let start: Vec<(TopicPartition, i64)> = ready.iter().map(|p| (p.at.clone(), p.next_offset)).collect();
        let is_ready = |at: &TopicPartition| start.iter().any(|(started, _)| started == at);
        let parked: Vec<TopicPartition> = partitions.iter().filter(|at| !is_ready(at)).cloned().collect();
        if let Err(error) = source.start(&start).and_then(|()| source.park(&parked)) {
            return Some(Leave::Rebuild(error.to_string()));
        }
        if !ready.is_empty() {
            self.health.go("consumer", "postgres");
            log::info!(partitions = ready.len(); "reading {} partitions", ready.len());
        }
        for position in ready {
            let labels = [&*position.at.topic, &position.at.partition.to_string()];
            self.metrics.kafka_position.with_label_values(&labels).set(position.next_offset);
            self.held.insert(position.at.clone(), Held { position: Some(position) });
        }
        let pause = if parked.is_empty() { Duration::ZERO } else { (self.parked_until.1 * 2).clamp(RETRY.0, RETRY.1) };
        self.parked_until = (Instant::now() + pause, pause);
        if parked.is_empty() {
            self.health.go("consumer", "kafka");
        }
        None
    }

    fn say_unready(&mut self, unready: Unready) {
        match unready {
            Unready::Store(error) => self.store_trouble(&error),
            Unready::Source(error) => {
                if let Some(note) = self.throttle.admit("unready", Instant::now()) {
                    log::warn!("some partitions cannot be read yet: {error}{note}");
                }
                self.health.wait("consumer", "kafka", format!("Kafka: {error}"));
            }
            Unready::Person(words) => {
                if let Some(note) = self.throttle.admit(&words, Instant::now()) {
                    log::error!("{words}{note}");
                }
                self.health.wait("consumer", "kafka", words);
            }
        }
    }

    /// Those of `partitions` that can be read, owned and with their positions; why the others cannot is said.
    /// Fails where nothing can be known about any of them.
    fn positions_to_read(
        &mut self,
        source: &mut dyn MessageSource,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Position>, Unready> {
        let mut topics = self.describe(source, partitions)?;
        let names: Vec<Arc<str>> = topics.keys().cloned().collect();
        self.topics.extend(self.link.run(|session| session.topics(&names))?);
        for name in names {
            match self.begin(source, &topics[&name]) {
                Ok(()) => {}
                Err(Unready::Store(error)) => return Err(Unready::Store(error)),
                Err(unready) => {
                    self.say_unready(unready);
                    topics.remove(&name);
                }
            }
        }
        let partitions: Vec<TopicPartition> = partitions.iter().filter(|at| topics.contains_key(&at.topic)).cloned().collect();
        let known = self.link.run(|session| session.positions(&partitions))?;
        let mut wanted = Vec::new();
        let mut logs = HashMap::new();
        for at in partitions {
            // One request a partition, and there may be many.
            pulse::at("taking partitions up", pulse::REMOTE);
            let log = match source.watermarks(&at, REQUEST) {
                Ok(log) => log,
                Err(error) => {
                    self.say_unready(Unready::Source(error));
                    continue;
                }
            };
            // A partition that appeared later begins at its first record.
            let first = known.iter().find(|p| p.at == at).map_or(log.low, |p| p.next_offset);
            wanted.push((at.clone(), first, topics[&at.topic].id));
            logs.insert(at, log);
        }
        let process = self.process;
        let owned = self.link.run(|session| session.own(process, &wanted))?;
        let mut ready = Vec::new();
        for position in owned {
            let id = topics[&position.at.topic].id;
            let log = logs[&position.at];
            ready.extend(self.validate(position, log, id)?);
        }
        Ok(ready)
    }

    fn describe(
        &mut self,
        source: &mut dyn MessageSource,
        partitions: &[TopicPartition],
    ) -> Result<HashMap<Arc<str>, TopicInfo>, Unready> {
        let infos = source.topics(REQUEST)?;
        let wanted = |info: &TopicInfo| partitions.iter().any(|at| at.topic == info.topic);
        Ok(infos.into_iter().filter(wanted).map(|info| (info.topic.clone(), info)).collect())
    }

    /// Applies `kafka.start` to a topic that this pipeline has never read: numbers for all of its partitions are written
    /// before the first fetch.
    fn begin(&mut self, source: &mut dyn MessageSource, info: &TopicInfo) -> Result<(), Unready> {
        let topic = info.topic.clone();
        let Some(count) = info.partitions else {
            return Err(SourceError::Request(format!(
                "topic {topic} is assigned and yet not known to the broker that was asked"
            ))
            .into());
        };
        if self.link.run(|session| session.has_positions(&topic))? {
            return Ok(());
        }
        let partitions = (0..count).map(|partition| TopicPartition { topic: topic.clone(), partition });
        let mut offsets = Vec::new();
        let mut present = 0;
        for at in partitions {
            pulse::at("taking partitions up", pulse::REMOTE);
            let offset = match self.config.get().kafka.start {
                Some(start) => source.resolve(&at, start, REQUEST)?,
                None => {
                    let log = source.watermarks(&at, REQUEST)?;
                    present += log.high - log.low;
                    source.resolve(&at, Start::Earliest, REQUEST)?
                }
            };
            offsets.push((at.partition, offset));
        }
        if present > 0 {
            return Err(Unready::Person(format!(
                "topic {topic} already holds about {present} records: say in kafka.start whether to deliver them (\"earliest\"), to \
                 begin with what comes from now on (\"latest\"), where the group stands (\"committed\"), or at a time (RFC 3339)"
            )));
        }
        log::info!(topic = &*topic, partitions = offsets.len(); "first start on topic {topic}: positions are written");
        let id = info.id;
        Ok(self.link.run(|session| session.begin_positions(&topic, &offsets, id))?)
    }

    /// Holds a position against its log. `None`: it has left the log and must wait (for a second look, or for a person).
    fn validate(&mut self, position: Position, log: Watermarks, id: Option<Uuid>) -> Result<Option<Position>, Unready> {
        let recreated = matches!((position.topic_id, id), (Some(then), Some(now)) if then != now);
        let next = position.next_offset;
        let (offset, gap) = if recreated {
            (log.low, Gap { incarnation: position.incarnation, from_offset: next, to_offset: next, reason: "recreated" })
        } else if next < log.low {
            (log.low, Gap { incarnation: position.incarnation, from_offset: next, to_offset: log.low, reason: "retention" })
        } else if next > log.high {
            let now = Instant::now();
            let seen = self.above_end.entry(position.at.clone()).or_insert((now, now));
            // An old sighting proves nothing: between the two another process may have read on.
            if now - seen.1 > BELIEVE_TRUNCATION * 2 {
                seen.0 = now;
            }
            seen.1 = now;
            if now - seen.0 < BELIEVE_TRUNCATION {
                let words =
                    format!("{}/{} ends at {}, before the position {next}", position.at.topic, position.at.partition, log.high);
                self.health.wait("consumer", "partition", words);
                return Ok(None);
            }
            (log.high, Gap { incarnation: position.incarnation, from_offset: log.high, to_offset: next, reason: "truncated" })
        } else {
            self.above_end.remove(&position.at);
            return Ok(Some(position));
        };
        self.lose(position, offset, gap, id)
    }

    /// Moves a lost position and says so, or leaves the partition alone (`kafka.on_lost_position = "stop"`).
    fn lose(&mut self, position: Position, offset: i64, gap: Gap, id: Option<Uuid>) -> Result<Option<Position>, Unready> {
        let at = position.at.clone();
        let what = format!("{}/{}: position {} has left the log ({})", at.topic, at.partition, position.next_offset, gap.reason);
        if self.config.get().kafka.on_lost_position == OnLostPosition::Stop {
            if let Some(note) = self.throttle.admit("lost position", Instant::now()) {
                log::error!(
                    "{what}; kafka.on_lost_position = \"stop\": this partition is not read until it is \"continue\"{note}"
                );
            }
            self.health.wait("consumer", "partition", format!("{what}; kafka.on_lost_position is \"stop\""));
            return Ok(None);
        }
        // Offsets are given anew in a log that was made again or cut: with another incarnation each stays one place.
        let incarnation = if gap.reason == "retention" { position.incarnation } else { position.incarnation + 1 };
        self.link.run(|session| session.move_position(&position, (incarnation, offset, id), Some(&gap)))?;
        let lost = gap.to_offset - gap.from_offset;
        self.metrics.gap_records_total.with_label_values(&[&*at.topic, gap.reason]).inc_by(lost.max(1) as u64);
        log::error!(topic = &*at.topic, partition = at.partition, from = gap.from_offset, to = gap.to_offset, reason = gap.reason;
            "{what}: the gap is recorded in known_gap, reading goes on at {offset}");
        self.above_end.remove(&at);
        Ok(Some(Position { next_offset: offset, incarnation, topic_id: id.or(position.topic_id), ..position }))
    }

    /// Some position is outside its log; which one only the watermarks tell.
    pub(super) fn revalidate(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        if let Some(leave) = self.commit(source) {
            return Some(leave);
        }
        Some(Leave::Rebuild("a position is outside its log".to_owned()))
    }

    /// A topic deleted and created again while it is read is noticed by nothing but its id.
    pub(super) fn compare_topic_ids(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        let infos = match source.topics(REQUEST) {
            Ok(infos) => infos,
            Err(error) => {
                if let Some(note) = self.throttle.admit("describe", Instant::now()) {
                    log::warn!("the topics cannot be described: {error}{note}");
                }
                self.health.wait("topics", "kafka", format!("Kafka: {error}"));
                return None;
            }
        };
        self.health.go("topics", "kafka");
        if infos.iter().all(|info| info.partitions.is_some()) {
            self.health.go("topics", "partition");
            self.described_at = Some(Instant::now());
        }
        for info in infos {
            if info.partitions.is_none() {
                let words = format!("topic {} does not exist: create it, or correct kafka.topics", info.topic);
                if let Some(note) = self.throttle.admit(&info.topic, Instant::now()) {
                    log::error!("{words}{note}");
                }
                self.health.wait("topics", "partition", words);
                continue;
            }
            let read = self.held.values().filter_map(|held| held.position.as_ref()).filter(|p| p.at.topic == info.topic);
            for position in read {
                if matches!((position.topic_id, info.id), (Some(then), Some(now)) if then != now) {
                    // What is in hand may already come from the new log: it is dropped, and read again from the start.
                    return Some(Leave::Rebuild(format!("topic {} was deleted and created again", info.topic)));
                }
            }
        }
        None
    }
}
