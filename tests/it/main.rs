//! Integration tests, one binary. Each test's name is a promise to a user; `make test` starts the services it needs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod backlog;
mod clocks;
mod deliver;
mod misuse;
mod relay;
mod rig;
mod source;
mod store;
mod structure;
mod upkeep;
mod volume;
