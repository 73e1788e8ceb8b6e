//! Every channel between the threads, its size, and why.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::core::room::ROWS_MAX;
use crate::store::{Leased, Settlement};

/// Both ends of every channel. The daemon hands them out and keeps none: an end that stays would keep a thread from ending.
#[derive(Debug)]
pub struct Flow {
    /// Leased rows for the workers: from the consumer (born leased) and the claimer. As large as the room, in which each row
    /// has a slot before it is leased, so that sending never blocks.
    pub handoff: (Sender<Leased>, Receiver<Leased>),
    /// What became of them. When PostgreSQL is away it fills, and the workers stop sending: the brake. Two batches deep, so
    /// that workers go on while one is being written.
    pub outcomes: (Sender<Settlement>, Receiver<Settlement>),
    /// "Something is due": from the consumer to the claimer. One token says it; a second would say nothing more.
    pub wake: (Sender<()>, Receiver<()>),
    /// Outcomes are kept that PostgreSQL does not have yet: nothing new is claimed before they are written.
    pub unsettled: Arc<AtomicBool>,
}

impl Flow {
    /// Empty.
    #[expect(clippy::new_without_default, reason = "it is no value, it is the wiring of one process")]
    pub fn new() -> Self {
        Self { handoff: bounded(ROWS_MAX), outcomes: bounded(1024), wake: bounded(1), unsettled: Arc::default() }
    }
}
