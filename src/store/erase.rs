//! `erase`, `pause` and `resume`: what people do to contents, and to delivering as a whole.

use std::time::{Duration, SystemTime};

use super::act::{Trace, shortened};
use super::sql::{AUDIT, ERASE, ERASE_LOCK, ERASE_STANDING, PAUSE, RESUME};
use super::{Session, StoreError};

/// What decides whether a transaction's content may go, apart from where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EraseStanding {
    /// `tx.id`
    pub id: i64,
    /// It has gone already.
    pub erased: bool,
    /// A rejected record that claims its id, and that nobody has resolved.
    pub claimed_by: Option<i64>,
}

/// What became of delivering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    /// Until when; `None`: until somebody resumes it.
    pub until: Option<SystemTime>,
}

impl Session {
    /// What decides whether these transactions' contents may go.
    pub fn erase_standing(&mut self, ids: &[i64]) -> Result<Vec<EraseStanding>, StoreError> {
        let statement = self.prepare(&ERASE_STANDING)?;
        let rows = self.client.query(&statement, &[&ids])?;
        Ok(rows.iter().map(|row| EraseStanding { id: row.get(0), erased: row.get(1), claimed_by: row.get(2) }).collect())
    }

    /// Takes the content out of finished transactions. Returns out of which.
    pub fn erase(&mut self, ids: &[i64], who: &str, reason: &str, trace: &Trace) -> Result<Vec<i64>, StoreError> {
        let (lock, erase, audit) = (self.prepare(&ERASE_LOCK)?, self.prepare(&ERASE)?, self.prepare(&AUDIT)?);
        let mut transaction = self.client.transaction()?;
        transaction.execute(&lock, &[])?;
        let done: Vec<i64> = transaction.query(&erase, &[&ids, &who, &reason])?.iter().map(|row| row.get(0)).collect();
        if !done.is_empty() {
            trace.leave(&mut transaction, &audit, &format!("{} erased: tx.id {}", done.len(), shortened(&done)))?;
        }
        transaction.commit()?;
        Ok(done)
    }

    /// Delivering stops, for so long or until somebody resumes it.
    pub fn pause(
        &mut self,
        time: Option<Duration>,
        who: &str,
        reason: Option<&str>,
        trace: &Trace,
    ) -> Result<Paused, StoreError> {
        let (pause, audit) = (self.prepare(&PAUSE)?, self.prepare(&AUDIT)?);
        let ms = time.map(|time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        let mut transaction = self.client.transaction()?;
        let never = || StoreError::Other("this pipeline has never run: there is nothing to pause".to_owned());
        let row = transaction.query_opt(&pause, &[&ms, &who, &reason])?.ok_or_else(never)?;
        trace.leave(&mut transaction, &audit, "delivering paused")?;
        transaction.commit()?;
        Ok(Paused { until: row.get(0) })
    }

    /// Delivering goes on. Returns whether it was paused.
    pub fn resume(&mut self, trace: &Trace) -> Result<bool, StoreError> {
        let (resume, audit) = (self.prepare(&RESUME)?, self.prepare(&AUDIT)?);
        let mut transaction = self.client.transaction()?;
        let was: bool = transaction.query_opt(&resume, &[])?.is_some_and(|row| row.get(0));
        if was {
            trace.leave(&mut transaction, &audit, "delivering resumed")?;
        }
        transaction.commit()?;
        Ok(was)
    }
}
