//! What keeps the tables in order: registration, heartbeat, leases of the dead and those that ran out, counts.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use super::sql::{BURY, EXPIRE, GAUGES, GIVE_BACK, GIVE_BACK_LEASE, GOODBYE, HEARTBEAT, PREDECESSORS, REGISTER, SWEEP};
use super::{GateState, ProcessId, Session, StoreError};
use crate::core::ledger::{Counter, Imbalances, Ledger};
use crate::failpoint::failpoint;

/// A start of the daemon, as registered.
#[derive(Debug, Clone)]
pub struct Registration {
    /// UUID of the locked state file; `None` without a state directory.
    pub instance: Option<Uuid>,
    /// Names the lock on it.
    pub lock: Option<Uuid>,
    /// Host name.
    pub host: String,
    /// `txrelay` version.
    pub version: &'static str,
    /// `postgres.lease`
    pub lease: Duration,
}

/// A process that is registered. Its id alone may be another's after a failover to a replica that was behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// Its number.
    pub id: ProcessId,
    started_at: SystemTime,
}

/// An earlier life of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predecessor {
    /// Its number.
    pub id: ProcessId,
    /// Length of its leases.
    pub lease: Duration,
    /// Where it ran.
    pub host: String,
    /// As what.
    pub pid: i32,
    /// Its last heartbeat, by PostgreSQL's clock.
    pub seen_at: SystemTime,
    /// Whether it is known to be dead. Otherwise it may be running: as the original of a copied state file.
    pub is_dead: bool,
}

/// What the heartbeat says.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat {
    /// Requests in flight.
    pub in_flight: usize,
    /// Reasons that stand still, as in `stalled{reason}`.
    pub stalled: Vec<String>,
    /// The words of `STATUS=`.
    pub status: String,
    /// How the gate stands.
    pub gate: GateState,
}

/// What the server says to a heartbeat.
#[derive(Debug, Clone, Copy)]
pub struct Pulse {
    /// Its clock.
    pub clock: SystemTime,
    /// Whether deliveries wait to be moved to a clock that was set back.
    pub repairing: bool,
    /// Whether delivering is paused.
    pub paused: bool,
    /// Whether another process has taken this one for dead, and its place.
    pub buried: bool,
}

/// Everything that is counted, of one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gauges {
    /// Never tried.
    pub pending: i64,
    /// Leased, and the lease has not run out.
    pub in_flight: i64,
    /// Waiting after a failure, or after a lease that ran out.
    pub retrying: i64,
    /// Given up by rule.
    pub dead: i64,
    /// Closed by a person.
    pub resolved: i64,
    /// Rejected and not resolved.
    pub rejected_unresolved: i64,
    /// Sums of table `counter` by code.
    pub counters: HashMap<i16, i64>,
    /// Seconds since the oldest open transaction was stored.
    pub oldest_open_age: Option<f64>,
    /// Seconds since the oldest due delivery became due.
    pub oldest_due_age: Option<f64>,
    /// Whether delivering is paused.
    pub paused: bool,
    /// When a pass of retention last came to its end, in seconds since the epoch.
    pub retention_ended: Option<f64>,
    /// Whether the next one is due.
    pub retention_due: bool,
    /// Seconds since an audit over everything came to its end; where none has, since the pipeline began.
    pub audit_whole_age: Option<f64>,
    /// Offsets that the audit has found in no place, or in two.
    pub offsets_wrong: i64,
    /// Transactions that it has found in no state, or in two.
    pub transactions_wrong: i64,
}

impl Gauges {
    /// Both sides of the ledger. Codes of a later version are left out.
    pub fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.open = self.open();
        ledger.dead = self.dead;
        for (code, n) in &self.counters {
            if let Some(counter) = Counter::from_code(*code) {
                ledger.add(counter, *n);
            }
        }
        ledger
    }

    /// How far the equations are off; one whose counters agree is off by what the audit has found wrong on its right side.
    pub fn imbalances(&self) -> Imbalances {
        self.ledger().imbalances().or_found(self.offsets_wrong, self.transactions_wrong)
    }

    /// Rows of `delivery`.
    pub fn open(&self) -> i64 {
        self.pending + self.in_flight + self.retrying
    }

    /// What is stored now, by state as view `transaction_status` names it.
    pub fn states(&self) -> [(&'static str, i64); 6] {
        [
            ("pending", self.pending),
            ("in_flight", self.in_flight),
            ("retrying", self.retrying),
            ("delivered", self.ledger().delivered()),
            ("dead", self.dead),
            ("resolved", self.resolved),
        ]
    }
}

/// The oldest major version that is supported and tested (14 brought compression by lz4 and the vacuum settings in use).
const OLDEST_SERVER: i32 = 14;

/// The server must be new enough, and the database UTF8: another encoding would refuse records for their headers.
pub fn ensure_server(session: &mut Session) -> Result<(), StoreError> {
    let row = session
        .client
        .query_one("select current_setting('server_version_num')::int / 10000, current_setting('server_encoding')", &[])?;
    let (version, encoding): (i32, String) = (row.get(0), row.get(1));
    if version < OLDEST_SERVER {
        return Err(StoreError::Other(format!("this is PostgreSQL {version}; {OLDEST_SERVER} and later are supported")));
    }
    if encoding != "UTF8" {
        return Err(StoreError::Other(format!(
            "the database's encoding is {encoding}: make one with encoding 'UTF8' and name it in postgres.url"
        )));
    }
    Ok(())
}

/// Notes on first use whose schema this is. `Unusable`: it is another pipeline's.
pub fn ensure_pipeline(session: &mut Session, name: &str) -> Result<(), StoreError> {
    session.client.execute("insert into pipeline (name) values ($1) on conflict do nothing", &[&name])?;
    let owner: String = session.client.query_one("select name from pipeline where one", &[])?.get(0);
    if owner == name {
        return Ok(());
    }
    Err(StoreError::Unusable(format!(
        "the schema belongs to the pipeline \"{owner}\", and this one is \"{name}\": give it a schema of its own (postgres.schema), \
         or its old name back (name)"
    )))
}

impl Session {
    /// Registers this start.
    pub fn register(&mut self, registration: &Registration) -> Result<Registered, StoreError> {
        let statement = self.prepare(&REGISTER)?;
        let pid = std::process::id() as i32;
        let lease_ms = registration.lease.as_millis() as i64;
        let Registration { instance, lock, host, version, .. } = registration;
        let row = self.client.query_one(&statement, &[instance, host, &pid, version, &lease_ms, lock])?;
        Ok(Registered { id: row.get(0), started_at: row.get(1) })
    }

    /// Says that this process lives. `None`: its row is gone, so the database is not the one that it registered with.
    pub fn heartbeat(&mut self, process: Registered, beat: &Heartbeat) -> Result<Option<Pulse>, StoreError> {
        let statement = self.prepare(&HEARTBEAT)?;
        let in_flight = i32::try_from(beat.in_flight).unwrap_or(i32::MAX);
        // As times from now: only PostgreSQL's clock is written into its tables.
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let gate = &beat.gate;
        let since = gate.since.map(|since| ms(since.elapsed()));
        let next = gate.next.map(|next| ms(next.saturating_duration_since(Instant::now())));
        let is_open = gate.shut.is_none();
        let Registered { id, started_at } = process;
        let row = self.client.query_opt(
            &statement,
            &[&id, &started_at, &in_flight, &beat.stalled, &beat.status, &is_open, &gate.rate, &gate.shut, &since, &next],
        )?;
        let said = |row: &postgres::Row, n| row.get::<_, Option<bool>>(n).unwrap_or(false);
        Ok(row.map(|row| Pulse { clock: row.get(0), repairing: said(&row, 1), paused: said(&row, 2), buried: said(&row, 3) }))
    }

    /// Says that this process has ended and holds nothing.
    pub fn goodbye(&mut self, process: Registered) -> Result<(), StoreError> {
        failpoint("step-goodbye");
        let statement = self.prepare(&GOODBYE)?;
        self.client.execute(&statement, &[&process.id, &process.started_at])?;
        Ok(())
    }

    /// Earlier lives of this instance that may still hold leases. The caller holds the lock named `lock`.
    pub fn predecessors(
        &mut self,
        instance: Uuid,
        lock: Option<Uuid>,
        process: ProcessId,
    ) -> Result<Vec<Predecessor>, StoreError> {
        let statement = self.prepare(&PREDECESSORS)?;
        let rows = self.client.query(&statement, &[&instance, &process, &lock])?;
        let predecessor = |row: &postgres::Row| Predecessor {
            id: row.get(0),
            lease: Duration::from_millis(row.get::<_, i64>(1).max(0) as u64),
            host: row.get(2),
            pid: row.get(3),
            seen_at: row.get(4),
            is_dead: row.get(5),
        };
        Ok(rows.iter().map(predecessor).collect())
    }

    /// Notes that these processes are dead: they no longer count as silent, and one that wakes up all the same hears of it.
    pub fn bury(&mut self, dead: &[ProcessId]) -> Result<(), StoreError> {
        let statement = self.prepare(&BURY)?;
        self.client.execute(&statement, &[&dead])?;
        Ok(())
    }

    /// Frees the leases of dead processes, up to 500; returns how many. `longest` is the longest lease they may have taken.
    pub fn sweep(&mut self, dead: &[ProcessId], longest: Duration) -> Result<u64, StoreError> {
        self.with_history(|session, history| {
            let statement = session.prepare(&SWEEP)?;
            let freed: i64 = session.client.query_one(&statement, &[&dead, &(longest.as_millis() as i64), &history])?.get(0);
            Ok(freed as u64)
        })
    }

    /// Makes leases due again that ran out more than 5 s ago: up to 500 of those that ended at or after `from` (`None`: as far
    /// back as `longest` and 10 minutes). Returns how many, and where to look on.
    pub fn expire(&mut self, from: Option<SystemTime>, longest: Duration) -> Result<(u64, Option<SystemTime>), StoreError> {
        self.with_history(|session, history| {
            let statement = session.prepare(&EXPIRE)?;
            let row = session.client.query_one(&statement, &[&from, &(longest.as_millis() as i64), &history])?;
            Ok((row.get::<_, i64>(0) as u64, row.get(1)))
        })
    }

    /// Why attempts of leases that ran out were left out since this was last asked, if they were.
    pub fn history_refused(&mut self) -> Option<StoreError> {
        self.history_refused.take()
    }

    /// `work` takes leases that ran out. Where PostgreSQL refuses to write what became of them (a trigger, a constraint that
    /// somebody added to `attempt`), it is repeated without: a line of history is less than every delivery.
    pub(super) fn with_history<T>(
        &mut self,
        mut work: impl FnMut(&mut Self, bool) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work(self, true) {
            Err(error) if error.refuses_rows() => {
                let done = work(self, false)?;
                self.history_refused = Some(error);
                Ok(done)
            }
            done => done,
        }
    }

    /// Gives leased rows back that were not sent: (id, lease) each. They are due again after `delay`.
    pub fn give_back(&mut self, rows: &[(i64, i64)], delay: Duration) -> Result<u64, StoreError> {
        let statement = self.prepare(&GIVE_BACK)?;
        let (ids, leases): (Vec<i64>, Vec<i64>) = rows.iter().copied().unzip();
        failpoint("step-give-back");
        let n = self.client.execute(&statement, &[&ids, &leases, &(delay.as_millis() as i64)])?;
        failpoint("step-given-back");
        Ok(n)
    }

    /// Gives back all that carries `lease`: a claim whose commit is in doubt, and of which nothing was sent.
    pub fn give_back_lease(&mut self, lease: i64, length: Duration) -> Result<u64, StoreError> {
        let statement = self.prepare(&GIVE_BACK_LEASE)?;
        let n = self.client.execute(&statement, &[&lease, &(length.as_millis() as i64)])?;
        failpoint("step-give-back-lease");
        Ok(n)
    }

    /// Counts everything.
    pub fn gauges(&mut self) -> Result<Gauges, StoreError> {
        let statement = self.prepare(&GAUGES)?;
        let row = self.client.query_one(&statement, &[])?;
        let counters: serde_json::Value = row.get("counters");
        let counters = counters.as_object().into_iter().flatten();
        Ok(Gauges {
            pending: row.get("pending"),
            in_flight: row.get("in_flight"),
            retrying: row.get("retrying"),
            dead: row.get("dead"),
            resolved: row.get("resolved"),
            rejected_unresolved: row.get("rejected_unresolved"),
            counters: counters.filter_map(|(code, n)| Some((code.parse().ok()?, n.as_i64()?))).collect(),
            oldest_open_age: row.get("oldest_open_age"),
            oldest_due_age: row.get("oldest_due_age"),
            paused: row.get::<_, Option<bool>>("paused").unwrap_or(false),
            retention_ended: row.get("retention_ended"),
            retention_due: row.get::<_, Option<bool>>("retention_due").unwrap_or(false),
            audit_whole_age: row.get("audit_whole_age"),
            offsets_wrong: row.get("offsets_wrong"),
            transactions_wrong: row.get("transactions_wrong"),
        })
    }
}
