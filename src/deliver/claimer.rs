//! The claimer: one thread takes what is due, in batches, and hands it to the workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use super::brake::{Brake, EVERY};
use super::permits::{Permits, Plan, is_suspect};
use crate::core::gate::suspects;
use crate::core::room::worth_a_claim;
use crate::failpoint::{self, failpoint};
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::pulse;
use crate::ops::stop::Stop;
use crate::ops::throttle::Throttle;
use crate::store::{CLAIM_LIMITS, Claimant, Claims, Floor, LeaseTime, Leased, Link, ProcessId, Room, StoreError};

/// The longest time without a look while there is anything to do: a lost wake-up costs a second, not a delivery. Somewhat less than the
/// second for which a short claim lets fresh rows be born leased.
const POLL: Duration = Duration::from_millis(800);
/// The same once nothing has been open for [`EMPTY_FOR`]: what arrives then comes with a wake-up, or from somebody else.
const POLL_EMPTY: Duration = Duration::from_secs(3);
const EMPTY_FOR: Duration = Duration::from_secs(10);

/// Takes what is due.
pub struct Claimer {
    /// Its own connection.
    pub link: Link,
    /// Where slots are reserved before a claim.
    pub room: Arc<Room>,
    /// Says what may be claimed.
    pub permits: Arc<Permits>,
    /// Where those go that have failed by themselves.
    pub suspects: Sender<Leased>,
    /// How long a suspect that finds no place is put off, about.
    pub put_off: Duration,
    /// Length of leases.
    pub time: LeaseTime,
    /// Longest time without a look while anything is open; [`Claimer::POLL`] but for tests that prove the wake-up.
    pub poll: Duration,
    /// See `Flow::unsettled`.
    pub unsettled: Arc<AtomicBool>,
    /// Lets one through at a time while no outcome is taken.
    pub brake: Arc<Brake>,
    /// What was said lately.
    pub throttle: Throttle,
    /// Series.
    pub metrics: Metrics,
    /// How many rows fitted into the room last time; begin with any number.
    pub fitting: usize,
    /// Lease of a claim that failed; begin with none.
    pub in_doubt: Option<i64>,
    /// Since when every look has found nothing open; begin with none.
    pub empty_since: Option<Instant>,
    /// What it waits for.
    pub health: Health,
    /// Told to stop, it claims nothing more.
    pub stop: Stop,
}

impl Claimer {
    /// The default of `poll`.
    pub const POLL: Duration = POLL;

    /// Works until told to stop. `process` comes once upkeep has opened the store.
    pub fn run(mut self, process: &Receiver<ProcessId>, wake: &Receiver<()>, handoff: &Sender<Leased>) -> anyhow::Result<()> {
        pulse::at("waiting for the store", None);
        let process = select! {
            recv(process) -> process => match process {
                Ok(process) => process,
                // Upkeep has ended, and says why by itself.
                Err(_) => return self.stop.wait_for_it(),
            },
            recv(self.stop.signal()) -> _ => return Ok(()),
        };
        let mut floor = Floor::default();
        let mut rest = Duration::ZERO;
        let mut arrived = false;
        let mut one_at = Instant::now();
        loop {
            // `rest` may be an hour in a test.
            pulse::at("waiting until something is due", pulse::PROMPT.map(|bound| bound + rest));
            failpoint("thread-claimer");
            // The token is taken before the look: what becomes due during the look leaves another one.
            select! {
                recv(self.stop.signal()) -> _ => return Ok(()),
                recv(wake) -> _ => arrived = true,
                recv(self.permits.on_changed) -> _ => {}
                recv(self.room.on_freed) -> _ => {}
                default(rest) => {}
            }
            if self.unsettled.load(Ordering::Acquire) {
                rest = Duration::from_millis(100);
                continue;
            }
            if arrived {
                self.empty_since = None;
            }
            let plan = self.permits.plan(std::mem::take(&mut arrived));
            pulse::at("claiming", pulse::REMOTE);
            let turn = match plan {
                Plan::Claim if self.brake.is_on() => {
                    floor.reset();
                    rest = one_at.saturating_duration_since(Instant::now()).min(self.poll);
                    if !rest.is_zero() {
                        continue;
                    }
                    self.one(process, handoff, &mut one_at)
                }
                Plan::Claim => self.turn(process, &mut floor, handoff),
                Plan::Probe => self.probe(process, handoff),
                Plan::Rest(time) => {
                    // What was due while the gate was shut may lie below what a claim looked at before.
                    floor.reset();
                    rest = time.min(self.poll);
                    continue;
                }
            };
            rest = match turn {
                Ok(rest) => {
                    self.health.go("claimer", "postgres");
                    rest
                }
                Err(error) => {
                    floor.reset();
                    self.empty_since = None;
                    self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
                    if let Some(note) = self.throttle.admit(error.kind(), Instant::now()) {
                        log::warn!("failed to claim, will try again: {error}{note}");
                    }
                    self.health.wait("claimer", "postgres", format!("PostgreSQL: {error}"));
                    pulse::at("waiting to claim again", pulse::PROMPT);
                    if self.stop.wait(self.link.pause(rand::random())) {
                        return Ok(());
                    }
                    Duration::ZERO
                }
            };
        }
    }

    /// One look; returns how long to rest.
    fn turn(&mut self, process: ProcessId, floor: &mut Floor, handoff: &Sender<Leased>) -> Result<Duration, StoreError> {
        let worth = worth_a_claim(self.room.held().2, self.fitting, &CLAIM_LIMITS);
        let Some((limit, room)) = self.reserve(worth) else {
            self.room.want(worth);
            return Ok(self.poll);
        };
        self.clear_doubt()?;
        let now = Instant::now();
        let from = floor.take(now);
        // Less than a claim that takes nothing.
        if self.empty_since.is_some() && self.link.run(|session| session.next_due(from))?.is_none() {
            return Ok(self.found_empty(now));
        }
        let who = Claimant { process, lease: rand::random(), time: self.time };
        self.in_doubt = Some(who.lease);
        let (claimed, claims) = self.link.run(|session| session.claim(limit, who, from, room))?;
        self.in_doubt = None;
        floor.learn(&claims);
        let rows = claimed.rows.len();
        self.note(&claims, rows, now);
        // Large payloads fill the room before the rows do: claim no more than fits, and try more again bit by bit.
        self.fitting = if claimed.too_much.is_empty() { self.fitting * 2 } else { rows }.clamp(1, CLAIM_LIMITS[3]);
        self.hand_over(claimed.rows, handoff)?;
        if !claimed.too_much.is_empty() {
            self.link.run(|session| session.give_back(&claimed.too_much, Duration::ZERO))?;
            self.metrics.given_back_total.inc_by(claimed.too_much.len() as u64);
            // Memory is full of large payloads: a moment, so that workers can take some, and not a loop of claims.
            return Ok(Duration::from_millis(100));
        }
        if !claims.short {
            return Ok(Duration::ZERO);
        }
        let Some(next) = self.link.run(|session| session.next_due(from))? else {
            return Ok(self.found_empty(now));
        };
        self.empty_since = None;
        // Due, and yet nothing was claimed: paused, or another's transaction holds it. Then looking at once is no use.
        let least = if rows == 0 { Duration::from_millis(100) } else { Duration::from_millis(1) };
        Ok(next.clamp(least.min(self.poll), self.poll))
    }

    /// Nothing is open: there is no backlog either. Returns how long to rest.
    fn found_empty(&mut self, now: Instant) -> Duration {
        let since = *self.empty_since.get_or_insert(now);
        if now - since < EMPTY_FOR {
            self.room.claimed(true, now);
            return self.poll;
        }
        // What comes now is born due and wakes this thread: born leased, its first retry would wait for the next look.
        self.poll.max(POLL_EMPTY)
    }

    /// One delivery, to find out whether the service accepts again.
    fn probe(&mut self, process: ProcessId, handoff: &Sender<Leased>) -> Result<Duration, StoreError> {
        // What was leased before is on its way back.
        let Some(room) = self.room.reserve_rows(1) else { return Ok(Duration::from_millis(100)) };
        self.clear_doubt()?;
        let who = Claimant { process, lease: rand::random(), time: self.time };
        self.in_doubt = Some(who.lease);
        let (mut claimed, claims) = self.link.run(|session| session.claim_probe(who, room))?;
        self.in_doubt = None;
        self.note_lost(&claims);
        let Some(leased) = claimed.rows.pop() else {
            if !claimed.too_much.is_empty() {
                self.link.run(|session| session.give_back(&claimed.too_much, Duration::ZERO))?;
            }
            // Nothing is open, or delivering is paused: what arrives wakes this thread.
            return Ok(self.poll);
        };
        self.permits.probe_claimed();
        // As for all: never blocks.
        let _ = handoff.send(leased);
        Ok(Duration::ZERO)
    }

    /// One delivery, to find out whether PostgreSQL takes outcomes again; says when the next one may be.
    fn one(&mut self, process: ProcessId, handoff: &Sender<Leased>, next: &mut Instant) -> Result<Duration, StoreError> {
        // What was leased before is on its way back.
        let Some(room) = self.room.reserve_rows(1) else { return Ok(Duration::from_millis(100)) };
        self.clear_doubt()?;
        let who = Claimant { process, lease: rand::random(), time: self.time };
        self.in_doubt = Some(who.lease);
        let (claimed, claims) = self.link.run(|session| session.claim_one(who, room))?;
        self.in_doubt = None;
        self.note_lost(&claims);
        if !claimed.too_much.is_empty() {
            self.link.run(|session| session.give_back(&claimed.too_much, Duration::ZERO))?;
        }
        if !claimed.rows.is_empty() {
            *next = Instant::now() + failpoint::time("brake", EVERY);
            self.brake.let_through(who.lease);
            self.hand_over(claimed.rows, handoff)?;
        }
        Ok(self.poll)
    }

    /// A claim whose commit was in doubt: what it leased was not sent, and would otherwise wait for the lease's end.
    fn clear_doubt(&mut self) -> Result<(), StoreError> {
        if let Some(lease) = self.in_doubt {
            let length = self.time.lease;
            self.link.run(|session| session.give_back_lease(lease, length))?;
            self.in_doubt = None;
        }
        Ok(())
    }

    /// To the workers. As many slots as places: never blocks. Nobody receives only when the workers are gone, and the lease ends
    /// then. Suspects beyond their part of the room are put off: waiting in memory they would keep others out of it.
    fn hand_over(&mut self, rows: Vec<Leased>, handoff: &Sender<Leased>) -> Result<(), StoreError> {
        let (_, _, limit) = self.room.held();
        let mut too_many = Vec::new();
        for leased in rows {
            if !is_suspect(&leased) {
                let _ = handoff.send(leased);
            } else if self.suspects.len() < suspects::room(limit) {
                let _ = self.suspects.send(leased);
            } else {
                too_many.push((leased.id, leased.lease));
            }
        }
        if !too_many.is_empty() {
            let delay = self.put_off.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            self.link.run(|session| session.give_back(&too_many, delay))?;
            self.metrics.given_back_total.inc_by(too_many.len() as u64);
        }
        Ok(())
    }

    /// The largest limit that there is room for, unless that is less than `worth`.
    fn reserve(&self, worth: usize) -> Option<(usize, crate::store::Reservation)> {
        let free = self.room.free_rows().min(self.fitting);
        CLAIM_LIMITS
            .into_iter()
            .rev()
            .filter(|limit| (worth..=free).contains(limit))
            .find_map(|limit| Some((limit, self.room.reserve_rows(limit)?)))
    }

    fn note(&mut self, claims: &Claims, rows: usize, began: Instant) {
        // A claim of a single row that found one is full, but says nothing of a backlog until it is repeated at once.
        self.room.claimed(claims.short, Instant::now());
        self.metrics.commit_duration_seconds.with_label_values(&["claim"]).observe(began.elapsed().as_secs_f64());
        if rows > 0 {
            self.metrics.batch_rows.with_label_values(&["claim"]).observe(rows as f64);
        }
        self.note_lost(claims);
    }

    fn note_lost(&mut self, claims: &Claims) {
        if let Some(error) = &claims.history_refused
            && let Some(note) = self.throttle.admit("history", Instant::now())
        {
            log::error!(
                "PostgreSQL refuses the attempts of leases that ran out: {error}; they are taken without their history{note}"
            );
        }
        if claims.lost > 0 {
            self.metrics.attempts_total.with_label_values(&["lost"]).inc_by(claims.lost as u64);
            log::warn!(rows = claims.lost; "{} of the claimed deliveries had leases that ran out", claims.lost);
        }
    }
}
