//! Looks at a daemon all the while: what an operator and their dashboard would have seen of a fault.

use std::collections::BTreeSet;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use super::resources::Resources;
use super::{Relay, http};

/// Some twenty looks a second, from a thread of its own.
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<Seen>,
}

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    pub looks: usize,
    /// Looks that /metrics or /readyz did not answer.
    pub unanswered: usize,
    /// Reasons of `stalled` that were 1 at some time.
    pub stalled: BTreeSet<String>,
    /// Lines of /readyz.
    pub words: BTreeSet<String>,
    pub most: Resources,
}

impl Watch {
    /// Of the process that runs now.
    pub fn start(relay: &Relay) -> Self {
        let (address, pid) = (relay.address().to_owned(), relay.pid());
        let (stop, stopped) = bounded(0);
        let most = relay.resources();
        let mut seen = Seen { looks: 0, unanswered: 0, stalled: BTreeSet::new(), words: BTreeSet::new(), most };
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(50)).is_err_and(|error| error.is_timeout()) {
                seen.look(&address, pid);
            }
            seen
        });
        Self { stop, thread }
    }

    #[track_caller]
    pub fn finish(self) -> Seen {
        drop(self.stop);
        self.thread.join().expect("looking cannot fail")
    }
}

impl Seen {
    fn look(&mut self, address: &str, pid: u32) {
        self.looks += 1;
        if let Some(now) = Resources::of(pid) {
            self.most = self.most.most(now);
        }
        let (metrics, ready) = (http(address, "/metrics"), http(address, "/readyz"));
        self.unanswered += usize::from(metrics.is_none() || ready.is_none());
        let stalled = |line: &str| {
            let (reason, value) = line.strip_prefix("txrelay_stalled{reason=\"")?.split_once("\"}")?;
            (value.trim() == "1").then(|| reason.to_owned())
        };
        self.stalled.extend(metrics.unwrap_or_default().lines().filter_map(stalled));
        self.words.extend(ready.unwrap_or_default().lines().map(str::to_owned));
    }

    /// Some line of /readyz named all of these.
    #[track_caller]
    pub fn said(&self, parts: &[&str]) {
        let said = self.words.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(said, "no line of /readyz had {parts:?}:\n{:#?}", self.words);
    }
}
