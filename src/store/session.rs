//! One connection with its settings and prepared statements, and the link that a thread keeps to PostgreSQL across outages.

use std::collections::HashMap;
use std::time::Duration;

use postgres::{Client, NoTls, Statement};
use r2d2_postgres::PostgresConnectionManager;

use super::{Sql, StoreError};
use crate::config;

/// A connection set up for this work: READ COMMITTED, pinned plans, timeouts, the pipeline's schema first in the path.
pub struct Session {
    pub(super) client: Connection,
    prepared: HashMap<&'static str, Statement>,
}

/// A connection of its own, or one of the pool's.
pub(super) enum Connection {
    Own(Box<Client>),
    Pooled(Box<r2d2::PooledConnection<PostgresConnectionManager<NoTls>>>),
}

impl std::ops::Deref for Connection {
    type Target = Client;
    fn deref(&self) -> &Client {
        match self {
            Self::Own(client) => client,
            Self::Pooled(client) => client,
        }
    }
}

impl std::ops::DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        match self {
            Self::Own(client) => client,
            Self::Pooled(client) => client,
        }
    }
}

/// Connections for work that is not on the way of a transaction: upkeep.
#[derive(Debug, Clone)]
pub struct Pool(r2d2::Pool<PostgresConnectionManager<NoTls>>);

#[derive(Debug)]
struct Prepare(String);

impl r2d2::CustomizeConnection<Client, postgres::Error> for Prepare {
    fn on_acquire(&self, client: &mut Client) -> Result<(), postgres::Error> {
        client.batch_execute(&self.0)
    }
}

impl Pool {
    /// Connects to nothing yet: a missing database does not stop the start.
    pub fn new(postgres: &config::Postgres, pipeline: &str) -> Self {
        let role = Role { pipeline: pipeline.to_owned(), role: "upkeep" };
        let manager = PostgresConnectionManager::new(client_config(postgres, &role), NoTls);
        let pool = r2d2::Pool::builder()
            .max_size(postgres.pool_size)
            .min_idle(Some(0))
            .connection_timeout(Duration::from_secs(6))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .connection_customizer(Box::new(Prepare(settings(&postgres.schema))))
            .build_unchecked(manager);
        Self(pool)
    }

    /// A session on one of the pool's connections.
    pub fn session(&self) -> Result<Session, StoreError> {
        let client = self.0.get().map_err(|e| StoreError::Connection(e.to_string()))?;
        Ok(Session { client: Connection::Pooled(Box::new(client)), prepared: HashMap::new() })
    }
}

/// Who connects: `application_name = txrelay/PIPELINE/ROLE`.
#[derive(Debug, Clone)]
pub struct Role {
    /// The pipeline's name.
    pub pipeline: String,
    /// The thread's role.
    pub role: &'static str,
}

impl Session {
    /// Connects within the configuration's `connect_timeout`; several hosts are tried in their order.
    pub fn connect(postgres: &config::Postgres, role: &Role) -> Result<Self, StoreError> {
        let connected = client_config(postgres, role).connect(NoTls).map_err(StoreError::from);
        // Which server refuses is half of the answer.
        let mut client = connected.map_err(|error| error.at(&postgres.place()))?;
        client.batch_execute(&settings(&postgres.schema))?;
        Ok(Self { client: Connection::Own(Box::new(client)), prepared: HashMap::new() })
    }

    /// The statement, prepared once a session.
    pub(super) fn prepare(&mut self, sql: &Sql) -> Result<Statement, StoreError> {
        if let Some(statement) = self.prepared.get(sql.name) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&sql.render())?;
        self.prepared.insert(sql.name, statement.clone());
        Ok(statement)
    }

    /// Prepares every statement; for the test that holds `sql/` against the schema.
    pub fn prepare_everything(&mut self) -> Result<usize, StoreError> {
        let all = super::sql::all();
        for sql in &all {
            self.prepare(sql).map_err(|e| StoreError::Other(format!("{}.sql: {e}", sql.name)))?;
        }
        Ok(all.len())
    }

    /// The connection itself, for commands and tests.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// What every connection of ours shares, also those of the pool.
pub(super) fn client_config(postgres: &config::Postgres, role: &Role) -> postgres::Config {
    let mut client = postgres.client.clone();
    client.application_name(&format!("txrelay/{}/{}", role.pipeline, role.role));
    client.connect_timeout(Duration::from_secs(5));
    client.target_session_attrs(postgres::config::TargetSessionAttrs::ReadWrite);
    // A silent peer is noticed in about 25 s, also while an answer is awaited.
    client.keepalives_idle(Duration::from_secs(10)).keepalives_interval(Duration::from_secs(5)).keepalives_retries(3);
    client.tcp_user_timeout(Duration::from_secs(20));
    client
}

/// A plan made while the queue is empty takes 211 s instead of 34 ms when a backlog arrives: plans are pinned to indexes.
/// With them pinned JIT must be off too: a disabled node's cost would switch it on (175 ms a claim).
pub(super) fn settings(schema: &str) -> String {
    format!(
        "set search_path = {}; set default_transaction_isolation = 'read committed'; set jit = off; \
         set plan_cache_mode = force_custom_plan; set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off; \
         set statement_timeout = '30s'; set lock_timeout = '10s'; set idle_in_transaction_session_timeout = '10s'; \
         set timezone = 'UTC'",
        quote(schema)
    )
}

/// An identifier in double quotes.
pub(super) fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A thread's way to PostgreSQL: at most one session, made when needed, dropped when it fails, with waits that grow.
pub struct Link {
    postgres: config::Postgres,
    role: Role,
    session: Option<Session>,
    failures: u32,
}

impl Link {
    /// Connects to nothing yet.
    pub fn new(postgres: &config::Postgres, pipeline: &str, role: &'static str) -> Self {
        let role = Role { pipeline: pipeline.to_owned(), role };
        Self { postgres: postgres.clone(), role, session: None, failures: 0 }
    }

    /// The session, connected if need be (one try).
    pub fn session(&mut self) -> Result<&mut Session, StoreError> {
        if self.session.is_none() {
            let session = Session::connect(&self.postgres, &self.role).inspect_err(|_| self.failed_once())?;
            self.session = Some(session);
        }
        Ok(self.session.as_mut().expect("set above"))
    }

    /// Does `work` on the session and notes how it went: a lost connection is dropped here.
    pub fn run<T>(&mut self, work: impl FnOnce(&mut Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let result = self.session().and_then(work);
        match &result {
            Ok(_) => self.failures = 0,
            Err(StoreError::Connection(_)) => {
                if self.session.take().is_some() {
                    self.failed_once();
                }
            }
            Err(StoreError::Value(_) | StoreError::Constraint(_) | StoreError::Fenced(_)) => {}
            Err(_) => self.failed_once(),
        }
        result
    }

    fn failed_once(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// How long to wait before the next try: 50 ms doubling to 5 s, with equal jitter, so that many processes do not meet a
    /// server that has just come back at the same moment. `jitter` in 0..1.
    pub fn pause(&self, jitter: f64) -> Duration {
        let longest = Duration::from_millis(50).saturating_mul(1 << self.failures.min(7)).min(Duration::from_secs(5));
        longest.mul_f64(0.5 + jitter / 2.0)
    }
}
