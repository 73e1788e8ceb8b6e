//! What of a batch PostgreSQL refuses: found by halving, in transactions that store nothing.

use std::collections::HashMap;

use super::ingest::{Advance, Batch, Candidate, Ingested, Reject, Topics, Writer, insert, sort, store};
use super::{Session, StoreError};
use crate::core::identify::Reason;
use crate::core::offsets::Offsets;
use crate::core::record::TopicPartition;

impl Batch {
    /// Offsets of its records, ascending; for the batch of one partition.
    fn offsets(&self) -> Vec<i64> {
        let candidates = self.candidates.iter().map(|c| c.record.offset);
        let mut offsets: Vec<i64> = candidates.chain(self.rejects.iter().map(|r| r.record.offset)).collect();
        offsets.sort_unstable();
        offsets
    }

    /// A batch for each of its partitions.
    pub fn by_partition(self) -> Vec<Batch> {
        let mut parts: Vec<Batch> =
            self.advances.into_iter().map(|advance| Batch { advances: vec![advance], ..Batch::default() }).collect();
        let part_of: HashMap<TopicPartition, usize> =
            parts.iter().enumerate().map(|(n, part)| (part.advances[0].at.clone(), n)).collect();
        // A batch moves the position of each of its records.
        for candidate in self.candidates {
            parts[part_of[&candidate.record.at]].candidates.push(candidate);
        }
        for reject in self.rejects {
            parts[part_of[&reject.record.at]].rejects.push(reject);
        }
        parts
    }

    /// What of this batch of one partition lies before `offset`: its position moves up to there.
    pub fn before(&self, offset: i64) -> Batch {
        let earlier = |ranges: &[Offsets]| ranges.iter().filter(|range| range.start < offset).cloned().collect();
        let cut = |advance: &Advance| Advance {
            new: offset.max(advance.expected),
            skipped: earlier(&advance.skipped),
            unexplained: earlier(&advance.unexplained),
            ..advance.clone()
        };
        Batch {
            candidates: self.candidates.iter().filter(|c| c.record.offset < offset).cloned().collect(),
            rejects: self.rejects.iter().filter(|r| r.record.offset < offset).cloned().collect(),
            advances: self.advances.iter().map(cut).collect(),
            lease: None,
        }
    }

    /// Moves candidates that PostgreSQL refuses to the rejected ones.
    pub fn set_aside(&mut self, places: &[usize], why: &str) {
        let mut kept = Vec::with_capacity(self.candidates.len());
        for (place, candidate) in std::mem::take(&mut self.candidates).into_iter().enumerate() {
            if places.contains(&place) {
                let Candidate { record, incarnation, .. } = candidate;
                self.rejects.push(Reject {
                    reason: Reason::NotStorable.label(),
                    detail: why.to_owned(),
                    tx_id: None,
                    record,
                    incarnation,
                });
            } else {
                kept.push(candidate);
            }
        }
        self.candidates = kept;
    }
}

impl Session {
    /// Which candidates PostgreSQL refuses for a value, found by halving under savepoints. Stores nothing.
    pub fn find_unstorable(&mut self, writer: Writer, topics: &Topics, batch: &Batch) -> Result<Vec<usize>, StoreError> {
        let statements = self.statements()?;
        let mut transaction = self.client.transaction()?;
        let mut ranges = vec![sort(&batch.candidates)];
        let mut refused = Vec::new();
        while let Some(places) = ranges.pop() {
            let mut savepoint = transaction.transaction()?;
            let tried = insert(&mut savepoint, &statements, writer, topics, batch, &places, &mut Ingested::default());
            savepoint.rollback()?;
            match tried {
                Ok(()) => {}
                Err(StoreError::Value(_)) if places.len() == 1 => refused.extend(places),
                // Refused for another reason: that is not for rejecting it.
                Err(error) if error.is_about_rows() && places.len() == 1 => {}
                Err(error) if error.is_about_rows() => {
                    let (left, right) = places.split_at(places.len() / 2);
                    ranges.extend([left.to_vec(), right.to_vec()]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    /// The offset of the first record of this batch of one partition that PostgreSQL refuses, for whatever reason; `None`: it
    /// takes them all. Found by halving; stores nothing.
    pub fn first_refused(&mut self, writer: Writer, topics: &Topics, batch: &Batch) -> Result<Option<i64>, StoreError> {
        let statements = self.statements()?;
        let mut offsets = batch.offsets();
        let Some(advance) = batch.advances.first() else { return Ok(None) };
        offsets.push(advance.new);
        // The first `n` records pass for all `n` below `passed`, and do not from `refused` on.
        let (mut passed, mut refused) = (0, offsets.len());
        while passed < refused {
            let n = (passed + refused) / 2;
            let mut transaction = self.client.transaction()?;
            let tried = store(&mut transaction, &statements, writer, topics, &batch.before(offsets[n]))
                // Those that would be looked at only at COMMIT.
                .and_then(|_| Ok(transaction.batch_execute("set constraints all immediate")?));
            transaction.rollback()?;
            match tried {
                Ok(()) => passed = n + 1,
                Err(error) if error.is_about_rows() => refused = n,
                Err(error) => return Err(error),
            }
        }
        Ok(match passed {
            // Not even the position can be moved.
            0 => Some(advance.expected),
            all if all == offsets.len() => None,
            n => Some(offsets[n - 1]),
        })
    }
}
