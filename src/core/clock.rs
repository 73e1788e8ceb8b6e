//! Noticing that a clock was set: what it shows is held against a time that nobody sets.

use std::time::{Duration, SystemTime};

/// Smaller jumps are left to what tolerates them: leases and waits are longer, and a clock that is slewed makes none.
pub const TOLERATED: Duration = Duration::from_secs(5);

/// One clock, as last seen.
#[derive(Debug, Default)]
pub struct Watch {
    last: Option<Look>,
}

/// What a clock showed at some moment between two times since a fixed instant.
#[derive(Debug, Clone, Copy)]
struct Look {
    after: Duration,
    before: Duration,
    shown: SystemTime,
}

/// A clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Forward, or back.
    pub forward: bool,
    /// How far, at least.
    pub by: Duration,
    /// How long it may have been since.
    pub within: Duration,
}

impl Watch {
    /// The clock has shown `shown` at some moment `after` and `before` these times since a fixed instant. `Some`: since the last look
    /// it has jumped by more than [`TOLERATED`], whatever time the looks themselves took.
    pub fn look(&mut self, after: Duration, shown: SystemTime, before: Duration) -> Option<Step> {
        let now = Look { after, before, shown };
        let last = self.last.replace(now)?;
        let within = before.saturating_sub(last.after);
        // The most and the least that can have passed between the two.
        let latest = last.shown + within;
        let earliest = last.shown + after.saturating_sub(last.before);
        let step = |forward, by| Some(Step { forward, by, within }).filter(|step| step.by > TOLERATED);
        match (shown.duration_since(latest), earliest.duration_since(shown)) {
            (Ok(by), _) if by > Duration::ZERO => step(true, by),
            (_, Ok(by)) => step(false, by),
            _ => None,
        }
    }
}

/// How far two clocks differ.
pub fn difference(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).unwrap_or_else(|later| later.duration())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Looks at (after, before) and what was shown, all in seconds; what was said of the last one.
    #[track_caller]
    fn check(looks: &[(f64, f64, f64)], expected: Option<(bool, f64)>) {
        let epoch = SystemTime::UNIX_EPOCH;
        let mut watch = Watch::default();
        let mut said = None;
        for (after, before, shown) in looks {
            said = watch.look(s(*after), epoch + s(*shown + 1e6), s(*before));
        }
        assert_eq!(said.map(|step| (step.forward, step.by.as_secs_f64().round())), expected);
    }

    #[test]
    fn a_jump_is_told_from_time_that_has_passed() {
        check(&[(0.0, 0.1, 0.0)], None);
        check(&[(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)], None);
        check(&[(0.0, 0.0, 0.0), (1.0, 1.0, 3601.0)], Some((true, 3600.0)));
        check(&[(0.0, 0.0, 0.0), (1.0, 1.0, -3599.0)], Some((false, 3600.0)));
        check(&[(0.0, 0.0, 0.0), (1.0, 1.0, 6.0)], None);
        check(&[(0.0, 0.0, 0.0), (1.0, 1.0, -4.0)], None);
        // The answer of the first look took 20 s, and the clock was read at some moment of them.
        check(&[(0.0, 20.0, 0.0), (21.0, 21.0, 21.0)], None);
        check(&[(0.0, 20.0, 20.0), (21.0, 21.0, 21.0)], None);
        // An hour without PostgreSQL is no jump.
        check(&[(0.0, 0.0, 0.0), (3600.0, 3601.0, 3600.5)], None);
        // It is said once: from then on the new time is the right one.
        check(&[(0.0, 0.0, 0.0), (1.0, 1.0, 3601.0), (2.0, 2.0, 3602.0)], None);
    }

    proptest! {
        /// However long looks take and whenever the clock is read in them, a clock that runs on is never said to jump.
        #[test]
        fn a_clock_that_runs_is_never_suspected(looks in prop::collection::vec((0.0f64..100.0, 0.0f64..100.0, 0.0f64..=1.0), 1..20)) {
            let epoch = SystemTime::UNIX_EPOCH;
            let mut watch = Watch::default();
            let mut at = 0.0;
            for (pause, length, when) in looks {
                let after = at + pause;
                at = after + length;
                let shown = epoch + s(after + length * when);
                prop_assert_eq!(watch.look(s(after), shown, s(at)), None);
            }
        }
    }
}
