//! Which privileges the role in use lacks: asked of PostgreSQL, and held against what `sql/grants/daemon.sql` grants, so that
//! there is one list.

use super::session::quote;
use super::{Session, StoreError};

const GRANTS: &str = include_str!("../../sql/grants/daemon.sql");

/// One privilege on one object of the schema.
#[derive(Debug, PartialEq, Eq)]
struct Needed<'a> {
    privilege: &'a str,
    kind: Kind,
    /// Empty for the schema itself.
    object: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Schema,
    Sequence,
    Table,
}

/// Out of `grant a, b on [kind] {schema}.x, {schema}.y to {role};`
fn needed(grants: &str) -> Vec<Needed<'_>> {
    let mut needed = Vec::new();
    let without_comments = grants.split(';').map(|statement| {
        let begin = statement.find("grant ").unwrap_or(statement.len());
        &statement[begin..]
    });
    for statement in without_comments {
        let Some((privileges, rest)) = statement.strip_prefix("grant ").and_then(|s| s.split_once(" on ")) else { continue };
        let Some((objects, _)) = rest.split_once(" to {role}") else { continue };
        let (kind, objects) = match objects.split_once(' ') {
            Some(("schema", objects)) => (Kind::Schema, objects),
            Some(("sequence", objects)) => (Kind::Sequence, objects),
            _ => (Kind::Table, objects),
        };
        for object in objects.split(',').map(|object| object.trim().trim_start_matches("{schema}").trim_start_matches('.')) {
            for privilege in privileges.split(',').map(str::trim) {
                needed.push(Needed { privilege, kind, object });
            }
        }
    }
    needed
}

/// What the daemon needs and this session's role does not have, such as `insert on tx`.
pub fn missing_privileges(session: &mut Session, schema: &str) -> Result<Vec<String>, StoreError> {
    let mut missing = Vec::new();
    for Needed { privilege, kind, object } in needed(GRANTS) {
        let name = if object.is_empty() { schema.to_owned() } else { format!("{}.{}", quote(schema), quote(object)) };
        let question = match kind {
            Kind::Schema => "select has_schema_privilege($1, $2)",
            Kind::Sequence => "select has_sequence_privilege($1, $2)",
            Kind::Table => "select has_table_privilege($1, $2)",
        };
        if !session.client.query_one(question, &[&name, &privilege])?.get::<_, bool>(0) {
            let what = if object.is_empty() { format!("schema {schema}") } else { object.to_owned() };
            missing.push(format!("{privilege} on {what}"));
        }
    }
    Ok(missing)
}

/// Whether this session's role may make, or change, the schema.
pub fn may_migrate(session: &mut Session, schema: &str) -> Result<bool, StoreError> {
    let may = "select case when to_regnamespace(quote_ident($1)) is null then has_database_privilege(current_database(), 'create') \
               else has_schema_privilege($1, 'create') end";
    Ok(session.client.query_one(may, &[&schema])?.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grant_to_the_daemon_is_asked_for() {
        let all = needed(GRANTS);
        assert!(all.contains(&Needed { privilege: "usage", kind: Kind::Schema, object: "" }));
        assert!(all.contains(&Needed { privilege: "usage", kind: Kind::Sequence, object: "batch_seq" }));
        for (privilege, object) in
            [("insert", "audit_log"), ("delete", "delivery"), ("update", "consumer_position"), ("insert", "tx")]
        {
            assert!(all.contains(&Needed { privilege, kind: Kind::Table, object }), "{privilege} on {object}");
        }
        let statements = GRANTS.matches("\ngrant ").count();
        assert!(statements >= 8 && all.len() > statements, "{statements} statements, {} privileges", all.len());
        assert!(all.iter().all(|n| n.object.chars().all(|c| c.is_ascii_lowercase() || c == '_')), "{all:?}");
    }
}
