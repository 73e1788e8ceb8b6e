//! Shows when the first certificate of the connections to Kafka ends. A thread of its own, only where there is TLS: a broker that
//! hangs must hold up nobody, and nobody waits for this one at a stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Current;
use crate::failpoint;
use crate::ops::metrics::Metrics;
use crate::ops::pulse;
use crate::ops::stop::Stop;
use crate::source::Certificates;

/// Between two looks: a certificate is renewed days before it ends.
const EVERY: Duration = Duration::from_secs(600);
/// While some broker shows none.
const AGAIN: Duration = Duration::from_secs(30);
/// One handshake.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// A reload is noticed within this.
const TICK: Duration = Duration::from_secs(1);

/// The thread `kafka-tls`.
pub struct KafkaTls {
    /// The pipeline, as last reloaded.
    pub config: Current,
    /// Series.
    pub metrics: Metrics,
    /// Told to stop, it ends.
    pub stop: Stop,
}

impl KafkaTls {
    /// Looks until told to stop.
    pub fn run(self) -> anyhow::Result<()> {
        let mut certificates = Certificates::default();
        loop {
            let config = self.config.get();
            let all = certificates.look(&config.kafka, HANDSHAKE, || {
                // For one broker, not for all.
                pulse::at("looking at Kafka's certificates", pulse::REMOTE);
                !self.stop.is_stopping()
            });
            let first = certificates.first_end(&config.kafka).unwrap_or(0);
            self.metrics.certificate_expiry_timestamp_seconds.with_label_values(&["kafka"]).set(first as f64);
            let pause = failpoint::time("kafka-tls", if all { EVERY } else { AGAIN });
            let until = Instant::now() + pause;
            while Instant::now() < until && Arc::ptr_eq(&config, &self.config.get()) {
                pulse::at("resting", pulse::PROMPT);
                if self.stop.wait(TICK.min(pause)) {
                    return Ok(());
                }
            }
        }
    }
}
