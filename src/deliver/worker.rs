//! A worker: takes a leased delivery, sends it, says what came of it. Holds no connection to PostgreSQL.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, select};

use super::acceptances::Acceptances;
use super::brake::Brake;
use super::permits::{Answered, Permits};
use crate::config::{Config, Current};
use crate::core::backoff::Policy;
use crate::core::fault::{Attempted, Next, decide, whose};
use crate::core::outcome::{Outcome, Sent, classify_failure, is_overload, parse_retry_after};
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
    /// Asked before each request, told of each answer.
    pub permits: Arc<Permits>,
    /// Where deliveries come from that have failed by themselves; `None`: it takes none of those.
    pub suspects: Option<Receiver<Leased>>,
    /// Holds deliveries back while no outcome is taken.
    pub brake: Arc<Brake>,
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
            let Some(mut leased) = self.next(handoff) else { return Ok(()) };
            // Room bounds what waits for a worker; this one waits no longer.
            leased.slot = None;
            let may_start = !self.brake.holds(&leased) && self.permits.start(&leased, &self.stop);
            let what = if !may_start || self.stop.is_stopping() || Instant::now() >= leased.deadline {
                self.permits.not_sent(&leased);
                self.metrics.given_back_total.inc();
                Settled::GivenBack
            } else {
                pulse::at("sending", bound);
                failpoint("thread-worker");
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

    /// The next delivery; `None`: there will be no more. A suspect goes first when it is its turn.
    fn next(&self, handoff: &Receiver<Leased>) -> Option<Leased> {
        let Some(suspects) = &self.suspects else { return handoff.recv().ok() };
        if !suspects.is_empty()
            && self.permits.take_suspect(!handoff.is_empty())
            && let Ok(leased) = suspects.try_recv()
        {
            return Some(leased);
        }
        if let Ok(leased) = handoff.try_recv() {
            return Some(leased);
        }
        select! {
            recv(handoff) -> leased => leased.or_else(|_| suspects.recv()).ok(),
            recv(suspects) -> leased => leased.or_else(|_| handoff.recv()).ok(),
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
        let started = Instant::now();
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
        let status = answer.result.as_ref().map(|response| response.status).map_err(|failure| failure.kind);
        let (tried, retry_after) = self.judge(answer);
        // A status that its operator calls delivered is no sign of overload, whatever it is.
        let overload = tried.outcome != Outcome::Delivered && is_overload(status);
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
        // An accepted one is nobody's fault.
        let other = if tried.outcome == Outcome::Delivered { None } else { self.acceptances.last_other_than(leased.id) };
        let whose = whose(age(leased.previous_attempt), age(other));
        let answered = Answered { leased, started, tried: &tried, overload, whose, retry_after };
        let gate_is_shut = self.permits.report(&answered);
        let attempted =
            Attempted { outcome: tried.outcome, whose, attempt: leased.attempt, spent: leased.spent, retry_after, gate_is_shut };
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

    /// What an answer is, and what the service asked for.
    fn judge(&self, answer: Answer) -> (Tried, Option<Duration>) {
        let latency = answer.latency;
        match answer.result {
            Ok(response) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
                let retry_after = response.retry_after.as_deref().and_then(|text| parse_retry_after(text, now));
                if let (Some(text), None) = (&response.retry_after, retry_after) {
                    self.say_nonsense(text);
                }
                // One that says nothing is not there.
                let outcome = self.config.get().downstream.outcomes.classify(response.status, retry_after.is_some());
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

    /// A Retry-After that is neither seconds nor a date is not obeyed; it is counted in a line a minute.
    fn say_nonsense(&self, text: &str) {
        let note = self.said.lock().unwrap_or_else(PoisonError::into_inner).admit("retry-after", Instant::now());
        let Some(note) = note else { return };
        let shown = clean_text(text.as_bytes(), 64);
        log::warn!("the service sends a Retry-After that says nothing, \"{shown}\": it is not obeyed{note}");
    }
}

fn policy(config: &Config) -> Policy {
    let retry = config.retry;
    Policy { base: retry.base, cap: retry.cap, give_up_after: retry.give_up_after, probe_cap: config.gate.probe_cap }
}
