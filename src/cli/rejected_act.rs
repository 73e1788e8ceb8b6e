//! `rejected export`, `retry` and `resolve`: what people do to records that could not become transactions.

use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use serde_json::json;

use super::act::{Common, confirmed, described, run, trace, who};
use super::table::Table;
use super::{Exit, complain, json as values, look, printed, say, when};
use crate::config::{Config, visible};
use crate::core::identify::{Reason, check_id, identify};
use crate::core::record::Record;
use crate::store::{Became, ExportedRow, RejectFilter, Session, StoreError, Verdict};

/// Records of one transaction: each may be as large as Kafka allows, and is read to be looked at.
const BATCH: usize = 20;

/// Which rejected records: by number, or by description.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Rejected records by their numbers
    #[arg(value_name = "N", required_unless_present = "all", conflicts_with = "all")]
    numbers: Vec<i64>,
    /// All that nobody has resolved
    #[arg(long)]
    all: bool,
    /// Of those, what was rejected for this
    #[arg(long, value_name = "WHY", requires = "all", value_parser = Reason::ALL.map(Reason::label))]
    why: Option<String>,
    /// Of those, what was read at or after this: 2h, today, or RFC 3339
    #[arg(long, value_name = "T", value_parser = when::parse, requires = "all")]
    since: Option<SystemTime>,
    /// Of those, what was read before this
    #[arg(long, value_name = "T", value_parser = when::parse, requires = "all")]
    until: Option<SystemTime>,
    /// At most so many
    #[arg(long, value_name = "N", requires = "all", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    which: Which,
    /// Also what people have resolved
    #[arg(long, requires = "all")]
    resolved: bool,
    /// Only the value's bytes, as they are, of one record
    #[arg(long, conflicts_with = "all")]
    raw: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RetryArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResolveArgs {
    #[command(flatten)]
    which: Which,
    /// Why; kept with each
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not close it: make it a transaction with this id
    #[arg(long, value_name = "ID", conflicts_with = "all", value_parser = id)]
    as_id: Option<String>,
    #[command(flatten)]
    common: Common,
}

fn id(text: &str) -> Result<String, String> {
    check_id(text).map_err(|reject| reject.detail).map(|()| text.to_owned())
}

impl Which {
    fn filter(&self) -> RejectFilter {
        RejectFilter { since: self.since, until: self.until, reason: self.why.clone(), resolved_too: false }
    }
}

/// One JSON object a record, or the bytes of one.
pub(super) fn export(file: &Path, sets: &[String], args: &ExportArgs) -> Exit {
    if args.raw && args.which.numbers.len() != 1 {
        complain("txrelay: --raw is for one record");
        return Exit::Usage;
    }
    look(file, sets, "rejected export", |_, session, _| {
        let mut table = Table::new(&[]);
        let filter = RejectFilter { resolved_too: args.resolved, ..args.which.filter() };
        let mut left = args.which.limit.unwrap_or(u64::MAX);
        let (mut after, mut found) = (i64::MIN, 0);
        while left > 0 {
            let page = BATCH.min(usize::try_from(left).unwrap_or(BATCH));
            let ids = if args.which.all { session.rejected_batch(&filter, after, page)? } else { numbers(args, after, page) };
            let Some(last) = ids.last().copied() else { break };
            (after, left) = (last, left - ids.len() as u64);
            for row in session.rejected_rows(&ids)? {
                found += 1;
                let done = if args.raw {
                    std::io::stdout().write_all(row.payload.as_deref().unwrap_or_default())
                } else {
                    table.plain(&in_json(&row))
                };
                if let Err(error) = done.and_then(|()| table.flush()) {
                    return Ok(printed(Err(error)));
                }
            }
        }
        let missing = args.which.numbers.len().saturating_sub(found);
        if missing > 0 {
            complain(&format!("{missing} of these numbers are not known"));
        }
        Ok(if missing > 0 { Exit::Failed } else { Exit::Done })
    })
}

/// Those behind `after`, ascending, each once.
fn numbers(args: &ExportArgs, after: i64, page: usize) -> Vec<i64> {
    let mut numbers: Vec<i64> = args.which.numbers.iter().copied().filter(|number| *number > after).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.truncate(page);
    numbers
}

fn in_json(row: &ExportedRow) -> String {
    json!({
        "id": row.id, "topic": row.topic, "partition": row.partition, "incarnation": row.incarnation,
        "kafka_offset": row.kafka_offset, "reason": row.reason, "detail": row.detail,
        "received_at": values::time(Some(row.received_at)), "resolved_at": values::time(row.resolved_at),
        "key": values::bytes(row.key.as_deref()), "headers": row.headers, "payload": values::bytes(row.payload.as_deref()),
    })
    .to_string()
}

/// Looks at them again under the present configuration.
pub(super) fn retry(file: &Path, sets: &[String], args: &RetryArgs) -> Exit {
    run(file, sets, "rejected retry", |config, session| {
        let work = Work { verb: "Look again at", common: &args.common, which: &args.which };
        work.carry_out(config, session, |session, ids| reinject(session, ids, &by_rule(config), "identified again", &args.common))
    })
}

/// Closes them, or gives one an id.
pub(super) fn resolve(file: &Path, sets: &[String], args: &ResolveArgs) -> Exit {
    let reason = args.reason.trim();
    if reason.is_empty() {
        complain("txrelay: --reason says why, for whoever asks later: it is empty");
        return Exit::Usage;
    }
    if args.as_id.is_some() && args.which.numbers.len() != 1 {
        complain("txrelay: --as-id is for one record");
        return Exit::Usage;
    }
    run(file, sets, "rejected resolve", |config, session| {
        let work = Work { verb: "Close", common: &args.common, which: &args.which };
        work.carry_out(config, session, |session, ids| match &args.as_id {
            Some(id) => reinject(session, ids, &|record| as_id(record, id), reason, &args.common),
            None => close(session, ids, reason, &args.common),
        })
    })
}

fn by_rule(config: &Config) -> impl Fn(&Record) -> Result<String, String> + '_ {
    |record| match identify(&config.transaction_id, record, config.kafka.record_max) {
        Ok(identified) => Ok(identified.transaction_id),
        Err(reject) => Err(format!("{}: {}", reject.reason.label(), reject.detail)),
    }
}

fn as_id(record: &Record, id: &str) -> Result<String, String> {
    match record.value {
        Some(_) => Ok(id.to_owned()),
        None => Err("it has no value, so there is nothing to send".to_owned()),
    }
}

/// How many of `ids` are done; what is not has been said.
fn reinject(
    session: &mut Session,
    ids: &[i64],
    name: &dyn Fn(&Record) -> Result<String, String>,
    why: &str,
    common: &Common,
) -> Result<usize, StoreError> {
    let trace = (!common.dry_run).then(trace);
    let verdicts = match session.reinject(ids, name, &who(), why, trace.as_ref()) {
        // One of them is refused by PostgreSQL: one by one, so that the others are not kept by it.
        Err(StoreError::Value(_)) if ids.len() > 1 => {
            return ids.iter().try_fold(0, |done, id| Ok(done + reinject(session, &[*id], name, why, common)?));
        }
        Err(StoreError::Value(refused)) => {
            let became = Became::Rejected(format!("{}: {refused}", Reason::NotStorable.label()));
            ids.iter().map(|id| Verdict { id: *id, became: became.clone() }).collect()
        }
        other => other?,
    };
    for id in ids.iter().filter(|id| !verdicts.iter().any(|verdict| verdict.id == **id)) {
        complain(&format!("{id}: has been resolved or erased meanwhile; nothing was done"));
    }
    Ok(verdicts.iter().filter(|verdict| told(verdict, common)).count())
}

fn told(verdict: &Verdict, common: &Common) -> bool {
    let (id, would) = (verdict.id, if common.dry_run { "would become" } else { "is now" });
    match &verdict.became {
        Became::Transaction(name) => say(&format!("{id}: {would} transaction {}, due now", visible(name))),
        Became::Repeat(name) => say(&format!("{id}: the same bytes are stored as {}; closed", visible(name))),
        Became::Conflict(name) => complain(&format!("{id}: stays: other bytes are stored as {}", visible(name))),
        Became::Rejected(why) => complain(&format!("{id}: stays: {why}")),
    }
    matches!(verdict.became, Became::Transaction(_) | Became::Repeat(_))
}

fn close(session: &mut Session, ids: &[i64], reason: &str, common: &Common) -> Result<usize, StoreError> {
    if common.dry_run {
        ids.iter().for_each(|id| say(&format!("{id}: would be resolved")));
        return Ok(ids.len());
    }
    let done = session.resolve_rejected(ids, &who(), reason, &trace())?;
    done.iter().for_each(|id| say(&format!("{id}: resolved")));
    Ok(done.len())
}

struct Work<'a> {
    verb: &'a str,
    common: &'a Common,
    which: &'a Which,
}

impl Work<'_> {
    /// Does `act` to batch after batch, after asking where there are several.
    fn carry_out(
        &self,
        config: &Config,
        session: &mut Session,
        act: impl Fn(&mut Session, &[i64]) -> Result<usize, StoreError>,
    ) -> Result<Exit, StoreError> {
        if self.which.all { self.described(config, session, act) } else { self.named(session, act) }
    }

    fn named(
        &self,
        session: &mut Session,
        act: impl Fn(&mut Session, &[i64]) -> Result<usize, StoreError>,
    ) -> Result<Exit, StoreError> {
        let mut wanted = self.which.numbers.clone();
        wanted.sort_unstable();
        wanted.dedup();
        let found = session.find_rejected(&wanted)?;
        for id in &wanted {
            match found.iter().find(|found| found.0 == *id) {
                None => complain(&format!("{id}: there is no such rejected record")),
                Some((_, true)) => complain(&format!("{id}: resolved already")),
                Some(_) => {}
            }
        }
        let open: Vec<i64> = found.iter().filter(|found| !found.1).map(|found| found.0).collect();
        if open.len() > 1
            && !self.common.dry_run
            && !confirmed(&format!("{} {} rejected records?", self.verb, open.len()), self.common)
        {
            return Ok(Exit::Failed);
        }
        let mut done = 0;
        for batch in open.chunks(BATCH) {
            done += act(session, batch)?;
        }
        Ok(if done == wanted.len() { Exit::Done } else { Exit::Failed })
    }

    fn described(
        &self,
        config: &Config,
        session: &mut Session,
        act: impl Fn(&mut Session, &[i64]) -> Result<usize, StoreError>,
    ) -> Result<Exit, StoreError> {
        let filter = self.which.filter();
        let found = session.rejected_summary(&filter)?;
        let limit = self.which.limit.map_or(i64::MAX, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        let count = found.count.min(limit);
        if count == 0 {
            say("no rejected record fits, or all are resolved");
            return Ok(Exit::Done);
        }
        complain(&described("rejected records, read", count, (found.oldest, found.newest), session)?);
        let question = format!("{} {count} rejected records of {}?", self.verb, config.name);
        if count > 1 && !self.common.dry_run && !confirmed(&question, self.common) {
            return Ok(Exit::Failed);
        }
        let (mut after, mut seen, mut done) = (i64::MIN, 0, 0);
        while seen < count {
            let ids = session.rejected_batch(&filter, after, BATCH.min(usize::try_from(count - seen).unwrap_or(BATCH)))?;
            let Some(last) = ids.last() else { break };
            after = *last;
            seen += ids.len() as i64;
            done += act(session, &ids)?;
            if count > BATCH as i64 {
                complain(&format!("{seen} of {count}"));
            }
        }
        Ok(if done as i64 == seen { Exit::Done } else { Exit::Failed })
    }
}
