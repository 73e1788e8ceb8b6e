//! Integration tests, one binary. Each test's name is a promise to a user; `make test` starts the services it needs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod act;
mod apart;
mod backlog;
mod brokers;
mod clocks;
mod connect;
mod crash;
mod damaged;
mod deliver;
mod exporter;
mod faults;
mod fencing;
mod holes;
mod kafka_client;
mod kafka_crate;
mod kafka_matrix;
mod kafka_security;
mod kills;
mod logs;
mod lost;
mod metrics;
mod misuse;
mod ops;
mod postgresql;
mod relay;
mod restart;
mod rig;
mod source;
mod store;
mod structure;
mod systemd;
mod upkeep;
mod volume;
