//! Integration tests, one binary. Each test's name is a promise to a user; `make test` starts the services it needs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod deliver;
mod exporter;
mod logs;
mod misuse;
mod ops;
mod relay;
mod rig;
mod source;
mod store;
mod structure;
mod systemd;
