//! The consumer: reads records, commits them to PostgreSQL, hands them over, and only then marks their offsets.
//!
//! May use `source`, `store`, `ops`, `config`, `core`. Never: HTTP. The order insert, COMMIT, hand off and wake, store
//! offset is the product's promise: Kafka's committed offset may lag the position, never lead it.

mod assign;
mod batch;
mod check;
mod consumer;
mod damage;
mod denied;
mod lost;
mod persist;
mod proof;
mod refused;
mod secrets;
mod topics;
mod turn;

pub use consumer::{Consumer, OpenSource, Parts as ConsumerParts};
