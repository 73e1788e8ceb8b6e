//! Permits: `core::gate` behind a lock. Workers ask before each request and report each answer, the claimer asks what it may
//! claim. While the gate is open and limits nothing, both cost an atomic or two.
//!
//! Who has to wait for a permit waits in a turnstile: one worker at a time looks at the clock, the others sleep.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::notices::Notices;
use crate::config::Config;
use crate::core::fault::Whose;
use crate::core::gate::{Ask, Gate, Probe, Report, Settings};
use crate::core::outcome::Outcome;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::pulse;
use crate::ops::stop::Stop;
use crate::store::{GateBoard, Leased, Room, Tried};

/// A pause that the service asks for and that is shorter than this is waited for with the delivery in hand.
const SHORT_PAUSE: Duration = Duration::from_secs(1);

/// Shared by the workers, the claimer and whoever reloads.
#[derive(Debug)]
pub struct Permits {
    inner: Mutex<Inner>,
    /// Nobody needs to ask, and good answers need no report: the gate is open, without a limit and without a run of failures.
    quiet: AtomicBool,
    /// Starts and good answers while it is quiet, for the next who holds the lock.
    starts: AtomicU64,
    accepted: AtomicU64,
    /// Times are since then.
    origin: Instant,
    turnstile: (Sender<()>, Receiver<()>),
    changed: Sender<()>,
    /// A token when the gate has changed: for the claimer.
    pub on_changed: Receiver<()>,
    room: Arc<Room>,
}

#[derive(Debug)]
struct Inner {
    gate: Gate,
    notices: Notices,
    /// As last told to the room.
    pace: f64,
}

/// What the claimer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Claim what is due.
    Claim,
    /// Claim one delivery as a probe.
    Probe,
    /// Nothing before this.
    Rest(Duration),
}

/// What came of a request, for the gate.
#[derive(Debug)]
pub struct Answered<'a> {
    /// The delivery.
    pub leased: &'a Leased,
    /// When its request began.
    pub started: Instant,
    /// The attempt.
    pub tried: &'a Tried,
    /// It looks as if the service had too much to do.
    pub overload: bool,
    /// By `core::fault`.
    pub whose: Whose,
    /// What the service asked for.
    pub retry_after: Option<Duration>,
}

impl Permits {
    /// Open. `file` is the pipeline's, `open` counts the deliveries that wait.
    pub fn new(
        settings: Settings,
        file: &Path,
        room: Arc<Room>,
        metrics: Metrics,
        health: Health,
        board: Arc<GateBoard>,
        open: Arc<AtomicI64>,
    ) -> Arc<Self> {
        let gate = Gate::new(settings, Duration::ZERO);
        let origin = Instant::now();
        let notices = Notices::new(file, origin, metrics, health, board, open);
        let turnstile = bounded(1);
        // The token that lets one through; it never leaves for good.
        let _ = turnstile.0.try_send(());
        let (changed, on_changed) = bounded(1);
        let inner = Mutex::new(Inner { gate, notices, pace: f64::INFINITY });
        let (quiet, starts, accepted) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let permits = Self { inner, quiet, starts, accepted, origin, turnstile, changed, on_changed, room };
        permits.publish(&mut permits.lock());
        Arc::new(permits)
    }

    /// What a configuration asks of the gate.
    pub fn settings(config: &Config) -> Settings {
        plain_backoff(Settings {
            shut_after: config.gate.shut_after,
            probe_every: config.gate.probe_every,
            probe_cap: config.gate.probe_cap,
            rate_limit: config.downstream.rate_limit.map(|limit| f64::from(limit.get())),
            paces: true,
        })
    }

    /// The configuration was reloaded.
    pub fn reload(&self, config: &Config) {
        let mut inner = self.lock();
        inner.gate.set(Self::settings(config));
        self.publish(&mut inner);
        self.wake();
    }

    /// Waits until `leased` may be sent; `false`: it has to be given back, because the gate is shut, its time is up or all stops.
    pub fn start(&self, leased: &Leased, stop: &Stop) -> bool {
        if leased.probe {
            return true;
        }
        let is_suspect = is_suspect(leased);
        if self.quiet.load(Ordering::Acquire) {
            self.starts.fetch_add(u64::from(!is_suspect), Ordering::Relaxed);
            return true;
        }
        let left = leased.deadline.saturating_duration_since(Instant::now());
        // The deadline bounds it, twice: once for the turn, once for the permit.
        pulse::at("waiting for a permit", pulse::PROMPT.map(|bound| bound + left));
        select! {
            recv(self.turnstile.1) -> _ => {}
            recv(stop.signal()) -> _ => return false,
            default(left) => return false,
        }
        let _turn = Turn(&self.turnstile.0);
        loop {
            let now = self.now();
            let wait = {
                let mut inner = self.lock();
                match inner.gate.start(is_suspect, now) {
                    Ask::Start => return true,
                    Ask::Shut => return false,
                    Ask::Wait(wait) => wait,
                    Ask::Held(until) if until.saturating_sub(now) > SHORT_PAUSE => return false,
                    Ask::Held(until) => until.saturating_sub(now),
                }
            };
            let left = leased.deadline.saturating_duration_since(Instant::now());
            if wait >= left || stop.wait(wait) {
                return false;
            }
        }
    }

    /// Whether a suspect may be next.
    pub fn take_suspect(&self, others_are_due: bool) -> bool {
        !others_are_due || self.lock().gate.take_suspect(true)
    }

    /// `leased` was let through, and is not sent.
    pub fn not_sent(&self, leased: &Leased) {
        if leased.probe {
            let mut inner = self.lock();
            inner.gate.probe_not_sent();
            self.publish(&mut inner);
            self.wake();
        }
    }

    /// Takes what came of a request; returns whether the gate is shut now.
    pub fn report(&self, answered: &Answered<'_>) -> bool {
        let Answered { leased, tried, .. } = answered;
        if tried.outcome == Outcome::Delivered && !leased.probe && self.quiet.load(Ordering::Acquire) {
            self.accepted.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let report = Report {
            id: leased.id,
            started: answered.started.saturating_duration_since(self.origin),
            outcome: tried.outcome,
            overload: answered.overload,
            whose: answered.whose,
            suspect: is_suspect(leased),
            probe: leased.probe,
            retry_after: answered.retry_after,
        };
        let mut inner = self.lock();
        let Inner { gate, notices, .. } = &mut *inner;
        let now = self.now();
        let change = gate.report(&report, now, rand::random());
        notices.answered(&report, tried, gate);
        if let Some(change) = change {
            notices.changed(&change, gate, now);
        }
        self.publish(&mut inner);
        if change.is_some() || report.probe {
            self.wake();
        }
        inner.gate.is_shut()
    }

    /// What the claimer may do now. `arrived`: something that was never tried has come just now.
    pub fn plan(&self, arrived: bool) -> Plan {
        if self.quiet.load(Ordering::Acquire) {
            return Plan::Claim;
        }
        let mut inner = self.lock();
        let now = self.now();
        inner.gate.look(now);
        self.publish(&mut inner);
        if inner.gate.is_shut() {
            return match inner.gate.probe(now, arrived) {
                Probe::Now => Plan::Probe,
                Probe::At(at) => Plan::Rest(at.saturating_sub(now).max(Duration::from_millis(1))),
                // A token says when its answer is there.
                Probe::UnderWay => Plan::Rest(Duration::from_secs(1)),
            };
        }
        match inner.gate.held_until(now) {
            Some(until) => Plan::Rest(until - now),
            None => Plan::Claim,
        }
    }

    /// The claimer has claimed a probe, and hands it over.
    pub fn probe_claimed(&self) {
        let mut inner = self.lock();
        let now = self.now();
        inner.gate.probe_claimed(now, rand::random());
        self.publish(&mut inner);
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.gate.add(self.starts.swap(0, Ordering::Relaxed), self.accepted.swap(0, Ordering::Relaxed));
        inner
    }

    /// One token says it; a second would say nothing more.
    fn wake(&self) {
        let _ = self.changed.try_send(());
    }

    /// Tells everybody how the gate stands.
    fn publish(&self, inner: &mut Inner) {
        let now = self.now();
        self.quiet.store(inner.gate.is_quiet(now), Ordering::Release);
        let pace = inner.gate.rate(now);
        if pace.to_bits() != inner.pace.to_bits() {
            inner.pace = pace;
            self.room.set_pace(pace);
        }
        inner.notices.show(&inner.gate, now);
    }
}

/// The place in the turnstile: free again when dropped.
struct Turn<'a>(&'a Sender<()>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

/// It has failed by itself.
pub(super) fn is_suspect(leased: &Leased) -> bool {
    !leased.spent.is_zero()
}

/// For the bench only: what the gate is compared with.
#[cfg(feature = "failpoints")]
fn plain_backoff(settings: Settings) -> Settings {
    let is_asked_for = std::env::var_os("TXRELAY_BENCH_PLAIN_BACKOFF").is_some();
    if is_asked_for { Settings { shut_after: usize::MAX, paces: false, ..settings } } else { settings }
}

#[cfg(not(feature = "failpoints"))]
fn plain_backoff(settings: Settings) -> Settings {
    settings
}
