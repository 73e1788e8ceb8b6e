//! When the service last accepted something, for deciding whose fault a failure is.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The two newest acceptances of different deliveries: one of them is always another's.
#[derive(Debug, Default)]
pub struct Acceptances(Mutex<[Option<(i64, Instant)>; 2]>);

impl Acceptances {
    /// Delivery `id` was accepted.
    pub fn accepted(&self, id: i64, now: Instant) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if newest[0].is_some_and(|(other, _)| other != id) {
            newest[1] = newest[0];
        }
        newest[0] = Some((id, now));
    }

    /// When a delivery other than `id` was last accepted.
    pub fn last_other_than(&self, id: i64) -> Option<Instant> {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest.iter().flatten().find(|(other, _)| *other != id).map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ones_own_acceptance_says_nothing_about_oneself() {
        let (acceptances, start) = (Acceptances::default(), Instant::now());
        acceptances.accepted(1, start);
        assert_eq!(acceptances.last_other_than(1), None);
        assert_eq!(acceptances.last_other_than(2), Some(start));
        acceptances.accepted(2, start + Duration::from_secs(1));
        acceptances.accepted(2, start + Duration::from_secs(2));
        assert_eq!(acceptances.last_other_than(2), Some(start));
    }
}
