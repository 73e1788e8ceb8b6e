//! The settler: writes outcomes in batches. It retries the write, never the request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use crate::failpoint::failpoint;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::pulse;
use crate::ops::stop::Stop;
use crate::ops::throttle::Throttle;
use crate::store::{Link, ProcessId, Settlement, StoreError};

/// Beyond 500 rows a batch gains nothing (25x from 1 to 500, 1.2x from there; reference measurements on PostgreSQL 15).
const BATCH: usize = 500;
/// The least time between the beginnings of two batches. A lone outcome is written at once; in a steady flow they gather. It
/// delays no delivery, only the end of its lease: at 500/s 5 ms cost one commit for two deliveries, 20 ms one for ten.
const PACE: Duration = Duration::from_millis(20);
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
        let mut throttle = Throttle::per_minute();
        let mut batch = Vec::with_capacity(BATCH);
        let mut last = None;
        while collect(outcomes, &mut batch, &mut last) {
            pulse::at("writing outcomes", pulse::REMOTE);
            failpoint("thread-settler");
            self.write(process, &mut batch, &mut throttle)?;
            // Not after the first batch: the rows of those that still wait may be due again, and a claim would send them twice.
            // It comes to this soon, because without claims nothing fresh is born leased either.
            if outcomes.is_empty() {
                self.unsettled.store(false, Ordering::Release);
            }
        }
        Ok(())
    }

    fn write(&mut self, process: ProcessId, batch: &mut Vec<Settlement>, throttle: &mut Throttle) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let error = match self.settle(process, batch, throttle) {
                Ok(stale) => {
                    self.health.go("settler", "postgres");
                    self.metrics.settles_stale_total.inc_by(stale as u64);
                    self.metrics.batch_rows.with_label_values(&["settle"]).observe(batch.len() as f64);
                    self.metrics.commit_duration_seconds.with_label_values(&["settle"]).observe(began.elapsed().as_secs_f64());
                    batch.clear();
                    return Ok(());
                }
                Err(error) => error,
            };
            self.unsettled.store(true, Ordering::Release);
            self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
            if let Some(note) = throttle.admit(error.kind(), Instant::now()) {
                log::warn!(outcomes = batch.len(); "failed to write {} outcomes, they are kept and written again: {error}{note}", batch.len());
            }
            self.health.wait("settler", "postgres", format!("PostgreSQL: {error}"));
            anyhow::ensure!(
                !self.stop.is_overdue(),
                "gave up writing {} outcomes at the end of shutdown.timeout: their leases end, and they are sent again",
                batch.len()
            );
            pulse::at("waiting to write outcomes again", pulse::PROMPT);
            // The signal ends this wait once; from then on short waits up to the deadline: outcomes are flushed during a stop.
            if self.stop.is_stopping() {
                std::thread::sleep(Duration::from_millis(100));
            } else {
                self.stop.wait(self.link.pause(rand::random()));
            }
        }
    }

    /// One batch; one that PostgreSQL refuses is halved until the culprit is alone. It settles without its text; if that is
    /// refused too (somebody changed rows by hand), it is left to its lease, loudly, so that it cannot hold up the others.
    fn settle(&mut self, process: ProcessId, batch: &[Settlement], throttle: &mut Throttle) -> Result<usize, StoreError> {
        pulse::at("writing outcomes", pulse::REMOTE);
        let reason = match self.link.run(|session| session.settle(process, batch)) {
            Err(StoreError::Value(reason) | StoreError::Constraint(reason) | StoreError::Taken(reason)) => reason,
            other => return other,
        };
        if batch.len() > 1 {
            let (left, right) = batch.split_at(batch.len() / 2);
            return Ok(self.settle(process, left, throttle)? + self.settle(process, right, throttle)?);
        }
        let bare: Vec<Settlement> = batch.iter().cloned().map(Settlement::without_text).collect();
        if let Some(note) = throttle.admit("refused outcome", Instant::now()) {
            log::warn!("PostgreSQL refuses an outcome ({reason}): it is written without its text{note}");
        }
        match self.link.run(|session| session.settle(process, &bare)) {
            Err(StoreError::Value(reason) | StoreError::Constraint(reason) | StoreError::Taken(reason)) => {
                if let Some(note) = throttle.admit("lost outcome", Instant::now()) {
                    let id = bare[0].id;
                    log::error!(tx = id; "the outcome of tx.id {id} cannot be written ({reason}): it is sent again when its lease ends{note}");
                }
                Ok(0)
            }
            other => other,
        }
    }
}

/// Waits for the first outcome, lets others gather until the pace allows another batch or there is a full one, and takes them.
/// False when all workers are gone and there is nothing left.
fn collect(outcomes: &Receiver<Settlement>, batch: &mut Vec<Settlement>, last: &mut Option<Instant>) -> bool {
    pulse::at("waiting for outcomes", None);
    let Ok(first) = outcomes.recv() else { return false };
    batch.push(first);
    let until = last.map(|last| last + PACE);
    while let Some(left) = until.and_then(|until| until.checked_duration_since(Instant::now()))
        && !left.is_zero()
        && batch.len() + outcomes.len() < BATCH
    {
        std::thread::sleep(left.min(LOOK));
    }
    *last = Some(Instant::now());
    batch.extend(outcomes.try_iter().take(BATCH - batch.len()));
    true
}
