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
    let logging = match logging::start(config.log) {
        Ok(logging) => logging,
        Err(error) => {
            complain(&format!("txrelay: failed to start the log: {error}"));
            return Exit::Failed;
        }
    };
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    let exit = match daemon::run(config) {
        Ok(()) => Exit::Done,
        Err(error) => {
            // Not to stderr: nobody may read it, and the end of the process must not wait for that.
            log::error!("txrelay has failed: {error:#}");
            error
                .downcast_ref::<ExitWith>()
                .map_or(Exit::Failed, |exit| if exit.status == 78 { Exit::Config } else { Exit::Failed })
        }
    };
    logging.flush();
    exit
}
