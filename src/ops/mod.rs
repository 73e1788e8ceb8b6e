//! What keeps the process in order and lets people see into it: logs, the service manager, and the build's own name.
//!
//! May use `config`. Never: SQL, Kafka, deliveries.

pub mod logging;
pub mod systemd;
pub mod throttle;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The git revision of this build, `unknown` where the build was not told (`TXRELAY_REVISION`).
pub const REVISION: &str = match option_env!("TXRELAY_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
