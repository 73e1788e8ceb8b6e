//! Records that PostgreSQL does not take, and not for their values: a trigger, a constraint, an index that somebody dropped.
//! Nothing is skipped: their partition waits, loudly, and the others go on.

use std::time::{Duration, Instant};

use super::consumer::{Consumer, Held, Leave};
use crate::core::record::TopicPartition;
use crate::source::MessageSource;
use crate::store::{Batch, StoreError};

/// Shortest and longest wait before such a partition is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A partition that waits.
pub(super) struct Refused {
    /// When it is tried again, and the wait that leads there.
    until: Instant,
    wait: Duration,
    /// Where it stands and what PostgreSQL said.
    words: String,
}

impl Consumer {
    /// PostgreSQL refuses something in this batch: each partition is stored by itself. Of one that is refused again, what lies
    /// before the first refused record is stored; then it waits there.
    pub(super) fn store_by_partition(&mut self, source: &mut dyn MessageSource, batch: Batch) -> Result<(), Leave> {
        for part in batch.by_partition() {
            if let Some((part, why)) = self.store_batch(source, part)? {
                self.refuse(source, part, why)?;
            }
        }
        Ok(())
    }

    fn refuse(&mut self, source: &mut dyn MessageSource, part: Batch, mut why: StoreError) -> Result<(), Leave> {
        let Some(advance) = part.advances.first() else { return Ok(()) };
        let (at, mut stands) = (advance.at.clone(), advance.expected);
        let known = self.refused.get(&at).map(|refused| refused.wait);
        let (writer, topics) = (self.writer(), &self.topics);
        let first = self.link.run(|session| session.first_refused(writer, topics, &part)).map_err(|error| {
            // Whatever has happened meanwhile is not this partition's fault.
            self.store_trouble(&error);
            Leave::Rebuild(format!("while looking for what PostgreSQL refuses: {error}"))
        })?;
        let end = first.unwrap_or(advance.new);
        if end > stands {
            match self.store_batch(source, part.before(end))? {
                // Its cause went away while we looked.
                None if first.is_none() => return Ok(()),
                None => stands = end,
                Some((_, error)) => why = error,
            }
        }
        source.park(std::slice::from_ref(&at)).map_err(|error| Leave::Rebuild(error.to_string()))?;
        self.held.insert(at.clone(), Held { position: None });
        let wait = known.map_or(RETRY.0, |wait| (wait * 2).min(RETRY.1));
        let words = format!("{}/{} stands still at {stands}: PostgreSQL refuses the record: {why}", at.topic, at.partition);
        if let Some(note) = self.throttle.admit(&format!("refused {}/{}", at.topic, at.partition), Instant::now()) {
            log::error!(topic = &*at.topic, partition = at.partition, offset = stands;
                "{words}; nothing is skipped, the other partitions go on, and this one is tried again until it is taken{note}");
        }
        self.refused.insert(at, Refused { until: Instant::now() + wait, wait, words });
        self.show_refused();
        Ok(())
    }

    /// Whether this partition waits because of what PostgreSQL refuses, and its time has not come.
    pub(super) fn is_refused(&self, at: &TopicPartition) -> bool {
        self.refused.get(at).is_some_and(|refused| Instant::now() < refused.until)
    }

    /// Records of this partition are stored.
    pub(super) fn taken_again(&mut self, at: &TopicPartition) {
        if self.forget_refused(at) {
            log::info!(topic = &*at.topic, partition = at.partition;
                "PostgreSQL takes the records of {}/{} again", at.topic, at.partition);
        }
    }

    /// Whether it was known.
    pub(super) fn forget_refused(&mut self, at: &TopicPartition) -> bool {
        let known = self.refused.remove(at).is_some();
        if known {
            self.show_refused();
        }
        known
    }

    /// Three of them are enough for a line.
    fn show_refused(&self) {
        if self.refused.is_empty() {
            return self.health.go("refused", "partition");
        }
        let mut words: Vec<&str> = self.refused.values().map(|refused| refused.words.as_str()).collect();
        words.sort_unstable();
        let more = if words.len() > 3 { format!("; and {} more", words.len() - 3) } else { String::new() };
        words.truncate(3);
        self.health.wait("refused", "partition", format!("{}{more}", words.join("; ")));
    }
}
