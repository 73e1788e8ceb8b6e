//! One Kafka message as it was read, and where it was read.

use std::sync::Arc;

use uuid::Uuid;

/// A partition of a topic of the one cluster that a pipeline reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Name of the topic. Shared: each record carries it.
    pub topic: Arc<str>,
    /// Number of the partition, from 0.
    pub partition: i32,
}

/// Whose log an offset belongs to: what is not known says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogId {
    /// The topic's id. A topic deleted and created again has another.
    pub topic: Option<Uuid>,
    /// The cluster's.
    pub cluster: Option<String>,
}

impl LogId {
    /// Whether this is surely another log than `other`.
    pub fn is_another(&self, other: &LogId) -> bool {
        fn differ<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
            matches!((one, other), (Some(one), Some(other)) if one != other)
        }
        differ(self.topic.as_ref(), other.topic.as_ref()) || differ(self.cluster.as_ref(), other.cluster.as_ref())
    }

    /// This one, and where it knows nothing the other.
    pub fn or(self, other: LogId) -> LogId {
        LogId { topic: self.topic.or(other.topic), cluster: self.cluster.or(other.cluster) }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_another_one_only_where_both_ids_are_known() {
        let id = |topic: Option<u128>, cluster: Option<&str>| LogId {
            topic: topic.map(Uuid::from_u128),
            cluster: cluster.map(str::to_owned),
        };
        for (one, other, another) in [
            (id(Some(1), Some("a")), id(Some(1), Some("a")), false),
            (id(Some(1), Some("a")), id(Some(2), Some("a")), true),
            (id(Some(1), Some("a")), id(Some(1), Some("b")), true),
            (id(None, Some("a")), id(Some(2), Some("a")), false),
            (id(None, Some("a")), id(None, Some("b")), true),
            (id(None, None), id(Some(1), Some("a")), false),
        ] {
            assert_eq!((one.is_another(&other), other.is_another(&one)), (another, another), "{one:?} {other:?}");
        }
    }
}
