//! Whose turn it is to read, where the Kafka client knows no group: a lock of one session, which goes with it.

use std::time::Duration;

use super::sql::{READER_HOLDS, READER_LOCK, READER_SILENT};
use super::{Link, Session, StoreError};

impl Session {
    /// Takes the reader's lock if nobody has it. Whoever has it and has not been heard of for `silence` loses it: that needs
    /// the same role on every host, and does nothing otherwise.
    pub fn take_turn(&mut self, silence: Duration) -> Result<bool, StoreError> {
        let (lock, silent) = (self.prepare(&READER_LOCK)?, self.prepare(&READER_SILENT)?);
        self.reads = self.client.query_one(&lock, &[])?.get(0);
        if !self.reads {
            // As text: the crate has no type for an interval.
            let silence = format!("{} ms", silence.as_millis());
            let _: i64 = self.client.query_one(&silent, &[&silence])?.get(0);
        }
        Ok(self.reads)
    }

    /// Whether the lock is still this session's; also the sign of life that others look for.
    pub fn has_turn(&mut self) -> Result<bool, StoreError> {
        let holds = self.prepare(&READER_HOLDS)?;
        self.reads = self.reads && self.client.query_one(&holds, &[])?.get(0);
        Ok(self.reads)
    }
}

impl Link {
    /// Whether the session that took the reader's lock still is the one in use; without asking.
    pub fn reads(&self) -> bool {
        self.session.as_ref().is_some_and(|(session, _)| session.reads)
    }
}
