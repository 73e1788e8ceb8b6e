//! Retention: what is finished and old enough goes, in small steps beside everything else. What is open, dead, rejected and not
//! resolved, or unaccounted is never deleted; `store` keeps to that in each statement.
//!
//! A pass walks everything once an hour; whoever of a pipeline's processes begins it does all of it.

use std::time::{Duration, Instant};

use super::{Rounds, Upkeep};
use crate::config;
use crate::store::{Gauges, OffsetPlace, ProcessId, Purged, Session, StoreError};

/// No pass before this after a start, so that the start is not slowed.
const AFTER_START: Duration = Duration::from_secs(10);
/// After a step that failed or was another process's.
const AGAIN: Duration = Duration::from_secs(60);
/// How much of a round its steps take. Each is followed by a rest that is as long, which is everybody else's.
const BUDGET: Duration = Duration::from_millis(800);
/// A step that is slower than this is followed by smaller ones, a fast one by larger ones: commits of deliveries wait for its flush.
const SLOW: Duration = Duration::from_millis(50);
/// Rows that one step looks at.
const ROWS: (i64, i64) = (50, 2000);
/// PostgreSQL's clock and this machine's must agree so far, or nothing is deleted: one that is years ahead would call everything
/// old.
pub(super) const CLOCK_AGREES: Duration = Duration::from_secs(300);
/// After a larger jump forward, nothing is deleted for so long, also where both clocks are the same machine's: somebody may notice
/// that it is wrong.
const AFTER_JUMP: Duration = Duration::from_secs(24 * 3600);

/// How retention stands.
#[derive(Debug)]
pub(super) struct Retention {
    /// Not before this.
    look_at: Instant,
    /// Whether PostgreSQL has no pass that ended within the last hour.
    is_due: bool,
    rows: i64,
    pass: Option<Pass>,
    goes_on: bool,
}

/// A pass under way.
#[derive(Debug)]
struct Pass {
    began: Instant,
    place: Place,
    keep: config::Retention,
    /// Transactions delivered and resolved, rejected records, duplicates, rows of skipped offsets, processes.
    gone: [u64; 6],
}

/// Where it is.
#[derive(Debug, Clone)]
enum Place {
    Delivered(i64),
    Resolved(i64),
    Rejected,
    Duplicates(OffsetPlace),
    Skipped(OffsetPlace),
    Last,
}

impl Retention {
    pub(super) fn new(now: Instant) -> Self {
        Self { look_at: now + AFTER_START, is_due: false, rows: ROWS.1, pass: None, goes_on: false }
    }

    /// Learns from a count whether a pass is due.
    pub(super) fn learn(&mut self, gauges: &Gauges) {
        self.is_due = gauges.retention_due;
    }

    /// Whether this round ended amid a pass, which has rested between its steps. Says so once: a round that fails rests as any other.
    pub(super) fn goes_on(&mut self) -> bool {
        std::mem::take(&mut self.goes_on)
    }

    /// Fits the number of rows to what the last step took.
    fn adapt(&mut self, took: Duration) {
        if took > SLOW {
            self.rows = (self.rows / 2).max(ROWS.0);
        } else if took < SLOW / 3 {
            self.rows = (self.rows * 2).min(ROWS.1);
        }
    }
}

impl Upkeep {
    /// This round's share of a pass, if one is due. A role that may not delete, or a disk that is full, is retention's affair: the
    /// process does all of its other work.
    pub(super) fn retain(&mut self, session: &mut Session, process: ProcessId, rounds: &mut Rounds) -> Result<(), StoreError> {
        match self.share(session, process, rounds) {
            Err(error) if !matches!(error, StoreError::Connection(_)) => {
                rounds.retention.look_at = Instant::now() + AGAIN;
                rounds.session_failed = true;
                self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
                if let Some(note) = self.throttle.admit("retention failed", Instant::now()) {
                    log::warn!("retention failed, will try again in a minute: {error}{note}");
                }
                Ok(())
            }
            result => result,
        }
    }

    fn share(&mut self, session: &mut Session, process: ProcessId, rounds: &mut Rounds) -> Result<(), StoreError> {
        let now = Instant::now();
        if rounds.retention.pass.is_none() && (!rounds.retention.is_due || now < rounds.retention.look_at) {
            return Ok(());
        }
        if let Some(why) = unsafe_clock(rounds, now) {
            if let Some(note) = self.throttle.admit("retention", now) {
                log::warn!("retention waits: {why}{note}");
            }
            return Ok(());
        }
        let retention = &mut rounds.retention;
        let keep = self.config.get().retention;
        let mut pass =
            retention.pass.take().unwrap_or(Pass { began: now, place: Place::Delivered(i64::MIN), keep, gone: [0; 6] });
        // A reload counts at once, above all one that keeps more.
        pass.keep = keep;
        loop {
            let began = Instant::now();
            let stepped = pass.step(session, process, retention.rows).inspect_err(|_| retention.adapt(SLOW * 2))?;
            match stepped {
                Stepped::NotOurs => {
                    // Another process is at it, or has just done it.
                    retention.look_at = Instant::now() + AGAIN;
                    return Ok(());
                }
                Stepped::Ended => {
                    retention.is_due = false;
                    pass.say();
                    return Ok(());
                }
                Stepped::On => {}
            }
            let took = began.elapsed();
            retention.adapt(took);
            if now.elapsed() >= BUDGET || self.stop.wait(took.min(BUDGET)) {
                retention.pass = Some(pass);
                retention.goes_on = true;
                return Ok(());
            }
        }
    }
}

/// Why PostgreSQL's clock must not be trusted with deleting.
fn unsafe_clock(rounds: &Rounds, now: Instant) -> Option<String> {
    let clocks = &rounds.clocks;
    if clocks.apart > CLOCK_AGREES {
        let apart = clocks.apart.as_secs();
        return Some(format!(
            "PostgreSQL's clock and this machine's are {apart} s apart, and by a wrong one what is young would be old: set them right"
        ));
    }
    let jumped = clocks.far_forward_at.filter(|at| now.saturating_duration_since(*at) < AFTER_JUMP);
    jumped.map(|at| {
        let left = AFTER_JUMP.saturating_sub(now.saturating_duration_since(at)).as_secs().div_ceil(3600);
        format!("a clock was set forward; if it is right, it goes on in {left} h, or after a restart")
    })
}

enum Stepped {
    On,
    Ended,
    NotOurs,
}

impl Pass {
    fn step(&mut self, session: &mut Session, process: ProcessId, rows: i64) -> Result<Stepped, StoreError> {
        match (self.place.clone(), self.keep) {
            (Place::Delivered(after), config::Retention { delivered: Some(keep), .. }) => {
                let purged = session.purge_delivered(process, after, rows, keep)?;
                Ok(self.went(0, purged, Place::Delivered, Place::Resolved(i64::MIN)))
            }
            (Place::Resolved(after), config::Retention { dead: Some(keep), .. }) => {
                let purged = session.purge_resolved(process, after, rows, keep)?;
                Ok(self.went(1, purged, Place::Resolved, Place::Rejected))
            }
            (Place::Rejected, config::Retention { rejected: Some(keep), .. }) => {
                let purged = session.purge_rejected(process, rows, keep)?;
                Ok(self.went(2, purged, |()| Place::Rejected, Place::Duplicates(first_offset())))
            }
            (Place::Duplicates(after), config::Retention { delivered: Some(keep), .. }) => {
                let purged = session.purge_duplicates(process, &after, rows, keep)?;
                Ok(self.went(3, purged, Place::Duplicates, Place::Skipped(first_offset())))
            }
            (Place::Skipped(after), config::Retention { delivered: Some(keep), .. }) => {
                let purged = session.purge_skipped(process, &after, rows, keep)?;
                Ok(self.went(4, purged, Place::Skipped, Place::Last))
            }
            // Kept for ever.
            (Place::Delivered(_), _) => Ok(self.on(Place::Resolved(i64::MIN))),
            (Place::Resolved(_), _) => Ok(self.on(Place::Rejected)),
            (Place::Rejected, _) => Ok(self.on(Place::Duplicates(first_offset()))),
            (Place::Duplicates(_), _) => Ok(self.on(Place::Skipped(first_offset()))),
            (Place::Skipped(_), _) => Ok(self.on(Place::Last)),
            (Place::Last, _) => {
                let Some(gone) = session.end_retention(process)? else { return Ok(Stepped::NotOurs) };
                self.gone[5] += gone;
                Ok(Stepped::Ended)
            }
        }
    }

    /// Notes a step: it goes on `here`, or there is nothing old left and the `next` place follows.
    fn went<P>(&mut self, what: usize, purged: Option<Purged<P>>, here: impl FnOnce(P) -> Place, next: Place) -> Stepped {
        let Some(purged) = purged else { return Stepped::NotOurs };
        self.gone[what] += purged.gone;
        self.on(purged.next.map_or(next, here))
    }

    fn on(&mut self, place: Place) -> Stepped {
        self.place = place;
        Stepped::On
    }

    fn say(&self) {
        let [delivered, resolved, rejected, duplicates, skipped, processes] = self.gone;
        if self.gone.iter().any(|n| *n > 0) {
            log::info!(
                delivered = delivered, resolved = resolved, rejected = rejected, duplicates = duplicates, skipped = skipped;
                "retention deleted {delivered} delivered and {resolved} resolved transactions, {rejected} rejected records, \
                 {duplicates} duplicates, {skipped} rows of skipped offsets and {processes} processes in {:.1} s", self.began.elapsed().as_secs_f64()
            );
        }
    }
}

fn first_offset() -> OffsetPlace {
    (String::new(), i32::MIN, i16::MIN, i64::MIN)
}
