//! Integration tests, one binary. Each test's name is a promise to a user; `make test` starts the services it needs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod accounting;
mod act;
mod apart;
mod backlog;
mod clocks;
mod commands;
mod crash;
mod deliver;
mod exporter;
mod faults;
mod fencing;
mod kills;
mod logs;
mod long_list;
mod metrics;
mod misuse;
mod ops;
mod postgresql;
mod reconcile;
mod rejected;
mod relay;
mod restart;
mod rig;
mod source;
mod store;
mod structure;
mod systemd;
mod upkeep;
mod volume;
mod walk;
