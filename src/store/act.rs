//! What people do to transactions: retry and resolve. Each action changes the ledger's counters and leaves its line in
//! `audit_log`, in the transaction of the rows themselves.

use std::time::SystemTime;

use postgres::types::ToSql;

use super::sql::{
    AUDIT, DEAD_BATCH, DEAD_SUMMARY, FIND, RESOLVE_DEAD, RESOLVE_WAITING, RETENTION_SHARE, RETRY_DEAD, RETRY_DELIVERED,
    RETRY_WAITING,
};
use super::{Session, Sql, StoreError, slot};

/// Where a transaction stands, as far as it decides what may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A process may be sending it this moment.
    InFlight,
    /// Open, in nobody's hand.
    Waiting,
    /// Given up.
    Dead,
    /// Closed by a person.
    Resolved,
    /// Accepted by the service.
    Delivered,
    /// Accepted by the service, and its content has been erased since.
    Erased,
    /// Stored, and in no state: an alarm.
    Unaccounted,
}

impl Standing {
    fn of(text: &str) -> Self {
        match text {
            "in_flight" => Self::InFlight,
            "waiting" => Self::Waiting,
            "dead" => Self::Dead,
            "resolved" => Self::Resolved,
            "delivered" => Self::Delivered,
            "erased" => Self::Erased,
            _ => Self::Unaccounted,
        }
    }
}

/// A transaction that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// As asked.
    pub transaction_id: String,
    /// `tx.id`
    pub id: i64,
    /// Where it stands.
    pub standing: Standing,
    /// When it was stored.
    pub received_at: SystemTime,
}

/// Which of the dead.
#[derive(Debug, Clone, Default)]
pub struct DeadFilter {
    /// Died at or after.
    pub since: Option<SystemTime>,
    /// Died before.
    pub until: Option<SystemTime>,
    /// HTTP status of the last attempt.
    pub status: Option<u16>,
}

/// How many, and when the first and the last of them died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadSummary {
    /// How many.
    pub count: i64,
    /// When the first of them died.
    pub oldest: Option<SystemTime>,
    /// When the last of them died.
    pub newest: Option<SystemTime>,
}

/// Who acts, for `audit_log`.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// The process's user.
    pub uid: Option<u32>,
    /// Who became that user.
    pub sudo_user: Option<String>,
    /// Where.
    pub host: String,
    /// The command line.
    pub command: String,
}

/// Of `slot`: commands add to these counters.
const ROLE: i32 = 3;

impl Session {
    /// Those of these transactions that are known, in this order.
    pub fn find(&mut self, transaction_ids: &[&str]) -> Result<Vec<Found>, StoreError> {
        let statement = self.prepare(&FIND)?;
        let rows = self.client.query(&statement, &[&transaction_ids])?;
        let found = |row: &postgres::Row| Found {
            transaction_id: row.get(0),
            id: row.get(1),
            standing: Standing::of(row.get(2)),
            received_at: row.get(3),
        };
        Ok(rows.iter().map(found).collect())
    }

    /// What `filter` means.
    pub fn dead_summary(&mut self, filter: &DeadFilter) -> Result<DeadSummary, StoreError> {
        let statement = self.prepare(&DEAD_SUMMARY)?;
        let row = self.client.query_one(&statement, &[&filter.since, &filter.until, &filter.http_status()])?;
        Ok(DeadSummary { count: row.get(0), oldest: row.get(1), newest: row.get(2) })
    }

    /// The next `rows` of them behind `after`, by `tx.id`.
    pub fn dead_batch(&mut self, filter: &DeadFilter, after: i64, rows: usize) -> Result<Vec<i64>, StoreError> {
        let statement = self.prepare(&DEAD_BATCH)?;
        let status = filter.http_status();
        let rows = self.client.query(&statement, &[&filter.since, &filter.until, &status, &after, &(rows as i64)])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Dead ones are due now, with a fresh budget. Returns which were dead.
    pub fn retry_dead(&mut self, ids: &[i64], trace: &Trace) -> Result<Vec<i64>, StoreError> {
        self.act(&RETRY_DEAD, &[&ids, &slot(0, ROLE)], trace, "dead ones due again")
    }

    /// Waiting ones are due now, with a fresh budget; what is in flight is left alone. Returns which were waiting.
    pub fn retry_waiting(&mut self, ids: &[i64], trace: &Trace) -> Result<Vec<i64>, StoreError> {
        self.act(&RETRY_WAITING, &[&ids], trace, "waiting ones due now")
    }

    /// Delivered ones are sent once more. Returns which were delivered and nothing else.
    pub fn retry_delivered(&mut self, ids: &[i64], trace: &Trace) -> Result<Vec<i64>, StoreError> {
        self.act(&RETRY_DELIVERED, &[&ids, &slot(0, ROLE)], trace, "delivered ones due again")
    }

    /// Closes dead ones without sending. Returns which were dead.
    pub fn resolve_dead(&mut self, ids: &[i64], who: &str, reason: &str, trace: &Trace) -> Result<Vec<i64>, StoreError> {
        self.act(&RESOLVE_DEAD, &[&ids, &who, &reason, &slot(0, ROLE)], trace, "dead ones resolved")
    }

    /// Closes waiting ones without sending; what is in flight is left alone. Returns which were waiting.
    pub fn resolve_waiting(&mut self, ids: &[i64], who: &str, reason: &str, trace: &Trace) -> Result<Vec<i64>, StoreError> {
        self.act(&RESOLVE_WAITING, &[&ids, &who, &reason, &slot(0, ROLE)], trace, "waiting ones resolved")
    }

    fn act(&mut self, sql: &Sql, values: &[&(dyn ToSql + Sync)], trace: &Trace, what: &str) -> Result<Vec<i64>, StoreError> {
        let (statement, audit, share) = (self.prepare(sql)?, self.prepare(&AUDIT)?, self.prepare(&RETENTION_SHARE)?);
        let mut transaction = self.client.transaction()?;
        // Retention looks at what was committed before its step began: what is opened again meanwhile must not go with it.
        transaction.execute(&share, &[])?;
        let done: Vec<i64> = transaction.query(&statement, values)?.iter().map(|row| row.get(0)).collect();
        if !done.is_empty() {
            trace.leave(&mut transaction, &audit, &format!("{} {what}: tx.id {}", done.len(), shortened(&done)))?;
        }
        transaction.commit()?;
        Ok(done)
    }
}

impl Trace {
    /// A line in `audit_log`, in the transaction of what it is about.
    pub(super) fn leave(
        &self,
        transaction: &mut postgres::Transaction<'_>,
        audit: &postgres::Statement,
        detail: &str,
    ) -> Result<(), StoreError> {
        let uid = self.uid.and_then(|uid| i32::try_from(uid).ok());
        transaction.execute(audit, &[&uid, &self.sudo_user, &self.host, &self.command, &detail])?;
        Ok(())
    }
}

impl DeadFilter {
    fn http_status(&self) -> Option<i16> {
        self.status.and_then(|status| i16::try_from(status).ok())
    }
}

/// A few in full, more by the first and last.
pub(super) fn shortened(ids: &[i64]) -> String {
    match ids {
        [first, .., last] if ids.len() > 10 => format!("{first} to {last}"),
        _ => ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", "),
    }
}
