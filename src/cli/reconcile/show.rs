//! The report, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Report, words};
use crate::cli::rejected::{at, place_of};
use crate::core::audit::{Life, LifeId, Outcome, Place, Problem};
use crate::core::offsets::Offsets;
use crate::core::record::TopicPartition;
use crate::source::Watermarks;

/// So many ranges of a place are named on a screen.
const SHOWN: usize = 12;

pub(super) fn on_a_screen(name: &str, report: &Report) -> String {
    let from = if report.whole { "everything" } else { "from where upkeep's audit stands; --full looks at everything" };
    let mut out = format!("pipeline {name}: {from}\n");
    match &report.log {
        Ok(logs) => logs.failures.iter().for_each(|why| line(&mut out, "kafka", &format!("no answer: {why}"))),
        Err(why) => line(&mut out, "kafka", &format!("not asked, only PostgreSQL: {why}")),
    }
    for outcome in report.outcomes() {
        partition(&mut out, report, &outcome);
    }
    for (at, ends) in report.log.iter().flat_map(|logs| &logs.not_begun) {
        let head = format!("{}/{}: not read yet; Kafka has {} to {}", at.topic, at.partition, ends.low, ends.high);
        line(&mut out, "partition", &head);
    }
    for conflict in &report.conflicts {
        let place = at(&conflict.topic, conflict.partition, conflict.incarnation, conflict.offset);
        let other = match (&conflict.stored, conflict.tx_id) {
            (Some(stored), Some(id)) => format!("{} (row {id}) from {}", stored.transaction_id, place_of(stored)),
            (None, Some(id)) => format!("row {id}, which is not stored any more"),
            _ => "nobody knows which".to_owned(),
        };
        line(&mut out, "conflict", &format!("rejected {} from {place}, with transaction {other}", conflict.id));
    }
    for problem in &report.problems {
        line(&mut out, "WRONG", &sentence(report, problem));
    }
    for finding in &report.findings {
        line(&mut out, "WRONG", &format!("{} (found by upkeep)", finding.words()));
    }
    for (equation, off) in report.equations_off() {
        line(&mut out, "WRONG", &equation_words(equation, off));
    }
    for problem in report.log.iter().flat_map(|logs| &logs.problems) {
        line(&mut out, "WRONG", &format!("{}: {}", place_words(&problem.life, &problem.offsets), problem.words));
    }
    let verdict = match report.n_problems() {
        0 => match &report.log {
            Err(_) => "PostgreSQL's side is right; Kafka was not asked".to_owned(),
            Ok(logs) if !logs.failures.is_empty() => "PostgreSQL's side is right; Kafka did not answer everything".to_owned(),
            _ if !report.whole => "nothing is wrong in what was looked at".to_owned(),
            _ => "nothing is wrong: each offset is in one place, each transaction in one state".to_owned(),
        },
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    let _ = writeln!(out, "{verdict}");
    out
}

fn line(out: &mut String, what: &str, text: &str) {
    let _ = writeln!(out, "  {what:<12} {text}");
}

fn equation_words(equation: &str, off: i64) -> String {
    format!("the ledger's equation \"{equation}\" is off by {off}: a counter and what it counts do not agree")
}

fn partition(out: &mut String, report: &Report, outcome: &Outcome<'_>) {
    let Life { id, position, .. } = outcome.life;
    let life_of = if id.incarnation == 0 { String::new() } else { format!(" (life {})", id.incarnation + 1) };
    let mut head = format!("{}/{}{life_of} offsets {} to {position}", id.topic, id.partition, outcome.begin);
    if let Some(log) = report.log.as_ref().ok().and_then(|logs| logs.logs.get(id)) {
        let left = (log.ends.high - log.position).max(0);
        let same = match log.same_topic {
            Some(true) => "the same topic",
            Some(false) => "ANOTHER TOPIC of this name",
            None => "no topic id",
        };
        let _ = write!(head, "; Kafka has {} to {}, {same}, {left} not read yet", log.ends.low, log.ends.high);
        if log.proven + log.unproven > 0 {
            let _ = write!(head, "; {} skipped proven, {} not", log.proven, log.unproven);
        }
    } else if !is_read(report, id) {
        head.push_str("; a log that is gone");
    }
    line(out, "partition", &head);
    for place in Place::ALL {
        let n = outcome.counts.of(place);
        if n > 0 {
            let reasons = if matches!(place, Place::Rejected { .. }) { reasons(report, id) } else { String::new() };
            line(out, "", &format!("{n} {}{reasons}: {}", place.label(), listed(outcome.ranges(place))));
        }
    }
    if outcome.deleted > 0 {
        line(out, "", &format!("{} deleted by retention, below {}", outcome.deleted, outcome.life.purged.below));
    }
}

fn is_read(report: &Report, id: &LifeId) -> bool {
    report.moment.lives.iter().zip(&report.moment.logs).any(|(life, log)| life.id == *id && log.1)
}

fn reasons(report: &Report, id: &LifeId) -> String {
    let of_life = report.reasons.iter().filter(|(life, _, _)| life == id);
    let named: Vec<String> = of_life.map(|(_, reason, n)| format!("{n} {reason}")).collect();
    format!(" ({})", named.join(", "))
}

fn listed(ranges: impl Iterator<Item = Offsets>) -> String {
    let mut ranges = ranges.peekable();
    let shown: Vec<String> = ranges.by_ref().take(SHOWN).map(|range| words(&range)).collect();
    let more = if ranges.peek().is_some() { ", ... (--json has them)" } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn place_words(life: &LifeId, offsets: &Offsets) -> String {
    let many = offsets.end - offsets.start > 1;
    let last = if many { format!("-{}", offsets.end - 1) } else { String::new() };
    let life_of = if life.incarnation == 0 { String::new() } else { format!(" (life {})", life.incarnation + 1) };
    format!("{}/{} offset {}{last}{life_of}", life.topic, life.partition, offsets.start)
}

fn sentence(report: &Report, problem: &Problem) -> String {
    let what = problem.words();
    if let Some((life, offsets)) = problem.place() {
        return format!("{}: {what}", place_words(life, &offsets));
    }
    let id = problem.tx_id().unwrap_or_default();
    match report.named.get(&id) {
        Some(stored) => format!("transaction {} (row {id}) from {}: {what}", stored.transaction_id, place_of(stored)),
        None => format!("row {id}: {what}"),
    }
}

/// One object:
/// - `pipeline`; `scope`: "everything" or "since_audit"; `well`: whether nothing is wrong; null where nothing was
///   found wrong and Kafka was not asked, or did not answer everything
/// - `kafka`: `{"cluster_id"}`, or null with `kafka_error`; `kafka_failures`: questions without an answer
/// - `partitions`: `topic`, `partition`, `incarnation`, `is_read`, `from_offset`, `position`, `log` (`low`, `high`) or null,
///   `same_topic` (true, false, null), `not_read`, `places` (how many offsets, by place), `ranges` (by place: [first, behind the
///   last]; at most 20,000 of each), `rejected` (by reason, of the whole life), `deleted`, `skipped_proven`, `skipped_unproven`
/// - `not_begun`: `topic`, `partition`, `low`, `high` of each partition that Kafka has and PostgreSQL has nothing of
/// - `conflicts`: `rejected` (`id`, `topic`, `partition`, `incarnation`, `offset`) and `transaction` (`tx_id`, `transaction_id`
///   and its place), or null where it is not stored any more
/// - `ledger_imbalance`: by how much each of the ledger's equations is off, of all topics
/// - `problems`: `kind`, `what`, and the place (`topic`, `partition`, `incarnation`, `from_offset`, `to_offset`) or `tx_id` and
///   `transaction_id`
pub(super) fn in_json(name: &str, report: &Report) -> String {
    let partitions: Vec<Value> = report.outcomes().iter().map(|outcome| partition_json(report, outcome)).collect();
    let logs = report.log.as_ref().ok();
    json!({
        "pipeline": name,
        "scope": if report.whole { "everything" } else { "since_audit" },
        "well": report.is_well(),
        "kafka": logs.map(|logs| json!({ "cluster_id": logs.cluster_id })),
        "kafka_error": report.log.as_ref().err(),
        "kafka_failures": logs.map(|logs| logs.failures.clone()).unwrap_or_default(),
        "partitions": partitions,
        "not_begun": logs.map(|logs| logs.not_begun.iter().map(not_begun_json).collect::<Vec<Value>>()).unwrap_or_default(),
        "conflicts": report.conflicts.iter().map(conflict_json).collect::<Vec<Value>>(),
        "ledger_imbalance": report.imbalances.labelled().into_iter().map(|(k, off)| (k.to_owned(), off.into())).collect::<serde_json::Map<String, Value>>(),
        "problems": problems_json(report),
    })
    .to_string()
}

fn not_begun_json((at, ends): &(TopicPartition, Watermarks)) -> Value {
    json!({ "topic": &*at.topic, "partition": at.partition, "low": ends.low, "high": ends.high })
}

fn partition_json(report: &Report, outcome: &Outcome<'_>) -> Value {
    let Life { id, position, .. } = outcome.life;
    let log = report.log.as_ref().ok().and_then(|logs| logs.logs.get(id));
    let mut places = serde_json::Map::new();
    let mut ranges = serde_json::Map::new();
    for place in Place::ALL {
        places.insert(place.code().to_owned(), outcome.counts.of(place).into());
        let of_place: Vec<[i64; 2]> = outcome.ranges(place).map(|range| [range.start, range.end]).collect();
        ranges.insert(place.code().to_owned(), json!(of_place));
    }
    let rejected: serde_json::Map<String, Value> =
        (report.reasons.iter()).filter(|(life, _, _)| life == id).map(|(_, reason, n)| (reason.clone(), (*n).into())).collect();
    json!({
        "topic": &*id.topic, "partition": id.partition, "incarnation": id.incarnation, "is_read": is_read(report, id),
        "from_offset": outcome.begin, "position": position,
        "log": log.map(|log| json!({ "low": log.ends.low, "high": log.ends.high })),
        "same_topic": log.and_then(|log| log.same_topic),
        "not_read": log.map(|log| (log.ends.high - log.position).max(0)),
        "places": places, "ranges": ranges, "rejected": rejected, "deleted": outcome.deleted,
        "skipped_proven": log.map(|log| log.proven), "skipped_unproven": log.map(|log| log.unproven),
    })
}

fn conflict_json(row: &crate::store::RejectedRow) -> Value {
    let stored = row.stored.as_ref().map(|stored| {
        json!({ "tx_id": row.tx_id, "transaction_id": stored.transaction_id, "topic": stored.topic, "partition": stored.partition,
            "incarnation": stored.incarnation, "offset": stored.offset })
    });
    let rejected = json!({ "id": row.id, "topic": row.topic, "partition": row.partition, "incarnation": row.incarnation,
        "offset": row.offset });
    json!({ "rejected": rejected, "transaction": stored })
}

fn problems_json(report: &Report) -> Vec<Value> {
    let place = |kind: &str, what: &str, life: Option<&LifeId>, offsets: Option<&Offsets>| {
        json!({ "kind": kind, "what": what, "topic": life.map(|life| &*life.topic), "partition": life.map(|life| life.partition),
            "incarnation": life.map(|life| life.incarnation), "from_offset": offsets.map(|o| o.start), "to_offset": offsets.map(|o| o.end),
            "tx_id": null, "transaction_id": null })
    };
    let mut all = Vec::new();
    for problem in &report.problems {
        let at = problem.place();
        let mut value = place(problem.kind(), &problem.words(), at.as_ref().map(|at| at.0), at.as_ref().map(|at| &at.1));
        if let Some(id) = problem.tx_id() {
            value["tx_id"] = id.into();
            value["transaction_id"] = report.named.get(&id).map(|stored| stored.transaction_id.clone()).into();
        }
        all.push(value);
    }
    for finding in &report.findings {
        let mut value = place(&finding.kind, &finding.detail, finding.life.as_ref(), finding.offsets.as_ref());
        value["tx_id"] = finding.tx_id.into();
        value["transaction_id"] = finding.transaction_id.clone().into();
        all.push(value);
    }
    for (equation, off) in report.equations_off() {
        all.push(place("ledger_imbalance", &equation_words(equation, off), None, None));
    }
    for problem in report.log.iter().flat_map(|logs| &logs.problems) {
        all.push(place(problem.kind, &problem.words, Some(&problem.life), Some(&problem.offsets)));
    }
    all
}
