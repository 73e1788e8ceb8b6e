//! Records that could not become transactions, for people. Of a conflict both records: the rejected one, and the transaction
//! that has its id.

use std::time::SystemTime;

use super::sql::{REJECTED_LIST, REJECTED_SHOW};
use super::{Session, StoreError};

/// Which of them.
#[derive(Debug, Clone, Default)]
pub struct RejectedFilter {
    /// Only of this reason.
    pub reason: Option<String>,
    /// Only of this topic.
    pub topic: Option<String>,
    /// Also those that are closed.
    pub closed: bool,
}

/// A transaction and where its record stood.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its id.
    pub transaction_id: String,
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Life of the partition's log.
    pub incarnation: i16,
    /// Offset.
    pub offset: i64,
    /// When it was stored.
    pub received_at: SystemTime,
}

impl Stored {
    /// Out of the columns of a row from `at` on.
    pub(super) fn of(row: &postgres::Row, at: usize) -> Self {
        Self {
            transaction_id: row.get(at),
            topic: row.get(at + 1),
            partition: row.get(at + 2),
            incarnation: row.get(at + 3),
            offset: row.get(at + 4),
            received_at: row.get(at + 5),
        }
    }
}

/// A rejected record, without its bytes.
#[derive(Debug, Clone)]
pub struct RejectedRow {
    /// `rejected.id`
    pub id: i64,
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Life of the partition's log.
    pub incarnation: i16,
    /// Offset.
    pub offset: i64,
    /// Why it was rejected.
    pub reason: String,
    /// In words.
    pub detail: Option<String>,
    /// When.
    pub received_at: SystemTime,
    /// When a person closed it.
    pub resolved_at: Option<SystemTime>,
    /// Of a conflict: `tx.id` of the transaction that has its id.
    pub tx_id: Option<i64>,
    /// Length of its value; `None`: a null.
    pub bytes: Option<i64>,
    /// Of a conflict: the transaction that has its id; `None`: it is not stored any more.
    pub stored: Option<Stored>,
}

/// A rejected record with its bytes.
#[derive(Debug, Clone)]
pub struct RejectedRecord {
    /// What the list shows.
    pub row: RejectedRow,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Headers, as in table `tx`.
    pub headers: Option<serde_json::Value>,
    /// Value.
    pub payload: Option<Vec<u8>>,
    /// Value of the stored transaction of a conflict.
    pub stored_payload: Option<Vec<u8>>,
}

impl Session {
    /// Up to `most` behind `after`, in the order in which they were rejected.
    pub fn rejected(&mut self, filter: &RejectedFilter, after: i64, most: i64) -> Result<Vec<RejectedRow>, StoreError> {
        let statement = self.prepare(&REJECTED_LIST)?;
        let rows = self.client.query(&statement, &[&after, &most, &filter.reason, &filter.topic, &filter.closed])?;
        Ok(rows.iter().map(row_of).collect())
    }

    /// One with its bytes.
    pub fn rejected_record(&mut self, id: i64) -> Result<Option<RejectedRecord>, StoreError> {
        let statement = self.prepare(&REJECTED_SHOW)?;
        let row = self.client.query_opt(&statement, &[&id])?;
        Ok(row.map(|row| RejectedRecord {
            row: row_of(&row),
            key: row.get(17),
            headers: row.get(18),
            payload: row.get(19),
            stored_payload: row.get(20),
        }))
    }
}

/// The first columns of both statements.
fn row_of(row: &postgres::Row) -> RejectedRow {
    RejectedRow {
        id: row.get(0),
        topic: row.get(1),
        partition: row.get(2),
        incarnation: row.get(3),
        offset: row.get(4),
        reason: row.get(5),
        detail: row.get(6),
        received_at: row.get(7),
        resolved_at: row.get(8),
        tx_id: row.get(9),
        bytes: row.get(10),
        stored: row.get::<_, Option<String>>(11).map(|_| Stored::of(row, 11)),
    }
}
