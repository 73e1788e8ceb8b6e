//! The settler: writes outcomes in batches. It retries the write, never the request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, select};

use super::brake::EVERY;
use super::put_off::{PUT_OFF, PutOff};
use crate::config::value::show_duration;
use crate::core::pace::Pace;
use crate::failpoint::{self, failpoint};
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::pulse;
use crate::ops::stop::Stop;
use crate::ops::throttle::Throttle;
use crate::store::{Link, ProcessId, Settlement, StoreError};

/// Beyond 500 rows a batch gains nothing (25x from 1 to 500, 1.2x from there; reference measurements on PostgreSQL 15).
const BATCH: usize = 500;
/// Between the beginnings of two batches 15 times what a commit takes, 40 to 100 ms: a lone outcome is written at once; in a steady
/// flow they gather. It delays no delivery, only the end of its lease: at 500/s there is one commit for some 25 deliveries, for fifty on a
/// slow disk where records wait for each of these flushes, and after a crash those are sent again.
const PACE: Pace = Pace::new(Duration::from_millis(40), Duration::from_millis(100), 15.0);
/// How often a batch that gathers is looked at. Not woken by each outcome: that would cost a switch of threads a delivery. So short
/// that the sleep needs no arm for a stop, at which what has gathered is written anyway.
const LOOK: Duration = Duration::from_millis(5);

/// Writes outcomes.
pub struct Settler {
    /// Its own connection.
    pub link: Link,
    /// See `Flow::unsettled`.
    pub unsettled: Arc<AtomicBool>,
    /// Series.
    pub metrics: Metrics,
    /// What it waits for.
    pub health: Health,
    /// Its deadline is until when it tries to write at a stop; it ends when the workers are gone.
    pub stop: Stop,
    /// Deliveries whose outcomes PostgreSQL refuses; begin with none.
    pub put_off: PutOff,
    /// What was said lately.
    pub throttle: Throttle,
}

impl Settler {
    /// Works until all workers are gone and everything is written, or the stop's deadline has passed.
    pub fn run(mut self, process: &Receiver<ProcessId>, outcomes: &Receiver<Settlement>) -> anyhow::Result<()> {
        pulse::at("waiting for the store", None);
        let process = select! {
            recv(process) -> process => process.unwrap_or_default(),
            // Stopped before the store was open: then nothing was leased either.
            recv(self.stop.signal()) -> _ => 0,
        };
        let mut batch = Vec::with_capacity(BATCH);
        let (mut pace, mut last) = (PACE, None);
        while collect(outcomes, &mut batch, &pace, &mut last, self.put_off.patience()) {
            pulse::at("writing outcomes", pulse::REMOTE);
            failpoint("thread-settler");
            if let Some(took) = self.write(process, &mut batch, outcomes)? {
                pace.took(took);
            }
            self.put_off.show(&self.health, Instant::now());
            // Not after the first batch: the rows of those that still wait may be due again, and a claim would send them twice.
            // It comes to this soon, because without claims nothing fresh is born leased either.
            if outcomes.is_empty() {
                self.unsettled.store(false, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Writes all of them, in as few transactions as PostgreSQL takes: what it refuses is halved until the culprit is alone. Returns
    /// how long it took, if there were any.
    fn write(
        &mut self,
        process: ProcessId,
        batch: &mut Vec<Settlement>,
        outcomes: &Receiver<Settlement>,
    ) -> anyhow::Result<Option<Duration>> {
        if batch.is_empty() {
            return Ok(None);
        }
        let began = Instant::now();
        let mut pieces = VecDeque::new();
        self.line_up(batch.drain(..), &mut pieces);
        while let Some(mut piece) = pieces.pop_front() {
            pulse::at("writing outcomes", pulse::REMOTE);
            let error = match self.settle(process, &piece) {
                Ok(()) => continue,
                Err(error) if error.refuses_rows() && piece.len() > 1 => {
                    pieces.push_front(piece.split_off(piece.len() / 2));
                    pieces.push_front(piece);
                    continue;
                }
                Err(error) if error.refuses_rows() => match self.set_aside(process, &piece[0], error) {
                    Ok(()) => {
                        // What has come meanwhile does not wait for others like this one.
                        let free = (2 * BATCH).saturating_sub(pieces.iter().map(Vec::len).sum());
                        self.line_up(outcomes.try_iter().take(free), &mut pieces);
                        continue;
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            pieces.push_front(piece);
            self.wait(&error, pieces.iter().map(Vec::len).sum())?;
        }
        self.health.go("settler", "postgres");
        let took = began.elapsed();
        self.metrics.commit_duration_seconds.with_label_values(&["settle"]).observe(took.as_secs_f64());
        Ok(Some(took))
    }

    /// In front of what waits, but those whose outcomes were refused before behind it.
    fn line_up(&self, outcomes: impl Iterator<Item = Settlement>, pieces: &mut VecDeque<Vec<Settlement>>) {
        let (refused, others): (Vec<_>, Vec<_>) = outcomes.partition(|outcome| self.put_off.knows(outcome.id));
        if !others.is_empty() {
            pieces.push_front(others);
        }
        if !refused.is_empty() {
            pieces.push_back(refused);
        }
    }

    fn settle(&mut self, process: ProcessId, piece: &[Settlement]) -> Result<(), StoreError> {
        let stale = self.link.run(|session| session.settle(process, piece))?;
        if self.put_off.taken(piece) {
            log::info!("PostgreSQL takes outcomes again");
        }
        self.metrics.settles_stale_total.inc_by(stale as u64);
        self.metrics.batch_rows.with_label_values(&["settle"]).observe(piece.len() as f64);
        Ok(())
    }

    /// One outcome that PostgreSQL refuses. It settles without its text. If that is refused too (a trigger, a constraint that somebody
    /// added), the delivery is put off, so that it holds up no other. Where many are refused in a row, perhaps all are: then the brake
    /// bounds how many are sent with nothing to show for it.
    fn set_aside(&mut self, process: ProcessId, settlement: &Settlement, reason: StoreError) -> Result<(), StoreError> {
        if settlement.tried().is_some_and(|tried| tried.error.is_some()) {
            match self.settle(process, &[settlement.clone().without_text()]) {
                Ok(()) => {
                    if let Some(note) = self.throttle.admit("refused text", Instant::now()) {
                        log::warn!("PostgreSQL refused an outcome's text ({reason}): it is written without{note}");
                    }
                    return Ok(());
                }
                Err(error) if !error.refuses_rows() => return Err(error),
                Err(_) => {}
            }
        }
        let (id, wait) = (settlement.id, failpoint::time("put-off", PUT_OFF));
        let follows = match self.link.run(|session| session.put_off(id, settlement.lease, wait)) {
            Ok(false) => "it came too late to change anything".to_owned(),
            Ok(true) => format!("its delivery is put off for {} and sent again then", show_duration(wait)),
            Err(error) if error.refuses_rows() => "its delivery is sent again when its lease ends".to_owned(),
            Err(error) => return Err(error),
        };
        let words = format!("PostgreSQL refuses the outcome of tx.id {id}: {reason}");
        if let Some(note) = self.throttle.admit("refused outcome", Instant::now()) {
            log::error!(tx = id; "{words}; {follows}, the others go on{note}");
        }
        self.metrics.postgres_errors_total.with_label_values(&[reason.kind()]).inc();
        let now = Instant::now();
        if self.put_off.note(id, words, now) {
            log::error!(
                "PostgreSQL takes no outcome any more: {reason}; until it takes one, one delivery is sent every {}",
                show_duration(EVERY)
            );
        }
        self.put_off.show(&self.health, now);
        Ok(())
    }

    /// Says why `n` outcomes are not written yet, and waits a moment.
    fn wait(&mut self, error: &StoreError, n: usize) -> anyhow::Result<()> {
        self.unsettled.store(true, Ordering::Release);
        self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
        if let Some(note) = self.throttle.admit(error.kind(), Instant::now()) {
            log::warn!(outcomes = n; "failed to write {n} outcomes, they are kept and written again: {error}{note}");
        }
        self.health.wait("settler", "postgres", format!("PostgreSQL: {error}"));
        anyhow::ensure!(
            !self.stop.is_overdue(),
            "gave up writing {n} outcomes at the end of shutdown.timeout: their leases end, and they are sent again"
        );
        pulse::at("waiting to write outcomes again", pulse::PROMPT);
        // The signal ends this wait once; from then on short waits up to the deadline: outcomes are flushed during a stop.
        if self.stop.is_stopping() {
            std::thread::sleep(Duration::from_millis(100));
        } else {
            self.stop.wait(self.link.pause(rand::random()));
        }
        Ok(())
    }
}

/// Waits for the first outcome (no longer than `patience`: then there is none), lets others gather until the pace allows another
/// batch or there is a full one, and takes them. False when all workers are gone and there is nothing left.
fn collect(
    outcomes: &Receiver<Settlement>,
    batch: &mut Vec<Settlement>,
    pace: &Pace,
    last: &mut Option<Instant>,
    patience: Option<Duration>,
) -> bool {
    pulse::at("waiting for outcomes", None);
    let first = match patience {
        None => outcomes.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(patience) => outcomes.recv_timeout(patience),
    };
    match first {
        Ok(first) => batch.push(first),
        Err(RecvTimeoutError::Timeout) => return true,
        Err(RecvTimeoutError::Disconnected) => return false,
    }
    loop {
        let left = last.map_or(Duration::ZERO, |last| pace.left(last.elapsed()));
        if left.is_zero() || batch.len() + outcomes.len() >= BATCH {
            break;
        }
        std::thread::sleep(left.min(LOOK));
    }
    *last = Some(Instant::now());
    batch.extend(outcomes.try_iter().take(BATCH - batch.len()));
    true
}
