//! What is known of a transaction and of the pipeline, of one moment: what an explanation is made of.

use std::time::{Duration, SystemTime};

use crate::core::times::both;

/// Everything that decides.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The server's clock.
    pub now: SystemTime,
    /// As it was asked for: an id, or `topic/partition/offset`; to be shown as it is.
    pub asked: String,
    /// What is stored under it.
    pub transaction: Option<Transaction>,
    /// What stands where it was written in Kafka; `None`: nobody said where that is.
    pub place: Option<Place>,
    /// Rejected records that hold the id somewhere.
    pub mentions: Vec<Rejected>,
    /// How far each partition has been read.
    pub read_to: Vec<Reached>,
    /// Delivering is paused.
    pub pause: Option<Pause>,
    /// The gate in front of the service is shut.
    pub gate: Option<Gate>,
    /// Processes that live.
    pub processes: i64,
    /// When any process was last heard of.
    pub last_heard: Option<SystemTime>,
    /// `retry.give_up_after`
    pub give_up_after: Duration,
    /// `retention.delivered`
    pub kept: Option<Duration>,
}

/// A stored transaction.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// `tx.transaction_id`
    pub id: String,
    /// When it was stored.
    pub received_at: SystemTime,
    /// Open work.
    pub open: Option<Open>,
    /// Given up.
    pub dead: Option<Dead>,
    /// Closed by a person.
    pub resolved: Option<Act>,
    /// Its content was erased.
    pub erased: Option<Act>,
    /// When it was accepted, and on which attempt.
    pub delivered: Option<(SystemTime, i32)>,
    /// The same of an answer that came too late to count.
    pub late: Option<(SystemTime, i32)>,
    /// Its newest attempt.
    pub last: Option<Attempt>,
    /// How many attempts have ended.
    pub attempts: i64,
    /// How many of them were sent and never answered.
    pub unknown: i64,
    /// Records that repeat it byte for byte.
    pub duplicates: i64,
    /// Records that claim its id with other bytes, and the newest of those that nobody has resolved.
    pub conflicts: (i64, Option<i64>),
}

/// A row of `delivery`.
#[derive(Debug, Clone)]
pub struct Open {
    /// Next attempt, or the lease's end.
    pub due_at: SystemTime,
    /// In somebody's hand, or was.
    pub leased: bool,
    /// Whose; `None`: not known any more.
    pub holder: Option<Holder>,
    /// Attempts begun.
    pub attempt: i32,
    /// Waited for its own failures.
    pub spent: Duration,
}

/// The process of a lease.
#[derive(Debug, Clone)]
pub struct Holder {
    /// `process.id`
    pub id: i64,
    /// Host name.
    pub host: String,
    /// Process id there.
    pub pid: i32,
    /// Its last heartbeat.
    pub seen_at: SystemTime,
    /// It has ended.
    pub ended: bool,
}

/// A row of `dead`.
#[derive(Debug, Clone)]
pub struct Dead {
    /// When it was given up.
    pub at: SystemTime,
    /// `refused` or `gave_up`
    pub reason: String,
    /// Of the last attempt.
    pub http_status: Option<i16>,
    /// Attempts in all.
    pub attempts: i32,
    /// The last error.
    pub error: Option<String>,
}

/// What a person did.
#[derive(Debug, Clone)]
pub struct Act {
    /// When.
    pub at: SystemTime,
    /// Who.
    pub who: String,
    /// Why.
    pub reason: String,
}

/// An attempt that has ended.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its number.
    pub n: i32,
    /// When it ended.
    pub at: SystemTime,
    /// Label of the outcome.
    pub outcome: &'static str,
    /// Status of the answer.
    pub http_status: Option<i16>,
    /// The transport's error, or the beginning of the answer.
    pub error: Option<String>,
}

/// A rejected record.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// `rejected.id`
    pub id: i64,
    /// `topic/partition/offset`
    pub place: String,
    /// Label of the reason.
    pub reason: String,
    /// For people.
    pub detail: String,
    /// When it was read.
    pub received_at: SystemTime,
    /// A person has closed it.
    pub resolved: bool,
}

/// What stands at a place in Kafka, apart from a transaction.
#[derive(Debug, Clone)]
pub enum Place {
    /// No such partition was ever read.
    Unknown,
    /// The position has not come that far; it stands here.
    NotYet(i64),
    /// Reading began behind it, here.
    BeforeStart(i64),
    /// A transaction; it is `Facts::transaction`.
    Transaction,
    /// It repeats this transaction; `None`: retention has taken that away.
    Duplicate(Option<String>),
    /// It could not become a transaction.
    Rejected(Rejected),
    /// Kafka had lost it before it was read, for this reason.
    Gap(String),
    /// A marker, an aborted or a compacted record.
    Skipped,
    /// Retention has deleted rows up to beyond it.
    Purged,
    /// Nothing at all.
    Nowhere,
}

/// How far a partition has been read.
#[derive(Debug, Clone)]
pub struct Reached {
    /// `topic/partition`
    pub partition: String,
    /// Next offset.
    pub next_offset: i64,
    /// When it moved last, seconds ago.
    pub age: f64,
}

/// Delivering is paused.
#[derive(Debug, Clone)]
pub struct Pause {
    /// Since when.
    pub since: SystemTime,
    /// Until when; `None`: until somebody resumes it.
    pub until: Option<SystemTime>,
    /// By whom.
    pub by: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

impl Pause {
    /// Since when, by whom, why and until when.
    pub fn words(&self, now: SystemTime) -> String {
        let by = self.by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
        let why = self.reason.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
        let until = match self.until {
            Some(until) => format!("until {}", both(until, now)),
            None => "until somebody says `txrelay resume`".to_owned(),
        };
        format!("delivering is paused since {}{by}{why}, {until}", both(self.since, now))
    }
}

/// The gate is shut.
#[derive(Debug, Clone)]
pub struct Gate {
    /// Since when, where that is known.
    pub since: Option<SystemTime>,
    /// What shut it.
    pub why: String,
    /// When the next probe is sent.
    pub next_probe_at: Option<SystemTime>,
}
