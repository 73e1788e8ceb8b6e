//! `run`: the daemon, in the foreground.

use std::path::Path;

use super::{Exit, complain, load};
use crate::daemon;
use crate::ops::logging;
use crate::ops::stop::ExitWith;

/// Loads the configuration, sets the log up and runs until told to stop.
pub(super) fn run(file: &Path, sets: &[String]) -> Exit {
    let config = match load(file, sets) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    logging::init(config.log);
    match daemon::run(config) {
        Ok(()) => Exit::Done,
        Err(error) => {
            // Already in the log where a thread failed; what failed before any thread ran is said here.
            complain(&format!("txrelay: {error:#}"));
            error
                .downcast_ref::<ExitWith>()
                .map_or(Exit::Failed, |exit| if exit.status == 78 { Exit::Config } else { Exit::Failed })
        }
    }
}
