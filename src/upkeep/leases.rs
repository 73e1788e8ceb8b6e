//! Leases that nobody holds any more: of dead predecessors, and those that ran out.

use std::time::{Duration, Instant, SystemTime};

use super::Upkeep;
use crate::store::{ProcessId, Session, StoreError};

/// How long a round may look for leases that ran out; the next one goes on.
const LOOK: Duration = Duration::from_millis(300);

impl Upkeep {
    /// Predecessors are dead, for their lock is ours. `instance` is `None` without a state directory: then leases only run out.
    pub(super) fn sweep(&self, session: &mut Session, process: ProcessId) -> Result<(), StoreError> {
        let Some(instance) = self.instance else { return Ok(()) };
        let predecessors = session.predecessors(instance, process)?;
        let Some(longest) = predecessors.iter().map(|(_, lease)| *lease).max() else { return Ok(()) };
        let dead: Vec<ProcessId> = predecessors.into_iter().map(|(id, _)| id).collect();
        let mut freed = 0;
        loop {
            match session.sweep(&dead, longest)? {
                0 => break,
                n => freed += n,
            }
        }
        if freed > 0 {
            self.metrics.attempts_total.with_label_values(&["lost"]).inc_by(freed);
            let last = dead.iter().max().copied().unwrap_or_default();
            log::warn!(process = last, rows = freed;
                "process {last} (or one before it) died with {freed} deliveries in hand: they are due again");
        }
        Ok(())
    }

    /// Makes deliveries due again whose leases ran out, and notes their attempts as lost. Claims do it too, and sooner, but
    /// nobody claims while delivering is paused. Returns where to look on.
    pub(super) fn expire(&self, session: &mut Session, from: Option<SystemTime>) -> Result<Option<SystemTime>, StoreError> {
        let longest = self.config.get().postgres.lease;
        let (began, mut lost, mut from) = (Instant::now(), 0, from);
        loop {
            let (n, next) = session.expire(from, longest)?;
            lost += n;
            // Without rows there is nothing behind either; a full batch is followed by another.
            from = next.or(from);
            if n == 0 || began.elapsed() >= LOOK {
                break;
            }
        }
        if lost > 0 {
            self.metrics.attempts_total.with_label_values(&["lost"]).inc_by(lost);
            log::warn!(rows = lost; "{lost} deliveries had leases that ran out: they are due again, and nobody knows whether they were sent");
        }
        Ok(from)
    }

    /// No rule lets a delivery wait longer than this: a row further ahead was written by a clock that was set back since, and
    /// nobody saw that.
    pub(super) fn pull_in(&self, session: &mut Session) -> Result<(), StoreError> {
        let config = self.config.get();
        let retry = config.retry;
        let retry_after_clamp = Duration::from_secs(3600);
        let furthest = retry.cap.max(config.gate.probe_cap).max(retry_after_clamp).max(config.postgres.lease);
        let pulled = session.pull_in(furthest + Duration::from_secs(60))?;
        if pulled > 0 {
            log::warn!(rows = pulled; "{pulled} deliveries lay further ahead than any rule allows: was PostgreSQL's clock set back, or a limit of retry lowered?");
        }
        Ok(())
    }
}
