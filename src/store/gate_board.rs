//! Where the gate says how it stands, for the heartbeat, and where upkeep says how far PostgreSQL's clock is ahead.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How the gate of this process stands.
#[derive(Debug, Clone, Default)]
pub struct GateState {
    /// Why nothing but probes, or nothing at all, may start; `None`: it is open.
    pub shut: Option<String>,
    /// Requests per second, while it is open and limits them.
    pub rate: Option<f64>,
    /// Since when it is as it is; `None`: since the start.
    pub since: Option<Instant>,
    /// When the next probe may be sent, or the service's pause ends.
    pub next: Option<Instant>,
}

/// Shared by the threads that deliver and upkeep.
#[derive(Debug, Default)]
pub struct GateBoard {
    state: Mutex<GateState>,
    ahead_ms: AtomicI64,
}

impl GateBoard {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it stands so.
    pub fn write(&self, state: GateState) {
        *self.lock() = state;
    }

    /// How it stands.
    pub fn read(&self) -> GateState {
        self.lock().clone()
    }

    /// PostgreSQL's clock shows `postgres` when this machine's shows `here`.
    pub fn note_clock(&self, postgres: SystemTime, here: SystemTime) {
        let ms = |by: Duration| i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        let ahead = postgres.duration_since(here).map_or_else(|behind| -ms(behind.duration()), ms);
        self.ahead_ms.store(ahead, Ordering::Relaxed);
    }

    /// What PostgreSQL's clock shows now, as of the last heartbeat: times in its tables are its own.
    pub fn postgres_now(&self) -> SystemTime {
        let ahead = self.ahead_ms.load(Ordering::Relaxed);
        let by = Duration::from_millis(ahead.unsigned_abs());
        let now = SystemTime::now();
        if ahead >= 0 { now + by } else { now.checked_sub(by).unwrap_or(now) }
    }
}
