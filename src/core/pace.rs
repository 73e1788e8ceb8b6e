//! How often small batches are committed: a lone one goes at once, a steady flow gathers, the more the longer a commit takes.

use std::time::Duration;

/// The least time between the beginnings of two batches.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    least: Duration,
    most: Duration,
    /// So many times what a commit takes.
    times: f64,
    /// What a commit takes: a moving average over some 8.
    took: Duration,
}

impl Pace {
    /// `times` what a commit takes: at least `least`, at most `most`.
    pub const fn new(least: Duration, most: Duration, times: f64) -> Self {
        Self { least, most, times, took: Duration::ZERO }
    }

    /// A commit took so long.
    pub fn took(&mut self, time: Duration) {
        self.took = (self.took * 7 + time) / 8;
    }

    /// How long the next batch has to wait, if the last one began so long ago.
    pub fn left(&self, since: Duration) -> Duration {
        self.took.mul_f64(self.times).clamp(self.least, self.most).saturating_sub(since)
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
        let mut pace = Pace::new(ms(5), ms(20), 2.0);
        assert_eq!(pace.left(ms(0)), ms(5), "nothing was committed yet");
        for _ in 0..60 {
            pace.took(ms(2));
        }
        assert_eq!(pace.left(ms(2)), ms(3), "a fast disk: the least");
        assert_eq!(pace.left(ms(7)), Duration::ZERO);
        for _ in 0..60 {
            pace.took(ms(8));
        }
        assert!(pace.left(ms(0)).abs_diff(ms(16)) < ms(1), "a slow one: {:?}", pace.left(ms(0)));
        pace.took(Duration::from_secs(3600));
        assert_eq!(pace.left(ms(0)), ms(20), "an outage: no more than the most");
        assert_eq!(pace.left(Duration::from_secs(1)), Duration::ZERO);
    }
}
