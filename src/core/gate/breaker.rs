//! The breaker: shuts after failures in a row, then lets probes through, one at a time.

use std::time::Duration;

use super::{Report, Settings};
use crate::core::fault::Whose;
use crate::core::outcome::Outcome;

/// After so many failed probes they come further and further apart.
const PROBES_AT_FULL_PACE: u32 = 20;

/// The run of failures, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Deliveries that have failed since the last acceptance; each counts once.
    run: Vec<i64>,
    /// Their classes, in the order of [`Outcome::ALL`].
    classes: [u32; Outcome::ALL.len()],
    /// Some of the run had never failed by themselves: not only poison speaks against the service.
    fresh_failed: bool,
    /// When the first of them failed.
    since: Duration,
    shut: Option<Shut>,
    /// When it last opened: what was sent before that says nothing any more.
    opened_at: Duration,
}

/// Nothing but probes.
#[derive(Debug)]
struct Shut {
    why: Outcome,
    probe_at: Duration,
    /// One is under way.
    probing: bool,
    failed_probes: u32,
}

/// Whether a probe may be claimed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Yes.
    Now,
    /// Not before this time.
    At(Duration),
    /// Its answer is awaited.
    UnderWay,
}

impl Breaker {
    pub(super) fn is_shut(&self) -> bool {
        self.shut.is_some()
    }

    /// Neither shut nor on the way there.
    pub(super) fn is_at_rest(&self) -> bool {
        self.shut.is_none() && self.run.is_empty()
    }

    /// When the first failure of the run was.
    pub(super) fn since(&self) -> Duration {
        self.since
    }

    pub(super) fn opened_at(&self) -> Duration {
        self.opened_at
    }

    /// The class that most of the run's failures had, while shut.
    pub(super) fn why(&self) -> Option<Outcome> {
        self.shut.as_ref().map(|shut| shut.why)
    }

    pub(super) fn next_probe(&self) -> Option<Duration> {
        self.shut.as_ref().map(|shut| shut.probe_at)
    }

    /// Accepted. Returns whether this opens it: only a probe does, for what was sent before the service failed may be answered
    /// after it.
    pub(super) fn accepted(&mut self, is_probe: bool, now: Duration) -> bool {
        match &self.shut {
            Some(_) if !is_probe => false,
            Some(_) => {
                self.forget_run();
                self.shut = None;
                self.opened_at = now;
                true
            }
            None => {
                self.forget_run();
                false
            }
        }
    }

    fn forget_run(&mut self) {
        self.run.clear();
        self.classes = Default::default();
        self.fresh_failed = false;
    }

    /// Failed. Returns whether this shuts it.
    ///
    /// A suspect's own failures do not count, so that poison among good ones never shuts it. Those that are the service's (none
    /// other was accepted since its previous attempt) do: an outage that meets nothing but suspects is an outage, too.
    pub(super) fn failed(&mut self, report: &Report, settings: &Settings, now: Duration, jitter: f64) -> bool {
        self.fresh_failed |= !report.suspect && report.started >= self.opened_at;
        if let Some(shut) = &mut self.shut {
            if report.probe {
                shut.probing = false;
                shut.failed_probes = shut.failed_probes.saturating_add(1);
                shut.why = report.outcome;
            }
            return false;
        }
        if (report.suspect && report.whose == Whose::Own) || report.started < self.opened_at || self.run.contains(&report.id) {
            return false;
        }
        if self.run.is_empty() {
            self.since = now;
        }
        self.run.push(report.id);
        if let Some(n) = Outcome::ALL.iter().position(|outcome| *outcome == report.outcome) {
            self.classes[n] += 1;
        }
        if self.run.len() < settings.shut_after {
            return false;
        }
        let most =
            Outcome::ALL.into_iter().zip(self.classes).max_by_key(|(_, n)| *n).map_or(report.outcome, |(outcome, _)| outcome);
        let probe_at = now + jittered(settings.probe_interval(0), jitter);
        self.shut = Some(Shut { why: most, probe_at, probing: false, failed_probes: 0 });
        true
    }

    /// `arrived`: a delivery that was never tried has come just now. While none such has failed, the run was of suspects only,
    /// and it need not wait for the next probe: it is one.
    pub(super) fn probe(&self, now: Duration, arrived: bool) -> Probe {
        match &self.shut {
            Some(shut) if shut.probing => Probe::UnderWay,
            Some(shut) if now >= shut.probe_at || (arrived && !self.fresh_failed) => Probe::Now,
            Some(shut) => Probe::At(shut.probe_at),
            None => Probe::At(now),
        }
    }

    /// A probe has been claimed; the next one's time counts from here.
    pub(super) fn probing(&mut self, settings: &Settings, now: Duration, jitter: f64) {
        if let Some(shut) = &mut self.shut {
            shut.probing = true;
            shut.probe_at = now + jittered(settings.probe_interval(shut.failed_probes), jitter);
        }
    }

    /// The probe was not sent.
    pub(super) fn not_probed(&mut self) {
        if let Some(shut) = &mut self.shut {
            shut.probing = false;
        }
    }
}

impl Settings {
    fn probe_interval(&self, failed_probes: u32) -> Duration {
        let doublings = failed_probes.saturating_sub(PROBES_AT_FULL_PACE - 1);
        self.probe_every.saturating_mul(2u32.saturating_pow(doublings)).min(self.probe_cap)
    }
}

/// Within 20 % of `interval`: several processes do not probe in step.
fn jittered(interval: Duration, jitter: f64) -> Duration {
    interval.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_come_further_apart_after_twenty_that_failed() {
        let settings =
            Settings { probe_every: Duration::from_secs(5), probe_cap: Duration::from_secs(30), ..Settings::default() };
        let seconds = |n| settings.probe_interval(n).as_secs();
        assert_eq!([0, 1, 19, 20, 21, 22, 1000].map(seconds), [5, 5, 5, 10, 20, 30, 30]);
        let eager = Settings { probe_cap: Duration::from_secs(1), ..settings };
        assert_eq!([0, 1000].map(|n| eager.probe_interval(n).as_secs()), [1, 1], "the cap caps");
    }
}
