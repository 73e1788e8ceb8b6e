//! Repeats of one message: once a minute, with a count. A fault of a night must not fill a disk.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Keys remembered at once. Keys are few (a place in the code, a topic); the bound is for those that are not.
const MAX_KEYS: usize = 256;

/// Lets one line through per key and interval, and counts the others.
#[derive(Debug)]
pub struct Throttle<K = String> {
    interval: Duration,
    keys: HashMap<K, Key>,
}

#[derive(Debug)]
struct Key {
    written: Instant,
    held_back: u64,
}

impl Throttle {
    /// [`ask`](Self::ask), and the count as the end of the line: `""`, or ` (12 more like this since the last line)`.
    pub fn admit(&mut self, key: &str, now: Instant) -> Option<String> {
        let held_back = self.ask(key.to_owned(), now)?;
        Some(if held_back == 0 { String::new() } else { format!(" ({held_back} more like this since the last line)") })
    }
}

impl<K: Eq + Hash + Clone> Throttle<K> {
    /// One line per key in `interval`.
    pub fn every(interval: Duration) -> Self {
        Self { interval, keys: HashMap::new() }
    }

    /// One line per key in a minute.
    pub fn per_minute() -> Self {
        Self::every(Duration::from_secs(60))
    }

    /// Whether a line about `key` may be written `now`; then how many were held back since the last one.
    pub fn ask(&mut self, key: K, now: Instant) -> Option<u64> {
        if let Some(known) = self.keys.get_mut(&key) {
            if now.saturating_duration_since(known.written) < self.interval {
                known.held_back += 1;
                return None;
            }
            known.written = now;
            return Some(std::mem::take(&mut known.held_back));
        }
        if self.keys.len() >= MAX_KEYS {
            self.forget_oldest();
        }
        self.keys.insert(key, Key { written: now, held_back: 0 });
        Some(0)
    }

    /// Forgets `key`: it is over, and its next line is news.
    pub fn over(&mut self, key: &K) {
        self.keys.remove(key);
    }

    fn forget_oldest(&mut self) {
        let oldest = self.keys.iter().min_by_key(|(_, k)| k.written).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.keys.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn repeats_are_written_once_a_minute_with_a_count() {
        let start = Instant::now();
        let mut throttle = Throttle::per_minute();
        assert_eq!(throttle.ask("postgres", start), Some(0));
        for n in 1..60 {
            assert_eq!(throttle.ask("postgres", start + n * SECOND), None);
        }
        assert_eq!(throttle.ask("kafka", start + SECOND), Some(0), "another key has its own minute");
        assert_eq!(throttle.ask("postgres", start + 60 * SECOND), Some(59));
        assert_eq!(throttle.ask("postgres", start + 61 * SECOND), None);
        assert_eq!(throttle.ask("postgres", start + 200 * SECOND), Some(1));
    }

    #[test]
    fn what_is_over_is_news_when_it_comes_back() {
        let start = Instant::now();
        let mut throttle = Throttle::per_minute();
        assert_eq!(throttle.ask(1, start), Some(0));
        throttle.over(&1);
        assert_eq!(throttle.ask(1, start + SECOND), Some(0));
    }

    #[test]
    fn memory_is_bounded_whatever_the_keys() {
        let start = Instant::now();
        let mut throttle = Throttle::per_minute();
        for n in 0..10_000_u32 {
            throttle.ask(n, start + Duration::from_millis(n.into()));
        }
        assert_eq!(throttle.keys.len(), MAX_KEYS);
        assert_eq!(throttle.ask(9_999, start + 11 * SECOND), None, "the newest are kept");
    }
}
