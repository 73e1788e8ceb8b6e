//! Every series, there from the start at 0.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::core::fault::DeadReason;
use crate::core::identify::Reason;
use crate::core::outcome::Outcome;

/// States of a transaction, as labels.
pub const STATES: [&str; 6] = ["pending", "in_flight", "retrying", "delivered", "dead", "resolved"];
/// Reasons of a known gap, as labels.
pub const GAP_REASONS: [&str; 4] = ["retention", "recreated", "truncated", "unexplained"];
/// Everything that `stalled` can say.
pub const STALLED: [&str; 9] =
    ["postgres", "kafka", "gate_down", "gate_misconfigured", "throttled", "paused", "backlog_full", "partition", "schema"];

/// All series of this process.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each field is the series of its name; the help text stands beside its registration")]
pub struct Metrics {
    registry: Registry,
    pub transactions: IntGaugeVec,
    pub oldest_open_age_seconds: Gauge,
    pub oldest_due_age_seconds: Gauge,
    pub records_total: IntCounterVec,
    pub rejected_total: IntCounterVec,
    pub rejected_unresolved: IntGauge,
    pub attempts_total: IntCounterVec,
    pub attempts_unknown_total: IntCounter,
    pub dead_total: IntCounterVec,
    pub attempt_duration_seconds: Histogram,
    pub delivery_duration_seconds: Histogram,
    pub settles_stale_total: IntCounter,
    pub given_back_total: IntCounter,
    pub requests_in_flight: IntGauge,
    pub workers: IntGauge,
    pub gate_open: IntGauge,
    pub gate_rate: Gauge,
    pub stalled: IntGaugeVec,
    pub kafka_lag_records: IntGaugeVec,
    pub kafka_position: IntGaugeVec,
    pub kafka_up: IntGauge,
    pub postgres_up: IntGauge,
    pub kafka_errors_total: IntCounterVec,
    pub postgres_errors_total: IntCounterVec,
    pub skipped_offsets_total: IntCounterVec,
    pub gap_records_total: IntCounterVec,
    pub ledger_imbalance: IntGaugeVec,
    pub batch_rows: HistogramVec,
    pub commit_duration_seconds: HistogramVec,
    pub certificate_expiry_timestamp_seconds: GaugeVec,
    pub stats_last_success_timestamp_seconds: Gauge,
    pub config_last_reload_successful: IntGauge,
    pub config_last_reload_success_timestamp_seconds: Gauge,
    pub retention_last_success_timestamp_seconds: Gauge,
}

/// Who this is, for `build_info` and `pipeline_info`.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// Pipeline.
    pub pipeline: &'a str,
    /// Schema.
    pub schema: &'a str,
    /// Kafka client.
    pub client: &'a str,
    /// Topics.
    pub topics: &'a [String],
    /// Kinds of errors of the Kafka client.
    pub kafka_errors: &'a [&'static str],
    /// Kinds of errors of PostgreSQL.
    pub postgres_errors: &'a [&'static str],
}

struct Registrar(Registry);

impl Registrar {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        self.0.register(Box::new(collector.clone())).expect("each name is registered once");
        collector
    }

    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("txrelay_{name}"), help)
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::with_opts(Self::opts(name, help)).expect("valid name"))
    }

    fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(Self::opts(name, help)).expect("valid name"))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(Self::opts(name, help)).expect("valid name"))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Self::opts(name, help), labels).expect("valid name"))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Self::opts(name, help), labels).expect("valid name"))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(Self::opts(name, help)).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(opts).expect("ascending buckets"))
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::from(Self::opts(name, help)).buckets(buckets.to_vec());
        let histograms = self.add(HistogramVec::new(opts, &["op"]).expect("ascending buckets"));
        for op in ["ingest", "claim", "settle"] {
            histograms.with_label_values(&[op]);
        }
        histograms
    }

    fn info(&self, name: &str, help: &str, labels: &[(&str, &str)]) {
        let mut opts = Self::opts(name, help);
        for (label, value) in labels {
            opts = opts.const_label(*label, *value);
        }
        self.add(IntGauge::with_opts(opts).expect("valid labels")).set(1);
    }
}

const ATTEMPT_SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const DELIVERY_SECONDS: [f64; 15] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0];
const COMMIT_SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
const ROWS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];

impl Metrics {
    /// All series, at 0, with every label combination that is known beforehand.
    pub fn new(identity: Identity<'_>) -> Self {
        let r = Registrar(Registry::new());
        r.info("build_info", "The build that runs.", &[("version", super::VERSION), ("revision", super::REVISION)]);
        r.info(
            "pipeline_info",
            "The pipeline that it runs.",
            &[("pipeline", identity.pipeline), ("schema", identity.schema), ("client", identity.client)],
        );
        let metrics = Self {
            transactions: r.gauges("transactions", "Stored transactions by state (pipeline).", &["state"]),
            oldest_open_age_seconds: r.gauge("oldest_open_age_seconds", "Age of the oldest open transaction (pipeline)."),
            oldest_due_age_seconds: r
                .gauge("oldest_due_age_seconds", "How long the oldest due delivery has been due (pipeline)."),
            records_total: r.counters("records_total", "Records read and accounted for.", &["topic", "result"]),
            rejected_total: r.counters("rejected_total", "Records that could not become a transaction.", &["reason"]),
            rejected_unresolved: r.int_gauge("rejected_unresolved", "Rejected records that nobody has resolved (pipeline)."),
            attempts_total: r.counters("attempts_total", "Attempts by outcome.", &["outcome"]),
            attempts_unknown_total: r.counter("attempts_unknown_total", "Attempts that were sent and got no answer."),
            dead_total: r.counters("dead_total", "Deliveries given up by rule.", &["reason"]),
            attempt_duration_seconds: r.histogram("attempt_duration_seconds", "Duration of an attempt.", &ATTEMPT_SECONDS),
            delivery_duration_seconds: r.histogram(
                "delivery_duration_seconds",
                "From the record's being stored to its delivery.",
                &DELIVERY_SECONDS,
            ),
            settles_stale_total: r.counter("settles_stale_total", "Answers that came after their lease had ended."),
            given_back_total: r.counter("given_back_total", "Leased deliveries that were given back unsent."),
            requests_in_flight: r.int_gauge("requests_in_flight", "Requests to the service in flight."),
            workers: r.int_gauge("workers", "Worker threads."),
            gate_open: r.int_gauge("gate_open", "1 while the gate in front of the service is open."),
            gate_rate: r.gauge("gate_rate", "Requests per second that the gate lets through; +Inf while it does not limit them."),
            stalled: r.gauges("stalled", "1 while this is why something stands still.", &["reason"]),
            kafka_lag_records: r.gauges("kafka_lag_records", "Records not read yet.", &["topic", "partition"]),
            kafka_position: r.gauges(
                "kafka_position",
                "Next offset to read, as committed to PostgreSQL.",
                &["topic", "partition"],
            ),
            kafka_up: r.int_gauge("kafka_up", "1 while a broker answers."),
            postgres_up: r.int_gauge("postgres_up", "1 while PostgreSQL answers."),
            kafka_errors_total: r.counters("kafka_errors_total", "Errors of the Kafka client.", &["kind"]),
            postgres_errors_total: r.counters("postgres_errors_total", "Errors of PostgreSQL.", &["kind"]),
            skipped_offsets_total: r.counters(
                "skipped_offsets_total",
                "Offsets that hold no record for us: markers, aborted and compacted ones.",
                &["topic"],
            ),
            gap_records_total: r.counters(
                "gap_records_total",
                "Offsets that Kafka lost before they were read.",
                &["topic", "reason"],
            ),
            ledger_imbalance: r.gauges("ledger_imbalance", "0 unless something is wrong (pipeline).", &["equation"]),
            batch_rows: r.histograms("batch_rows", "Rows per transaction.", &ROWS),
            commit_duration_seconds: r.histograms("commit_duration_seconds", "Duration of a transaction.", &COMMIT_SECONDS),
            certificate_expiry_timestamp_seconds: r.add(
                GaugeVec::new(
                    Registrar::opts(
                        "certificate_expiry_timestamp_seconds",
                        "When the first certificate of a connection expires, as last seen; 0 without one.",
                    ),
                    &["role"],
                )
                .expect("valid name"),
            ),
            stats_last_success_timestamp_seconds: r
                .gauge("stats_last_success_timestamp_seconds", "When the series of scope pipeline were last read."),
            config_last_reload_successful: r.int_gauge("config_last_reload_successful", "1 unless the last reload was refused."),
            config_last_reload_success_timestamp_seconds: r.gauge(
                "config_last_reload_success_timestamp_seconds",
                "When the configuration was last loaded, at the start or by a reload.",
            ),
            retention_last_success_timestamp_seconds: r
                .gauge("retention_last_success_timestamp_seconds", "When a pass of retention last came to its end (pipeline)."),
            registry: r.0,
        };
        metrics.touch(identity);
        metrics.gate_open.set(1);
        metrics.gate_rate.set(f64::INFINITY);
        metrics.reloaded();
        metrics
    }

    /// Makes every known label combination exist: without it rate() misses the first failure.
    fn touch(&self, identity: Identity<'_>) {
        STATES.iter().for_each(|state| drop(self.transactions.with_label_values(&[state])));
        Reason::ALL.iter().for_each(|reason| drop(self.rejected_total.with_label_values(&[reason.label()])));
        Outcome::ALL.iter().for_each(|outcome| drop(self.attempts_total.with_label_values(&[outcome.label()])));
        DeadReason::ALL.iter().for_each(|reason| drop(self.dead_total.with_label_values(&[reason.label()])));
        STALLED.iter().for_each(|reason| drop(self.stalled.with_label_values(&[reason])));
        identity.kafka_errors.iter().for_each(|kind| drop(self.kafka_errors_total.with_label_values(&[kind])));
        identity.postgres_errors.iter().for_each(|kind| drop(self.postgres_errors_total.with_label_values(&[kind])));
        ["downstream", "kafka", "postgres"]
            .iter()
            .for_each(|role| drop(self.certificate_expiry_timestamp_seconds.with_label_values(&[role])));
        ["read", "ingested", "dead"].iter().for_each(|equation| drop(self.ledger_imbalance.with_label_values(&[equation])));
        for topic in identity.topics.iter().map(String::as_str) {
            ["ingested", "duplicate", "rejected"]
                .iter()
                .for_each(|result| drop(self.records_total.with_label_values(&[topic, result])));
            drop(self.skipped_offsets_total.with_label_values(&[topic]));
            GAP_REASONS.iter().for_each(|reason| drop(self.gap_records_total.with_label_values(&[topic, reason])));
        }
        #[cfg(target_os = "linux")]
        self.registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("process series are registered once");
    }

    /// The configuration was loaded just now.
    pub fn reloaded(&self) {
        self.config_last_reload_successful.set(1);
        self.config_last_reload_success_timestamp_seconds.set(unix_seconds());
    }

    /// Positions as committed: topic, partition and offset.
    pub fn positions(&self) -> Vec<String> {
        let label = |metric: &prometheus::proto::Metric, name: &str| {
            metric.get_label().iter().find(|label| label.name() == name).map(|label| label.value().to_owned()).unwrap_or_default()
        };
        let families = self.kafka_position.collect();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        metrics
            .map(|m| format!("{}/{} at {}", label(m, "topic"), label(m, "partition"), m.get_gauge().get_value() as i64))
            .collect()
    }

    /// The text format of `GET /metrics`.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).expect("writing to a string cannot fail");
        // The crate writes Rust's word for it; the format's is +Inf.
        text.replace(" inf\n", " +Inf\n")
    }
}

/// Seconds since the epoch, for gauges of instants.
pub fn unix_seconds() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
