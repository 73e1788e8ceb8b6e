//! What keeps the process in order and lets people see into it: threads, signals, metrics, health, logs, the service manager.
//!
//! May use `config` and `core`. Never: SQL, Kafka, deliveries.

pub mod certificates;
pub mod doorman;
pub mod exporter;
pub mod health;
pub mod instance;
mod log_queue;
pub mod logging;
pub mod metrics;
pub mod pulse;
pub mod signals;
pub mod spawn;
pub mod stop;
pub mod systemd;
pub mod throttle;
pub mod watchdog;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The git revision of this build, `unknown` where the build was not told (`TXRELAY_REVISION`).
pub const REVISION: &str = match option_env!("TXRELAY_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
