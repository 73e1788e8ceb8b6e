//! Every channel between the threads, its size, and why.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::Brake;
use crate::core::room::ROWS_MAX;
use crate::store::{Leased, Settlement};

/// Both ends of every channel. The daemon hands them out and keeps none: an end that stays would keep a thread from ending.
#[derive(Debug)]
pub struct Flow {
    /// Leased rows for the workers: from the consumer (born leased) and the claimer. As large as the room, in which each row
    /// has a slot before it is leased, so that sending never blocks.
    pub handoff: (Sender<Leased>, Receiver<Leased>),
    /// Those of them that have failed by themselves before: only a quarter of the workers takes these.
    pub suspects: (Sender<Leased>, Receiver<Leased>),
    /// What became of them. When PostgreSQL is away it fills, and the workers stop sending: the brake. Two batches deep, so
    /// that workers go on while one is being written.
    pub outcomes: (Sender<Settlement>, Receiver<Settlement>),
    /// "Something is due": from the consumer to the claimer. One token says it; a second would say nothing more.
    pub wake: (Sender<()>, Receiver<()>),
    /// Outcomes are kept that PostgreSQL does not have yet: nothing new is claimed before they are written.
    pub unsettled: Arc<AtomicBool>,
    /// No outcome is taken: one delivery is sent at a time.
    pub brake: Arc<Brake>,
}

/// How full the channels are, for people. It holds ends of them, and must be dropped before a stop: a thread whose partner
/// has ended would wait for this one.
#[derive(Debug)]
pub struct Fill {
    handoff: Receiver<Leased>,
    suspects: Receiver<Leased>,
    outcomes: Receiver<Settlement>,
    wake: Receiver<()>,
    unsettled: Arc<AtomicBool>,
}

impl Fill {
    /// One line.
    pub fn words(&self) -> String {
        let of = |len: usize, capacity: Option<usize>| format!("{len} of {}", capacity.unwrap_or_default());
        format!(
            "handoff {}, suspects {}, outcomes {}, wake {}{}",
            of(self.handoff.len(), self.handoff.capacity()),
            of(self.suspects.len(), self.suspects.capacity()),
            of(self.outcomes.len(), self.outcomes.capacity()),
            of(self.wake.len(), self.wake.capacity()),
            if self.unsettled.load(Ordering::Acquire) { ", outcomes are kept that PostgreSQL does not have" } else { "" }
        )
    }
}

impl Flow {
    /// To look into the channels while they are used.
    pub fn fill(&self) -> Fill {
        Fill {
            handoff: self.handoff.1.clone(),
            suspects: self.suspects.1.clone(),
            outcomes: self.outcomes.1.clone(),
            wake: self.wake.1.clone(),
            unsettled: self.unsettled.clone(),
        }
    }

    /// Empty.
    #[expect(clippy::new_without_default, reason = "it is no value, it is the wiring of one process")]
    pub fn new() -> Self {
        Self {
            handoff: bounded(ROWS_MAX),
            suspects: bounded(ROWS_MAX),
            outcomes: bounded(1024),
            wake: bounded(1),
            unsettled: Arc::default(),
            brake: Arc::default(),
        }
    }
}
