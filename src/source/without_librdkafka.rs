//! What a build without librdkafka has in the place of its reader apart from the group. Only librdkafka's own source ever needs
//! it: the pure-Rust one looks for each hole with every size, and leaves a damaged partition alone by itself.

use std::time::Instant;

use super::{Chunk, SourceError};
use crate::config;
use crate::core::hole::Look;
use crate::core::offsets::Offsets;
use crate::core::record::TopicPartition;

fn missing() -> SourceError {
    SourceError::Request("this build has no librdkafka, which reads apart from the group".to_owned())
}

/// Never made.
pub enum Apart {}

impl Apart {
    /// Fails.
    pub fn open(_: &config::Kafka) -> Result<Self, SourceError> {
        Err(missing())
    }

    /// There is none.
    pub fn begin(&mut self, _: &TopicPartition, _: i64) -> Result<(), SourceError> {
        match *self {}
    }

    /// There is none.
    pub fn read(&mut self, _: usize, _: usize, _: Instant) -> Result<Chunk, SourceError> {
        match *self {}
    }
}

/// Fails.
pub fn look_again(_: &config::Kafka, _: &TopicPartition, _: Offsets, _: Instant) -> Result<Look, SourceError> {
    Err(missing())
}
