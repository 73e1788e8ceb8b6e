//! When brokers refuse this user something: which right is missing, in preflight's words, until it is granted. Clients say it once,
//! and with the same words for a topic that may not be seen and one that may not be read.

use std::time::{Duration, Instant};

use super::consumer::Consumer;
use crate::failpoint;
use crate::ops::pulse;
use crate::source::preflight::{self, Unknown};
use crate::source::{MessageSource, Trouble, TroubleKind};

/// Between two looks while something is refused.
const LOOK: Duration = Duration::from_secs(5);
/// For each question to a broker.
const QUESTION: Duration = Duration::from_secs(2);

/// Whether anything is refused.
#[derive(Debug, Default)]
pub(super) struct Denied {
    /// `None`: nothing is.
    look_at: Option<Instant>,
}

impl Consumer {
    pub(super) fn doubt_rights(&mut self, trouble: &Trouble) {
        if trouble.kind == TroubleKind::Authorization {
            self.denied.look_at.get_or_insert_with(Instant::now);
        }
    }

    /// Asked once a turn; brokers are asked only while something is refused.
    pub(super) fn look_at_rights(&mut self, source: &mut dyn MessageSource) {
        if self.denied.look_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        pulse::at("asking for rights in Kafka", pulse::REMOTE);
        let missing = match preflight::denials(&self.config.get().kafka, QUESTION) {
            Ok(missing) => missing,
            // What was said last stands.
            Err(Unknown::Unanswered) => return self.denied.look_at = Some(Instant::now() + LOOK),
            // What the client says is all that there is.
            Err(Unknown::Untold) => return self.denied.look_at = None,
        };
        if missing.is_empty() {
            self.denied.look_at = None;
            self.health.go("rights", "kafka");
            log::info!("the brokers refuse this user nothing any more");
            return source.look_for_topics(QUESTION);
        }
        self.denied.look_at = Some(Instant::now() + failpoint::time("rights", LOOK));
        let words = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        if let Some(note) = self.throttle.admit(&words, Instant::now()) {
            log::error!("Kafka: {words}{note}");
        }
        self.health.wait("rights", "kafka", format!("Kafka: {words}"));
    }
}
