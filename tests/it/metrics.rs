//! What INTERFACE promises of /metrics: every series there from the start, and nothing that promtool objects to.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::rig::{Ledger, Relay, Topic, eventually, ids, unique};

/// Name, kind, and its series as they must stand there: one for each combination of labels. `{t}` is the topic.
/// The kinds of `kafka_errors_total` and `postgres_errors_total` are the project's own: one of each stands for all.
const SERIES: &[(&str, &str, &[&str])] = &[
    (
        "transactions",
        "gauge",
        &[
            "{state=\"pending\"}",
            "{state=\"in_flight\"}",
            "{state=\"retrying\"}",
            "{state=\"delivered\"}",
            "{state=\"dead\"}",
            "{state=\"resolved\"}",
        ],
    ),
    ("oldest_open_age_seconds", "gauge", &[""]),
    ("oldest_due_age_seconds", "gauge", &[""]),
    (
        "records_total",
        "counter",
        &["{result=\"ingested\",topic=\"{t}\"}", "{result=\"duplicate\",topic=\"{t}\"}", "{result=\"rejected\",topic=\"{t}\"}"],
    ),
    (
        "rejected_total",
        "counter",
        &[
            "{reason=\"unreadable\"}",
            "{reason=\"id_missing\"}",
            "{reason=\"id_invalid\"}",
            "{reason=\"conflict\"}",
            "{reason=\"too_large\"}",
            "{reason=\"tombstone\"}",
            "{reason=\"not_storable\"}",
        ],
    ),
    ("rejected_unresolved", "gauge", &[""]),
    (
        "attempts_total",
        "counter",
        &[
            "{outcome=\"delivered\"}",
            "{outcome=\"retry\"}",
            "{outcome=\"throttled\"}",
            "{outcome=\"down\"}",
            "{outcome=\"misconfigured\"}",
            "{outcome=\"refused\"}",
            "{outcome=\"lost\"}",
        ],
    ),
    ("attempts_unknown_total", "counter", &[""]),
    ("dead_total", "counter", &["{reason=\"refused\"}", "{reason=\"gave_up\"}"]),
    ("attempt_duration_seconds", "histogram", &[""]),
    ("delivery_duration_seconds", "histogram", &[""]),
    ("settles_stale_total", "counter", &[""]),
    ("given_back_total", "counter", &[""]),
    ("requests_in_flight", "gauge", &[""]),
    ("workers", "gauge", &[""]),
    ("gate_open", "gauge", &[""]),
    ("gate_rate", "gauge", &[""]),
    (
        "stalled",
        "gauge",
        &[
            "{reason=\"postgres\"}",
            "{reason=\"kafka\"}",
            "{reason=\"gate_down\"}",
            "{reason=\"gate_misconfigured\"}",
            "{reason=\"throttled\"}",
            "{reason=\"paused\"}",
            "{reason=\"backlog_full\"}",
            "{reason=\"partition\"}",
            "{reason=\"schema\"}",
        ],
    ),
    ("kafka_up", "gauge", &[""]),
    ("postgres_up", "gauge", &[""]),
    ("kafka_errors_total", "counter", &["{kind=\"other\"}"]),
    ("postgres_errors_total", "counter", &["{kind=\"connection\"}"]),
    ("skipped_offsets_total", "counter", &["{topic=\"{t}\"}"]),
    (
        "gap_records_total",
        "counter",
        &[
            "{reason=\"retention\",topic=\"{t}\"}",
            "{reason=\"recreated\",topic=\"{t}\"}",
            "{reason=\"truncated\",topic=\"{t}\"}",
            "{reason=\"unexplained\",topic=\"{t}\"}",
        ],
    ),
    ("ledger_imbalance", "gauge", &["{equation=\"read\"}", "{equation=\"ingested\"}", "{equation=\"dead\"}"]),
    ("batch_rows", "histogram", &["{op=\"ingest\"}", "{op=\"claim\"}", "{op=\"settle\"}"]),
    ("commit_duration_seconds", "histogram", &["{op=\"ingest\"}", "{op=\"claim\"}", "{op=\"settle\"}"]),
    ("certificate_expiry_timestamp_seconds", "gauge", &["{role=\"downstream\"}", "{role=\"kafka\"}", "{role=\"postgres\"}"]),
    ("stats_last_success_timestamp_seconds", "gauge", &[""]),
    ("retention_last_success_timestamp_seconds", "gauge", &[""]),
    ("config_last_reload_successful", "gauge", &[""]),
    ("config_last_reload_success_timestamp_seconds", "gauge", &[""]),
];

/// Present while a partition is assigned.
const PER_PARTITION: [&str; 2] = ["kafka_lag_records", "kafka_position"];

#[track_caller]
fn holds_every_series(metrics: &str, topic: &str) {
    let starts = |text: &str| metrics.lines().any(|line| line.starts_with(text));
    for (name, kind, labels) in SERIES {
        assert!(metrics.contains(&format!("# TYPE txrelay_{name} {kind}\n")), "no {kind} {name} in:\n{metrics}");
        for labels in *labels {
            let labels = labels.replace("{t}", topic);
            let series = match (*kind, labels.strip_suffix('}')) {
                ("histogram", Some(labels)) => format!("txrelay_{name}_bucket{labels},le=\"+Inf\"}} "),
                ("histogram", None) => format!("txrelay_{name}_bucket{{le=\"+Inf\"}} "),
                _ => format!("txrelay_{name}{labels} "),
            };
            assert!(starts(&series), "no {series}in:\n{metrics}");
        }
    }
    for info in ["txrelay_build_info{", "txrelay_pipeline_info{", "process_resident_memory_bytes ", "process_open_fds "] {
        assert!(starts(info), "no {info} in:\n{metrics}");
    }
}

/// What INTERFACE does not name nobody may come to rely on.
#[track_caller]
fn holds_no_other(metrics: &str) {
    let known = |name: &str| {
        SERIES.iter().any(|series| series.0 == name)
            || PER_PARTITION.contains(&name)
            || ["build_info", "pipeline_info"].contains(&name)
    };
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE txrelay_")) {
        let name = line.split(' ').next().unwrap_or_default();
        assert!(known(name), "INTERFACE does not know txrelay_{name}");
    }
}

/// `promtool check metrics`, out of Debian's package, has nothing to say.
#[track_caller]
fn lints_clean(metrics: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/debs.sh");
    let out = Command::new(script).arg("prometheus").stderr(Stdio::inherit()).output().expect("debs.sh runs");
    let folder = String::from_utf8(out.stdout).expect("text");
    assert!(out.status.success() && !folder.trim().is_empty(), "promtool cannot be had");
    let mut child = Command::new(Path::new(folder.trim()).join("usr/bin/promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    // It reads everything before it says anything.
    child.stdin.take().expect("piped").write_all(metrics.as_bytes()).expect("promtool reads");
    let out = child.wait_with_output().expect("its output");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.is_empty(), "promtool: {said}\n{metrics}");
}

#[test]
fn every_series_is_there_before_postgresql_and_kafka_answer() {
    let topic = unique("nothing");
    let mut relay = Relay::with(&topic, "http://127.0.0.1:1/", "postgresql://x@127.0.0.1:1/x", "");
    relay.set("kafka.brokers=[\"127.0.0.1:1\"]");
    relay.start();
    eventually("it serves", || relay.http("/metrics").is_some());
    let metrics = relay.http("/metrics").expect("answers");
    holds_every_series(&metrics, &topic);
    holds_no_other(&metrics);
    lints_clean(&metrics);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn metrics_after_deliveries_are_the_same_ones_and_lint_clean() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    topic.transactions(ids("m", 0..200));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 200);
    eventually("all counted", || relay.metric("transactions{state=\"delivered\"}") == Some(200.0));
    // The lag is known once Kafka has said where each log ends.
    for (name, partition) in [("kafka_position", 0), ("kafka_position", 1), ("kafka_lag_records", 0), ("kafka_lag_records", 1)] {
        let series = format!("{name}{{partition=\"{partition}\",topic=\"{}\"}}", topic.name);
        eventually(&series, || relay.metric(&series).is_some());
    }
    let metrics = relay.http("/metrics").expect("answers");
    holds_every_series(&metrics, &topic.name);
    holds_no_other(&metrics);
    assert!(!metrics.contains("m-1"), "an id in a label");
    lints_clean(&metrics);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
