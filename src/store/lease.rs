//! What this process has leased and not sent yet: the rows, the time that it may use them, and the room that bounds them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::core::headers::Headers;
use crate::core::room::{self, BYTES_MAX};

/// A lease that took so long to be committed may have been taken in a sleep, in which a copy of this process has taken it for dead
/// (silent for 10 s, `predecessors.sql`) and goes on with its deliveries.
const PERHAPS_BURIED: Duration = Duration::from_secs(9);

/// How long a lease is, and how much of it may be used locally.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTime {
    /// `postgres.lease`
    pub lease: Duration,
    /// `downstream.timeout`
    pub timeout: Duration,
}

impl LeaseTime {
    /// Past this instant a delivery is given back instead of sent, for its lease could end before the answer comes.
    /// `before_begin` is the instant before the statement that took the lease; asked once that is committed.
    pub fn deadline(&self, before_begin: Instant) -> Instant {
        if before_begin.elapsed() >= PERHAPS_BURIED {
            return before_begin;
        }
        before_begin + self.lease.saturating_sub(self.timeout).saturating_sub(Duration::from_secs(5))
    }
}

/// A delivery leased by this process, with all that its request needs.
#[derive(Debug)]
pub struct Leased {
    /// `tx.id`
    pub id: i64,
    /// The fence.
    pub lease: i64,
    /// 1 for the first attempt.
    pub attempt: i32,
    /// Waited so far for its own failures.
    pub spent: Duration,
    /// When its previous attempt ended; `None` for the first.
    pub previous_attempt: Option<Instant>,
    /// See [`LeaseTime::deadline`].
    pub deadline: Instant,
    /// The id, as stored.
    pub transaction_id: String,
    /// The stored bytes.
    pub payload: Vec<u8>,
    /// Kafka headers.
    pub headers: Headers,
    /// Where it came from.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// When it was committed, by PostgreSQL's clock.
    pub received_at: SystemTime,
    /// Claimed while the gate was shut, to find out whether it can open.
    pub probe: bool,
    /// Its place among what waits in memory: given up when its request starts.
    pub slot: Option<Slot>,
}

/// The bound on what waits in memory for a worker. Slots are reserved before the INSERT or the claim, and never more than
/// can start within a third of the lease at the present pace.
///
/// It also knows whether fresh rows may be born leased: not while anything is paused or the gate is shut, and only while a claim within the last
/// second came back short, so that they never overtake a backlog for ever.
#[derive(Debug)]
pub struct Room {
    inner: Mutex<Inner>,
    freed: Sender<()>,
    /// A token when room has come back that somebody waited for.
    pub on_freed: Receiver<()>,
    workers: usize,
    lease: Duration,
}

#[derive(Debug)]
struct Inner {
    rows: usize,
    bytes: usize,
    mean_request: Duration,
    short_at: Option<Instant>,
    paused: bool,
    /// What the gate lets through per second; 0 while it is shut.
    pace: f64,
    wanted: usize,
}

impl Room {
    /// Empty. Until requests have been timed, each is taken to last for the whole `timeout`.
    pub fn new(workers: usize, time: LeaseTime) -> Arc<Self> {
        let (freed, on_freed) = bounded(1);
        let inner = Inner {
            rows: 0,
            bytes: 0,
            mean_request: time.timeout,
            short_at: None,
            paused: false,
            pace: f64::INFINITY,
            wanted: 0,
        };
        Arc::new(Self { inner: Mutex::new(inner), freed, on_freed, workers, lease: time.lease })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self, inner: &Inner) -> usize {
        room::limit(self.workers, inner.mean_request, self.lease).min(room::limit_at(inner.pace, self.lease))
    }

    /// How many rows could be reserved now.
    pub fn free_rows(&self) -> usize {
        let inner = self.lock();
        if inner.bytes >= BYTES_MAX { 0 } else { self.limit(&inner).saturating_sub(inner.rows) }
    }

    /// Rows and bytes that are reserved or wait for a worker, and how many rows may.
    pub fn held(&self) -> (usize, usize, usize) {
        let inner = self.lock();
        (inner.rows, inner.bytes, self.limit(&inner))
    }

    /// Exactly this much, or nothing.
    pub fn reserve(self: &Arc<Self>, rows: usize, bytes: usize) -> Option<Reservation> {
        let mut inner = self.lock();
        if inner.rows + rows > self.limit(&inner) || inner.bytes + bytes > BYTES_MAX {
            return None;
        }
        inner.rows += rows;
        inner.bytes += bytes;
        Some(Reservation { room: self.clone(), rows, bytes })
    }

    /// `rows` rows, if there is room for them, and whatever bytes are left.
    pub fn reserve_rows(self: &Arc<Self>, rows: usize) -> Option<Reservation> {
        let bytes = BYTES_MAX.saturating_sub(self.lock().bytes);
        self.reserve(rows, bytes)
    }

    /// Asks for a token on [`Room::on_freed`] once `rows` rows are free.
    pub fn want(&self, rows: usize) {
        let mut inner = self.lock();
        inner.wanted = rows.clamp(1, self.limit(&inner));
        let free = self.limit(&inner).saturating_sub(inner.rows);
        if free >= inner.wanted && inner.bytes < BYTES_MAX {
            inner.wanted = 0;
            // One token says it; a second would say nothing more.
            let _ = self.freed.try_send(());
        }
    }

    /// Notes how long a request took; the pace is its moving average over some 50 requests.
    pub fn observe(&self, request: Duration) {
        let mut inner = self.lock();
        inner.mean_request = (inner.mean_request * 49 + request) / 50;
    }

    /// Notes a claim: `short` = fewer rows than its limit, so there is no backlog.
    pub fn claimed(&self, short: bool, now: Instant) {
        self.lock().short_at = short.then_some(now);
    }

    /// Notes whether delivering is paused.
    pub fn set_paused(&self, paused: bool) {
        self.lock().paused = paused;
    }

    /// Notes what the gate lets through, per second; 0 while it is shut.
    pub fn set_pace(&self, pace: f64) {
        self.lock().pace = pace;
    }

    /// Whether fresh rows may be born leased now.
    pub fn takes_fresh(&self, now: Instant) -> bool {
        let inner = self.lock();
        !inner.paused
            && inner.pace > 0.0
            && inner.short_at.is_some_and(|at| now.saturating_duration_since(at) <= Duration::from_secs(1))
    }

    fn release(&self, rows: usize, bytes: usize) {
        let mut inner = self.lock();
        inner.rows -= rows;
        inner.bytes -= bytes;
        let free = self.limit(&inner).saturating_sub(inner.rows);
        if inner.wanted > 0 && free >= inner.wanted {
            inner.wanted = 0;
            let _ = self.freed.try_send(());
        }
    }
}

/// Room held before it is known which rows will use it; what is left is free again on drop.
#[derive(Debug)]
pub struct Reservation {
    room: Arc<Room>,
    rows: usize,
    bytes: usize,
}

impl Reservation {
    /// Bytes still unused.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// One row's part of it.
    ///
    /// # Panics
    /// When more rows or bytes are taken than were reserved: a bug of the caller.
    pub fn take(&mut self, bytes: usize) -> Slot {
        assert!(self.rows > 0 && bytes <= self.bytes, "a slot is taken out of what was reserved");
        self.rows -= 1;
        self.bytes -= bytes;
        Slot { room: self.room.clone(), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.release(self.rows, self.bytes);
    }
}

/// One row's place in memory.
#[derive(Debug)]
pub struct Slot {
    room: Arc<Room>,
    bytes: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.room.release(1, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::room::ROWS_MAX;

    fn room() -> Arc<Room> {
        let room = Room::new(64, LeaseTime { lease: Duration::from_secs(60), timeout: Duration::from_secs(15) });
        (0..1000).for_each(|_| room.observe(Duration::from_millis(1)));
        room
    }

    #[test]
    fn what_was_leased_in_a_sleep_is_not_sent() {
        let time = LeaseTime { lease: Duration::from_secs(60), timeout: Duration::from_secs(15) };
        let now = Instant::now();
        let before = |seconds| now.checked_sub(Duration::from_secs(seconds)).expect("the machine runs for longer");
        assert!(time.deadline(before(0)) > now + Duration::from_secs(39));
        assert!(time.deadline(before(8)) > now + Duration::from_secs(31));
        assert!(time.deadline(before(9)) <= now);
    }

    #[test]
    fn what_is_reserved_is_free_again_when_dropped() {
        let room = room();
        let all = room.free_rows();
        let mut reservation = room.reserve(3, 300).expect("there is room");
        let slot = reservation.take(100);
        drop(reservation);
        assert_eq!(room.free_rows(), all - 1);
        drop(slot);
        assert_eq!(room.free_rows(), all);
    }

    #[test]
    fn more_than_the_room_is_refused_whole() {
        let room = room();
        assert!(room.reserve(ROWS_MAX + 1, 0).is_none());
        assert!(room.reserve(1, BYTES_MAX + 1).is_none());
        assert!(room.reserve(ROWS_MAX, BYTES_MAX).is_some());
    }

    #[test]
    fn fresh_rows_wait_while_there_is_a_backlog_or_no_recent_claim() {
        let room = room();
        let now = Instant::now();
        assert!(!room.takes_fresh(now), "nothing was claimed yet");
        room.claimed(true, now);
        assert!(room.takes_fresh(now));
        assert!(!room.takes_fresh(now + Duration::from_millis(1001)), "the claim is too old");
        room.claimed(false, now);
        assert!(!room.takes_fresh(now), "the claim came back full");
        room.claimed(true, now);
        room.set_paused(true);
        assert!(!room.takes_fresh(now), "paused");
        room.set_paused(false);
        room.set_pace(0.0);
        assert!(!room.takes_fresh(now), "the gate is shut");
    }

    #[test]
    fn who_waits_for_room_gets_a_token_when_it_is_there() {
        let room = room();
        let all = room.free_rows();
        let mut reservation = room.reserve(all, 0).expect("all of it");
        let slots: Vec<_> = (0..all).map(|_| reservation.take(0)).collect();
        room.want(2);
        assert!(room.on_freed.try_recv().is_err());
        let mut slots = slots.into_iter();
        drop(slots.next());
        assert!(room.on_freed.try_recv().is_err(), "one is not two");
        drop(slots.next());
        assert!(room.on_freed.try_recv().is_ok());
    }
}
