//! Deleting what is finished and old enough, in steps. Whoever opens a delivery of a finished transaction again must hold the
//! lock of `retention_lock.sql` shared while it does: a step sees only what was committed before it began.

use std::time::Duration;

use postgres::{Statement, Transaction};

use super::sql::{
    PURGE_DELIVERED, PURGE_DUPLICATES, PURGE_PROCESSES, PURGE_REJECTED, PURGE_RESOLVED, PURGE_SKIPPED, RETENTION_FLUSH,
    RETENTION_LOCK, RETENTION_STEP, RETENTION_TURN,
};
use super::{ProcessId, Session, Sql, StoreError, slot};
use crate::failpoint::failpoint;

/// What one step did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purged<Place> {
    /// Rows that went (transactions, for those).
    pub gone: u64,
    /// Where the next step begins; `None`: nothing old enough is left.
    pub next: Option<Place>,
}

/// The place of a duplicate or of skipped offsets, in the order of the tables' keys: topic, partition, incarnation, offset.
pub type OffsetPlace = (String, i32, i16, i64);

/// A step under way, which nobody else can do meanwhile.
struct Step<'a> {
    transaction: Transaction<'a>,
    note: Statement,
    process: ProcessId,
}

impl Session {
    /// A step over transactions above id `after`: those delivered more than `keep` ago go.
    ///
    /// For this and the others: `rows` is how many are looked at; `None` = another process is at it, or the pass is done.
    pub fn purge_delivered(
        &mut self,
        process: ProcessId,
        after: i64,
        rows: i64,
        keep: Duration,
    ) -> Result<Option<Purged<i64>>, StoreError> {
        let statement = self.prepare(&PURGE_DELIVERED)?;
        let Some(mut step) = self.step(process)? else { return Ok(None) };
        let row = step.transaction.query_one(&statement, &[&after, &rows, &ms(keep), &slot(process, ROLE)])?;
        let (last, seen, old, gone): (Option<i64>, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        step.end(false)?;
        // Ids follow the order of receipt: behind a batch that is all too young, everything is.
        Ok(Some(Purged { gone: gone as u64, next: last.filter(|_| seen == rows && old > 0) }))
    }

    /// A step over what people resolved, above id `after`.
    pub fn purge_resolved(
        &mut self,
        process: ProcessId,
        after: i64,
        rows: i64,
        keep: Duration,
    ) -> Result<Option<Purged<i64>>, StoreError> {
        let statement = self.prepare(&PURGE_RESOLVED)?;
        let Some(mut step) = self.step(process)? else { return Ok(None) };
        let row = step.transaction.query_one(&statement, &[&after, &rows, &ms(keep), &slot(process, ROLE)])?;
        let (last, seen, gone): (Option<i64>, i64, i64) = (row.get(0), row.get(1), row.get(2));
        step.end(false)?;
        Ok(Some(Purged { gone: gone as u64, next: last.filter(|_| seen == rows) }))
    }

    /// A step over rejected records that people resolved.
    pub fn purge_rejected(&mut self, process: ProcessId, rows: i64, keep: Duration) -> Result<Option<Purged<()>>, StoreError> {
        let statement = self.prepare(&PURGE_REJECTED)?;
        let Some(mut step) = self.step(process)? else { return Ok(None) };
        let gone: i64 = step.transaction.query_one(&statement, &[&rows, &ms(keep)])?.get(0);
        step.end(false)?;
        Ok(Some(Purged { gone: gone as u64, next: (gone == rows).then_some(()) }))
    }

    /// A step over duplicates behind `after`.
    pub fn purge_duplicates(
        &mut self,
        process: ProcessId,
        after: &OffsetPlace,
        rows: i64,
        keep: Duration,
    ) -> Result<Option<Purged<OffsetPlace>>, StoreError> {
        self.purge_by_offset(&PURGE_DUPLICATES, process, after, rows, keep)
    }

    /// A step over rows of skipped offsets behind `after`.
    pub fn purge_skipped(
        &mut self,
        process: ProcessId,
        after: &OffsetPlace,
        rows: i64,
        keep: Duration,
    ) -> Result<Option<Purged<OffsetPlace>>, StoreError> {
        self.purge_by_offset(&PURGE_SKIPPED, process, after, rows, keep)
    }

    fn purge_by_offset(
        &mut self,
        sql: &Sql,
        process: ProcessId,
        after: &OffsetPlace,
        rows: i64,
        keep: Duration,
    ) -> Result<Option<Purged<OffsetPlace>>, StoreError> {
        let statement = self.prepare(sql)?;
        let Some(mut step) = self.step(process)? else { return Ok(None) };
        let (topic, partition, incarnation, offset) = after;
        let row = step.transaction.query_opt(&statement, &[topic, partition, incarnation, offset, &rows, &ms(keep)])?;
        step.end(false)?;
        let Some(row) = row else { return Ok(Some(Purged { gone: 0, next: None })) };
        let (old, seen): (i64, i64) = (row.get(4), row.get(5));
        // Later offsets of a partition were read later: behind a batch that is all too young, the next partition.
        let offset = if old == 0 { i64::MAX } else { row.get(3) };
        let next = (row.get(0), row.get(1), row.get(2), offset);
        Ok(Some(Purged { gone: old as u64, next: (seen == rows).then_some(next) }))
    }

    /// The last step of a pass: processes that nobody remembers. From then on the pass has ended.
    pub fn end_retention(&mut self, process: ProcessId) -> Result<Option<u64>, StoreError> {
        let statement = self.prepare(&PURGE_PROCESSES)?;
        let Some(mut step) = self.step(process)? else { return Ok(None) };
        let gone = step.transaction.execute(&statement, &[])?;
        step.end(true)?;
        Ok(Some(gone))
    }

    /// `None`: it is not this process's turn.
    fn step(&mut self, process: ProcessId) -> Result<Option<Step<'_>>, StoreError> {
        if !self.flushes_early {
            let statement = self.prepare(&RETENTION_FLUSH)?;
            self.client.query(&statement, &[])?;
            self.flushes_early = true;
        }
        let (lock, turn) = (self.prepare(&RETENTION_LOCK)?, self.prepare(&RETENTION_TURN)?);
        let note = self.prepare(&RETENTION_STEP)?;
        let mut transaction = self.client.transaction()?;
        let ours = transaction.query_one(&lock, &[])?.get::<_, bool>(0)
            && transaction.query_opt(&turn, &[&process])?.is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true));
        Ok(if ours { Some(Step { transaction, note, process }) } else { None })
    }
}

/// Of `slot`: nobody else adds to these counters.
const ROLE: i32 = 2;

impl Step<'_> {
    /// Commits it; the pass as well, with the `last` one.
    fn end(mut self, last: bool) -> Result<(), StoreError> {
        self.transaction.execute(&self.note, &[&self.process, &last])?;
        failpoint("step-retain-commit");
        self.transaction.commit()?;
        failpoint("step-retained");
        Ok(())
    }
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
