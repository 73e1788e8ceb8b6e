//! Writing outcomes, fenced by the lease: up to 500 in one transaction.

use std::time::{Duration, SystemTime};

use super::sql::{GIVE_BACK, PUT_OFF, SETTLE_DELIVERED, SETTLE_DIED, SETTLE_FAILED, SETTLE_STALE};
use super::{ProcessId, Session, StoreError, slot};
use crate::core::outcome::{Outcome, Sent};
use crate::failpoint::failpoint;

/// What became of one leased delivery.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// `tx.id`
    pub id: i64,
    /// The fence: the lease under which it was sent.
    pub lease: i64,
    /// Which attempt.
    pub attempt: i32,
    /// When it was received, as PostgreSQL said: with the id, which transaction it is. After a failover to a replica that was
    /// behind, the id alone may be another's.
    pub received_at: SystemTime,
    /// What follows.
    pub what: Settled,
}

/// What follows from an attempt.
#[derive(Debug, Clone)]
pub enum Settled {
    /// Finished.
    Delivered(Tried),
    /// To be tried again.
    Failed {
        /// The attempt.
        tried: Tried,
        /// Due again after this.
        delay: Duration,
        /// Added to what it has spent.
        spend: Duration,
    },
    /// Given up.
    Died {
        /// The attempt.
        tried: Tried,
        /// `refused` or `gave_up`.
        reason: &'static str,
    },
    /// Not sent; the attempt does not count.
    GivenBack,
}

/// One HTTP attempt, as recorded.
#[derive(Debug, Clone)]
pub struct Tried {
    /// Class.
    pub outcome: Outcome,
    /// HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// Whether the service may have seen it.
    pub sent: Sent,
    /// How long it took.
    pub latency: Duration,
    /// Cleaned text of the error or the answer.
    pub error: Option<String>,
}

impl Settlement {
    /// The attempt; `None`: nothing was sent.
    pub fn tried(&self) -> Option<&Tried> {
        match &self.what {
            Settled::Delivered(tried) | Settled::Failed { tried, .. } | Settled::Died { tried, .. } => Some(tried),
            Settled::GivenBack => None,
        }
    }

    /// The same without its text: for the one whose text PostgreSQL refuses.
    pub fn without_text(mut self) -> Self {
        match &mut self.what {
            Settled::Delivered(tried) | Settled::Failed { tried, .. } | Settled::Died { tried, .. } => tried.error = None,
            Settled::GivenBack => {}
        }
        self
    }
}

/// The columns of an attempt, in the order of the statements' arrays.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<i64>,
    leases: Vec<i64>,
    attempts: Vec<i32>,
    outcomes: Vec<i16>,
    statuses: Vec<Option<i16>>,
    sent: Vec<i16>,
    ms: Vec<i32>,
    errors: Vec<Option<&'a str>>,
    received: Vec<SystemTime>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, s: &Settlement, tried: &'a Tried) {
        self.ids.push(s.id);
        self.leases.push(s.lease);
        self.attempts.push(s.attempt);
        self.outcomes.push(tried.outcome as i16);
        self.statuses.push(tried.status.map(|status| status as i16));
        self.sent.push(tried.sent as i16);
        self.ms.push(i32::try_from(tried.latency.as_millis()).unwrap_or(i32::MAX));
        self.errors.push(tried.error.as_deref());
        self.received.push(s.received_at);
    }
}

impl Session {
    /// Frees a delivery that was sent and whose outcome is refused: it is due again after `wait`. Returns whether its lease was
    /// still this one. It writes no history: that is what may be refused.
    pub fn put_off(&mut self, id: i64, lease: i64, wait: Duration) -> Result<bool, StoreError> {
        let statement = self.prepare(&PUT_OFF)?;
        Ok(self.client.execute(&statement, &[&id, &lease, &(wait.as_millis() as i64)])? == 1)
    }

    /// Settles a batch in one transaction and returns how many were stale: their lease was no longer the row's, so that
    /// they changed nothing but the history. Repeating a batch whose COMMIT answer was lost is harmless.
    pub fn settle(&mut self, process: ProcessId, batch: &[Settlement]) -> Result<usize, StoreError> {
        failpoint("step-settle");
        let mut batch: Vec<&Settlement> = batch.iter().collect();
        // In order of id: two processes that settle the same rows would deadlock otherwise.
        batch.sort_unstable_by_key(|s| s.id);
        let counter_slot = slot(process, 1);
        let (mut delivered, mut failed, mut died) = (Columns::default(), Columns::default(), Columns::default());
        let (mut delays, mut spends, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        let (mut back_ids, mut back_leases) = (Vec::new(), Vec::new());
        for s in &batch {
            match &s.what {
                Settled::Delivered(tried) => delivered.push(s, tried),
                Settled::Failed { tried, delay, spend } => {
                    failed.push(s, tried);
                    delays.push(delay.as_millis() as i64);
                    spends.push(spend.as_millis() as i64);
                }
                Settled::Died { tried, reason } => {
                    died.push(s, tried);
                    reasons.push(*reason);
                }
                Settled::GivenBack => {
                    back_ids.push(s.id);
                    back_leases.push(s.lease);
                }
            }
        }
        let statements = [SETTLE_DELIVERED, SETTLE_FAILED, SETTLE_DIED, GIVE_BACK, SETTLE_STALE];
        let [s_delivered, s_failed, s_died, s_back, s_stale] = statements.map(|sql| self.prepare(&sql));
        let mut transaction = self.client.transaction()?;
        let mut settled: Vec<(i64, i64)> = Vec::with_capacity(batch.len());
        if !delivered.ids.is_empty() {
            let c = &delivered;
            let rows = transaction.query(&s_delivered?, &[&c.ids, &c.leases, &c.attempts, &c.statuses, &c.ms, &counter_slot])?;
            settled.extend(rows.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, i64>(1))));
        }
        if !failed.ids.is_empty() {
            let c = &failed;
            let rows = transaction.query(
                &s_failed?,
                &[&c.ids, &c.leases, &c.attempts, &c.outcomes, &c.statuses, &c.sent, &c.ms, &delays, &spends, &c.errors],
            )?;
            settled.extend(rows.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, i64>(1))));
        }
        if !died.ids.is_empty() {
            let c = &died;
            let rows = transaction.query(
                &s_died?,
                &[&c.ids, &c.leases, &c.attempts, &c.outcomes, &c.statuses, &c.sent, &c.ms, &reasons, &c.errors, &counter_slot],
            )?;
            settled.extend(rows.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, i64>(1))));
        }
        if !back_ids.is_empty() {
            transaction.execute(&s_back?, &[&back_ids, &back_leases, &0_i64])?;
            failpoint("step-give-back-commit");
        }
        let mut stale = 0;
        if settled.len() < batch.len() - back_ids.len() {
            settled.sort_unstable();
            let mut refused = Columns::default();
            for s in batch.iter().filter(|s| settled.binary_search(&(s.id, s.lease)).is_err()) {
                if let Some(tried) = s.tried() {
                    refused.push(s, tried);
                }
            }
            let c = &refused;
            stale = transaction
                .query(
                    &s_stale?,
                    &[&c.ids, &c.leases, &c.attempts, &c.outcomes, &c.statuses, &c.sent, &c.ms, &c.errors, &c.received],
                )?
                .len();
        }
        failpoint("step-settle-commit");
        transaction.commit()?;
        failpoint("step-settled");
        Ok(stale)
    }
}
