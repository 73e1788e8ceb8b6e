//! When brokers refuse this user something: which right is missing, in preflight's words, until it is granted. Clients say it once,
//! and with the same words for a topic that may not be seen and one that may not be read.

use std::time::{Duration, Instant};

use super::consumer::Consumer;
use crate::failpoint;
use crate::ops::pulse;
use crate::source::preflight::{self, Unknown};
use crate::source::{MessageSource, Trouble, TroubleKind};

/// Between two looks while something is refused; and after a look nothing is asked for so many times as long as it took.
const LOOK: Duration = Duration::from_secs(5);
const REST: u32 = 10;
/// For all questions of one look: nothing is read meanwhile, also of what may be read, and a stop waits.
const WITHIN: Duration = Duration::from_secs(3);
/// For finding the topics again.
const QUESTION: Duration = Duration::from_secs(2);

/// Whether anything is refused.
#[derive(Debug, Default)]
pub(super) struct Denied {
    is_doubted: bool,
    /// Not before this.
    look_at: Option<Instant>,
}

impl Consumer {
    pub(super) fn doubt_rights(&mut self, trouble: &Trouble) {
        self.denied.is_doubted |= trouble.kind == TroubleKind::Authorization;
    }

    /// Asked once a turn; brokers are asked only while something is refused.
    pub(super) fn look_at_rights(&mut self, source: &mut dyn MessageSource) {
        let began = Instant::now();
        if !self.denied.is_doubted || self.denied.look_at.is_some_and(|at| began < at) {
            return;
        }
        pulse::at("asking for rights in Kafka", pulse::REMOTE);
        self.ask_for_rights(source);
        let rest = failpoint::time("rights", LOOK).max(began.elapsed() * REST);
        self.denied.look_at = Some(Instant::now() + rest);
    }

    fn ask_for_rights(&mut self, source: &mut dyn MessageSource) {
        let missing = match preflight::denials(&self.config.get().kafka, WITHIN) {
            Ok(missing) => missing,
            // What was said last stands.
            Err(Unknown::Unanswered) => return,
            // What the client says is all that there is.
            Err(Unknown::Untold) => {
                self.denied.is_doubted = false;
                return self.health.go("rights", "kafka");
            }
        };
        if missing.is_empty() {
            // Where the client goes on to be refused something, it will be looked at again.
            self.denied.is_doubted = false;
            self.health.go("rights", "kafka");
            if let Some(note) = self.throttle.admit("no right is missing", Instant::now()) {
                log::info!("the brokers refuse this user nothing any more{note}");
            }
            return source.look_for_topics(QUESTION);
        }
        let words = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        if let Some(note) = self.throttle.admit(&words, Instant::now()) {
            log::error!("Kafka: {words}{note}");
        }
        self.health.wait("rights", "kafka", format!("Kafka: {words}"));
    }
}
