//! Deliveries whose outcomes PostgreSQL refuses: which ones, and whether it refuses everything.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ops::health::Health;
use crate::store::Settlement;

/// A delivery whose outcome PostgreSQL refuses is due again after this. Until somebody has removed the cause, the service gets it
/// once in such a time, always with the same idempotency key.
pub(super) const PUT_OFF: Duration = Duration::from_secs(600);
/// So many refused in a row, and no other taken between them: it is not these outcomes. As many as shut the gate.
const IN_A_ROW: usize = 20;
/// So many are remembered.
const KNOWN: usize = 1000;

/// What was put off, and has not been settled since.
#[derive(Debug, Default)]
pub struct PutOff {
    known: HashMap<i64, (Instant, String)>,
    in_a_row: usize,
}

impl PutOff {
    /// Whether nothing is taken any more.
    pub(super) fn is_everything(&self) -> bool {
        self.in_a_row >= IN_A_ROW
    }

    /// The outcome of this one was refused, and it is put off.
    pub(super) fn note(&mut self, id: i64, words: String, now: Instant) {
        self.in_a_row += 1;
        if self.known.len() < KNOWN {
            self.known.insert(id, (now, words));
        }
    }

    /// These outcomes are written.
    pub(super) fn taken(&mut self, settlements: &[Settlement]) {
        self.in_a_row = 0;
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
