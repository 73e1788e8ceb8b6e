//! One Kafka message as it was read, and where it was read.

use std::sync::Arc;

/// A partition of a topic of the one cluster that a pipeline reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Name of the topic. Shared: each record carries it.
    pub topic: Arc<str>,
    /// Number of the partition, from 0.
    pub partition: i32,
}

/// A header's value: bytes, or null.
pub type HeaderValue = Option<Vec<u8>>;

/// One Kafka message as read, nothing decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub at: TopicPartition,
    /// Its offset in that partition.
    pub offset: i64,
    /// The record's own time in milliseconds since the epoch, where the broker gave one.
    pub timestamp_ms: Option<i64>,
    /// The key; `None` is Kafka's null, which is not the empty key.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is Kafka's null (a tombstone), which is not the empty value.
    pub value: Option<Vec<u8>>,
    /// Headers in their order; a name may stand more than once.
    pub headers: Vec<(String, HeaderValue)>,
}

impl Record {
    /// What the record holds in memory, roughly, in bytes: what batches and queues are bounded by.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len)).sum();
        headers + self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len) + 64
    }
}
