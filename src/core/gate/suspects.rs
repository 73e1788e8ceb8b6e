//! Suspects: deliveries that have failed by themselves. A quarter of the permits, and while others are due, of the starts.

/// Starts of others that earn a suspect one.
const PRICE: u32 = 3;
/// Of earned starts that may gather.
const MOST: u32 = 8 * PRICE;

/// How many workers take suspects at all: each holds one permit, so that this is their share of the permits.
pub fn workers(workers: usize) -> usize {
    (workers / 4).max(1)
}

/// How many suspects may wait in memory when that much room is there for all. The rest is put off: they must not fill it.
pub fn room(limit: usize) -> usize {
    (limit / 4).max(1)
}

/// Who begins next.
#[derive(Debug, Default)]
pub(super) struct Share {
    earned: u32,
}

impl Share {
    /// So many others have begun.
    pub(super) fn others(&mut self, starts: u64) {
        let starts = u32::try_from(starts).unwrap_or(MOST);
        self.earned = self.earned.saturating_add(starts).min(MOST);
    }

    /// Whether a suspect may begin; if so, it is taken to do so.
    pub(super) fn take(&mut self, others_are_due: bool) -> bool {
        if others_are_due && self.earned < PRICE {
            return false;
        }
        self.earned = self.earned.saturating_sub(PRICE);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspects_have_a_quarter_of_the_starts_while_others_are_due() {
        let mut share = Share::default();
        let (mut suspects, mut others) = (0, 0);
        for _ in 0..1000 {
            if share.take(true) {
                suspects += 1;
            } else {
                share.others(1);
                others += 1;
            }
        }
        assert_eq!((suspects, others), (250, 750));
        assert!((0..1000).all(|_| share.take(false)), "and all of them when nobody else is there");
        assert!(!share.take(true), "which earns nothing");
    }

    #[test]
    fn at_least_one_worker_takes_suspects() {
        assert_eq!([1, 3, 4, 32, 64].map(workers), [1, 1, 1, 8, 16]);
        assert_eq!([0, 1, 64, 1024].map(room), [1, 1, 16, 256]);
    }
}
