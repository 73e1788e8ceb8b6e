//! Percentiles of counted values.

/// The smallest value that at least `percent` of all are not above (nearest rank); `None` of none. `counted`: value and how
/// often, in any order.
pub fn percentile(counted: &[(i32, i64)], percent: u32) -> Option<i32> {
    let mut sorted = counted.to_vec();
    sorted.sort_unstable();
    let all: i64 = sorted.iter().map(|(_, n)| n).sum();
    let rank = (all * i64::from(percent) + 99) / 100;
    let mut below = 0;
    sorted.into_iter().find_map(|(value, n)| {
        below += n;
        (below >= rank.max(1)).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let counted = [(10, 50), (20, 49), (1000, 1)];
        let of = |percent| percentile(&counted, percent);
        assert_eq!([of(0), of(50), of(51), of(99), of(100)], [Some(10), Some(10), Some(20), Some(20), Some(1000)]);
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[(7, 1)], 99), Some(7));
    }
}
