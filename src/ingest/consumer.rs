//! The consumer thread: its loop, and what it does with each event of the source.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use super::batch::Reading;
use crate::config::Current;
use crate::core::backlog;
use crate::core::record::TopicPartition;
use crate::failpoint::failpoint;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::pulse;
use crate::ops::stop::{ExitWith, Stop};
use crate::ops::throttle::Throttle;
use crate::source::{MessageSource, Polled, SourceError, Trouble};
use crate::store::{LeaseTime, Leased, Link, Position, ProcessId, Room, StoreError, Topics, Writer};

/// Builds a source; a fault in it is told apart by the consumer.
pub type OpenSource = Box<dyn FnMut() -> Result<Box<dyn MessageSource>, SourceError> + Send>;

/// How long one look for records waits.
const POLL: Duration = Duration::from_millis(100);
/// How long a batch that is worth a commit waits for more.
const LINGER: Duration = Duration::from_millis(4);
/// The least time between the beginnings of two small batches.
const PACE: Duration = Duration::from_millis(3);
/// How often positions are read back and quiet partitions moved over markers; the first time sooner.
const CHECK: Duration = Duration::from_secs(10);
const FIRST_CHECK: Duration = Duration::from_secs(2);
/// How often topic ids are compared once all topics are there. The answer may wait 0.2 s behind a fetch: once in 10 s it
/// showed in p99 (249 ms at 500/s).
const DESCRIBE: Duration = Duration::from_secs(60);
/// How long a start waits for the first count of what is open.
const COUNTED: Duration = Duration::from_secs(3);
/// One question for a partition's end.
const WATERMARK: Duration = Duration::from_secs(2);

/// Reads, commits, hands over.
pub struct Consumer {
    pub(super) config: Current,
    pub(super) link: Link,
    pub(super) room: Arc<Room>,
    pub(super) time: LeaseTime,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    pub(super) stop: Stop,
    pub(super) handoff: Sender<Leased>,
    pub(super) wake: Sender<()>,
    pub(super) open: OpenSource,
    pub(super) process: ProcessId,
    pub(super) topics: Topics,
    pub(super) held: HashMap<TopicPartition, Held>,
    pub(super) reading: Reading,
    pub(super) throttle: Throttle,
    /// When each partition was first and last seen to stand above its log's end.
    pub(super) above_end: HashMap<TopicPartition, (Instant, Instant)>,
    /// When parked partitions are tried again, and the wait that led there.
    pub(super) parked_until: (Instant, Duration),
    /// When all topics were last found, by their ids.
    pub(super) described_at: Option<Instant>,
    open_deliveries: Arc<AtomicI64>,
    /// Reading stands still because too much is open: the source is paused.
    pub(super) backlog_full: bool,
    pub(super) committed_at: Option<Instant>,
    trouble_at: Option<Instant>,
    failures: u32,
}

/// What the consumer is made of.
pub struct Parts {
    /// The pipeline, as last reloaded.
    pub config: Current,
    /// Open deliveries as last counted, negative before the first count: too many stop reading.
    pub open_deliveries: Arc<AtomicI64>,
    /// Its own connection.
    pub link: Link,
    /// Where slots are reserved.
    pub room: Arc<Room>,
    /// Length of leases.
    pub time: LeaseTime,
    /// Series.
    pub metrics: Metrics,
    /// What it waits for.
    pub health: Health,
    /// Told to stop, it commits what it holds and leaves.
    pub stop: Stop,
    /// Leased rows for the workers.
    pub handoff: Sender<Leased>,
    /// "Something is due".
    pub wake: Sender<()>,
    /// Builds the source.
    pub open: OpenSource,
}

/// A partition that the group has assigned.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// As committed; `None` while it is parked: PostgreSQL has not been asked yet, or it may not be read.
    pub position: Option<Position>,
}

/// Why the source in hand is no longer used.
pub(super) enum Leave {
    /// Build another and go on from PostgreSQL.
    Rebuild(String),
    /// Told to stop.
    Stop,
}

impl Consumer {
    /// Reads nothing yet.
    pub fn new(parts: Parts) -> Self {
        let Parts { config, open_deliveries, link, room, time, metrics, health, stop, handoff, wake, open } = parts;
        Self {
            config,
            open_deliveries,
            backlog_full: false,
            link,
            room,
            time,
            metrics,
            health,
            stop,
            handoff,
            wake,
            open,
            process: 0,
            topics: Topics::new(),
            held: HashMap::new(),
            reading: Reading::default(),
            throttle: Throttle::per_minute(),
            above_end: HashMap::new(),
            parked_until: (Instant::now(), Duration::ZERO),
            described_at: None,
            committed_at: None,
            trouble_at: None,
            failures: 0,
        }
    }

    /// Works until told to stop. `process` comes once upkeep has opened the store: no group is joined before that.
    pub fn run(mut self, process: &Receiver<ProcessId>) -> anyhow::Result<()> {
        pulse::at("waiting for the store", None);
        select! {
            recv(process) -> process => match process {
                Ok(process) => self.process = process,
                // Upkeep has ended, and says why by itself.
                Err(_) => return self.stop.wait_for_it(),
            },
            recv(self.stop.signal()) -> _ => return Ok(()),
        }
        loop {
            pulse::at("joining the group", pulse::REMOTE);
            let why = match (self.open)() {
                Ok(mut source) => {
                    let began = Instant::now();
                    let left = self.read(source.as_mut());
                    self.reading.take();
                    let held: Vec<TopicPartition> = self.held.keys().cloned().collect();
                    self.let_go(&held);
                    if began.elapsed() >= Duration::from_secs(60) {
                        self.failures = 0;
                    }
                    let deadline = self.stop.deadline().map_or(Duration::from_secs(5), |by| {
                        by.saturating_duration_since(Instant::now()).min(Duration::from_secs(5))
                    });
                    pulse::at("leaving the group", pulse::REMOTE);
                    source.close(deadline);
                    match left? {
                        Leave::Stop => return Ok(()),
                        Leave::Rebuild(why) => why,
                    }
                }
                Err(SourceError::Fenced(text) | SourceError::Settings(text)) => return Err(ExitWith { status: 78, text }.into()),
                Err(error) => error.to_string(),
            };
            self.failures = self.failures.saturating_add(1);
            self.metrics.kafka_errors_total.with_label_values(&["other"]).inc();
            if let Some(note) = self.throttle.admit("starting over", Instant::now()) {
                log::warn!("reading starts over from the positions in PostgreSQL: {why}{note}");
            }
            self.health.wait("consumer", "kafka", format!("starting over: {why}"));
            let pause = Duration::from_millis(200).saturating_mul(1 << self.failures.min(7)).min(Duration::from_secs(20));
            pulse::at("waiting to start over", pulse::PROMPT.map(|bound| bound + pause));
            if self.stop.wait(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)) {
                return Ok(());
            }
        }
    }

    fn read(&mut self, source: &mut dyn MessageSource) -> anyhow::Result<Leave> {
        let mut check_at = Instant::now() + FIRST_CHECK;
        self.described_at = None;
        // A new source is not paused.
        self.backlog_full = false;
        if self.wait_for_count() {
            return Ok(Leave::Stop);
        }
        if let Some(leave) = self.heed_backlog(source) {
            return Ok(leave);
        }
        loop {
            pulse::at("waiting for records", Some(Duration::from_secs(60)));
            failpoint("thread-consumer");
            if self.stop.is_stopping() {
                return Ok(self.commit(source).unwrap_or(Leave::Stop));
            }
            let wait = if self.reading.is_empty() { POLL } else { self.linger() };
            match source.poll(wait) {
                Ok(Some(event)) => {
                    let was_record = matches!(event, Polled::Record(_));
                    if let Some(leave) = self.event(source, event) {
                        return Ok(leave);
                    }
                    if was_record && !self.reading.is_full() {
                        continue;
                    }
                }
                Ok(None) => {}
                Err(SourceError::Fenced(text)) => return Err(ExitWith { status: 78, text }.into()),
                Err(error) => return Ok(Leave::Rebuild(error.to_string())),
            }
            if !self.reading.is_empty()
                && let Some(leave) = self.commit(source)
            {
                return Ok(leave);
            }
            if let Some(leave) = self.heed_backlog(source) {
                return Ok(leave);
            }
            if self.has_parked() && Instant::now() >= self.parked_until.0 {
                let parked = self.parked();
                if let Some(leave) = self.take_up(source, &parked) {
                    return Ok(leave);
                }
            }
            if Instant::now() >= check_at {
                check_at = Instant::now() + CHECK;
                if let Some(leave) = self.check(source) {
                    return Ok(leave);
                }
            }
            self.note_source(source);
        }
    }

    /// At a start nobody has counted yet what is open, and a full backlog must not grow with every restart. Returns whether it
    /// was told to stop meanwhile. A count that fails or takes very long is not waited for: what it would say may never be known.
    fn wait_for_count(&self) -> bool {
        let began = Instant::now();
        let is_unknown = || self.open_deliveries.load(Ordering::Relaxed) < 0 && self.config.get().kafka.backlog_max.is_some();
        while is_unknown() && began.elapsed() < COUNTED {
            if self.stop.wait(Duration::from_millis(10)) {
                return true;
            }
        }
        false
    }

    /// Stops reading while too much is open, and goes on when less is. The source is polled all the same, so that the group
    /// keeps this process; Kafka keeps the records.
    fn heed_backlog(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        let (open, max) = (self.open_deliveries.load(Ordering::Relaxed), self.config.get().kafka.backlog_max);
        let full = backlog::is_full(self.backlog_full, open, max);
        if full {
            let words = format!(
                "{open} deliveries are open, and kafka.backlog_max is {}: Kafka keeps the rest until 90 % of that are left",
                max.unwrap_or(0)
            );
            if !self.backlog_full {
                // What is in hand belongs to PostgreSQL before anything else.
                if let Some(leave) = self.commit(source) {
                    return Some(leave);
                }
                source.pause();
                log::warn!("reading stops: {words}");
            }
            self.health.wait("consumer", "backlog_full", words);
        } else {
            if self.backlog_full {
                source.resume();
                log::info!("reading goes on: {open} deliveries are open");
            }
            // Also where a source that was paused has been replaced meanwhile.
            self.health.go("consumer", "backlog_full");
        }
        self.backlog_full = full;
        None
    }

    /// A lone record goes at once; in a flood a batch waits a moment, counted from its first record, to be worth its commit.
    fn linger(&self) -> Duration {
        if self.reading.len() >= 16 {
            LINGER.saturating_sub(self.reading.age())
        } else {
            self.committed_at.map_or(Duration::ZERO, |at| PACE.saturating_sub(at.elapsed()))
        }
    }

    /// Partitions that are no longer this process's; their series exist while they are assigned.
    fn let_go(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.held.remove(at);
            let labels = [&*at.topic, &at.partition.to_string()];
            // Never read, it has none.
            let _ = self.metrics.kafka_lag_records.remove_label_values(&labels);
            let _ = self.metrics.kafka_position.remove_label_values(&labels);
        }
    }

    fn event(&mut self, source: &mut dyn MessageSource, event: Polled) -> Option<Leave> {
        match event {
            Polled::Record(record) => self.reading.add(record),
            Polled::Assigned(partitions) => {
                for at in &partitions {
                    self.held.insert(at.clone(), Held { position: None });
                }
                return self.take_up(source, &partitions);
            }
            Polled::Revoked { partitions, lost } => {
                self.reading.forget(&partitions);
                self.let_go(&partitions);
                log::info!(partitions = partitions.len(), lost = lost; "{} partitions moved to other processes", partitions.len());
                if let Err(error) = source.release(&partitions) {
                    return Some(Leave::Rebuild(error.to_string()));
                }
            }
            Polled::Trouble(trouble) => self.trouble(&trouble),
            Polled::PositionLost(text) => {
                log::error!("a position is outside its partition's log: {text}");
                return self.revalidate(source);
            }
        }
        None
    }

    fn trouble(&mut self, trouble: &Trouble) {
        self.metrics.kafka_errors_total.with_label_values(&[trouble.kind.label()]).inc();
        if let Some(note) = self.throttle.admit(trouble.kind.label(), Instant::now()) {
            log::warn!(kind = trouble.kind.label(); "Kafka: {}{note}", trouble.text);
        }
        self.health.wait("consumer", "kafka", format!("Kafka: {}", trouble.text));
        self.trouble_at = Some(Instant::now());
    }

    /// What the source knows without asking, once a turn.
    fn note_source(&mut self, source: &mut dyn MessageSource) {
        let up = source.is_up();
        self.metrics.kafka_up.set(i64::from(up));
        if !self.has_parked() {
            self.health.go("consumer", "partition");
            // A connection that stands says nothing of a group that refuses us: without partitions, only a longer silence does.
            let silence = if self.held.is_empty() { Duration::from_secs(15) } else { Duration::from_secs(2) };
            if up && self.trouble_at.is_none_or(|at| at.elapsed() >= silence) {
                self.health.go("consumer", "kafka");
            }
        }
        // What is not fetched is not heard of: see `check`.
        let known = if self.backlog_full { Vec::new() } else { source.high_watermarks() };
        self.show_lag(known);
    }

    fn show_lag(&self, high_watermarks: Vec<(TopicPartition, i64)>) {
        for (at, high) in high_watermarks {
            if let Some(position) = self.held.get(&at).and_then(|held| held.position.as_ref()) {
                let labels = [&*at.topic, &at.partition.to_string()];
                self.metrics.kafka_lag_records.with_label_values(&labels).set((high - position.next_offset).max(0));
            }
        }
    }

    /// Every few seconds: read positions back, compare topic ids, move quiet partitions over markers.
    fn check(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        pulse::at("checking positions", pulse::REMOTE);
        if self.described_at.is_none_or(|at| at.elapsed() >= DESCRIBE)
            && let Some(leave) = self.compare_topic_ids(source)
        {
            return Some(leave);
        }
        let read = self.held.iter().filter(|(_, held)| held.position.is_some());
        let at: Vec<TopicPartition> = read.map(|(at, _)| at.clone()).collect();
        match self.link.run(|session| session.positions(&at)) {
            Ok(stored) => {
                self.health.go("consumer", "postgres");
                let ours =
                    |position: &Position| self.held.get(&position.at).and_then(|held| held.position.as_ref()) == Some(position);
                if stored.len() != at.len() || !stored.iter().all(ours) {
                    return Some(Leave::Rebuild("positions in PostgreSQL are not the ones that this process left".to_owned()));
                }
            }
            Err(error) => self.store_trouble(&error),
        }
        if self.backlog_full {
            // While nothing is fetched the client does not hear how much waits in Kafka. One that does not answer is enough.
            let asked = at.iter().map_while(|at| Some((at.clone(), source.watermarks(at, WATERMARK).ok()?.high))).collect();
            self.show_lag(asked);
        }
        self.commit(source)
    }

    pub(super) fn parked(&self) -> Vec<TopicPartition> {
        self.held.iter().filter(|(_, held)| held.position.is_none()).map(|(at, _)| at.clone()).collect()
    }

    fn has_parked(&self) -> bool {
        self.held.values().any(|held| held.position.is_none())
    }

    pub(super) fn store_trouble(&mut self, error: &StoreError) {
        self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
        if let Some(note) = self.throttle.admit(error.kind(), Instant::now()) {
            log::warn!("PostgreSQL: {error}; nothing is read until it answers{note}");
        }
        self.health.wait("consumer", "postgres", format!("PostgreSQL: {error}"));
    }

    pub(super) fn writer(&self) -> Writer {
        Writer { process: self.process, lease: self.time.lease }
    }
}
