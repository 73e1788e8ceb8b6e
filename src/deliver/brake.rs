//! The brake: while PostgreSQL takes no outcome, deliveries are let through one at a time.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use crate::store::Leased;

/// One is let through in such a time: 12 sends a minute whose outcomes may be refused, and what waits behind them is held up no
/// longer than this once outcomes are taken again.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// Set by the settler; obeyed by the claimer, which claims one at a time, and by the workers, which give back what was leased before.
#[derive(Debug, Default)]
pub struct Brake {
    on: AtomicBool,
    let_through: AtomicI64,
}

impl Brake {
    /// Whether no outcome is taken.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, on: bool) {
        self.on.store(on, Ordering::Release);
    }

    /// What carries `lease` is sent all the same.
    pub(super) fn let_through(&self, lease: i64) {
        self.let_through.store(lease, Ordering::Release);
    }

    /// Whether this one must not be sent now. The gate bounds its probes by itself.
    pub(super) fn holds(&self, leased: &Leased) -> bool {
        self.is_on() && !leased.probe && leased.lease != self.let_through.load(Ordering::Acquire)
    }
}
