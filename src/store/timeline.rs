//! Which primary is the newer one. After a failover the old one may still answer and take writes: a connection that was not cut,
//! a name that still leads to it. Each promotion raises the timeline, so that whoever has seen the higher one knows.
//!
//! Leases and expected positions keep two primaries from mixing; this keeps a process from working on the one that is abandoned.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sql::TIMELINE;
use super::{Session, StoreError};

/// The highest timeline that any session of this process has seen, of each cluster: shared by all of its links.
///
/// Of each, because a cluster that was made anew (dumped and restored, moved by logical replication) begins at 1.
#[derive(Debug, Clone, Default)]
pub struct Timelines(Arc<Mutex<BTreeMap<i64, u32>>>);

/// Where a session's server writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timeline {
    /// PostgreSQL's system identifier: a primary and its standbys share it.
    pub cluster: i64,
    /// 1 at first.
    pub number: u32,
}

impl Timelines {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i64, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new session of `postgres` has this timeline, if it can be known. `Connection`: another session has seen a higher one.
    pub(super) fn admit(&self, seen: Option<Timeline>, place: &str) -> Result<(), StoreError> {
        let Some(Timeline { cluster, number }) = seen else { return Ok(()) };
        let mut highest = self.lock();
        let highest = highest.entry(cluster).or_insert(number);
        *highest = number.max(*highest);
        if number == *highest {
            return Ok(());
        }
        Err(StoreError::Connection(format!(
            "{place}: this is an old primary, on timeline {number}; another server was promoted and is on {highest}: stop the old one, \
             or let postgres.url lead to the new one (if the old one is meant after all, restart txrelay)"
        )))
    }

    /// Whether a higher one was seen since.
    pub(super) fn is_old(&self, seen: Option<Timeline>) -> bool {
        seen.is_some_and(|seen| self.lock().get(&seen.cluster).is_some_and(|highest| *highest > seen.number))
    }
}

impl Session {
    /// `None` where the server does not say: some managed services have no such functions, or do not let us use them.
    pub(super) fn timeline(&mut self) -> Result<Option<Timeline>, StoreError> {
        let row = match self.client.prepare(TIMELINE.text).and_then(|statement| self.client.query_one(&statement, &[])) {
            Ok(row) => row,
            // Undefined or forbidden, not supported, not in this state.
            Err(error)
                if error.code().is_some_and(|code| ["42", "0A", "55"].iter().any(|class| code.code().starts_with(class))) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let file: &str = row.get(1);
        let number = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        Ok(number.map(|number| Timeline { cluster: row.get(0), number }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_timeline_of_the_same_cluster_is_refused_and_nothing_else() {
        let timelines = Timelines::default();
        let at = |cluster, number| Some(Timeline { cluster, number });
        let admit = |seen| timelines.admit(seen, "db:5432");
        assert!(admit(at(7, 1)).is_ok() && !timelines.is_old(at(7, 1)));
        assert!(admit(at(7, 2)).is_ok() && timelines.is_old(at(7, 1)));
        let refused = admit(at(7, 1)).expect_err("an old one");
        assert!(refused.to_string().contains("db:5432: this is an old primary, on timeline 1"), "{refused}");
        assert!(admit(at(7, 2)).is_ok(), "the other links come to it too");
        assert!(admit(at(8, 1)).is_ok(), "a cluster made anew");
        assert!(admit(None).is_ok() && !timelines.is_old(None), "a service that does not say");
    }
}
