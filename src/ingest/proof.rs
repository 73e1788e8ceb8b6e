//! Offsets that the client passed over: a second look at those that are not taken on trust.

use std::time::{Duration, Instant};

use super::consumer::{Consumer, Leave};
use crate::config::KafkaClient;
use crate::core::hole::to_prove;
use crate::core::offsets::{self, Offsets};
use crate::core::record::TopicPartition;
use crate::ops::pulse;
use crate::source::{self, SourceError};
use crate::store::Advance;

/// One look, at a range of any length.
const LOOK: Duration = Duration::from_secs(15);
/// A look that fails so often in a row is left to `reconcile`: it must not hold a partition up for ever.
const LOOKS: u32 = 3;

/// Holes of one partition that are in doubt.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// Looks that failed in a row.
    failed: u32,
    /// How often something unexplained was found that lies below `end`.
    found: u32,
    end: i64,
}

impl Consumer {
    /// Before a batch is committed: what it passes over is explained, or read once more, or named a gap.
    pub(super) fn prove(&mut self, advances: &mut [Advance]) -> Result<(), Leave> {
        // This client passes only over what it has looked for with every size, and knows no transactions: see its source.
        if self.config.get().kafka.client == KafkaClient::Kafka {
            return Ok(());
        }
        for advance in advances.iter_mut().filter(|advance| !advance.skipped.is_empty()) {
            let before = self.held.get(&advance.at).and_then(|held| held.position.as_ref()).map_or(0, |p| p.skipped);
            let holes = to_prove(&advance.skipped, before);
            let (Some(first), Some(last)) = (holes.first(), holes.last()) else { continue };
            if before > 0 && self.compacted.contains(&advance.at.topic) {
                continue;
            }
            pulse::at("looking at offsets that were passed over", pulse::REMOTE);
            let unexplained = self.look(&advance.at, &holes, first.start..last.end)?;
            if !unexplained.is_empty() {
                self.doubt(&advance.at, advance.expected, &unexplained)?;
                advance.skipped = offsets::minus(&advance.skipped, &unexplained);
                advance.unexplained = unexplained;
            }
        }
        Ok(())
    }

    /// What of `holes` no rule explains.
    fn look(&mut self, at: &TopicPartition, holes: &[Offsets], span: Offsets) -> Result<Vec<Offsets>, Leave> {
        let doubt = self.doubts.entry(at.clone()).or_default();
        match source::look_again(&self.config.get().kafka, at, span.clone(), Instant::now() + LOOK) {
            Ok(look) => {
                doubt.failed = 0;
                if look.compacted == Some(true) {
                    self.compacted.insert(at.topic.clone());
                }
                let unexplained = look.unexplained(holes);
                log::debug!(topic = &*at.topic, partition = at.partition; "looked again at {}..{} of {}/{}: {} offsets without a rule",
                    span.start, span.end, at.topic, at.partition, offsets::count(&unexplained));
                Ok(unexplained)
            }
            Err(error) => {
                doubt.failed += 1;
                let what = format!("what was passed over in {}..{} of {}/{}", span.start, span.end, at.topic, at.partition);
                let is_damaged = matches!(error, SourceError::Damaged(_));
                if is_damaged {
                    self.damage.suspect(at);
                }
                if doubt.failed < LOOKS {
                    return Err(Leave::Rebuild(format!("{what} cannot be looked at: {error}")));
                }
                doubt.failed = 0;
                if is_damaged {
                    // A hole with damage in it is the last that may be taken for markers.
                    return Ok(holes.to_vec());
                }
                log::warn!(topic = &*at.topic, partition = at.partition;
                    "{what} could not be looked at ({error}); it is taken for markers and aborted records, which `txrelay reconcile` can prove");
                Ok(Vec::new())
            }
        }
    }

    /// Something is not explained: it is read once more, then once more apart from the others, and then named.
    fn doubt(&mut self, at: &TopicPartition, position: i64, unexplained: &[Offsets]) -> Result<(), Leave> {
        let doubt = self.doubts.entry(at.clone()).or_default();
        if position >= doubt.end {
            doubt.found = 0;
        }
        doubt.found += 1;
        doubt.end = unexplained.last().map_or(position, |range| range.end);
        let ranges = unexplained.iter().map(|range| format!("{}..{}", range.start, range.end)).collect::<Vec<_>>().join(", ");
        let what = format!("offsets {ranges} of {}/{} were passed over, and nothing explains it", at.topic, at.partition);
        match doubt.found {
            1 => Err(Leave::Rebuild(what)),
            2 => {
                self.damage.suspect(at);
                Err(Leave::Rebuild(format!("{what}, twice")))
            }
            _ => {
                let n = offsets::count(unexplained);
                log::error!(topic = &*at.topic, partition = at.partition, offsets = n;
                    "{what}: they are recorded in known_gap as unexplained; look into the broker's log, and at its settings' history");
                Ok(())
            }
        }
    }
}
