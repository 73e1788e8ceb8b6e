//! txrelay relays transactions from Kafka through PostgreSQL to an HTTP service that must not miss one.
//!
//! The map is ARCHITECTURE.md. Direction of use: `cli`, `daemon` -> `ingest`, `deliver`, `upkeep` -> `source`, `store`,
//! `downstream`, `ops` -> `config` -> `core`. Rooms of one rank do not use each other; `tests/it/structure.rs` holds it.

pub mod cli;
pub mod config;
pub mod core;
pub mod downstream;
pub mod ops;
pub mod source;
