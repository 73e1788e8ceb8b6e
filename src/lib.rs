//! txrelay relays transactions from Kafka through PostgreSQL to an HTTP service that must not miss one.
//!
//! The map is ARCHITECTURE.md. Direction of use: `cli`, `daemon` -> `ingest`, `deliver`, `upkeep` -> `source`, `store`,
//! `downstream`, `ops` -> `config` -> `core`. Rooms of one rank do not use each other; `tests/it/structure.rs` holds it.

#[cfg(not(any(feature = "librdkafka", feature = "kafka")))]
compile_error!("no Kafka client is linked in: build with the feature `librdkafka` or `kafka`");

pub mod cli;
pub mod config;
pub mod core;
pub mod daemon;
pub mod deliver;
pub mod downstream;
pub mod failpoint;
pub mod ingest;
pub mod ops;
pub mod source;
pub mod store;
pub mod upkeep;
