//! Bringing the schema up to date: numbered, forward only, under an advisory lock keyed by the schema.
//!
//! Each migration states `compatible_from`: the oldest schema version whose release can run on the new schema, so that a
//! rolling upgrade or a rollback by one release works and only an older one is refused.

use postgres::Client;

use super::session::quote;
use super::{Session, StoreError};

struct Migration {
    version: i32,
    name: &'static str,
    text: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "initial", text: include_str!("../../sql/migrations/0001_initial.sql") },
    Migration { version: 2, name: "retention", text: include_str!("../../sql/migrations/0002_retention.sql") },
    Migration { version: 3, name: "accounting", text: include_str!("../../sql/migrations/0003_accounting.sql") },
    Migration { version: 4, name: "gentle vacuum", text: include_str!("../../sql/migrations/0004_gentle_vacuum.sql") },
];

const MIGRATION_TABLE: &str = "create table if not exists migration (version int primary key, name text not null, \
     compatible_from int not null, applied_at timestamptz not null default now())";

impl Migration {
    /// From the first line: `-- compatible_from: N`.
    fn compatible_from(&self) -> i32 {
        let line = self.text.lines().next().unwrap_or_default();
        line.strip_prefix("-- compatible_from: ")
            .and_then(|n| n.trim().parse().ok())
            .expect("each migration states compatible_from")
    }
}

/// The newest version that this build knows, and so needs.
fn newest() -> i32 {
    MIGRATIONS.last().expect("there is at least one migration").version
}

/// How the schema stands to this build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaState {
    /// Can be used.
    Ready,
    /// Has to be migrated first; `have` is 0 where there is nothing yet.
    Behind {
        /// Version found.
        have: i32,
        /// Version needed.
        need: i32,
    },
    /// Was migrated by a release that this one cannot run beside.
    TooNew {
        /// Version found.
        have: i32,
    },
}

/// Looks, without changing anything.
pub fn schema_state(session: &mut Session) -> Result<SchemaState, StoreError> {
    let found = session.client.query_one("select to_regclass('migration') is not null", &[])?;
    if !found.get::<_, bool>(0) {
        return Ok(SchemaState::Behind { have: 0, need: newest() });
    }
    let row =
        session.client.query_one("select coalesce(max(version), 0), coalesce(max(compatible_from), 0) from migration", &[])?;
    let (have, compatible_from): (i32, i32) = (row.get(0), row.get(1));
    Ok(match have {
        _ if compatible_from > newest() => SchemaState::TooNew { have },
        _ if have < newest() => SchemaState::Behind { have, need: newest() },
        _ => SchemaState::Ready,
    })
}

/// Applies what is missing and returns the names of what was applied. Several processes may call it at once: one works, the
/// others wait and find nothing to do.
pub fn migrate(session: &mut Session, schema: &str) -> Result<Vec<String>, StoreError> {
    let client = &mut session.client;
    // A migration may rewrite a table; nothing else runs on this session.
    client.batch_execute("set statement_timeout = 0; set lock_timeout = '60s'; set enable_seqscan = on")?;
    let key = format!("txrelay migrate {schema}");
    client.execute("select pg_advisory_lock(hashtextextended($1, 0))", &[&key])?;
    let applied = apply(client, schema);
    // Also after a failure; a lost connection has given the lock up by itself.
    let _ = client.execute("select pg_advisory_unlock(hashtextextended($1, 0))", &[&key]);
    applied
}

fn apply(client: &mut Client, schema: &str) -> Result<Vec<String>, StoreError> {
    let exists = client.query_opt("select from pg_namespace where nspname = $1", &[&schema])?.is_some();
    if !exists {
        client.batch_execute(&format!("create schema {}", quote(schema)))?;
    }
    client.batch_execute(MIGRATION_TABLE)?;
    let have: i32 = client.query_one("select coalesce(max(version), 0) from migration", &[])?.get(0);
    let mut applied = Vec::new();
    for migration in MIGRATIONS.iter().filter(|m| m.version > have) {
        let mut transaction = client.transaction()?;
        transaction.batch_execute(migration.text)?;
        transaction.execute(
            "insert into migration (version, name, compatible_from) values ($1, $2, $3)",
            &[&migration.version, &migration.name, &migration.compatible_from()],
        )?;
        transaction.commit()?;
        applied.push(format!("{:04} {}", migration.version, migration.name));
    }
    Ok(applied)
}

const GRANTS_DAEMON: &str = include_str!("../../sql/grants/daemon.sql");
const GRANTS_READER: &str = include_str!("../../sql/grants/reader.sql");
const GRANTS_ERASER: &str = include_str!("../../sql/grants/eraser.sql");

/// The role whose members may read. A DBA makes it (`migrate --print-sql`) and puts them in.
pub fn reader_role(schema: &str) -> String {
    format!("{schema}_reader")
}

/// The role whose members may erase contents, which neither the daemon nor an operator with its rights can.
pub fn eraser_role(schema: &str) -> String {
    format!("{schema}_eraser")
}

fn grants(text: &str, schema: &str, role: &str) -> String {
    text.replace("{schema}", &quote(schema)).replace("{role}", &quote(role))
}

/// Grants what the daemon's role and readers need, where those roles exist and are not the owner itself. Returns whom it was
/// granted to.
pub fn grant(session: &mut Session, schema: &str, daemon: Option<&str>) -> Result<Vec<String>, StoreError> {
    let (reader, eraser) = (reader_role(schema), eraser_role(schema));
    let mut granted = Vec::new();
    for (text, role) in [(GRANTS_DAEMON, daemon), (GRANTS_READER, Some(reader.as_str())), (GRANTS_ERASER, Some(eraser.as_str()))]
    {
        let Some(role) = role else { continue };
        let other = "select from pg_roles where rolname = $1 and rolname <> current_user";
        if session.client.query_opt(other, &[&role])?.is_some() {
            session.client.batch_execute(&grants(text, schema, role))?;
            granted.push(role.to_owned());
        }
    }
    Ok(granted)
}

/// Everything that a DBA needs on an empty database, as one script for psql: the roles, the schema, the grants. Whoever runs
/// it owns the schema; `daemon` is the user of `postgres.url`.
pub fn print_sql(schema: &str, daemon: &str) -> String {
    let (reader, eraser) = (reader_role(schema), eraser_role(schema));
    let mut script = String::from("begin;\n");
    for (role, login) in [(daemon, "login"), (reader.as_str(), "nologin"), (eraser.as_str(), "nologin")] {
        let make = format!("create role {} {login}", quote(role));
        script.push_str(&format!("do $$ begin {make}; exception when duplicate_object then null; end $$;\n"));
    }
    script.push_str(&format!(
        "create schema if not exists {0};\nset local search_path = {0};\n{MIGRATION_TABLE};\n",
        quote(schema)
    ));
    for migration in MIGRATIONS {
        script.push_str(migration.text);
        script.push_str(&format!(
            "\ninsert into migration (version, name, compatible_from) values ({}, '{}', {});\n",
            migration.version,
            migration.name,
            migration.compatible_from()
        ));
    }
    script.push_str(&grants(GRANTS_DAEMON, schema, daemon));
    script.push_str(&grants(GRANTS_READER, schema, &reader));
    script.push_str(&grants(GRANTS_ERASER, schema, &eraser));
    script.push_str("commit;\n");
    script
}
