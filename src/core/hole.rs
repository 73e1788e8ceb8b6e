//! Offsets that the client passed over, and whether a second look at the log explains them.

use super::offsets::{self, Offsets};

/// A hole longer than this is looked at before it is passed.
pub const LONG: i64 = 1_000;
/// Markers stand alone, or in short runs where producers take turns; a longer run of offsets that are not there is none.
const MARKERS: i64 = 64;

/// What a second reader finds in a range of a partition's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Readable as committed.
    pub readable: Vec<Offsets>,
    /// There, and of transactions that were aborted.
    pub aborted: Vec<Offsets>,
    /// Not there: markers, or what compaction took.
    pub absent: Vec<Offsets>,
    /// Below the log's start by now: nobody can look any more.
    pub gone: Vec<Offsets>,
    /// Whether the topic is compacted; `None`: this user may not ask.
    pub compacted: Option<bool>,
}

impl Look {
    /// What of `holes`, which lie in the range that was looked at, no rule explains: records that can be read, and runs of
    /// absent offsets too long for markers where nothing is compacted.
    pub fn unexplained(&self, holes: &[Offsets]) -> Vec<Offsets> {
        let within = |runs: &[Offsets]| offsets::minus(holes, &offsets::minus(holes, runs));
        let too_long = |run: &Offsets| self.compacted == Some(false) && run.end - run.start > MARKERS;
        let absent: Vec<Offsets> = self.absent.iter().filter(|run| too_long(run)).cloned().collect();
        let mut found = within(&self.readable);
        found.extend(within(&absent));
        found.sort_by_key(|run| run.start);
        found
    }
}

/// Those holes that are to be looked at before they are passed: a partition's first ones, and long ones. The others are
/// explained by the rule, and can be proven later.
pub fn to_prove(holes: &[Offsets], skipped_before: i64) -> Vec<Offsets> {
    holes.iter().filter(|hole| skipped_before == 0 || hole.end - hole.start > LONG).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(of: &[(i64, i64)]) -> Vec<Offsets> {
        of.iter().map(|r| r.0..r.1).collect()
    }

    fn look(readable: &[(i64, i64)], absent: &[(i64, i64)], compacted: Option<bool>) -> Look {
        Look { readable: ranges(readable), absent: ranges(absent), compacted, ..Look::default() }
    }

    #[track_caller]
    fn check(look: &Look, unexplained: &[(i64, i64)]) {
        assert_eq!(look.unexplained(&ranges(&[(0, 10_000)])), ranges(unexplained));
    }

    #[test]
    fn aborted_records_markers_and_compaction_explain_a_hole_and_readable_records_never_do() {
        check(&Look { aborted: ranges(&[(0, 5_000)]), ..look(&[], &[(5_000, 5_001)], Some(false)) }, &[]);
        check(&look(&[], &[(0, 64), (70, 71)], Some(false)), &[]);
        check(&look(&[], &[(0, 65), (70, 71)], Some(false)), &[(0, 65)]);
        check(&look(&[], &[(0, 5_000)], Some(true)), &[]);
        check(&look(&[], &[(0, 5_000)], None), &[]);
        for compacted in [None, Some(true), Some(false)] {
            check(&look(&[(7, 8)], &[(0, 7)], compacted), &[(7, 8)]);
        }
        check(&look(&[(200, 201)], &[(0, 100)], Some(false)), &[(0, 100), (200, 201)]);
        check(&Look { gone: ranges(&[(0, 5_000)]), ..look(&[], &[], Some(false)) }, &[]);
    }

    #[test]
    fn records_beside_the_holes_are_no_find() {
        let look = look(&[(0, 10), (20, 30), (35, 40)], &[(10, 20), (100, 200)], Some(false));
        assert_eq!(look.unexplained(&ranges(&[(10, 20), (30, 36), (90, 150)])), ranges(&[(35, 36), (100, 150)]));
    }

    #[test]
    fn a_partitions_first_holes_and_long_ones_are_looked_at() {
        let holes = ranges(&[(5, 6), (10, 1_010), (2_000, 3_001)]);
        assert_eq!(to_prove(&holes, 0), holes);
        assert_eq!(to_prove(&holes, 1), holes[2..]);
    }
}
