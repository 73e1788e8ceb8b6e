//! Leases that nobody holds any more: of dead predecessors, and those that ran out. And who counts as a dead predecessor.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use super::Upkeep;
use crate::failpoint::failpoint;
use crate::ops::pulse;
use crate::ops::stop::ExitWith;
use crate::store::{Predecessor, ProcessId, Registered, Session, StoreError};

/// How long a round may look for leases that ran out; the next one goes on.
const LOOK: Duration = Duration::from_millis(300);
/// Between two looks at a predecessor that may live; it beats every second.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

impl Upkeep {
    /// Waits until every earlier process of this state file's UUID is dead. The lock proves it of those that had the same one,
    /// at once; any other may run on the machine that this one was cloned from, and is dead when its heartbeat falls silent.
    /// `false`: told to stop.
    ///
    /// # Errors
    /// Exit status 78 once one was seen to live: it goes on undisturbed.
    pub(super) fn outlive_predecessors(&mut self, process: Registered) -> anyhow::Result<bool> {
        let Some(mark) = self.instance.clone() else { return Ok(true) };
        let mut seen: HashMap<ProcessId, SystemTime> = HashMap::new();
        loop {
            pulse::at("looking for predecessors", pulse::REMOTE);
            let looked = self.pool.session().and_then(|mut session| session.predecessors(mark.id, mark.lock, process.id));
            match looked {
                Ok(predecessors) => {
                    let Some(other) = predecessors.into_iter().find(|other| !other.is_dead) else { return Ok(true) };
                    let Predecessor { id, host, pid, seen_at, .. } = &other;
                    let who = format!("process {id} on host {host} (pid {pid}) has the UUID of {}", mark.path.display());
                    if *seen_at != *seen.entry(*id).or_insert(*seen_at) {
                        let text = format!(
                            "{who} and is alive: one of the two is a copy, of its machine or of its state directory. Remove that file on \
                             the copy, and a new one is made"
                        );
                        return Err(ExitWith { status: 78, text }.into());
                    }
                    self.health.wait("upkeep", "postgres", format!("{who}: waiting to see whether it still lives"));
                }
                Err(error) => {
                    self.say_unopened(&error);
                    self.pool.renew();
                }
            }
            pulse::at("waiting for predecessors", pulse::PROMPT);
            if self.stop.wait(LOOK_AGAIN) {
                return Ok(false);
            }
        }
    }

    /// What to say when another process of this state file's UUID has taken this one for dead.
    pub(super) fn say_replaced(&self) -> String {
        let file = self.instance.as_ref().map_or_else(String::new, |mark| mark.path.display().to_string());
        format!(
            "this process was silent for so long that another one with the UUID of {file} has taken its place: one of the two is a \
             copy, of its machine or of its state directory. Remove that file on the copy, and a new one is made"
        )
    }

    /// Frees what dead predecessors hold. Without a state directory leases only run out.
    pub(super) fn sweep(&self, session: &mut Session, process: ProcessId) -> Result<(), StoreError> {
        let Some(mark) = &self.instance else { return Ok(()) };
        let mut predecessors = session.predecessors(mark.id, mark.lock, process)?;
        predecessors.retain(|predecessor| predecessor.is_dead);
        let Some(longest) = predecessors.iter().map(|predecessor| predecessor.lease).max() else { return Ok(()) };
        let dead: Vec<ProcessId> = predecessors.into_iter().map(|predecessor| predecessor.id).collect();
        session.bury(&dead)?;
        let mut freed = 0;
        loop {
            failpoint("step-sweep");
            match session.sweep(&dead, longest)? {
                0 => break,
                n => freed += n,
            }
            failpoint("step-swept");
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
            failpoint("step-expire");
            let (n, next) = session.expire(from, longest)?;
            if n > 0 {
                failpoint("step-expired");
            }
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
