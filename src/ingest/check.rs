//! What the consumer looks at now and then: lag, positions in PostgreSQL, topic ids.

use std::time::{Duration, Instant};

use super::consumer::{Consumer, Held, Leave};
use crate::core::record::TopicPartition;
use crate::ops::pulse;
use crate::source::MessageSource;
use crate::store::{Position, StoreError};

/// How often topic ids are compared once all topics are there. The answer may wait 0.2 s behind a fetch: once in 10 s it
/// showed in p99 (249 ms at 500/s).
const DESCRIBE: Duration = Duration::from_secs(60);
/// One question for a partition's end.
const WATERMARK: Duration = Duration::from_secs(2);

impl Consumer {
    /// What the source knows without asking, now and then.
    pub(super) fn note_source(&mut self, source: &mut dyn MessageSource) {
        let up = source.is_up();
        self.metrics.kafka_up.set(i64::from(up));
        if !self.has_parked() {
            self.health.go("consumer", "partition");
            // A connection that stands says nothing of a group that refuses us: without partitions, only a longer silence does.
            let silence = if self.held.is_empty() { Duration::from_secs(15) } else { Duration::from_secs(2) };
            if up && self.trouble_at.is_none_or(|at| at.elapsed() >= silence) {
                self.health.go("consumer", "kafka");
            }
        }
        // What is not fetched is not heard of: see `check`.
        let known = if self.backlog_full { Vec::new() } else { source.high_watermarks() };
        self.show_lag(known);
    }

    pub(super) fn show_lag(&self, high_watermarks: Vec<(TopicPartition, i64)>) {
        for (at, high) in high_watermarks {
            if let Some(position) = self.held.get(&at).and_then(|held| held.position.as_ref()) {
                let labels = [&*at.topic, &at.partition.to_string()];
                self.metrics.kafka_lag_records.with_label_values(&labels).set((high - position.next_offset).max(0));
            }
        }
    }

    /// Every few seconds: read positions back, compare topic ids, move quiet partitions over markers.
    pub(super) fn check(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        pulse::at("checking positions", pulse::REMOTE);
        self.say_damage();
        if self.described_at.is_none_or(|at| at.elapsed() >= DESCRIBE)
            && let Some(leave) = self.compare_topic_ids(source)
        {
            return Some(leave);
        }
        let read = self.held.iter().filter(|(_, held)| held.position.is_some());
        let at: Vec<TopicPartition> = read.map(|(at, _)| at.clone()).collect();
        match self.link.run(|session| session.positions(&at)) {
            Ok(stored) => {
                self.health.go("consumer", "postgres");
                let ours =
                    |position: &Position| self.held.get(&position.at).and_then(|held| held.position.as_ref()) == Some(position);
                if stored.len() != at.len() || !stored.iter().all(ours) {
                    return Some(Leave::Rebuild("positions in PostgreSQL are not the ones that this process left".to_owned()));
                }
            }
            Err(error) => self.store_trouble(&error),
        }
        if self.backlog_full {
            // While nothing is fetched the client does not hear how much waits in Kafka. One that does not answer is enough.
            let asked = at.iter().map_while(|at| Some((at.clone(), source.watermarks(at, WATERMARK).ok()?.high))).collect();
            self.show_lag(asked);
        }
        self.commit(source)
    }

    /// Partitions that are parked and may be tried now.
    pub(super) fn parked(&self) -> Vec<TopicPartition> {
        let may_be_tried = |at: &TopicPartition, held: &Held| held.position.is_none() && !self.is_refused(at);
        self.held.iter().filter(|(at, held)| may_be_tried(at, held)).map(|(at, _)| at.clone()).collect()
    }

    pub(super) fn has_parked(&self) -> bool {
        self.held.iter().any(|(at, held)| held.position.is_none() && !self.is_refused(at))
    }

    pub(super) fn store_trouble(&mut self, error: &StoreError) {
        self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
        if let Some(note) = self.throttle.admit(error.kind(), Instant::now()) {
            log::warn!("PostgreSQL: {error}; nothing is read until it answers{note}");
        }
        self.health.wait("consumer", "postgres", format!("PostgreSQL: {error}"));
    }
}
