//! What was written (`raw`) and what it means ([`Config`], made in `load`). Every problem is found at once, with file,
//! line and column. [`keys`] is the one table of keys; `etc/txrelay.toml` is printed from it.
//!
//! May use `core`, and ureq's and postgres' own types to check what they will be given. Never: network, threads, logging.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::core::identify::IdRule;
use crate::core::outcome::Overrides;

mod access;
mod certificates;
mod current;
mod http;
mod kafka;
mod kafka_security;
pub mod keys;
mod load;
mod postgres_tls;
mod postgres_url;
mod problems;
mod raw;
mod secret;
mod security;
#[cfg(test)]
pub(crate) mod tests;
pub mod value;
mod view;

pub use current::{Current, Refused};
pub use http::is_loopback;
pub use kafka_security::{KAFKA_FILES, KafkaSasl, KafkaTls, SaslMechanism};
pub use load::load;
pub use postgres_tls::{ClientCertificate, PostgresTls, TlsMode};
pub use problems::{Problems, visible};
pub use security::{Auth, SERVICE_FILES, Secrets, Security, ServiceTls};
pub use view::{Effective, Source, View};

/// A pipeline's whole configuration, checked. `etc/txrelay.toml` names the keys.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// What the command line said before it.
    pub sets: Vec<String>,
    /// Every key, as it was read.
    pub view: View,
    /// `name`: recorded in the schema.
    pub name: String,
    /// `[kafka]`
    pub kafka: Kafka,
    /// `transaction.id`
    pub transaction_id: IdRule,
    /// `[postgres]`
    pub postgres: Postgres,
    /// `[downstream]`
    pub downstream: Downstream,
    /// `[retry]`
    pub retry: Retry,
    /// `[gate]`
    pub gate: Gate,
    /// `metrics.listen`
    pub metrics_listen: SocketAddr,
    /// `[log]`
    pub log: Log,
    /// `[retention]`
    pub retention: Retention,
    /// `shutdown.timeout`
    pub shutdown_timeout: Duration,
}

/// Where a pipeline begins to read, at its first start only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// First record in the log.
    Earliest,
    /// Only what comes from now on.
    Latest,
    /// Where the consumer group stands in Kafka.
    Committed,
    /// The first record at or after this time, milliseconds since the epoch.
    Time(i64),
}

/// What to do when a position has left its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLostPosition {
    /// Record the gap, alarm, go on.
    Continue,
    /// Leave that partition alone until somebody decides.
    Stop,
}

/// Which Kafka client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KafkaClient {
    /// Crate rdkafka.
    Librdkafka,
    /// Crate kafka, pure Rust.
    Kafka,
}

impl KafkaClient {
    /// As it stands in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Librdkafka => "librdkafka",
            Self::Kafka => "kafka",
        }
    }

    /// Where the file says nothing.
    pub const DEFAULT: Self = if cfg!(feature = "librdkafka") { Self::Librdkafka } else { Self::Kafka };
}

/// `[kafka]`
#[derive(Debug, Clone)]
pub struct Kafka {
    /// `client`
    pub client: KafkaClient,
    /// `[kafka.tls]`; `None`: in the clear.
    pub tls: Option<KafkaTls>,
    /// `[kafka.sasl]`; `None`: nobody logs in.
    pub sasl: Option<KafkaSasl>,
    /// Bootstrap servers, `host:port`.
    pub brokers: Vec<String>,
    /// Topics to read; no duplicates.
    pub topics: Vec<String>,
    /// Consumer group.
    pub group: String,
    /// `None`: not said, allowed only where the topics are still empty.
    pub start: Option<Start>,
    /// `on_lost_position`
    pub on_lost_position: OnLostPosition,
    /// Larger records are rejected. Bytes of key, value and headers.
    pub record_max: usize,
    /// Open deliveries at which reading stops; `None`: no limit.
    pub backlog_max: Option<u32>,
    /// `[kafka.librdkafka]`, passed on as written.
    pub librdkafka: BTreeMap<String, String>,
}

impl Kafka {
    /// These topics on these brokers, in the clear and with all defaults: for tests and tools.
    pub fn plain(brokers: &[&str], topics: &[&str], group: &str) -> Self {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Self {
            client: KafkaClient::DEFAULT,
            tls: None,
            sasl: None,
            brokers: owned(brokers),
            topics: owned(topics),
            group: group.to_owned(),
            start: None,
            on_lost_position: OnLostPosition::Continue,
            record_max: 1 << 20,
            backlog_max: None,
            librdkafka: BTreeMap::new(),
        }
    }

    /// KIP-848: `"group.protocol" = "consumer"` under `[kafka.librdkafka]`.
    pub fn wants_new_group_protocol(&self) -> bool {
        self.librdkafka.get("group.protocol").is_some_and(|protocol| protocol == "consumer")
    }
}

/// `[postgres]`
#[derive(Clone)]
pub struct Postgres {
    /// Hosts, user, database; application name, password and session settings are added by `store`.
    pub client: postgres::Config,
    /// `sslmode` and the rest of libpq's words about TLS.
    pub tls: PostgresTls,
    /// Where the password comes from.
    pub password: Password,
    /// Quoted where used.
    pub schema: String,
    /// Whether `run` may change the schema.
    pub migrate: bool,
    /// How long a claimed delivery belongs to its process.
    pub lease: Duration,
    /// Connections for upkeep.
    pub pool_size: u32,
}

/// Where PostgreSQL's password comes from. A file is read again at every connect: a new password needs no restart.
#[derive(Clone, Default)]
pub enum Password {
    /// The server asks for none.
    #[default]
    None,
    /// `postgres.password_file`, as written.
    File(String),
    /// This one, found by a command in PGPASSFILE.
    Given(Vec<u8>),
}

impl Password {
    /// The password as it is now; `None` where there is none.
    ///
    /// # Errors
    /// One sentence about the file, without any of its content.
    pub fn read(&self) -> Result<Option<Vec<u8>>, String> {
        match self {
            Self::None => Ok(None),
            Self::Given(password) => Ok(Some(password.clone())),
            Self::File(path) => secret::read_now(path).map(Some),
        }
    }
}

impl std::fmt::Debug for Postgres {
    /// Without client and password: no secret is printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres")
            .field("tls", &self.tls)
            .field("schema", &self.schema)
            .field("migrate", &self.migrate)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

impl Postgres {
    /// What `client` reaches, without TLS and password, and with all defaults: for tests and tools.
    pub fn plain(client: postgres::Config, schema: &str, lease: Duration) -> Self {
        let tls = PostgresTls { mode: TlsMode::Disable, ..PostgresTls::default() };
        Self { client, tls, password: Password::None, schema: schema.to_owned(), migrate: true, lease, pool_size: 2 }
    }

    /// Hosts, ports and database, for people: no user and no password.
    pub fn place(&self) -> String {
        let client = &self.client;
        let ports = client.get_ports();
        let hosts = client.get_hosts().iter().enumerate().map(|(n, host)| match host {
            postgres::config::Host::Tcp(name) => format!("{name}:{}", ports.get(n).or(ports.first()).copied().unwrap_or(5432)),
            postgres::config::Host::Unix(folder) => folder.display().to_string(),
        });
        let hosts: Vec<String> = if client.get_hosts().is_empty() {
            client.get_hostaddrs().iter().map(ToString::to_string).collect()
        } else {
            hosts.collect()
        };
        match client.get_dbname() {
            Some(name) => format!("{} database {name}", hosts.join(", ")),
            None => hosts.join(", "),
        }
    }
}

/// HTTP method of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// POST
    Post,
    /// PUT
    Put,
}

/// How the idempotency key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdempotencyFormat {
    /// As it is.
    Plain,
    /// As a structured-field string, in double quotes (IETF draft idempotency-key-header).
    Quoted,
}

/// `[downstream]`
#[derive(Debug, Clone)]
pub struct Downstream {
    /// Absolute, http or https, without user info; checked.
    pub url: String,
    /// `method`
    pub method: Method,
    /// One deadline over the whole exchange.
    pub timeout: Duration,
    /// Within `timeout`.
    pub connect_timeout: Duration,
    /// Idle connections older than this are not used again.
    pub idle_timeout: Duration,
    /// Worker threads = most requests in flight.
    pub workers: usize,
    /// Requests per second; `None`: no limit.
    pub rate_limit: Option<std::num::NonZeroU32>,
    /// Unless the record brings its own.
    pub content_type: String,
    /// Name of the idempotency header.
    pub idempotency_header: String,
    /// `idempotency_format`
    pub idempotency_format: IdempotencyFormat,
    /// Kafka headers passed on, compared without case.
    pub forward_headers: Vec<String>,
    /// Fixed headers, in the file's order.
    pub headers: Vec<(String, String)>,
    /// Bytes of a failed attempt's answer kept for `show`.
    pub keep_answer: usize,
    /// `[downstream.auth]`, `[downstream.tls]` and `[downstream.signing]`
    pub security: Security,
    /// `[downstream.outcomes]`
    pub outcomes: Overrides,
}

impl Downstream {
    /// Scheme, host and port of the URL: what may be shown. Its path and query may hold a secret.
    pub fn origin(&self) -> &str {
        let host = self.url.find("://").map_or(0, |n| n + 3);
        let end = self.url[host..].find(['/', '?']).map_or(self.url.len(), |n| host + n);
        &self.url[..end]
    }
}

/// `[retry]`
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// First wait after the delivery's own failure.
    pub base: Duration,
    /// Longest wait.
    pub cap: Duration,
    /// Of waiting for its own failures after which a delivery is dead.
    pub give_up_after: Duration,
}

/// `[gate]`
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// Failures in a row after which it shuts; at least 1.
    pub shut_after: usize,
    /// Between two probes, +-20 %.
    pub probe_every: Duration,
    /// Longest time between two, and longest wait after a fault of the service.
    pub probe_cap: Duration,
}

/// `[retention]`: how long what is finished is kept; `None`: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Delivered transactions, from their delivery; duplicates, from when they were read.
    pub delivered: Option<Duration>,
    /// Transactions that a person resolved, from then.
    pub dead: Option<Duration>,
    /// Rejected records that a person resolved, from then.
    pub rejected: Option<Duration>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Journal under systemd, text elsewhere.
    Auto,
    /// Structured entries in the journal.
    Journal,
    /// Lines for people.
    Text,
    /// One object per line.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// `level`
    pub level: log::LevelFilter,
    /// `format`
    pub format: LogFormat,
}

/// What the operating system says, without its number.
fn io_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}
