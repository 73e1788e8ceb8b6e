//! Ranges of a partition's offsets: which of them a batch leaves out.

/// Offsets from `start` up to, not including, `end`.
pub type Offsets = std::ops::Range<i64>;

/// How many offsets these ranges hold; they do not overlap.
pub fn count(ranges: &[Offsets]) -> i64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// What lies between `expected` and `new` and is none of `read`, which is ascending and lies between the two.
pub fn holes(expected: i64, read: impl IntoIterator<Item = i64>, new: i64) -> Vec<Offsets> {
    let mut next = expected;
    let mut holes = Vec::new();
    for offset in read {
        if offset > next {
            holes.push(next..offset);
        }
        next = offset + 1;
    }
    if new > next {
        holes.push(next..new);
    }
    holes
}

/// Ascending offsets as runs of neighbours.
pub fn add(runs: &mut Vec<Offsets>, offset: i64) {
    match runs.last_mut() {
        Some(last) if last.end == offset => last.end += 1,
        _ => runs.push(offset..offset + 1),
    }
}

/// What is in `all` and in none of `without`; both ascending, without overlaps.
pub fn minus(all: &[Offsets], without: &[Offsets]) -> Vec<Offsets> {
    let mut left = Vec::new();
    for range in all {
        let mut next = range.start;
        for out in without.iter().filter(|out| out.start < range.end && out.end > range.start) {
            if out.start > next {
                left.push(next..out.start);
            }
            next = next.max(out.end);
        }
        if next < range.end {
            left.push(next..range.end);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(expected: i64, read: &[i64], new: i64, left_out: &[(i64, i64)]) {
        let found: Vec<(i64, i64)> = holes(expected, read.iter().copied(), new).iter().map(|r| (r.start, r.end)).collect();
        assert_eq!(found, left_out);
    }

    #[test]
    fn holes_lie_before_between_and_behind() {
        check(5, &[5, 6, 7], 8, &[]);
        check(5, &[7, 8, 11], 14, &[(5, 7), (9, 11), (12, 14)]);
        check(5, &[], 9, &[(5, 9)]);
        check(5, &[], 5, &[]);
    }

    #[test]
    fn what_is_taken_out_of_ranges_leaves_the_rest() {
        let minus = |all: &[(i64, i64)], without: &[(i64, i64)]| {
            let ranges = |of: &[(i64, i64)]| of.iter().map(|r| r.0..r.1).collect::<Vec<_>>();
            minus(&ranges(all), &ranges(without)).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>()
        };
        assert_eq!(minus(&[(0, 10)], &[]), [(0, 10)]);
        assert_eq!(minus(&[(0, 10), (20, 30)], &[(3, 5), (8, 22), (29, 40)]), [(0, 3), (5, 8), (22, 29)]);
        assert_eq!(minus(&[(0, 10)], &[(0, 10)]), []);
    }

    proptest! {
        #[test]
        fn what_is_read_and_what_is_left_out_is_everything(present in prop::collection::vec(any::<bool>(), 0..60)) {
            let offsets: Vec<i64> = (100..).zip(&present).filter(|(_, there)| **there).map(|(offset, _)| offset).collect();
            let holes = holes(100, offsets.iter().copied(), 100 + present.len() as i64);
            let mut all: Vec<i64> = holes.iter().cloned().flatten().chain(offsets).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (100..100 + present.len() as i64).collect::<Vec<_>>());
            prop_assert!(holes.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
