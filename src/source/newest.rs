//! The newest records of each topic, read without joining the group and without committing anything: for `check-config
//! --connect`, which says how many of them give an id.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SourceError;
use crate::config::{self, KafkaClient};
use crate::core::record::{Record, TopicPartition};

/// Of one partition; a record of the largest size that is allowed fits many times.
#[cfg(feature = "librdkafka")]
const BYTES: usize = 16 << 20;
const REQUEST: Duration = Duration::from_secs(3);

/// Up to `n` records of each topic, the newest by their own times where the client knows them.
pub fn newest(kafka: &config::Kafka, n: usize, deadline: Instant) -> Result<Vec<(String, Vec<Record>)>, SourceError> {
    let mut found = Vec::new();
    for topic in &kafka.topics {
        let alone = config::Kafka { topics: vec![topic.clone()], ..kafka.clone() };
        let mut records = match kafka.client {
            #[cfg(feature = "librdkafka")]
            KafkaClient::Librdkafka => by_librdkafka(&alone, n, deadline)?,
            #[cfg(feature = "kafka")]
            KafkaClient::Kafka => by_crate(&alone, n, deadline)?,
            #[cfg(not(all(feature = "librdkafka", feature = "kafka")))]
            client => return Err(SourceError::Settings(format!("this build has no client \"{}\"", client.word()))),
        };
        records.sort_by_key(|record| std::cmp::Reverse((record.timestamp_ms, record.offset)));
        records.truncate(n);
        found.push((topic.clone(), records));
    }
    Ok(found)
}

/// Where to begin in each partition that holds anything.
fn places(
    source: &mut dyn super::MessageSource,
    n: usize,
    deadline: Instant,
) -> Result<Vec<(TopicPartition, i64, i64)>, SourceError> {
    let mut places = Vec::new();
    for info in source.topics(REQUEST)? {
        for partition in 0..info.partitions.unwrap_or(0) {
            let at = TopicPartition { topic: Arc::clone(&info.topic), partition };
            let ends = source.watermarks(&at, REQUEST.min(deadline.saturating_duration_since(Instant::now())))?;
            if ends.high > ends.low {
                places.push((at, ends.low.max(ends.high - i64::try_from(n).unwrap_or(i64::MAX)), ends.high));
            }
        }
    }
    Ok(places)
}

#[cfg(feature = "librdkafka")]
fn by_librdkafka(kafka: &config::Kafka, n: usize, deadline: Instant) -> Result<Vec<Record>, SourceError> {
    let mut source = super::open(kafka, None)?;
    let places = places(source.as_mut(), n, deadline)?;
    source.close(Duration::from_millis(200));
    let mut apart = super::Apart::open(kafka)?;
    let mut records = Vec::new();
    for (at, from, _) in places {
        apart.begin(&at, from)?;
        let chunk = apart.read(n, BYTES, deadline)?;
        records.extend(chunk.records);
        match chunk.ended {
            super::Ended::Full | super::Ended::EndOfLog => {}
            super::Ended::Late(why) => {
                return Err(SourceError::Request(format!("{}/{} cannot be read in time{why}", at.topic, at.partition)));
            }
            super::Ended::Damaged(why) | super::Ended::PositionLost(why) => {
                return Err(SourceError::Request(format!("{}/{}: {why}", at.topic, at.partition)));
            }
        }
    }
    Ok(records)
}

#[cfg(feature = "kafka")]
fn by_crate(kafka: &config::Kafka, n: usize, deadline: Instant) -> Result<Vec<Record>, SourceError> {
    use super::Polled;
    let mut source = super::open(kafka, None)?;
    let places = places(source.as_mut(), n, deadline)?;
    let mut records = Vec::new();
    let mut said = String::new();
    let mut open = places.len();
    while open > 0 {
        if Instant::now() >= deadline {
            return Err(SourceError::Request(format!("topic {} cannot be read in time{said}", kafka.topics.join(", "))));
        }
        match source.poll(Duration::from_millis(50))? {
            Some(Polled::Assigned(_)) => {
                let at: Vec<(TopicPartition, i64)> = places.iter().map(|(at, from, _)| (at.clone(), *from)).collect();
                source.start(&at)?;
            }
            Some(Polled::Record(record)) => records.push(record),
            Some(Polled::Trouble(trouble)) => said = format!("; {}", trouble.text),
            Some(Polled::PositionLost(text)) => said = format!("; {text}"),
            Some(Polled::Revoked { .. }) | None => {}
        }
        let positions = source.positions();
        // What ends in a transaction's marker never gets to its end: one offset before it is near enough.
        let is_read = |(at, _, high): &(TopicPartition, i64, i64)| positions.iter().any(|(p, next)| p == at && next + 1 >= *high);
        let whole = |(at, _, high): &(TopicPartition, i64, i64)| positions.iter().any(|(p, next)| p == at && next >= high);
        open = places.iter().filter(|place| !whole(place)).count();
        if open > 0 && !said.is_empty() && places.iter().all(is_read) {
            break;
        }
    }
    source.close(Duration::ZERO);
    Ok(records)
}
