//! Taking partitions up: which offset each begins at. What cannot be read yet is parked, and keeps nobody waiting for long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::consumer::{Consumer, Held, Leave};
use crate::config::Start;
use crate::config::value::show_duration;
use crate::core::record::{LogId, TopicPartition};
use crate::failpoint;
use crate::ops::pulse;
use crate::source::{MessageSource, SourceError, TopicInfo, Watermarks};
use crate::store::{Position, StoreError};

/// One request to the cluster.
pub(super) const REQUEST: Duration = Duration::from_secs(3);
/// All questions for ends of logs in one go: nothing is read meanwhile.
const ROUND: Duration = Duration::from_secs(3);
/// One such question to a leader that did not answer the last time: others are to have their turn, too.
const SILENT: Duration = Duration::from_secs(1);
/// With less time left nobody is asked.
const LEAST: Duration = Duration::from_millis(100);
/// Shortest and longest wait before parked partitions are tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

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
        let shortest = failpoint::time("parked", RETRY.0);
        let pause = match unready {
            0 => Duration::ZERO,
            // Many take several rounds: each of them leads on.
            some if some < partitions.len() => shortest,
            _ => (self.parked_until.1 * 2).clamp(shortest, RETRY.1),
        };
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
        let id = |at: &TopicPartition| LogId { topic: topics[&at.topic].id, cluster: cluster.clone() };
        let is_led = |at: &TopicPartition| !topics[&at.topic].leaderless.contains(&at.partition);
        let (led, mut unread): (Vec<TopicPartition>, Vec<TopicPartition>) = partitions.into_iter().partition(is_led);
        if let Some(at) = unread.first() {
            let words = format!("{} partitions have no leader, among them {}/{}", unread.len(), at.topic, at.partition);
            self.say_unready(Unready::Source(SourceError::Request(words)));
        }
        let (logs, silent) = self.ends(source, led);
        unread.extend(silent);
        // A partition that appeared later is accounted for from its very beginning: what retention took of it is a gap. This is written
        // also where it cannot be read yet: that it is somebody's the others see by its position.
        let first = |at: &TopicPartition| known.iter().find(|position| position.at == *at).map(|position| position.next_offset);
        let new = unread.into_iter().filter(|at| first(at).is_none());
        let wanted = logs.keys().cloned().chain(new);
        let wanted: Vec<(TopicPartition, i64, LogId)> = wanted.map(|at| (at.clone(), first(&at).unwrap_or(0), id(&at))).collect();
        let process = self.process;
        let owned = self.link.run(|session| session.own(process, &wanted))?;
        let mut ready = Vec::new();
        for position in owned {
            if let Some(log) = logs.get(&position.at) {
                let id = id(&position.at);
                ready.extend(self.validate(position, *log, &id)?);
            }
        }
        Ok(ready)
    }

    /// The ends of these logs, and the partitions whose leaders gave no answer within a round: those whose leaders answered the last
    /// time are asked first, and of the others those that have waited longest.
    pub(super) fn ends(
        &mut self,
        source: &mut dyn MessageSource,
        mut partitions: Vec<TopicPartition>,
    ) -> (HashMap<TopicPartition, Watermarks>, Vec<TopicPartition>) {
        let (round, least) = (failpoint::time("ends", ROUND), failpoint::time("ends-least", LEAST));
        let until = Instant::now() + round;
        partitions.sort_by_key(|at| self.silent.get(at).copied());
        let (mut found, mut silent, mut unasked) = (HashMap::new(), Vec::new(), 0);
        for at in partitions {
            let left = until.saturating_duration_since(Instant::now());
            if left < least {
                silent.push(at);
                unasked += 1;
                continue;
            }
            // One request a partition, and there may be many.
            pulse::at("asking for the ends of logs", pulse::REMOTE);
            let patience = if self.silent.contains_key(&at) { SILENT } else { REQUEST };
            match source.watermarks(&at, patience.min(left)) {
                Ok(log) => {
                    self.silent.remove(&at);
                    found.insert(at, log);
                }
                Err(error) => {
                    self.say_unready(Unready::Source(error));
                    self.silent.insert(at.clone(), Instant::now());
                    silent.push(at);
                }
            }
        }
        // What leaders did not answer has been said.
        if unasked > 0 && unasked == silent.len() {
            let words = format!("{unasked} partitions are still to be asked for the ends of their logs");
            self.health.wait("consumer", "kafka", words);
        }
        (found, silent)
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
        if let Some(partition) = info.leaderless.first() {
            return Err(SourceError::Request(format!(
                "topic {topic} begins when all of its partitions have leaders: {partition} has none"
            ))
            .into());
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
}
