//! What the tables should hold, in seconds of a clock that only the test moves.

use std::collections::{BTreeMap, HashMap};

use proptest::sample::Index;
use txrelay::core::ledger::Counter;

use super::{Ending, VALUES, id};

pub const KEEP_SECONDS: i64 = 90 * 86_400;
const LEASE_SECONDS: i64 = 60;
/// Codes of attempts.
const DELIVERED: i16 = 1;
const RETRY: i16 = 2;
const REFUSED: i16 = 6;
const LOST: i16 = 7;

/// A row of `delivery`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Open {
    id: i64,
    /// Absolute in the model, from now on where it is compared.
    due: i64,
    lease: Option<i64>,
    by: Option<i64>,
    attempt: i32,
    spent_ms: i64,
}

impl Open {
    pub fn read(row: &postgres::Row) -> Self {
        Self { id: row.get(0), due: row.get(1), lease: row.get(2), by: row.get(3), attempt: row.get(4), spent_ms: row.get(5) }
    }
}

#[derive(Clone, Debug)]
struct Attempt {
    n: i32,
    outcome: i16,
    stale: bool,
    lease: Option<i64>,
    at: i64,
}

#[derive(Clone, Debug)]
struct Tx {
    n: u8,
    value: u8,
    received: i64,
    open: Option<Open>,
    /// Attempts.
    dead: Option<i32>,
    /// When.
    resolved: Option<i64>,
    attempts: Vec<Attempt>,
}

/// All transactions by `tx.id`, and everything that is counted.
#[derive(Default)]
pub struct Lives {
    pub now: i64,
    txs: BTreeMap<i64, Tx>,
    /// (id, lease, attempt) as ever leased.
    granted: Vec<(i64, i64, i32)>,
    duplicates: Vec<i64>,
    rejected: i64,
    position: i64,
    counters: HashMap<Counter, i64>,
}

impl Tx {
    fn try_(&mut self, n: i32, outcome: i16, stale: bool, lease: Option<i64>, at: i64) {
        self.attempts.push(Attempt { n, outcome, stale, lease, at });
    }

    fn is_delivered(&self) -> bool {
        self.attempts.iter().any(|a| a.outcome == DELIVERED && !a.stale)
    }

    fn last_attempt(&self) -> Option<i64> {
        self.attempts.iter().map(|a| a.at).max()
    }

    /// Its lease ran out, and nobody knows what became of what was sent under it.
    fn lose(&mut self, now: i64) {
        if let Some(Open { lease: Some(lease), attempt, .. }) = self.open {
            self.try_(attempt, LOST, false, Some(lease), now);
        }
    }

    /// Due now, in nobody's hand.
    fn free(&mut self, now: i64) {
        if let Some(open) = &mut self.open {
            (open.due, open.lease, open.by) = (now, None, None);
        }
    }
}

impl Lives {
    fn count(&mut self, counter: Counter, n: i64) {
        *self.counters.entry(counter).or_default() += n;
    }

    pub fn ingest(&mut self, records: &[(u8, u8)], lease: Option<i64>, new: &[(usize, i64)]) {
        for (place, (n, value)) in records.iter().enumerate() {
            self.position += 1;
            self.count(Counter::Read, 1);
            if let Some(known) = self.txs.values().find(|tx| tx.n == *n) {
                if VALUES[known.value as usize] == VALUES[*value as usize] {
                    self.duplicates.push(self.now);
                    self.count(Counter::Duplicate, 1);
                } else {
                    self.rejected += 1;
                    self.count(Counter::Rejected, 1);
                }
                continue;
            }
            let id = new.iter().find(|known| known.0 == place).unwrap_or_else(|| panic!("record {place} is new: {new:?}")).1;
            self.count(Counter::Ingested, 1);
            let (due, by, attempt) = match lease {
                Some(lease) => {
                    self.granted.push((id, lease, 1));
                    (self.now + LEASE_SECONDS, Some(1), 1)
                }
                None => (self.now, None, 0),
            };
            let open = Open { id, due, lease, by, attempt, spent_ms: 0 };
            let tx = Tx {
                n: *n,
                value: *value,
                received: self.now,
                open: Some(open),
                dead: None,
                resolved: None,
                attempts: Vec::new(),
            };
            self.txs.insert(id, tx);
        }
        let expected = new.iter().filter(|known| self.txs.contains_key(&known.1)).count();
        assert_eq!(expected, new.len(), "new to the store and not to the model: {new:?}");
    }

    /// One that was ever leased and is still stored.
    pub fn granted(&self, index: &Index) -> Option<(i64, i64, i32)> {
        (!self.granted.is_empty()).then(|| self.granted[index.index(self.granted.len())])
    }

    pub fn first_granted(&self) -> Option<(i64, i64, i32)> {
        self.granted.first().copied()
    }

    pub fn any(&self, index: &Index) -> Option<i64> {
        (!self.txs.is_empty()).then(|| *self.txs.keys().nth(index.index(self.txs.len())).expect("within"))
    }

    pub fn claim(&mut self, process: i64, lease: i64) -> Vec<(i64, i32)> {
        let now = self.now;
        let mut claimed = Vec::new();
        for (id, tx) in &mut self.txs {
            if tx.open.is_none_or(|open| open.due > now) {
                continue;
            }
            tx.lose(now);
            let open = tx.open.as_mut().expect("as seen above");
            (open.due, open.lease, open.by, open.attempt) = (now + LEASE_SECONDS, Some(lease), Some(process), open.attempt + 1);
            claimed.push((*id, open.attempt));
        }
        self.granted.extend(claimed.iter().map(|(id, attempt)| (*id, lease, *attempt)));
        claimed
    }

    /// How many were stale: 0 or 1.
    pub fn settle(&mut self, id: i64, lease: i64, attempt: i32, ending: Ending) -> usize {
        let now = self.now;
        let tx = self.txs.get_mut(&id).expect("granted ones are stored");
        let (outcome, counter) = match ending {
            Ending::Delivered => (DELIVERED, Some(Counter::Delivered)),
            Ending::Failed(..) => (RETRY, None),
            Ending::Died => (REFUSED, Some(Counter::Died)),
            Ending::GivenBack => {
                if let Some(open) = tx.open.as_mut().filter(|open| open.lease == Some(lease)) {
                    (open.due, open.lease, open.by, open.attempt) = (now, None, None, open.attempt - 1);
                }
                return 0;
            }
        };
        if tx.open.is_none_or(|open| open.lease != Some(lease)) {
            // What this lease itself has settled before is not stale.
            let known = tx.attempts.iter().any(|a| a.lease == Some(lease) && a.n == attempt && a.outcome != LOST);
            if !known {
                tx.try_(attempt, outcome, true, Some(lease), now);
            }
            return usize::from(!known);
        }
        tx.try_(attempt, outcome, false, Some(lease), now);
        match ending {
            Ending::Failed(delay, spend) => {
                tx.free(now + delay);
                tx.open.as_mut().expect("open").spent_ms += spend * 1000;
            }
            Ending::Died => (tx.open, tx.dead) = (None, Some(attempt)),
            _ => tx.open = None,
        }
        if let Some(counter) = counter {
            self.count(counter, 1);
        }
        0
    }

    pub fn give_back_lease(&mut self, lease: i64) -> u64 {
        let now = self.now;
        let held = self.txs.values_mut().filter(|tx| tx.open.is_some_and(|open| open.lease == Some(lease) && open.due > now));
        held.map(|tx| {
            tx.free(now);
            tx.open.as_mut().expect("open").attempt -= 1;
        })
        .count() as u64
    }

    fn free_leased(&mut self, is_free: impl Fn(&Open, i64) -> bool) -> u64 {
        let now = self.now;
        let free = self.txs.values_mut().filter(|tx| tx.open.is_some_and(|open| open.lease.is_some() && is_free(&open, now)));
        free.map(|tx| {
            tx.lose(now);
            tx.free(now);
        })
        .count() as u64
    }

    pub fn expire(&mut self) -> u64 {
        self.free_leased(|open, now| open.due <= now - 5 && open.due > now - LEASE_SECONDS - 600)
    }

    pub fn sweep(&mut self, process: i64) -> u64 {
        self.free_leased(|open, now| open.due > now && open.by == Some(process))
    }

    fn tx(&mut self, id: i64) -> &mut Tx {
        self.txs.get_mut(&id).expect("it is stored")
    }

    fn reopen(&mut self, id: i64, attempt: i32) {
        let due = self.now;
        self.tx(id).open = Some(Open { id, due, lease: None, by: None, attempt, spent_ms: 0 });
        self.count(Counter::Reopened, 1);
    }

    pub fn retry_dead(&mut self, id: i64) -> bool {
        let Some(attempts) = self.tx(id).dead.take() else { return false };
        self.reopen(id, attempts);
        self.count(Counter::DeadRetried, 1);
        true
    }

    fn waits(&mut self, id: i64) -> bool {
        let now = self.now;
        self.tx(id).open.is_some_and(|open| open.lease.is_none() || open.due <= now)
    }

    pub fn retry_waiting(&mut self, id: i64) -> bool {
        let (now, waits) = (self.now, self.waits(id));
        if let Some(open) = self.tx(id).open.as_mut().filter(|_| waits) {
            open.spent_ms = 0;
            if open.lease.is_none() {
                open.due = now;
            }
        }
        waits
    }

    pub fn retry_delivered(&mut self, id: i64) -> bool {
        let tx = self.tx(id);
        let is_it = tx.is_delivered() && tx.open.is_none() && tx.dead.is_none() && tx.resolved.is_none();
        if is_it {
            let n = tx.attempts.iter().map(|a| a.n).max().unwrap_or(0);
            self.reopen(id, n);
            self.count(Counter::DeliveredGone, 1);
        }
        is_it
    }

    pub fn resolve_dead(&mut self, id: i64) -> bool {
        let now = self.now;
        let tx = self.tx(id);
        let is_it = tx.dead.take().is_some();
        if is_it {
            tx.resolved = Some(now);
            self.count(Counter::DeadResolved, 1);
        }
        is_it
    }

    pub fn resolve_waiting(&mut self, id: i64) -> bool {
        let (now, waits) = (self.now, self.waits(id));
        if waits {
            let tx = self.tx(id);
            tx.lose(now);
            (tx.open, tx.resolved) = (None, Some(now));
            self.count(Counter::Resolved, 1);
        }
        waits
    }

    pub fn purge(&mut self) {
        let old = |at: i64| self.now - at >= KEEP_SECONDS;
        let done = |tx: &Tx| tx.open.is_none() && tx.dead.is_none();
        let goes = |tx: &Tx| match tx.resolved {
            _ if !done(tx) => false,
            Some(at) => old(tx.last_attempt().map_or(at, |last| last.max(at))),
            None => old(tx.received) && tx.is_delivered() && tx.last_attempt().is_some_and(old),
        };
        let gone: Vec<i64> = self.txs.iter().filter(|(_, tx)| goes(tx)).map(|(id, _)| *id).collect();
        self.duplicates.retain(|at| self.now - at < KEEP_SECONDS);
        for id in &gone {
            let tx = self.txs.remove(id).expect("it is there");
            self.count(Counter::DeliveredGone, i64::from(tx.resolved.is_none()));
            self.count(Counter::ResolvedPurged, i64::from(tx.resolved.is_some()));
        }
        self.granted.retain(|(id, ..)| !gone.contains(id));
    }

    pub fn states(&self) -> Vec<(String, String, i32)> {
        let state = |tx: &Tx| match tx.open {
            Some(open) if open.lease.is_some() && open.due > self.now => "in_flight",
            Some(open) if open.attempt == 0 => "pending",
            Some(_) => "retrying",
            None if tx.dead.is_some() => "dead",
            None if tx.resolved.is_some() => "resolved",
            None if tx.is_delivered() => "delivered",
            None => "unaccounted",
        };
        let tried = |tx: &Tx| tx.attempts.iter().map(|a| a.n).max().unwrap_or(0);
        let attempts = |tx: &Tx| tx.open.map(|open| open.attempt).or(tx.dead).unwrap_or_else(|| tried(tx));
        let mut states: Vec<(String, String, i32)> =
            self.txs.values().map(|tx| (id(tx.n), state(tx).to_owned(), attempts(tx))).collect();
        states.sort();
        assert!(states.iter().all(|known| known.1 != "unaccounted"), "{states:?}");
        states
    }

    pub fn attempts(&self) -> Vec<(i64, i32, i16, bool, i64)> {
        let mut counts: BTreeMap<(i64, i32, i16, bool), i64> = BTreeMap::new();
        for (id, tx) in &self.txs {
            for a in &tx.attempts {
                *counts.entry((*id, a.n, a.outcome, a.stale)).or_default() += 1;
            }
        }
        counts.into_iter().map(|((id, n, outcome, stale), count)| (id, n, outcome, stale, count)).collect()
    }

    pub fn open(&self) -> Vec<Open> {
        self.txs.values().filter_map(|tx| tx.open).map(|open| Open { due: open.due - self.now, ..open }).collect()
    }

    pub fn places(&self) -> [i64; 4] {
        [self.txs.len() as i64, self.duplicates.len() as i64, self.rejected, self.position]
    }

    pub fn counted(&self, counter: Counter) -> i64 {
        self.counters.get(&counter).copied().unwrap_or(0)
    }
}
