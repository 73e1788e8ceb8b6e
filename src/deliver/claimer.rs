//! The claimer: one thread takes what is due, in batches, and hands it to the workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use crate::failpoint::failpoint;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::pulse;
use crate::ops::stop::Stop;
use crate::ops::throttle::Throttle;
use crate::store::{CLAIM_LIMITS, Claimant, Claims, Floor, LeaseTime, Leased, Link, ProcessId, Room, StoreError};

/// The longest time without a look, whatever the load: a lost wake-up costs a second, not a delivery. Somewhat less than the
/// second for which a short claim lets fresh rows be born leased.
const POLL: Duration = Duration::from_millis(800);

/// Takes what is due.
pub struct Claimer {
    /// Its own connection.
    pub link: Link,
    /// Where slots are reserved before a claim.
    pub room: Arc<Room>,
    /// Length of leases.
    pub time: LeaseTime,
    /// Longest time without a look; [`Claimer::POLL`] but for tests that prove the wake-up.
    pub poll: Duration,
    /// See `Flow::unsettled`.
    pub unsettled: Arc<AtomicBool>,
    /// Series.
    pub metrics: Metrics,
    /// How many rows fitted into the room last time; begin with any number.
    pub fitting: usize,
    /// Lease of a claim that failed; begin with none.
    pub in_doubt: Option<i64>,
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
        let mut throttle = Throttle::per_minute();
        let mut rest = Duration::ZERO;
        loop {
            // `rest` is at most `poll`, which is an hour in a test.
            pulse::at("waiting until something is due", pulse::PROMPT.map(|bound| bound + self.poll));
            failpoint("thread-claimer");
            // The token is taken before the look: what becomes due during the look leaves another one.
            select! {
                recv(self.stop.signal()) -> _ => return Ok(()),
                recv(wake) -> _ => {}
                recv(self.room.on_freed) -> _ => {}
                default(rest) => {}
            }
            if self.unsettled.load(Ordering::Acquire) {
                rest = Duration::from_millis(100);
                continue;
            }
            pulse::at("claiming", pulse::REMOTE);
            rest = match self.turn(process, &mut floor, handoff) {
                Ok(rest) => {
                    self.health.go("claimer", "postgres");
                    rest
                }
                Err(error) => {
                    floor.reset();
                    self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
                    if let Some(note) = throttle.admit(error.kind(), Instant::now()) {
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
        let Some((limit, room)) = self.reserve() else {
            self.room.want(CLAIM_LIMITS[1]);
            return Ok(self.poll);
        };
        // A claim whose commit was in doubt: what it leased was not sent, and would otherwise wait for the lease's end.
        if let Some(lease) = self.in_doubt {
            let length = self.time.lease;
            self.link.run(|session| session.give_back_lease(lease, length))?;
            self.in_doubt = None;
        }
        let who = Claimant { process, lease: rand::random(), time: self.time };
        let now = Instant::now();
        let from = floor.take(now);
        self.in_doubt = Some(who.lease);
        let (claimed, claims) = self.link.run(|session| session.claim(limit, who, from, room))?;
        self.in_doubt = None;
        floor.learn(&claims);
        let rows = claimed.rows.len();
        self.note(limit, &claims, rows, now);
        // Large payloads fill the room before the rows do: claim no more than fits, and try more again bit by bit.
        self.fitting = if claimed.too_much.is_empty() { self.fitting * 2 } else { rows }.clamp(1, CLAIM_LIMITS[3]);
        for leased in claimed.rows {
            // As many slots as places: never blocks. Nobody receives only when the workers are gone, and the lease ends then.
            let _ = handoff.send(leased);
        }
        if !claimed.too_much.is_empty() {
            self.link.run(|session| session.give_back(&claimed.too_much))?;
            self.metrics.given_back_total.inc_by(claimed.too_much.len() as u64);
            // Memory is full of large payloads: a moment, so that workers can take some, and not a loop of claims.
            return Ok(Duration::from_millis(100));
        }
        if !claims.short {
            return Ok(Duration::ZERO);
        }
        let next = self.link.run(|session| session.next_due(from))?;
        // Due, and yet nothing was claimed: paused, or another's transaction holds it. Then looking at once is no use.
        let least = if rows == 0 { Duration::from_millis(100) } else { Duration::from_millis(1) };
        Ok(next.map_or(self.poll, |next| next.clamp(least.min(self.poll), self.poll)))
    }

    /// The largest limit that there is room for.
    fn reserve(&self) -> Option<(usize, crate::store::Reservation)> {
        let free = self.room.free_rows().min(self.fitting);
        CLAIM_LIMITS
            .into_iter()
            .rev()
            .filter(|limit| *limit <= free)
            .find_map(|limit| Some((limit, self.room.reserve_rows(limit)?)))
    }

    fn note(&self, limit: usize, claims: &Claims, rows: usize, began: Instant) {
        // A claim of a single row that found one is full, but says nothing of a backlog until it is repeated at once.
        self.room.claimed(claims.short, Instant::now());
        self.metrics.commit_duration_seconds.with_label_values(&["claim"]).observe(began.elapsed().as_secs_f64());
        if rows > 0 {
            self.metrics.batch_rows.with_label_values(&["claim"]).observe(rows as f64);
        }
        if claims.lost > 0 {
            self.metrics.attempts_total.with_label_values(&["lost"]).inc_by(claims.lost as u64);
            log::warn!(rows = claims.lost; "{} of {rows} claimed deliveries had leases that ran out (limit {limit})", claims.lost);
        }
    }
}
