//! Taking partitions up: which offset to begin at, and what to do when a position has left its log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::consumer::{Consumer, Held, Leave};
use crate::config::value::show_duration;
use crate::config::{OnLostPosition, Start};
use crate::core::offsets::Offsets;
use crate::core::record::{LogId, TopicPartition};
use crate::failpoint;
use crate::ops::pulse;
use crate::source::{MessageSource, SourceError, TopicInfo, Watermarks};
use crate::store::{Gap, Position, StoreError};

/// One request to the cluster.
const REQUEST: Duration = Duration::from_secs(3);
/// Shortest and longest wait before parked partitions are tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// A position above its log's end is believed when it is seen again after this time: a leader may lag for a moment.
const BELIEVE_TRUNCATION: Duration = Duration::from_secs(30);
/// How long the group may leave partitions without a reader. A new one is found within topic.metadata.refresh.interval.ms.
const UNASSIGNED: Duration = Duration::from_secs(120);

/// Why partitions cannot be read yet.
enum Unready {
    Store(StoreError),
    Source(SourceError),
    /// Somebody has to decide; in words.
    Person(String),
}

/// Where a log ends, seen from a position.
enum End {
    Above,
    /// Below, at this offset; it has to be seen again.
    Unsure(i64),
    /// Below, at this offset.
    Below(i64),
}

/// A position that stood above its log's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting {
    next: i64,
    /// The lowest that was seen.
    end: i64,
    first: Instant,
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
        let unready = partitions.len() - ready.len();
        let (apart, together): (Vec<Position>, Vec<Position>) =
            ready.into_iter().partition(|position| self.damage.is_read_apart(&position.at));
        let start: Vec<(TopicPartition, i64)> = together.iter().map(|p| (p.at.clone(), p.next_offset)).collect();
        let is_started = |at: &TopicPartition| start.iter().any(|(started, _)| started == at);
        let parked: Vec<TopicPartition> = partitions.iter().filter(|at| !is_started(at)).cloned().collect();
        if let Err(error) = source.start(&start).and_then(|()| source.park(&parked)) {
            return Some(Leave::Rebuild(error.to_string()));
        }
        if !start.is_empty() {
            self.health.go("consumer", "postgres");
            log::info!(partitions = start.len(); "reading {} partitions", start.len());
        }
        for position in together.into_iter().chain(apart) {
            let labels = [&*position.at.topic, &position.at.partition.to_string()];
            self.metrics.kafka_position.with_label_values(&labels).set(position.next_offset);
            self.held.insert(position.at.clone(), Held { position: Some(position) });
        }
        let pause = if unready == 0 { Duration::ZERO } else { (self.parked_until.1 * 2).clamp(RETRY.0, RETRY.1) };
        self.parked_until = (Instant::now() + pause, pause);
        if unready == 0 {
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
        let cluster = source.cluster_id(REQUEST)?;
        let names: Vec<Arc<str>> = topics.keys().cloned().collect();
        self.topics.extend(self.link.run(|session| session.topics(&names))?);
        for name in names {
            match self.begin(source, &topics[&name], cluster.as_deref()) {
                Ok(()) => self.compare_retention(source, &name),
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
            // A partition that appeared later is accounted for from its very beginning: what retention took of it is a gap.
            let first = known.iter().find(|p| p.at == at).map_or(0, |p| p.next_offset);
            let id = LogId { topic: topics[&at.topic].id, cluster: cluster.clone() };
            wanted.push((at.clone(), first, id.clone()));
            logs.insert(at, (log, id));
        }
        let process = self.process;
        let owned = self.link.run(|session| session.own(process, &wanted))?;
        let mut ready = Vec::new();
        for position in owned {
            let (log, id) = &logs[&position.at];
            ready.extend(self.validate(position, *log, id)?);
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
    fn begin(&mut self, source: &mut dyn MessageSource, info: &TopicInfo, cluster: Option<&str>) -> Result<(), Unready> {
        let topic = info.topic.clone();
        let Some(count) = info.partitions else {
            return Err(SourceError::Request(format!(
                "topic {topic} is assigned and yet not known to the broker that was asked"
            ))
            .into());
        };
        if self.link.run(|session| session.count_positions(&topic))? > 0 {
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
        let id = LogId { topic: info.id, cluster: cluster.map(str::to_owned) };
        Ok(self.link.run(|session| session.begin_positions(&topic, &offsets, &id))?)
    }

    /// A record that Kafka still has and txrelay has forgotten would be a new transaction if it came again. Said once a topic.
    fn compare_retention(&mut self, source: &mut dyn MessageSource, topic: &Arc<str>) {
        let Some(ours) = self.config.get().retention.delivered else { return };
        if self.retention_compared.contains(topic) {
            return;
        }
        match source.settings(topic, REQUEST) {
            Ok(Some(settings)) if settings.retention.is_none_or(|theirs| theirs > ours) => {
                let theirs = settings.retention.map_or("for ever".to_owned(), |time| format!("for {}", show_duration(time)));
                log::warn!(topic = &**topic;
                    "Kafka keeps records of topic {topic} {theirs} and txrelay what is delivered for {} (retention.delivered): one \
                     that comes again after that is not known any more and is delivered as a new transaction",
                    show_duration(ours));
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                log::debug!(topic = &**topic; "this user may not read the settings of topic {topic}: how long Kafka keeps its records is not known")
            }
            Err(error) => return log::debug!("{error}"),
        }
        self.retention_compared.insert(topic.clone());
    }

    /// Holds a position against its log. `None`: it has left the log and must wait (for a second look, or for a person).
    fn validate(&mut self, position: Position, log: Watermarks, id: &LogId) -> Result<Option<Position>, Unready> {
        let mut position = position;
        if position.log.is_another(id) {
            // The new log is accounted for from its very beginning, too.
            let begin = Position { next_offset: 0, log: id.clone(), ..position.clone() };
            let from = position.next_offset;
            match self.lose(position, begin, from..from, "recreated")? {
                Some(begun) => position = begun,
                None => return Ok(None),
            }
        }
        let next = position.next_offset;
        if next < log.low {
            self.above_end.remove(&position.at);
            let to = Position { next_offset: log.low, ..position.clone() };
            return self.lose(position, to, next..log.low, "retention");
        }
        match self.ends_below(&position, log) {
            End::Above => Ok(Some(position)),
            End::Unsure(end) => {
                let words = format!("{}/{} ends at {end}, before the position {next}", position.at.topic, position.at.partition);
                self.health.wait("consumer", "partition", words);
                Ok(None)
            }
            End::Below(end) => {
                let to = Position { next_offset: end, ..position.clone() };
                self.lose(position, to, end..next, "truncated")
            }
        }
    }

    /// Whether a log ends below a position. One look is not believed: a leader may lag for a moment. The lowest end that was
    /// seen counts: what was written since to a log that was cut stands there, and must not be passed over, also where the
    /// log has grown beyond the position again.
    fn ends_below(&mut self, position: &Position, log: Watermarks) -> End {
        let believe = failpoint::time("believe-truncation", BELIEVE_TRUNCATION);
        let (now, next) = (Instant::now(), position.next_offset);
        // Where another process has read on meanwhile, the position is another. Otherwise an old sighting stays: to forget it
        // would be to read on behind what was written since.
        let seen = self.above_end.get(&position.at).filter(|seen| seen.next == next).copied();
        let Some(seen) = seen else {
            if log.high >= next {
                self.above_end.remove(&position.at);
                return End::Above;
            }
            self.above_end.insert(position.at.clone(), Sighting { next, end: log.high, first: now });
            return End::Unsure(log.high);
        };
        let end = seen.end.min(log.high);
        self.above_end.insert(position.at.clone(), Sighting { end, ..seen });
        if now - seen.first < believe { End::Unsure(end) } else { End::Below(end) }
    }

    /// Moves a lost position and says so, or leaves the partition alone (`kafka.on_lost_position = "stop"`).
    fn lose(&mut self, from: Position, to: Position, lost: Offsets, reason: &'static str) -> Result<Option<Position>, Unready> {
        let at = from.at.clone();
        let what = format!("{}/{}: position {} has left the log ({reason})", at.topic, at.partition, from.next_offset);
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
        let incarnation = if reason == "retention" { from.incarnation } else { from.incarnation + 1 };
        let to = Position { incarnation, ..to };
        let gap = Gap { incarnation: from.incarnation, from_offset: lost.start, to_offset: lost.end, reason };
        self.link.run(|session| session.move_position(&from, &to, Some(&gap)))?;
        let n = lost.end - lost.start;
        self.metrics.gap_records_total.with_label_values(&[&*at.topic, reason]).inc_by(n.max(1) as u64);
        log::error!(topic = &*at.topic, partition = at.partition, from = lost.start, to = lost.end, reason = reason;
            "{what}: the gap is recorded in known_gap, reading goes on at {}", to.next_offset);
        self.above_end.remove(&at);
        if incarnation != from.incarnation {
            // Another log may have other settings.
            self.compacted.remove(&at.topic);
        }
        // What PostgreSQL refused of it is gone, too; where nothing follows, nobody else would say so.
        self.forget_refused(&at);
        Ok(Some(to))
    }

    /// Some position is outside its log; which one only the watermarks tell. Asked at once: a log that was cut grows again.
    pub(super) fn revalidate(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        if let Some(leave) = self.commit(source) {
            return Some(leave);
        }
        let positions: Vec<Position> = self.held.values().filter_map(|held| held.position.clone()).collect();
        for position in positions {
            pulse::at("asking for watermarks", pulse::REMOTE);
            if let Ok(log) = source.watermarks(&position.at, REQUEST) {
                self.ends_below(&position, log);
            }
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
        // As the last answers said it.
        let cluster = source.cluster_id(REQUEST).ok().flatten();
        if infos.iter().all(|info| info.partitions.is_some()) {
            self.health.go("topics", "partition");
            self.described_at = Some(Instant::now());
        }
        if let Some(leave) = self.find_unassigned(&infos) {
            return Some(leave);
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
            let id = LogId { topic: info.id, cluster: cluster.clone() };
            let mut read = self.held.values().filter_map(|held| held.position.as_ref()).filter(|p| p.at.topic == info.topic);
            if let Some(position) = read.find(|position| position.log.is_another(&id)) {
                let what = if position.log.topic == id.topic {
                    "belongs to another cluster now"
                } else {
                    "was deleted and created again"
                };
                // What is in hand may already come from the new log: it is dropped, and read again from the start.
                return Some(Leave::Rebuild(format!("topic {} {what}", info.topic)));
            }
        }
        None
    }

    /// Partitions that nobody was ever given. Kafka gives a static member that comes back its old assignment: those that were
    /// added while it was away stay with nobody, for as long as nothing else moves the group. Leaving it for longer than the
    /// session does.
    fn find_unassigned(&mut self, infos: &[TopicInfo]) -> Option<Leave> {
        let mut found = None;
        for info in infos {
            let there = i64::from(info.partitions.unwrap_or(0));
            // Given to this process, which cannot read them yet: leaving the group would not help.
            let parked = |(at, held): &(&TopicPartition, &Held)| at.topic == info.topic && held.position.is_none();
            let there = there - self.held.iter().filter(parked).count() as i64;
            match self.link.run(|session| session.count_positions(&info.topic)) {
                Ok(taken) if taken < there && taken > 0 => found = Some((info.topic.clone(), there - taken)),
                Ok(_) => {}
                Err(error) => {
                    self.store_trouble(&error);
                    return None;
                }
            }
        }
        let Some((topic, n)) = found else {
            self.unassigned_since = None;
            return None;
        };
        // The group may be about to hand them out; until it is known, topics are looked at with every check.
        self.described_at = None;
        let since = *self.unassigned_since.get_or_insert_with(Instant::now);
        if since.elapsed() < failpoint::time("unassigned", UNASSIGNED) {
            return None;
        }
        self.unassigned_since = None;
        Some(Leave::Rejoin(format!("{n} partitions of topic {topic} are nobody's")))
    }
}
