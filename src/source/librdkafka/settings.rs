//! The client's settings: what we would like, then what the user wrote, then what must be so.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;

use crate::config;

/// Sensible here, and the user's to change under `[kafka.librdkafka]`.
const DEFAULTS: [(&str, &str); 13] = [
    ("client.id", "txrelay"),
    // After kill -9 the partitions are back, or at another process, within this.
    ("session.timeout.ms", "10000"),
    ("heartbeat.interval.ms", "3000"),
    // The defaults (64 MiB, 100,000 records) are large for a small VM; with these a reader peaks at about 21 MB.
    ("queued.max.messages.kbytes", "16384"),
    ("queued.min.messages", "10000"),
    // The default of 1 s stutters with queues this small.
    ("fetch.queue.backoff.ms", "100"),
    // Also what a request on the same connection waits for behind an idle fetch.
    ("fetch.wait.max.ms", "100"),
    // After an outage reading resumes this much later at most (10 s by default).
    ("reconnect.backoff.max.ms", "2000"),
    // New partitions are noticed within this.
    ("topic.metadata.refresh.interval.ms", "60000"),
    ("log.connection.close", "false"),
    ("socket.keepalive.enable", "true"),
    ("auto.commit.interval.ms", "1000"),
    // Lag and `is_up` come from them.
    ("statistics.interval.ms", "5000"),
];

/// Losing one of these loses messages.
const OWNED: [(&str, &str); 9] = [
    // `earliest` and `latest` both jump silently when a position has left the log.
    ("auto.offset.reset", "error"),
    // Off by default: a flipped bit is then delivered as good data.
    ("check.crcs", "true"),
    ("isolation.level", "read_committed"),
    // Only *stored* offsets are committed, and only what is in PostgreSQL is stored.
    ("enable.auto.commit", "true"),
    ("enable.auto.offset.store", "false"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    // The newer protocol gets no assignment and no error from a 3.9 broker.
    ("group.protocol", "classic"),
    ("allow.auto.create.topics", "false"),
    // End of partition would arrive as a fault.
    ("enable.partition.eof", "false"),
];

/// Everything librdkafka is told.
pub(super) fn client_config(kafka: &config::Kafka, instance: Option<&str>) -> ClientConfig {
    let mut client = ClientConfig::new();
    for (key, value) in DEFAULTS {
        client.set(key, value);
    }
    for (key, value) in &kafka.librdkafka {
        client.set(key, value);
    }
    for (key, value) in OWNED {
        client.set(key, value);
    }
    client.remove("metadata.broker.list");
    client.set("bootstrap.servers", kafka.brokers.join(","));
    client.set("group.id", &kafka.group);
    client.remove("group.instance.id");
    if let Some(instance) = instance {
        client.set("group.instance.id", instance);
    }
    // Info: a plain client on a TLS port is told nothing at any higher level. The lines are kept for sentences, not printed.
    client.set_log_level(RDKafkaLogLevel::Info);
    client
}

/// How many records and bytes of one partition the client holds that it has not returned, at most, but for one answer.
pub(in crate::source) fn prefetched(kafka: &config::Kafka) -> (usize, usize) {
    let number = |key| usize::try_from(number(kafka, key)).unwrap_or(usize::MAX);
    (number("queued.min.messages"), number("queued.max.messages.kbytes").saturating_mul(1024))
}

/// After this time without a word the group has forgotten a member.
pub(in crate::source) fn session_timeout(kafka: &config::Kafka) -> Duration {
    Duration::from_millis(number(kafka, "session.timeout.ms"))
}

/// A setting that has a default here and is a number.
fn number(kafka: &config::Kafka, key: &str) -> u64 {
    let default = DEFAULTS.iter().find(|default| default.0 == key).map(|default| default.1);
    let written = kafka.librdkafka.get(key).map(String::as_str).or(default);
    written.and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// Why librdkafka does not take the settings, without the value of anything that may be secret.
pub(super) fn refusal(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, key, _) if ["password", "pem", "secret", "jaas"].iter().any(|s| key.contains(s)) => {
            format!("librdkafka refuses the property {key}")
        }
        KafkaError::ClientConfig(_, why, key, _) => format!("librdkafka refuses the property {key}: {why}"),
        KafkaError::ClientCreation(why) => format!("librdkafka refuses the settings: {why}"),
        other => format!("librdkafka refuses the settings: {other}"),
    }
}
