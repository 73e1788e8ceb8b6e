//! Connections for work that is not on the way of a transaction.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use postgres::Client;
use r2d2_postgres::PostgresConnectionManager;

use super::connector::Connector;
use super::patience::Patience;
use super::session::{Connection, Timeouts, client_config, in_any_order, settings};
use super::timeline::{Timeline, Timelines};
use super::{Role, Session, StoreError};
use crate::config;

/// Connections for work that is not on the way of a transaction: upkeep.
pub struct Pool {
    postgres: config::Postgres,
    role: Role,
    connector: Connector,
    timelines: Timelines,
    pool: Option<r2d2::Pool<PostgresConnectionManager<Connector>>>,
    built_at: Instant,
    /// The password that its connections are made with.
    built_with: Option<Vec<u8>>,
    kept: Option<Kept>,
    lent_kept: bool,
}

/// A session between two uses, with its prepared statements: preparing them anew was most of what a round of upkeep costs.
pub struct Kept {
    session: Session,
    timeline: Option<Timeline>,
    since: Instant,
}

impl Deref for Kept {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Kept {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// No session is kept for longer: the next one may come to another server, or see another certificate.
const KEEP: Duration = Duration::from_secs(1800);

#[derive(Debug)]
struct Prepare(String);

impl r2d2::CustomizeConnection<Client, postgres::Error> for Prepare {
    fn on_acquire(&self, client: &mut Client) -> Result<(), postgres::Error> {
        client.batch_execute(&self.0)
    }
}

impl Pool {
    /// Connects to nothing yet: a missing database does not stop the start.
    pub fn new(postgres: &config::Postgres, pipeline: &str, timelines: &Timelines) -> Self {
        let role = Role { pipeline: pipeline.to_owned(), role: "upkeep" };
        let patience = Patience::new(Some(Timeouts::of(postgres.lease).answer));
        let connector = Connector::new(&postgres.tls, patience);
        let (postgres, timelines) = (postgres.clone(), timelines.clone());
        Self {
            postgres,
            role,
            connector,
            timelines,
            pool: None,
            built_at: Instant::now(),
            built_with: None,
            kept: None,
            lent_kept: false,
        }
    }

    fn build(&self) -> Result<r2d2::Pool<PostgresConnectionManager<Connector>>, StoreError> {
        let manager = PostgresConnectionManager::new(client_config(&self.postgres, &self.role)?, self.connector.clone());
        Ok(r2d2::Pool::builder()
            .max_size(self.postgres.pool_size)
            .min_idle(Some(0))
            .connection_timeout(Duration::from_secs(6))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .connection_customizer(Box::new(Prepare(settings(&self.postgres))))
            .build_unchecked(manager))
    }

    /// A session on one of the pool's connections: the one that was kept, if it still is of use.
    pub fn session(&mut self) -> Result<Kept, StoreError> {
        if let Some(kept) = self.kept.take() {
            self.lent_kept = kept.since.elapsed() < KEEP && !self.timelines.is_old(kept.timeline);
            if self.lent_kept {
                return Ok(kept);
            }
            // Its connection must not be handed out again.
            self.pool = None;
        }
        self.lent_kept = false;
        self.connect()
    }

    /// Whether the session that was last asked for is one that was kept: its connection may have gone in the meantime.
    pub fn lent_kept(&self) -> bool {
        self.lent_kept
    }

    /// Keeps a session that did what was asked of it for the next time; dropped instead, its connection goes back to the pool.
    pub fn keep(&mut self, kept: Kept) {
        self.kept = Some(kept);
    }

    fn connect(&mut self) -> Result<Kept, StoreError> {
        let pool = match self.pool.take() {
            Some(pool) => pool,
            None => {
                self.built_at = Instant::now();
                self.built_with = self.postgres.password.read().unwrap_or_default();
                self.build()?
            }
        };
        let client = pool.get().map_err(|e| StoreError::Connection(e.to_string()));
        self.pool = Some(pool);
        let mut session = Session::on(Connection::Pooled(Box::new(client?)));
        // Each time, because of several connections each may lead to another server.
        let timeline = session.timeline()?;
        if let Err(old) = self.timelines.admit(timeline, &self.postgres.place()) {
            self.pool = None;
            in_any_order(&mut self.postgres.client);
            return Err(old);
        }
        Ok(Kept { session, timeline, since: Instant::now() })
    }

    /// After a failure: makes the pool anew, at once where there is a new password, otherwise once a minute at most (each pool has
    /// threads of its own, which end when what they do has ended).
    pub fn renew(&mut self) {
        let is_new = self.postgres.password.read().is_ok_and(|password| password != self.built_with);
        if is_new || self.built_at.elapsed() >= Duration::from_secs(60) {
            self.pool = None;
        }
    }

    /// When the server's certificate expires, in seconds since the epoch, as the newest connection has seen it (none lives for
    /// longer than half an hour); `None` without TLS.
    pub fn certificate_expires_at(&self) -> Option<i64> {
        self.connector.certificate_expires_at()
    }
}
