//! Upkeep: opens the store (schema, registration), then in rounds: heartbeat, stepped clocks, leases of dead predecessors and those
//! that ran out, counts, retention, the audit.
//!
//! Beside it, a thread that looks at Kafka's certificates. May use `store`, `source`, `ops`, `config`, `core`. Uses the pool; the threads on a transaction's way have connections of their own.

mod audit;
mod clocks;
mod counting;
mod kafka_tls;
mod leases;
mod retention;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Sender;

use self::audit::Auditing;
use self::clocks::Clocks;
use self::counting::Counting;
pub use self::kafka_tls::KafkaTls;
use self::retention::Retention;
use crate::config::Current;
use crate::failpoint::failpoint;
use crate::ops::VERSION;
use crate::ops::health::Health;
use crate::ops::instance::Mark;
use crate::ops::metrics::{Metrics, unix_seconds};
use crate::ops::pulse;
use crate::ops::stop::{ExitWith, Stop};
use crate::ops::throttle::Throttle;
use crate::store::{
    GateBoard, Gauges, Heartbeat, Pool, ProcessId, Registered, Registration, Role, Room, SchemaState, Session, StoreError,
    ensure_own_session, ensure_pipeline, ensure_server, ensure_unaltered, grant, migrate, schema_state,
};

/// One round: what it costs PostgreSQL is less than 1 % of a core.
const ROUND: Duration = Duration::from_secs(1);
/// A kept connection that fails as soon as this is made anew at once.
const RENEWED: Duration = Duration::from_secs(5);

/// The upkeep thread.
pub struct Upkeep {
    /// The pipeline, as last reloaded.
    pub config: Current,
    /// Its connections.
    pub pool: Pool,
    /// Learns whether delivering is paused.
    pub room: Arc<Room>,
    /// How the gate stands.
    pub gate: Arc<GateBoard>,
    /// Open deliveries as last counted, for whoever must stop reading when they are too many.
    pub open: Arc<AtomicI64>,
    /// Outcomes are kept that PostgreSQL does not have yet: their leases may have run out, and must not be taken from them.
    pub unsettled: Arc<AtomicBool>,
    /// Of the locked state file; `None`: no sweep, only expiry.
    pub instance: Option<Mark>,
    /// Series.
    pub metrics: Metrics,
    /// What is waited for.
    pub health: Health,
    /// What was said lately.
    pub throttle: Throttle,
    /// Told to stop, it says goodbye.
    pub stop: Stop,
}

impl Upkeep {
    /// Opens the store, tells the others the process's number, and keeps order until told to stop.
    pub fn run(mut self, opened: &[Sender<ProcessId>]) -> anyhow::Result<()> {
        let Some(process) = self.open()? else { return Ok(()) };
        // Nothing is swept and no group is joined while another process may hold this one's place.
        let result = self.outlive_predecessors(process).and_then(|is_alone| {
            if !is_alone {
                return Ok(());
            }
            self.health.go("upkeep", "postgres");
            for thread in opened {
                // A thread that is gone has been reported by itself.
                let _ = thread.send(process.id);
            }
            self.keep(process)
        });
        pulse::at("saying goodbye", pulse::REMOTE);
        let goodbye = |pool: &mut Pool| pool.session().and_then(|mut session| session.goodbye(process));
        // Without it the heartbeat's silence says the same a little later.
        if goodbye(&mut self.pool).is_err() && self.pool.lent_kept() {
            let _ = goodbye(&mut self.pool);
        }
        result
    }

    /// Tries until there is a schema that can be used. `None`: told to stop. Only another pipeline's schema, or one that this
    /// version cannot use, ends the process.
    fn open(&mut self) -> anyhow::Result<Option<Registered>> {
        let mut pause = Duration::from_millis(100);
        loop {
            // Migrations of a large schema take their time.
            pulse::at("opening the store", pulse::REMOTE);
            let error = match self.try_open() {
                Ok(process) => {
                    self.health.go("upkeep", "schema");
                    return Ok(Some(process));
                }
                Err(StoreError::Unusable(text)) => return Err(ExitWith { status: 78, text }.into()),
                Err(error) => error,
            };
            self.say_unopened(&error);
            pause = (pause * 2).min(Duration::from_secs(5));
            pulse::at("waiting to open the store", pulse::PROMPT);
            if self.stop.wait(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)) {
                return Ok(None);
            }
        }
    }

    /// The store cannot be used yet.
    fn say_unopened(&mut self, error: &StoreError) {
        self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
        let reason = if matches!(error, StoreError::Connection(_)) { "postgres" } else { "schema" };
        self.health.go("upkeep", if reason == "postgres" { "schema" } else { "postgres" });
        self.health.wait("upkeep", reason, format!("PostgreSQL: {error}"));
        if let Some(note) = self.throttle.admit(&error.to_string(), Instant::now()) {
            log::warn!("waiting for PostgreSQL: {error}{note}");
        }
    }

    fn try_open(&mut self) -> Result<Registered, StoreError> {
        let config = self.config.get();
        // Not out of the pool: it tries again and again by itself, and hides why it fails.
        let role = |role| Role { pipeline: config.name.clone(), role };
        let mut session = Session::connect(&config.postgres, &role("upkeep"))?;
        ensure_own_session(&mut session, &config.postgres, &role("upkeep"))?;
        ensure_server(&mut session)?;
        match schema_state(&mut session)? {
            SchemaState::Ready => {}
            SchemaState::Behind { .. } if config.postgres.migrate => {
                // It may rewrite a large table: for as long as it likes.
                pulse::at("migrating", None);
                // On a connection of its own: migrations change its timeouts.
                let applied =
                    migrate(&mut Session::connect_patiently(&config.postgres, &role("migrate"))?, &config.postgres.schema)?;
                pulse::at("opening the store", pulse::REMOTE);
                grant(&mut session, &config.postgres.schema, config.postgres.client.get_user())?;
                log::info!("schema {}: applied {}", config.postgres.schema, applied.join(", "));
            }
            SchemaState::Behind { have, need } => {
                return Err(StoreError::Other(format!(
                    "schema {} is at version {have}, this txrelay needs {need}, and postgres.migrate is false: run `txrelay migrate`",
                    config.postgres.schema
                )));
            }
            SchemaState::TooNew { have } => {
                return Err(StoreError::Unusable(format!(
                    "schema {} is at version {have}, which this txrelay cannot use: install the release that migrated it, or a newer one",
                    config.postgres.schema
                )));
            }
        }
        ensure_unaltered(&mut session)?;
        ensure_pipeline(&mut session, &config.name)?;
        self.look_for_clock_set_back(&mut session)?;
        session.register(&Registration {
            instance: self.instance.as_ref().map(|mark| mark.id),
            lock: self.instance.as_ref().and_then(|mark| mark.lock),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            version: VERSION,
            lease: config.postgres.lease,
        })
    }

    fn keep(&mut self, process: Registered) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut rounds = Rounds {
            counting: Counting::new(began),
            sweep_at: Duration::ZERO,
            oldest: None,
            expired_until: None,
            clocks: Clocks::new(began),
            retention: Retention::new(began),
            auditing: Auditing::new(began),
            session_failed: false,
        };
        loop {
            let asked = Instant::now();
            let mut result = self.try_round(process, began, &mut rounds);
            // A connection that went while it was kept costs no round. One that does not answer does.
            if matches!(result, Err(StoreError::Connection(_))) && self.pool.lent_kept() && asked.elapsed() < RENEWED {
                result = self.try_round(process, began, &mut rounds);
            }
            self.metrics.postgres_up.set(i64::from(result.is_ok()));
            match result {
                Ok(()) => self.health.go("upkeep", "postgres"),
                Err(StoreError::Fenced(why)) => anyhow::bail!("{why}"),
                Err(StoreError::Unusable(text)) => return Err(ExitWith { status: 78, text }.into()),
                Err(error) => {
                    self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
                    if let Some(note) = self.throttle.admit(error.kind(), Instant::now()) {
                        log::warn!("upkeep failed, will try again: {error}{note}");
                    }
                    self.health.wait("upkeep", "postgres", format!("PostgreSQL: {error}"));
                    if matches!(error, StoreError::Connection(_)) {
                        // The next one may be a replica that was behind: there, leases from before this may not have ended.
                        rounds.expired_until = None;
                        rounds.counting.forget();
                    }
                    self.pool.renew();
                }
            }
            if let Some(oldest) = &rounds.oldest {
                oldest.show(&self.metrics);
            }
            pulse::at("resting", pulse::PROMPT);
            failpoint("thread-upkeep");
            if self.stop.wait(if rounds.retention.goes_on() { ROUND / 5 } else { ROUND }) {
                return Ok(());
            }
        }
    }

    fn try_round(&mut self, process: Registered, began: Instant, rounds: &mut Rounds) -> Result<(), StoreError> {
        // Also looks at a connection that the pool hands out, and makes one.
        pulse::at("beating", pulse::REMOTE);
        let mut session = self.pool.session()?;
        rounds.session_failed = false;
        self.round(&mut session, process, began, rounds)?;
        if !rounds.session_failed {
            self.pool.keep(session);
        }
        Ok(())
    }

    fn round(
        &mut self,
        session: &mut Session,
        process: Registered,
        began: Instant,
        rounds: &mut Rounds,
    ) -> Result<(), StoreError> {
        let beat = Heartbeat {
            in_flight: self.metrics.requests_in_flight.get().max(0) as usize,
            stalled: self.health.waits().into_iter().map(|(reason, _)| reason.to_owned()).collect(),
            status: self.health.words(),
            gate: self.gate.read(),
        };
        let before = Instant::now();
        let Some(pulse) = session.heartbeat(process, &beat)? else {
            return Err(StoreError::Fenced(
                "this process is no longer registered: was the database restored from a backup, or has a replica taken over that was \
                 behind? It starts anew"
                    .to_owned(),
            ));
        };
        self.gate.note_clock(pulse.clock, SystemTime::now());
        if pulse.buried {
            return Err(StoreError::Unusable(self.say_replaced()));
        }
        let process = process.id;
        self.heed_pause(pulse.paused);
        let expires_at = self.pool.certificate_expires_at().unwrap_or(0);
        self.metrics.certificate_expiry_timestamp_seconds.with_label_values(&["postgres"]).set(expires_at as f64);
        self.look_at_clocks(session, rounds, &pulse, before)?;
        if began.elapsed() >= rounds.sweep_at {
            self.sweep(session, process)?;
            // What was on its way to PostgreSQL when a predecessor died comes within its timeouts; what comes later expires.
            rounds.sweep_at = (began.elapsed() * 2).max(ROUND);
        }
        // As the claimer: what was sent under a lease that ran out during an outage is settled first, or it would be sent again.
        if !rounds.counting.found_nothing_open(Instant::now()) && !self.unsettled.load(Ordering::Acquire) {
            match self.expire(session, rounds.expired_until) {
                Ok(until) => rounds.expired_until = until,
                // Too much is due in its window: claims find those leases, and counting must not wait for it.
                Err(StoreError::Busy(why)) => {
                    log::debug!("leases that ran out are left to claims: {why}");
                    rounds.expired_until = pulse.clock.checked_sub(Duration::from_secs(5));
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = session.history_refused()
            && let Some(note) = self.throttle.admit("history", Instant::now())
        {
            log::error!(
                "PostgreSQL refuses the attempts of leases that ran out: {error}; they are due again without their history{note}"
            );
        }
        if rounds.counting.is_due(Instant::now(), self.commits()) {
            pulse::at("counting", pulse::REMOTE);
            let (counting, commits) = (Instant::now(), self.commits());
            let gauges = session.gauges();
            let is_new = rounds.counting.learn(counting, Instant::now(), gauges.as_ref().ok(), commits);
            let gauges = gauges?;
            self.show(&gauges);
            rounds.oldest = Some(Oldest { read_at: counting, open: gauges.oldest_open_age, due: gauges.oldest_due_age });
            rounds.retention.learn(&gauges);
            rounds.auditing.learn(&gauges, is_new);
            self.say_findings(session, &gauges)?;
            if gauges.open() > 0 {
                self.pull_in(session)?;
            }
        }
        self.retain(session, process, rounds)?;
        pulse::at("auditing", pulse::REMOTE);
        self.audit(session, process, rounds)
    }

    /// How often this process has committed records and outcomes.
    fn commits(&self) -> u64 {
        let of = |what| self.metrics.commit_duration_seconds.with_label_values(&[what]).get_sample_count();
        of("ingest") + of("settle")
    }

    fn show(&mut self, gauges: &Gauges) {
        for (state, n) in gauges.states() {
            self.metrics.transactions.with_label_values(&[state]).set(n);
        }
        self.open.store(gauges.open(), Ordering::Relaxed);
        for (equation, off) in gauges.imbalances().labelled() {
            self.metrics.ledger_imbalance.with_label_values(&[equation]).set(off);
            if off != 0
                && let Some(note) = self.throttle.admit(equation, Instant::now())
            {
                log::error!(equation = equation, off = off; "the ledger's equation \"{equation}\" is off by {off}{note}");
            }
        }
        self.metrics.rejected_unresolved.set(gauges.rejected_unresolved);
        self.metrics.stats_last_success_timestamp_seconds.set(unix_seconds());
        self.metrics.retention_last_success_timestamp_seconds.set(gauges.retention_ended.unwrap_or(0.0));
    }

    /// Each round, and not with the counts: fresh rows are born leased as long as nobody says that delivering is paused.
    fn heed_pause(&self, is_paused: bool) {
        self.room.set_paused(is_paused);
        if is_paused {
            self.health.wait("upkeep", "paused", "delivering is paused");
        } else {
            self.health.go("upkeep", "paused");
        }
    }
}

/// When what is due again.
struct Rounds {
    counting: Counting,
    /// Since the start.
    sweep_at: Duration,
    oldest: Option<Oldest>,
    /// Leases that ended before this have been looked at, by PostgreSQL's clock.
    expired_until: Option<SystemTime>,
    clocks: Clocks,
    retention: Retention,
    auditing: Auditing,
    /// Something failed that the round outlives: perhaps what the session has prepared no longer fits its tables.
    session_failed: bool,
}

/// Ages as last read; they keep growing while PostgreSQL is away.
struct Oldest {
    read_at: Instant,
    open: Option<f64>,
    due: Option<f64>,
}

impl Oldest {
    fn show(&self, metrics: &Metrics) {
        let since = self.read_at.elapsed().as_secs_f64();
        metrics.oldest_open_age_seconds.set(self.open.map_or(0.0, |age| age + since));
        metrics.oldest_due_age_seconds.set(self.due.map_or(0.0, |age| age + since));
    }
}
