//! The source over the pure-Rust crate `kafka`: brokers 0.11 to 3.9, plain or TLS, gzip and snappy, no headers, no record
//! times, one process at a time (who reads is decided by a lock in PostgreSQL, outside of here).
//!
//! Only the crate's `KafkaClient` is used, with explicit offsets. Its `Consumer` loses messages silently in three situations
//! and reports a commit as done that was not (docs/kafka-clients.md; `tests/it/kafka_crate.rs` shows them). What
//! closes each hole:
//! - the offset to fetch is this file's own, and moves only over records that were returned by `poll`;
//! - an answer that begins behind it is not believed: `hunt` asks with other sizes;
//! - after any error, panic or silence the client is thrown away (`reader`);
//! - what may be one partition's fault is found by asking for each alone, so that one never holds up the others;
//! - everything but records and commits is asked by hand (`questions`).

mod commits;
mod hunt;
mod questions;
mod reader;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::kafka::error::KafkaCode;

use self::commits::Commits;
use self::questions::Questions;
use self::reader::{Answer, Got, Reader, Recipe, Want, What};
use super::broker::Door;
use super::{MessageSource, Polled, SourceError, TopicInfo, TopicSettings, Trouble, TroubleKind, Watermarks};
use crate::config::{self, OnLostPosition, Start};
use crate::core::record::{Record, TopicPartition};

/// Bytes of one question, over all of its partitions: bounds memory.
const QUESTION: i32 = 16 << 20;
/// The most and the least for one partition to begin with. A larger fetch makes compressed topics slower: the broker packs all of
/// it, and the crate uses one batch.
const FETCH: (i32, i32) = (64 << 10, 1 << 20);
/// A batch that does not even fit in here cannot be read.
const LARGEST: i32 = 64 << 20;
/// A question without any progress: the thread is abandoned.
const STUCK: Duration = Duration::from_secs(30);
/// Abandoned threads end when their sockets time out, minutes later; more of them than this are waited for.
const THREADS: usize = 4;
/// New partitions are noticed within this.
const REFRESH: Duration = Duration::from_secs(60);
const REQUEST: Duration = Duration::from_secs(3);

/// A partition of ours.
struct Part {
    /// Changes with each start: answers to earlier questions are void.
    life: u64,
    /// `None`: parked. Behind the last record that `poll` returned.
    next: Option<i64>,
    /// What is asked for next: behind the last record that was fetched.
    fetch: i64,
    /// Bytes to ask for, where its share has turned out not to be right.
    size: Option<i32>,
    /// When it was asked for last, in questions: who waits longest comes first.
    turn: u64,
    high: i64,
    /// Not asked for before this; and the pause that led there.
    rest: Option<(Instant, Duration)>,
    /// Its position has left the log: nothing until it is started anew.
    is_lost: bool,
}

impl Part {
    fn parked(life: u64) -> Self {
        Self { life, next: None, fetch: 0, size: None, turn: 0, high: -1, rest: None, is_lost: false }
    }
}

/// Something fetched.
enum Ready {
    Record(u64, Record),
    /// No record is there before this offset.
    Gap(u64, TopicPartition, i64),
}

/// See the module.
pub(super) struct KafkaCrate {
    config: config::Kafka,
    topics: Vec<Arc<str>>,
    door: Door,
    questions: Questions,
    partitions: HashMap<TopicPartition, Part>,
    lives: u64,
    turns: u64,
    reader: Option<Reader>,
    threads: Arc<AtomicUsize>,
    commits: Option<Commits>,
    ready: VecDeque<Ready>,
    ready_bytes: usize,
    events: VecDeque<Polled>,
    /// Of the question that is open.
    asked: Vec<TopicPartition>,
    /// To be asked for one by one: one of them may break the answer for all.
    alone: VecDeque<TopicPartition>,
    paused: bool,
    refresh_at: Instant,
    ask_at: Instant,
    failures: u32,
    heard_at: Option<Instant>,
    /// Topics whose gaps were told.
    told: Vec<Arc<str>>,
}

impl KafkaCrate {
    /// Asks nothing yet.
    pub(super) fn open(kafka: &config::Kafka) -> Result<Self, SourceError> {
        let door = Door::of(kafka).map_err(|fault| {
            let words = super::preflight::Finding::Tls(fault).sentence("");
            SourceError::Request(words)
        })?;
        Ok(Self {
            config: kafka.clone(),
            topics: kafka.topics.iter().map(|topic| Arc::from(topic.as_str())).collect(),
            questions: Questions::new(kafka, door.clone()),
            door,
            partitions: HashMap::new(),
            lives: 0,
            reader: None,
            threads: Arc::default(),
            commits: None,
            ready: VecDeque::new(),
            ready_bytes: 0,
            events: VecDeque::new(),
            asked: Vec::new(),
            alone: VecDeque::new(),
            turns: 0,
            paused: false,
            refresh_at: Instant::now(),
            ask_at: Instant::now(),
            failures: 0,
            heard_at: None,
            told: Vec::new(),
        })
    }

    /// Which partitions there are: all of them are ours.
    fn refresh(&mut self) {
        if Instant::now() < self.refresh_at {
            return;
        }
        self.refresh_at = Instant::now() + REFRESH;
        let cluster = match self.questions.cluster(Duration::ZERO, REQUEST) {
            Ok(cluster) => cluster.clone(),
            Err(error) => {
                self.refresh_at = Instant::now() + Duration::from_secs(2);
                self.trouble(TroubleKind::Connection, error.to_string());
                return;
            }
        };
        self.heard_at = Some(Instant::now());
        let mut new = Vec::new();
        for topic in &self.topics.clone() {
            let found = cluster.topics.iter().find(|found| found.name == **topic);
            let error = found.map_or(3, |found| found.error);
            if error != 0 && error != 5 {
                self.refresh_at = Instant::now() + Duration::from_secs(5);
                let (kind, words) = match error {
                    3 => (TroubleKind::UnknownTopic, format!("topic {topic} does not exist: create it, or correct kafka.topics")),
                    29 => (
                        TroubleKind::Authorization,
                        format!("this user has no rights on topic {topic}: grant READ and DESCRIBE on it"),
                    ),
                    code => (TroubleKind::Other, format!("topic {topic}: Kafka's error {code}")),
                };
                self.trouble(kind, words);
            }
            for (partition, _) in found.map_or(&[][..], |found| &found.partitions) {
                let at = TopicPartition { topic: Arc::clone(topic), partition: *partition };
                if !self.partitions.contains_key(&at) {
                    self.partitions.insert(at.clone(), Part::parked(self.lives));
                    new.push(at);
                }
            }
        }
        if !new.is_empty() {
            // Another client knows the new topics, too.
            self.reader = None;
            new.sort();
            self.events.push_back(Polled::Assigned(new));
        }
    }

    fn trouble(&mut self, kind: TroubleKind, text: String) {
        self.events.push_back(Polled::Trouble(Trouble { kind, text }));
    }

    /// Topics that are there: naming another one creates it on some brokers.
    fn recipe(&self) -> Recipe {
        let known = |topic: &&Arc<str>| self.partitions.keys().any(|at| at.topic == **topic);
        let hosts = match self.questions.known_broker() {
            Some(address) => vec![address.to_owned()],
            None => self.config.brokers.clone(),
        };
        Recipe {
            hosts,
            topics: self.topics.iter().filter(known).map(|topic| topic.to_string()).collect(),
            connector: self.door.connector(),
        }
    }

    /// Puts the next question, while none is open and not much waits to be polled.
    fn ask(&mut self) {
        let now = Instant::now();
        let is_busy = self.reader.as_ref().is_some_and(|reader| reader.since.is_some());
        if self.paused || is_busy || self.ready_bytes >= QUESTION as usize / 2 || now < self.ask_at {
            return;
        }
        let wants = self.wants(now);
        if wants.is_empty() {
            return;
        }
        if self.reader.is_none() {
            if self.threads.load(Ordering::Relaxed) >= THREADS {
                self.ask_at = now + Duration::from_secs(1);
                self.trouble(TroubleKind::Connection, "brokers take connections and do not answer".to_owned());
                return;
            }
            match Reader::spawn(self.recipe(), &self.threads) {
                Ok(reader) => self.reader = Some(reader),
                Err(error) => {
                    self.ask_at = now + Duration::from_secs(1);
                    self.trouble(TroubleKind::Other, format!("no thread can be started: {error}"));
                    return;
                }
            }
        }
        self.asked = wants.iter().map(|want| want.at.clone()).collect();
        if let Some(reader) = &mut self.reader {
            reader.ask(wants);
        }
    }

    /// Everything that is read and does not rest, or the next one that is asked for alone.
    fn wants(&mut self, now: Instant) -> Vec<Want> {
        let can = |part: &Part| part.next.is_some() && !part.is_lost && part.rest.is_none_or(|(until, _)| until <= now);
        while let Some(at) = self.alone.pop_front() {
            if let Some(part) = self.partitions.get(&at).filter(|part| can(part)) {
                let size = part.size.unwrap_or(FETCH.1);
                return vec![Want { at, life: part.life, offset: part.fetch, size }];
            }
        }
        let mut able: Vec<(&TopicPartition, &mut Part)> = self.partitions.iter_mut().filter(|(_, part)| can(part)).collect();
        able.sort_by_key(|(_, part)| part.turn);
        let n = i32::try_from(able.len().max(1)).unwrap_or(i32::MAX);
        let share = (QUESTION / n).clamp(FETCH.0, FETCH.1);
        let mut left = i64::from(QUESTION);
        let mut wants = Vec::with_capacity(able.len());
        self.turns += 1;
        for (at, part) in able {
            let size = part.size.unwrap_or(share);
            // What finds no room waits for the next question, which begins with it.
            if wants.is_empty() || i64::from(size) <= left {
                left -= i64::from(size);
                part.turn = self.turns;
                wants.push(Want { at: at.clone(), life: part.life, offset: part.fetch, size });
            }
        }
        wants
    }

    fn take(&mut self, answer: Answer) {
        let got = match answer {
            Ok(got) => got,
            Err(fault) => {
                self.failures = self.failures.saturating_add(1);
                self.ask_at = Instant::now()
                    + Duration::from_millis(100).saturating_mul(1 << self.failures.min(5)).min(Duration::from_secs(2));
                self.refresh_at = self.refresh_at.min(Instant::now() + Duration::from_secs(1));
                let asked = std::mem::take(&mut self.asked);
                let text = match asked.as_slice() {
                    [one] if fault.may_be_ones => {
                        self.rest(one, Duration::from_secs(30));
                        format!("{}/{} cannot be read at its position: {}", one.topic, one.partition, fault.text)
                    }
                    several => {
                        if fault.may_be_ones && self.alone.is_empty() {
                            self.alone.extend(several.iter().cloned());
                        }
                        fault.text
                    }
                };
                self.trouble(fault.kind, text);
                return;
            }
        };
        self.failures = 0;
        self.heard_at = Some(Instant::now());
        for one in got {
            self.take_one(one);
        }
    }

    fn take_one(&mut self, got: Got) {
        let Got { want, high, what, shrunk } = got;
        let at = want.at.clone();
        let Some(part) = self.partitions.get_mut(&at).filter(|part| part.life == want.life && part.fetch == want.offset) else {
            return;
        };
        if high >= 0 {
            part.high = high;
        }
        match what {
            What::Records(records) => {
                part.rest = None;
                part.fetch = records.last().map_or(part.fetch, |(offset, ..)| offset + 1);
                // What had to be larger shrinks again, what had to be smaller grows.
                part.size = match want.size {
                    size if size > FETCH.1 => Some((size / 2).max(FETCH.1)),
                    size => Some(size.saturating_mul(2)).filter(|size| (shrunk || part.size.is_some()) && *size < FETCH.1),
                };
                let life = part.life;
                for (offset, key, value) in records {
                    self.ready_bytes += key.len() + value.len() + 64;
                    self.ready.push_back(Ready::Record(life, record(&at, offset, key, value)));
                }
            }
            What::Nothing if want.offset < high => self.nothing_below_the_end(&want, high),
            What::Nothing => {
                part.rest = None;
                part.size = None;
            }
            What::Gap(to) => self.gap(&want, to),
            What::Refused(code) => self.refused(&at, code),
        }
    }

    /// There is something, and it does not fit; or it is a transaction's marker, which nobody is shown.
    fn nothing_below_the_end(&mut self, want: &Want, high: i64) {
        let Some(part) = self.partitions.get_mut(&want.at) else { return };
        if want.size < LARGEST {
            part.size = Some(want.size.saturating_mul(4).min(LARGEST));
            return;
        }
        let words = format!(
            "nothing can be read of {}/{} at offset {}, below its end {high}: a transaction's marker, which the next record heals, or a \
             batch larger than {} MiB; with transactional producers set kafka.client = \"librdkafka\"",
            want.at.topic,
            want.at.partition,
            want.offset,
            LARGEST >> 20
        );
        part.size = None;
        // One marker at the end of a quiet log is usual: not worth a word.
        let is_marker = want.offset + 1 == high;
        self.rest(&want.at, Duration::from_secs(2));
        if !is_marker {
            self.trouble(TroubleKind::Other, words);
        }
    }

    /// Looked for with every size: the log has no record there.
    fn gap(&mut self, want: &Want, to: i64) {
        let (topic, partition, from) = (Arc::clone(&want.at.topic), want.at.partition, want.offset);
        let what =
            format!("{topic}/{partition} has no records at offsets {from} to {}: compaction, or a transaction's marker", to - 1);
        if self.config.on_lost_position == OnLostPosition::Stop {
            self.rest(&want.at, Duration::from_secs(30));
            self.trouble(
                TroubleKind::Other,
                format!("{what}; kafka.on_lost_position = \"stop\": this partition is not read further"),
            );
            return;
        }
        let Some(part) = self.partitions.get_mut(&want.at) else { return };
        part.fetch = to;
        self.ready.push_back(Ready::Gap(part.life, want.at.clone(), to));
        if !self.told.contains(&topic) {
            self.trouble(
                TroubleKind::Other,
                format!(
                    "{what}; they are recorded as skipped. If producers use transactions, records of aborted ones are delivered by this \
                     client: set kafka.client = \"librdkafka\""
                ),
            );
            self.told.push(topic);
        }
    }

    fn refused(&mut self, at: &TopicPartition, code: Option<KafkaCode>) {
        let name = format!("{}/{}", at.topic, at.partition);
        self.rest(at, Duration::from_secs(2));
        match code {
            Some(KafkaCode::OffsetOutOfRange) => {
                if let Some(part) = self.partitions.get_mut(at) {
                    part.is_lost = true;
                }
                self.events.push_back(Polled::PositionLost(format!("{name}: Kafka has no such offset")));
            }
            Some(KafkaCode::TopicAuthorizationFailed) => {
                self.trouble(
                    TroubleKind::Authorization,
                    format!("this user has no rights on topic {}: grant READ on it", at.topic),
                );
            }
            Some(KafkaCode::UnsupportedVersion) => {
                self.trouble(TroubleKind::Other, super::preflight::Finding::NoDownConversion(at.topic.to_string()).sentence(""))
            }
            // zstd, to a client that asks in the oldest version: the crate does not know that error.
            Some(KafkaCode::Unknown) => self.trouble(
                TroubleKind::Other,
                format!(
                    "{name}: the broker cannot give its records to the kafka client (zstd?): set kafka.client = \"librdkafka\""
                ),
            ),
            Some(
                code @ (KafkaCode::NotLeaderForPartition | KafkaCode::LeaderNotAvailable | KafkaCode::UnknownTopicOrPartition),
            ) => {
                self.refresh_at = self.refresh_at.min(Instant::now() + Duration::from_secs(1));
                self.trouble(TroubleKind::Connection, format!("{name} has moved to another broker ({code:?})"));
            }
            Some(code) => self.trouble(TroubleKind::Other, format!("{name}: {code:?}")),
            None => {
                self.refresh_at = self.refresh_at.min(Instant::now() + Duration::from_secs(1));
                self.trouble(TroubleKind::Connection, format!("{name} has no leader now"));
            }
        }
    }

    /// Not asked for during a pause that grows up to `longest`.
    fn rest(&mut self, at: &TopicPartition, longest: Duration) {
        if let Some(part) = self.partitions.get_mut(at) {
            let pause = part.rest.map_or(Duration::from_millis(100), |(_, pause)| (pause * 2).min(longest));
            part.rest = Some((Instant::now() + pause, pause));
        }
    }

    /// What `poll` returns of what is there.
    fn next_ready(&mut self) -> Option<Record> {
        while let Some(ready) = self.ready.pop_front() {
            match ready {
                Ready::Record(life, record) => {
                    self.ready_bytes = self.ready_bytes.saturating_sub(record.size());
                    if let Some(part) =
                        self.partitions.get_mut(&record.at).filter(|part| part.life == life && part.next.is_some())
                    {
                        part.next = Some(record.offset + 1);
                        return Some(record);
                    }
                }
                Ready::Gap(life, at, to) => {
                    if let Some(part) = self.partitions.get_mut(&at).filter(|part| part.life == life && part.next.is_some()) {
                        part.next = Some(to);
                    }
                }
            }
        }
        self.ready_bytes = 0;
        None
    }

    /// A thread that gets nowhere is left to itself.
    fn abandon_if_stuck(&mut self) {
        let since = self.reader.as_ref().and_then(|reader| reader.since);
        if since.is_some_and(|since| since.elapsed() >= STUCK) {
            self.reader = None;
            self.failures = self.failures.saturating_add(1);
            self.trouble(TroubleKind::Connection, format!("a broker has not answered for {STUCK:?}"));
        }
    }
}

/// The crate gives null and empty alike, and no time: what is empty counts as null, so that a tombstone is never delivered.
fn record(at: &TopicPartition, offset: i64, key: Vec<u8>, value: Vec<u8>) -> Record {
    let filled = |bytes: Vec<u8>| Some(bytes).filter(|bytes| !bytes.is_empty());
    Record { at: at.clone(), offset, timestamp_ms: None, key: filled(key), value: filled(value), headers: Vec::new() }
}

impl MessageSource for KafkaCrate {
    fn poll(&mut self, timeout: Duration) -> Result<Option<Polled>, SourceError> {
        let by = Instant::now() + timeout;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            // Asked before the last of what is there is given away: it comes while that is being written.
            self.ask();
            if let Some(record) = self.next_ready() {
                return Ok(Some(Polled::Record(record)));
            }
            self.refresh();
            if !self.events.is_empty() {
                continue;
            }
            let left = by.saturating_duration_since(Instant::now());
            let is_asked = self.reader.as_ref().is_some_and(|reader| reader.since.is_some());
            if !is_asked {
                // Paused, resting, or nothing to read.
                std::thread::sleep(left.min(Duration::from_millis(20)));
            } else if let Some(answer) = self.reader.as_mut().and_then(|reader| reader.answer(left)) {
                self.take(answer);
                continue;
            }
            self.abandon_if_stuck();
            if self.events.is_empty() && Instant::now() >= by {
                return Ok(None);
            }
        }
    }

    fn start(&mut self, at: &[(TopicPartition, i64)]) -> Result<(), SourceError> {
        for (at, offset) in at {
            self.lives += 1;
            if let Some(part) = self.partitions.get_mut(at) {
                *part = Part { next: Some(*offset), fetch: *offset, high: part.high, ..Part::parked(self.lives) };
            }
        }
        Ok(())
    }

    fn park(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError> {
        for at in partitions {
            self.lives += 1;
            if let Some(part) = self.partitions.get_mut(at) {
                *part = Part::parked(self.lives);
            }
        }
        Ok(())
    }

    fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError> {
        // There is no group: what is given up is given up with this source.
        self.park(partitions)
    }

    fn positions(&mut self) -> Vec<(TopicPartition, i64)> {
        // A lost position is none.
        let read = self.partitions.iter().filter(|(_, part)| !part.is_lost);
        read.filter_map(|(at, part)| Some((at.clone(), part.next?))).collect()
    }

    fn store(&mut self, next: &[(TopicPartition, i64)]) {
        if self.commits.is_none() {
            self.commits = Commits::spawn(self.recipe(), self.config.group.clone()).ok();
        }
        if let Some(commits) = &self.commits {
            commits.note(next);
        }
    }

    fn pause(&mut self) {
        self.paused = true;
        self.ready.clear();
        self.ready_bytes = 0;
        for part in self.partitions.values_mut().filter(|part| part.next.is_some()) {
            // What is still on its way is void.
            self.lives += 1;
            part.life = self.lives;
            part.fetch = part.next.unwrap_or(part.fetch);
        }
    }

    fn resume(&mut self) {
        self.paused = false;
    }

    fn cluster_id(&mut self, timeout: Duration) -> Result<Option<String>, SourceError> {
        Ok(self.questions.cluster(REFRESH, timeout)?.id.clone())
    }

    fn topics(&mut self, timeout: Duration) -> Result<Vec<TopicInfo>, SourceError> {
        self.questions.topics(&self.topics, timeout)
    }

    fn settings(&mut self, topic: &str, timeout: Duration) -> Result<Option<TopicSettings>, SourceError> {
        self.questions.settings(topic, timeout)
    }

    fn watermarks(&mut self, at: &TopicPartition, timeout: Duration) -> Result<Watermarks, SourceError> {
        self.questions.watermarks(at, timeout)
    }

    fn resolve(&mut self, at: &TopicPartition, start: Start, timeout: Duration) -> Result<i64, SourceError> {
        let found = match start {
            Start::Earliest => None,
            Start::Latest => return Ok(self.watermarks(at, timeout)?.high),
            Start::Committed => self.questions.committed(&self.config.group, at, timeout)?,
            Start::Time(ms) => match self.questions.at_time(at, ms, timeout)? {
                None => return Ok(self.watermarks(at, timeout)?.high),
                found => found,
            },
        };
        match found {
            Some(offset) => Ok(offset),
            None => Ok(self.watermarks(at, timeout)?.low),
        }
    }

    fn high_watermarks(&mut self) -> Vec<(TopicPartition, i64)> {
        let read = self.partitions.iter().filter(|(_, part)| part.next.is_some() && part.high >= 0);
        read.map(|(at, part)| (at.clone(), part.high)).collect()
    }

    fn look_for_topics(&mut self, _timeout: Duration) {
        self.refresh_at = Instant::now();
    }

    fn is_up(&self) -> bool {
        self.failures == 0 && self.heard_at.is_some_and(|at| at.elapsed() < REFRESH * 2)
    }

    fn close(mut self: Box<Self>, deadline: Duration) {
        // Its thread ends with the question in hand.
        self.reader = None;
        if let Some(commits) = self.commits.take() {
            commits.close(deadline);
        }
    }
}
