//! `migrate`: the schema.

use std::path::Path;

use super::{Exit, complain, connect, load, say, store_failed};
use crate::store;

/// Brings the schema up to date, or prints what would.
pub(super) fn migrate(file: &Path, sets: &[String], print_sql: bool) -> Exit {
    let config = match load(file, sets) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    if print_sql {
        say(&store::print_sql(&config.postgres.schema));
        return Exit::Done;
    }
    let applied = connect(&config, "migrate").and_then(|mut session| {
        let applied = store::migrate(&mut session, &config.postgres.schema)?;
        store::ensure_pipeline(&mut session, &config.name)?;
        Ok(applied)
    });
    match applied {
        Ok(applied) if applied.is_empty() => complain(&format!("schema {} is up to date", config.postgres.schema)),
        Ok(applied) => complain(&format!("schema {}: applied {}", config.postgres.schema, applied.join(", "))),
        Err(error) => return store_failed(&error),
    }
    Exit::Done
}
