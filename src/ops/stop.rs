//! Stopping: a disconnected channel, and the instant by which all must be over.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

/// Why a thread's error decides the exit status: the process must not be restarted by itself, or a person has to act.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct ExitWith {
    /// Exit status, as in `txrelay --help`.
    pub status: u8,
    /// For the log.
    pub text: String,
}

/// Held by main: dropping it tells a group of threads to stop.
#[derive(Debug)]
pub struct Stopper {
    _alive: Sender<()>,
    deadline: Arc<OnceLock<Instant>>,
}

/// Held by each thread of the group.
#[derive(Debug, Clone)]
pub struct Stop {
    signal: Receiver<()>,
    deadline: Arc<OnceLock<Instant>>,
}

/// A group of threads that stop together; groups that share `deadline` must all be over by then.
pub fn group(deadline: &Arc<OnceLock<Instant>>) -> (Stopper, Stop) {
    let (alive, signal) = bounded(0);
    (Stopper { _alive: alive, deadline: deadline.clone() }, Stop { signal, deadline: deadline.clone() })
}

impl Stopper {
    /// Tells the group to stop, and everybody by when.
    pub fn stop(self, by: Instant) {
        // Whoever stops first sets the one deadline.
        let _ = self.deadline.set(by);
    }
}

impl Stop {
    /// Whether the group has been told to stop.
    pub fn is_stopping(&self) -> bool {
        self.signal.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits for `time`, or less if told to stop: then it returns `true`.
    pub fn wait(&self, time: Duration) -> bool {
        self.signal.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
    }

    /// Waits until told to stop: for a thread that cannot work because another has ended, which is the reason to report.
    pub fn wait_for_it(&self) -> anyhow::Result<()> {
        // Only its disconnection ends this.
        let _ = self.signal.recv();
        Ok(())
    }

    /// For `select!`: becomes ready when told to stop.
    pub fn signal(&self) -> &Receiver<()> {
        &self.signal
    }

    /// By when everything must be over, once stopping has begun.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied()
    }

    /// Whether stopping has begun and its time is used up.
    pub fn is_overdue(&self) -> bool {
        self.deadline().is_some_and(|by| Instant::now() >= by)
    }
}
