//! `status`: how the pipeline stands.

use std::path::Path;

use super::{Exit, complain, load};

/// One screen, or one JSON object.
pub(super) fn status(file: &Path, sets: &[String], _json: bool) -> Exit {
    match load(file, sets) {
        Ok(_config) => {
            complain("status: not built yet");
            Exit::Failed
        }
        Err(exit) => exit,
    }
}
