//! Deliveries whose outcomes PostgreSQL refuses: which ones, and whether it refuses everything.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::ops::health::Health;
use crate::store::Settlement;

/// A delivery whose outcome PostgreSQL refuses is due again after this. Until somebody has removed the cause, the service gets it
/// once in such a time, always with the same idempotency key.
pub(super) const PUT_OFF: Duration = Duration::from_secs(600);
/// Outcomes of so many deliveries refused, and none taken between them: it is not these. As many as shut the gate.
const IN_A_ROW: usize = 20;
/// So many are remembered.
const KNOWN: usize = 1000;

/// What was put off, and has not been settled since.
#[derive(Debug, Default)]
pub struct PutOff {
    known: HashMap<i64, (Instant, String)>,
    /// Which since the last one that was taken: one that comes again and again through a quiet night counts once.
    in_a_row: HashSet<i64>,
}

impl PutOff {
    /// Whether nothing is taken any more.
    pub(super) fn is_everything(&self) -> bool {
        self.in_a_row.len() >= IN_A_ROW
    }

    /// The outcome of this one was refused, and it is put off.
    pub(super) fn note(&mut self, id: i64, words: String, now: Instant) {
        self.in_a_row.insert(id);
        if self.known.len() < KNOWN || self.known.contains_key(&id) {
            self.known.insert(id, (now, words));
        }
    }

    /// These outcomes are written.
    pub(super) fn taken(&mut self, settlements: &[Settlement]) {
        self.in_a_row.clear();
        if !self.known.is_empty() {
            settlements.iter().for_each(|settlement| drop(self.known.remove(&settlement.id)));
        }
    }

    /// How long the settler may wait for outcomes; `None`: for ever.
    pub(super) fn patience(&self) -> Option<Duration> {
        (!self.known.is_empty()).then_some(PUT_OFF)
    }

    /// Says what there is. What has not come again in twice the time was another process's, or a person's.
    pub(super) fn show(&mut self, health: &Health, now: Instant) {
        self.known.retain(|_, (at, _)| now.saturating_duration_since(*at) < 2 * PUT_OFF);
        let Some((_, words)) = self.known.values().min_by_key(|(at, _)| *at) else {
            return health.go("put-off", "schema");
        };
        let more = if self.known.len() > 1 { format!("; and {} more", self.known.len() - 1) } else { String::new() };
        health.wait("put-off", "schema", format!("{words}{more}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_deliveries_in_a_row_are_everything_and_one_that_comes_again_is_not() {
        let (mut put_off, now) = (PutOff::default(), Instant::now());
        assert_eq!(put_off.patience(), None);
        for _ in 0..100 {
            put_off.note(7, "refused".to_owned(), now);
        }
        assert!(!put_off.is_everything());
        (1..=20).for_each(|id| put_off.note(id, "refused".to_owned(), now));
        assert!(put_off.is_everything());
        put_off.taken(&[]);
        assert!(!put_off.is_everything() && put_off.patience() == Some(PUT_OFF));
    }
}
