//! The one way to start a thread: named, its result reported, joined.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use super::pulse::Pulses;

/// How a thread ended.
#[derive(Debug)]
pub struct Exit {
    /// Its name.
    pub thread: String,
    /// What it returned; a panic is an error.
    pub result: anyhow::Result<()>,
}

/// Starts `work` on a thread called `name` (15 bytes at most, so that `top -H` shows it whole). However it ends, `exits`
/// hears of it: a dead thread is a dead process. Until then `pulses` knows what it does.
pub fn spawn(
    name: impl Into<String>,
    exits: &Sender<Exit>,
    pulses: &Pulses,
    work: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    let (name, exits, pulses) = (name.into(), exits.clone(), pulses.clone());
    debug_assert!(name.len() <= 15, "{name} is too long for a thread's name");
    let thread = name.clone();
    let run = move || {
        pulses.watch(&thread);
        let result =
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", words(&*panic))));
        // The receiver outlives every thread but for the last moments of a forced exit.
        let _ = exits.send(Exit { thread, result });
    };
    // 512 KiB: TLS handshakes and JSON need some of it; the default of 2 MiB would be 64 MiB of address space for 32 workers.
    Ok(std::thread::Builder::new().name(name).stack_size(512 << 10).spawn(run)?)
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_thread_is_reported_with_its_name_and_words() {
        let (exits, ended) = crossbeam_channel::bounded(1);
        let handle = spawn("doomed", &exits, &Pulses::default(), || panic!("the reason")).expect("spawns");
        let exit = ended.recv().expect("reported");
        handle.join().expect("caught");
        assert_eq!(exit.thread, "doomed");
        assert_eq!(exit.result.expect_err("a panic is an error").to_string(), "panicked: the reason");
    }
}
