//! Kafka's side: how far each log reaches, whether it is still the one that was read, and whether what the client passed over
//! is really not there to be read.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::core::audit::{Audit, Life, LifeId, Place};
use crate::core::offsets::{self, Offsets};
use crate::core::record::TopicPartition;
use crate::source::{self, SourceError, TopicInfo, Watermarks};
use crate::store::Moment;

/// Of one question.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of reading a range again.
const READING: Duration = Duration::from_secs(60);
/// Skipped ranges that lie closer together are read again in one go.
const NEAR: i64 = 5_000;
/// And at most so many in one go: each has its own deadline.
const WIDTH: i64 = 100_000;
/// Without `--full` so many offsets of a partition are read again at most, the newest.
const PROVEN: i64 = 100_000;

/// What Kafka said.
#[derive(Debug, Default)]
pub(super) struct Logs {
    /// The cluster.
    pub cluster_id: Option<String>,
    /// Of each life that is read.
    pub logs: HashMap<LifeId, Log>,
    /// Partitions of the configured topics that PostgreSQL has nothing of.
    pub not_begun: Vec<(TopicPartition, Watermarks)>,
    /// What must not be.
    pub problems: Vec<LogProblem>,
    /// Questions that had no answer.
    pub failures: Vec<String>,
}

/// A partition's log.
#[derive(Debug)]
pub(super) struct Log {
    /// Its ends.
    pub ends: Watermarks,
    /// Up to where it was read just before.
    pub position: i64,
    /// Whether the topic is the one that was read; `None`: it has no id, or none was kept.
    pub same_topic: Option<bool>,
    /// Skipped offsets that were looked for, and are not to be read.
    pub proven: i64,
    /// Skipped offsets that nobody looked for, or nobody can any more.
    pub unproven: i64,
}

/// Something wrong with a log.
#[derive(Debug)]
pub(super) struct LogProblem {
    /// A word for programs.
    pub kind: &'static str,
    /// Whose.
    pub life: LifeId,
    /// Which offsets.
    pub offsets: Offsets,
    /// For people.
    pub words: String,
}

/// Asks Kafka, without joining the group. The error says why nothing could be asked.
///
/// `moment` is to be later than what the audit saw: over a long audit Kafka's retention goes on, and so does the daemon.
pub(super) fn ask(
    config: &Config,
    audit: &Audit,
    moment: &Moment,
    topic: Option<&str>,
    everything: bool,
) -> Result<Logs, String> {
    let mut source = source::open(&config.kafka, None).map_err(|e| e.to_string())?;
    // The first answer shows whether there is anybody.
    let topics = source.topics(PATIENCE).map_err(|e| e.to_string());
    let mut logs = Logs { cluster_id: source.cluster_id(PATIENCE).ok().flatten(), ..Logs::default() };
    let topics = match topics {
        Ok(topics) => topics,
        Err(why) => {
            source.close(Duration::from_secs(1));
            return Err(why);
        }
    };
    for (life, (topic_id, is_read)) in moment.lives.iter().zip(&moment.logs) {
        let Some(topic) = topics.iter().find(|topic| topic.topic == life.id.topic).filter(|_| *is_read) else { continue };
        let at = TopicPartition { topic: life.id.topic.clone(), partition: life.id.partition };
        if topic.partitions.is_none_or(|n| life.id.partition >= n) {
            let words = "the topic has no such partition any more: it was deleted, perhaps created again".to_owned();
            logs.wrong("topic_gone", life, life.position..life.position, words);
            continue;
        }
        match source.watermarks(&at, PATIENCE) {
            Ok(ends) => {
                let same_topic = is_same(topic, topic_id);
                logs.compare(life, ends, same_topic);
                logs.logs.insert(life.id.clone(), Log { ends, position: life.position, same_topic, proven: 0, unproven: 0 });
            }
            Err(error) => logs.failures.push(error.to_string()),
        }
    }
    for topic in topics.iter().filter(|known| topic.is_none_or(|topic| *known.topic == *topic)) {
        let read = moment.lives.iter().zip(&moment.logs).filter(|(life, log)| log.1 && life.id.topic == topic.topic);
        let read: HashSet<i32> = read.map(|(life, _)| life.id.partition).collect();
        if topic.partitions.is_none() && read.is_empty() {
            let life = LifeId { topic: topic.topic.clone(), partition: 0, incarnation: 0 };
            let words = "kafka.topics names this topic, and Kafka does not have it".to_owned();
            logs.problems.push(LogProblem { kind: "topic_absent", life, offsets: 0..0, words });
        }
        for partition in (0..topic.partitions.unwrap_or(0)).filter(|partition| !read.contains(partition)) {
            let at = TopicPartition { topic: topic.topic.clone(), partition };
            match source.watermarks(&at, PATIENCE) {
                Ok(ends) => logs.not_begun.push((at, ends)),
                Err(error) => logs.failures.push(error.to_string()),
            }
        }
    }
    source.close(Duration::from_secs(1));
    for outcome in audit.results() {
        let skipped: Vec<Offsets> = outcome.ranges(Place::Skipped).collect();
        if !skipped.is_empty() && logs.logs.contains_key(&outcome.life.id) {
            logs.prove(config, outcome.life, &skipped, everything);
        }
    }
    Ok(logs)
}

fn is_same(topic: &TopicInfo, read: &Option<uuid::Uuid>) -> Option<bool> {
    Some(topic.id? == (*read)?)
}

impl Logs {
    fn wrong(&mut self, kind: &'static str, life: &Life, offsets: Offsets, words: String) {
        self.problems.push(LogProblem { kind, life: life.id.clone(), offsets, words });
    }

    fn compare(&mut self, life: &Life, ends: Watermarks, same_topic: Option<bool>) {
        let position = life.position;
        if same_topic == Some(false) {
            let words = "the topic was deleted and created again: what was left of the old log is lost, and the daemon begins the new one";
            self.wrong("topic_replaced", life, position..position, words.to_owned());
        } else if position > ends.high {
            let words = format!("the position {position} lies above the log's end {}: the log was cut off", ends.high);
            self.wrong("position_above_log", life, ends.high..position, words);
        } else if ends.low > position {
            let words = format!(
                "Kafka's retention has deleted records before they were read (the log begins at {}): the daemon will record the gap",
                ends.low
            );
            self.wrong("lost_before_read", life, position..ends.low, words);
        }
    }

    /// Reads again where something was skipped. One offset that can be read proves that a record was missed.
    fn prove(&mut self, config: &Config, life: &Life, skipped: &[Offsets], everything: bool) {
        let total = offsets::count(skipped);
        let Some(log) = self.logs.get_mut(&life.id) else { return };
        log.unproven = total;
        if log.same_topic == Some(false) {
            return;
        }
        let at = TopicPartition { topic: life.id.topic.clone(), partition: life.id.partition };
        let oldest = if everything { log.ends.low } else { log.ends.low.max(life.position - PROVEN) };
        let there = Offsets { start: oldest, end: log.ends.high.min(life.position) };
        for near in clusters(skipped, &there) {
            let (start, end) = (near.first().map_or(0, |r| r.start), near.last().map_or(0, |r| r.end));
            match source::look_again(&config.kafka, &at, start..end, Instant::now() + READING) {
                Ok(look) => {
                    let outside: Vec<Offsets> = offsets::minus(&[start..end], &look.readable);
                    let readable = offsets::minus(&near, &outside);
                    // Gone in this moment: nobody can say any more.
                    let seen = offsets::count(&offsets::minus(&near, &look.gone));
                    if let Some(log) = self.logs.get_mut(&life.id) {
                        (log.proven, log.unproven) = (log.proven + seen, log.unproven - seen);
                    }
                    for offsets in readable {
                        let words = "skipped, and Kafka still holds a record there that can be read: it was missed".to_owned();
                        self.wrong("skipped_readable", life, offsets, words);
                    }
                }
                Err(SourceError::Request(why)) | Err(SourceError::Settings(why)) => self.failures.push(why),
                Err(error) => self.failures.push(error.to_string()),
            }
        }
    }
}

/// The parts of `ranges` that lie in `within`, in groups of those that are near to each other, none wider than [`WIDTH`].
fn clusters(ranges: &[Offsets], within: &Offsets) -> Vec<Vec<Offsets>> {
    let mut clusters: Vec<Vec<Offsets>> = Vec::new();
    for range in ranges {
        let range = range.start.max(within.start)..range.end.min(within.end);
        if range.is_empty() {
            continue;
        }
        for start in (range.start..range.end).step_by(WIDTH as usize) {
            let piece = start..range.end.min(start + WIDTH);
            let joins = |cluster: &[Offsets]| {
                let (Some(first), Some(last)) = (cluster.first(), cluster.last()) else { return false };
                piece.start - last.end < NEAR && piece.end - first.start <= WIDTH
            };
            match clusters.last_mut() {
                Some(cluster) if joins(cluster) => cluster.push(piece),
                _ => clusters.push(vec![piece]),
            }
        }
    }
    clusters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_are_near_are_read_in_one_go_and_only_what_is_still_there() {
        let ranges = [0..5, 8..20, 4_000..4_010, 20_000..20_001, 30_000..40_000];
        assert_eq!(clusters(&ranges, &(10..35_000)), [vec![10..20, 4_000..4_010], vec![20_000..20_001], vec![30_000..35_000]]);
        assert!(clusters(&ranges, &(50_000..60_000)).is_empty());
        // However long a log with gaps everywhere is, one go has an end.
        let wide = [0..250_000, 250_010..250_020];
        let expected = [vec![0..100_000], vec![100_000..200_000], vec![200_000..250_000, 250_010..250_020]];
        assert_eq!(clusters(&wide, &(0..300_000)), expected);
        let many: Vec<Offsets> = (0..100).map(|n| n * 4_000..n * 4_000 + 1).collect();
        assert!(clusters(&many, &(0..400_000)).iter().all(|near| near[near.len() - 1].end - near[0].start <= WIDTH));
    }
}
