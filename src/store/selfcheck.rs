//! Whether the schema still has what the code relies on. A migration's number says who made it, not what became of it: without
//! the unique index on `tx.transaction_id` every repeated record would be sent again, and with a payload that is text none of
//! its bytes would be exact.

use super::sql::SCHEMA_FAULTS;
use super::{Session, StoreError};

/// `Other`, with a sentence for each fault, where something is missing or altered; an administrator may heal it.
pub fn ensure_unaltered(session: &mut Session) -> Result<(), StoreError> {
    let faults = session.schema_faults()?;
    if faults.is_empty() {
        return Ok(());
    }
    Err(StoreError::Other(altered(&faults)))
}

/// The sentence for people.
pub fn altered(faults: &[String]) -> String {
    // Three of them name the cause; a dropped table has one for each of its columns.
    let more = if faults.len() > 3 { format!("; and {} more", faults.len() - 3) } else { String::new() };
    format!(
        "the schema was altered by hand and cannot be written to until it is mended: {}{more}",
        faults[..faults.len().min(3)].join("; ")
    )
}

impl Session {
    /// What is missing or altered, a sentence each; empty where all is as it was made.
    pub fn schema_faults(&mut self) -> Result<Vec<String>, StoreError> {
        let statement = self.prepare(&SCHEMA_FAULTS)?;
        Ok(self.client.query(&statement, &[])?.iter().map(|row| row.get(0)).collect())
    }
}
