//! Deliveries whose outcomes PostgreSQL refuses: which ones, and whether it takes none at all.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::brake::{Brake, EVERY};
use crate::config::value::show_duration;
use crate::ops::health::Health;
use crate::store::Settlement;

/// A delivery whose outcome PostgreSQL refuses is due again after this. Until somebody has removed the cause, the service gets it
/// once in such a time, always with the same idempotency key.
pub(super) const PUT_OFF: Duration = Duration::from_secs(600);
/// Outcomes of so many deliveries refused, and none taken between them: perhaps it is not these. As many as shut the gate.
const IN_A_ROW: usize = 20;
/// So many are remembered.
const KNOWN: usize = 1000;

/// What was put off, and has not been settled since.
#[derive(Debug)]
pub struct PutOff {
    known: HashMap<i64, (Instant, String)>,
    /// Which since the last one that was taken, up to [`IN_A_ROW`]: one that comes again through a quiet night counts once.
    in_a_row: HashSet<i64>,
    brake: Arc<Brake>,
}

impl PutOff {
    /// Nothing is put off.
    pub fn new(brake: Arc<Brake>) -> Self {
        Self { known: HashMap::new(), in_a_row: HashSet::new(), brake }
    }

    /// Whether the outcome of this one was refused before.
    pub(super) fn knows(&self, id: i64) -> bool {
        self.known.contains_key(&id)
    }

    /// The outcome of this one was refused, and it is put off. Returns whether the brake is set by that.
    pub(super) fn note(&mut self, id: i64, words: String, now: Instant) -> bool {
        if self.known.len() < KNOWN || self.known.contains_key(&id) {
            self.known.insert(id, (now, words));
        }
        if self.brake.is_on() {
            return false;
        }
        self.in_a_row.insert(id);
        self.brake.set(self.in_a_row.len() >= IN_A_ROW);
        self.brake.is_on()
    }

    /// These are written. Returns whether the brake is released by that: not by what was given back unsent, which has no outcome.
    pub(super) fn taken(&mut self, settlements: &[Settlement]) -> bool {
        let mut tried = settlements.iter().filter(|settlement| settlement.tried().is_some()).peekable();
        if tried.peek().is_none() {
            return false;
        }
        tried.for_each(|settlement| drop(self.known.remove(&settlement.id)));
        self.release()
    }

    fn release(&mut self) -> bool {
        let was_on = self.brake.is_on();
        self.in_a_row.clear();
        self.brake.set(false);
        was_on
    }

    /// How long the settler may wait for outcomes; `None`: for ever.
    pub(super) fn patience(&self) -> Option<Duration> {
        (!self.known.is_empty()).then_some(PUT_OFF)
    }

    /// Says what there is. What has not come again in twice the time was another process's, or a person's.
    pub(super) fn show(&mut self, health: &Health, now: Instant) {
        self.known.retain(|_, (at, _)| now.saturating_duration_since(*at) < 2 * PUT_OFF);
        let Some((_, words)) = self.known.values().min_by_key(|(at, _)| *at) else {
            self.release();
            return health.go("put-off", "schema");
        };
        let more = if self.known.len() > 1 { format!("; and {} more", self.known.len() - 1) } else { String::new() };
        let braked = if self.brake.is_on() {
            format!("; no outcome is taken any more, one delivery is sent every {}", show_duration(EVERY))
        } else {
            String::new()
        };
        health.wait("put-off", "schema", format!("{words}{more}{braked}"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::core::outcome::{Outcome, Sent};
    use crate::store::{Settled, Tried};

    fn written(id: i64, what: Settled) -> [Settlement; 1] {
        [Settlement { id, lease: 1, attempt: 1, received_at: SystemTime::UNIX_EPOCH, what }]
    }

    #[test]
    fn twenty_deliveries_in_a_row_set_the_brake_and_one_that_comes_again_does_not() {
        let (brake, now) = (Arc::new(Brake::default()), Instant::now());
        let mut put_off = PutOff::new(brake.clone());
        assert_eq!(put_off.patience(), None);
        for _ in 0..100 {
            assert!(!put_off.note(7, "refused".to_owned(), now));
        }
        let set: Vec<i64> = (1..=30).filter(|id| put_off.note(*id, "refused".to_owned(), now)).collect();
        assert!(brake.is_on());
        assert_eq!(set, [20], "said once");
        assert!(!put_off.taken(&written(99, Settled::GivenBack)) && brake.is_on(), "what was not sent has no outcome");
        let tried = Tried { outcome: Outcome::Delivered, status: None, sent: Sent::Yes, latency: Duration::ZERO, error: None };
        assert!(put_off.taken(&written(7, Settled::Delivered(tried))) && !brake.is_on());
        assert!(!put_off.knows(7) && put_off.knows(8));
        assert_eq!(put_off.patience(), Some(PUT_OFF));
        assert!(!put_off.note(1, "refused".to_owned(), now), "counted anew");
    }
}
