//! What holds for every sequence of outcomes.

use std::time::Duration;

use proptest::prelude::*;

use super::{Ask, Change, Gate, Probe, Report, Settings};
use crate::core::fault::Whose;
use crate::core::outcome::Outcome;

/// One thing that happens, after some milliseconds.
#[derive(Debug, Clone)]
struct Step {
    wait_ms: u64,
    id: i64,
    outcome: Outcome,
    overload: bool,
    own: bool,
    suspect: bool,
    retry_after_ms: Option<u64>,
    jitter: f64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop::sample::select(Outcome::ALL.to_vec());
    let retry_after = prop::option::weighted(0.05, 0u64..20_000);
    let step = (0u64..3_000, 0i64..200, outcome, any::<bool>(), any::<bool>(), any::<bool>(), retry_after, 0.0f64..1.0).prop_map(
        |(wait_ms, id, outcome, overload, own, suspect, retry_after_ms, jitter)| Step {
            wait_ms: if wait_ms < 2_000 { wait_ms % 20 } else { wait_ms },
            id,
            outcome,
            overload,
            own,
            suspect,
            retry_after_ms,
            jitter,
        },
    );
    // Long runs of failures, too: else the gate would hardly ever shut.
    let bad =
        (1usize..60, prop::sample::select(vec![Outcome::Down, Outcome::Refused, Outcome::Throttled])).prop_map(|(n, outcome)| {
            let one = |id| Step {
                wait_ms: 3,
                id: id as i64 + 1000,
                outcome,
                overload: true,
                own: false,
                suspect: false,
                retry_after_ms: None,
                jitter: 0.5,
            };
            (0..n).map(one).collect::<Vec<_>>()
        });
    prop::collection::vec(prop_oneof![3 => step.prop_map(|one| vec![one]), 1 => bad], 1..80).prop_map(|runs| runs.concat())
}

fn any_settings() -> impl Strategy<Value = Settings> {
    (1usize..40, 1u64..10_000, 1u64..60_000, prop::option::of(1.0f64..2_000.0)).prop_map(
        |(shut_after, every, cap, rate_limit)| Settings {
            shut_after,
            probe_every: Duration::from_millis(every),
            probe_cap: Duration::from_millis(cap),
            rate_limit,
            paces: true,
        },
    )
}

/// Holds a gate as workers and claimer do, with everything that it lets through answered at once.
struct Held {
    gate: Gate,
    now: Duration,
    /// When each request began, since the gate last changed.
    starts: Vec<Duration>,
}

impl Held {
    fn new(settings: Settings) -> Self {
        Self { gate: Gate::new(settings, Duration::ZERO), now: Duration::ZERO, starts: Vec::new() }
    }

    /// Whether a request may begin: as a probe, or with a permit.
    fn begin(&mut self, suspect: bool, jitter: f64) -> Option<bool> {
        match self.gate.start(suspect, self.now) {
            Ask::Start => {
                self.starts.push(self.now);
                Some(false)
            }
            Ask::Shut if self.gate.probe(self.now, false) == Probe::Now => {
                self.gate.probe_claimed(self.now, jitter);
                Some(true)
            }
            Ask::Shut | Ask::Wait(_) | Ask::Held(_) => None,
        }
    }

    fn step(&mut self, step: &Step) -> (Option<bool>, Option<Change>) {
        self.now += Duration::from_millis(step.wait_ms);
        let Some(probe) = self.begin(step.suspect, step.jitter) else { return (None, None) };
        let report = Report {
            id: step.id,
            started: self.now,
            outcome: step.outcome,
            overload: step.overload && step.outcome != Outcome::Delivered,
            whose: if step.own { Whose::Own } else { Whose::Service },
            suspect: step.suspect,
            probe,
            retry_after: step.retry_after_ms.map(Duration::from_millis),
        };
        (Some(probe), self.gate.report(&report, self.now, step.jitter))
    }

    /// A healthy service: how many probes it takes until the gate is open, and whether a request then begins.
    fn recovers(&mut self) -> (u32, bool) {
        let good = |id, started, probe| Report {
            id,
            started,
            outcome: Outcome::Delivered,
            overload: false,
            whose: Whose::Service,
            suspect: false,
            probe,
            retry_after: None,
        };
        let mut probes = 0;
        for n in 0..100_000 {
            match self.begin(false, 0.5) {
                Some(false) => return (probes, true),
                Some(true) => {
                    probes += 1;
                    self.gate.report(&good(n, self.now, true), self.now, 0.5);
                }
                None => self.now += Duration::from_millis(100),
            }
        }
        (probes, false)
    }
}

proptest! {
    #[test]
    fn no_sequence_of_outcomes_wedges_the_gate(settings in any_settings(), steps in steps()) {
        let mut held = Held::new(settings);
        for step in &steps {
            held.step(step);
        }
        let was_shut = held.gate.is_shut();
        let (probes, began) = held.recovers();
        prop_assert!(began, "{:?}", held.gate);
        prop_assert_eq!(probes, u32::from(was_shut), "one accepted probe opens it");
    }

    #[test]
    fn while_it_is_shut_there_are_probes_only(settings in any_settings(), steps in steps()) {
        let mut held = Held::new(settings);
        let mut probed: Option<Duration> = None;
        for step in &steps {
            let was_shut = held.gate.is_shut();
            let (began, change) = held.step(step);
            if was_shut {
                prop_assert_ne!(began, Some(false), "a request that is no probe");
            }
            if began == Some(true) {
                // Never sooner than four fifths of the interval after the last one.
                let apart = probed.map_or(Duration::MAX, |at| held.now - at);
                prop_assert!(apart >= settings.probe_every.min(settings.probe_cap).mul_f64(0.8) - Duration::from_nanos(1), "{:?}", apart);
                probed = Some(held.now);
            }
            if let Some(Change::Opened { .. }) = change {
                probed = None;
            }
        }
    }

    #[test]
    fn starts_never_exceed_the_rate_limit(limit in 1.0f64..2_000.0, steps in steps()) {
        let mut held = Held::new(Settings { rate_limit: Some(limit), ..Settings::default() });
        for step in &steps {
            held.step(step);
            prop_assert!(held.gate.rate(held.now) <= limit);
        }
        let burst = (limit * 0.02).max(1.0);
        for (n, from) in held.starts.iter().enumerate() {
            for (m, to) in held.starts.iter().enumerate().skip(n) {
                let allowed = burst + limit * (*to - *from).as_secs_f64() + 1e-6;
                prop_assert!((m - n + 1) as f64 <= allowed.max(1.0) + 1e-6, "{} in {:?}", m - n + 1, *to - *from);
            }
        }
    }

    #[test]
    fn starts_never_exceed_the_rate_whatever_it_just_is(steps in steps()) {
        let mut held = Held::new(Settings::default());
        let (mut rate, mut from, mut starts) = (f64::INFINITY, Duration::ZERO, 0);
        for step in &steps {
            let (began, _) = held.step(step);
            starts += u32::from(began == Some(false));
            if rate > 0.0 && rate.is_finite() {
                let allowed = (rate * 0.02).max(1.0) + rate * (held.now - from).as_secs_f64() + 1e-6;
                prop_assert!(f64::from(starts) <= allowed, "{} of {} at {}/s", starts, allowed, rate);
            }
            let after = held.gate.rate(held.now);
            if after != rate {
                (rate, from, starts) = (after, held.now, 0);
            }
        }
    }

    #[test]
    fn it_shuts_after_so_many_failures_in_a_row_and_not_before(shut_after in 1usize..100) {
        let mut held = Held::new(Settings { shut_after, ..Settings::default() });
        let fails = |id| Step {
            wait_ms: 1, id, outcome: Outcome::Retry, overload: false, own: false, suspect: false, retry_after_ms: None, jitter: 0.0,
        };
        for id in 1..shut_after as i64 {
            held.step(&fails(id));
            held.step(&fails(id));
            prop_assert!(!held.gate.is_shut(), "one delivery counts once");
        }
        let (_, change) = held.step(&fails(0));
        let shut = matches!(change, Some(Change::Shut { why: Outcome::Retry, .. }));
        prop_assert!(shut, "{:?}", change);
    }

    #[test]
    fn a_pause_that_was_asked_for_is_kept(pause_ms in 1u64..3_600_000, steps in steps()) {
        let mut held = Held::new(Settings::default());
        for step in &steps {
            held.step(&Step { retry_after_ms: None, ..step.clone() });
        }
        held.recovers();
        let began = held.now;
        let asks = Step {
            wait_ms: 1_000, id: -1, outcome: Outcome::Throttled, overload: true, own: false, suspect: false,
            retry_after_ms: Some(pause_ms), jitter: 0.5,
        };
        let (started, _) = held.step(&asks);
        prop_assume!(started.is_some());
        let asked = held.now;
        let (_, began_again) = held.recovers();
        prop_assert!(began_again && held.now >= asked + Duration::from_millis(pause_ms), "{:?}", held.now - began);
    }
}

/// Deliveries that always fail are there as well, and each probe may meet one: the claim prefers what has never failed.
#[test]
fn suspects_alone_shut_it_too_but_what_has_just_come_is_a_probe_at_once() {
    let mut held = Held::new(Settings::default());
    let poison = |id, own| Step {
        wait_ms: 1,
        id,
        outcome: Outcome::Down,
        overload: true,
        own,
        suspect: true,
        retry_after_ms: None,
        jitter: 0.5,
    };
    for id in 0..100 {
        held.step(&poison(id, true));
    }
    assert!(!held.gate.is_shut(), "their own failures never shut it");
    for id in 0..20 {
        held.step(&poison(id, false));
    }
    assert!(held.gate.is_shut(), "an outage that meets nothing but suspects");
    assert_ne!(held.gate.probe(held.now, false), Probe::Now);
    assert_eq!(held.gate.probe(held.now, true), Probe::Now);
    held.gate.probe_claimed(held.now, 0.5);
    assert_eq!(held.gate.probe(held.now, true), Probe::UnderWay);
    held.gate.probe_not_sent();
    assert!(matches!(held.gate.probe(held.now, false), Probe::At(_)));
}
