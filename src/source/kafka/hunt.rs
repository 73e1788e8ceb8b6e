//! Is a gap in an answer a gap in the log? Pure.
//!
//! The crate keeps of an answer only the first compressed batch: plain ones before it are thrown away, and it looks as if the
//! log began behind them. A smaller answer ends before the compressed batch and then brings the plain ones; one that is too
//! small brings nothing. So the right size lies between the largest that brought nothing and the smallest that began behind
//! the wanted offset, and it may be a few bytes wide: it is searched for by halving, and only when the two meet is the gap
//! believed.

/// A search for the record at one offset.
#[derive(Debug)]
pub(super) struct Hunt {
    wanted: i64,
    /// Brought nothing.
    too_small: i32,
    /// Began behind the wanted offset.
    too_large: i32,
    /// The first offset behind the gap, as far as is known.
    beyond: i64,
}

impl Hunt {
    /// After an answer to `size` that began at `first`, behind `wanted`.
    pub(super) fn new(wanted: i64, size: i32, first: i64) -> Self {
        Self { wanted, too_small: 0, too_large: size.max(1), beyond: first }
    }

    /// The size to try next; `None`: there is no such record.
    pub(super) fn next(&self) -> Option<i32> {
        let size = self.too_small + (self.too_large - self.too_small) / 2;
        (size > self.too_small).then_some(size)
    }

    /// What an answer to `size` began with; `None`: it was empty. Returns whether the record is found.
    pub(super) fn note(&mut self, size: i32, first: Option<i64>) -> bool {
        match first {
            None => self.too_small = size,
            Some(first) if first > self.wanted => {
                self.too_large = size;
                self.beyond = self.beyond.min(first);
            }
            Some(_) => return true,
        }
        false
    }

    /// The first offset behind the gap.
    pub(super) fn beyond(&self) -> i64 {
        self.beyond
    }
}

/// How many of these follow on `wanted` without a hole.
pub(super) fn run_length(wanted: i64, offsets: impl IntoIterator<Item = i64>) -> usize {
    offsets.into_iter().zip(wanted..).take_while(|(offset, expected)| offset == expected).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A batch in the log: its first and last offset, its size, and whether it is compressed.
    #[derive(Debug, Clone)]
    struct Batch {
        first: i64,
        last: i64,
        size: i32,
        is_compressed: bool,
    }

    /// What the crate gives of a broker's answer: batches that fit whole, and of these only the first compressed one if there
    /// is any.
    fn fetch(log: &[Batch], wanted: i64, size: i32) -> Vec<i64> {
        let mut left = size;
        let mut kept = Vec::new();
        for batch in log.iter().skip_while(|batch| batch.last < wanted) {
            left -= batch.size;
            if left < 0 {
                break;
            }
            let offsets = (batch.first..=batch.last).filter(|offset| *offset >= wanted);
            if batch.is_compressed {
                return offsets.collect();
            }
            kept.extend(offsets);
        }
        kept
    }

    /// Reads as the source does, and returns what it got and which gaps it believed.
    fn read(log: &[Batch], size: i32) -> (Vec<i64>, Vec<(i64, i64)>) {
        let end = log.last().map_or(0, |batch| batch.last + 1);
        let (mut next, mut records, mut gaps) = (0, Vec::new(), Vec::new());
        while next < end {
            let mut got = fetch(log, next, size);
            assert!(!got.is_empty(), "every batch fits");
            if got[0] > next {
                let mut hunt = Hunt::new(next, size, got[0]);
                let mut requests = 0;
                let found = loop {
                    let Some(smaller) = hunt.next() else { break false };
                    requests += 1;
                    assert!(requests <= 32, "it ends");
                    got = fetch(log, next, smaller);
                    if hunt.note(smaller, got.first().copied()) {
                        break true;
                    }
                };
                if !found {
                    gaps.push((next, hunt.beyond()));
                    next = hunt.beyond();
                    continue;
                }
            }
            let n = run_length(next, got.iter().copied());
            records.extend(&got[..n]);
            next += n as i64;
        }
        (records, gaps)
    }

    fn log() -> impl Strategy<Value = Vec<Batch>> {
        // records, offsets missing before it, size, compressed
        prop::collection::vec((1..20i64, prop_oneof![9 => Just(0i64), 1 => 1..5i64], 70..5000i32, any::<bool>()), 1..40).prop_map(
            |batches| {
                let mut next = 0;
                let mut log = Vec::new();
                for (n, missing, size, is_compressed) in batches {
                    let first = next + missing;
                    next = first + n;
                    log.push(Batch { first, last: next - 1, size, is_compressed });
                }
                log
            },
        )
    }

    proptest! {
        #[test]
        fn every_record_of_any_mix_of_plain_and_compressed_batches_arrives(log in log(), size in 5000..100_000i32) {
            let all: Vec<i64> = log.iter().flat_map(|batch| batch.first..=batch.last).collect();
            let (records, gaps) = read(&log, size);
            prop_assert_eq!(&records, &all);
            // And every gap that is believed is one.
            for (from, to) in gaps {
                prop_assert!(all.iter().all(|offset| !(from..to).contains(offset)), "{from}..{to}");
            }
        }
    }

    #[test]
    fn a_tiny_compressed_batch_behind_a_large_plain_one_hides_nothing() {
        // Halving alone (900,000 needed; 1 MiB, 512 KiB, ...) would step over the only sizes that work.
        let log = [
            Batch { first: 0, last: 8, size: 900_000, is_compressed: false },
            Batch { first: 9, last: 9, size: 80, is_compressed: true },
        ];
        assert_eq!(read(&log, 1 << 20), ((0..10).collect(), vec![]));
    }

    #[test]
    fn a_run_ends_at_its_first_hole() {
        assert_eq!(run_length(5, [5, 6, 8]), 2);
        assert_eq!(run_length(5, [6]), 0);
        assert_eq!(run_length(5, []), 0);
    }
}
