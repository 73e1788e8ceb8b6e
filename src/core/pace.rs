//! How often small batches are committed: a lone one goes at once, a steady flow gathers, and a slow disk is left time for others.

use std::time::Duration;

/// The least time between the beginnings of two batches.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    least: Duration,
    most: Duration,
    /// What a commit takes on a fast disk.
    fast: Duration,
    /// What it takes beyond that counts so many times.
    times: u32,
    /// What a commit takes: a moving average over some 8.
    took: Duration,
}

impl Pace {
    /// `least`, and `times` what a commit takes beyond `fast`, up to `most`.
    pub const fn new(least: Duration, most: Duration, fast: Duration, times: u32) -> Self {
        Self { least, most, fast, times, took: Duration::ZERO }
    }

    /// A commit took so long.
    pub fn took(&mut self, time: Duration) {
        self.took = (self.took * 7 + time) / 8;
    }

    /// How long the next batch has to wait, if the last one began so long ago.
    pub fn left(&self, since: Duration) -> Duration {
        let pace = (self.least + self.took.saturating_sub(self.fast) * self.times).min(self.most);
        pace.saturating_sub(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn batches_wait_for_each_other_as_long_as_commits_are_slow() {
        let mut pace = Pace::new(ms(5), ms(20), ms(3), 2);
        assert_eq!(pace.left(ms(0)), ms(5), "nothing was committed yet");
        for _ in 0..60 {
            pace.took(ms(3));
        }
        assert_eq!(pace.left(ms(2)), ms(3), "a fast disk: the least");
        assert_eq!(pace.left(ms(7)), Duration::ZERO);
        for _ in 0..60 {
            pace.took(ms(8));
        }
        assert!(pace.left(ms(0)).abs_diff(ms(15)) < ms(1), "a slow one: {:?}", pace.left(ms(0)));
        pace.took(Duration::from_secs(3600));
        assert_eq!(pace.left(ms(0)), ms(20), "an outage: no more than the most");
        assert_eq!(pace.left(Duration::from_secs(1)), Duration::ZERO);
    }
}
