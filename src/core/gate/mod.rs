//! The gate in front of the service: a breaker with probes, a request rate that grows and shrinks, and the suspects' share.
//!
//! Times are since some fixed instant of the process, jitter is drawn by the caller from [0, 1). Who holds it asks before each
//! request ([`Gate::start`]) and reports each answer ([`Gate::report`]). How it does in front of a simulated service
//! stands in `scenarios.rs`.

mod breaker;
mod pace;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod simulation;
pub mod suspects;

use std::time::Duration;

use self::breaker::Breaker;
pub use self::breaker::Probe;
use self::pace::Pace;
use self::suspects::Share;
use super::fault::Whose;
use super::outcome::Outcome;

/// `[gate]` and `downstream.rate_limit`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Failures in a row, from different deliveries, that shut it; at least 1.
    pub shut_after: usize,
    /// Between two probes, +-20 %.
    pub probe_every: Duration,
    /// After many failed ones, up to this.
    pub probe_cap: Duration,
    /// Requests per second; `None`: no limit.
    pub rate_limit: Option<f64>,
    /// Whether it paces the requests; without, it is a breaker only.
    pub paces: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shut_after: 20,
            probe_every: Duration::from_secs(5),
            probe_cap: Duration::from_secs(30),
            rate_limit: None,
            paces: true,
        }
    }
}

/// What came of a request.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// `tx.id`
    pub id: i64,
    /// When it began.
    pub started: Duration,
    /// Its class.
    pub outcome: Outcome,
    /// It looks as if the service had too much to do ([`super::outcome::is_overload`]).
    pub overload: bool,
    /// By [`super::fault::whose`].
    pub whose: Whose,
    /// The delivery had failed by itself before.
    pub suspect: bool,
    /// It was sent while the gate was shut.
    pub probe: bool,
    /// What the service asked for.
    pub retry_after: Option<Duration>,
}

/// The answer to who would like to begin a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Begin.
    Start,
    /// Ask again after this.
    Wait(Duration),
    /// The service has asked for a pause until then.
    Held(Duration),
    /// Only probes.
    Shut,
}

/// The gate has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Shut: the class of most failures, and when the first of the run was.
    Shut {
        /// Class.
        why: Outcome,
        /// First failure of the run.
        since: Duration,
    },
    /// Open again; since when it had failed.
    Opened {
        /// First failure of the run.
        since: Duration,
    },
    /// The service has asked for a pause until then.
    Held {
        /// Its end.
        until: Duration,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Gate {
    settings: Settings,
    breaker: Breaker,
    pace: Pace,
    share: Share,
    held_until: Duration,
}

impl Gate {
    /// Open, and unlimited but for `rate_limit`.
    pub fn new(settings: Settings, now: Duration) -> Self {
        Self {
            settings,
            breaker: Breaker::default(),
            pace: Pace::new(settings.rate_limit, now),
            share: Share::default(),
            held_until: Duration::ZERO,
        }
    }

    /// New settings, from now on.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
        self.pace.set_limit(settings.rate_limit);
    }

    /// Asks for a permit. A probe needs none: see [`Gate::probe_claimed`].
    pub fn start(&mut self, suspect: bool, now: Duration) -> Ask {
        if self.breaker.is_shut() {
            return Ask::Shut;
        }
        if now < self.held_until {
            return Ask::Held(self.held_until);
        }
        self.pace.look(now);
        match self.pace.take(!suspect, now) {
            Ok(()) => {
                if !suspect {
                    self.share.others(1);
                }
                Ask::Start
            }
            Err(wait) => Ask::Wait(wait),
        }
    }

    /// Forgets a rate that has not been the limit for a while: nobody asks while nothing is due.
    pub fn look(&mut self, now: Duration) {
        if !self.is_shut() && now >= self.held_until {
            self.pace.look(now);
        }
    }

    /// Whether a suspect may be next, while others are due or not; if so, it is taken to be.
    pub fn take_suspect(&mut self, others_are_due: bool) -> bool {
        self.share.take(others_are_due)
    }

    /// Starts that nobody asked for, and good answers that nobody reported, while [`Gate::is_quiet`].
    pub fn add(&mut self, starts: u64, accepted: u64) {
        self.pace.add(starts, accepted);
        self.share.others(starts);
    }

    /// Takes what came of a request.
    pub fn report(&mut self, report: &Report, now: Duration, jitter: f64) -> Option<Change> {
        let since = self.breaker.since();
        if report.outcome == Outcome::Delivered {
            if self.breaker.accepted(report.probe, now) {
                self.pace.open(now);
                return Some(Change::Opened { since });
            }
        } else if self.breaker.failed(report, &self.settings, now, jitter) {
            self.hold(report.retry_after, now);
            let why = self.breaker.why().unwrap_or(report.outcome);
            return Some(Change::Shut { why, since: self.breaker.since() });
        }
        if self.settings.paces && !self.breaker.is_shut() && !report.suspect && report.started >= self.breaker.opened_at() {
            self.pace.answered(report.overload, report.started, now);
        }
        let is_failure = report.outcome != Outcome::Delivered;
        if is_failure && self.hold(report.retry_after, now) { Some(Change::Held { until: self.held_until }) } else { None }
    }

    /// Returns whether a pause begins.
    fn hold(&mut self, retry_after: Option<Duration>, now: Duration) -> bool {
        let Some(pause) = retry_after.filter(|pause| !pause.is_zero()) else { return false };
        let was_held = now < self.held_until;
        if !was_held && !self.breaker.is_shut() && self.settings.paces {
            self.pace.pause(pause, now);
        }
        self.held_until = self.held_until.max(now.saturating_add(pause));
        !was_held
    }

    /// Whether a probe may be claimed, while it is shut. `arrived`: a delivery that was never tried has come just now.
    pub fn probe(&self, now: Duration, arrived: bool) -> Probe {
        match self.breaker.probe(now, arrived) {
            Probe::Now if now < self.held_until => Probe::At(self.held_until),
            Probe::At(at) => Probe::At(at.max(self.held_until)),
            other => other,
        }
    }

    /// One has been.
    pub fn probe_claimed(&mut self, now: Duration, jitter: f64) {
        self.breaker.probing(&self.settings, now, jitter);
    }

    /// And was not sent.
    pub fn probe_not_sent(&mut self) {
        self.breaker.not_probed();
    }

    /// Nothing but probes.
    pub fn is_shut(&self) -> bool {
        self.breaker.is_shut()
    }

    /// Until when the service has asked for a pause, where it has.
    pub fn held_until(&self, now: Duration) -> Option<Duration> {
        (now < self.held_until).then_some(self.held_until)
    }

    /// Why it is shut.
    pub fn why(&self) -> Option<Outcome> {
        self.breaker.why()
    }

    /// When the next probe may be claimed, while it is shut.
    pub fn next_probe(&self) -> Option<Duration> {
        self.breaker.next_probe().map(|at| at.max(self.held_until))
    }

    /// Requests per second: 0 while nothing may begin, infinite while nothing limits them.
    pub fn rate(&self, now: Duration) -> f64 {
        if self.is_shut() || now < self.held_until { 0.0 } else { self.pace.rate() }
    }

    /// Open, without a limit and without a run of failures: nobody needs to ask, and good answers need no report but [`Gate::add`].
    pub fn is_quiet(&self, now: Duration) -> bool {
        self.breaker.is_at_rest() && now >= self.held_until && !self.pace.limits()
    }
}
