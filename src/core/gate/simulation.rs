//! The gate in front of a service that has a capacity, with the rules of `fault` and `backoff` around it. Seeds are fixed, steps
//! are half a millisecond. What it must come to stands in `scenarios.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Ask, Change, Gate, Probe, Report, Settings, suspects};
use crate::core::backoff::Policy;
use crate::core::fault::{Attempted, Next, decide, whose};
use crate::core::outcome::{Outcome, classify_status, is_overload};

const STEP: f64 = 0.0005;
const REFUSAL: f64 = 0.002;

/// What happens, and when.
pub(super) struct World {
    /// Seconds a request takes.
    pub(super) latency: f64,
    pub(super) capacity: f64,
    /// Until then it is down, with this status (0: it hangs for `timeout`).
    pub(super) outage: f64,
    pub(super) down: u16,
    pub(super) timeout: f64,
    pub(super) retry_after: Option<Duration>,
    /// Due at the start, and coming per second.
    pub(super) backlog: u64,
    pub(super) arrivals: f64,
    pub(super) workers: usize,
    pub(super) duration: f64,
    /// From a tenth of the capacity to all of it in so many seconds after the outage.
    pub(super) cold: f64,
    /// The capacity halves then.
    pub(super) halves: f64,
    /// This share of deliveries always fails, with this status (0: after 2 s).
    pub(super) poison: f64,
    pub(super) poisoned: u16,
    /// This share of requests fails with this status.
    pub(super) random: f64,
    pub(super) random_status: u16,
    pub(super) seed: u64,
}

pub(super) const WORLD: World = World {
    latency: 0.02,
    capacity: 500.0,
    outage: 60.0,
    down: 503,
    timeout: 2.0,
    retry_after: None,
    backlog: 20_000,
    arrivals: 200.0,
    workers: 64,
    duration: 160.0,
    cold: 0.0,
    halves: f64::INFINITY,
    poison: 0.0,
    poisoned: 503,
    random: 0.0,
    random_status: 500,
    seed: 1,
};

/// Without an outage.
pub(super) const HEALTHY: World =
    World { outage: 0.0, backlog: 0, duration: 60.0, capacity: 5000.0, arrivals: 1000.0, latency: 0.005, ..WORLD };

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Requests while it was down.
    pub(super) useless: u64,
    /// Most in a second after the outage, as a share of the capacity.
    pub(super) peak: f64,
    /// First acceptance after the outage, in seconds.
    pub(super) resumed: f64,
    /// Share of the capacity used in the minute after that.
    pub(super) used: f64,
    /// Requests refused for want of capacity, and all after the outage.
    pub(super) refused: u64,
    pub(super) after: u64,
    pub(super) accepted: u64,
    pub(super) dead: u64,
    pub(super) changes: u32,
    /// Good ones that waited for their first attempt, the longest, in seconds.
    pub(super) waited: f64,
    /// Accepted per second in the last half minute.
    pub(super) last: f64,
    /// When no good delivery was open any more after the outage; infinite if never.
    pub(super) drained: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    id: u64,
    came: f64,
    attempt: i32,
    spent: Duration,
    previous: Option<f64>,
}

/// Time in nanoseconds, then id: a heap that is the same in each run.
type Due = BinaryHeap<Reverse<(u64, u64)>>;

struct Answer {
    row: Row,
    started: f64,
    probe: bool,
    answered: Option<u16>,
    refused: bool,
}

struct Run<'a> {
    world: &'a World,
    gate: Gate,
    random: StdRng,
    rows: BTreeMap<u64, Row>,
    fresh: Due,
    suspects: Due,
    in_flight: BTreeMap<(u64, u64), Answer>,
    suspects_in_flight: usize,
    accepted: [Option<(u64, f64)>; 2],
    bucket: f64,
    arrivals: BTreeMap<u64, u64>,
    good: BTreeMap<u64, u64>,
    open_good: u64,
    found: Found,
    now: f64,
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn time(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(0.0))
}

impl World {
    pub(super) fn run(&self) -> Found {
        let mut run = Run {
            world: self,
            gate: Gate::new(Settings::default(), Duration::ZERO),
            random: StdRng::seed_from_u64(self.seed),
            rows: BTreeMap::new(),
            fresh: Due::new(),
            suspects: Due::new(),
            in_flight: BTreeMap::new(),
            suspects_in_flight: 0,
            accepted: [None; 2],
            bucket: 1.0,
            arrivals: BTreeMap::new(),
            good: BTreeMap::new(),
            open_good: 0,
            found: Found { drained: f64::INFINITY, resumed: f64::INFINITY, ..Found::default() },
            now: 0.0,
        };
        let (mut next_id, mut next_arrival) = (0, 1.0 / self.arrivals);
        (0..self.backlog).for_each(|id| run.arrive(id, 0.0));
        next_id += self.backlog;
        while run.now < self.duration {
            run.now += STEP;
            while next_arrival <= run.now {
                run.arrive(next_id, next_arrival);
                next_id += 1;
                next_arrival += 1.0 / self.arrivals;
            }
            let capacity = self.capacity_at(run.now);
            run.bucket = (run.bucket + capacity * STEP).min((capacity * 0.05).max(1.0));
            run.finish();
            run.start();
        }
        run.judge()
    }

    fn capacity_at(&self, now: f64) -> f64 {
        let warm = if self.cold > 0.0 { (0.1 + 0.9 * (now - self.outage).max(0.0) / self.cold).min(1.0) } else { 1.0 };
        self.capacity * warm * if now > self.halves { 0.5 } else { 1.0 }
    }

    fn is_poison(&self, id: u64) -> bool {
        (id.wrapping_add(self.seed * 7919).wrapping_mul(2_654_435_761) % 1000) < (self.poison * 1000.0) as u64
    }
}

impl Run<'_> {
    fn arrive(&mut self, id: u64, at: f64) {
        self.open_good += u64::from(!self.world.is_poison(id));
        self.rows.insert(id, Row { id, came: at, attempt: 0, spent: Duration::ZERO, previous: None });
        self.fresh.push(Reverse((nanos(at), id)));
    }

    fn finish(&mut self) {
        while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= nanos(self.now)) {
            let answer = entry.remove();
            self.judge_answer(answer);
        }
        if self.now > self.world.outage && self.open_good <= self.world.workers as u64 && self.found.drained.is_infinite() {
            self.found.drained = self.now - self.world.outage;
        }
    }

    fn judge_answer(&mut self, Answer { row, started, probe, answered, refused }: Answer) {
        let (now, suspect) = (self.now, !row.spent.is_zero());
        self.suspects_in_flight -= usize::from(suspect);
        self.found.refused += u64::from(refused);
        let retry_after = self.world.retry_after.filter(|_| answered == Some(429));
        let outcome = answered.map_or(Outcome::Down, |status| classify_status(status, retry_after.is_some()));
        let other = self.accepted.iter().flatten().find(|(id, _)| *id != row.id).map(|(_, at)| time(now - at));
        let whose = whose(row.previous.map(|at| time(now - at)), other);
        let report = Report {
            id: row.id as i64,
            started: time(started),
            outcome,
            overload: answered.is_some_and(|status| is_overload(Ok(status))),
            whose,
            suspect,
            probe,
            retry_after,
        };
        let change = self.gate.report(&report, time(now), self.random.random());
        self.found.changes += u32::from(matches!(change, Some(Change::Shut { .. } | Change::Opened { .. })));
        let attempted =
            Attempted { outcome, whose, attempt: row.attempt, spent: row.spent, retry_after, gate_is_shut: self.gate.is_shut() };
        let policy = Policy {
            base: Duration::from_secs(1),
            cap: Duration::from_secs(900),
            give_up_after: Duration::from_secs(72 * 3600),
            probe_cap: Duration::from_secs(30),
        };
        match decide(&attempted, &policy, self.random.random()) {
            Next::Done => {
                self.rows.remove(&row.id);
                self.open_good -= 1;
                self.found.accepted += 1;
                *self.good.entry((now * 10.0) as u64).or_default() += 1;
                if now >= self.world.outage && self.found.resumed.is_infinite() {
                    self.found.resumed = now - self.world.outage;
                }
                if self.accepted[0].is_some_and(|(id, _)| id != row.id) {
                    self.accepted[1] = self.accepted[0];
                }
                self.accepted[0] = Some((row.id, now));
            }
            Next::Again { delay, spend } => {
                let row = Row { spent: row.spent + spend, previous: Some(now), ..row };
                self.rows.insert(row.id, row);
                let heap = if row.spent.is_zero() { &mut self.fresh } else { &mut self.suspects };
                heap.push(Reverse((nanos(now) + delay.as_nanos() as u64, row.id)));
            }
            Next::Dead { .. } => {
                self.rows.remove(&row.id);
                self.found.dead += 1;
            }
        }
    }

    fn start(&mut self) {
        let now = time(self.now);
        if self.gate.is_shut() {
            if self.gate.probe(now, false) == Probe::Now {
                // As the statement does it: one that was never tried, else the earliest, due or not.
                let untried =
                    |heap: &Due, rows: &BTreeMap<u64, Row>| heap.peek().is_some_and(|Reverse((_, id))| rows[id].attempt == 0);
                let suspect = self.fresh.is_empty() || (!untried(&self.fresh, &self.rows) && untried(&self.suspects, &self.rows));
                let Some(Reverse((_, id))) = (if suspect { self.suspects.pop() } else { self.fresh.pop() }) else { return };
                self.gate.probe_claimed(now, self.random.random());
                self.send(id, true);
            }
            return;
        }
        let is_due = |heap: &Due, now: f64| heap.peek().is_some_and(|Reverse((at, _))| *at <= nanos(now));
        while self.in_flight.len() < self.world.workers {
            let others = is_due(&self.fresh, self.now);
            let suspect = is_due(&self.suspects, self.now) && self.suspects_in_flight < suspects::workers(self.world.workers);
            if !others && !suspect {
                return;
            }
            let suspect = suspect && self.gate.take_suspect(others);
            if !suspect && !others || self.gate.start(suspect, now) != Ask::Start {
                return;
            }
            let Some(Reverse((_, id))) = (if suspect { self.suspects.pop() } else { self.fresh.pop() }) else { return };
            self.send(id, false);
        }
    }

    fn send(&mut self, id: u64, probe: bool) {
        let world = self.world;
        let Some(row) = self.rows.get_mut(&id) else { return };
        if row.attempt == 0 && !world.is_poison(id) && self.now > world.outage {
            self.found.waited = self.found.waited.max(self.now - row.came.max(world.outage));
        }
        row.attempt += 1;
        let row = *row;
        self.suspects_in_flight += usize::from(!row.spent.is_zero());
        *self.arrivals.entry((self.now * 10.0) as u64).or_default() += 1;
        let up = self.now >= world.outage;
        self.found.useless += u64::from(!up);
        self.found.after += u64::from(up);
        let (status, takes, refused) = if !up {
            (world.down, if world.down == 0 { world.timeout } else { REFUSAL }, false)
        } else if world.is_poison(id) {
            (world.poisoned, if world.poisoned == 0 { 2.0 } else { REFUSAL }, false)
        } else if world.random > 0.0 && self.random.random::<f64>() < world.random {
            (world.random_status, REFUSAL, false)
        } else if self.bucket >= 1.0 {
            self.bucket -= 1.0;
            (200, world.latency, false)
        } else {
            (503, REFUSAL, true)
        };
        let answered = (status != 0).then_some(status);
        let answer = Answer { row, started: self.now, probe, answered, refused };
        self.in_flight.insert((nanos(self.now + takes), id), answer);
    }

    fn judge(mut self) -> Found {
        let World { outage, duration, capacity, .. } = *self.world;
        let sum = |of: &BTreeMap<u64, u64>, from: u64, to: u64| of.range(from..to).map(|(_, n)| n).sum::<u64>() as f64;
        let (from, to) = ((outage * 10.0) as u64, (duration * 10.0) as u64);
        let seconds = (from..to.saturating_sub(10)).map(|at| sum(&self.arrivals, at, at + 10));
        self.found.peak = seconds.fold(0.0, f64::max) / capacity;
        let first = self.good.range(from..).next().map_or(to, |(at, _)| *at);
        self.found.used = sum(&self.good, first, first + 600) / (capacity * 60.0);
        self.found.last = sum(&self.good, to - 300, to) / 30.0;
        self.found
    }
}
