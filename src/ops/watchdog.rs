//! Feeds the service manager's watchdog while every thread moves, and says so when one does not.

use std::time::{Duration, Instant};

use super::pulse::Pulses;
use super::systemd;

/// How often the threads are looked at where nobody asked for a watchdog.
const LOOK: Duration = Duration::from_secs(1);

/// Kept by main.
#[derive(Debug)]
pub struct Watchdog {
    is_wanted: bool,
    every: Duration,
    is_stalled: bool,
}

impl Watchdog {
    /// Asks the environment whether the service manager wants to hear of us.
    #[expect(clippy::new_without_default, reason = "it reads the environment")]
    pub fn new() -> Self {
        let interval = systemd::watchdog();
        // A third: two may be late before it is too late.
        let every = interval.map_or(LOOK, |interval| (interval / 3).clamp(Duration::from_millis(10), LOOK));
        Self { is_wanted: interval.is_some(), every, is_stalled: false }
    }

    /// How often to [`look`](Self::look).
    pub fn every(&self) -> Duration {
        self.every
    }

    /// Withholds the sign of life while a thread takes longer than it may.
    pub fn look(&mut self, pulses: &Pulses, now: Instant) {
        let stalled = pulses.stalled(now);
        match (self.is_stalled, stalled.is_empty()) {
            (false, false) => log::error!("a thread hangs: {}", stalled.join("; ")),
            (true, true) => log::info!("all threads move again"),
            _ => {}
        }
        self.is_stalled = !stalled.is_empty();
        if self.is_wanted && !self.is_stalled {
            systemd::alive();
        }
    }
}
