//! Partitions whose log may hold a batch that cannot be decoded: each is read apart from the others, as far as it can be.
//!
//! The client names no partition when it cannot decode a batch, and must not be polled on. So after such an error every
//! partition is first read by a reader of its own, a batch a turn, until it is clear of what the client may have fetched.
//! Whatever is sound on the way is committed as ever, so that each turn makes progress; a sound partition then joins the
//! others. A damaged one stays apart, is named, and is tried again until its log is sound.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::batch::{MAX_BYTES, MAX_ROWS};
use super::consumer::{Consumer, Held, Leave};
use crate::core::record::{Record, TopicPartition};
use crate::ops::pulse;
use crate::source::{self, Apart, Chunk, Ended, MessageSource, SourceError};

/// How long after an error a partition that is taken up is suspected.
const SUSPECT: Duration = Duration::from_secs(60);
/// Shortest and longest wait before a damaged partition is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The longest that one turn may keep the other partitions.
const TURN: Duration = Duration::from_secs(3);

/// What is known about damaged logs.
#[derive(Default)]
pub(super) struct Damage {
    suspected_at: Option<Instant>,
    /// Partitions that are read apart, and how far that is.
    cases: HashMap<TopicPartition, Case>,
    reader: Option<(TopicPartition, Apart)>,
}

/// A partition that is read apart.
struct Case {
    /// Read since it was last begun.
    rows: usize,
    bytes: usize,
    /// Where it was found damaged, and what the client said.
    damaged: Option<(i64, String)>,
    again_at: Instant,
    pause: Duration,
}

impl Case {
    fn new() -> Self {
        Self { rows: 0, bytes: 0, damaged: None, again_at: Instant::now(), pause: Duration::ZERO }
    }

    /// Not before the next, longer wait is over.
    fn later(&mut self) {
        self.pause = (self.pause * 2).clamp(RETRY.0, RETRY.1);
        self.again_at = Instant::now() + self.pause;
    }
}

impl Damage {
    /// A batch could not be decoded: whatever is taken up now may be the one.
    pub(super) fn suspect_all(&mut self) {
        self.suspected_at = Some(Instant::now());
    }

    /// This partition is read apart from now on.
    pub(super) fn suspect(&mut self, at: &TopicPartition) {
        self.cases.entry(at.clone()).or_insert_with(Case::new);
    }

    /// Whether a partition that is taken up is to be read apart.
    pub(super) fn is_read_apart(&mut self, at: &TopicPartition) -> bool {
        if self.suspected_at.is_some_and(|since| since.elapsed() < SUSPECT) {
            self.suspect(at);
        }
        self.cases.contains_key(at)
    }

    /// Partitions that are another process's now.
    pub(super) fn forget(&mut self, partitions: &[TopicPartition]) {
        self.cases.retain(|at, _| !partitions.contains(at));
        self.reader = None;
    }

    /// A new client: what was read apart begins again where PostgreSQL stands.
    pub(super) fn start_over(&mut self, held: &HashSet<TopicPartition>) {
        self.cases.retain(|at, _| held.contains(at));
        self.reader = None;
        for case in self.cases.values_mut() {
            (case.rows, case.bytes) = (0, 0);
        }
    }

    /// Of those that this process holds: after a new start of reading they may be another's.
    fn words(&self, held: &HashMap<TopicPartition, Held>) -> Option<String> {
        let mut damaged: Vec<String> = self
            .cases
            .iter()
            .filter(|(at, _)| held.contains_key(at))
            .filter_map(|(at, case)| {
                let (offset, why) = case.damaged.as_ref()?;
                Some(format!("{}/{} at offset {offset} ({why})", at.topic, at.partition))
            })
            .collect();
        damaged.sort();
        (!damaged.is_empty()).then(|| {
            format!(
                "the broker's log is damaged, and nothing behind it is read: {}. Move the partition's leadership to a sound \
                 replica or restore the segment; to give the batch up, delete records up to the offset behind it: the gap is \
                 recorded and reading goes on",
                damaged.join(", ")
            )
        })
    }
}

impl Consumer {
    /// One turn of one partition that is read apart.
    pub(super) fn read_apart(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        let now = Instant::now();
        let due = self.damage.cases.iter().filter(|(_, case)| case.again_at <= now);
        let (at, from) = due
            .filter_map(|(at, case)| Some((case, at, self.held.get(at)?.position.as_ref()?.next_offset)))
            .min_by_key(|(case, ..)| case.again_at)
            .map(|(_, at, from)| (at.clone(), from))?;
        pulse::at("reading a partition apart", pulse::REMOTE);
        let chunk = match self.next_apart(&at, from) {
            Ok(chunk) => chunk,
            Err(error) => {
                self.damage.reader = None;
                return self.apart_later(&at, &error.to_string());
            }
        };
        let Chunk { records, next, ended } = chunk;
        let (rows, bytes) = (records.len(), records.iter().map(Record::size).sum::<usize>());
        if (rows > 0 || next > from)
            && let Some(leave) = self.commit_records(source, records, &HashMap::from([(at.clone(), next)]))
        {
            return Some(leave);
        }
        if !matches!(ended, Ended::Full) {
            self.damage.reader = None;
        }
        match ended {
            Ended::EndOfLog => self.read_with_the_others(source, &at, next),
            Ended::Full => {
                let prefetched = source::prefetched(&self.config.get().kafka);
                let case = self.damage.cases.get_mut(&at)?;
                (case.rows, case.bytes) = (case.rows + rows, case.bytes + bytes);
                // Each partition has its turn; and after all of what the client may have had in hand it is sound.
                case.again_at = Instant::now();
                let is_clear = case.rows > prefetched.0 * 2 || case.bytes > prefetched.1 * 2;
                if is_clear { self.read_with_the_others(source, &at, next) } else { None }
            }
            Ended::Late(_) if rows > 0 => None,
            Ended::Late(why) => self.apart_later(&at, &format!("nothing came in {} s{why}", TURN.as_secs())),
            Ended::PositionLost(_) => {
                // Perhaps somebody gave the batch up: the watermarks tell, and what is lost is recorded.
                self.held.get_mut(&at)?.position = None;
                let case = self.damage.cases.get_mut(&at)?;
                (case.rows, case.bytes) = (0, 0);
                self.take_up(source, &[at])
            }
            Ended::Damaged(why) => {
                self.found_damaged(source, &at, next, why);
                None
            }
        }
    }

    fn next_apart(&mut self, at: &TopicPartition, from: i64) -> Result<Chunk, SourceError> {
        let mut reader = match self.damage.reader.take() {
            Some((of, reader)) if of == *at => reader,
            other => {
                let mut reader = other.map_or_else(|| Apart::open(&self.config.get().kafka), |(_, reader)| Ok(reader))?;
                reader.begin(at, from)?;
                reader
            }
        };
        let chunk = reader.read(MAX_ROWS, MAX_BYTES, Instant::now() + TURN)?;
        self.damage.reader = Some((at.clone(), reader));
        Ok(chunk)
    }

    /// It cannot be read just now, for a reason that says nothing about its log.
    fn apart_later(&mut self, at: &TopicPartition, why: &str) -> Option<Leave> {
        if let Some(note) = self.throttle.admit("apart", Instant::now()) {
            log::warn!("{}/{} is read apart from the others, and cannot be read now: {why}{note}", at.topic, at.partition);
        }
        self.damage.cases.get_mut(at)?.later();
        None
    }

    fn found_damaged(&mut self, source: &mut dyn MessageSource, at: &TopicPartition, offset: i64, why: String) {
        let Some(case) = self.damage.cases.get_mut(at) else { return };
        (case.rows, case.bytes) = (0, 0);
        if case.damaged.as_ref().is_none_or(|(before, _)| *before != offset) {
            case.pause = Duration::ZERO;
            log::error!(topic = &*at.topic, partition = at.partition, offset = offset;
                "{}/{}: the batch at offset {offset} cannot be decoded: {why}; this partition waits, the others go on",
                at.topic, at.partition);
        }
        case.damaged = Some((offset, why));
        case.later();
        self.say_damage();
        // Nobody fetches it, so that nothing is heard of its end.
        if let Ok(log) = source.watermarks(at, TURN) {
            self.show_lag(vec![(at.clone(), log.high)]);
        }
    }

    pub(super) fn say_damage(&self) {
        match self.damage.words(&self.held) {
            Some(words) => self.health.wait("damage", "partition", words),
            None => self.health.go("damage", "partition"),
        }
    }

    /// Its log is sound as far as it matters now.
    fn read_with_the_others(&mut self, source: &mut dyn MessageSource, at: &TopicPartition, next: i64) -> Option<Leave> {
        if self.damage.cases.remove(at).is_some_and(|case| case.damaged.is_some()) {
            log::info!(topic = &*at.topic, partition = at.partition, offset = next;
                "{}/{} can be read again: at {next} it joins the others", at.topic, at.partition);
            self.say_damage();
        }
        source.start(&[(at.clone(), next)]).err().map(|error| Leave::Rebuild(error.to_string()))
    }

    /// After partitions have gone or the client has.
    pub(super) fn damage_forgets(&mut self, partitions: &[TopicPartition]) {
        self.damage.forget(partitions);
        self.say_damage();
    }
}
