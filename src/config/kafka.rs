//! `[kafka]`: what its values must be, and the properties of librdkafka that are not the file's to set.

use std::collections::BTreeMap;

use super::raw::{Value, Written};
use super::{Kafka, KafkaClient, OnLostPosition, Start, kafka_security};

/// `None` only together with a problem.
pub(super) fn read(w: &mut Written, name: Option<&str>) -> Option<Kafka> {
    let brokers =
        w.list("kafka.brokers", |b, _| is_host_port(b).then_some(()).ok_or("must be host:port, such as \"kafka-1:9092\""));
    let topics = w.list("kafka.topics", |topic, before| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !(1..=249).contains(&topic.len()) || !topic.chars().all(fits) || matches!(topic, "." | "..") {
            Err("must be a topic's name: letters, digits, . _ and -, at most 249 (patterns are not supported)")
        } else if before.iter().any(|b| b == topic) {
            Err("stands in the list twice")
        } else {
            Ok(())
        }
    });
    let group = w.computed("kafka.group", name.map(|n| format!("txrelay-{n}")), |g| {
        let fits = (1..=255).contains(&g.len()) && !g.chars().any(char::is_control);
        if fits { Ok(g.to_string()) } else { Err("must be 1 to 255 characters".into()) }
    });
    let start = if w.is_written("kafka.start") { w.parsed("kafka.start", start).map(Some) } else { Some(None) };
    let on_lost_position = w.parsed("kafka.on_lost_position", |word| match word {
        "stop" => Ok(OnLostPosition::Stop),
        _ => Ok(OnLostPosition::Continue),
    });
    let record_max = w.size("kafka.record_max");
    let backlog_max = w.count("kafka.backlog_max").map(|n| Some(n).filter(|n| *n > 0));
    let client = client(w);
    let tls = kafka_security::tls(w);
    let sasl = kafka_security::sasl(w);
    let librdkafka = w.table("kafka.librdkafka", |name, value, _| refused_property(name, value));
    if client == Some(KafkaClient::Kafka) {
        refuse_what_the_crate_cannot(w, librdkafka.as_ref().is_some_and(|table| !table.is_empty()));
    }
    Some(Kafka {
        client: client?,
        tls: tls?,
        sasl: sasl?,
        brokers: brokers?,
        topics: topics?,
        group: group?,
        start: start?,
        on_lost_position: on_lost_position?,
        record_max: record_max?,
        backlog_max: backlog_max?,
        librdkafka: BTreeMap::from_iter(librdkafka?),
    })
}

/// Which client, and whether this build has it.
fn client(w: &mut Written) -> Option<KafkaClient> {
    w.parsed("kafka.client", |word| match word {
        "librdkafka" if cfg!(feature = "librdkafka") => Ok(KafkaClient::Librdkafka),
        "librdkafka" => Err("this build has no librdkafka: write \"kafka\", or build with --features librdkafka".into()),
        _ if cfg!(feature = "kafka") => Ok(KafkaClient::Kafka),
        _ => Err("this build has no pure-Rust client: write \"librdkafka\", or build with --features kafka".into()),
    })
}

/// What the file asks for and the pure-Rust client cannot give, by name. What is not asked for is not there.
fn refuse_what_the_crate_cannot(w: &mut Written, has_properties: bool) {
    const OTHER: &str = "set kafka.client = \"librdkafka\", or take it out";
    if w.is_table_written("kafka.sasl") {
        let at = w.table_at("kafka.sasl");
        w.report(at, "kafka.sasl", format!("kafka.client = \"kafka\" cannot log in with SASL: {OTHER}"));
    }
    if has_properties && let Some((_, at)) = w.get("kafka.librdkafka") {
        w.refuse("kafka.librdkafka", at, format!("these properties are librdkafka's, and kafka.client is \"kafka\": {OTHER}"));
    }
    if let Some((rule, at)) = w.text("transaction.id")
        && rule.starts_with("header:")
    {
        w.refuse(
            "transaction.id",
            at,
            "kafka.client = \"kafka\" reads no headers: set kafka.client = \"librdkafka\", or take the id from value or key",
        );
    }
    w.default_to("downstream.forward_headers", Value::List(Vec::new()));
    if let Some((Value::List(names), at)) = w.get("downstream.forward_headers")
        && !names.is_empty()
    {
        w.refuse(
            "downstream.forward_headers",
            at,
            format!("kafka.client = \"kafka\" reads no headers, so none can be passed on: {OTHER}"),
        );
    }
}

fn is_host_port(broker: &str) -> bool {
    let Some((host, port)) = broker.rsplit_once(':') else { return false };
    let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
    };
    host_fits && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0)
}

fn start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        "committed" => Ok(Start::Committed),
        time => match time.parse::<jiff::Timestamp>().map(|t| t.as_millisecond()) {
            Ok(ms) if ms >= 0 => Ok(Start::Time(ms)),
            _ => Err("must be \"earliest\", \"latest\", \"committed\" or a time such as \"2026-11-01T00:00:00Z\"".into()),
        },
    }
}

/// Properties that txrelay sets itself, with what to use instead where there is something.
const OWNED: &[(&str, &str)] = &[
    ("bootstrap.servers", "use kafka.brokers"),
    ("metadata.broker.list", "use kafka.brokers"),
    ("group.id", "use kafka.group"),
    ("group.instance.id", "it must differ between processes"),
    ("client.id", "it names the process"),
    ("enable.auto.commit", "offsets are committed only after PostgreSQL has the records"),
    ("auto.commit.enable", "offsets are committed only after PostgreSQL has the records"),
    ("enable.auto.offset.store", "offsets are committed only after PostgreSQL has the records"),
    ("auto.offset.reset", "use kafka.start and kafka.on_lost_position"),
    ("offset.store.method", "offsets are kept in PostgreSQL"),
    ("offset.store.path", "offsets are kept in PostgreSQL"),
    ("check.crcs", "without it damaged records would be delivered"),
    ("isolation.level", "aborted records must not be delivered"),
    ("enable.partition.eof", "txrelay needs it as it is"),
    ("partition.assignment.strategy", "it decides how partitions are handed over"),
    ("max.poll.interval.ms", "waits on PostgreSQL are fitted to it"),
    ("statistics.interval.ms", "metrics depend on it"),
    ("allow.auto.create.topics", "a misspelled topic must not be created"),
    ("log.queue", "txrelay reads the log"),
    ("plugin.library.paths", "no code is loaded from a configuration"),
];

fn refused_property(name: &str, value: &str) -> Result<(), String> {
    if let Some((_, why)) = OWNED.iter().find(|(owned, _)| *owned == name) {
        return Err(format!("txrelay sets this property itself ({why}): take it out"));
    }
    if name == "security.protocol" {
        return Err("txrelay sets this property itself (use [kafka.tls] and [kafka.sasl]): take it out".into());
    }
    if ["ssl.", "https."].iter().any(|p| name.starts_with(p))
        || name.contains(".ssl.")
        || name == "enable.ssl.certificate.verification"
    {
        return Err("txrelay sets these properties itself (use [kafka.tls]): take it out".into());
    }
    if name.starts_with("sasl.") || name.contains(".sasl.") || name == "enable.sasl.oauthbearer.unsecure.jwt" {
        return Err("txrelay sets these properties itself (use [kafka.sasl]): take it out".into());
    }
    if name == "group.protocol" && !matches!(value, "classic" | "consumer") {
        return Err("must be \"classic\" or \"consumer\" (KIP-848; needs Kafka 4.0)".into());
    }
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        return Err("is not a property".into());
    }
    Ok(())
}
