//! Positions that have left their log: retention overtook us, the log was cut, or it is another one by now.

use std::time::{Duration, Instant};

use super::consumer::{Consumer, Leave};
use crate::config::OnLostPosition;
use crate::core::offsets::Offsets;
use crate::core::record::LogId;
use crate::failpoint;
use crate::source::{MessageSource, Watermarks};
use crate::store::{Gap, Position, StoreError};

/// A position that was seen above its log's end waits for this time before it is moved: the end that is seen may go on falling, and a
/// person sees why nothing is read. It is not taken back; see `ends_below`.
const BELIEVE_TRUNCATION: Duration = Duration::from_secs(30);

/// Where a log ends, seen from a position.
enum End {
    Above,
    /// Below, at this offset; it has to be seen again.
    Unsure(i64),
    /// Below, at this offset.
    Below(i64),
}

/// A position that stood above its log's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting {
    next: i64,
    /// The lowest that was seen.
    end: i64,
    first: Instant,
}

impl Consumer {
    /// Holds a position against its log. `None`: it has left the log and must wait (for a second look, or for a person).
    pub(super) fn validate(&mut self, position: Position, log: Watermarks, id: &LogId) -> Result<Option<Position>, StoreError> {
        let mut position = position;
        if position.log.is_another(id) {
            // The new log is accounted for from its very beginning, too.
            let begin = Position { next_offset: 0, log: id.clone(), ..position.clone() };
            let from = position.next_offset;
            match self.lose(position, begin, from..from, "recreated")? {
                Some(begun) => position = begun,
                None => return Ok(None),
            }
        }
        let next = position.next_offset;
        if next < log.low {
            self.above_end.remove(&position.at);
            let to = Position { next_offset: log.low, ..position.clone() };
            return self.lose(position, to, next..log.low, "retention");
        }
        match self.ends_below(&position, log) {
            End::Above => Ok(Some(position)),
            End::Unsure(end) => {
                let words = format!("{}/{} ends at {end}, before the position {next}", position.at.topic, position.at.partition);
                self.health.wait("consumer", "partition", words);
                Ok(None)
            }
            End::Below(end) => {
                let to = Position { next_offset: end, ..position.clone() };
                self.lose(position, to, end..next, "truncated")
            }
        }
    }

    /// Whether a log ends below a position. The lowest end that was seen counts, for good: what was written since to a log that was
    /// cut stands there, and must not be passed over, also where the log has grown beyond the position again. A leader that only
    /// lagged for a moment looks the same, since its end is as high again as that of a log that was cut and has grown, and the epoch
    /// of what was read last, which would tell, is not kept. So the mistake is made on the safe side: what lies behind the end that
    /// was seen is read again (its ids are known), and a gap is on record that was none.
    fn ends_below(&mut self, position: &Position, log: Watermarks) -> End {
        let believe = failpoint::time("believe-truncation", BELIEVE_TRUNCATION);
        let (now, next) = (Instant::now(), position.next_offset);
        // Where another process has read on meanwhile, the position is another. Otherwise an old sighting stays: to forget it
        // would be to read on behind what was written since.
        let seen = self.above_end.get(&position.at).filter(|seen| seen.next == next).copied();
        let Some(seen) = seen else {
            if log.high >= next {
                self.above_end.remove(&position.at);
                return End::Above;
            }
            self.above_end.insert(position.at.clone(), Sighting { next, end: log.high, first: now });
            return End::Unsure(log.high);
        };
        let end = seen.end.min(log.high);
        self.above_end.insert(position.at.clone(), Sighting { end, ..seen });
        if now - seen.first < believe { End::Unsure(end) } else { End::Below(end) }
    }

    /// Moves a lost position and says so, or leaves the partition alone (`kafka.on_lost_position = "stop"`).
    fn lose(
        &mut self,
        from: Position,
        to: Position,
        lost: Offsets,
        reason: &'static str,
    ) -> Result<Option<Position>, StoreError> {
        let at = from.at.clone();
        let what = format!("{}/{}: position {} has left the log ({reason})", at.topic, at.partition, from.next_offset);
        if self.config.get().kafka.on_lost_position == OnLostPosition::Stop {
            if let Some(note) = self.throttle.admit("lost position", Instant::now()) {
                log::error!(
                    "{what}; kafka.on_lost_position = \"stop\": this partition is not read until it is \"continue\"{note}"
                );
            }
            self.health.wait("consumer", "partition", format!("{what}; kafka.on_lost_position is \"stop\""));
            return Ok(None);
        }
        // Offsets are given anew in a log that was made again or cut: with another incarnation each stays one place.
        let incarnation = if reason == "retention" { from.incarnation } else { from.incarnation + 1 };
        let skipped = if incarnation == from.incarnation { from.skipped } else { 0 };
        let to = Position { incarnation, skipped, ..to };
        let gap = Gap { incarnation: from.incarnation, from_offset: lost.start, to_offset: lost.end, reason };
        self.link.run(|session| session.move_position(&from, &to, Some(&gap)))?;
        let n = lost.end - lost.start;
        self.metrics.gap_records_total.with_label_values(&[&*at.topic, reason]).inc_by(n.max(1) as u64);
        log::error!(topic = &*at.topic, partition = at.partition, from = lost.start, to = lost.end, reason = reason;
            "{what}: the gap is recorded in known_gap, reading goes on at {}", to.next_offset);
        self.above_end.remove(&at);
        if incarnation != from.incarnation {
            // Another log may have other settings, and what was in doubt was in the old one.
            self.compacted.remove(&at.topic);
            self.doubts.remove(&at);
        }
        // What PostgreSQL refused of it is gone, too; where nothing follows, nobody else would say so.
        self.forget_refused(&at);
        Ok(Some(to))
    }

    /// Some position is outside its log; which one only the watermarks tell. Asked at once: a log that was cut grows again.
    pub(super) fn revalidate(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        if let Some(leave) = self.commit(source) {
            return Some(leave);
        }
        let positions: Vec<Position> = self.held.values().filter_map(|held| held.position.clone()).collect();
        let (logs, _) = self.ends(source, positions.iter().map(|position| position.at.clone()).collect());
        for position in &positions {
            if let Some(log) = logs.get(&position.at) {
                self.ends_below(position, *log);
            }
        }
        Some(Leave::Rebuild("a position is outside its log".to_owned()))
    }
}
