//! Upkeep: opens the store (schema, registration), then heartbeat, leases of dead predecessors, stepped clocks, counts.
//!
//! May use `store`, `ops`, `config`, `core`. Uses the pool; the threads on a transaction's way have connections of their own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use uuid::Uuid;

use crate::config::Current;
use crate::core::ledger::{Counter, Ledger};
use crate::ops::VERSION;
use crate::ops::health::Health;
use crate::ops::metrics::{Metrics, unix_seconds};
use crate::ops::stop::{ExitWith, Stop};
use crate::ops::throttle::Throttle;
use crate::ops::{failpoint, pulse};
use crate::store::{
    Gauges, Heartbeat, Pool, ProcessId, Registration, Role, Room, SchemaState, Session, StoreError, ensure_encoding,
    ensure_pipeline, migrate, schema_state,
};

/// One round: what it costs PostgreSQL is less than 1 % of a core.
const ROUND: Duration = Duration::from_secs(1);
/// Between two counts, and at least 20 times what a count takes: counting a large backlog must not become the load.
const COUNT: Duration = Duration::from_secs(2);

/// The upkeep thread.
pub struct Upkeep {
    /// The pipeline, as last reloaded.
    pub config: Current,
    /// Its connections.
    pub pool: Pool,
    /// Learns whether delivering is paused.
    pub room: Arc<Room>,
    /// Of the locked state file; `None`: no sweep, only expiry.
    pub instance: Option<Uuid>,
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
        for thread in opened {
            // A thread that is gone has been reported by itself.
            let _ = thread.send(process);
        }
        self.keep(process)?;
        pulse::at("saying goodbye", pulse::REMOTE);
        if let Ok(mut session) = self.pool.session() {
            // Without it the heartbeat's silence says the same a little later.
            let _ = session.goodbye(process);
        }
        Ok(())
    }

    /// Tries until there is a schema that can be used. `None`: told to stop. Only another pipeline's schema, or one that this
    /// version cannot use, ends the process.
    fn open(&mut self) -> anyhow::Result<Option<ProcessId>> {
        let mut pause = Duration::from_millis(100);
        loop {
            // Migrations of a large schema take their time.
            pulse::at("opening the store", Some(Duration::from_secs(4 * 3600)));
            let error = match self.try_open() {
                Ok(process) => {
                    self.health.go("upkeep", "postgres");
                    self.health.go("upkeep", "schema");
                    return Ok(Some(process));
                }
                Err(StoreError::Unusable(text)) => return Err(ExitWith { status: 78, text }.into()),
                Err(error) => error,
            };
            self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
            let reason = if matches!(error, StoreError::Connection(_)) { "postgres" } else { "schema" };
            self.health.go("upkeep", if reason == "postgres" { "schema" } else { "postgres" });
            self.health.wait("upkeep", reason, format!("PostgreSQL: {error}"));
            if let Some(note) = self.throttle.admit(&error.to_string(), Instant::now()) {
                log::warn!("waiting for PostgreSQL: {error}{note}");
            }
            pause = (pause * 2).min(Duration::from_secs(5));
            pulse::at("waiting to open the store", pulse::PROMPT);
            if self.stop.wait(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)) {
                return Ok(None);
            }
        }
    }

    fn try_open(&mut self) -> Result<ProcessId, StoreError> {
        let config = self.config.get();
        // Not out of the pool: it tries again and again by itself, and hides why it fails.
        let role = |role| Role { pipeline: config.name.clone(), role };
        let mut session = Session::connect(&config.postgres, &role("upkeep"))?;
        ensure_encoding(&mut session)?;
        match schema_state(&mut session)? {
            SchemaState::Ready => {}
            SchemaState::Behind { .. } if config.postgres.migrate => {
                // On a connection of its own: migrations change its timeouts.
                let applied = migrate(&mut Session::connect(&config.postgres, &role("migrate"))?, &config.postgres.schema)?;
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
        ensure_pipeline(&mut session, &config.name)?;
        session.register(&Registration {
            instance: self.instance,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            version: VERSION,
            lease: config.postgres.lease,
        })
    }

    fn keep(&mut self, process: ProcessId) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut rounds = Rounds { count_at: began, sweep_at: Duration::ZERO, oldest: None };
        loop {
            let result = self.round(process, began, &mut rounds);
            self.metrics.postgres_up.set(i64::from(result.is_ok()));
            match result {
                Ok(()) => self.health.go("upkeep", "postgres"),
                Err(StoreError::Fenced(why)) => anyhow::bail!("{why}"),
                Err(error) => {
                    self.metrics.postgres_errors_total.with_label_values(&[error.kind()]).inc();
                    if let Some(note) = self.throttle.admit(error.kind(), Instant::now()) {
                        log::warn!("upkeep failed, will try again: {error}{note}");
                    }
                    self.health.wait("upkeep", "postgres", format!("PostgreSQL: {error}"));
                }
            }
            if let Some(oldest) = &rounds.oldest {
                oldest.show(&self.metrics);
            }
            pulse::at("resting", pulse::PROMPT);
            failpoint("thread-upkeep");
            if self.stop.wait(ROUND) {
                return Ok(());
            }
        }
    }

    fn round(&mut self, process: ProcessId, began: Instant, rounds: &mut Rounds) -> Result<(), StoreError> {
        pulse::at("beating", pulse::REMOTE);
        let mut session = self.pool.session()?;
        let beat = Heartbeat {
            in_flight: self.metrics.requests_in_flight.get().max(0) as usize,
            stalled: self.health.waits().into_iter().map(|(reason, _)| reason.to_owned()).collect(),
            status: self.health.words(),
        };
        if !session.heartbeat(process, &beat)? {
            return Err(StoreError::Fenced(
                "this process is no longer registered: was the database restored from a backup?".to_owned(),
            ));
        }
        if began.elapsed() >= rounds.sweep_at {
            self.sweep(&mut session, process)?;
            // What was on its way to PostgreSQL when a predecessor died comes within its timeouts; what comes later expires.
            rounds.sweep_at = (began.elapsed() * 2).max(ROUND);
        }
        if Instant::now() >= rounds.count_at {
            pulse::at("counting", pulse::REMOTE);
            let counting = Instant::now();
            let gauges = session.gauges();
            // Also after a failure: a count that takes too long must not be repeated at once.
            rounds.count_at = Instant::now() + COUNT.max(counting.elapsed() * 20);
            let gauges = gauges?;
            self.show(&gauges);
            rounds.oldest = Some(Oldest { read_at: counting, open: gauges.oldest_open_age, due: gauges.oldest_due_age });
            self.pull_in(&mut session)?;
        }
        Ok(())
    }

    fn sweep(&self, session: &mut Session, process: ProcessId) -> Result<(), StoreError> {
        let Some(instance) = self.instance else { return Ok(()) };
        for (dead, lease) in session.predecessors(instance, process)? {
            let mut freed = 0;
            loop {
                pulse::at("sweeping", pulse::REMOTE);
                match session.sweep(dead, lease)? {
                    0 => break,
                    n => freed += n,
                }
            }
            if freed > 0 {
                self.metrics.attempts_total.with_label_values(&["lost"]).inc_by(freed);
                log::warn!(process = dead, rows = freed; "process {dead} died with {freed} deliveries in hand: they are due again");
            }
        }
        Ok(())
    }

    /// No rule lets a delivery wait longer than this: a row further ahead was written before the clock was set back.
    fn pull_in(&self, session: &mut Session) -> Result<(), StoreError> {
        let config = self.config.get();
        let retry = config.retry;
        let retry_after_clamp = Duration::from_secs(3600);
        let furthest = retry.cap.max(config.gate.probe_cap).max(retry_after_clamp).max(config.postgres.lease);
        let pulled = session.pull_in(furthest + Duration::from_secs(60))?;
        if pulled > 0 {
            log::warn!(rows = pulled; "{pulled} deliveries lay further ahead than any rule allows: was PostgreSQL's clock set back, or a limit of retry lowered?");
        }
        Ok(())
    }

    fn show(&mut self, gauges: &Gauges) {
        let mut ledger = Ledger::default();
        ledger.open = gauges.pending + gauges.in_flight + gauges.retrying;
        ledger.dead = gauges.dead;
        for (code, n) in &gauges.counters {
            if let Some(counter) = Counter::from_code(*code) {
                ledger.add(counter, *n);
            }
        }
        let states = [
            ("pending", gauges.pending),
            ("in_flight", gauges.in_flight),
            ("retrying", gauges.retrying),
            ("delivered", ledger.sum(Counter::Delivered)),
            ("dead", gauges.dead),
            ("resolved", gauges.resolved),
        ];
        for (state, n) in states {
            self.metrics.transactions.with_label_values(&[state]).set(n);
        }
        for (equation, off) in ledger.imbalances().labelled() {
            self.metrics.ledger_imbalance.with_label_values(&[equation]).set(off);
            if off != 0
                && let Some(note) = self.throttle.admit(equation, Instant::now())
            {
                log::error!(equation = equation, off = off; "the ledger's equation \"{equation}\" is off by {off}{note}");
            }
        }
        self.metrics.rejected_unresolved.set(gauges.rejected_unresolved);
        self.metrics.stats_last_success_timestamp_seconds.set(unix_seconds());
        self.room.set_paused(gauges.paused);
        if gauges.paused {
            self.health.wait("upkeep", "paused", "delivering is paused");
        } else {
            self.health.go("upkeep", "paused");
        }
    }
}

/// When what is due again.
struct Rounds {
    count_at: Instant,
    /// Since the start.
    sweep_at: Duration,
    oldest: Option<Oldest>,
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
