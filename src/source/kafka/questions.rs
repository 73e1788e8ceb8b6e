//! What is asked by hand, because the crate cannot: cluster and topic ids, the ends of logs, offsets by time. Each with a
//! deadline, on connections of its own, and an answer is taken only for its own question.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config;
use crate::core::record::TopicPartition;
use crate::source::broker::{self, Cluster, Door, Refusal, Versions};
use crate::source::wire::{Fault, Wire};
use crate::source::{SourceError, TopicInfo, TopicSettings, Watermarks};

/// Many partitions are asked for one after the other: one answer of their leader serves all of them for so long.
const FRESH: Duration = Duration::from_millis(500);

/// Connections that were used, and what they told.
pub(super) struct Questions {
    brokers: Vec<String>,
    topics: Vec<String>,
    door: Door,
    wires: HashMap<String, (Wire, Versions)>,
    /// Which broker told the metadata, when, and they.
    cluster: Option<(String, Instant, Cluster)>,
    marks: HashMap<TopicPartition, (Instant, Result<Watermarks, i16>)>,
}

impl Questions {
    pub(super) fn new(kafka: &config::Kafka, door: Door) -> Self {
        Self {
            brokers: kafka.brokers.clone(),
            topics: kafka.topics.clone(),
            door,
            wires: HashMap::new(),
            cluster: None,
            marks: HashMap::new(),
        }
    }

    /// The last metadata, asked for anew where they are older than `age`.
    pub(super) fn cluster(&mut self, age: Duration, timeout: Duration) -> Result<&Cluster, SourceError> {
        if self.cluster.as_ref().is_none_or(|(_, at, _)| at.elapsed() > age) {
            self.cluster = Some(self.ask_for_cluster(timeout)?);
        }
        Ok(&self.cluster.as_ref().expect("set above").2)
    }

    /// The broker that has answered last: the one to begin with.
    pub(super) fn known_broker(&self) -> Option<&str> {
        self.cluster.as_ref().map(|(address, ..)| address.as_str())
    }

    fn ask_for_cluster(&mut self, timeout: Duration) -> Result<(String, Instant, Cluster), SourceError> {
        let by = Instant::now() + timeout;
        let mut last = String::new();
        for address in self.brokers.clone() {
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let topics = self.topics.clone();
            match self.on(&address, left, |wire, versions| broker::metadata(wire, versions, &topics)) {
                Ok(cluster) => return Ok((address, Instant::now(), cluster)),
                Err(words) => last = words,
            }
        }
        Err(SourceError::Request(format!("failed to ask for metadata: {last}")))
    }

    /// Asks one broker; a connection that failed is dropped.
    fn on<T>(
        &mut self,
        address: &str,
        timeout: Duration,
        ask: impl FnOnce(&mut Wire, &Versions) -> Result<T, Fault>,
    ) -> Result<T, String> {
        let failed = |fault: String| format!("{address}: {fault}");
        let (mut wire, versions) = match self.wires.remove(address) {
            Some(known) => known,
            None => self.door.enter(address, timeout).map_err(|refusal| {
                failed(match refusal {
                    Refusal::Fault(fault) => fault.to_string(),
                    other => format!("{other:?}"),
                })
            })?,
        };
        let answer = ask(wire.until(timeout), &versions).map_err(|fault| failed(fault.to_string()))?;
        self.wires.insert(address.to_owned(), (wire, versions));
        Ok(answer)
    }

    /// Asks a partition's leader; nobody knowing it, or another one leading by now, makes the metadata old.
    fn of_leader<T>(
        &mut self,
        at: &TopicPartition,
        what: &str,
        timeout: Duration,
        ask: impl Fn(&mut Wire, &[i32]) -> Result<HashMap<i32, Result<T, i16>>, Fault>,
    ) -> Result<HashMap<i32, Result<T, i16>>, SourceError> {
        let failed = |words: String| SourceError::Request(format!("failed to {what} {}/{}: {words}", at.topic, at.partition));
        let cluster = self.cluster(Duration::from_secs(10), timeout)?;
        let topic = cluster.topics.iter().find(|topic| topic.name == *at.topic);
        let partitions = topic.map_or(&[][..], |topic| &topic.partitions);
        let leader = partitions.iter().find(|(number, _)| *number == at.partition).map(|(_, leader)| *leader);
        let Some(address) = leader.and_then(|leader| cluster.brokers.get(&leader)).cloned() else {
            self.cluster = None;
            return Err(failed("it has no leader now".to_owned()));
        };
        let led: Vec<i32> = partitions.iter().filter(|(_, l)| Some(*l) == leader).map(|(number, _)| *number).collect();
        let answer = self.on(&address, timeout, |wire, _| ask(wire, &led)).map_err(failed);
        if answer.as_ref().is_ok_and(|answer| answer.get(&at.partition).is_some_and(Result::is_ok)) {
            return answer;
        }
        self.cluster = None;
        match answer?.remove(&at.partition) {
            Some(Err(code)) => Err(failed(format!("Kafka's error {code}"))),
            _ => Err(failed("the answer leaves it out".to_owned())),
        }
    }

    pub(super) fn topics(&mut self, names: &[Arc<str>], timeout: Duration) -> Result<Vec<TopicInfo>, SourceError> {
        let cluster = self.cluster(Duration::ZERO, timeout)?;
        let info = |name: &Arc<str>| {
            let found = cluster.topics.iter().find(|topic| topic.name == **name);
            let info = found.and_then(|topic| topic.info(Arc::clone(name)));
            info.ok_or_else(|| {
                let code = found.map_or(0, |topic| topic.error);
                SourceError::Request(format!("failed to describe topic {name}: Kafka's error {code}"))
            })
        };
        names.iter().map(info).collect()
    }

    /// `None`: this user may not ask.
    pub(super) fn settings(&mut self, topic: &str, timeout: Duration) -> Result<Option<TopicSettings>, SourceError> {
        self.cluster(Duration::from_secs(60), timeout)?;
        let broker = self.known_broker().unwrap_or_default().to_owned();
        let failed = |words: String| SourceError::Request(format!("failed to read the settings of topic {topic}: {words}"));
        match self.on(&broker, timeout, |wire, _| broker::settings(wire, topic)).map_err(failed)? {
            Ok(found) => {
                let retention = found.get("retention.ms").and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
                let compacted = found.get("cleanup.policy").is_some_and(|policy| policy.contains("compact"));
                Ok(Some(TopicSettings { compacted, retention }))
            }
            // Topic or cluster authorization.
            Err(29 | 31) => Ok(None),
            Err(code) => Err(failed(format!("Kafka's error {code}"))),
        }
    }

    pub(super) fn watermarks(&mut self, at: &TopicPartition, timeout: Duration) -> Result<Watermarks, SourceError> {
        if let Some((_, Ok(known))) = self.marks.get(at).filter(|(asked, _)| asked.elapsed() < FRESH) {
            return Ok(*known);
        }
        let found = self.of_leader(at, "read the ends of", timeout, |wire, led| broker::watermarks(wire, &at.topic, led))?;
        let now = Instant::now();
        let named = |partition| TopicPartition { topic: Arc::clone(&at.topic), partition };
        self.marks.extend(found.iter().map(|(partition, marks)| (named(*partition), (now, *marks))));
        match found.get(&at.partition) {
            Some(Ok(marks)) => Ok(*marks),
            _ => Err(SourceError::Request(format!("the ends of {}/{} are not known", at.topic, at.partition))),
        }
    }

    /// The first record at or after a time; `None`: there is none.
    pub(super) fn at_time(&mut self, at: &TopicPartition, ms: i64, timeout: Duration) -> Result<Option<i64>, SourceError> {
        let found =
            self.of_leader(at, "look up a time in", timeout, |wire, _| broker::offsets(wire, &at.topic, &[at.partition], ms))?;
        Ok(found.get(&at.partition).and_then(|offset| offset.ok()).filter(|offset| *offset >= 0))
    }

    /// What the group has committed; `None`: nothing.
    pub(super) fn committed(&mut self, group: &str, at: &TopicPartition, timeout: Duration) -> Result<Option<i64>, SourceError> {
        let failed = |words: String| SourceError::Request(format!("failed to ask where group {group} stands: {words}"));
        let code = |code: i16| failed(format!("Kafka's error {code}"));
        let broker = match self.known_broker() {
            Some(address) => address.to_owned(),
            None => {
                self.cluster(Duration::ZERO, timeout)?;
                self.known_broker().unwrap_or_default().to_owned()
            }
        };
        let coordinator = self.on(&broker, timeout, |wire, _| broker::coordinator(wire, group)).map_err(failed)?.map_err(code)?;
        let offset = self
            .on(&coordinator, timeout, |wire, _| broker::committed(wire, group, &at.topic, at.partition))
            .map_err(failed)?
            .map_err(code)?;
        Ok(Some(offset).filter(|offset| *offset >= 0))
    }
}
