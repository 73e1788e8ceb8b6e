//! One connection with its settings and prepared statements, and the link that a thread keeps to PostgreSQL across outages.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use postgres::config::{Host, SslMode, SslNegotiation};
use postgres::{Client, SimpleQueryMessage, Statement};
use r2d2_postgres::PostgresConnectionManager;

use super::connector::Connector;
use super::patience::Patience;
use super::{Sql, StoreError};
use crate::config;

/// A connection set up for this work: READ COMMITTED, pinned plans, timeouts, the pipeline's schema first in the path.
pub struct Session {
    pub(super) client: Connection,
    prepared: HashMap<&'static str, Statement>,
    certificate_expires_at: Option<i64>,
}

/// A connection of its own, or one of the pool's.
pub(super) enum Connection {
    Own(Box<Client>),
    Pooled(Box<r2d2::PooledConnection<PostgresConnectionManager<Connector>>>),
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
pub struct Pool {
    postgres: config::Postgres,
    role: Role,
    patience: Patience,
    pool: Option<r2d2::Pool<PostgresConnectionManager<Connector>>>,
    built_at: Instant,
}

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
        let patience = Patience::new(Some(Timeouts::of(postgres.lease).answer));
        Self { postgres: postgres.clone(), role, patience, pool: None, built_at: Instant::now() }
    }

    fn build(&self) -> Result<r2d2::Pool<PostgresConnectionManager<Connector>>, StoreError> {
        let connector = Connector::new(&self.postgres.tls, self.patience.clone());
        let manager = PostgresConnectionManager::new(client_config(&self.postgres, &self.role)?, connector);
        Ok(r2d2::Pool::builder()
            .max_size(self.postgres.pool_size)
            .min_idle(Some(0))
            .connection_timeout(Duration::from_secs(6))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .connection_customizer(Box::new(Prepare(settings(&self.postgres))))
            .build_unchecked(manager))
    }

    /// A session on one of the pool's connections.
    pub fn session(&mut self) -> Result<Session, StoreError> {
        let pool = match self.pool.take() {
            Some(pool) => pool,
            None => {
                self.built_at = Instant::now();
                self.build()?
            }
        };
        let client = pool.get().map_err(|e| StoreError::Connection(e.to_string()));
        self.pool = Some(pool);
        let client = Connection::Pooled(Box::new(client?));
        Ok(Session { client, prepared: HashMap::new(), certificate_expires_at: None })
    }

    /// After a failure: makes the pool anew, with the password as it is now, at most once a minute (each has threads of its
    /// own, which end when what they do has ended).
    pub fn renew(&mut self) {
        if self.built_at.elapsed() >= Duration::from_secs(60) {
            self.pool = None;
        }
    }

    /// See [`Link::patience`].
    pub fn patience(&self) -> Patience {
        self.patience.clone()
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
    /// Connects; several hosts are tried in their order, and the first writable one is used.
    pub fn connect(postgres: &config::Postgres, role: &Role) -> Result<Self, StoreError> {
        Self::connect_with(postgres, role, Patience::new(Some(Timeouts::of(postgres.lease).answer)))
    }

    /// [`connect`](Self::connect) for statements that may take as long as they like: migrations.
    pub fn connect_patiently(postgres: &config::Postgres, role: &Role) -> Result<Self, StoreError> {
        Self::connect_with(postgres, role, Patience::new(None))
    }

    fn connect_with(postgres: &config::Postgres, role: &Role, patience: Patience) -> Result<Self, StoreError> {
        let connector = Connector::new(&postgres.tls, patience);
        let client = client_config(postgres, role)?;
        // Which server refuses is half of the answer.
        let failed = |error: StoreError| error.at(&postgres.place());
        // The crate panics where it gets no descriptor for the runtime of a connection.
        let connected = catch_unwind(AssertUnwindSafe(|| client.connect(connector.clone()))).map_err(|_| {
            failed(StoreError::Connection("no connection can be made: is there a descriptor left (LimitNOFILE=)?".to_owned()))
        })?;
        let mut client = connected.map_err(|error| failed(connector.explain(error)))?;
        client.batch_execute(&settings(postgres))?;
        let certificate_expires_at = connector.certificate_expires_at();
        Ok(Self { client: Connection::Own(Box::new(client)), prepared: HashMap::new(), certificate_expires_at })
    }

    /// When the server's certificate expires, in seconds since the epoch; `None` without TLS.
    pub fn certificate_expires_at(&self) -> Option<i64> {
        self.certificate_expires_at
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

/// Makes sure that no pooler in transaction mode stands between: it gives each transaction any server session, so that plans,
/// time-outs and locks would be somebody else's. Two sessions that live at the same time never share a server process.
pub fn ensure_own_session(session: &mut Session, postgres: &config::Postgres, role: &Role) -> Result<(), StoreError> {
    let own = backend_pid(session)?;
    let mut other = Session::connect(postgres, role)?;
    // Held open, so that the pooler would have to give the first session another one.
    other.client.batch_execute("begin")?;
    let others = backend_pid(&mut other)?;
    if own == others || backend_pid(session)? != own {
        return Err(StoreError::Connection(format!(
            "{}: a pooler in transaction mode stands before PostgreSQL; connect to PostgreSQL itself, or set pool_mode = session for \
             this user",
            postgres.place()
        )));
    }
    Ok(other.client.batch_execute("rollback")?)
}

/// Without a prepared statement, which such a pooler may not know.
fn backend_pid(session: &mut Session) -> Result<String, StoreError> {
    let messages = session.client.simple_query("select pg_backend_pid()")?;
    let pid = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    pid.ok_or_else(|| StoreError::Other("PostgreSQL did not name its process".to_owned()))
}

/// How long PostgreSQL may take, so that a session that hangs is given up before its leases end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timeouts {
    /// A statement: ended by the server.
    statement: Duration,
    /// Waiting for a lock, within it: ended by the server.
    lock: Duration,
    /// Silence: ended by us, because the server no longer ends anything.
    answer: Duration,
}

impl Timeouts {
    /// With the default lease of 60 s: 20 s, 10 s, 25 s. A lease is more than 10 s, so silence always ends before it does:
    /// what a frozen server had been asked to do is rolled back when it thaws, and kept outcomes come before new claims.
    fn of(lease: Duration) -> Self {
        let statement = (lease / 3).min(Duration::from_secs(30));
        Self { statement, lock: (statement / 2).min(Duration::from_secs(10)), answer: statement + Duration::from_secs(5) }
    }
}

/// What every connection of ours shares, also those of the pool.
fn client_config(postgres: &config::Postgres, role: &Role) -> Result<postgres::Config, StoreError> {
    let mut client = postgres.client.clone();
    if let Some(password) = postgres.password.read().map_err(|why| StoreError::Connection(format!("password_file: {why}")))? {
        client.password(password);
    }
    client.application_name(&format!("txrelay/{}/{}", role.pipeline, role.role));
    client.connect_timeout(client.get_connect_timeout().copied().unwrap_or(Duration::from_secs(5)));
    client.target_session_attrs(postgres::config::TargetSessionAttrs::ReadWrite);
    // A silent peer is noticed in about 25 s, also while an answer is awaited.
    client.keepalives_idle(Duration::from_secs(10)).keepalives_interval(Duration::from_secs(5)).keepalives_retries(3);
    client.tcp_user_timeout(Duration::from_secs(20));
    // The connector gets the bare socket and decides itself (see there). A socket of this machine is not handed to it.
    if client.get_hosts().iter().any(|host| matches!(host, Host::Unix(_))) {
        client.ssl_mode(SslMode::Disable);
    } else {
        client.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    }
    Ok(client)
}

/// A plan made while the queue is empty takes 211 s instead of 34 ms when a backlog arrives: plans are pinned to indexes.
/// With them pinned JIT must be off too: a disabled node's cost would switch it on (175 ms a claim).
fn settings(postgres: &config::Postgres) -> String {
    let Timeouts { statement, lock, .. } = Timeouts::of(postgres.lease);
    format!(
        "set search_path = {}; set default_transaction_isolation = 'read committed'; set jit = off; \
         set plan_cache_mode = force_custom_plan; set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off; \
         set statement_timeout = {}; set lock_timeout = {}; set idle_in_transaction_session_timeout = '10s'; \
         set timezone = 'UTC'",
        quote(&postgres.schema),
        statement.as_millis(),
        lock.as_millis()
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
    patience: Patience,
    session: Option<Session>,
    failures: u32,
}

impl Link {
    /// Connects to nothing yet.
    pub fn new(postgres: &config::Postgres, pipeline: &str, role: &'static str) -> Self {
        let role = Role { pipeline: pipeline.to_owned(), role };
        let patience = Patience::new(Some(Timeouts::of(postgres.lease).answer));
        Self { postgres: postgres.clone(), role, patience, session: None, failures: 0 }
    }

    /// Tells how long PostgreSQL has owed this link an answer; for whoever watches its thread.
    pub fn patience(&self) -> Patience {
        self.patience.clone()
    }

    /// The session, connected if need be (one try).
    pub fn session(&mut self) -> Result<&mut Session, StoreError> {
        if self.session.is_none() {
            let connected = Session::connect_with(&self.postgres, &self.role, self.patience.clone());
            let session = connected.inspect_err(|_| self.failed_once())?;
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

    /// How long to wait before the next try: 50 ms doubling to 3 s, with equal jitter, so that many processes do not meet a
    /// server that has just come back at the same moment. `jitter` in 0..1.
    pub fn pause(&self, jitter: f64) -> Duration {
        let longest = Duration::from_millis(50).saturating_mul(1 << self.failures.min(7)).min(Duration::from_secs(3));
        longest.mul_f64(0.5 + jitter / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_hangs_is_given_up_before_its_leases_end() {
        for seconds in [11, 12, 30, 60, 90, 3600] {
            let lease = Duration::from_secs(seconds);
            let Timeouts { statement, lock, answer } = Timeouts::of(lease);
            assert!(lock < statement && statement < answer && answer < lease, "{lease:?}: {statement:?} {lock:?} {answer:?}");
            assert!(answer <= Duration::from_secs(35));
        }
    }
}
