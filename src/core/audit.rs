//! The audit: goes over transactions in the order of their ids, holds what it finds against the lives of the partitions' logs,
//! and names each offset that is in no place or in two, and each transaction that is in no state or in two.
//!
//! Ids ascend with a partition's offsets but for single rows (an id that was inserted in a second round), so that what is open
//! at any moment is small: a hole that was passed waits in `missing` for a row that comes later.

use std::collections::HashMap;
use std::sync::Arc;

use super::coverage::Coverage;
use super::offsets::Offsets;

mod found;
mod read;
pub use found::{Counts, Evidence, Found, Lacks, Place, Problem, confirmed, look};
use read::Ids;
pub use read::{Chunk, Holdings, Life, LifeId, Purge, Row};

/// So many offsets of a partition are held against the other tables at once.
const WINDOW: i64 = 50_000;

/// Offsets that are to be looked up in the tables beside `tx`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    key: Key,
    /// Whose.
    pub life: LifeId,
    /// Which.
    pub offsets: Offsets,
}

type Key = (i16, i32, i16);

/// What is known of a life.
#[derive(Debug, Clone, Default)]
struct State {
    life: Option<Life>,
    /// The audit begins here.
    begin: i64,
    /// Everything below is settled.
    next: i64,
    /// Transactions' offsets at or above `next`.
    seen: Coverage,
    /// Holes below `next` that nothing explains.
    missing: Coverage,
    /// Holes below `next` where retention has deleted.
    holes: i64,
    /// The first of them, ascending, one more than are named.
    first_holes: Vec<Offsets>,
    counts: Counts,
    /// By place, where they are wanted.
    ranges: [Coverage; 6],
}

/// An audit under way.
#[derive(Debug, Clone)]
pub struct Audit {
    states: HashMap<Key, State>,
    topics: Vec<Arc<str>>,
    /// Ids up to here have been read.
    after: i64,
    /// Rows up to this id may have been read by an audit before this one.
    seen_before: i64,
    /// Transactions read.
    rows: u64,
    /// Ids of accepted attempts whose transactions are not there, ascending, one more than are named. Retention deletes both at once.
    traces: Vec<i64>,
    is_done: bool,
    whole: bool,
    /// Whether ranges are kept by place, too.
    by_place: bool,
}

/// So many ranges of a place are kept; what comes behind them is only counted.
pub const RANGES: usize = 20_000;
/// Where too much was deleted, so many ranges that have no row are named, and so many transactions that left attempts behind.
const HOLES: usize = 12;

impl Audit {
    /// Goes on behind `after`, from where each life is audited; what is up to `seen_before` is read for the second time.
    pub fn from(after: i64, seen_before: i64) -> Self {
        Self {
            states: HashMap::new(),
            topics: Vec::new(),
            after,
            seen_before,
            rows: 0,
            traces: Vec::new(),
            is_done: false,
            whole: false,
            by_place: false,
        }
    }

    /// Over everything, from the beginning of each life.
    pub fn whole() -> Self {
        Self { whole: true, ..Self::from(i64::MIN, i64::MIN) }
    }

    /// Keeps also which offsets are in which place.
    pub fn by_place(self) -> Self {
        Self { by_place: true, ..self }
    }

    /// Whether it goes over everything.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Behind which id the next chunk begins.
    pub fn after(&self) -> i64 {
        self.after
    }

    /// How many transactions it has read.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Learns how far each life is read now. There is more to do. False: a position lies below what is settled, so that the
    /// database has gone back in time, and what is known of it is worth nothing.
    pub fn learn(&mut self, lives: &[Life]) -> bool {
        self.is_done = false;
        let mut goes_on = true;
        for life in lives {
            let key = self.key(life);
            // A position that a person has set back.
            let begin = if self.whole { life.first } else { life.audited.min(life.position) };
            let state = self.states.entry(key).or_default();
            if state.life.is_none() {
                (state.begin, state.next) = (begin, begin);
                state.seen.remove(i64::MIN..begin);
            }
            goes_on &= life.position >= state.next;
            state.life = Some(life.clone());
        }
        goes_on
    }

    /// Whether everything is read and settled.
    pub fn is_finished(&self) -> bool {
        self.is_done && self.windows(1).is_empty()
    }

    /// Whose a row is.
    pub fn life(&self, row: &Row) -> Option<&LifeId> {
        Some(&self.states.get(&(row.topic, row.partition, row.incarnation))?.life.as_ref()?.id)
    }

    /// The number of a topic without transactions is made up, and goes when it has one.
    fn key(&mut self, life: &Life) -> Key {
        let place = self.topics.iter().position(|topic| *topic == life.id.topic).unwrap_or_else(|| {
            self.topics.push(life.id.topic.clone());
            self.topics.len() - 1
        });
        let made_up = (-1 - place as i16, life.id.partition, life.id.incarnation);
        let Some(number) = life.number else { return made_up };
        let key = (number, life.id.partition, life.id.incarnation);
        if let Some(mut old) = self.states.remove(&made_up) {
            if let Some(rows) = self.states.remove(&key) {
                rows.seen.ranges().for_each(|range| drop(old.seen.insert(range)));
            }
            self.states.insert(key, old);
        }
        key
    }

    /// Takes the next rows.
    pub fn take(&mut self, chunk: Chunk) -> Vec<Problem> {
        let mut problems = Vec::new();
        let Chunk { upto, rows, open, dead, resolved, delivered } = chunk;
        let mut tables = [Ids::new(open), Ids::new(dead), Ids::new(resolved)];
        let mut delivered = Ids::new(delivered);
        for row in &rows {
            let [open, dead, resolved] = tables.each_mut().map(|ids| ids.has(row.id));
            let evidence = Evidence { stored: true, open, dead, resolved, delivered: delivered.has(row.id) };
            problems.extend(evidence.problem(row.id));
            problems.extend(self.place(row));
        }
        let names = ["open", "dead", "resolved"];
        let mut lost: Vec<(i64, &'static str)> = Vec::new();
        for (ids, name) in tables.into_iter().zip(names) {
            lost.extend(ids.unmatched().into_iter().map(|id| (id, name)));
        }
        lost.sort_unstable();
        for of_one in lost.chunk_by(|a, b| a.0 == b.0) {
            problems.push(Problem::WithoutTransaction { id: of_one[0].0, states: of_one.iter().map(|one| one.1).collect() });
        }
        let mut traces = delivered.unmatched();
        traces.dedup();
        self.traces.extend(traces);
        self.traces.truncate(HOLES + 1);
        self.rows += rows.len() as u64;
        self.after = self.after.max(upto);
        problems
    }

    fn place(&mut self, row: &Row) -> Option<Problem> {
        // A rejected record became it: that record's row is the offset's place.
        if row.topic == 0 {
            return None;
        }
        let state = self.states.entry((row.topic, row.partition, row.incarnation)).or_default();
        let offsets = row.offset..row.offset + 1;
        let Some(life) = &state.life else {
            state.seen.insert(offsets);
            return None;
        };
        if row.offset < state.begin {
            return None;
        }
        let twice = |places| Some(Problem::Twice { life: life.id.clone(), offsets: offsets.clone(), places, near: row.id });
        if row.offset >= state.next {
            state.counts.add(Place::Transaction, 1);
            let was_there = !state.seen.insert(offsets.clone()).is_empty();
            return if was_there { twice((Place::Transaction, Place::Transaction)) } else { None };
        }
        if state.missing.remove(offsets.clone()) > 0 {
            state.counts.add(Place::Transaction, 1);
            return None;
        }
        // Settled before: what is there?
        if row.id > self.seen_before && row.offset >= life.purged.below {
            return twice((Place::Transaction, Place::Transaction));
        }
        None
    }

    /// There are no more rows.
    pub fn done(&mut self) {
        self.is_done = true;
    }

    /// What can be settled now, at most `most` of them; none left: everything that was taken is settled.
    pub fn windows(&self, most: usize) -> Vec<Window> {
        let mut windows: Vec<Window> = self
            .states
            .iter()
            .filter_map(|(key, state)| {
                let life = state.life.as_ref()?;
                let target = if self.is_done { life.position } else { state.seen.end().unwrap_or(i64::MIN).min(life.position) };
                let offsets = state.next..target.min(state.next.saturating_add(WINDOW));
                (offsets.start < offsets.end).then(|| Window { key: *key, life: life.id.clone(), offsets })
            })
            .collect();
        windows.sort_by(|a, b| a.life.cmp(&b.life));
        windows.truncate(most);
        windows
    }

    /// Settles a window with what the tables hold of it. Holes wait in [`missing`](Self::missing).
    pub fn settle(&mut self, window: &Window, holdings: &Holdings) -> Vec<Problem> {
        let Some(state) = self.states.get_mut(&window.key) else { return Vec::new() };
        let near = self.after;
        let settled = look(&window.offsets, &state.seen, holdings);
        for (place, n) in settled.counts {
            state.counts.add(place, n);
        }
        if self.by_place {
            let stored = state.seen.within(&window.offsets).map(|range| (Place::Transaction, range));
            let others = holdings
                .places
                .iter()
                .map(|(place, range)| (*place, range.start.max(window.offsets.start)..range.end.min(window.offsets.end)));
            for (place, range) in stored.chain(others) {
                let ranges = &mut state.ranges[place.index()];
                if ranges.end().is_some_and(|end| end == range.start) || ranges.len() < RANGES {
                    ranges.insert(range);
                }
            }
        }
        let purged = holdings.purged;
        for hole in settled.holes {
            let deleted = hole.start..hole.end.min(purged.below);
            if !deleted.is_empty() {
                state.holes += deleted.end - deleted.start;
                let n = state.first_holes.len();
                match state.first_holes.last_mut() {
                    Some(last) if last.end == deleted.start => last.end = deleted.end,
                    _ if n <= HOLES => state.first_holes.push(deleted),
                    _ => {}
                }
            }
            state.missing.insert(hole.start.max(purged.below)..hole.end);
        }
        if let Some(life) = &mut state.life {
            life.purged = purged;
        }
        state.seen.remove(window.offsets.clone());
        state.next = window.offsets.end;
        let twice = |(offsets, places)| Problem::Twice { life: window.life.clone(), offsets, places, near };
        settled.twice.into_iter().map(twice).collect()
    }

    /// Settled offsets that are in no place, so far.
    pub fn missing(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for state in self.states.values() {
            let Some(life) = &state.life else { continue };
            let missing = state.missing.ranges();
            problems.extend(missing.map(|offsets| Problem::Missing { life: life.id.clone(), offsets, near: self.after }));
        }
        problems.sort_by_key(|problem| match problem {
            Problem::Missing { life, offsets, .. } => (life.clone(), offsets.start),
            _ => (LifeId { topic: Arc::from(""), partition: 0, incarnation: 0 }, 0),
        });
        problems
    }

    /// They have been said: from now on they count as settled.
    pub fn forget_missing(&mut self) {
        self.states.values_mut().for_each(|state| state.missing = Coverage::default());
    }

    /// Up to where each life is settled without a hole.
    pub fn settled(&self) -> Vec<(LifeId, i64)> {
        let lives = self.states.values().filter_map(|state| {
            let first_hole = state.missing.ranges().next().map_or(i64::MAX, |hole| hole.start);
            Some((state.life.as_ref()?.id.clone(), state.next.min(first_hole)))
        });
        let mut lives: Vec<(LifeId, i64)> = lives.collect();
        lives.sort();
        lives
    }

    /// What was found of each life.
    pub fn results(&self) -> Vec<Outcome<'_>> {
        let mut results: Vec<Outcome<'_>> = Vec::new();
        for state in self.states.values() {
            let State { life, begin, counts, holes, first_holes, ranges, .. } = state;
            if let Some(life) = life {
                results.push(Outcome { life, begin: *begin, counts: *counts, deleted: *holes, first_holes, ranges });
            }
        }
        results.sort_by(|a, b| a.life.id.cmp(&b.life.id));
        results
    }

    /// At the end: transactions that are in no life, and those at or above their life's position. `lives` are of a moment after
    /// all rows were read, or of the same: a position moves in the server transaction that stores. `topics`: names by number.
    pub fn outside(&self, lives: &[Life], topics: &HashMap<i16, Arc<str>>) -> Vec<Problem> {
        let of = |life: &Life| Some(((life.number?, life.id.partition, life.id.incarnation), life.position));
        let positions: HashMap<Key, i64> = lives.iter().filter_map(of).collect();
        let mut problems = Vec::new();
        for (key, state) in &self.states {
            let position = positions.get(key).copied();
            let seen: Vec<Offsets> = state.seen.within(&(position.unwrap_or(i64::MIN)..i64::MAX)).collect();
            let (Some(first), Some(last)) = (seen.first(), seen.last()) else { continue };
            let n = super::offsets::count(&seen);
            // A row of `tx` may not even have a topic that is there.
            let topic = topics.get(&key.0).cloned().unwrap_or_else(|| Arc::from(format!("topic number {}", key.0)));
            let life = LifeId { topic, partition: key.1, incarnation: key.2 };
            let lacks = if position.is_some() { Lacks::Advance(n) } else { Lacks::Life(n) };
            problems.push(Problem::Outside { life, offsets: first.start..last.end, lacks });
        }
        problems.sort_by_key(|problem| problem.place().map(|(life, offsets)| (life.clone(), offsets.start)));
        problems
    }

    /// At the end of an audit over everything: whether as many offsets are missing as retention has deleted, at least before it
    /// began (`before`), at most by now.
    pub fn purged(&self, before: &HashMap<LifeId, i64>) -> Vec<Problem> {
        let mut problems = Vec::new();
        for Outcome { life, deleted: missing, first_holes, .. } in self.results() {
            let deleted = (before.get(&life.id).copied().unwrap_or(0), life.purged.offsets);
            if missing < deleted.0 || missing > deleted.1 {
                let holes = first_holes.iter().take(HOLES).cloned().collect();
                problems.push(Problem::Purged {
                    life: life.id.clone(),
                    offsets: life.first..life.purged.below.max(life.first),
                    holes: (holes, first_holes.len() > HOLES),
                    traces: (self.traces.iter().take(HOLES).copied().collect(), self.traces.len() > HOLES),
                    missing,
                    deleted,
                });
            }
        }
        problems
    }
}

/// What an audit has found of a life.
#[derive(Debug, Clone)]
pub struct Outcome<'a> {
    /// Which.
    pub life: &'a Life,
    /// The first offset that was looked at.
    pub begin: i64,
    /// Offsets by place.
    pub counts: Counts,
    /// Offsets without a row where retention has deleted.
    pub deleted: i64,
    first_holes: &'a [Offsets],
    ranges: &'a [Coverage; 6],
}

impl Outcome<'_> {
    /// Which offsets are in a place, ascending; at most [`RANGES`].
    pub fn ranges(&self, place: Place) -> impl Iterator<Item = Offsets> + '_ {
        self.ranges[place.index()].ranges()
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
