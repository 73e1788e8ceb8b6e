//! Whose turn it is to read: with a Kafka client that knows no group, one process of a pipeline reads and the others stand by.
//! The lock is a session's in PostgreSQL, so that it goes with the process or with its connection; what a reader writes is
//! fenced by the epochs all the same.

use std::time::{Duration, Instant};

use super::consumer::{Consumer, Leave};
use crate::config::KafkaClient;
use crate::ops::pulse;

/// How often who stands by looks.
const LOOK: Duration = Duration::from_secs(1);

impl Consumer {
    /// Waits until this process is the one that reads; at once where the client has a group. Returns whether it was told to
    /// stop meanwhile.
    pub(super) fn wait_for_turn(&mut self) -> bool {
        if self.config.get().kafka.client == KafkaClient::Librdkafka {
            return false;
        }
        let mut stands_by = false;
        loop {
            pulse::at("looking whose turn it is to read", pulse::REMOTE);
            let silence = self.config.get().postgres.lease;
            let pause = match self.link.run(|session| session.take_turn(silence)) {
                Ok(true) => {
                    self.health.go("consumer", "postgres");
                    log::info!("this process reads now");
                    self.turn_at = Instant::now();
                    return false;
                }
                Ok(false) => {
                    self.health.go("consumer", "postgres");
                    if !stands_by {
                        log::info!(
                            "another process of this pipeline reads; this one delivers, and takes over when that one ends"
                        );
                        stands_by = true;
                    }
                    // It stands by, and nothing is wrong with that.
                    self.health.go("consumer", "kafka");
                    self.health.go("consumer", "partition");
                    LOOK
                }
                Err(error) => {
                    self.store_trouble(&error);
                    self.link.pause(rand::random())
                }
            };
            pulse::at("standing by", pulse::PROMPT);
            if self.stop.wait(pause) {
                return true;
            }
        }
    }

    /// Whether it still is, and a sign of life for those that stand by.
    pub(super) fn keep_turn(&mut self) -> Option<Leave> {
        if self.config.get().kafka.client == KafkaClient::Librdkafka {
            return None;
        }
        let lost = || Some(Leave::Rebuild("the session that held the reader's lock in PostgreSQL has ended".to_owned()));
        if !self.link.reads() {
            return lost();
        }
        if self.turn_at.elapsed() >= (self.config.get().postgres.lease / 6).min(Duration::from_secs(5)) {
            self.turn_at = Instant::now();
            match self.link.run(|session| session.has_turn()) {
                Ok(true) => {}
                Ok(false) => return lost(),
                Err(error) => {
                    self.store_trouble(&error);
                    return lost();
                }
            }
        }
        None
    }
}
