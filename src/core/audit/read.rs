//! What an audit reads: the lives, rows of a range of ids, and what the tables beside `tx` hold of a window.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Place;
use crate::core::offsets::Offsets;

/// A partition's log, in one of its lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LifeId {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Which of its lives.
    pub incarnation: i16,
}

/// A life as the tables describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Whose.
    pub id: LifeId,
    /// Number of the topic in `tx`; `None` while it has no transaction.
    pub number: Option<i16>,
    /// Where reading began.
    pub first: i64,
    /// Up to here it is read.
    pub position: i64,
    /// Up to here an earlier audit has found everything in its place.
    pub audited: i64,
    /// What retention deleted.
    pub purged: Purge,
}

/// What retention says that it deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purge {
    /// Below this.
    pub below: i64,
    /// So many offsets' rows.
    pub offsets: i64,
}

/// A transaction's row: its number, and its place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// `tx.id`
    pub id: i64,
    /// Number of its topic.
    pub topic: i16,
    /// Partition.
    pub partition: i32,
    /// Life of the partition's log.
    pub incarnation: i16,
    /// Offset.
    pub offset: i64,
}

/// Rows with ids in a range, all of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The end of the range; the next one begins behind it.
    pub upto: i64,
    /// Ascending by id.
    pub rows: Vec<Row>,
    /// Ids in `delivery`.
    pub open: Vec<i64>,
    /// Ids in `dead`.
    pub dead: Vec<i64>,
    /// Ids in `resolved`.
    pub resolved: Vec<i64>,
    /// Ids of attempts that were accepted; an id may come more than once.
    pub delivered: Vec<i64>,
}

/// What the other tables hold of a window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Places and their offsets.
    pub places: Vec<(Place, Offsets)>,
    /// What retention says by now.
    pub purged: Purge,
}

/// Ids in ascending order, asked for in ascending order.
pub(super) struct Ids {
    ids: Vec<i64>,
    next: usize,
    unmatched: Vec<i64>,
}

impl Ids {
    pub(super) fn new(mut ids: Vec<i64>) -> Self {
        if !ids.is_sorted() {
            ids.sort_unstable();
        }
        Self { ids, next: 0, unmatched: Vec::new() }
    }

    /// Whether it is one of them.
    pub(super) fn has(&mut self, id: i64) -> bool {
        while let Some(&found) = self.ids.get(self.next) {
            match found.cmp(&id) {
                Ordering::Less => {
                    if self.next == 0 || self.ids[self.next - 1] != found {
                        self.unmatched.push(found);
                    }
                }
                Ordering::Equal => {
                    // Several attempts of one.
                    while self.ids.get(self.next) == Some(&id) {
                        self.next += 1;
                    }
                    return true;
                }
                Ordering::Greater => return false,
            }
            self.next += 1;
        }
        false
    }

    /// Those that were not asked for.
    pub(super) fn unmatched(mut self) -> Vec<i64> {
        self.unmatched.extend_from_slice(&self.ids[self.next..]);
        self.unmatched
    }
}
