//! Between librdkafka's types and ours.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::core::record::{Record, TopicPartition};
use crate::source::{TopicSettings, topic_id};

/// The record's own bytes, and nothing else, are copied.
pub(super) fn record(message: &BorrowedMessage<'_>, topics: &[Arc<str>]) -> Record {
    Record {
        at: TopicPartition { topic: shared_name(topics, message.topic()), partition: message.partition() },
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: topic_id::headers(message),
    }
}

/// The one shared copy of a topic's name.
pub(super) fn shared_name(topics: &[Arc<str>], name: &str) -> Arc<str> {
    topics.iter().find(|t| &***t == name).cloned().unwrap_or_else(|| Arc::from(name))
}

/// For calls that look at topic and partition only.
pub(super) fn list_of(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for p in partitions {
        list.add_partition(&p.topic, p.partition);
    }
    list
}

/// The offset of a list of one.
pub(super) fn only_offset(list: &TopicPartitionList) -> KafkaResult<Offset> {
    let elements = list.elements();
    let element = elements.first().ok_or(KafkaError::NoMessageReceived)?;
    element.error()?;
    Ok(element.offset())
}

/// A topic's settings as Kafka writes them; a `retention.ms` of -1 is for ever.
pub(super) fn settings(found: HashMap<String, String>) -> TopicSettings {
    let policies = found.get("cleanup.policy").map_or("", String::as_str);
    let has = |policy| policies.split(',').any(|word| word.trim() == policy);
    let retention = found.get("retention.ms").and_then(|ms| ms.parse::<u64>().ok()).map(Duration::from_millis);
    TopicSettings { compacted: has("compact"), retention: retention.filter(|_| has("delete")) }
}
