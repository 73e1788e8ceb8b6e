//! One connection with its settings and prepared statements.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use postgres::config::{Host, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs};
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
    /// Statements are planned once, not at each call; see [`Session::prepare_to_plan_once`].
    planned_once: bool,
    /// Holds the reader's lock, as far as is known.
    pub(super) reads: bool,
    /// Lets the kernel write early, see `retention_flush.sql`.
    pub(super) flushes_early: bool,
    /// See [`Session::history_refused`].
    pub(super) history_refused: Option<StoreError>,
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

/// Who connects: `application_name = txrelay/PIPELINE/ROLE`.
#[derive(Debug, Clone)]
pub struct Role {
    /// The pipeline's name.
    pub pipeline: String,
    /// The thread's role.
    pub role: &'static str,
}

impl Session {
    /// On a connection that is set up already.
    pub(super) fn on(client: Connection) -> Self {
        Self { client, prepared: HashMap::new(), planned_once: false, reads: false, flushes_early: false, history_refused: None }
    }

    /// Connects; several hosts are tried in their order, and the first writable one is used.
    pub fn connect(postgres: &config::Postgres, role: &Role) -> Result<Self, StoreError> {
        Self::connect_with(postgres, role, Patience::new(Some(Timeouts::of(postgres.lease).answer)))
    }

    /// For commands that only look: a standby will do where there is no writable server. Nothing that is sent here writes, and the
    /// server holds it to that.
    pub fn connect_to_look(postgres: &config::Postgres, role: &Role) -> Result<Self, StoreError> {
        let patience = || Patience::new(Some(Timeouts::of(postgres.lease).answer));
        let mut session = match Self::connect_with(postgres, role, patience()) {
            // Several servers: rather what is up to date. The second try says what is wrong if nothing answers.
            Err(StoreError::Connection(_)) => Self::connect_to(postgres, role, patience(), TargetSessionAttrs::Any)?,
            other => other?,
        };
        session.client.batch_execute("set default_transaction_read_only = on")?;
        Ok(session)
    }

    /// [`connect`](Self::connect) for statements that may take as long as they like: migrations.
    pub fn connect_patiently(postgres: &config::Postgres, role: &Role) -> Result<Self, StoreError> {
        let patience = Patience::new(Some(Timeouts::of(postgres.lease).answer));
        let session = Self::connect_with(postgres, role, patience.clone())?;
        patience.bear_all();
        Ok(session)
    }

    pub(super) fn connect_with(postgres: &config::Postgres, role: &Role, patience: Patience) -> Result<Self, StoreError> {
        Self::connect_to(postgres, role, patience, TargetSessionAttrs::ReadWrite)
    }

    fn connect_to(
        postgres: &config::Postgres,
        role: &Role,
        patience: Patience,
        which: TargetSessionAttrs,
    ) -> Result<Self, StoreError> {
        let connector = Connector::new(&postgres.tls, patience);
        let mut client = client_config(postgres, role)?;
        client.target_session_attrs(which);
        // Which server refuses is half of the answer.
        let failed = |error: StoreError| error.at(&postgres.place());
        // The crate panics where it gets no descriptor for the runtime of a connection.
        let connected = catch_unwind(AssertUnwindSafe(|| client.connect(connector.clone()))).map_err(|_| {
            failed(StoreError::Connection("no connection can be made: is there a descriptor left (LimitNOFILE=)?".to_owned()))
        })?;
        let mut client = connected.map_err(|error| failed(connector.explain(error)))?;
        client.batch_execute(&settings(postgres))?;
        Ok(Self::on(Connection::Own(Box::new(client))))
    }

    /// The statement, prepared once a session. It will be planned at each call.
    pub(super) fn prepare(&mut self, sql: &Sql) -> Result<Statement, StoreError> {
        if self.planned_once {
            self.client.batch_execute("set plan_cache_mode = force_custom_plan")?;
            self.planned_once = false;
        }
        self.prepared(sql)
    }

    fn prepared(&mut self, sql: &Sql) -> Result<Statement, StoreError> {
        if let Some(statement) = self.prepared.get(sql.name) {
            return Ok(statement.clone());
        }
        // What cannot even be prepared is nobody's row: the schema is at fault, for everybody.
        let statement = self.client.prepare(&sql.render()).map_err(|error| match StoreError::from(error) {
            StoreError::Refused(text) => StoreError::Other(text),
            other => other,
        })?;
        self.prepared.insert(sql.name, statement.clone());
        Ok(statement)
    }

    /// From now on until the next [`prepare`](Self::prepare) each of these is planned at its first call and not again: for what can be
    /// done in one way only, whatever the tables hold. At 500 records a second, planning was a third of PostgreSQL's work.
    pub(super) fn prepare_to_plan_once<const N: usize>(
        &mut self,
        all: [&Sql; N],
    ) -> Result<[Result<Statement, StoreError>; N], StoreError> {
        if !self.planned_once {
            self.client.batch_execute("set plan_cache_mode = force_generic_plan")?;
            self.planned_once = true;
        }
        Ok(all.map(|sql| self.prepared(sql)))
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
    let mut other = Session::connect(postgres, role)?;
    let (own, others) = (backend_pid(session)?, backend_pid(&mut other)?);
    let mut shared = own == others;
    // In turns, and again and again. Such a pooler gives out first what came back last: who asks first after a turn gets what
    // the other had, and what one look missed because somebody else used the pooler meanwhile, the next one finds.
    for _ in 0..5 {
        shared = shared || moves(&mut other, &others, session, &own)? || moves(session, &own, &mut other, &others)?;
    }
    if !shared {
        return Ok(());
    }
    Err(StoreError::Connection(format!(
        "{}: a pooler in transaction mode stands before PostgreSQL; connect to PostgreSQL itself, or set pool_mode = session \
         for this user",
        postgres.place()
    )))
}

/// Whether, while the first is in a transaction, either is served by another process than the one it had.
fn moves(first: &mut Session, its: &str, second: &mut Session, seconds: &str) -> Result<bool, StoreError> {
    first.client.batch_execute("begin")?;
    let moved = backend_pid(first)? != its || backend_pid(second)? != seconds;
    first.client.batch_execute("rollback")?;
    Ok(moved)
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
pub(super) struct Timeouts {
    /// A statement: ended by the server.
    statement: Duration,
    /// Waiting for a lock, within it: ended by the server.
    lock: Duration,
    /// Silence: ended by us, because the server no longer ends anything.
    pub answer: Duration,
}

impl Timeouts {
    /// With the default lease of 60 s: 20 s, 10 s, 25 s. A lease is more than 10 s, so silence always ends before it does:
    /// what a frozen server had been asked to do is rolled back when it thaws, and kept outcomes come before new claims.
    pub fn of(lease: Duration) -> Self {
        let statement = (lease / 3).min(Duration::from_secs(30));
        Self { statement, lock: (statement / 2).min(Duration::from_secs(10)), answer: statement + Duration::from_secs(5) }
    }
}

/// What every connection of ours shares, also those of the pool.
pub(super) fn client_config(postgres: &config::Postgres, role: &Role) -> Result<postgres::Config, StoreError> {
    let mut client = postgres.client.clone();
    if let Some(password) = postgres.password.read().map_err(|why| StoreError::Connection(format!("password_file: {why}")))? {
        client.password(password);
    }
    client.application_name(&format!("txrelay/{}/{}", role.pipeline, role.role));
    // For each address of each host, so it is kept short: several that drop what is sent add up.
    let connect = client.get_connect_timeout().copied().unwrap_or(Duration::from_secs(5));
    client.connect_timeout(connect.min(Duration::from_secs(10)));
    client.target_session_attrs(TargetSessionAttrs::ReadWrite);
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

/// From now on the hosts are tried in an order that is drawn each time.
pub(super) fn in_any_order(client: &mut postgres::Config) {
    client.load_balance_hosts(LoadBalanceHosts::Random);
}

/// A plan made while the queue is empty takes 211 s instead of 34 ms when a backlog arrives: plans are pinned to indexes.
/// With them pinned JIT must be off too: a disabled node's cost would switch it on (175 ms a claim).
pub(super) fn settings(postgres: &config::Postgres) -> String {
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
