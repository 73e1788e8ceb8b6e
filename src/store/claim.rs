//! Taking what is due: claim and reclaim are one statement, with a moving lower bound that steps over dead index entries.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::lease::{LeaseTime, Leased, Reservation};
use super::sql::{CLAIM_ONE, CLAIM_PROBE, NEXT_DUE, PAYLOADS, Sql, claim};
use super::{ProcessId, Session, StoreError};
use crate::core::headers;
use crate::failpoint::failpoint;

/// Lower bound of the next poll on `due_at`: below it nothing live is expected. It makes a poll independent of the dead
/// entries that a long transaction of somebody else keeps in the index (0.1 ms instead of 67 and growing).
#[derive(Debug, Default)]
pub struct Floor {
    at: Option<SystemTime>,
    reset_at: Option<Instant>,
    polled_at: Option<Instant>,
}

impl Floor {
    /// The bound for a poll at `now`; `None` = from the beginning. Safety net: from the beginning every 60 s, and after 30 s
    /// without a poll.
    pub fn take(&mut self, now: Instant) -> Option<SystemTime> {
        let older = |at: Option<Instant>, seconds| at.is_none_or(|at| now.saturating_duration_since(at).as_secs() >= seconds);
        if older(self.reset_at, 60) || older(self.polled_at, 30) {
            self.at = None;
            self.reset_at = Some(now);
        }
        self.polled_at = Some(now);
        self.at
    }

    /// After start, resume, reconnect or error: from the beginning.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Learns from a poll: a short one leaves nothing older than a minute behind; a full one nothing below its last row,
    /// less 10 s for transactions that took their `now()` earlier.
    pub fn learn(&mut self, claims: &Claims) {
        let Some(now) = claims.database_now else { return };
        self.at = match (claims.short, claims.newest_due) {
            (true, _) => now.checked_sub(Duration::from_secs(60)),
            (false, Some(due)) => due.min(now).checked_sub(Duration::from_secs(10)),
            (false, None) => self.at,
        };
    }
}

/// What a claim took.
#[derive(Debug)]
pub struct Claimed {
    /// Rows with all that their requests need.
    pub rows: Vec<Leased>,
    /// Rows that no longer fitted into the reserved bytes: to be given back (id, lease).
    pub too_much: Vec<(i64, i64)>,
}

/// What a claim says about the queue.
#[derive(Debug)]
pub struct Claims {
    /// Fewer rows than its limit: there is no backlog.
    pub short: bool,
    /// How many of them had been leased before: their leases had run out.
    pub lost: usize,
    /// Why those left no attempt, if they left none.
    pub history_refused: Option<StoreError>,
    newest_due: Option<SystemTime>,
    database_now: Option<SystemTime>,
}

/// Who claims, under which lease.
#[derive(Debug, Clone, Copy)]
pub struct Claimant {
    /// This process.
    pub process: ProcessId,
    /// Random, drawn for this batch.
    pub lease: i64,
    /// Length of the lease.
    pub time: LeaseTime,
}

impl Session {
    /// Claims up to `limit` (one of [`super::CLAIM_LIMITS`]) due deliveries, oldest due first.
    pub fn claim(
        &mut self,
        limit: usize,
        who: Claimant,
        floor: Option<SystemTime>,
        room: Reservation,
    ) -> Result<(Claimed, Claims), StoreError> {
        self.claim_with(&claim(limit), limit, who, floor, room)
    }

    /// Claims one delivery, due or not, to find out whether the service accepts again: one that was never tried if there is
    /// one, so that a delivery that always fails does not keep the gate shut.
    pub fn claim_probe(&mut self, who: Claimant, room: Reservation) -> Result<(Claimed, Claims), StoreError> {
        let (mut claimed, claims) = self.claim_with(&CLAIM_PROBE, 1, who, None, room)?;
        claimed.rows.iter_mut().for_each(|leased| leased.probe = true);
        Ok((claimed, claims))
    }

    /// Claims one delivery that is due, to find out whether PostgreSQL takes outcomes again: one that was never tried if there
    /// is one, so that those whose outcomes are refused hold up no others.
    pub fn claim_one(&mut self, who: Claimant, room: Reservation) -> Result<(Claimed, Claims), StoreError> {
        self.claim_with(&CLAIM_ONE, 1, who, None, room)
    }

    fn claim_with(
        &mut self,
        sql: &Sql,
        limit: usize,
        who: Claimant,
        floor: Option<SystemTime>,
        mut room: Reservation,
    ) -> Result<(Claimed, Claims), StoreError> {
        let (claimed, mut claims) =
            self.with_history(|session, history| session.claim_once(sql, limit, who, (floor, history), &mut room))?;
        claims.history_refused = self.history_refused();
        Ok((claimed, claims))
    }

    fn claim_once(
        &mut self,
        sql: &Sql,
        limit: usize,
        who: Claimant,
        (floor, history): (Option<SystemTime>, bool),
        room: &mut Reservation,
    ) -> Result<(Claimed, Claims), StoreError> {
        let statement = self.prepare(sql)?;
        let payloads = self.prepare(&PAYLOADS)?;
        let before = Instant::now();
        let lease_ms = who.time.lease.as_millis() as i64;
        // One transaction: if the payloads cannot be read, nothing has been claimed.
        let mut transaction = self.client.transaction()?;
        let rows = transaction.query(&statement, &[&who.lease, &who.process, &lease_ms, &floor, &history])?;
        let claims = Claims {
            short: rows.len() < limit,
            lost: rows.iter().filter(|row| row.get::<_, bool>(4)).count(),
            history_refused: None,
            newest_due: rows.iter().map(|row| row.get(3)).max(),
            database_now: rows.first().map(|row| row.get(5)),
        };
        if rows.is_empty() {
            transaction.commit()?;
            return Ok((Claimed { rows: Vec::new(), too_much: Vec::new() }, claims));
        }
        let mut heads: Vec<(i64, i32, i64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        heads.sort_unstable();
        let ids: Vec<i64> = heads.iter().map(|head| head.0).collect();
        let retried: Vec<i64> = heads.iter().filter(|head| head.1 > 1).map(|head| head.0).collect();
        let mut bodies = transaction.query(&payloads, &[&ids, &(room.bytes() as i64), &retried])?;
        failpoint("step-claim-commit");
        transaction.commit()?;
        failpoint("step-claimed");
        bodies.sort_unstable_by_key(|row| row.get::<_, i64>(0));
        let mut claimed = Claimed { rows: Vec::with_capacity(heads.len()), too_much: Vec::new() };
        let mut topic: Arc<str> = Arc::from("");
        let mut bodies = bodies.into_iter().peekable();
        for (id, attempt, spent_ms) in heads {
            // An id without a body cannot be (no delivery without its tx); if it is, its lease runs out and it is named unaccounted.
            let Some(body) = bodies.next_if(|row| row.get::<_, i64>(0) == id) else { continue };
            let payload: Option<Vec<u8>> = body.get(8);
            let Some(payload) = payload.filter(|p| p.len() <= room.bytes()) else {
                claimed.too_much.push((id, who.lease));
                continue;
            };
            let name: &str = body.get(3);
            if *topic != *name {
                topic = Arc::from(name);
            }
            let previous_ms: Option<i64> = body.get(9);
            let previous = previous_ms.map(|ms| Duration::from_millis(ms.max(0) as u64));
            let stored: Option<serde_json::Value> = body.get(7);
            claimed.rows.push(Leased {
                id,
                lease: who.lease,
                attempt,
                probe: false,
                spent: Duration::from_millis(spent_ms.max(0) as u64),
                previous_attempt: previous.and_then(|age| before.checked_sub(age)),
                deadline: who.time.deadline(before),
                transaction_id: body.get(1),
                slot: Some(room.take(payload.len())),
                payload,
                headers: stored.map(|json| headers::from_json(&json)).unwrap_or_default(),
                topic: topic.clone(),
                partition: body.get(4),
                offset: body.get(5),
                received_at: body.get(2),
            });
        }
        Ok((claimed, claims))
    }

    /// Time until the next delivery is due or a lease ends; `None`: nothing is open. Never negative.
    pub fn next_due(&mut self, floor: Option<SystemTime>) -> Result<Option<Duration>, StoreError> {
        let statement = self.prepare(&NEXT_DUE)?;
        let ms: Option<i64> = self.client.query_one(&statement, &[&floor])?.get(0);
        Ok(ms.map(|ms| Duration::from_millis(ms.max(0) as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(short: bool, now: SystemTime, due: Option<SystemTime>) -> Claims {
        Claims { short, lost: 0, history_refused: None, newest_due: due, database_now: Some(now) }
    }

    #[test]
    fn the_floor_follows_the_polls_and_starts_over_once_a_minute() {
        let start = Instant::now();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut floor = Floor::default();
        assert_eq!(floor.take(start), None, "at start from the beginning");
        floor.learn(&claims(true, now, None));
        assert_eq!(floor.take(start), Some(now - Duration::from_secs(60)));
        let due = now - Duration::from_secs(300);
        floor.learn(&claims(false, now, Some(due)));
        assert_eq!(floor.take(start + Duration::from_secs(29)), Some(due - Duration::from_secs(10)));
        assert_eq!(floor.take(start + Duration::from_secs(60)), None, "a minute after the last reset");
        floor.learn(&claims(true, now, None));
        assert_eq!(floor.take(start + Duration::from_secs(91)), None, "30 s without a poll");
        floor.learn(&claims(true, now, None));
        floor.reset();
        assert_eq!(floor.take(start + Duration::from_secs(92)), None);
    }
}
