//! `pause` and `resume`: delivering as a whole. Reading from Kafka goes on.

use std::path::Path;
use std::time::Duration;

use super::act::{run, trace, who};
use super::{Exit, say};
use crate::config::value::parse_duration;
use crate::core::times::absolute;

#[derive(Debug, clap::Args)]
pub(super) struct PauseArgs {
    /// For so long: 30m, 2h; it then ends by itself. Without it, until `txrelay resume`
    #[arg(long = "for", value_name = "D", value_parser = duration)]
    time: Option<Duration>,
    /// Why; shown by status and explain
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub(super) fn pause(file: &Path, sets: &[String], args: &PauseArgs) -> Exit {
    run(file, sets, "pause", |config, session| {
        let reason = args.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
        let paused = session.pause(args.time, &who(), reason, &trace())?;
        let until = match paused.until {
            Some(until) => format!("until {}", absolute(until)),
            None => "until `txrelay resume`".to_owned(),
        };
        say(&format!("{}: delivering is paused {until}; requests in flight end, reading from Kafka goes on", config.name));
        Ok(Exit::Done)
    })
}

pub(super) fn resume(file: &Path, sets: &[String]) -> Exit {
    run(file, sets, "resume", |config, session| {
        let was = session.resume(&trace())?;
        say(&format!("{}: {}", config.name, if was { "delivering goes on" } else { "delivering was not paused" }));
        Ok(Exit::Done)
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let longest = Duration::from_secs(365 * 86_400);
    let wrong = || "a time is 30m, 2h or 3d, at most a year".to_owned();
    parse_duration(text).filter(|time| !time.is_zero() && *time <= longest).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_has_a_length_that_makes_sense() {
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "0s", "2", "366d", "-1h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
