//! `reconcile`: every offset below the positions, held against what PostgreSQL accounts for and what Kafka's logs hold.
//!
//! PostgreSQL is read as of one moment, in the same steps as upkeep's audit; Kafka without joining the group, and after it.

mod log;
mod show;

use std::collections::HashMap;
use std::path::Path;

use super::{Exit, complain, connect, load_to_ask_kafka, say, store_failed};
use crate::config::Config;
use crate::core::audit::{Audit, LifeId, Outcome, Problem};
use crate::core::ledger::Imbalances;
use crate::core::offsets::Offsets;
use crate::store::{Finding, Moment, RejectedFilter, RejectedRow, SchemaState, Session, StoreError, Stored, schema_state};

/// Up to so many offsets everything is looked at without being asked: seconds.
const FEW: i64 = 1_000_000;
/// Transactions that one step reads.
const ROWS: i64 = 20_000;
/// What upkeep has audited last is read again, so many transactions: some may have been committed late.
const BACK: i64 = 100_000;
/// So many conflicts, and so many of upkeep's findings, are named; all are counted.
const NAMED: i64 = 1000;

#[derive(Debug, clap::Args)]
pub(super) struct ReconcileArgs {
    /// Only this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Everything from where reading began, however long it takes; and prove every skipped offset
    ///
    /// Without it a large pipeline is looked at from where upkeep's audit stands. Up to a million offsets it is always everything.
    #[arg(long)]
    full: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// All that was found.
struct Report {
    /// Whether everything was looked at.
    whole: bool,
    audit: Audit,
    moment: Moment,
    problems: Vec<Problem>,
    /// What upkeep has found, and this look has not.
    findings: Vec<Finding>,
    /// How far the ledger's equations are off, by the counters and rows of the same moment; of all topics.
    imbalances: Imbalances,
    /// Transactions that problems name.
    named: HashMap<i64, Stored>,
    reasons: Vec<(LifeId, String, i64)>,
    conflicts: Vec<RejectedRow>,
    /// Kafka's side, or why there is none.
    log: Result<log::Logs, String>,
}

/// Exit status 0 only if nothing is wrong; 69 where Kafka could not be asked, and the rest is right.
pub(super) fn reconcile(file: &Path, sets: &[String], args: &ReconcileArgs) -> Exit {
    let config = match load_to_ask_kafka(file, sets) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let found = connect(&config, "reconcile").and_then(|mut session| look(&config, &mut session, args));
    let report = match found {
        Ok(report) => report,
        Err(error) => return store_failed(&error),
    };
    if report.moment.lives.is_empty()
        && let Some(topic) = &args.topic
        && !config.kafka.topics.contains(topic)
    {
        complain(&format!("txrelay: nothing was ever read from a topic {topic}"));
        return Exit::Usage;
    }
    let text = if args.json { show::in_json(&config.name, &report) } else { show::on_a_screen(&config.name, &report) };
    say(text.trim_end());
    match &report.log {
        _ if report.n_problems() > 0 => Exit::Failed,
        Ok(logs) if logs.failures.is_empty() => Exit::Done,
        _ => Exit::Unreachable,
    }
}

impl Report {
    fn n_problems(&self) -> usize {
        let logs = self.log.as_ref().map_or(0, |logs| logs.problems.len());
        self.problems.len() + self.findings.len() + self.equations_off().count() + logs
    }

    /// `None`: nothing was found wrong, and Kafka's side is not known.
    fn is_well(&self) -> Option<bool> {
        let is_asked = self.log.as_ref().is_ok_and(|logs| logs.failures.is_empty());
        (is_asked || self.n_problems() > 0).then(|| self.n_problems() == 0)
    }

    /// What was found of each life that was asked for.
    fn outcomes(&self) -> Vec<Outcome<'_>> {
        let mut outcomes = self.audit.results();
        outcomes.retain(|outcome| self.moment.lives.iter().any(|life| life.id == outcome.life.id));
        outcomes
    }

    /// The ledger's equations that do not hold, and by how much.
    fn equations_off(&self) -> impl Iterator<Item = (&'static str, i64)> {
        self.imbalances.labelled().into_iter().filter(|(_, off)| *off != 0)
    }
}

fn look(config: &Config, session: &mut Session, args: &ReconcileArgs) -> Result<Report, StoreError> {
    if schema_state(session)? != SchemaState::Ready {
        let schema = &config.postgres.schema;
        return Err(StoreError::Other(format!("schema {schema} is not there or not up to date: run `txrelay migrate`")));
    }
    let topic = args.topic.as_deref();
    session.pin_ranges()?;
    session.begin_snapshot()?;
    // Also with one topic: rows are read by their ids, whosever they are.
    let mut moment = session.moment(None)?;
    let n: i64 = moment.lives.iter().map(|life| life.position - life.first - life.purged.offsets).sum();
    let whole = args.full || n <= FEW;
    let audit = if whole { Audit::whole() } else { Audit::from(session.audit_back(moment.audited_id, BACK)?, moment.audited_id) };
    let (audit, mut problems) = in_steps(session, audit.by_place(), &moment)?;
    problems.retain(|problem| problem.place().is_none_or(|(life, _)| is_wanted(life, topic)));
    moment.keep(|life| is_wanted(life, topic));
    let ids: Vec<i64> = problems.iter().filter_map(Problem::tx_id).collect();
    let named = session.named(&ids)?;
    let reasons = session.rejected_by_reason(topic)?;
    let filter = RejectedFilter { reason: Some("conflict".to_owned()), topic: args.topic.clone(), closed: true };
    let conflicts = session.rejected(&filter, 0, NAMED)?;
    let findings = session.findings(NAMED)?;
    // Not what the audit found: this look finds that itself.
    let imbalances = session.gauges()?.ledger().imbalances();
    session.end_snapshot()?;
    let findings =
        findings.into_iter().filter(|finding| concerns(finding, topic) && !is_known(finding, &problems, whole)).collect();
    // Kafka's logs are held against the positions of now: the audit may have taken hours.
    let now = session.moment(topic)?;
    let log = log::ask(config, &audit, &now, topic, args.full);
    Ok(Report { whole, audit, moment, problems, findings, imbalances, named, reasons, conflicts, log })
}

/// In a snapshot nothing is late, and no second look is needed.
fn in_steps(session: &mut Session, mut audit: Audit, moment: &Moment) -> Result<(Audit, Vec<Problem>), StoreError> {
    let mut problems = Vec::new();
    audit.learn(&moment.lives);
    while !audit.is_finished() {
        problems.extend(session.audit_step(&mut audit, i64::MAX, ROWS)?);
    }
    problems.extend(audit.missing());
    if audit.is_whole() {
        let purged = moment.lives.iter().map(|life| (life.id.clone(), life.purged.offsets)).collect();
        problems.extend(audit.purged(&purged));
    }
    problems.extend(session.audit_outside(&audit)?);
    Ok((audit, problems))
}

fn is_wanted(life: &LifeId, topic: Option<&str>) -> bool {
    topic.is_none_or(|topic| &*life.topic == topic)
}

/// What is said about transactions concerns every topic: which one it is of is not always known.
fn concerns(finding: &Finding, topic: Option<&str>) -> bool {
    finding.life.as_ref().is_none_or(|life| is_wanted(life, topic))
}

/// Whether this look has seen the same. A look at everything has seen all that is still so.
fn is_known(finding: &Finding, problems: &[Problem], whole: bool) -> bool {
    whole
        || problems.iter().any(|problem| match (&finding.life, &finding.offsets, problem.place()) {
            (Some(life), Some(offsets), Some((its_life, its_offsets))) => {
                life == its_life && its_offsets.start <= offsets.start && offsets.end <= its_offsets.end
            }
            _ => finding.tx_id.is_some() && finding.tx_id == problem.tx_id(),
        })
}

/// A range of offsets, for people.
fn words(offsets: &Offsets) -> String {
    if offsets.end - offsets.start == 1 { offsets.start.to_string() } else { format!("{}-{}", offsets.start, offsets.end - 1) }
}
