//! When reading stops because too much is open, and when it goes on.

/// Whether reading stands still with `open` deliveries and a limit of `max` (`None`: there is none), when it `stands` so far. It
/// goes on at 90 %, so that a pipeline at its limit does not stop and start with every batch.
pub fn is_full(stands: bool, open: i64, max: Option<u32>) -> bool {
    let (Some(max), open) = (max.map(i128::from), i128::from(open)) else { return false };
    if stands { open * 10 > max * 9 } else { open >= max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stops_at_the_limit_and_goes_on_at_nine_tenths() {
        for (stands, open, max, full) in [
            (false, 99, Some(100), false),
            (false, 100, Some(100), true),
            (true, 100, Some(100), true),
            (true, 91, Some(100), true),
            (true, 90, Some(100), false),
            (false, 91, Some(100), false),
            (false, i64::MAX, None, false),
            (true, i64::MAX, None, false),
            (false, 1, Some(1), true),
            (true, 1, Some(1), true),
            (true, 0, Some(1), false),
            (false, 0, Some(1), false),
        ] {
            assert_eq!(is_full(stands, open, max), full, "stands {stands}, {open} of {max:?}");
        }
    }
}
