//! `migrate`: the schema.

use std::path::Path;

use super::{Exit, complain, load_to_connect, login, say, store_failed};
use crate::config::Config;
use crate::store::{self, Role, Session, StoreError};

/// Brings the schema up to date, or prints what would.
pub(super) fn migrate(file: &Path, sets: &[String], print_sql: bool) -> Exit {
    let config = match load_to_connect(file, sets) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let schema = &config.postgres.schema;
    if print_sql {
        say(&store::print_sql(schema, config.postgres.client.get_user().unwrap_or("txrelay")));
        return Exit::Done;
    }
    match apply(&config) {
        Ok((applied, granted)) => {
            let what = if applied.is_empty() { "is up to date".to_owned() } else { format!("applied {}", applied.join(", ")) };
            let whom = if granted.is_empty() { String::new() } else { format!("; granted to {}", granted.join(", ")) };
            complain(&format!("schema {schema}: {what}{whom}"));
            Exit::Done
        }
        Err(error) => store_failed(&error),
    }
}

/// What was applied, and to whom rights were granted: the daemon's role (the file's user) when another one, the owner, does
/// this, and the readers'.
fn apply(config: &Config) -> Result<(Vec<String>, Vec<String>), StoreError> {
    let postgres = login::as_environment_says(&config.postgres).map_err(StoreError::NotPermitted)?;
    let role = Role { pipeline: config.name.clone(), role: "migrate" };
    let mut session = Session::connect_patiently(&postgres, &role)?;
    store::ensure_own_session(&mut session, &postgres, &role)?;
    store::ensure_server(&mut session)?;
    let applied = store::migrate(&mut session, &postgres.schema)?;
    store::ensure_pipeline(&mut session, &config.name)?;
    let granted = store::grant(&mut session, &postgres.schema, config.postgres.client.get_user())?;
    Ok((applied, granted))
}
