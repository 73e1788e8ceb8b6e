//! Integration tests, one binary. Each test's name is a promise to a user; `make test` starts the services it needs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod act;
mod apart;
mod backlog;
mod clocks;
mod deliver;
mod exporter;
mod faults;
mod logs;
mod metrics;
mod misuse;
mod mixin;
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
