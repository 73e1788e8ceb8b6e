//! Whose fault a failed attempt is, and what follows from it (ARCHITECTURE.md, 10).
//!
//! What a delivery spends is its own budget, so that a message that always fails dies by itself, and an outage, however
//! long, kills nothing.

use std::time::Duration;

use super::backoff::{self, Policy};
use super::outcome::Outcome;

/// For a first attempt: how recently another delivery must have been accepted.
pub const FIRST_ATTEMPT_WINDOW: Duration = Duration::from_secs(10);

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The delivery's: the service accepts others.
    Own,
    /// The service's, or the way to it.
    Service,
}

/// A failure is the delivery's own only if the service accepted another delivery since this one's previous attempt (for
/// a first attempt: within the last 10 s). Both ages are counted back from the failure; `last_accepted_age` is that of
/// the newest accepted delivery of this process, `None` if there is none yet.
pub fn whose(previous_attempt_age: Option<Duration>, last_accepted_age: Option<Duration>) -> Whose {
    let window = previous_attempt_age.unwrap_or(FIRST_ATTEMPT_WINDOW);
    if last_accepted_age.is_some_and(|age| age < window) { Whose::Own } else { Whose::Service }
}

/// A finished attempt, as far as it decides what comes next.
#[derive(Debug, Clone, Copy)]
pub struct Attempted {
    /// Its class.
    pub outcome: Outcome,
    /// By [`whose`]; without meaning for an accepted one.
    pub whose: Whose,
    /// Its number, from 1.
    pub attempt: i32,
    /// What the delivery has spent of its budget before this attempt.
    pub spent: Duration,
    /// What the service asked for, parsed and clamped.
    pub retry_after: Option<Duration>,
    /// The gate is shut: a refusal, too, is then the service's.
    pub gate_is_shut: bool,
}

/// What becomes of the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Delivered.
    Done,
    /// Another attempt.
    Again {
        /// From now.
        delay: Duration,
        /// To add to what the delivery has spent.
        spend: Duration,
    },
    /// Given up, kept for a person.
    Dead {
        /// By which rule.
        reason: DeadReason,
    },
}

/// Which rule gave a delivery up. The labels are those of `dead_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// The service says that it will never take this message.
    Refused,
    /// Its own failures have used up `retry.give_up_after`.
    GaveUp,
}

impl DeadReason {
    /// Every reason, for metrics that are there from the start.
    pub const ALL: [DeadReason; 2] = [Self::Refused, Self::GaveUp];

    /// As it is written in the database and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::GaveUp => "gave_up",
        }
    }
}

/// Decides from one attempt. `jitter` is drawn from [0, 1).
///
/// An exhausted budget kills only at a failure of the delivery's own: during an outage even a delivery at the end of its
/// budget stays. `throttled` never spends, whoever is accepted beside it. A refusal is final only while the gate is open: a
/// deploy that refuses everything must not kill what comes after the run that shut it.
pub fn decide(attempted: &Attempted, policy: &Policy, jitter: f64) -> Next {
    let Attempted { outcome, whose, attempt, spent, retry_after, gate_is_shut } = *attempted;
    let whose = match outcome {
        Outcome::Delivered => return Next::Done,
        Outcome::Refused if !gate_is_shut => return Next::Dead { reason: DeadReason::Refused },
        Outcome::Refused | Outcome::Throttled => Whose::Service,
        Outcome::Retry | Outcome::Down | Outcome::Misconfigured | Outcome::Lost => whose,
    };
    match whose {
        Whose::Own if spent >= policy.give_up_after => Next::Dead { reason: DeadReason::GaveUp },
        Whose::Own => {
            let delay = backoff::own(policy, spent, jitter);
            Next::Again { delay, spend: delay }
        }
        Whose::Service => {
            let delay = backoff::service(policy, attempt, jitter).max(retry_after.unwrap_or_default());
            Next::Again { delay, spend: Duration::ZERO }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        base: Duration::from_secs(1),
        cap: Duration::from_secs(15 * 60),
        give_up_after: Duration::from_secs(72 * 3600),
        probe_cap: Duration::from_secs(30),
    };

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_failure_is_the_deliverys_own_only_if_another_was_accepted_since() {
        use Whose::{Own, Service};
        let table = [
            (None, None, Service),
            (None, Some(secs(0)), Own),
            (None, Some(secs(9)), Own),
            (None, Some(secs(10)), Service),
            (Some(secs(60)), None, Service),
            (Some(secs(60)), Some(secs(59)), Own),
            (Some(secs(60)), Some(secs(60)), Service),
            (Some(secs(60)), Some(secs(61)), Service),
            (Some(secs(1)), Some(secs(5)), Service),
        ];
        for (previous, accepted, expected) in table {
            assert_eq!(whose(previous, accepted), expected, "previous {previous:?}, accepted {accepted:?}");
        }
    }

    #[test]
    fn what_follows_from_an_attempt() {
        use Outcome::*;
        let again = |delay, spend| Next::Again { delay: secs(delay), spend: secs(spend) };
        let dead = |reason| Next::Dead { reason };
        let over = POLICY.give_up_after;
        // outcome, whose, attempt, spent, retry after, expected with jitter 1
        let table = [
            (Delivered, Whose::Service, 1, secs(0), None, Next::Done),
            (Delivered, Whose::Own, 99, over, Some(secs(9)), Next::Done),
            (Refused, Whose::Service, 1, secs(0), None, dead(DeadReason::Refused)),
            (Refused, Whose::Own, 1, secs(0), Some(secs(9)), dead(DeadReason::Refused)),
            (Retry, Whose::Own, 3, secs(3), None, again(4, 4)),
            (Down, Whose::Own, 3, secs(3), Some(secs(100)), again(4, 4)),
            (Misconfigured, Whose::Own, 1, secs(0), None, again(1, 1)),
            (Retry, Whose::Own, 3, over - secs(1), None, again(900, 900)),
            (Retry, Whose::Own, 3, over, None, dead(DeadReason::GaveUp)),
            (Misconfigured, Whose::Own, 3, over, None, dead(DeadReason::GaveUp)),
            (Retry, Whose::Service, 3, secs(500), None, again(4, 0)),
            (Retry, Whose::Service, 3, over, None, again(4, 0)),
            (Down, Whose::Service, 30, secs(0), None, again(30, 0)),
            (Down, Whose::Service, 3, secs(0), Some(secs(100)), again(100, 0)),
            (Down, Whose::Service, 3, secs(0), Some(secs(1)), again(4, 0)),
            (Lost, Whose::Service, 1, secs(0), None, again(1, 0)),
            (Throttled, Whose::Own, 3, over, None, again(4, 0)),
            (Throttled, Whose::Own, 3, over, Some(secs(3600)), again(3600, 0)),
            (Throttled, Whose::Service, 1, secs(0), Some(secs(0)), again(1, 0)),
        ];
        for (outcome, whose, attempt, spent, retry_after, expected) in table {
            let attempted = Attempted { outcome, whose, attempt, spent, retry_after, gate_is_shut: false };
            assert_eq!(decide(&attempted, &POLICY, 1.0), expected, "{attempted:?}");
        }
        let probe =
            |outcome| Attempted { outcome, whose: Whose::Own, attempt: 3, spent: over, retry_after: None, gate_is_shut: true };
        assert_eq!(decide(&probe(Refused), &POLICY, 1.0), again(4, 0), "while the gate is shut refused ones stay");
        assert_eq!(
            decide(&probe(Retry), &POLICY, 1.0),
            dead(DeadReason::GaveUp),
            "another was accepted since, and it is at its end"
        );
    }

    proptest! {
        #[test]
        fn a_delivery_that_always_fails_alone_dies_after_about_give_up_after(jitters in prop::collection::vec(0.0f64..1.0, 700)) {
            let mut spent = Duration::ZERO;
            let mut jitters = jitters.into_iter().cycle();
            let mut attempt = 0;
            loop {
                attempt += 1;
                let attempted = Attempted { outcome: Outcome::Retry, whose: Whose::Own, attempt, spent, retry_after: None, gate_is_shut: false };
                match decide(&attempted, &POLICY, jitters.next().expect("cycles")) {
                    Next::Again { delay, spend } => {
                        prop_assert_eq!(delay, spend);
                        spent += spend;
                    }
                    next => {
                        prop_assert_eq!(next, Next::Dead { reason: DeadReason::GaveUp });
                        break;
                    }
                }
                prop_assert!(attempt < 1_000);
            }
            prop_assert!(spent >= POLICY.give_up_after && spent < POLICY.give_up_after + POLICY.cap);
        }

        #[test]
        fn an_outage_of_any_length_kills_nothing(
            spent_secs: u64, attempt: i32, jitter in 0.0f64..1.0, code in 2i16..=7, gate_is_shut: bool,
        ) {
            let outcome = Outcome::from_code(code).expect("a code");
            prop_assume!(outcome != Outcome::Refused || gate_is_shut);
            // Nothing was accepted since the previous attempt.
            let whose = whose(Some(secs(5)), Some(secs(6)));
            let attempted = Attempted { outcome, whose, attempt, spent: secs(spent_secs), retry_after: None, gate_is_shut };
            match decide(&attempted, &POLICY, jitter) {
                Next::Again { delay, spend } => prop_assert!(spend.is_zero() && delay <= POLICY.probe_cap),
                next => prop_assert!(false, "{:?}", next),
            }
        }
    }
}
