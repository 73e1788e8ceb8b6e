//! The consumer thread: its loop, and what it does with each event of the source.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use super::batch::Reading;
use super::damage::Damage;
use super::denied::Denied;
use super::lost::Sighting;
use super::proof::Doubt;
use super::refused::Refused;
use super::secrets::MadeWith;
use super::topics::Nobodys;
use crate::config::Current;
use crate::core::backlog;
use crate::core::pace::Pace;
use crate::core::record::TopicPartition;
use crate::failpoint::failpoint;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::pulse;
use crate::ops::stop::{ExitWith, Stop};
use crate::ops::throttle::Throttle;
use crate::source::{self, MessageSource, Polled, SourceError, Trouble, TroubleKind};
use crate::store::{LeaseTime, Leased, Link, Position, ProcessId, Room, Topics, Writer};

/// Builds a source; a fault in it is told apart by the consumer.
pub type OpenSource = Box<dyn FnMut() -> Result<Box<dyn MessageSource>, SourceError> + Send>;

/// How long one look for records waits.
const POLL: Duration = Duration::from_millis(200);
/// How often what the source knows is shown.
const NOTE: Duration = Duration::from_millis(200);
/// How long a batch that is worth a commit waits for more.
const LINGER: Duration = Duration::from_millis(4);
/// Between the beginnings of two small batches 2.5 times what a commit takes, 5 to 20 ms: a lone record goes at once; in a steady
/// flow (500/s) some share a commit. In turns with a flat 5 ms, three times cost a record 1 ms in the middle and nothing at the 99th
/// percentile, and spared a seventh of all CPU.
const PACE: Pace = Pace::new(Duration::from_millis(5), Duration::from_millis(20), 2.5);
/// A batch as large as this is not small.
const LARGE: usize = 128;
/// How often positions are read back and quiet partitions moved over markers; the first time sooner.
const CHECK: Duration = Duration::from_secs(10);
const FIRST_CHECK: Duration = Duration::from_secs(2);
/// How long after trouble with brokers being fenced may be this process's own doing, and after being fenced it is told again.
const FENCED_LATELY: Duration = Duration::from_secs(120);
/// How long a fenced process leaves its name to the other: who woke up too late learns from PostgreSQL within a second that another
/// has taken its place.
const FENCED: Duration = Duration::from_secs(4);
/// How long a start waits for the first count of what is open.
const COUNTED: Duration = Duration::from_secs(3);

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
    /// Positions that were seen to stand above their log's end.
    pub(super) above_end: HashMap<TopicPartition, Sighting>,
    /// Partitions whose log cannot be decoded, or perhaps not.
    pub(super) damage: Damage,
    /// What was passed over and is not explained.
    pub(super) doubts: HashMap<TopicPartition, Doubt>,
    /// Topics that are known to be compacted.
    pub(super) compacted: HashSet<Arc<str>>,
    /// Topics whose retention was held against ours.
    pub(super) retention_compared: HashSet<Arc<str>>,
    /// Parked partitions whose records PostgreSQL refuses.
    pub(super) refused: HashMap<TopicPartition, Refused>,
    /// When PostgreSQL was last found to refuse a row for good as one that is there already.
    pub(super) taken_at: Option<Instant>,
    /// When other parked partitions are tried again, and the wait that led there.
    pub(super) parked_until: (Instant, Duration),
    /// When all topics were last found, by their ids.
    pub(super) described_at: Option<Instant>,
    /// When this process last showed that it is the one that reads; see `turn`.
    pub(super) turn_at: Instant,
    pub(super) made_with: MadeWith,
    /// Rights that this user lacks at the brokers.
    pub(super) denied: Denied,
    pub(super) nobodys: Nobodys,
    /// Partitions whose leaders did not answer when they were last asked, and when that was.
    pub(super) silent: HashMap<TopicPartition, Instant>,
    /// When positions and topics are looked at next.
    check_at: Instant,
    note_at: Instant,
    open_deliveries: Arc<AtomicI64>,
    /// Reading stands still because too much is open: the source is paused.
    pub(super) backlog_full: bool,
    pub(super) trouble_at: Option<Instant>,
    /// When this process was last fenced and joined again.
    fenced_at: Option<Instant>,
    /// When the last batch was begun: small ones keep a pace.
    pub(super) committed_at: Option<Instant>,
    pub(super) pace: Pace,
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
    /// As `Rebuild`, and find out which partition's log is damaged.
    Damaged(String),
    /// As `Rebuild`, after the group has forgotten this process, so that it shares the partitions out anew.
    Rejoin(String),
    /// The group knows another member under this one's name.
    Fenced(String),
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
            refused: HashMap::new(),
            taken_at: None,
            damage: Damage::default(),
            doubts: HashMap::new(),
            compacted: HashSet::new(),
            retention_compared: HashSet::new(),
            parked_until: (Instant::now(), Duration::ZERO),
            described_at: None,
            turn_at: Instant::now(),
            made_with: MadeWith::default(),
            denied: Denied::default(),
            nobodys: Nobodys::default(),
            silent: HashMap::new(),
            check_at: Instant::now(),
            note_at: Instant::now(),
            committed_at: None,
            pace: PACE,
            trouble_at: None,
            fenced_at: None,
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
            if self.wait_for_turn() {
                return Ok(());
            }
            pulse::at("joining the group", pulse::REMOTE);
            self.note_secrets();
            let mut pause = Duration::ZERO;
            let mut what = "reading starts over from the positions in PostgreSQL";
            let why = match (self.open)() {
                Ok(mut source) => {
                    let began = Instant::now();
                    let left = self.read(source.as_mut());
                    self.reading.take();
                    let held: HashSet<TopicPartition> = self.held.keys().cloned().collect();
                    self.let_go(&held);
                    self.damage.start_over(&held);
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
                        Leave::Damaged(why) => {
                            self.damage.suspect_all();
                            why
                        }
                        Leave::Rejoin(why) => {
                            pause = source::session_timeout(&self.config.get().kafka) * 2;
                            why
                        }
                        Leave::Fenced(text) => {
                            let (rest, why) = self.fenced(text)?;
                            pause = rest;
                            why
                        }
                    }
                }
                Err(SourceError::Settings(text)) => return Err(ExitWith { status: 78, text }.into()),
                Err(SourceError::Fenced(text)) => {
                    let (rest, why) = self.fenced(text)?;
                    pause = rest;
                    why
                }
                // Preflight's sentence: nothing was begun.
                Err(error) => {
                    self.metrics.kafka_up.set(0);
                    what = "Kafka cannot be read yet";
                    error.to_string()
                }
            };
            self.failures = self.failures.saturating_add(1);
            self.metrics.kafka_errors_total.with_label_values(&["other"]).inc();
            if let Some(note) = self.throttle.admit("starting over", Instant::now()) {
                log::warn!("{what}: {why}{note}");
            }
            self.health.wait("consumer", "kafka", format!("{what}: {why}"));
            let backoff = Duration::from_millis(200).saturating_mul(1 << self.failures.min(7)).min(Duration::from_secs(20));
            let pause = pause.max(backoff);
            pulse::at("waiting to start over", pulse::PROMPT.map(|bound| bound + pause));
            if self.stop.wait(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)) {
                return Ok(());
            }
        }
    }

    fn read(&mut self, source: &mut dyn MessageSource) -> anyhow::Result<Leave> {
        self.check_at = Instant::now() + FIRST_CHECK;
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
                Err(SourceError::Fenced(text)) => return Ok(Leave::Fenced(text)),
                Err(SourceError::Damaged(text)) => return Ok(Leave::Damaged(text)),
                Err(error) => return Ok(Leave::Rebuild(error.to_string())),
            }
            if !self.reading.is_empty()
                && let Some(leave) = self.commit(source)
            {
                return Ok(leave);
            }
            if let Some(leave) = self.keep_turn().or_else(|| self.new_secrets()).or_else(|| self.heed_backlog(source)) {
                return Ok(leave);
            }
            self.look_at_rights(source);
            if self.has_parked() && Instant::now() >= self.parked_until.0 {
                let parked = self.parked();
                if let Some(leave) = self.take_up(source, &parked) {
                    return Ok(leave);
                }
            }
            if !self.backlog_full
                && let Some(leave) = self.read_apart(source)
            {
                return Ok(leave);
            }
            if Instant::now() >= self.check_at {
                self.check_at = Instant::now() + CHECK;
                if let Some(leave) = self.check(source) {
                    return Ok(leave);
                }
            }
            if Instant::now() >= self.note_at {
                self.note_at = Instant::now() + NOTE;
                self.note_source(source);
            }
        }
    }

    /// The group knows another member under this one's name. After an outage longer than the session that may be this process:
    /// a commit that was under way is answered when the name has already been given anew. Or it is one whose place this process has
    /// taken, which woke up and joined before it learned so, and ends. It joins again: returns after what pause, and why. Fenced
    /// again soon, without an outage since, it is not alone.
    fn fenced(&mut self, text: String) -> Result<(Duration, String), ExitWith> {
        let lately = |at: &Instant| at.elapsed() < FENCED_LATELY;
        let (outage, before) = (self.trouble_at.filter(lately), self.fenced_at.filter(lately));
        let is_after_outage = outage > before;
        if before.is_some() && !is_after_outage {
            return Err(ExitWith { status: 78, text });
        }
        self.fenced_at = Some(Instant::now());
        Ok(if is_after_outage {
            (Duration::ZERO, "the group has given this member's name anew after an outage".to_owned())
        } else {
            (FENCED, text)
        })
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
        let pace = self.committed_at.map_or(Duration::ZERO, |at| self.pace.left(at.elapsed()));
        match self.reading.len() {
            ..16 => pace,
            16..LARGE => pace.max(LINGER.saturating_sub(self.reading.age())),
            _ => LINGER.saturating_sub(self.reading.age()),
        }
    }

    /// Partitions that are no longer this process's; their series exist while they are assigned.
    fn let_go<'a>(&mut self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        for at in partitions {
            self.held.remove(at);
            self.silent.remove(at);
            self.forget_refused(at);
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
                self.damage_forgets(&partitions);
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
        self.doubt_secrets(trouble);
        self.doubt_rights(trouble);
        self.metrics.kafka_errors_total.with_label_values(&[trouble.kind.label()]).inc();
        if let Some(note) = self.throttle.admit(trouble.kind.label(), Instant::now()) {
            log::warn!(kind = trouble.kind.label(); "Kafka: {}{note}", trouble.text);
        }
        self.health.wait("consumer", "kafka", format!("Kafka: {}", trouble.text));
        self.trouble_at = Some(Instant::now());
        // A topic that is not there may be there again in a moment, as another one: its id tells.
        if trouble.kind == TroubleKind::UnknownTopic && self.described_at.is_none_or(|at| at.elapsed() >= FIRST_CHECK / 2) {
            self.described_at = None;
            self.check_at = self.check_at.min(Instant::now() + FIRST_CHECK / 8);
        }
    }

    pub(super) fn writer(&self) -> Writer {
        Writer { process: self.process, lease: self.time.lease }
    }
}
