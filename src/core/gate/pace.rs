//! The paced opening: the request rate grows until overload shows, shrinks then, and grows on; and it is no limit at all once it
//! has not been one for a while.
//!
//! The rate and not the concurrency: against a service that refuses fast, concurrency alone meets it with many times its
//! capacity (reference simulation: 12,000 to 86,000 useless requests in 100 s; by the rate, 340).
//!
//! Once more than a twentieth of the answers say "too much", the rate falls to just below what was accepted, and a trial begins.
//! Was it our rate, then hardly any of these failures are left. If they are, the rate falls once more, and only if that does not
//! help either, they are not of our making: both decreases are undone, and that share of failures is tolerated for a while. The
//! second trial is there because what a service has in reserve hides an overload for a moment: the share before the first
//! decrease may be far too small, and a decrease that was undone by mistake once met a service with 1.5 times its capacity.
//! From the rate of a decrease on it grows slowly, so that it stays close to what the service bears; half as much again is a
//! sign that it bears more now, or that the decrease was a mistake, and it doubles as in an opening.

use std::time::Duration;

/// The rate that an opening begins with, per second.
const FIRST: f64 = 20.0;
/// No decrease goes below it: with fewer answers than this nothing can be learnt.
const LEAST: f64 = 1.0;
/// A rate that was not the limit for so long is forgotten.
const FORGET: Duration = Duration::from_secs(30);
/// Overload: more than this share of the answers since the last decision.
const SHARE: f64 = 0.05;
/// Answers that a decision takes, at the least; fewer after half a second.
const ANSWERS: u64 = 50;
const FEW_ANSWERS: u64 = 10;
/// Overload is plain, however few the answers, where it is beyond [`SHARE`] by three standard deviations, and so many.
const PLAIN: u64 = 4;
/// Between two decisions, at the least.
const APART: Duration = Duration::from_millis(250);
/// For so long the effect of a decrease is looked at, unless twice [`ANSWERS`] come sooner.
const TRIAL: Duration = Duration::from_secs(2);
/// It has helped if no more than this part of the share of overloads is left.
const LEFT: f64 = 1.0 / 3.0;
/// Over less than these seconds no rate is measured, and none is lowered: it would be too far below what was accepted.
const MOMENT: f64 = 0.05;
/// The time in which the rate doubles until overload shows, and its growth per second from then on.
const DOUBLES: f64 = 0.5;
const GROWS: f64 = 0.05;
/// So far above the rate of the last decrease, that one says nothing any more, and the rate doubles again.
const BEYOND: f64 = 1.5;
/// Failures that are not of our making are left alone for so long.
const TOLERATED: Duration = Duration::from_secs(10);
/// The tokens that may gather, in seconds of the rate: timers wake late, and then a few starts are made up for.
const BURST: f64 = 0.02;

/// The request rate.
#[derive(Debug)]
pub(super) struct Pace {
    /// `None`: it limits nothing.
    rate: Option<f64>,
    /// Up to here it doubles; above it grows slowly.
    ceiling: f64,
    /// `downstream.rate_limit`
    limit: Option<f64>,
    tokens: f64,
    filled_at: Duration,
    /// Since the last decision.
    since: Counts,
    decided_at: Duration,
    trial: Option<Trial>,
    /// A share of failures that no decrease lowers, and until when it is left alone.
    tolerated: (f64, Duration),
    /// When it last was the limit.
    limiting_at: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// All that began.
    starts: u64,
    /// Those of them whose answers count.
    begun: u64,
    answers: u64,
    overloads: u64,
}

impl Counts {
    /// The share of overloads.
    fn share(&self) -> f64 {
        self.overloads as f64 / self.begun.max(self.answers).max(1) as f64
    }
}

/// A decrease whose effect is awaited.
#[derive(Debug, Clone, Copy)]
struct Trial {
    /// The share of overloads before it.
    share: f64,
    /// The one before it did not help either.
    is_second: bool,
    /// Where to go back to, should neither help.
    rate: f64,
    ceiling: f64,
}

/// How many more of `n` than their mean share may fail by chance: two standard deviations.
fn by_chance(share: f64, n: f64) -> f64 {
    2.0 * (n * share * (1.0 - share)).max(0.0).sqrt()
}

impl Pace {
    pub(super) fn new(limit: Option<f64>, now: Duration) -> Self {
        Self {
            rate: None,
            ceiling: f64::INFINITY,
            limit,
            tokens: 1.0,
            filled_at: now,
            since: Counts::default(),
            decided_at: now,
            trial: None,
            tolerated: (0.0, now),
            limiting_at: now,
        }
    }

    /// Requests per second; infinite while nothing limits them.
    pub(super) fn rate(&self) -> f64 {
        self.rate.unwrap_or(f64::INFINITY).min(self.limit.unwrap_or(f64::INFINITY))
    }

    pub(super) fn set_limit(&mut self, limit: Option<f64>) {
        self.limit = limit;
    }

    /// The gate has opened: nobody knows what the service bears now.
    pub(super) fn open(&mut self, now: Duration) {
        *self = Self { rate: Some(FIRST), limiting_at: now, tokens: 0.0, ..Self::new(self.limit, now) };
    }

    /// The service has asked for a pause of `pause`. What it bore until now was too much: a short pause ends a fifth below that, a
    /// long one with an opening up to there.
    pub(super) fn pause(&mut self, pause: Duration, now: Duration) {
        let bore = (self.measured(now).min(self.rate()) * 0.8).max(FIRST);
        let first = if pause > Duration::from_secs(5) { FIRST } else { bore };
        // Nothing was accepted since the last pause: then it is down, and nobody knows what it will bear. 20 a second is no ceiling.
        let is_down = self.since.answers <= self.since.overloads;
        let (first, rate) = if is_down { (FIRST, f64::INFINITY) } else { (first, bore) };
        let end = now + pause;
        *self = Self { rate: Some(first), ceiling: rate, limiting_at: end, tokens: 0.0, ..Self::new(self.limit, end) };
    }

    /// Takes a token, or says how long until there is one.
    pub(super) fn take(&mut self, counts: bool, now: Duration) -> Result<(), Duration> {
        let rate = self.rate();
        if rate.is_finite() {
            let most = (rate * BURST).max(1.0);
            self.tokens = (self.tokens + rate * now.saturating_sub(self.filled_at).as_secs_f64()).min(most);
            self.filled_at = self.filled_at.max(now);
            // A billionth is rounding.
            if self.tokens < 1.0 - 1e-9 {
                let wait = Duration::from_secs_f64((1.0 - self.tokens) / rate) + Duration::from_nanos(1);
                return Err(wait + self.filled_at.saturating_sub(now));
            }
            self.tokens -= 1.0;
        }
        self.since.starts += 1;
        self.since.begun += u64::from(counts);
        Ok(())
    }

    /// Starts and good answers that were not reported one by one.
    pub(super) fn add(&mut self, starts: u64, answers: u64) {
        self.since.starts += starts;
        self.since.begun += starts;
        self.since.answers += answers;
    }

    /// An answer to a request that began at `started`. What began before the last decision says nothing about it.
    pub(super) fn answered(&mut self, overload: bool, started: Duration, now: Duration) {
        if self.rate.is_none() && now.saturating_sub(self.decided_at) > Duration::from_secs(2) {
            // Without a rate nobody decides while all goes well: what is old must not hide what happens now.
            (self.since, self.decided_at) = (Counts::default(), now);
        } else if self.rate.is_some() && started < self.decided_at {
            return;
        }
        self.since.answers += 1;
        self.since.overloads += u64::from(overload);
        self.decide(now);
    }

    /// Starts per second since the last decision.
    fn measured(&self, now: Duration) -> f64 {
        self.since.starts as f64 / now.saturating_sub(self.decided_at).as_secs_f64().max(MOMENT)
    }

    /// Refusals may come long before what was accepted with them: their share of all that began is known to be so large, and
    /// their share of the answers is not larger than that in the end.
    fn decide(&mut self, now: Duration) {
        let Counts { begun, answers, overloads, .. } = self.since;
        let time = now.saturating_sub(self.decided_at);
        let tolerated = if now < self.tolerated.1 { self.tolerated.0 } else { 0.0 };
        let (n, bad) = (begun.max(answers) as f64, overloads as f64);
        let most = SHARE + tolerated;
        let is_plain = overloads >= PLAIN && bad > most * n + 3.0 * (most * n).sqrt();
        let is_enough = |time_for_few, many| answers >= if time >= time_for_few { FEW_ANSWERS } else { many };
        let is_too_soon = time.as_secs_f64() < MOMENT;
        if let Some(trial) = self.trial {
            if is_too_soon || !(is_enough(TRIAL, ANSWERS * 2) || is_plain && !trial.is_second) {
                return;
            }
            if self.since.share() > trial.share * LEFT {
                if trial.is_second {
                    self.undo(trial, now)
                } else {
                    self.decrease(Some(trial), now)
                }
                return;
            }
            self.trial = None;
        }
        let is_too_much = bad > most * n + by_chance(tolerated, n);
        if is_too_much && !is_too_soon && (is_plain || is_enough(APART * 2, ANSWERS)) {
            self.decrease(None, now);
        } else if bad <= most * answers as f64 && time >= APART && is_enough(APART * 2, ANSWERS) {
            self.increase(time, now);
        }
    }

    /// The next decision is about what begins from now on.
    fn decided(&mut self, now: Duration) {
        (self.since, self.decided_at) = (Counts::default(), now);
        self.tokens = self.tokens.min(1.0);
    }

    /// By a fifth, or at once to just below what was accepted, where that is less.
    fn decrease(&mut self, failed: Option<Trial>, now: Duration) {
        let (measured, share) = (self.measured(now), self.since.share());
        // Where nothing limited it, a backlog of the meantime must not come all at once.
        let from = self.rate.map_or((measured, measured), |rate| (rate, self.ceiling));
        let (rate, ceiling) = failed.map_or(from, |failed| (failed.rate, failed.ceiling));
        self.trial = Some(Trial { share, is_second: failed.is_some(), rate, ceiling });
        let factor = (0.9 * (1.0 - share)).clamp(0.3, 0.8);
        let rate = (self.rate().min(measured) * factor).max(LEAST);
        (self.rate, self.ceiling, self.limiting_at) = (Some(rate), rate, now);
        self.decided(now);
    }

    /// These failures are not of our making.
    fn undo(&mut self, trial: Trial, now: Duration) {
        self.tolerated = (self.since.share(), now + TOLERATED);
        (self.rate, self.ceiling, self.limiting_at, self.trial) = (Some(trial.rate), trial.ceiling, now, None);
        self.decided(now);
    }

    fn increase(&mut self, time: Duration, now: Duration) {
        let measured = self.measured(now);
        self.decided(now);
        let Some(rate) = self.rate else { return };
        if rate > self.ceiling * BEYOND {
            self.ceiling = f64::INFINITY;
        }
        if measured >= 0.8 * rate {
            let doubled = rate * 2f64.powf(time.as_secs_f64() / DOUBLES).min(2.0);
            let grown = rate * (1.0 + GROWS * time.as_secs_f64().min(20.0));
            self.rate = Some(if rate < self.ceiling { doubled.min(self.ceiling).max(grown) } else { grown });
            self.limiting_at = now;
        } else if now.saturating_sub(self.limiting_at) > FORGET {
            self.rate = None;
        }
    }

    /// Nobody reports while nothing happens: a rate that is not the limit is forgotten then, too.
    pub(super) fn look(&mut self, now: Duration) {
        if self.rate.is_some() && now.saturating_sub(self.limiting_at) > FORGET && self.since.answers < FEW_ANSWERS {
            (self.rate, self.trial) = (None, None);
        }
    }

    pub(super) fn limits(&self) -> bool {
        self.rate().is_finite()
    }
}
