//! Committing a batch, and what to do when it is not known whether it was committed.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use super::batch::{Extents, extents, offsets_of, sort_out};
use super::consumer::{Consumer, Leave};
use crate::core::identify::Reason;
use crate::core::offsets::{self, holes};
use crate::core::record::{Record, TopicPartition};
use crate::failpoint::failpoint;
use crate::ops::pulse;
use crate::source::{MessageSource, Polled};
use crate::store::{Advance, Batch, Ingested, Leased, Reservation, StoreError};

/// After so long without PostgreSQL everything is paused, and the source is polled only to stay in its group (well before
/// max.poll.interval.ms, 300 s). Pausing earlier would throw fetched records away for nothing.
const PAUSE_AFTER: Duration = Duration::from_secs(30);

/// A batch on its way: what is stored, where the source stands after it, and since when its lease runs.
struct Pending {
    batch: Batch,
    began: Instant,
    reservation: Option<Reservation>,
}

/// What became of a batch.
enum Persisted {
    Done(Ingested),
    /// Nothing was stored: PostgreSQL refuses something in it that cannot be rejected singly.
    Refused(StoreError),
}

/// For so long "the next try draws another number" is believed (sequences that went back with a stale replica).
const TAKEN: Duration = Duration::from_secs(30);
/// For so long after that it is not believed again: each partition that is refused would hold up the others that long.
const NOT_BELIEVED: Duration = Duration::from_secs(300);

/// What became of one try.
enum Tried {
    Done(Ingested),
    /// It was in doubt, and was not committed.
    NotDone,
    Failed(StoreError),
}

impl Consumer {
    /// Commits what was read, and moves quiet partitions over markers. `None`: done.
    pub(super) fn commit(&mut self, source: &mut dyn MessageSource) -> Option<Leave> {
        let records = self.reading.take();
        self.committed_at = (!records.is_empty()).then(Instant::now).or(self.committed_at);
        // After the batch's last poll.
        let reached = source.positions().into_iter().collect();
        self.commit_records(source, records, &reached)
    }

    /// Commits these records. `reached`: where each partition was read to, markers and aborted records included.
    pub(super) fn commit_records(
        &mut self,
        source: &mut dyn MessageSource,
        records: Vec<Record>,
        reached: &HashMap<TopicPartition, i64>,
    ) -> Option<Leave> {
        let extents = extents(&records);
        let mut advances = match self.advances(&records, &extents, reached) {
            Ok(advances) if advances.is_empty() => return None,
            Ok(advances) => advances,
            Err(leave) => return Some(leave),
        };
        if let Err(leave) = self.prove(&mut advances) {
            return Some(leave);
        }
        let incarnation = |at: &TopicPartition| {
            self.held.get(at).and_then(|held| held.position.as_ref()).map_or(0, |position| position.incarnation)
        };
        let config = self.config.get();
        let (candidates, rejects) = sort_out(records, &config.transaction_id, config.kafka.record_max, incarnation);
        failpoint("step-fetched");
        match self.store_batch(source, Batch { candidates, rejects, advances, lease: None }) {
            Ok(None) => None,
            Ok(Some((batch, _))) => self.store_by_partition(source, batch).err(),
            Err(leave) => Some(leave),
        }
    }

    /// Commits a batch and hands its rows over; or returns it with the words in which PostgreSQL refuses it.
    pub(super) fn store_batch(
        &mut self,
        source: &mut dyn MessageSource,
        batch: Batch,
    ) -> Result<Option<(Batch, StoreError)>, Leave> {
        let mut pending = Pending { batch, began: Instant::now(), reservation: None };
        Ok(match self.persist(source, &mut pending)? {
            Persisted::Done(done) => {
                self.settle_in(source, pending, done);
                None
            }
            Persisted::Refused(why) => Some((pending.batch, why)),
        })
    }

    /// Where each partition of the batch will stand: the source's position after the batch's last poll, which lies behind
    /// markers and aborted records.
    fn advances(
        &self,
        records: &[Record],
        extents: &Extents,
        reached: &HashMap<TopicPartition, i64>,
    ) -> Result<Vec<Advance>, Leave> {
        let mut advances = Vec::new();
        for (at, held) in &self.held {
            let Some(position) = &held.position else { continue };
            let (n, last) = extents.get(at).copied().unwrap_or((0, position.next_offset - 1));
            let new = reached.get(at).copied().unwrap_or(last + 1);
            if new <= last {
                return Err(Leave::Rebuild(format!(
                    "the client stands at {new} of {}/{}, behind record {last}",
                    at.topic, at.partition
                )));
            }
            if n > 0 || new > position.next_offset {
                let skipped = new - position.next_offset - n;
                if skipped < 0 {
                    return Err(Leave::Rebuild(format!("records of {}/{} came twice", at.topic, at.partition)));
                }
                let holes = if skipped == 0 { Vec::new() } else { holes(position.next_offset, offsets_of(records, at), new) };
                advances.push(Advance {
                    at: at.clone(),
                    incarnation: position.incarnation,
                    epoch: position.epoch,
                    expected: position.next_offset,
                    new,
                    skipped: holes,
                    unexplained: Vec::new(),
                });
            }
        }
        if extents.keys().any(|at| !advances.iter().any(|advance| advance.at == *at)) {
            return Err(Leave::Rebuild("a record came from a partition that is not held".to_owned()));
        }
        Ok(advances)
    }

    fn persist(&mut self, source: &mut dyn MessageSource, pending: &mut Pending) -> Result<Persisted, Leave> {
        let first = Instant::now();
        let mut paused = false;
        let mut taken_since = None;
        // Whether the last try may have been committed without our knowing.
        let mut in_doubt = false;
        let done = loop {
            pulse::at("writing records", pulse::REMOTE);
            let tried = if in_doubt { self.look_after_lost_commit(pending)? } else { self.try_once(pending) };
            match tried {
                Tried::Done(done) => break Persisted::Done(done),
                Tried::NotDone => {
                    in_doubt = false;
                    continue;
                }
                Tried::Failed(StoreError::Fenced(why)) => return Err(Leave::Rebuild(why)),
                Tried::Failed(error) if error.is_about_rows() => match self.set_aside(pending, error)? {
                    // However long looking for them takes, the group has to keep this process: see below.
                    None if first.elapsed() < PAUSE_AFTER => continue,
                    None => {}
                    Some(refused) => break Persisted::Refused(refused),
                },
                Tried::Failed(error @ StoreError::Taken(_))
                    if self.taken_at.is_some_and(|at| at.elapsed() < NOT_BELIEVED)
                        || taken_since.get_or_insert_with(Instant::now).elapsed() >= TAKEN =>
                {
                    self.taken_at = Some(Instant::now());
                    self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
                    break Persisted::Refused(error);
                }
                Tried::Failed(error) => {
                    in_doubt |= matches!(error, StoreError::Connection(_));
                    self.store_trouble(&error);
                }
            }
            pulse::at("waiting to write records again", pulse::PROMPT);
            if self.stop.wait(self.link.pause(rand::random())) {
                // Nothing is lost: what was not committed is read again.
                return Err(Leave::Stop);
            }
            pulse::at("staying in the group", pulse::REMOTE);
            if first.elapsed() >= PAUSE_AFTER {
                if !paused {
                    source.pause();
                    paused = true;
                }
                self.stay_in_group(source)?;
            }
        };
        if paused && !self.backlog_full {
            source.resume();
        }
        self.health.go("consumer", "postgres");
        let took = pending.began.elapsed();
        self.pace.took(took);
        self.metrics.commit_duration_seconds.with_label_values(&["ingest"]).observe(took.as_secs_f64());
        Ok(done)
    }

    fn try_once(&mut self, pending: &mut Pending) -> Tried {
        self.lease(pending);
        let (writer, topics) = (self.writer(), &self.topics);
        match self.link.run(|session| session.ingest(writer, topics, &pending.batch)) {
            Ok(done) => Tried::Done(done),
            Err(error) => Tried::Failed(error),
        }
    }

    /// New rows are born leased if they may overtake nobody and there is room for all of them.
    fn lease(&mut self, pending: &mut Pending) {
        pending.reservation = None;
        pending.batch.lease = None;
        let rows = pending.batch.candidates.len();
        if rows > 0 && self.room.takes_fresh(Instant::now()) {
            let bytes = pending.batch.candidates.iter().map(|c| c.record.value.as_ref().map_or(0, Vec::len)).sum();
            pending.reservation = self.room.reserve(rows, bytes);
            pending.batch.lease = pending.reservation.is_some().then(rand::random);
        }
        pending.began = Instant::now();
    }

    /// After a lost connection nobody knows whether the COMMIT was done; the positions know. Until they have been read,
    /// nothing is tried again: the rows of a committed batch carry its lease, and it must not be drawn anew.
    fn look_after_lost_commit(&mut self, pending: &Pending) -> Result<Tried, Leave> {
        let advances = &pending.batch.advances;
        let at: Vec<TopicPartition> = advances.iter().map(|advance| advance.at.clone()).collect();
        let stored = match self.link.run(|session| session.positions(&at)) {
            Ok(stored) => stored,
            Err(error) => return Ok(Tried::Failed(error)),
        };
        let find = |at: &TopicPartition| stored.iter().find(|position| position.at == *at);
        let all = |offset: fn(&Advance) -> i64| {
            advances.iter().all(|a| find(&a.at).is_some_and(|p| p.epoch == a.epoch && p.next_offset == offset(a)))
        };
        if all(|advance| advance.expected) {
            return Ok(Tried::NotDone);
        }
        if !all(|advance| advance.new) {
            return Err(Leave::Rebuild("after a lost connection the positions in PostgreSQL are somebody else's".to_owned()));
        }
        let rows = match pending.batch.lease.map(|lease| self.link.run(|session| session.leased_rows(&pending.batch, lease))) {
            None => Vec::new(),
            Some(Ok(rows)) => rows,
            Some(Err(error)) => return Ok(Tried::Failed(error)),
        };
        log::info!("the batch was committed although its answer was lost");
        Ok(Tried::Done(Ingested { new: rows, ..Ingested::default() }))
    }

    /// PostgreSQL refuses something in the batch. Where it is some transaction's value, that record is found by halving and
    /// will be stored as rejected; anything else is returned.
    fn set_aside(&mut self, pending: &mut Pending, why: StoreError) -> Result<Option<StoreError>, Leave> {
        self.metrics.postgres_errors_total.with_label_values(&[why.kind()]).inc();
        let StoreError::Value(words) = &why else { return Ok(Some(why)) };
        let (writer, topics) = (self.writer(), &self.topics);
        let refused = match self.link.run(|session| session.find_unstorable(writer, topics, &pending.batch)) {
            Ok(refused) => refused,
            Err(error) => {
                self.store_trouble(&error);
                return if self.stop.wait(self.link.pause(rand::random())) { Err(Leave::Stop) } else { Ok(None) };
            }
        };
        if refused.is_empty() {
            return Ok(Some(why));
        }
        if let Some(note) = self.throttle.admit("unstorable", Instant::now()) {
            log::error!(records = refused.len(); "PostgreSQL refuses {} records ({words}); they are kept as rejected{note}", refused.len());
        }
        pending.batch.set_aside(&refused, words);
        Ok(None)
    }

    /// Polls with everything paused, so that the group keeps this process. A record that comes all the same cannot be kept
    /// beside a batch that is not committed: then reading starts over.
    fn stay_in_group(&mut self, source: &mut dyn MessageSource) -> Result<(), Leave> {
        while let Some(event) = source.poll(Duration::ZERO).map_err(|error| Leave::Rebuild(error.to_string()))? {
            match event {
                Polled::Trouble(trouble) => log::debug!("while PostgreSQL is away: {}", trouble.text),
                Polled::Assigned(partitions) => {
                    source.park(&partitions).map_err(|error| Leave::Rebuild(error.to_string()))?;
                    let parked = partitions.into_iter().map(|at| (at, super::consumer::Held { position: None }));
                    self.held.extend(parked);
                }
                Polled::Record(_) | Polled::Revoked { .. } | Polled::PositionLost(_) => {
                    return Err(Leave::Rebuild("partitions moved while PostgreSQL was away".to_owned()));
                }
            }
        }
        Ok(())
    }

    /// After COMMIT: hand over, wake, and only then mark the offsets.
    fn settle_in(&mut self, source: &mut dyn MessageSource, pending: Pending, done: Ingested) {
        failpoint("step-ingested");
        let Pending { batch, began, reservation } = pending;
        self.count(&batch, &done);
        let fresh = done.new.len();
        match (batch.lease, reservation) {
            (Some(lease), Some(reservation)) => self.hand_over(batch.candidates, lease, reservation, began, done.new),
            // One token is enough: the claimer looks until nothing is due.
            _ if fresh > 0 => drop(self.wake.try_send(())),
            _ => {}
        }
        let reached: Vec<(TopicPartition, i64)> =
            batch.advances.iter().map(|advance| (advance.at.clone(), advance.new)).collect();
        for advance in &batch.advances {
            let skipped = offsets::count(&advance.skipped);
            if let Some(position) = self.held.get_mut(&advance.at).and_then(|held| held.position.as_mut()) {
                position.next_offset = advance.new;
                position.skipped += skipped;
            }
            let labels = [&*advance.at.topic, &advance.at.partition.to_string()];
            self.metrics.kafka_position.with_label_values(&labels).set(advance.new);
            self.metrics.skipped_offsets_total.with_label_values(&labels[..1]).inc_by(skipped as u64);
            let lost = self.metrics.gap_records_total.with_label_values(&[labels[0], "unexplained"]);
            lost.inc_by(offsets::count(&advance.unexplained) as u64);
        }
        failpoint("step-handed-over");
        source.store(&reached);
        reached.iter().for_each(|(at, _)| self.taken_again(at));
    }

    fn hand_over(
        &self,
        candidates: Vec<crate::store::Candidate>,
        lease: i64,
        mut reservation: Reservation,
        began: Instant,
        new: Vec<(usize, i64, SystemTime)>,
    ) {
        let deadline = self.time.deadline(began);
        let mut candidates: Vec<Option<crate::store::Candidate>> = candidates.into_iter().map(Some).collect();
        let mut new = new;
        // In the order in which Kafka had them.
        new.sort_unstable_by_key(|row| row.0);
        for (place, id, received_at) in new {
            let Some(candidate) = candidates.get_mut(place).and_then(Option::take) else { continue };
            let record = candidate.record;
            let payload = record.value.unwrap_or_default();
            let leased = Leased {
                id,
                lease,
                attempt: 1,
                probe: false,
                spent: Duration::ZERO,
                previous_attempt: None,
                deadline,
                transaction_id: candidate.transaction_id,
                slot: Some(reservation.take(payload.len())),
                payload,
                headers: record.headers,
                topic: record.at.topic,
                partition: record.at.partition,
                offset: record.offset,
                received_at,
            };
            // As many slots as places: never blocks. Nobody receives only when the workers are gone; then the lease ends.
            let _ = self.handoff.send(leased);
        }
    }

    fn count(&mut self, batch: &Batch, done: &Ingested) {
        let records_total = self.metrics.records_total.clone();
        let count = |at: &TopicPartition, result: &str| records_total.with_label_values(&[&at.topic, result]).inc();
        for (place, ..) in &done.new {
            count(&batch.candidates[*place].record.at, "ingested");
        }
        for place in &done.duplicates {
            count(&batch.candidates[*place].record.at, "duplicate");
        }
        for (reason, at, offset) in &done.rejected {
            count(at, "rejected");
            self.metrics.rejected_total.with_label_values(&[reason]).inc();
            self.say_rejected(reason, at, *offset);
        }
        let rows = batch.candidates.len() + batch.rejects.len();
        if rows > 0 {
            self.metrics.batch_rows.with_label_values(&["ingest"]).observe(rows as f64);
        }
    }

    /// A line a minute for each reason: table `rejected` has them all, and a producer gone wrong must not fill a disk.
    fn say_rejected(&mut self, reason: &'static str, at: &TopicPartition, offset: i64) {
        let Some(note) = self.throttle.admit(reason, Instant::now()) else { return };
        let (topic, partition) = (&*at.topic, at.partition);
        if reason == Reason::Conflict.label() {
            log::error!(topic = topic, partition = partition, offset = offset;
                "conflict: {topic}/{partition}/{offset} repeats a known transaction_id with other bytes; both are kept, it in table rejected{note}");
        } else {
            log::warn!(topic = topic, partition = partition, offset = offset, reason = reason;
                "rejected {topic}/{partition}/{offset}: {reason}; its bytes are kept in table rejected{note}");
        }
    }
}
