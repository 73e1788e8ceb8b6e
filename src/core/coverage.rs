//! A set of offsets that grows piece by piece, and what it leaves out.

use std::collections::BTreeMap;

use super::offsets::Offsets;

/// Offsets, kept as ranges: neighbours are one range, so that a log read in any order near the right one stays small.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Start and end of each; no two touch.
    ranges: BTreeMap<i64, i64>,
}

impl Coverage {
    /// Adds offsets; returns those that were there already, ascending.
    pub fn insert(&mut self, range: Offsets) -> Vec<Offsets> {
        let mut twice = Vec::new();
        if range.is_empty() {
            return twice;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &its_end)) = self.ranges.range(..range.start).next_back()
            && its_end >= range.start
        {
            if its_end > range.start {
                twice.push(range.start..its_end.min(range.end));
            }
            (start, end) = (before, end.max(its_end));
        }
        while let Some((&next, &its_end)) = self.ranges.range(range.start..=end).next() {
            if next < range.end {
                twice.push(next..its_end.min(range.end));
            }
            end = end.max(its_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
        twice
    }

    /// Takes offsets out; returns how many of them were there.
    pub fn remove(&mut self, range: Offsets) -> i64 {
        let touched: Vec<Offsets> = self.within(&range).collect();
        for piece in &touched {
            let (start, end) = self.ranges.range(..=piece.start).next_back().map_or((0, 0), |(s, e)| (*s, *e));
            self.ranges.remove(&start);
            if start < piece.start {
                self.ranges.insert(start, piece.start);
            }
            if piece.end < end {
                self.ranges.insert(piece.end, end);
            }
        }
        super::offsets::count(&touched)
    }

    /// What of `range` is there, ascending.
    pub fn within<'a>(&'a self, range: &Offsets) -> impl Iterator<Item = Offsets> + use<'a> {
        let (from, to) = (range.start, range.end);
        let before = self.ranges.range(..from).next_back();
        let inside = self.ranges.range(from..to.max(from));
        before.into_iter().chain(inside).map(move |(start, end)| (*start).max(from)..(*end).min(to)).filter(|r| !r.is_empty())
    }

    /// What of `range` is not there, ascending.
    pub fn holes(&self, range: &Offsets) -> Vec<Offsets> {
        let mut next = range.start;
        let mut holes = Vec::new();
        for piece in self.within(range) {
            if piece.start > next {
                holes.push(next..piece.start);
            }
            next = piece.end;
        }
        if next < range.end {
            holes.push(next..range.end);
        }
        holes
    }

    /// Everything, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Offsets> + '_ {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// Behind the last one.
    pub fn end(&self) -> Option<i64> {
        self.ranges.last_key_value().map(|(_, end)| *end)
    }

    /// How many ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn set(ranges: &[Offsets]) -> BTreeSet<i64> {
        ranges.iter().cloned().flatten().collect()
    }

    #[test]
    fn neighbours_become_one_and_what_is_there_twice_is_said() {
        let mut coverage = Coverage::default();
        for range in [5..6, 7..9, 6..7] {
            assert_eq!(coverage.insert(range), []);
        }
        assert_eq!(coverage.ranges().collect::<Vec<_>>(), [5..9]);
        assert_eq!(coverage.insert(3..6), [5..6]);
        assert_eq!(coverage.insert(20..22), []);
        assert_eq!(coverage.insert(8..21), [8..9, 20..21]);
        assert_eq!(coverage.ranges().collect::<Vec<_>>(), [3..22]);
        assert_eq!(coverage.holes(&(0..25)), [0..3, 22..25]);
        assert_eq!(coverage.remove(5..7), 2);
        assert_eq!(coverage.ranges().collect::<Vec<_>>(), [3..5, 7..22]);
        assert_eq!((coverage.end(), coverage.insert(1..1)), (Some(22), vec![]));
    }

    proptest! {
        /// Against a set of single offsets.
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0i64..60, 0i64..9), 0..60)) {
            let (mut coverage, mut model) = (Coverage::default(), BTreeSet::new());
            for (is_insert, start, length) in steps {
                let range = start..start + length;
                let there: BTreeSet<i64> = range.clone().filter(|offset| model.contains(offset)).collect();
                if is_insert {
                    prop_assert_eq!(set(&coverage.insert(range.clone())), there);
                    model.extend(range.clone());
                } else {
                    prop_assert_eq!(coverage.remove(range.clone()), there.len() as i64);
                    model.retain(|offset| !range.contains(offset));
                }
                let ranges: Vec<Offsets> = coverage.ranges().collect();
                prop_assert_eq!(set(&ranges), model.clone());
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?} touch", ranges);
                let holes = coverage.holes(&(10..50));
                prop_assert_eq!(set(&holes), (10..50).filter(|offset| !model.contains(offset)).collect::<BTreeSet<i64>>());
                let within: Vec<Offsets> = coverage.within(&(10..50)).collect();
                prop_assert_eq!(set(&within), model.iter().copied().filter(|o| (10..50).contains(o)).collect::<BTreeSet<i64>>());
            }
        }
    }
}
