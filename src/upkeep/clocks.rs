//! Clocks that somebody set: PostgreSQL's, which decides what is due, and this machine's, which only times and dates.

use std::time::{Duration, Instant, SystemTime};

use super::{Rounds, Upkeep};
use crate::core::clock::{Step, TOLERATED, Watch, difference};
use crate::store::{Pulse, Session, StoreError};

/// How long a round may spend on moving deliveries to a clock that was set back; the next one goes on.
const REPAIR: Duration = Duration::from_millis(400);
/// Other processes have noted the same step within this, beyond the time between two of their looks.
const SAME_STEP: Duration = Duration::from_secs(10);

/// What the clocks showed.
#[derive(Debug)]
pub(super) struct Clocks {
    began: Instant,
    postgres: Watch,
    machine: Watch,
    /// How far they were apart in this round.
    pub apart: Duration,
    /// PostgreSQL's was set back so far, found at this instant, and it is not noted there yet.
    set_back: Option<(Step, Instant)>,
    /// When one of them was last set forward by more than [`super::retention::CLOCK_AGREES`].
    pub far_forward_at: Option<Instant>,
}

impl Clocks {
    pub(super) fn new(began: Instant) -> Self {
        let (postgres, machine) = (Watch::default(), Watch::default());
        Self { began, postgres, machine, apart: Duration::ZERO, set_back: None, far_forward_at: None }
    }
}

impl Upkeep {
    /// Holds both clocks against time that nobody sets, says when one was set, and mends what follows. `before` is the instant
    /// before the heartbeat was sent.
    pub(super) fn look_at_clocks(
        &mut self,
        session: &mut Session,
        rounds: &mut Rounds,
        pulse: &Pulse,
        before: Instant,
    ) -> Result<(), StoreError> {
        let (shown, now) = (SystemTime::now(), Instant::now());
        let clocks = &mut rounds.clocks;
        clocks.apart = difference(shown, pulse.clock).saturating_sub(now - before);
        let (after, until) = (before - clocks.began, now - clocks.began);
        let machine = clocks.machine.look(after, shown, until);
        let postgres = clocks.postgres.look(after, pulse.clock, until);
        for step in [machine, postgres].into_iter().flatten() {
            if step.forward && step.by > super::retention::CLOCK_AGREES {
                clocks.far_forward_at = Some(now);
            }
        }
        if let Some(step) = machine {
            log::warn!(
                "this machine's clock has jumped {}: nothing waits for it, but times in logs and in metrics jump with it",
                words(step)
            );
        }
        if let Some(step) = postgres {
            if step.forward {
                log::warn!(
                    "PostgreSQL's clock has jumped {}: waits and leases end that much sooner, and what was being sent may be sent again",
                    words(step)
                );
            } else {
                log::warn!("PostgreSQL's clock has jumped {}: what waits is moved to the new time", words(step));
                // It lies ahead of the new clock. After a jump forward the window has all that has run out by it.
                rounds.expired_until = None;
                rounds.clocks.set_back = Some((step, now));
            }
        }
        // Until it is noted: what fails now would not be seen again.
        let mut is_noted = false;
        if let Some((step, at)) = rounds.clocks.set_back {
            session.note_clock_back(step.by, step.within + at.elapsed() + SAME_STEP)?;
            rounds.clocks.set_back = None;
            is_noted = true;
        }
        // Also what another process has noted, or one that died over it.
        if pulse.repairing || is_noted {
            self.repair_clock(session)?;
        }
        Ok(())
    }

    /// At start: a heartbeat ahead of the clock means that it was set back while nobody ran. How far is not known, but what
    /// waits then waits no longer than it would have from that heartbeat on.
    pub(super) fn look_for_clock_set_back(&self, session: &mut Session) -> Result<(), StoreError> {
        let behind = session.clock_behind()?;
        if behind > TOLERATED && session.note_clock_back(behind, SAME_STEP)? {
            log::warn!(
                "PostgreSQL's clock is {} s behind the newest heartbeat in its tables: it was set back; what waits is moved to the new time",
                behind.as_secs()
            );
        }
        Ok(())
    }

    fn repair_clock(&self, session: &mut Session) -> Result<(), StoreError> {
        let lease = self.config.get().postgres.lease;
        let (began, mut moved) = (Instant::now(), 0);
        loop {
            let (n, is_done) = session.repair_clock(lease)?;
            moved += n;
            if is_done || began.elapsed() >= REPAIR {
                break;
            }
        }
        if moved > 0 {
            log::info!(rows = moved; "{moved} deliveries were moved to PostgreSQL's new time");
        }
        Ok(())
    }
}

fn words(step: Step) -> String {
    let seconds = step.by.as_secs_f64();
    format!("{seconds:.1} s {}", if step.forward { "forward" } else { "back" })
}
