//! What is compared with the cluster's description of the topics: whether each is still the one that was read, and whether each of
//! its partitions is somebody's.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::assign::REQUEST;
use super::consumer::{Consumer, Leave};
use crate::core::record::{LogId, TopicPartition};
use crate::failpoint;
use crate::source::{MessageSource, TopicInfo};

/// How long the group may leave partitions without a reader. A new one is found within topic.metadata.refresh.interval.ms. Where leaving
/// the group did not help, the next time comes after twice as long, at most [`LONGEST`]: nothing is read meanwhile.
const UNASSIGNED: Duration = Duration::from_secs(120);
const LONGEST: Duration = Duration::from_secs(3600);

/// Partitions that are nobody's.
#[derive(Debug, Default)]
pub(super) struct Nobodys {
    since: Option<Instant>,
    /// How often the group was left for them.
    left: u32,
}

impl Consumer {
    /// A topic deleted and created again while it is read is noticed by nothing but its id.
    pub(super) fn compare_topic_ids(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        let infos = match source.topics(REQUEST) {
            Ok(infos) => infos,
            Err(error) => {
                if let Some(note) = self.throttle.admit("describe", Instant::now()) {
                    log::warn!("the topics cannot be described: {error}{note}");
                }
                self.health.wait("topics", "kafka", format!("Kafka: {error}"));
                return None;
            }
        };
        self.health.go("topics", "kafka");
        // As the last answers said it.
        let cluster = source.cluster_id(REQUEST).ok().flatten();
        if infos.iter().all(|info| info.partitions.is_some()) {
            self.health.go("topics", "partition");
            self.described_at = Some(Instant::now());
        }
        if let Some(leave) = self.find_unassigned(&infos) {
            return Some(leave);
        }
        for info in infos {
            if info.partitions.is_none() {
                let words = format!("topic {} does not exist: create it, or correct kafka.topics", info.topic);
                if let Some(note) = self.throttle.admit(&info.topic, Instant::now()) {
                    log::error!("{words}{note}");
                }
                self.health.wait("topics", "partition", words);
                continue;
            }
            let id = LogId { topic: info.id, cluster: cluster.clone() };
            let mut read = self.held.values().filter_map(|held| held.position.as_ref()).filter(|p| p.at.topic == info.topic);
            if let Some(position) = read.find(|position| position.log.is_another(&id)) {
                let what = if position.log.topic == id.topic {
                    "belongs to another cluster now"
                } else {
                    "was deleted and created again"
                };
                // What is in hand may already come from the new log: it is dropped, and read again from the start.
                return Some(Leave::Rebuild(format!("topic {} {what}", info.topic)));
            }
        }
        None
    }

    /// Partitions that nobody was ever given. Kafka gives a static member that comes back its old assignment: those that were
    /// added while it was away stay with nobody, for as long as nothing else moves the group. Leaving it for longer than the
    /// session does. A partition with a position, or in this process's hands, is somebody's, whether it can be read or not.
    fn find_unassigned(&mut self, infos: &[TopicInfo]) -> Option<Leave> {
        let mut nobodys: Vec<TopicPartition> = Vec::new();
        for info in infos {
            let there = info.partitions.unwrap_or(0);
            let all: Vec<TopicPartition> =
                (0..there).map(|partition| TopicPartition { topic: info.topic.clone(), partition }).collect();
            let taken = self.link.run(|session| match session.count_positions(&info.topic)? {
                taken if taken == 0 || taken >= i64::from(there) => Ok(None),
                _ => session.positions(&all).map(Some),
            });
            match taken {
                Ok(None) => {}
                Ok(Some(taken)) => {
                    let taken: HashSet<i32> = taken.iter().map(|position| position.at.partition).collect();
                    nobodys.extend(all.into_iter().filter(|at| !taken.contains(&at.partition) && !self.held.contains_key(at)));
                }
                Err(error) => {
                    self.store_trouble(&error);
                    return None;
                }
            }
        }
        let Some(first) = nobodys.first() else {
            self.nobodys = Nobodys::default();
            return None;
        };
        // The group may be about to hand them out; until it is known, topics are looked at with every check.
        self.described_at = None;
        let since = *self.nobodys.since.get_or_insert_with(Instant::now);
        let wait = failpoint::time("unassigned", UNASSIGNED).saturating_mul(1 << self.nobodys.left.min(16)).min(LONGEST);
        if since.elapsed() < wait {
            return None;
        }
        self.nobodys.since = None;
        self.nobodys.left += 1;
        Some(Leave::Rejoin(format!("{} partitions are nobody's, among them {}/{}", nobodys.len(), first.topic, first.partition)))
    }
}
