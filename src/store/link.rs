//! A thread's way to PostgreSQL across outages.

use std::time::Duration;

use super::patience::Patience;
use super::session::{Timeouts, in_any_order};
use super::timeline::{Timeline, Timelines};
use super::{Role, Session, StoreError};
use crate::config;

/// A thread's way to PostgreSQL: at most one session, made when needed, dropped when it fails, with waits that grow.
pub struct Link {
    postgres: config::Postgres,
    role: Role,
    patience: Patience,
    timelines: Timelines,
    pub(super) session: Option<(Session, Option<Timeline>)>,
    failures: u32,
}

impl Link {
    /// Connects to nothing yet.
    pub fn new(postgres: &config::Postgres, pipeline: &str, role: &'static str, timelines: &Timelines) -> Self {
        let role = Role { pipeline: pipeline.to_owned(), role };
        let patience = Patience::new(Some(Timeouts::of(postgres.lease).answer));
        Self { postgres: postgres.clone(), role, patience, timelines: timelines.clone(), session: None, failures: 0 }
    }

    /// Tells how long PostgreSQL has owed this link an answer; for whoever watches its thread.
    pub fn patience(&self) -> Patience {
        self.patience.clone()
    }

    /// The session, connected if need be (one try).
    fn session(&mut self) -> Result<&mut Session, StoreError> {
        if self.session.as_ref().is_some_and(|(_, timeline)| self.timelines.is_old(*timeline)) {
            // An error, because it is another server from here on: what is known of the old one must be asked again.
            self.session = None;
            return Err(StoreError::Connection(format!(
                "{}: another server was promoted; connecting anew",
                self.postgres.place()
            )));
        }
        if self.session.is_none() {
            self.session = Some(self.connect().inspect_err(|_| self.failed_once())?);
        }
        Ok(&mut self.session.as_mut().expect("set above").0)
    }

    fn connect(&mut self) -> Result<(Session, Option<Timeline>), StoreError> {
        let mut session = Session::connect_with(&self.postgres, &self.role, self.patience.clone())?;
        let timeline = session.timeline()?;
        // The first host that takes writes may always be the old one.
        let admitted = self.timelines.admit(timeline, &self.postgres.place());
        admitted.inspect_err(|_| in_any_order(&mut self.postgres.client))?;
        Ok((session, timeline))
    }

    /// Does `work` on the session and notes how it went: a lost connection is dropped here.
    pub fn run<T>(&mut self, work: impl FnOnce(&mut Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let result = self.session().and_then(work);
        match &result {
            Ok(_) => self.failures = 0,
            // Also after what is not known: a statement that was prepared may no longer fit its tables.
            Err(StoreError::Connection(_) | StoreError::Other(_) | StoreError::Refused(_)) => {
                if self.session.take().is_some() {
                    self.failed_once();
                }
            }
            Err(StoreError::Value(_) | StoreError::Constraint(_) | StoreError::Taken(_) | StoreError::Fenced(_)) => {}
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
