//! `run`: the daemon, in the foreground.

use std::path::Path;

use super::{Exit, complain, load};
use crate::ops::logging;

/// Loads the configuration, sets the log up and runs until told to stop.
pub(super) fn run(file: &Path, sets: &[String]) -> Exit {
    let config = match load(file, sets) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    logging::init(config.log);
    complain("run: not built yet");
    Exit::Failed
}
