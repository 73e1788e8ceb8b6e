//! How often small batches are committed: a lone one goes at once, a steady flow gathers, and a slow disk is left time for others.

use std::time::{Duration, Instant};

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
    began: Option<Instant>,
}

impl Pace {
    /// `least`, and `times` what a commit takes beyond `fast`, up to `most`; the first batch goes at once.
    pub const fn new(least: Duration, most: Duration, fast: Duration, times: u32) -> Self {
        Self { least, most, fast, times, took: Duration::ZERO, began: None }
    }

    /// A batch begins to be committed.
    pub fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }

    /// It took so long.
    pub fn took(&mut self, time: Duration) {
        self.took = (self.took * 7 + time) / 8;
    }

    /// How long the next batch has to wait.
    pub fn left(&self, now: Instant) -> Duration {
        let pace = (self.least + self.took.saturating_sub(self.fast) * self.times).min(self.most);
        self.began.map_or(Duration::ZERO, |began| pace.saturating_sub(now.saturating_duration_since(began)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_lone_batch_goes_at_once_and_the_next_as_slowly_as_commits_are() {
        let start = Instant::now();
        let mut pace = Pace::new(ms(5), ms(20), ms(3), 2);
        assert_eq!(pace.left(start), Duration::ZERO);
        pace.begin(start);
        for _ in 0..60 {
            pace.took(ms(3));
        }
        assert_eq!(pace.left(start + ms(2)), ms(3), "a fast disk: the least");
        assert_eq!(pace.left(start + ms(7)), Duration::ZERO);
        for _ in 0..60 {
            pace.took(ms(8));
        }
        assert!(pace.left(start).abs_diff(ms(15)) < ms(1), "a slow one: {:?}", pace.left(start));
        pace.took(Duration::from_secs(3600));
        assert_eq!(pace.left(start), ms(20), "an outage: no more than the most");
        assert_eq!(pace.left(start + Duration::from_secs(1)), Duration::ZERO);
    }
}
