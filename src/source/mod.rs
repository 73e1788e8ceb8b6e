//! Where records come from. Behind [`MessageSource`] stands one Kafka client; it returns values and decides nothing:
//! positions are PostgreSQL's, and metrics and log lines are the consumer thread's.
//!
//! May use `config` and `core`. Never: SQL, HTTP, metrics, logging of its own.

mod broker;
mod certificates;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "librdkafka")]
mod librdkafka;
mod newest;
pub mod preflight;
mod sasl;
mod secrets;
mod tls;
#[cfg(feature = "librdkafka")]
mod topic_id;
mod wire;
#[cfg(not(feature = "librdkafka"))]
mod without_librdkafka;

#[cfg(feature = "librdkafka")]
pub use librdkafka::{Apart, look_again};
#[cfg(not(feature = "librdkafka"))]
pub use without_librdkafka::{Apart, look_again};

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

pub use certificates::Certificates;
pub use newest::newest;
pub use secrets::Secrets;
pub use tls::TlsFault;

use crate::config::{self, Start};
use crate::core::record::{Record, TopicPartition};

/// What one call of [`MessageSource::poll`] brought.
#[derive(Debug)]
pub enum Polled {
    /// A record. It belongs to the batch being built, whatever the batch's limits.
    Record(Record),
    /// These partitions are now this process's. Nothing is read from them before [`MessageSource::start`] names their offsets.
    Assigned(Vec<TopicPartition>),
    /// These partitions are no longer (or, with `lost`, have not been for a while) this process's. Records of theirs that
    /// are not committed to PostgreSQL must be dropped; then [`MessageSource::release`].
    Revoked {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// The group gave them away without asking; another process may already read them.
        lost: bool,
    },
    /// Something went wrong that the client tries to mend by itself. For the log (rate-limited), metrics and `stalled`.
    Trouble(Trouble),
    /// The position of some partition has left its log. Which one only the watermarks tell: validate all.
    PositionLost(String),
}

/// A fault that the client retries by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// For the label `kind` of `kafka_errors_total`; a closed set.
    pub kind: TroubleKind,
    /// One sentence that names the candidates, where librdkafka's own words do not.
    pub text: String,
}

/// Kinds of [`Trouble`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TroubleKind {
    /// No broker can be reached, or connections break.
    Connection,
    /// TLS handshake.
    Tls,
    /// SASL.
    Authentication,
    /// ACLs on topic or group.
    Authorization,
    /// Topic or partition is not there.
    UnknownTopic,
    /// Anything else.
    Other,
}

impl TroubleKind {
    /// Every kind, for metrics that are there from the start.
    pub const ALL: [TroubleKind; 6] =
        [Self::Connection, Self::Tls, Self::Authentication, Self::Authorization, Self::UnknownTopic, Self::Other];

    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Tls => "tls",
            Self::Authentication => "authentication",
            Self::Authorization => "authorization",
            Self::UnknownTopic => "unknown_topic",
            Self::Other => "other",
        }
    }
}

/// Why a source can no longer be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Drop what is in hand, build a new source and go on from PostgreSQL's positions: a fatal error of the client.
    #[error("{0}")]
    Rebuild(String),
    /// As `Rebuild`, because of a batch that cannot be decoded (bad checksum, bad compression, unknown format): polling on
    /// could skip a range. Which partition's it is the client does not say; [`Apart`] finds out.
    #[error("{0}")]
    Damaged(String),
    /// Another process has joined under this name (`FencedInstanceId`): if that happens again, exit, and do not come back by yourself.
    #[error("{0}")]
    Fenced(String),
    /// The client does not take its settings: an unknown property, a CA file that is not there. The text names the property.
    #[error("{0}")]
    Settings(String),
    /// A request (metadata, watermarks, offsets by time, topic id) failed or timed out; try again later.
    #[error("{0}")]
    Request(String),
}

/// Lowest and highest offset of a partition's log: the first that is still there, and the one that the next record will have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// First offset still in the log.
    pub low: i64,
    /// High watermark: last offset + 1.
    pub high: i64,
}

/// A topic as the cluster describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub topic: Arc<str>,
    /// Its id, where the brokers have one (Kafka 2.8 and later). A topic deleted and created again has another.
    pub id: Option<Uuid>,
    /// How many partitions it has; `None`: it does not exist.
    pub partitions: Option<i32>,
    /// Those of them that no broker leads at present: nobody can be asked for their records.
    pub leaderless: Vec<i32>,
}

/// What a topic is configured to do with its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSettings {
    /// `cleanup.policy` contains `compact`: any offset may be missing.
    pub compacted: bool,
    /// How long records are kept; `None`: for ever, or as long as the size allows.
    pub retention: Option<Duration>,
}

/// What [`Apart::read`] brought.
#[derive(Debug)]
pub struct Chunk {
    /// Sound records, in order.
    pub records: Vec<Record>,
    /// The next offset: behind the last record, and behind markers and aborted records that were passed.
    pub next: i64,
    /// Why there are no more.
    pub ended: Ended,
}

/// Why a reader apart from the group has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// As many as were wanted.
    Full,
    /// There is no more that is committed.
    EndOfLog,
    /// The deadline; with the last trouble, if there was any.
    Late(String),
    /// What lies at `next` cannot be decoded, in the client's words.
    Damaged(String),
    /// The log does not hold the offset at which reading was to begin.
    PositionLost(String),
}

/// One Kafka client. Used by one thread only.
///
/// The order of calls is the contract: after [`Polled::Assigned`] comes [`start`](Self::start) or [`park`](Self::park) for
/// those partitions, after [`Polled::Revoked`] comes [`release`](Self::release); only then [`poll`](Self::poll) again.
pub trait MessageSource {
    /// Waits up to `timeout` for one event. `None` does not mean that the timeout has passed.
    /// Must be called at least every `max.poll.interval.ms`, also while nothing is wanted (then with everything paused).
    fn poll(&mut self, timeout: Duration) -> Result<Option<Polled>, SourceError>;

    /// Begins (or, when parked, goes on) to read these partitions at exactly these offsets; one that is being read is moved.
    /// Those that are not this process's are left alone.
    fn start(&mut self, at: &[(TopicPartition, i64)]) -> Result<(), SourceError>;

    /// Accepts these partitions without reading them: PostgreSQL, which knows the offsets, is away. `start` follows later.
    fn park(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError>;

    /// Gives these partitions up.
    fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError>;

    /// Next offset not yet passed, per started partition: it lies behind transaction markers and aborted records, and never
    /// behind a record that `poll` has not returned. Partitions without a known position are left out.
    fn positions(&mut self) -> Vec<(TopicPartition, i64)>;

    /// Marks offsets as done, for the group's committed offsets. Only ever called after the COMMIT in PostgreSQL. Best effort.
    fn store(&mut self, next: &[(TopicPartition, i64)]);

    /// Stops fetching everything (throws fetched data away) while `poll` goes on; for long waits only.
    fn pause(&mut self);

    /// Undoes [`pause`](Self::pause): reads on at the offsets after the last records that `poll` returned.
    fn resume(&mut self);

    /// The cluster's id, where it has one.
    fn cluster_id(&mut self, timeout: Duration) -> Result<Option<String>, SourceError>;

    /// Topic ids and partition counts, asked of the cluster.
    fn topics(&mut self, timeout: Duration) -> Result<Vec<TopicInfo>, SourceError>;

    /// What the topic is configured to do; `None`: this user may not ask.
    fn settings(&mut self, topic: &str, timeout: Duration) -> Result<Option<TopicSettings>, SourceError>;

    /// Asked of the partition's leader.
    fn watermarks(&mut self, at: &TopicPartition, timeout: Duration) -> Result<Watermarks, SourceError>;

    /// Resolves `start` for one partition to an offset: the low watermark, the high one, the group's committed offset (low
    /// where there is none), or the first record at or after a time (high where there is none).
    fn resolve(&mut self, at: &TopicPartition, start: Start, timeout: Duration) -> Result<i64, SourceError>;

    /// High watermark per started partition as last heard of, without asking; for `kafka_lag_records`.
    fn high_watermarks(&mut self) -> Vec<(TopicPartition, i64)>;

    /// Looks for the topics now and not with the next minute: something about them has changed. Best effort, and heavy in a large
    /// cluster.
    fn look_for_topics(&mut self, timeout: Duration);

    /// Whether a broker was heard of lately, without asking; for `kafka_up`.
    fn is_up(&self) -> bool;

    /// Leaves: commits stored offsets if that can be done within `deadline`, otherwise abandons the client (the process is
    /// about to end, or builds another). Never blocks longer, which a plain drop may.
    fn close(self: Box<Self>, deadline: Duration);
}

/// Makes the source that `kafka` describes. Nothing is asked of the cluster yet, and the first [`MessageSource::poll`] joins
/// the group: what is asked before it (ids, watermarks, where to start) is asked without being a member.
///
/// `instance` is the `group.instance.id`: a member that comes back under it within `session.timeout.ms` has its partitions
/// again at once, and a second one under it fences the first. `None`: a dynamic member. The pure-Rust client knows no members:
/// it takes all partitions, and the caller sees to it that one process reads.
pub fn open(kafka: &config::Kafka, instance: Option<&str>) -> Result<Box<dyn MessageSource>, SourceError> {
    match kafka.client {
        #[cfg(feature = "librdkafka")]
        config::KafkaClient::Librdkafka => Ok(Box::new(librdkafka::Librdkafka::open(kafka, instance)?)),
        #[cfg(feature = "kafka")]
        config::KafkaClient::Kafka => {
            let _ = instance;
            Ok(Box::new(self::kafka::KafkaCrate::open(kafka)?))
        }
        #[cfg(not(all(feature = "librdkafka", feature = "kafka")))]
        client => Err(SourceError::Settings(format!("this build has no client \"{}\" ({instance:?})", client.word()))),
    }
}

/// How many records and bytes of one partition the source may have in hand without having returned them.
pub fn prefetched(kafka: &config::Kafka) -> (usize, usize) {
    match kafka.client {
        #[cfg(feature = "librdkafka")]
        config::KafkaClient::Librdkafka => librdkafka::prefetched(kafka),
        // Nothing is read apart from this one.
        _ => (0, 0),
    }
}

/// How long the group keeps the place of a member that has gone without a word.
pub fn session_timeout(kafka: &config::Kafka) -> Duration {
    match kafka.client {
        #[cfg(feature = "librdkafka")]
        config::KafkaClient::Librdkafka => librdkafka::session_timeout(kafka),
        _ => Duration::ZERO,
    }
}
