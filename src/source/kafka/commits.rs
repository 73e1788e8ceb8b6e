//! The group's committed offsets in Kafka, for tools that show lag: the database holds the truth. From a thread and a client of
//! their own, because the crate's commit has no bound on its retries and reports as done what another answer said.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use kafka::client::{CommitOffset, GroupOffsetStorage, KafkaClient};

use super::reader::Recipe;
use crate::core::record::TopicPartition;

const EVERY: Duration = Duration::from_secs(5);
/// A group without members loses an offset a week (offsets.retention.minutes) after its own last commit.
const AGAIN: Duration = Duration::from_secs(3600);

type Offsets = Arc<Mutex<BTreeMap<TopicPartition, i64>>>;

/// The thread, from this side; it ends with this value.
pub(super) struct Commits {
    offsets: Offsets,
    flush: Sender<Sender<()>>,
}

impl Commits {
    /// Commits nothing before there is something.
    pub(super) fn spawn(recipe: Recipe, group: String) -> std::io::Result<Self> {
        let offsets = Offsets::default();
        let (flush, flushes) = bounded(1);
        let shared = Arc::clone(&offsets);
        std::thread::Builder::new().name("kafka-commit".into()).spawn(move || run(&recipe, &group, &shared, &flushes))?;
        Ok(Self { offsets, flush })
    }

    /// From now on these are the group's.
    pub(super) fn note(&self, next: &[(TopicPartition, i64)]) {
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner).extend(next.iter().cloned());
    }

    /// Commits what is not yet, if that can be done within `deadline`.
    pub(super) fn close(self, deadline: Duration) {
        let (done, finished) = bounded(0);
        if self.flush.try_send(done).is_ok() {
            // It ends by being dropped.
            let _ = finished.recv_timeout(deadline);
        }
    }
}

fn run(recipe: &Recipe, group: &str, offsets: &Offsets, flushes: &Receiver<Sender<()>>) {
    let mut client = None;
    let mut committed = BTreeMap::new();
    let mut at = Instant::now();
    loop {
        let flush = flushes.recv_timeout(EVERY);
        let wanted = offsets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !wanted.is_empty() && (wanted != committed || at.elapsed() >= AGAIN) {
            let done = catch_unwind(AssertUnwindSafe(|| commit(&mut client, recipe, group, &wanted)));
            if matches!(done, Ok(Ok(()))) {
                committed = wanted;
                at = Instant::now();
            } else {
                // Whatever it was: a new client with the next round.
                client = None;
            }
        }
        match flush {
            // Dropping it is the answer.
            Ok(done) => drop(done),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn commit(
    client: &mut Option<KafkaClient>,
    recipe: &Recipe,
    group: &str,
    offsets: &BTreeMap<TopicPartition, i64>,
) -> Result<(), kafka::error::Error> {
    let client = match client {
        Some(client) => client,
        None => {
            let mut made = recipe.client()?;
            made.set_group_offset_storage(Some(GroupOffsetStorage::Kafka));
            // With its retries used up the crate would go on without a pause and without an end.
            made.set_retry_max_attempts(u32::MAX);
            made.set_retry_backoff_time(Duration::from_millis(500));
            client.insert(made)
        }
    };
    client.commit_offsets(group, offsets.iter().map(|(at, offset)| CommitOffset::new(&at.topic, at.partition, *offset)))
}
