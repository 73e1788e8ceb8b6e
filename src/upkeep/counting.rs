//! When everything is counted, and what need not be asked because the last count says it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::core::ledger::Imbalances;
use crate::store::Gauges;

/// Between two counts, and at least 20 times what a count takes: counting a large backlog must not become the load.
const COUNT: Duration = Duration::from_secs(2);
/// The same where nothing is open and nothing has moved.
const QUIET: Duration = Duration::from_secs(8);
/// No lease is as short as this.
const SHORTEST_LEASE: Duration = Duration::from_secs(10);

/// How counting stands.
pub(super) struct Counting {
    next: Instant,
    /// Not before this while nothing moves.
    next_if_quiet: Instant,
    /// Commits of this process at the last count.
    commits: u64,
    last: Option<Last>,
}

/// The last count.
struct Last {
    began: Instant,
    open: i64,
    dead: i64,
    counters: HashMap<i16, i64>,
    /// The equations hold and the audit has found nothing: otherwise the next counts say what to do about it.
    is_sound: bool,
}

impl Counting {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, next_if_quiet: now, commits: 0, last: None }
    }

    /// Whether to count now, if this process has committed records and outcomes so many times.
    pub(super) fn is_due(&self, now: Instant, commits: u64) -> bool {
        now >= self.next && (now >= self.next_if_quiet || commits != self.commits)
    }

    /// Learns from a count that has just ended, also from one that failed: one that takes too long must not be repeated at once.
    /// Returns whether it may have found anything new.
    pub(super) fn learn(&mut self, began: Instant, now: Instant, gauges: Option<&Gauges>, commits: u64) -> bool {
        self.next = now + COUNT.max((now - began) * 20);
        self.next_if_quiet = now;
        self.commits = commits;
        let last = gauges.map(|gauges| Last {
            began,
            open: gauges.open(),
            dead: gauges.dead,
            counters: gauges.counters.clone(),
            is_sound: gauges.imbalances() == Imbalances::default() && gauges.offsets_wrong + gauges.transactions_wrong == 0,
        });
        let mut is_new = true;
        if let (Some(a), Some(b)) = (&self.last, &last) {
            is_new = a.counters != b.counters;
            if !is_new && b.is_sound && b.open == 0 && (a.open, a.dead) == (b.open, b.dead) {
                self.next_if_quiet = now + QUIET;
            }
        }
        self.last = last;
        is_new
    }

    /// The next answers may be another server's.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// Whether nothing was open, and so lately that no lease that was taken since can have run out.
    pub(super) fn found_nothing_open(&self, now: Instant) -> bool {
        self.last.as_ref().is_some_and(|last| last.open == 0 && now.saturating_duration_since(last.began) < SHORTEST_LEASE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: f64) -> Instant {
        // Well after the machine's start, so that nothing is before it.
        static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *BEGAN + Duration::from_secs_f64(seconds)
    }

    /// So many transactions are open, and so many records were read for nothing.
    fn gauges(pending: i64, duplicates: i64) -> Gauges {
        let counters = HashMap::from([(1, pending + duplicates), (2, pending), (3, duplicates)]);
        Gauges { pending, counters, ..Gauges::default() }
    }

    #[test]
    fn it_is_counted_every_two_seconds_and_less_often_where_nothing_moves() {
        let mut counting = Counting::new(after(0.0));
        assert!(counting.is_due(after(0.0), 0), "at once");
        counting.learn(after(0.0), after(0.01), Some(&gauges(0, 5)), 1);
        assert!(!counting.is_due(after(1.9), 1) && counting.is_due(after(2.1), 1), "a first count says nothing of what moves");
        counting.learn(after(2.1), after(2.1), Some(&gauges(0, 5)), 1);
        assert!(!counting.is_due(after(10.0), 1) && counting.is_due(after(10.2), 1), "nothing has moved");
        assert!(
            !counting.is_due(after(4.0), 2) && counting.is_due(after(4.2), 2),
            "this process has stored or settled something"
        );
        counting.learn(after(10.2), after(10.2), Some(&gauges(0, 6)), 1);
        assert!(counting.is_due(after(12.3), 1), "another process has");
        for _ in 0..2 {
            counting.learn(after(12.3), after(12.3), Some(&gauges(1, 6)), 1);
        }
        assert!(counting.is_due(after(14.4), 1), "something is open: it grows older, and may be settled by another process");
        for _ in 0..2 {
            let wrong = Gauges { offsets_wrong: 1, ..gauges(0, 6) };
            counting.learn(after(14.4), after(14.4), Some(&wrong), 1);
        }
        assert!(counting.is_due(after(16.5), 1), "something is wrong");
    }

    #[test]
    fn a_count_that_is_slow_or_fails_is_not_repeated_at_once() {
        let mut counting = Counting::new(after(0.0));
        counting.learn(after(0.0), after(1.0), None, 0);
        assert!(!counting.is_due(after(20.9), 7) && counting.is_due(after(21.1), 0));
        counting.learn(after(21.1), after(21.2), Some(&gauges(0, 5)), 0);
        counting.learn(after(23.3), after(23.3), None, 0);
        assert!(counting.is_due(after(25.4), 0), "what failed is no quiet");
    }

    #[test]
    fn leases_are_looked_for_unless_a_count_has_just_found_none() {
        let mut counting = Counting::new(after(0.0));
        assert!(!counting.found_nothing_open(after(0.0)), "nobody has counted");
        counting.learn(after(0.0), after(3.0), Some(&gauges(0, 5)), 0);
        assert!(counting.found_nothing_open(after(9.9)));
        assert!(!counting.found_nothing_open(after(10.0)), "a lease that was taken when the count began may have run out");
        counting.learn(after(10.0), after(10.0), Some(&gauges(1, 5)), 0);
        assert!(!counting.found_nothing_open(after(10.1)));
        counting.learn(after(12.0), after(12.0), None, 0);
        assert!(!counting.found_nothing_open(after(12.1)), "nobody knows");
        counting.learn(after(14.0), after(14.0), Some(&gauges(0, 5)), 0);
        counting.forget();
        assert!(!counting.found_nothing_open(after(14.1)), "it was another server");
    }
}
