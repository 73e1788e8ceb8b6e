//! Integration tests, one binary. Each test's name is a promise to a user; `make test` starts the services it needs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod act;
mod apart;
mod backlog;
mod brokers;
mod clocks;
mod conflicts;
mod contention;
mod crash;
mod damaged;
mod deliver;
mod exporter;
mod faults;
mod fencing;
mod holes;
mod kills;
mod logs;
mod lost;
mod metrics;
mod misuse;
mod model;
mod ops;
mod poison;
mod postgresql;
mod properties;
mod refused;
mod relay;
mod restart;
mod rig;
mod selfcheck;
mod source;
mod store;
mod structure;
mod systemd;
mod upkeep;
mod volume;
