//! The ledger: what the counters in PostgreSQL are called and which equations they keep (ARCHITECTURE.md, 2).
//!
//! Each writer changes the counter in the transaction of the rows that it counts, so that an imbalance is a fault of the
//! program or a hand in the tables, never a crash.

/// A counter. The discriminants are the codes in the table `counter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i16)]
pub enum Counter {
    /// Records read from Kafka.
    Read = 1,
    /// Records that became transactions.
    Ingested = 2,
    /// Records whose id was there with the same bytes.
    Duplicate = 3,
    /// Records that could not become transactions.
    Rejected = 4,
    /// Deliveries that the service accepted.
    Delivered = 5,
    /// Deliveries given up by rule.
    Died = 6,
    /// Open deliveries closed by a person.
    Resolved = 7,
    /// Deliveries opened again: retried dead, re-injected, retried delivered.
    Reopened = 8,
    /// Dead ones retried; also counted as reopened.
    DeadRetried = 9,
    /// Dead ones closed by a person.
    DeadResolved = 10,
    /// Dead ones removed by retention or erased.
    DeadPurged = 11,
    /// Deliveries that no longer stand: retention has removed their transactions, or a person opened them again.
    DeliveredGone = 12,
    /// Resolved transactions that retention has removed.
    ResolvedPurged = 13,
}

impl Counter {
    /// Every counter, in the order of the codes.
    pub const ALL: [Counter; 13] = [
        Self::Read,
        Self::Ingested,
        Self::Duplicate,
        Self::Rejected,
        Self::Delivered,
        Self::Died,
        Self::Resolved,
        Self::Reopened,
        Self::DeadRetried,
        Self::DeadResolved,
        Self::DeadPurged,
        Self::DeliveredGone,
        Self::ResolvedPurged,
    ];

    /// The code in the table.
    pub fn code(self) -> i16 {
        self as i16
    }

    /// The counter of a code; `None` for a code of a later version.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.code() == code)
    }

    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Ingested => "ingested",
            Self::Duplicate => "duplicate",
            Self::Rejected => "rejected",
            Self::Delivered => "delivered",
            Self::Died => "died",
            Self::Resolved => "resolved",
            Self::Reopened => "reopened",
            Self::DeadRetried => "dead_retried",
            Self::DeadResolved => "dead_resolved",
            Self::DeadPurged => "dead_purged",
            Self::DeliveredGone => "delivered_gone",
            Self::ResolvedPurged => "resolved_purged",
        }
    }
}

/// The sums of all counters, and what stands in the tables, read in one statement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    sums: [i64; Counter::ALL.len()],
    /// Rows of `delivery`.
    pub open: i64,
    /// Rows of `dead`.
    pub dead: i64,
}

impl Ledger {
    /// Adds to a counter's sum; it may stand in several rows.
    pub fn add(&mut self, counter: Counter, n: i64) {
        let sum = &mut self.sums[Self::place(counter)];
        *sum = sum.saturating_add(n);
    }

    /// A counter's sum.
    pub fn sum(&self, counter: Counter) -> i64 {
        self.sums[Self::place(counter)]
    }

    /// Transactions that are stored and delivered, and nothing else since.
    pub fn delivered(&self) -> i64 {
        self.sum(Counter::Delivered).saturating_sub(self.sum(Counter::DeliveredGone))
    }

    /// How far each equation is off; left side less right side. All 0 unless something is wrong.
    pub fn imbalances(&self) -> Imbalances {
        use Counter::*;
        let total = |counters: &[Counter]| counters.iter().fold(0i64, |sum, c| sum.saturating_add(self.sum(*c)));
        Imbalances {
            read: total(&[Read]).saturating_sub(total(&[Ingested, Duplicate, Rejected])),
            ingested: total(&[Ingested, Reopened]).saturating_sub(total(&[Delivered, Died, Resolved]).saturating_add(self.open)),
            dead: self.dead.saturating_sub(total(&[Died]).saturating_sub(total(&[DeadRetried, DeadResolved, DeadPurged]))),
        }
    }

    fn place(counter: Counter) -> usize {
        counter as usize - 1
    }
}

/// How far the equations are off. The names are the labels of `ledger_imbalance`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imbalances {
    /// read = ingested + duplicate + rejected
    pub read: i64,
    /// ingested + reopened = delivered + died + resolved + open
    pub ingested: i64,
    /// rows of dead = died - dead_retried - dead_resolved - dead_purged
    pub dead: i64,
}

impl Imbalances {
    /// What an audit found wrong shows where the counters agree: offsets in no place under `read`, transactions in no state under
    /// `ingested`.
    pub fn or_found(self, offsets: i64, transactions: i64) -> Self {
        let or = |off, found| if off == 0 { found } else { off };
        Self { read: or(self.read, offsets), ingested: or(self.ingested, transactions), ..self }
    }

    /// Label and value of each equation.
    pub fn labelled(self) -> [(&'static str, i64); 3] {
        [("read", self.read), ("ingested", self.ingested), ("dead", self.dead)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_are_kept_for_ever() {
        let codes: Vec<(i16, &str)> = Counter::ALL.iter().map(|c| (c.code(), c.label())).collect();
        let expected = [
            (1, "read"),
            (2, "ingested"),
            (3, "duplicate"),
            (4, "rejected"),
            (5, "delivered"),
            (6, "died"),
            (7, "resolved"),
            (8, "reopened"),
            (9, "dead_retried"),
            (10, "dead_resolved"),
            (11, "dead_purged"),
            (12, "delivered_gone"),
            (13, "resolved_purged"),
        ];
        assert_eq!(codes, expected);
        assert!(Counter::ALL.iter().all(|c| Counter::from_code(c.code()) == Some(*c)));
        assert_eq!((Counter::from_code(0), Counter::from_code(14)), (None, None));
    }

    #[test]
    fn a_lost_row_shows_in_its_equation_only() {
        let mut ledger = Ledger { open: 3, ..Ledger::default() };
        ledger.add(Counter::Read, 10);
        ledger.add(Counter::Ingested, 4);
        ledger.add(Counter::Duplicate, 5);
        ledger.add(Counter::Rejected, 1);
        ledger.add(Counter::Delivered, 1);
        assert_eq!(ledger.imbalances(), Imbalances::default());
        ledger.open = 2;
        assert_eq!(ledger.imbalances(), Imbalances { read: 0, ingested: 1, dead: 0 });
        ledger.open = 3;
        ledger.dead = 1;
        assert_eq!(ledger.imbalances(), Imbalances { read: 0, ingested: 0, dead: 1 });
        ledger.add(Counter::Read, -1);
        assert_eq!(ledger.imbalances(), Imbalances { read: -1, ingested: 0, dead: 1 });
    }

    proptest! {
        /// Plays random lives of transactions the way the writers count them.
        #[test]
        fn every_life_keeps_the_equations(steps in prop::collection::vec(0u8..10, 0..300)) {
            use Counter::*;
            let mut l = Ledger::default();
            for step in steps {
                let counted: &[Counter] = match step {
                    0 | 1 => { l.open += 1; &[Read, Ingested] }
                    2 => &[Read, Duplicate],
                    3 => &[Read, Rejected],
                    4 if l.open > 0 => { l.open -= 1; &[Delivered] }
                    5 if l.open > 0 => { l.open -= 1; l.dead += 1; &[Died] }
                    6 if l.open > 0 => { l.open -= 1; &[Resolved] }
                    7 if l.dead > 0 => { l.dead -= 1; l.open += 1; &[DeadRetried, Reopened] }
                    8 if l.dead > 0 => { l.dead -= 1; &[DeadResolved] }
                    9 if l.dead > 0 => { l.dead -= 1; &[DeadPurged] }
                    _ => &[],
                };
                counted.iter().for_each(|c| l.add(*c, 1));
                prop_assert_eq!(l.imbalances(), Imbalances::default());
            }
        }
    }
}
