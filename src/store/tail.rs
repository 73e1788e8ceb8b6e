//! Attempts by time, for `tail` and `stats`.

use std::time::SystemTime;

use super::look::{AttemptRow, outcome, sent};
use super::sql::{STATS_HOUR, STATS_RECEIVED, TAIL};
use super::{Session, StoreError};

/// An attempt, and of what.
#[derive(Debug, Clone)]
pub struct TailRow {
    /// `tx.id`
    pub tx_id: i64,
    /// `None`: retention took the transaction this moment.
    pub transaction_id: Option<String>,
    /// The attempt.
    pub attempt: AttemptRow,
}

/// What happened in some time.
#[derive(Debug, Clone, Default)]
pub struct HourCounts {
    /// Transactions received.
    pub received: i64,
    /// Attempts: code of the outcome, whole milliseconds (-1: not known), how many.
    pub attempts: Vec<(i16, i32, i64)>,
}

impl Session {
    /// The next `rows` attempts that finished at or after `from`, in the order in which they finished.
    pub fn tail(&mut self, from: SystemTime, rows: usize) -> Result<Vec<TailRow>, StoreError> {
        let statement = self.prepare(&TAIL)?;
        let row = |row: &postgres::Row| TailRow {
            tx_id: row.get(0),
            transaction_id: row.get(3),
            attempt: AttemptRow {
                n: row.get(1),
                finished_at: row.get(2),
                outcome: outcome(row.get(4)),
                http_status: row.get(5),
                latency_ms: row.get(6),
                sent: sent(row.get(7)),
                stale: row.get(8),
                error: row.get(9),
            },
        };
        Ok(self.client.query(&statement, &[&from, &(rows as i64)])?.iter().map(row).collect())
    }

    /// What happened from `from` to `to`, without that.
    pub fn counts(&mut self, from: SystemTime, to: SystemTime) -> Result<HourCounts, StoreError> {
        let (attempts, received) = (self.prepare(&STATS_HOUR)?, self.prepare(&STATS_RECEIVED)?);
        let rows = self.client.query(&attempts, &[&from, &to])?;
        Ok(HourCounts {
            received: self.client.query_one(&received, &[&from, &to])?.get(0),
            attempts: rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect(),
        })
    }
}
