//! When the server's clock was set back, what was written by the old clock must not wait that much longer.

use std::time::Duration;

use super::sql::{CLOCK_AHEAD, CLOCK_BACK, CLOCK_JOB, CLOCK_MOVED, CLOCK_REPAIR, PULL_IN};
use super::{Session, StoreError};

impl Session {
    /// How far the newest heartbeat of anybody lies ahead of the server's clock; zero when it does not.
    pub fn clock_behind(&mut self) -> Result<Duration, StoreError> {
        let statement = self.prepare(&CLOCK_AHEAD)?;
        let ms: Option<i64> = self.client.query_one(&statement, &[])?.get(0);
        Ok(Duration::from_millis(ms.unwrap_or(0).max(0) as u64))
    }

    /// Notes that the clock was set back `by` so much, at most `within` ago: [`Session::repair_clock`] has work then. `false`:
    /// another process has noted it.
    pub fn note_clock_back(&mut self, by: Duration, within: Duration) -> Result<bool, StoreError> {
        let statement = self.prepare(&CLOCK_BACK)?;
        let noted: i64 = self.client.query_one(&statement, &[&(by.as_millis() as i64), &(within.as_millis() as i64)])?.get(0);
        Ok(noted > 0)
    }

    /// Moves the next deliveries to the clock as it is now, each once, whoever calls it; `lease` is the length of ours. Returns
    /// how many, and whether that was the end.
    pub fn repair_clock(&mut self, lease: Duration) -> Result<(u64, bool), StoreError> {
        let (job, repair, moved) = (self.prepare(&CLOCK_JOB)?, self.prepare(&CLOCK_REPAIR)?, self.prepare(&CLOCK_MOVED)?);
        let mut transaction = self.client.transaction()?;
        let Some(row) = transaction.query_opt(&job, &[])? else { return Ok((0, true)) };
        let (next, ms): (i64, i64) = (row.get(0), row.get(1));
        let row = transaction.query_one(&repair, &[&next, &ms, &(lease.as_millis() as i64)])?;
        let (last, n): (Option<i64>, i64) = (row.get(0), row.get(1));
        transaction.execute(&moved, &[&last])?;
        transaction.commit()?;
        Ok((n as u64, last.is_none()))
    }

    /// Pulls in deliveries that lie further ahead than `furthest`, up to 500: a clock was set back and nobody saw it. Returns
    /// how many.
    pub fn pull_in(&mut self, furthest: Duration) -> Result<u64, StoreError> {
        let statement = self.prepare(&PULL_IN)?;
        Ok(self.client.execute(&statement, &[&(furthest.as_millis() as i64)])?)
    }
}
