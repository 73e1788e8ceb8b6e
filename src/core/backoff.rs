//! How long a delivery waits for its next attempt: exponential with equal jitter.
//!
//! Equal jitter (half of the wait fixed, half random) spreads a herd and still never comes back at once. `jitter` is
//! drawn by the caller from [0, 1); values outside are clamped.

use std::time::Duration;

/// What the waits are made of: `[retry]` and `gate.probe_cap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// First wait.
    pub base: Duration,
    /// Longest wait after the delivery's own failures.
    pub cap: Duration,
    /// Of waiting for its own failures after which a delivery is dead.
    pub give_up_after: Duration,
    /// Longest wait after a fault of the service.
    pub probe_cap: Duration,
}

/// The wait after a failure of the delivery's own: within [w/2, w], w = min(cap, base + spent). As the wait is what gets
/// spent, it grows by itself, and an outage does not inflate it.
pub fn own(policy: &Policy, spent: Duration, jitter: f64) -> Duration {
    equal_jitter(policy.base.saturating_add(spent).min(policy.cap), jitter)
}

/// The wait after a fault of the service: within [w/2, w], w = min(base * 2^(attempt - 1), probe_cap). `attempt` counts
/// from 1.
pub fn service(policy: &Policy, attempt: i32, jitter: f64) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(0);
    equal_jitter(policy.base.saturating_mul(2u32.saturating_pow(doublings)).min(policy.probe_cap), jitter)
}

fn equal_jitter(wait: Duration, jitter: f64) -> Duration {
    let half = wait / 2;
    // NaN counts as 0; `mul_f64` cannot overflow with a factor of at most 1 on half of a Duration.
    half + half.mul_f64(jitter.clamp(0.0, 1.0).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The defaults of `etc/txrelay.toml`.
    const DEFAULTS: Policy = Policy {
        base: SECOND,
        cap: Duration::from_secs(15 * 60),
        give_up_after: Duration::from_secs(72 * 3600),
        probe_cap: Duration::from_secs(30),
    };

    #[test]
    fn own_failures_wait_twice_as_long_each_time_up_to_the_cap() {
        let mut spent = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..12 {
            let wait = own(&DEFAULTS, spent, 1.0);
            spent += wait;
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
    }

    #[test]
    fn the_services_faults_wait_at_most_the_probe_cap() {
        let waits: Vec<u64> = (1..=8).map(|attempt| service(&DEFAULTS, attempt, 1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(service(&DEFAULTS, i32::MAX, 0.0), Duration::from_secs(15));
        assert_eq!(service(&DEFAULTS, i32::MIN, 0.0), SECOND / 2);
    }

    #[test]
    fn jitter_that_makes_no_sense_is_clamped() {
        for (jitter, expected) in [(f64::NAN, SECOND / 2), (-1.0, SECOND / 2), (7.0, SECOND), (f64::INFINITY, SECOND)] {
            assert_eq!(service(&DEFAULTS, 1, jitter), expected, "{jitter}");
        }
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        let any = || (0u64..=u64::MAX, 0u32..1_000_000_000).prop_map(|(s, n)| Duration::new(s, n));
        (any(), any(), any(), any()).prop_map(|(base, cap, give_up_after, probe_cap)| Policy {
            base,
            cap,
            give_up_after,
            probe_cap,
        })
    }

    proptest! {
        #[test]
        fn an_own_wait_is_within_bounds_for_every_spent(
            policy in any_policy(), secs: u64, nanos in 0u32..1_000_000_000, jitter in 0.0f64..1.0,
        ) {
            let spent = Duration::new(secs, nanos);
            let w = policy.base.saturating_add(spent).min(policy.cap);
            let wait = own(&policy, spent, jitter);
            prop_assert!(w / 2 <= wait && wait <= w);
        }

        #[test]
        fn a_service_wait_is_within_bounds_for_every_attempt(policy in any_policy(), attempt: i32, jitter in 0.0f64..1.0) {
            let full = service(&policy, attempt, 1.0);
            let wait = service(&policy, attempt, jitter);
            prop_assert!(wait <= policy.probe_cap && full / 2 <= wait && wait <= full);
            prop_assert!(service(&policy, attempt.saturating_add(1), 1.0) >= full);
        }
    }
}
