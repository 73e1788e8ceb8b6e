//! How much may be taken into memory at once (ARCHITECTURE.md, 6).
//!
//! What is taken is leased; what cannot start well before the lease ends would be given back, or delivered twice.

use std::time::Duration;

/// Most rows that wait in `handoff`.
pub const ROWS_MAX: usize = 1024;

/// Most bytes of payload in them.
pub const BYTES_MAX: usize = 32 << 20;

/// How many rows may be held: as many as `workers` can start within a third of the lease when a request takes
/// `mean_request` (the request timeout while nothing is known), at least 1, at most [`ROWS_MAX`].
pub fn limit(workers: usize, mean_request: Duration, lease: Duration) -> usize {
    let per_worker = (lease / 3).as_nanos() / mean_request.as_nanos().max(1);
    let rows = u128::try_from(workers).unwrap_or(u128::MAX).saturating_mul(per_worker);
    usize::try_from(rows).unwrap_or(usize::MAX).clamp(1, ROWS_MAX)
}

/// How many rows can start within a third of the lease at `rate` per second; at least 1.
pub fn limit_at(rate: f64, lease: Duration) -> usize {
    // A float too large for an integer becomes the largest one.
    ((rate * lease.as_secs_f64() / 3.0) as usize).max(1)
}

/// How many free rows a claim waits for: the largest of `limits` (ascending, from 1) within half of a room of `room` rows, and no more
/// than `fitting`, what fits by its payloads. The workers draw on the other half meanwhile. Taken as soon as they are free, they would
/// come a few at a time: four processes on one backlog claimed 38 rows at a time instead of 385.
pub fn worth_a_claim(room: usize, fitting: usize, limits: &[usize]) -> usize {
    let most = (room / 2).min(fitting);
    limits.iter().copied().rev().find(|limit| *limit <= most).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_more_is_taken_than_can_start_within_a_third_of_the_lease() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        for (workers, mean_request, lease, rows) in [
            (32, s(15), s(60), 32),
            (4, s(10), s(60), 8),
            (32, ms(20), s(60), ROWS_MAX),
            (1, ms(100), s(60), 200),
            (1, s(60), s(60), 1),
            (0, s(1), s(60), 1),
            (32, Duration::ZERO, s(60), ROWS_MAX),
            (usize::MAX, Duration::ZERO, Duration::MAX, ROWS_MAX),
            (32, s(1), Duration::ZERO, 1),
        ] {
            assert_eq!(limit(workers, mean_request, lease), rows, "{workers} workers, {mean_request:?}, lease {lease:?}");
        }
    }

    #[test]
    fn a_paced_gate_takes_no_more_than_it_lets_through() {
        let minute = Duration::from_secs(60);
        assert_eq!([f64::INFINITY, 20.0, 0.1, 0.0].map(|rate| limit_at(rate, minute)), [usize::MAX, 400, 2, 1]);
    }

    #[test]
    fn a_claim_waits_for_half_of_the_room_and_never_for_more_than_there_can_be() {
        for (room, fitting, rows) in [
            (ROWS_MAX, 500, 500),
            (ROWS_MAX, 499, 64),
            (999, 500, 64),
            (128, 500, 64),
            (64, 500, 8),
            (3, 500, 1),
            (1, 1, 1),
            (0, 0, 1),
        ] {
            assert_eq!(worth_a_claim(room, fitting, &[1, 8, 64, 500]), rows, "a room of {room}, {fitting} fit");
        }
    }

    proptest! {
        #[test]
        fn there_is_always_room_for_one_and_never_for_too_many(workers: usize, mean_request: Duration, lease: Duration) {
            let rows = limit(workers, mean_request, lease);
            prop_assert!((1..=ROWS_MAX).contains(&rows));
        }
    }
}
