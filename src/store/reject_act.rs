//! What people do to rejected records: look at them again under the present rules, give them an id, close them.
//!
//! **The rule of accounting.** An offset has one place, and a rejected record's row is its place for good, also when it has become
//! a transaction (`became_id`): that carries the record's coordinates and is no place. The audit goes forward and never
//! takes back what it has settled. So retention counts a deleted transaction's offset only where no rejected row points at it,
//! and keeps that row until the transaction has gone. The counters stay flows: the record was read and rejected, and
//! the transaction counts as `reopened`, so both equations hold.

use std::sync::Arc;
use std::time::SystemTime;

use postgres::Transaction;
use serde_json::Value;

use super::act::{Trace, shortened};
use super::sql::{
    AUDIT, NEW_TOPIC, REINJECT, REJECTED_BATCH, REJECTED_COMPARE, REJECTED_FIND, REJECTED_RESOLVE, REJECTED_ROWS,
    REJECTED_SUMMARY, REJECTED_TAKE, RETENTION_SHARE,
};
use super::{Session, StoreError, slot};
use crate::core::headers;
use crate::core::record::{Record, TopicPartition};

/// Which rejected records.
#[derive(Debug, Clone, Default)]
pub struct RejectFilter {
    /// Read at or after.
    pub since: Option<SystemTime>,
    /// Read before.
    pub until: Option<SystemTime>,
    /// Label of the reason.
    pub reason: Option<String>,
    /// Also those that people have closed.
    pub resolved_too: bool,
}

/// How many that nobody has resolved, and when the first and the last of them were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RejectSummary {
    /// How many.
    pub count: i64,
    /// When the first was read.
    pub oldest: Option<SystemTime>,
    /// When the last was read.
    pub newest: Option<SystemTime>,
}

/// A rejected record, whole.
#[derive(Debug, Clone)]
pub struct ExportedRow {
    /// Its number.
    pub id: i64,
    /// Where it stands.
    pub topic: String,
    /// Where it stands.
    pub partition: i32,
    /// Life of the topic.
    pub incarnation: i16,
    /// Where it stands.
    pub kafka_offset: i64,
    /// Label of the reason.
    pub reason: String,
    /// For people.
    pub detail: Option<String>,
    /// When it was read.
    pub received_at: SystemTime,
    /// When a person closed it.
    pub resolved_at: Option<SystemTime>,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The headers, as stored.
    pub headers: Option<Value>,
    /// The value.
    pub payload: Option<Vec<u8>>,
}

/// What became of a rejected record that was looked at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Became {
    /// A transaction with this id, due now.
    Transaction(String),
    /// Nothing new: the same bytes are stored under this id. It is closed.
    Repeat(String),
    /// Nothing: other bytes are stored under this id. It stays.
    Conflict(String),
    /// Nothing, for this reason. It stays.
    Rejected(String),
}

/// One record's fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `rejected.id`
    pub id: i64,
    /// What became of it.
    pub became: Became,
}

/// Of `slot`: as in `act`.
const ROLE: i32 = 3;

impl Session {
    /// Of these rejected records, those that there are, and whether they are closed.
    pub fn find_rejected(&mut self, ids: &[i64]) -> Result<Vec<(i64, bool)>, StoreError> {
        let statement = self.prepare(&REJECTED_FIND)?;
        Ok(self.client.query(&statement, &[&ids])?.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// What `filter` means among those that nobody has resolved.
    pub fn rejected_summary(&mut self, filter: &RejectFilter) -> Result<RejectSummary, StoreError> {
        let statement = self.prepare(&REJECTED_SUMMARY)?;
        let row = self.client.query_one(&statement, &[&filter.since, &filter.until, &filter.reason])?;
        Ok(RejectSummary { count: row.get(0), oldest: row.get(1), newest: row.get(2) })
    }

    /// The next `rows` of them behind `after`, by `rejected.id`.
    pub fn rejected_batch(&mut self, filter: &RejectFilter, after: i64, rows: usize) -> Result<Vec<i64>, StoreError> {
        let statement = self.prepare(&REJECTED_BATCH)?;
        let RejectFilter { since, until, reason, resolved_too } = filter;
        let rows = self.client.query(&statement, &[since, until, reason, &after, &(rows as i64), resolved_too])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// These rejected records, whole, by number.
    pub fn rejected_rows(&mut self, ids: &[i64]) -> Result<Vec<ExportedRow>, StoreError> {
        let statement = self.prepare(&REJECTED_ROWS)?;
        let row = |row: &postgres::Row| ExportedRow {
            id: row.get(0),
            topic: row.get(1),
            partition: row.get(2),
            incarnation: row.get(3),
            kafka_offset: row.get(4),
            reason: row.get(5),
            detail: row.get(6),
            received_at: row.get(7),
            resolved_at: row.get(8),
            key: row.get(9),
            headers: row.get(10),
            payload: row.get(11),
        };
        Ok(self.client.query(&statement, &[&ids])?.iter().map(row).collect())
    }

    /// Looks at these again, at most 500, in one transaction: those to which `name` gives an id become transactions. With
    /// `trace: None` nothing is changed. Those that a person has closed meanwhile are absent from the answer.
    pub fn reinject(
        &mut self,
        ids: &[i64],
        name: &dyn Fn(&Record) -> Result<String, String>,
        who: &str,
        why: &str,
        trace: Option<&Trace>,
    ) -> Result<Vec<Verdict>, StoreError> {
        let s = Statements {
            reinject: self.prepare(&REINJECT)?,
            compare: self.prepare(&REJECTED_COMPARE)?,
            resolve: self.prepare(&REJECTED_RESOLVE)?,
        };
        let (take, topic, audit) = (self.prepare(&REJECTED_TAKE)?, self.prepare(&NEW_TOPIC)?, self.prepare(&AUDIT)?);
        let share = self.prepare(&RETENTION_SHARE)?;
        let mut transaction = self.client.transaction()?;
        transaction.execute(&share, &[])?;
        let (mut verdicts, mut named) = (Vec::new(), Vec::new());
        for row in transaction.query(&take, &[&ids])? {
            let (id, record) = (row.get(0), record(&row));
            transaction.execute(&topic, &[&&*record.at.topic])?;
            match name(&record) {
                Ok(transaction_id) => named.push((transaction_id, id)),
                Err(why) => verdicts.push(Verdict { id, became: Became::Rejected(why) }),
            }
        }
        named.sort_unstable();
        become_transactions(&mut transaction, &s, named, who, why, &mut verdicts)?;
        verdicts.sort_unstable_by_key(|verdict| verdict.id);
        let moved = |verdict: &&Verdict| matches!(verdict.became, Became::Transaction(_) | Became::Repeat(_));
        let done: Vec<i64> = verdicts.iter().filter(moved).map(|verdict| verdict.id).collect();
        match trace {
            Some(trace) if !done.is_empty() => {
                trace.leave(
                    &mut transaction,
                    &audit,
                    &format!("{} rejected records became transactions: rejected.id {}", done.len(), shortened(&done)),
                )?;
                transaction.commit()?;
            }
            _ => transaction.rollback()?,
        }
        Ok(verdicts)
    }

    /// Closes rejected records that nobody has resolved. Returns which.
    pub fn resolve_rejected(&mut self, ids: &[i64], who: &str, reason: &str, trace: &Trace) -> Result<Vec<i64>, StoreError> {
        let (resolve, audit) = (self.prepare(&REJECTED_RESOLVE)?, self.prepare(&AUDIT)?);
        let mut transaction = self.client.transaction()?;
        let done: Vec<i64> = transaction.query(&resolve, &[&ids, &who, &reason])?.iter().map(|row| row.get(0)).collect();
        if !done.is_empty() {
            trace.leave(
                &mut transaction,
                &audit,
                &format!("{} rejected records resolved: rejected.id {}", done.len(), shortened(&done)),
            )?;
        }
        transaction.commit()?;
        Ok(done)
    }
}

struct Statements {
    reinject: postgres::Statement,
    compare: postgres::Statement,
    resolve: postgres::Statement,
}

/// `named`: ids and rejected.id, sorted, so that two who do this at once do not deadlock.
fn become_transactions(
    transaction: &mut Transaction<'_>,
    s: &Statements,
    mut named: Vec<(String, i64)>,
    who: &str,
    why: &str,
    verdicts: &mut Vec<Verdict>,
) -> Result<(), StoreError> {
    if named.is_empty() {
        return Ok(());
    }
    let split = |named: &[(String, i64)]| -> (Vec<String>, Vec<i64>) { named.iter().cloned().unzip() };
    let (names, ids) = split(&named);
    let new = transaction.query(&s.reinject, &[&ids, &names, &who, &why, &slot(0, ROLE)])?;
    let new: Vec<i64> = new.iter().map(|row| row.get(0)).collect();
    named.retain(|(name, id)| {
        let became = new.contains(id);
        if became {
            verdicts.push(Verdict { id: *id, became: Became::Transaction(name.clone()) });
        }
        !became
    });
    let (names, ids) = split(&named);
    // A statement of its own: it sees what the one before has inserted.
    let found = transaction.query(&s.compare, &[&ids, &names])?;
    let equal: Vec<i64> = found.iter().filter(|row| row.get::<_, bool>(2)).map(|row| row.get(0)).collect();
    let missing = named.len() - found.len();
    if missing > 0 {
        return Err(StoreError::Busy(format!("{missing} ids were neither inserted nor found: try again")));
    }
    transaction.execute(&s.resolve, &[&equal, &who, &"the same bytes are stored under its id"])?;
    verdicts.extend(named.into_iter().map(|(name, id)| {
        let became = if equal.contains(&id) { Became::Repeat(name) } else { Became::Conflict(name) };
        Verdict { id, became }
    }));
    Ok(())
}

/// Of `rejected_take`: the record as it was read, but for its time, which is not kept.
fn record(row: &postgres::Row) -> Record {
    Record {
        at: TopicPartition { topic: Arc::from(row.get::<_, &str>(1)), partition: row.get(2) },
        offset: row.get(4),
        timestamp_ms: None,
        key: row.get(5),
        value: row.get(7),
        headers: row.get::<_, Option<Value>>(6).map(|stored| headers::from_json(&stored)).unwrap_or_default(),
    }
}
