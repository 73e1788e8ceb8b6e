//! Signals as messages.

use anyhow::Context;
use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// TERM or INT: stop; a second one at once.
    Stop,
    /// HUP: reload.
    Reload,
    /// USR1: write the state to the log.
    Dump,
}

/// Installs the handlers and returns what they bring. Its thread lives as long as the process.
pub fn listen() -> anyhow::Result<Receiver<Asked>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context("failed to install signal handlers")?;
    // Nobody sends signals faster than main takes them; one more than a second TERM.
    let (asked, asks) = bounded(4);
    let run = move || {
        for signal in signals.forever() {
            let what = match signal {
                SIGHUP => Asked::Reload,
                SIGUSR1 => Asked::Dump,
                _ => Asked::Stop,
            };
            if asked.send(what).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(run).context("failed to start the signal thread")?;
    Ok(asks)
}
