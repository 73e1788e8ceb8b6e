//! The one table of keys. The loader walks a file against it, takes every default from it, and `etc/txrelay.toml` is
//! printed from it: a key that is not here does not exist.

use std::time::Duration;

use Given::{Computed, Default, Required, Unset};
use Kind::{Bool, Choice, Count, List, Period, Size, Table, Term, Text};

/// One key of the file; `etc/txrelay.toml` shows them all.
#[derive(Debug)]
pub struct Key {
    /// Dotted path, `downstream.timeout`.
    pub path: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// What holds when it is not written.
    pub given: Given,
    /// What it takes for a change to take effect.
    pub change: Change,
    /// Why somebody would touch it; lines of the reference file.
    pub doc: &'static str,
}

/// Types of values, with the range that is checked before anything else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// true or false.
    Bool,
    /// A whole number, both ends included.
    Count(u32, u32),
    /// A time with its unit, both ends included.
    Period(Duration, Duration),
    /// The same, or the word "forever".
    Term(Duration, Duration),
    /// Bytes with their unit, both ends included.
    Size(u64, u64),
    /// A list of texts.
    List,
    /// A table of texts under names of the user's choice.
    Table,
}

/// Where a value comes from when the file says nothing. All texts are TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// There is none: the example of the reference file.
    Required(&'static str),
    /// This.
    Default(&'static str),
    /// Derived from other keys; what it comes to for the name `payments` and all other defaults.
    Computed(&'static str),
    /// Nothing; an example.
    Unset(&'static str),
}

impl Given {
    /// The TOML text that the reference file shows.
    pub fn text(&self) -> &'static str {
        match self {
            Required(text) | Default(text) | Computed(text) | Unset(text) => text,
        }
    }
}

/// How a change of a key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// SIGHUP is enough.
    Reload,
    /// The process must be restarted.
    Restart,
}

/// The key at `path`, known in this version or not.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// Whether `path` is a table that holds keys.
pub fn is_table(path: &str) -> bool {
    KEYS.iter().any(|k| k.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The key that somebody may have meant by an unknown `path`.
pub fn similar(path: &str) -> Option<&'static str> {
    let (table, last) = split(path);
    let known = || KEYS.iter().map(|k| k.path);
    let tables = || known().filter_map(|p| Some(p.split_once('.')?.0));
    let near = |a: &str, b: &str| strsim::jaro_winkler(a, b);
    let best = |candidates: Vec<(&'static str, f64)>| {
        candidates.into_iter().filter(|(_, score)| *score > 0.8).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(p, _)| p)
    };
    // In the same table first, then the same word in another one (a forgotten table header), then anything alike.
    best(known().chain(tables()).filter(|p| split(p).0 == table).map(|p| (p, near(split(p).1, last))).collect())
        .or_else(|| known().find(|p| split(p).1 == last))
        .or_else(|| best(known().map(|p| (p, near(split(p).1, last))).collect()))
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// The reference file, as shipped in `etc/txrelay.toml`.
pub fn reference() -> String {
    let mut out = String::from(PREAMBLE);
    let mut table = "";
    for key in KEYS {
        let (in_table, name) = split(key.path);
        if in_table != table {
            table = in_table;
            let comment = if OPTIONAL_TABLES.contains(&table) { "#" } else { "" };
            out.push_str(&format!("\n{comment}[{table}]\n"));
        }
        out.push('\n');
        let mark = match key.change {
            Change::Reload => "*reload*",
            Change::Restart => "*restart*",
        };
        out.push_str(&format!("# {} {mark}\n", key.doc.replace('\n', "\n# ")));
        let comment = if matches!(key.given, Required(_)) { "" } else { "#" };
        out.push_str(&format!("{comment}{name} = {}\n", key.given.text()));
    }
    out
}

/// Tables whose being there means something: the reference file shows them switched off.
const OPTIONAL_TABLES: [&str; 2] = ["kafka.tls", "kafka.sasl"];

/// What `kafka.client` is where the file does not say: librdkafka, wherever it is built in.
const DEFAULT_CLIENT: &str = if cfg!(feature = "librdkafka") { "\"librdkafka\"" } else { "\"kafka\"" };

const PREAMBLE: &str = "\
# txrelay, one pipeline: every key that this version knows. The lines without a # must be there; the others show the
# default, or what it comes to for a file called payments.toml. Take the # away to change one.
#
# Copy this to /etc/txrelay/NAME.toml (root:txrelay, 0640), edit it, then:
#   txrelay -i NAME check-config && systemctl enable --now txrelay@NAME
#
# Times have a unit (\"250ms\", \"15s\", \"2m\", \"72h\", \"30d\"), and so have sizes (\"500 B\", \"1 kB\", \"64 KiB\", \"1 MiB\").
# Secrets are never written here: a key that ends in _file names a file that others can neither read nor write.
# *reload* takes effect on `systemctl reload`, *restart* on a restart. On the command line, --set key=value goes before
# this file.
";

const fn key(path: &'static str, kind: Kind, given: Given, doc: &'static str) -> Key {
    Key { path, kind, given, change: Change::Restart, doc }
}

const fn reload(path: &'static str, kind: Kind, given: Given, doc: &'static str) -> Key {
    Key { path, kind, given, change: Change::Reload, doc }
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}
const KIB: u64 = 1024;

/// Every key, in the order of the reference file.
pub static KEYS: &[Key] = &[
    key(
        "name",
        Text,
        Computed("\"payments\""),
        "The pipeline's name, recorded in its schema. Default: this file's name without .toml.",
    ),
    key(
        "kafka.brokers",
        List,
        Required("[\"kafka-1:9092\"]"),
        "Where to find the cluster first: host:port, several are better than one.",
    ),
    key("kafka.topics", List, Required("[\"payments\"]"), "Topics to read. Ids of transactions are unique across all of them."),
    key(
        "kafka.group",
        Text,
        Computed("\"txrelay-payments\""),
        "Consumer group. Processes with the same group and schema share the work. Default: \"txrelay-\" and the name.",
    ),
    key(
        "kafka.client",
        Choice(&["librdkafka", "kafka"]),
        Default(DEFAULT_CLIENT),
        "Which Kafka client reads: librdkafka (Kafka 2.1 to 4.x), or kafka, the pure-Rust crate: brokers up to 3.9, one process\nreads at a time, no SASL, no zstd or lz4, no headers. docs/kafka-clients.md says which for what.",
    ),
    key(
        "kafka.start",
        Text,
        Unset("\"earliest\""),
        "Where to begin, at the pipeline's very first start only: earliest, latest, committed (where the consumer group\nstands), or a time such as \"2026-11-01T00:00:00Z\". No default where a topic already holds records: txrelay then says\nhow many, and waits for this key.",
    ),
    reload(
        "kafka.on_lost_position",
        Choice(&["continue", "stop"]),
        Default("\"continue\""),
        "When Kafka has deleted records that were not read yet: go on behind the gap, which is recorded and alarmed\n(continue), or leave that partition alone until somebody decides (stop).",
    ),
    reload(
        "kafka.record_max",
        Size(1, 16 * KIB * KIB),
        Default("\"1 MiB\""),
        "Larger records are rejected: kept, not delivered. Key, value and headers count.",
    ),
    reload(
        "kafka.backlog_max",
        Count(0, 1_000_000_000),
        Default("10_000_000"),
        "Open deliveries at which reading stops: Kafka keeps the rest. It goes on at 90 % of them. 0 = no limit.",
    ),
    key(
        "kafka.librdkafka",
        Table,
        Default("{}"),
        "Properties passed to librdkafka as written, e.g. { \"fetch.wait.max.ms\" = \"100\" }. Those that txrelay must own are refused.",
    ),
    key(
        "kafka.tls.ca_file",
        Text,
        Default("\"\""),
        "The table [kafka.tls] means TLS, also when it is empty. CA that signed the brokers' certificates, PEM; empty: the\nsystem's trust store.",
    ),
    key(
        "kafka.tls.cert_file",
        Text,
        Default("\"\""),
        "Client certificate, PEM, with those between it and its root. Files may contain ${CREDENTIALS_DIRECTORY}; new content is\nused after a reload, and after a failed log-in.",
    ),
    key("kafka.tls.key_file", Text, Default("\"\""), "Its private key, PEM, without a passphrase."),
    key(
        "kafka.sasl.mechanism",
        Choice(&["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"]),
        Default("\"SCRAM-SHA-512\""),
        "The table [kafka.sasl] means that txrelay logs in to Kafka. PLAIN only with TLS.",
    ),
    key("kafka.sasl.username", Text, Default("\"\""), "Who logs in."),
    key(
        "kafka.sasl.password_file",
        Text,
        Default("\"\""),
        "File with the password. A new one is used after a reload, and after a failed log-in.",
    ),
    key(
        "transaction.id",
        Text,
        Default("\"value:/transaction_id\""),
        "Where a record's id stands: value:POINTER (a JSON pointer into the value), key, or header:NAME.",
    ),
    key(
        "postgres.url",
        Text,
        Required("\"postgresql://txrelay@db.internal/txrelay?sslmode=verify-full\""),
        "Connection URL or keyword form. With several hosts the writable one is used. Connect directly or through a pooler in\nsession mode. No password in it: see password_file. TLS as libpq's words say: sslmode (disable, prefer, require,\nverify-ca, verify-full), sslrootcert (default: the system's trust store), sslcert, sslkey.",
    ),
    key(
        "postgres.password_file",
        Text,
        Default("\"\""),
        "File with the password, read at every connect. May contain ${CREDENTIALS_DIRECTORY} (LoadCredential= of systemd).\nEmpty: no password.",
    ),
    key(
        "postgres.schema",
        Text,
        Computed("\"txrelay_payments\""),
        "Schema of this pipeline, of no other. Default: \"txrelay_\" and the name, with - as _.",
    ),
    key(
        "postgres.migrate",
        Bool,
        Default("true"),
        "false: the daemon never changes the schema and can run without DDL rights; `txrelay migrate` does it.",
    ),
    key(
        "postgres.lease",
        Period(ms(1), hours(24)),
        Computed("\"60s\""),
        "How long a claimed delivery belongs to its process; after a crash its deliveries wait this long at most. More than\ndownstream.timeout + 10s. Default: downstream.timeout + 45s.",
    ),
    key(
        "postgres.pool_size",
        Count(1, 64),
        Default("4"),
        "Connections for upkeep; consumer, claimer and settler have one each beside them.",
    ),
    key(
        "downstream.url",
        Text,
        Required("\"https://ledger.internal/transactions\""),
        "Where each transaction is sent. http:// only to this machine, or with allow_plain_http. Link-local addresses and the\nclouds' metadata services are refused, also when a name leads there.",
    ),
    key("downstream.method", Choice(&["POST", "PUT"]), Default("\"POST\""), "POST or PUT."),
    key(
        "downstream.timeout",
        Period(ms(10), hours(1)),
        Default("\"15s\""),
        "One deadline over the whole exchange. The service may still finish what was given up.",
    ),
    key("downstream.connect_timeout", Period(ms(1), hours(1)), Default("\"3s\""), "For connecting, within timeout."),
    key(
        "downstream.idle_timeout",
        Period(ms(1), hours(1)),
        Default("\"10s\""),
        "Connections idle for longer are not used again. Keep it below the service's own keep-alive.",
    ),
    key("downstream.workers", Count(1, 1024), Default("32"), "Worker threads: the most requests in flight."),
    reload(
        "downstream.rate_limit",
        Count(0, 1_000_000),
        Default("0"),
        "Most requests per second of this process, however many are due. 0 = no limit.",
    ),
    key(
        "downstream.content_type",
        Text,
        Default("\"application/json\""),
        "Content-Type of the request, unless the record has a content-type header.",
    ),
    key(
        "downstream.idempotency_header",
        Text,
        Default("\"Idempotency-Key\""),
        "Header that carries the transaction's id, the same on every attempt: the service drops duplicates by it.",
    ),
    key(
        "downstream.idempotency_format",
        Choice(&["plain", "quoted"]),
        Default("\"plain\""),
        "plain, or quoted: in double quotes, as the IETF draft wants it.",
    ),
    key(
        "downstream.forward_headers",
        List,
        Default("[\"traceparent\", \"tracestate\"]"),
        "Headers of the Kafka record that are passed on. Left out: values that are not visible ASCII (no line break can get into\na request), and what exceeds 8 KiB in sum. With kafka.client = \"kafka\", which reads no headers: [].",
    ),
    key("downstream.headers", Table, Default("{}"), "Fixed headers, e.g. { \"X-Source\" = \"payments\" }. No secrets."),
    key(
        "downstream.keep_answer",
        Size(0, 64 * KIB),
        Default("\"1 KiB\""),
        "How much of a failed attempt's answer is kept for whoever looks into it. \"0\" = none, if answers hold personal data.",
    ),
    key(
        "downstream.allow_plain_http",
        Bool,
        Default("false"),
        "true: http:// also to other machines, without a secret. Anyone on the way can then read and change transactions.",
    ),
    reload(
        "downstream.outcomes",
        Table,
        Default("{}"),
        "Statuses that mean something else here: delivered, retry, throttled, down, misconfigured or refused, e.g.\n{ \"409\" = \"delivered\", \"520-530\" = \"retry\" }. `txrelay check-config --print-outcomes` shows what holds, and why.",
    ),
    key(
        "downstream.auth.bearer_file",
        Text,
        Default("\"\""),
        "File with a token, sent as Authorization: Bearer. At most one of bearer_file, basic_user and header_name. All files of\nthis table and the next two are read again on `systemctl reload`, and after a 401 or a TLS error.",
    ),
    key(
        "downstream.auth.basic_user",
        Text,
        Default("\"\""),
        "User of Authorization: Basic; its password stands in basic_password_file.",
    ),
    key("downstream.auth.basic_password_file", Text, Default("\"\""), "File with the password of basic_user."),
    key(
        "downstream.auth.header_name",
        Text,
        Default("\"\""),
        "Another header that carries a secret, e.g. \"X-Api-Key\"; its value stands in header_value_file.",
    ),
    key("downstream.auth.header_value_file", Text, Default("\"\""), "File with the value of header_name."),
    key(
        "downstream.tls.ca_file",
        Text,
        Default("\"\""),
        "Certificates that may sign the service's, PEM. Empty: the system's trust store. Chain and host name are always verified,\nand TLS is 1.2 or later.",
    ),
    key(
        "downstream.tls.cert_file",
        Text,
        Default("\"\""),
        "Certificate that txrelay shows to the service, PEM, with those between it and its root. Needs key_file.",
    ),
    key("downstream.tls.key_file", Text, Default("\"\""), "Its private key, PEM, without a passphrase."),
    key(
        "downstream.signing.secret_files",
        List,
        Default("[]"),
        "Files with secrets (\"whsec_\" and base64) that sign each request: Standard Webhooks, headers webhook-id,\nwebhook-timestamp and webhook-signature. Two of them while one is being replaced by the other.",
    ),
    reload(
        "retry.base",
        Period(ms(1), hours(24)),
        Default("\"1s\""),
        "First wait after a transaction's own failure; it doubles by itself.",
    ),
    reload("retry.cap", Period(ms(1), hours(24 * 7)), Default("\"15m\""), "Longest wait between two attempts."),
    reload(
        "retry.give_up_after",
        Period(ms(1), hours(24 * 366)),
        Default("\"72h\""),
        "A transaction that has failed by itself for this long is dead: kept, for a person. Outages of the service do not count.",
    ),
    reload(
        "gate.shut_after",
        Count(1, 1000),
        Default("20"),
        "Failures in a row, each of another transaction and none accepted between, after which the gate shuts: the service, or\nthe way to it, is broken, and nothing is sent but a probe from time to time. What waits loses nothing.",
    ),
    reload(
        "gate.probe_every",
        Period(ms(1), hours(1)),
        Default("\"5s\""),
        "Between two probes while the gate is shut, +-20 %. One that is accepted opens it. After 20 failed ones the time doubles\nup to probe_cap.",
    ),
    reload(
        "gate.probe_cap",
        Period(ms(1), hours(1)),
        Default("\"30s\""),
        "Longest time between two probes, and longest wait of one transaction after a fault of the service.",
    ),
    key(
        "metrics.listen",
        Text,
        Default("\"127.0.0.1:19470\""),
        "Address and port of /metrics, /livez and /readyz. Each instance needs its own. There is no access control.",
    ),
    reload(
        "log.level",
        Choice(&["error", "warn", "info", "debug", "trace"]),
        Default("\"info\""),
        "error, warn, info, debug or trace.",
    ),
    key(
        "log.format",
        Choice(&["auto", "journal", "text", "json"]),
        Default("\"auto\""),
        "journal (structured, under systemd), text, json (one object per line), or auto: journal under systemd, text elsewhere.",
    ),
    reload(
        "retention.delivered",
        Term(hours(1), hours(24 * 36_500)),
        Default("\"90d\""),
        "How long delivered transactions are kept with their attempts, counted from delivery; duplicates, from when they were\nread. An id that was deleted is new when it comes again. \"forever\": nothing is deleted. What is open never is.",
    ),
    reload(
        "retention.dead",
        Term(hours(1), hours(24 * 36_500)),
        Default("\"90d\""),
        "The same for transactions that a person has resolved, counted from then. Dead ones that nobody has resolved stay.",
    ),
    reload(
        "retention.rejected",
        Term(hours(1), hours(24 * 36_500)),
        Default("\"90d\""),
        "The same for rejected records that a person has resolved. Those that nobody has resolved stay.",
    ),
    reload(
        "shutdown.timeout",
        Period(ms(1), hours(1)),
        Default("\"30s\""),
        "How long a stop may take. At least downstream.timeout + 5s, so that requests in hand can end.",
    ),
];
