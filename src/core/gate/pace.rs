//! The paced opening: the request rate grows until overload shows, shrinks then, and grows on; and it is no limit at all once it
//! has not been one for a while.
//!
//! The rate and not the concurrency: against a service that refuses fast, concurrency alone meets it with many times its
//! capacity (reference simulation: 12,000 to 86,000 useless requests in 100 s; by the rate, 340).

use std::time::Duration;

/// The rate that an opening begins with, per second.
const FIRST: f64 = 20.0;
/// No decrease goes below it: with fewer answers than this nothing can be learnt.
const LEAST: f64 = 1.0;
/// A rate that was not the limit for so long is forgotten.
const FORGET: Duration = Duration::from_secs(30);
/// Overload: more than this share of the answers since the last decision.
const SHARE: f64 = 0.05;
/// Answers that a decision takes, at the least; fewer after a second.
const ANSWERS: u64 = 50;
const FEW_ANSWERS: u64 = 10;
/// A run without a failure in which so many were to be expected is not by chance: one in 20 is that long (e^-3).
const RUN: f64 = 3.0;
/// Between two decisions, at the least.
const APART: Duration = Duration::from_millis(250);
/// Over less than these seconds no rate is measured, and none is lowered: it would be too far below what was accepted.
const MOMENT: f64 = 0.05;
/// The time in which the rate doubles until overload shows, and its growth per second from then on.
const DOUBLES: f64 = 0.5;
const GROWS: f64 = 0.05;
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
    /// The decreases whose effect is awaited.
    before: Option<Before>,
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
    /// `begun` when the first overload was answered.
    clean: u64,
}

impl Counts {
    /// The share of overloads.
    fn share(&self) -> f64 {
        self.overloads as f64 / self.begun.max(self.answers).max(1) as f64
    }

    /// Their share from the first one on, without it, where more went well before it than do by chance: what a service has in
    /// reserve hides an overload for a moment, and the share of the whole would be that of a much smaller one.
    fn share_once_seen(&self) -> f64 {
        let rest = self.begun.max(self.answers).saturating_sub(self.clean);
        let share = self.overloads.saturating_sub(1) as f64 / rest.max(1) as f64;
        if rest >= FEW_ANSWERS && self.clean as f64 * share > RUN { share.max(self.share()) } else { self.share() }
    }
}

/// What there was before the first of some decreases in a row, and what they come to.
#[derive(Debug, Clone, Copy)]
struct Before {
    share: f64,
    rate: f64,
    ceiling: f64,
    factor: f64,
}

impl Before {
    /// Whether failures became fewer as they do when it was our rate that caused them: then as many are accepted as before,
    /// and otherwise fewer by the same factor. In between lies the geometric mean. A share that is no longer too large never gets here.
    ///
    /// A share that is much smaller than before says the same; one that is larger, that the first was seen too early (what a
    /// service has in reserve hides an overload for a moment), and nothing else.
    fn is_of_our_making(&self, share: f64) -> bool {
        let is_alike = (0.6..1.25).contains(&(share / self.share.max(1e-9)));
        !is_alike || self.factor * (1.0 - share) / (1.0 - self.share).max(1e-9) > self.factor.sqrt()
    }
}

/// How many more of `n` than their mean share may fail by chance: two standard deviations.
fn by_chance(share: f64, n: u64) -> f64 {
    2.0 * (n as f64 * share * (1.0 - share)).max(0.0).sqrt()
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
            before: None,
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
        if overload && self.since.overloads == 0 {
            self.since.clean = self.since.begun;
        }
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
        let most = SHARE + tolerated;
        // What a decrease has done is looked at twice as long: taken for a success by chance, it would not be undone.
        let answers_needed = if self.before.is_some() { ANSWERS * 2 } else { ANSWERS };
        let enough = |n: u64, time_for_few: Duration| n >= if time >= time_for_few { FEW_ANSWERS } else { answers_needed };
        let begun = begun.max(answers);
        let is_too_much = overloads as f64 > most * begun as f64 + by_chance(tolerated, begun);
        if is_too_much && time.as_secs_f64() >= MOMENT && enough(answers, APART * 4) {
            self.decrease(self.measured(now), now);
        } else if overloads as f64 <= most * answers as f64 && time >= APART && enough(answers, APART * 2) {
            self.before = None;
            self.increase(self.measured(now), time, now);
        } else {
            return;
        }
        (self.since, self.decided_at) = (Counts::default(), now);
        self.tokens = self.tokens.min(1.0);
    }

    fn decrease(&mut self, measured: f64, now: Duration) {
        let share = self.since.share();
        if let Some(before) = self.before.filter(|before| !before.is_of_our_making(share)) {
            // Where nothing limited it, a backlog of the meantime must not come all at once.
            (self.rate, self.ceiling) = (Some(before.rate), before.ceiling);
            self.tolerated = (share.max(before.share), now + TOLERATED);
            (self.before, self.limiting_at) = (None, now);
            return;
        }
        // By a fifth, or at once to just below what was accepted, where that is less.
        let factor = (0.9 * (1.0 - share)).clamp(0.3, 0.8);
        let first = self.before.unwrap_or(Before {
            share: self.since.share_once_seen(),
            rate: self.rate.unwrap_or(measured),
            ceiling: self.rate.map_or(measured, |_| self.ceiling),
            factor: 1.0,
        });
        self.before = Some(Before { share: share.max(first.share), factor: first.factor * factor, ..first });
        let rate = (self.rate().min(measured) * factor).max(LEAST);
        (self.rate, self.ceiling, self.limiting_at) = (Some(rate), rate, now);
    }

    fn increase(&mut self, measured: f64, time: Duration, now: Duration) {
        let Some(rate) = self.rate else { return };
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
        if self.rate.is_some() && now.saturating_sub(self.limiting_at) > FORGET && self.since.answers == 0 {
            self.rate = None;
        }
    }

    pub(super) fn limits(&self) -> bool {
        self.rate().is_finite()
    }
}
