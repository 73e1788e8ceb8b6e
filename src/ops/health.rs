//! What each part is waiting for, in words: the source of `stalled{reason}`, `STATUS=`, `/readyz`, the heartbeat and `/`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::metrics::Metrics;

/// Why something stands still; the labels of `stalled`.
pub type Reason = &'static str;

/// Shared by all threads.
#[derive(Debug, Clone)]
pub struct Health {
    inner: Arc<Mutex<Inner>>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Inner {
    /// By the part that says it (a thread's name), so that one part's recovery does not hide another's trouble.
    waits: BTreeMap<(&'static str, Reason), String>,
    stopping: bool,
}

impl Health {
    /// Nothing is waited for yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { inner: Arc::default(), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `part` waits, because of `reason`, in `words`.
    pub fn wait(&self, part: &'static str, reason: Reason, words: impl Into<String>) {
        let mut inner = self.lock();
        inner.waits.insert((part, reason), words.into());
        self.metrics.stalled.with_label_values(&[reason]).set(1);
    }

    /// `part` no longer waits because of `reason`.
    pub fn go(&self, part: &'static str, reason: Reason) {
        let mut inner = self.lock();
        if inner.waits.remove(&(part, reason)).is_some() && !inner.waits.keys().any(|(_, other)| *other == reason) {
            self.metrics.stalled.with_label_values(&[reason]).set(0);
        }
    }

    /// From now on the process is leaving.
    pub fn stopping(&self) {
        self.lock().stopping = true;
    }

    /// Reasons and words of all that is waited for; equal words of several parts once.
    pub fn waits(&self) -> Vec<(Reason, String)> {
        let inner = self.lock();
        let mut waits: Vec<(Reason, String)> = inner.waits.iter().map(|((_, reason), words)| (*reason, words.clone())).collect();
        waits.sort();
        waits.dedup();
        waits
    }

    /// One line for `STATUS=`.
    pub fn words(&self) -> String {
        if self.lock().stopping {
            return "stopping".to_owned();
        }
        let waits = self.waits();
        if waits.is_empty() {
            return "relaying".to_owned();
        }
        let words: Vec<String> = waits.into_iter().map(|(_, words)| words).collect();
        format!("waiting: {}", words.join("; "))
    }

    /// Whether the process does all of its work now.
    pub fn is_ready(&self) -> bool {
        let inner = self.lock();
        inner.waits.is_empty() && !inner.stopping
    }
}
