//! `migrate`: the schema.

use std::path::Path;

use super::{Exit, complain, load};

/// Brings the schema up to date, or prints what would.
pub(super) fn migrate(file: &Path, sets: &[String], _print_sql: bool) -> Exit {
    match load(file, sets) {
        Ok(_config) => {
            complain("migrate: not built yet");
            Exit::Failed
        }
        Err(exit) => exit,
    }
}
