//! `check-config --connect`: whether Kafka, PostgreSQL and the service are there and as the file says. Joins no group, commits
//! and writes nothing, and sends nothing to the service.

use std::time::{Duration, Instant};

use super::{Exit, complain, connect, say};
use crate::config::Config;
use crate::core::identify::identify;
use crate::source::preflight;
use crate::source::{self, SourceError};
use crate::store::{Role, SchemaState, StoreError, ensure_own_session, may_migrate, missing_privileges, schema_state};

/// For each question to a broker.
const QUESTION: Duration = Duration::from_secs(5);
/// For reading the newest records of all topics.
const READING: Duration = Duration::from_secs(30);
/// Records that are looked at, of each topic.
const NEWEST: usize = 10;

/// Everything is looked at, whatever is found before.
pub(super) fn check(config: &Config) -> Exit {
    let exits = [kafka(config), postgres(config), service(config)];
    // What a person has to change goes before what may come back by itself.
    let first = [Exit::Config, Exit::Failed, Exit::NotPermitted, Exit::Unreachable];
    first.into_iter().find(|exit| exits.contains(exit)).unwrap_or(Exit::Done)
}

fn line(name: &str, text: &str) {
    say(&format!("  {name:<11} {text}"));
}

fn problem(name: &str, text: &str) {
    complain(&format!("txrelay: {name}: {text}"));
}

fn kafka(config: &Config) -> Exit {
    let found = match preflight::check(&config.kafka, QUESTION) {
        Ok(found) => found,
        Err(problems) => {
            problems.iter().for_each(|found| problem("Kafka", &found.to_string()));
            let away = problems.iter().all(|found| found.finding.is_absence());
            return if away { Exit::Unreachable } else { Exit::Failed };
        }
    };
    if !found.is_empty() {
        found.iter().for_each(|found| problem("Kafka", &found.to_string()));
        return if found.iter().all(|found| found.finding.is_denial()) { Exit::NotPermitted } else { Exit::Failed };
    }
    line("Kafka", &format!("answers, and has {}", config.kafka.topics.join(", ")));
    match source::newest(&config.kafka, NEWEST, Instant::now() + READING) {
        Ok(topics) => topics.iter().map(|(topic, records)| ids(config, topic, records)).max().unwrap_or(Exit::Done),
        Err(error) => {
            problem("Kafka", &format!("the newest records cannot be read: {error}"));
            if matches!(error, SourceError::Request(_)) { Exit::Unreachable } else { Exit::Failed }
        }
    }
}

/// How many of a topic's newest records give an id. None of them is the wrong `transaction.id`; some may be meant to be none.
fn ids(config: &Config, topic: &str, records: &[crate::core::record::Record]) -> Exit {
    if records.is_empty() {
        line("", &format!("{topic}: holds no records yet"));
        return Exit::Done;
    }
    let mut reasons: Vec<&str> = Vec::new();
    for record in records {
        if let Err(reject) = identify(&config.transaction_id, record, config.kafka.record_max) {
            reasons.push(reject.reason.label());
        }
    }
    let n = records.len();
    let good = n - reasons.len();
    reasons.sort_unstable();
    reasons.dedup();
    let why = if reasons.is_empty() { String::new() } else { format!("; the others: {}", reasons.join(", ")) };
    line("", &format!("{topic}: {good} of the newest {n} records give an id{why}"));
    if good == 0 {
        problem("Kafka", &format!("no record of {topic} gives an id: is transaction.id right?"));
        return Exit::Failed;
    }
    Exit::Done
}

fn postgres(config: &Config) -> Exit {
    match postgres_stands(config) {
        Ok(exit) => exit,
        Err(error) => {
            problem("PostgreSQL", &error.to_string());
            match error {
                StoreError::Connection(_) => Exit::Unreachable,
                StoreError::Unusable(_) => Exit::Config,
                StoreError::NotPermitted(_) => Exit::NotPermitted,
                _ => Exit::Failed,
            }
        }
    }
}

fn postgres_stands(config: &Config) -> Result<Exit, StoreError> {
    let (postgres, schema) = (&config.postgres, &config.postgres.schema);
    let mut session = connect(config, "check")?;
    ensure_own_session(&mut session, postgres, &Role { pipeline: config.name.clone(), role: "check" })?;
    match schema_state(&mut session)? {
        SchemaState::Ready => {}
        SchemaState::TooNew { have } => {
            problem(
                "PostgreSQL",
                &format!("schema {schema} is of version {have}, which this release cannot use: install a newer one"),
            );
            return Ok(Exit::Config);
        }
        SchemaState::Behind { have, need } => {
            let what =
                if have == 0 { "does not exist yet".to_owned() } else { format!("is of version {have}, and {need} is needed") };
            if !postgres.migrate {
                problem(
                    "PostgreSQL",
                    &format!("schema {schema} {what}, and postgres.migrate is false: `txrelay migrate` does it"),
                );
                return Ok(Exit::Failed);
            }
            if !may_migrate(&mut session, schema)? {
                problem(
                    "PostgreSQL",
                    &format!(
                        "schema {schema} {what}, and this user may not make it: see `txrelay migrate --print-sql`, or grant CREATE"
                    ),
                );
                return Ok(Exit::NotPermitted);
            }
            line("PostgreSQL", &format!("{}: schema {schema} {what}; `run` makes it", postgres.place()));
            return Ok(Exit::Done);
        }
    }
    let missing = missing_privileges(&mut session, schema)?;
    if !missing.is_empty() {
        problem("PostgreSQL", &format!("this user lacks {}: run `txrelay migrate` as the schema's owner", missing.join(", ")));
        return Ok(Exit::NotPermitted);
    }
    line("PostgreSQL", &format!("{}: schema {schema} can be used", postgres.place()));
    Ok(Exit::Done)
}

fn service(config: &Config) -> Exit {
    match crate::downstream::probe(&config.downstream) {
        Ok(place) => {
            line("service", &format!("{place} takes connections; nothing was sent"));
            Exit::Done
        }
        Err(why) => {
            problem("service", &why);
            Exit::Unreachable
        }
    }
}
