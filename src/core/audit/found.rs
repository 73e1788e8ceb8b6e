//! What an audit can find: places, states, what is wrong, and how two looks are held against each other.

use super::{Holdings, LifeId};
use crate::core::coverage::Coverage;
use crate::core::offsets::{self, Offsets};

/// Where an offset can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// A transaction.
    Transaction,
    /// A repeat of one.
    Duplicate,
    /// Rejected; closed by a person, who may have made a transaction of it.
    Rejected {
        /// Whether it is closed.
        closed: bool,
    },
    /// Passed over by the client.
    Skipped,
    /// Lost to Kafka's retention before it was read.
    Retention,
    /// Lost, and nobody knows why.
    Unexplained,
}

impl Place {
    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Duplicate => "duplicate",
            Self::Rejected { .. } => "rejected",
            Self::Skipped => "skipped",
            Self::Retention => "gap: retention",
            Self::Unexplained => "gap: unexplained",
        }
    }

    /// For programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::Retention => "gap_retention",
            Self::Unexplained => "gap_unexplained",
            other => other.label(),
        }
    }

    /// One of each kind.
    pub const ALL: [Place; 6] =
        [Self::Transaction, Self::Duplicate, Self::Rejected { closed: false }, Self::Skipped, Self::Retention, Self::Unexplained];

    pub(super) fn index(self) -> usize {
        match self {
            Self::Transaction => 0,
            Self::Duplicate => 1,
            Self::Rejected { .. } => 2,
            Self::Skipped => 3,
            Self::Retention => 4,
            Self::Unexplained => 5,
        }
    }

    /// A record that is closed may be a transaction by now.
    fn may_be_both(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Transaction, Self::Rejected { closed: true }) | (Self::Rejected { closed: true }, Self::Transaction)
        )
    }
}

/// Offsets by place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([i64; 6]);

impl Counts {
    /// How many are there.
    pub fn of(&self, place: Place) -> i64 {
        self.0[place.index()]
    }

    pub(super) fn add(&mut self, place: Place, n: i64) {
        self.0[place.index()] += n;
    }
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Offsets that are read and in no place.
    Missing {
        /// Whose.
        life: LifeId,
        /// Which.
        offsets: Offsets,
        /// Transactions that lie near them have ids near this.
        near: i64,
    },
    /// An offset in two places.
    Twice {
        /// Whose.
        life: LifeId,
        /// Which.
        offsets: Offsets,
        /// The two, where they are known.
        places: (Place, Place),
        /// As above.
        near: i64,
    },
    /// More or fewer offsets are missing where retention has deleted than it says.
    Purged {
        /// Whose.
        life: LifeId,
        /// From the life's beginning to below which retention has deleted. The end moves on; it is the same problem.
        offsets: Offsets,
        /// The first of them that have no row, and whether there are more: it is some of these.
        holes: (Vec<Offsets>, bool),
        /// The first transactions, of whatever log, that are not there and were accepted: somebody deleted them and left their
        /// attempts. And whether there are more.
        traces: (Vec<i64>, bool),
        /// So many have no row.
        missing: i64,
        /// So many were deleted, at least and at most.
        deleted: (i64, i64),
    },
    /// Offsets that no life, or no position, accounts for.
    Outside {
        /// Whose.
        life: LifeId,
        /// Which: from the first to the last of them.
        offsets: Offsets,
        /// What is not there.
        lacks: Lacks,
    },
    /// A transaction with no evidence of any state.
    Unaccounted {
        /// `tx.id`
        id: i64,
    },
    /// A transaction in two of open, dead, resolved.
    TwoStates {
        /// `tx.id`
        id: i64,
        /// Which.
        states: Vec<&'static str>,
    },
    /// A row in `delivery`, `dead` or `resolved` of a transaction that is not there.
    WithoutTransaction {
        /// `tx.id`
        id: i64,
        /// The tables.
        states: Vec<&'static str>,
    },
}

/// What is not there for offsets that are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacks {
    /// So many transactions, and no row in `life`.
    Life(i64),
    /// A position, and no row in `life`.
    LifeOfPosition,
    /// A life that is read, and no position.
    Position,
    /// So many transactions at or above the position.
    Advance(i64),
}

impl Problem {
    /// Its kind, as in table `audit_finding`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Outside { lacks: Lacks::Advance(_), .. } => "above_position",
            Self::Missing { .. } | Self::Outside { .. } => "offset_missing",
            Self::Purged { .. } => "purged",
            Self::Twice { .. } => "offset_twice",
            Self::Unaccounted { .. } => "unaccounted",
            Self::TwoStates { .. } => "two_states",
            Self::WithoutTransaction { .. } => "without_transaction",
        }
    }

    /// Whose, and which offsets, where it is about offsets.
    pub fn place(&self) -> Option<(&LifeId, Offsets)> {
        match self {
            Self::Missing { life, offsets, .. } | Self::Twice { life, offsets, .. } => Some((life, offsets.clone())),
            Self::Outside { life, offsets, .. } | Self::Purged { life, offsets, .. } => Some((life, offsets.clone())),
            _ => None,
        }
    }

    /// `tx.id`, where it is about a transaction.
    pub fn tx_id(&self) -> Option<i64> {
        match self {
            Self::Unaccounted { id } | Self::TwoStates { id, .. } | Self::WithoutTransaction { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// For people, without the place or the number, which stand beside it.
    pub fn words(&self) -> String {
        match self {
            Self::Missing { .. } => {
                "read, and in no place: no transaction, duplicate, rejected, skipped, gap or deletion".to_owned()
            }
            Self::Twice { places: (a, b), .. } => format!("in two places: {} and {}", a.label(), b.label()),
            Self::Purged { holes, traces, missing, deleted, .. } if missing > &deleted.1 => format!(
                "{missing} of these offsets have no row, and retention has deleted {} of them: {} are missing, among {}{}",
                deleted.1,
                missing - deleted.1,
                listed(holes),
                left_behind(traces)
            ),
            Self::Purged { missing, deleted, .. } => {
                format!("retention has deleted {} of these offsets, and only {missing} have no row", deleted.0)
            }
            Self::Outside { lacks, .. } => match lacks {
                Lacks::Life(n) => format!("{n} transactions of a log that is in no life: none of its offsets is accounted for"),
                Lacks::LifeOfPosition => {
                    "a position of a log that is in no life: none of its offsets is accounted for".to_owned()
                }
                Lacks::Position => "a log that is being read, and has no position".to_owned(),
                Lacks::Advance(n) => format!("stored above the position ({n} transactions): they will be read again"),
            },
            Self::Unaccounted { .. } => {
                "unaccounted: stored, and neither open, dead, resolved nor accepted by the service".to_owned()
            }
            Self::TwoStates { states, .. } => format!("in two states: {}", states.join(" and ")),
            Self::WithoutTransaction { states, .. } => format!("{}, and there is no such transaction", states.join(" and ")),
        }
    }
}

/// With the number, the time and the answer of each attempt are found in table `attempt`.
fn left_behind((ids, more): &(Vec<i64>, bool)) -> String {
    if ids.is_empty() {
        return String::new();
    }
    let shown: Vec<String> = ids.iter().map(i64::to_string).collect();
    format!(
        "; deleted by hand, for their attempts are still there: tx.id {}{}",
        shown.join(", "),
        if *more { ", ..." } else { "" }
    )
}

fn listed((ranges, more): &(Vec<Offsets>, bool)) -> String {
    let shown = |r: &Offsets| if r.end - r.start == 1 { r.start.to_string() } else { format!("{}-{}", r.start, r.end - 1) };
    let shown: Vec<String> = ranges.iter().map(shown).collect();
    format!("{}{}", shown.join(", "), if *more { ", ..." } else { "" })
}

/// Where a transaction stands, by evidence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Whether `tx` has it.
    pub stored: bool,
    /// Whether `delivery` has it.
    pub open: bool,
    /// Whether `dead` has it.
    pub dead: bool,
    /// Whether `resolved` has it.
    pub resolved: bool,
    /// Whether an attempt was accepted.
    pub delivered: bool,
}

impl Evidence {
    /// What is wrong with it, if anything.
    pub fn problem(self, id: i64) -> Option<Problem> {
        let states: Vec<&'static str> = [(self.open, "open"), (self.dead, "dead"), (self.resolved, "resolved")]
            .into_iter()
            .filter_map(|(is, name)| is.then_some(name))
            .collect();
        match (self.stored, states.len()) {
            (true, 0) if !self.delivered => Some(Problem::Unaccounted { id }),
            (true, 0 | 1) | (false, 0) => None,
            (true, _) => Some(Problem::TwoStates { id, states }),
            (false, _) => Some(Problem::WithoutTransaction { id, states }),
        }
    }
}

/// A window as it was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Offsets by place, without the transactions.
    pub counts: Vec<(Place, i64)>,
    /// Offsets in no place, deleted or not.
    pub holes: Vec<Offsets>,
    /// Offsets in two.
    pub twice: Vec<(Offsets, (Place, Place))>,
}

/// Holds transactions and other places of these offsets against each other.
pub fn look(offsets: &Offsets, transactions: &Coverage, holdings: &Holdings) -> Found {
    let mut found = Found::default();
    let mut all = Coverage::default();
    transactions.within(offsets).for_each(|range| drop(all.insert(range)));
    let mut before: Vec<(Place, Offsets)> = Vec::new();
    for (place, range) in &holdings.places {
        let range = range.start.max(offsets.start)..range.end.min(offsets.end);
        if range.is_empty() {
            continue;
        }
        found.counts.push((*place, range.end - range.start));
        for twice in all.insert(range.clone()) {
            // Rare: so a look through all of them is cheap.
            let other = before.iter().find(|(_, other)| other.start < twice.end && twice.start < other.end);
            let other = other.map_or(Place::Transaction, |(place, _)| *place);
            if !place.may_be_both(other) {
                found.twice.push((twice, (other, *place)));
            }
        }
        before.push((*place, range));
    }
    found.holes = all.holes(offsets);
    found
}

/// Problems that a second look confirms: of offsets, by what all places hold of them now.
pub fn confirmed(problem: &Problem, transactions: &Coverage, twice_stored: bool, holdings: &Holdings) -> Vec<Problem> {
    match problem {
        Problem::Missing { life, offsets, near } => {
            let holes = look(offsets, transactions, holdings).holes;
            let left = offsets::minus(&holes, &[i64::MIN..holdings.purged.below]);
            left.into_iter().map(|offsets| Problem::Missing { life: life.clone(), offsets, near: *near }).collect()
        }
        Problem::Twice { life, offsets, places, near } => {
            let found = look(offsets, transactions, holdings).twice;
            let again = |(offsets, places)| Problem::Twice { life: life.clone(), offsets, places, near: *near };
            if twice_stored {
                return vec![Problem::Twice { life: life.clone(), offsets: offsets.clone(), places: *places, near: *near }];
            }
            found.into_iter().map(again).collect()
        }
        other => vec![other.clone()],
    }
}
