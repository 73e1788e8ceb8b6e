//! A worker: takes a leased delivery, sends it, says what came of it. Holds no connection to PostgreSQL.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};

use super::acceptances::Acceptances;
use crate::config::{Config, Current};
use crate::core::backoff::Policy;
use crate::core::fault::{Attempted, Next, decide, whose};
use crate::core::outcome::{Outcome, Overrides, Sent, classify_failure, parse_retry_after};
use crate::core::text::{ERROR_MAX, clean_text};
use crate::downstream::{Answer, Delivery, Transport};
use crate::failpoint::failpoint;
use crate::ops::metrics::Metrics;
use crate::ops::pulse;
use crate::ops::stop::Stop;
use crate::ops::throttle::Throttle;
use crate::store::{Leased, Room, Settled, Settlement, Tried};

/// One of the pool.
pub struct Worker {
    /// Its own connection pool and buffers.
    pub transport: Box<dyn Transport>,
    /// Shared by all workers.
    pub acceptances: Arc<Acceptances>,
    /// Learns how long requests take.
    pub room: Arc<Room>,
    /// Waits and budget, as last reloaded.
    pub config: Current,
    /// Series.
    pub metrics: Metrics,
    /// What was said lately; shared by all workers.
    pub said: Arc<Mutex<Throttle>>,
    /// Told to stop, it finishes the request in hand and gives the rest back.
    pub stop: Stop,
}

impl Worker {
    /// Works until the consumer and the claimer are gone and `handoff` is empty.
    pub fn run(mut self, handoff: &Receiver<Leased>, outcomes: &Sender<Settlement>) -> anyhow::Result<()> {
        let bound = Some(self.config.get().downstream.timeout + Duration::from_secs(10));
        loop {
            pulse::at("waiting for a delivery", None);
            let Ok(mut leased) = handoff.recv() else { return Ok(()) };
            pulse::at("sending", bound);
            failpoint("thread-worker");
            // Room bounds what waits for a worker; this one waits no longer.
            leased.slot = None;
            let what = if self.stop.is_stopping() || Instant::now() >= leased.deadline {
                self.metrics.given_back_total.inc();
                Settled::GivenBack
            } else {
                self.attempt(&leased)
            };
            let Leased { id, lease, attempt, received_at, .. } = leased;
            let settlement = Settlement { id, lease, attempt, received_at, what };
            pulse::at("waiting for the settler", None);
            if outcomes.send(settlement).is_err() {
                anyhow::ensure!(self.stop.is_stopping(), "the settler is gone");
                return Ok(());
            }
        }
    }

    fn attempt(&mut self, leased: &Leased) -> Settled {
        let delivery = Delivery {
            transaction_id: &leased.transaction_id,
            payload: &leased.payload,
            headers: &leased.headers,
            source: (&leased.topic, leased.partition, leased.offset),
            received_at: leased.received_at,
            attempt: leased.attempt,
        };
        self.metrics.requests_in_flight.inc();
        failpoint("step-send");
        let answer = self.transport.send(&delivery);
        failpoint("step-answered");
        self.metrics.requests_in_flight.dec();
        let now = Instant::now();
        self.room.observe(answer.latency);
        let latency = answer.latency;
        if let Some(note) = &answer.note
            && let Some(more) = self.said.lock().unwrap_or_else(PoisonError::into_inner).admit(note, now)
        {
            log::warn!("{note}{more}");
        }
        let (tried, retry_after) = judge(answer, &self.config.get().downstream.outcomes);
        self.metrics.attempt_duration_seconds.observe(latency.as_secs_f64());
        self.metrics.attempts_total.with_label_values(&[tried.outcome.label()]).inc();
        if tried.sent == Sent::Unknown {
            self.metrics.attempts_unknown_total.inc();
        }
        if tried.outcome == Outcome::Delivered {
            self.acceptances.accepted(leased.id, now);
            let age = SystemTime::now().duration_since(leased.received_at).unwrap_or_default();
            self.metrics.delivery_duration_seconds.observe(age.as_secs_f64());
        }
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let attempted = Attempted {
            outcome: tried.outcome,
            whose: whose(age(leased.previous_attempt), age(self.acceptances.last_other_than(leased.id))),
            attempt: leased.attempt,
            spent: leased.spent,
            retry_after,
        };
        self.follow(leased, tried, &attempted)
    }

    fn follow(&self, leased: &Leased, tried: Tried, attempted: &Attempted) -> Settled {
        let next = decide(attempted, &policy(&self.config.get()), rand::random());
        let status = tried.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        log::debug!(id = leased.transaction_id.as_str(), attempt = leased.attempt, outcome = tried.outcome.label(), status = status.as_str();
            "attempt of {}", leased.transaction_id);
        match next {
            Next::Done => Settled::Delivered(tried),
            Next::Again { delay, spend } => Settled::Failed { tried, delay, spend },
            Next::Dead { reason } => {
                self.metrics.dead_total.with_label_values(&[reason.label()]).inc();
                self.say_dead(leased, reason.label(), &status);
                Settled::Died { tried, reason: reason.label() }
            }
        }
    }

    /// A line a minute for each reason: table `dead` has them all, and a service that refuses everything must not fill a disk.
    fn say_dead(&self, leased: &Leased, reason: &'static str, status: &str) {
        let note = self.said.lock().unwrap_or_else(PoisonError::into_inner).admit(reason, Instant::now());
        let Some(note) = note else { return };
        let (id, attempt) = (leased.transaction_id.as_str(), leased.attempt);
        log::error!(id = id, attempt = attempt, reason = reason, status = status;
            "transaction {id} is dead ({reason}, attempt {attempt}, status {status}): a person has to decide{note}");
    }
}

fn policy(config: &Config) -> Policy {
    let retry = config.retry;
    Policy { base: retry.base, cap: retry.cap, give_up_after: retry.give_up_after, probe_cap: config.gate.probe_cap }
}

/// What an answer is, and what the service asked for.
fn judge(answer: Answer, outcomes: &Overrides) -> (Tried, Option<Duration>) {
    let latency = answer.latency;
    match answer.result {
        Ok(response) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
            let retry_after = response.retry_after.as_deref().and_then(|text| parse_retry_after(text, now));
            // One that says nothing is not there.
            let outcome = outcomes.classify(response.status, retry_after.is_some());
            // A status that counts as delivered by its operator's word is no error.
            let error = response.text.filter(|_| outcome != Outcome::Delivered);
            let tried = Tried { outcome, status: Some(response.status), sent: Sent::Yes, latency, error };
            (tried, retry_after)
        }
        Err(failure) => {
            let error = Some(clean_text(failure.text.as_bytes(), ERROR_MAX));
            (Tried { outcome: classify_failure(failure.kind), status: None, sent: failure.sent, latency, error }, None)
        }
    }
}
