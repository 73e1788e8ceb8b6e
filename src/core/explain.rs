//! Why a transaction is where it is: one sentence, out of facts of one moment.
//!
//! The facts are read by `store` in one snapshot; what they mean is decided here, in the order in which one reason hides
//! another: what is finished comes before what waits, and of what waits the pause before the gate, the gate before the time.

use std::time::{Duration, SystemTime};

use super::text::shell_word;
use super::times::{absolute, both, relative, rough};

mod facts;
pub use facts::{Act, Attempt, Dead, Facts, Gate, Holder, Open, Pause, Place, Reached, Rejected, Transaction};

/// Which reason it is. The labels are those of `explain --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing is known of this id.
    NotSeen,
    /// Its partition has not been read that far.
    NotReadYet,
    /// Reading began behind it.
    BeforeStart,
    /// It could not become a transaction.
    Rejected,
    /// Kafka had lost it.
    LostInKafka,
    /// There is no record.
    NoRecord,
    /// Retention has deleted it.
    Purged,
    /// It repeats a transaction byte for byte.
    Duplicate,
    /// The service has accepted it.
    Delivered,
    /// The same, and an answer that came too late says that it got it twice.
    DeliveredTwice,
    /// A person closed it.
    Resolved,
    /// A person took its content away.
    Erased,
    /// Given up.
    Dead,
    /// A process has it.
    InFlight,
    /// The process that had it is dead, and the lease has not ended.
    LeaseLapsing,
    /// Delivering is paused.
    Paused,
    /// The gate is shut.
    GateShut,
    /// No process runs.
    NoProcess,
    /// It waits for its next attempt.
    Waiting,
    /// It is due.
    Due,
    /// Stored, and nowhere: an alarm.
    Unaccounted,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 21] = [
        Self::NotSeen,
        Self::NotReadYet,
        Self::BeforeStart,
        Self::Rejected,
        Self::LostInKafka,
        Self::NoRecord,
        Self::Purged,
        Self::Duplicate,
        Self::Delivered,
        Self::DeliveredTwice,
        Self::Resolved,
        Self::Erased,
        Self::Dead,
        Self::InFlight,
        Self::LeaseLapsing,
        Self::Paused,
        Self::GateShut,
        Self::NoProcess,
        Self::Waiting,
        Self::Due,
        Self::Unaccounted,
    ];

    /// As `explain --json` names it.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotSeen => "not_seen",
            Self::NotReadYet => "not_read_yet",
            Self::BeforeStart => "before_start",
            Self::Rejected => "rejected",
            Self::LostInKafka => "lost_in_kafka",
            Self::NoRecord => "no_record",
            Self::Purged => "purged",
            Self::Duplicate => "duplicate",
            Self::Delivered => "delivered",
            Self::DeliveredTwice => "delivered_twice",
            Self::Resolved => "resolved",
            Self::Erased => "erased",
            Self::Dead => "dead",
            Self::InFlight => "in_flight",
            Self::LeaseLapsing => "lease_lapsing",
            Self::Paused => "paused",
            Self::GateShut => "gate_shut",
            Self::NoProcess => "no_process",
            Self::Waiting => "waiting",
            Self::Due => "due",
            Self::Unaccounted => "unaccounted",
        }
    }

    /// Whether the answer is one that somebody should do something about: exit status 1.
    pub fn is_wrong(self) -> bool {
        matches!(self, Self::NotSeen | Self::Rejected | Self::LostInKafka | Self::Dead | Self::NoProcess | Self::Unaccounted)
    }
}

/// Heartbeats come every second; half a minute without one is no longer a slow database.
const SILENT: Duration = Duration::from_secs(30);

/// Why it is where it is.
pub fn explain(facts: &Facts) -> (Reason, String) {
    let (reason, what) = match (&facts.place, &facts.transaction) {
        (_, Some(transaction)) => {
            let (reason, what) = stored(facts, transaction);
            (reason, format!("{what}{}", beside(transaction)))
        }
        (Some(place), None) => at_place(facts, place),
        (None, None) => not_stored(facts),
    };
    (reason, format!("{} {what}", facts.asked))
}

fn stored(facts: &Facts, transaction: &Transaction) -> (Reason, String) {
    let now = facts.now;
    if let Some(open) = &transaction.open {
        return is_open(facts, transaction, open);
    }
    if let Some(dead) = &transaction.dead {
        return (Reason::Dead, is_dead(facts, transaction, dead));
    }
    let erased = transaction.erased.as_ref().map(|act| format!("; its content was {}", by(act, "erased", now)));
    let also = erased.as_deref().unwrap_or_default();
    let reason = |reason| if erased.is_some() { Reason::Erased } else { reason };
    if let Some(act) = &transaction.resolved {
        let sent = if transaction.unknown > 0 { ", though an attempt may have reached the service" } else { "" };
        return (reason(Reason::Resolved), format!("was {} without being delivered{sent}{also}", by(act, "closed", now)));
    }
    if let Some((at, n)) = transaction.delivered {
        let took = at.duration_since(transaction.received_at).unwrap_or_default();
        let tries = if n == 1 { "on its first attempt".to_owned() } else { format!("on attempt {n}") };
        let was = format!("was delivered {}, {} after it was received, {tries}", both(at, now), rough(took));
        return match transaction.late {
            Some((_, late)) => (
                reason(Reason::DeliveredTwice),
                format!("{was}; attempt {late} had been accepted too, and its answer came too late to count{also}"),
            ),
            None => (reason(Reason::Delivered), format!("{was}{also}")),
        };
    }
    (Reason::Unaccounted, "is stored, and neither open nor finished: rows have been changed by hand or lost; run `txrelay reconcile`, and keep this database as it is".to_owned())
}

fn is_open(facts: &Facts, transaction: &Transaction, open: &Open) -> (Reason, String) {
    let now = facts.now;
    let so_far = so_far(facts, transaction, open);
    if open.leased && open.due_at > now {
        return in_hand(open, now);
    }
    let lapsed =
        if open.leased { "; its lease ran out before its outcome was written, so nobody knows whether it was sent" } else { "" };
    if let Some(pause) = &facts.pause {
        return (Reason::Paused, format!("waits because {}{lapsed}{so_far}", pause.words(now)));
    }
    if let Some((reason, what)) = gate_is_shut(facts) {
        return (reason, format!("{what}{lapsed}{so_far}"));
    }
    if facts.processes == 0 {
        let heard = facts.last_heard.map_or_else(String::new, |at| format!(" (last heard of {})", both(at, now)));
        return (Reason::NoProcess, format!("waits because no txrelay process runs{heard}{lapsed}{so_far}"));
    }
    if open.due_at > now {
        return (Reason::Waiting, format!("waits until {} for attempt {}{so_far}", both(open.due_at, now), open.attempt + 1));
    }
    (Reason::Due, format!("is due since {} and will be sent as soon as a worker is free{lapsed}{so_far}", both(open.due_at, now)))
}

/// The gate in front of the service, where a process says that it is shut.
fn gate_is_shut(facts: &Facts) -> Option<(Reason, String)> {
    let gate = facts.gate.as_ref()?;
    let since = gate.since.map_or_else(String::new, |at| format!(" since {}", both(at, facts.now)));
    let probe = gate.next_probe_at.map_or_else(String::new, |at| format!("; the next probe is sent {}", relative(at, facts.now)));
    Some((Reason::GateShut, format!("waits because the gate to the service is shut{since}: {}{probe}", gate.why)))
}

fn in_hand(open: &Open, now: SystemTime) -> (Reason, String) {
    let until = both(open.due_at, now);
    let Some(holder) = &open.holder else {
        return (
            Reason::LeaseLapsing,
            format!("is leased by a process of which nothing is known; the lease ends {until}, and then it is due again"),
        );
    };
    let Holder { id, host, pid, .. } = holder;
    let who = format!("process {id} on {host} (pid {pid})");
    let silent = now.duration_since(holder.seen_at).unwrap_or_default() > SILENT;
    if holder.ended || silent {
        let seen = both(holder.seen_at, now);
        return (
            Reason::LeaseLapsing,
            format!(
                "was taken for attempt {} by {who}, which was last heard of {seen}; its lease ends {until}, and then it is due again",
                open.attempt
            ),
        );
    }
    (Reason::InFlight, format!("is in the hands of {who} for attempt {}, until {until} at the latest", open.attempt))
}

fn is_dead(facts: &Facts, transaction: &Transaction, dead: &Dead) -> String {
    let id = shell_word(&transaction.id);
    let error = dead.error.as_ref().map_or_else(String::new, |error| format!(", \"{error}\""));
    let answer = dead.http_status.map_or_else(|| "without an answer".to_owned(), |status| format!("with HTTP {status}"));
    let why = match dead.reason.as_str() {
        "refused" => format!("the service refused it {answer}{error} on attempt {}", dead.attempts),
        _ => format!(
            "its own failures have lasted {} (retry.give_up_after), the last of {} attempts {answer}{error}",
            rough(facts.give_up_after),
            dead.attempts
        ),
    };
    format!(
        "is dead since {}: {why}; `txrelay retry {id}` sends it again, `txrelay resolve --reason TEXT {id}` closes it",
        both(dead.at, facts.now)
    )
}

/// What the last attempt said, and whose fault it was.
fn so_far(facts: &Facts, transaction: &Transaction, open: &Open) -> String {
    let Some(last) = &transaction.last else { return String::new() };
    let answer = last.http_status.map_or_else(String::new, |status| format!(" with HTTP {status}"));
    let error = last.error.as_ref().map_or_else(String::new, |error| format!(", \"{error}\""));
    let fault = match last.outcome {
        "delivered" => "; it was delivered before and is to be sent again".to_owned(),
        "lost" => "; its process did not come back, so nobody knows whether it was sent".to_owned(),
        _ if open.spent.is_zero() => "; the service's fault, of its own time nothing is spent".to_owned(),
        _ => format!("; its own failures have taken {} of {}", rough(open.spent), rough(facts.give_up_after)),
    };
    let late = match transaction.late {
        Some((at, n)) => format!("; the service accepted attempt {n} at {}, too late to count", absolute(at)),
        None => String::new(),
    };
    format!("; attempt {} ended {}: {}{answer}{error}{fault}{late}", last.n, both(last.at, facts.now), last.outcome)
}

/// What else carries its id.
fn beside(transaction: &Transaction) -> String {
    let mut text = match transaction.duplicates {
        0 => String::new(),
        1 => "; it came once more, byte for byte".to_owned(),
        n => format!("; it came {n} times more, byte for byte"),
    };
    let (n, open) = transaction.conflicts;
    let records = if n == 1 { "another record".to_owned() } else { format!("{n} other records") };
    match open {
        _ if n == 0 => {}
        Some(id) => text
            .push_str(&format!("; CONFLICT: its id was given to {records} with other bytes, see `txrelay rejected show {id}`")),
        None => text.push_str(&format!("; its id was given to {records} with other bytes, which a person has resolved")),
    }
    text
}

fn by(act: &Act, verb: &str, now: SystemTime) -> String {
    format!("{verb} by {} {} ({})", act.who, both(act.at, now), act.reason)
}

fn at_place(facts: &Facts, place: &Place) -> (Reason, String) {
    match place {
        Place::Unknown => (Reason::NotSeen, format!("is in a partition that was never read; {}", read_so_far(facts))),
        Place::NotYet(next) => (Reason::NotReadYet, format!("has not been read yet: the partition has been read up to offset {next}")),
        Place::BeforeStart(first) => {
            (Reason::BeforeStart, format!("is not this pipeline's: it began to read this partition at offset {first}"))
        }
        Place::Rejected(rejected) => (Reason::Rejected, format!("is {}", rejected_as(rejected, facts.now))),
        Place::Gap(reason) => (Reason::LostInKafka, format!("was lost in Kafka before it could be read: {reason}")),
        Place::Skipped => (Reason::NoRecord, "holds no record: a transaction marker, or an aborted or compacted record".to_owned()),
        Place::Purged | Place::Duplicate(None) => (Reason::Purged, "was deleted by retention: it was delivered or resolved".to_owned()),
        Place::Duplicate(Some(id)) => {
            let word = shell_word(id);
            (Reason::Duplicate, format!("repeats {id} byte for byte and is not sent by itself; `txrelay explain {word}` says how that stands"))
        },
        Place::Transaction | Place::Nowhere => {
            (Reason::Unaccounted, "was read and is nowhere: rows have been changed by hand or lost; run `txrelay reconcile`, and keep this database as it is".to_owned())
        }
    }
}

fn rejected_as(rejected: &Rejected, now: SystemTime) -> String {
    let Rejected { id, place, reason, detail, received_at, resolved } = rejected;
    let detail = if detail.is_empty() { String::new() } else { format!(", {detail}") };
    let then = if *resolved {
        "a person has closed it".to_owned()
    } else {
        format!("`txrelay rejected retry {id}` looks again, `txrelay rejected resolve {id} --reason TEXT` closes it")
    };
    format!("rejected record {id} ({place}), read {}: {reason}{detail}; {then}", both(*received_at, now))
}

fn not_stored(facts: &Facts) -> (Reason, String) {
    if let Some(rejected) = facts.mentions.first() {
        return (Reason::Rejected, format!("is no transaction, but stands in {}", rejected_as(rejected, facts.now)));
    }
    let kept = facts.kept.map_or_else(
        || "nothing is ever deleted".to_owned(),
        |kept| format!("what was delivered more than {} ago may be deleted", rough(kept)),
    );
    (
        Reason::NotSeen,
        format!(
            "is not known: it has not been read, or has no readable id ({kept}); {}; `--at TOPIC/PARTITION/OFFSET` says more",
            read_so_far(facts)
        ),
    )
}

fn read_so_far(facts: &Facts) -> String {
    if facts.read_to.is_empty() {
        return "nothing has been read so far".to_owned();
    }
    let shown = facts.read_to.iter().take(20).map(|at| {
        format!("{} to offset {} ({} ago)", at.partition, at.next_offset, rough(Duration::from_secs_f64(at.age.max(0.0))))
    });
    let more = facts.read_to.len().saturating_sub(20);
    let more = if more == 0 { String::new() } else { format!(", and {more} more") };
    format!("read so far: {}{more}", shown.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
