//! Sending over HTTP with ureq, every default set that is wrong for this job.
//!
//! One agent per worker with one idle connection: no lock between workers, and a connection that breaks leaves none
//! behind, so that the next request of the same agent goes over a fresh one.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ureq::Agent;
use ureq::config::{AutoHeaderValue, Config};
use ureq::http::header::RETRY_AFTER;
use ureq::http::{self, Request};
use ureq::unversioned::transport::Connector;

use super::connection::{Generation, NoteFresh, Watch, Watching};
use super::credentials::{Credentials, Keyring};
use super::failure::failure;
use super::request::Template;
use super::resolver::Addresses;
use super::tcp::Tcp;
use super::tls::Tls;
use super::{Answer, Delivery, Failure, FailureKind, Response, Transport};
use crate::config;
use crate::core::outcome::Sent;
use crate::core::text::clean_text;

/// Largest head of an answer, in bytes.
const HEAD_MAX: usize = 16 * 1024;

/// So much of a body is read for the sake of the connection; of a longer one the connection is dropped.
const BODY_MAX: usize = 64 * 1024;

/// Longest Retry-After that is passed on, in bytes; an HTTP date has 29.
const RETRY_AFTER_TEXT_MAX: usize = 64;

/// The service, as all workers share it.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    template: Template,
    addresses: Addresses,
    keyring: Arc<Keyring>,
    tls: Tls,
    agent: Config,
    timeout: Duration,
    keep_answer: usize,
}

impl Service {
    /// Fails on what cannot be sent at all (see `request`) and on files of secrets that cannot be used; says nothing about
    /// whether the service is there. For a host name it starts the thread `resolver`, which ends with the last user of it all.
    pub fn new(config: &config::Downstream) -> anyhow::Result<Self> {
        let template = Template::new(config)?;
        let addresses = Addresses::of(&template.uri)?;
        Self::with(config, template, addresses)
    }

    fn with(config: &config::Downstream, template: Template, addresses: Addresses) -> anyhow::Result<Self> {
        let https = template.uri.scheme_str() == Some("https");
        let keyring = Arc::new(Keyring::new(&config.security, https).map_err(anyhow::Error::msg)?);
        let agent = agent_config(config, https);
        let shared = Shared {
            template,
            addresses,
            tls: Tls { keyring: Arc::clone(&keyring), service_expiry: Arc::new(AtomicI64::new(0)) },
            keyring,
            agent,
            timeout: config.timeout,
            keep_answer: config.keep_answer,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Reads the files of `[downstream.auth]`, `tls` and `signing` again. `Ok(true)`: they hold something else now, and it is
    /// used from the next request on.
    ///
    /// # Errors
    /// One sentence, without any of their content; the old ones stay.
    pub fn read_secrets_again(&self) -> Result<bool, String> {
        self.shared.keyring.read_again()
    }

    /// When the first certificate of the chain that the service showed last, or our own, ends: seconds since the epoch. `None`:
    /// none has been seen.
    pub fn certificate_expires_at(&self) -> Option<i64> {
        let seen = Some(self.shared.tls.service_expiry.load(Relaxed)).filter(|at| *at != 0);
        seen.into_iter().chain(self.shared.keyring.get().own_expiry).min()
    }

    /// For one worker thread.
    pub fn transport(&self) -> Box<dyn Transport> {
        Box::new(UreqTransport::new(Arc::clone(&self.shared)))
    }
}

fn agent_config(config: &config::Downstream, https: bool) -> Config {
    Config::builder()
        // Otherwise 4xx and 5xx are errors without Retry-After and body.
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        // Otherwise the environment's.
        .proxy(None)
        .https_only(https)
        .timeout_global(Some(config.timeout))
        .timeout_resolve(Some(config.connect_timeout))
        .timeout_connect(Some(config.connect_timeout))
        .max_idle_age(config.idle_timeout)
        .max_idle_connections(1)
        .max_idle_connections_per_host(1)
        .max_response_header_size(HEAD_MAX)
        // Per connection and layer. Input must hold a whole head; a larger output means fewer writes for large bodies.
        .input_buffer_size(2 * HEAD_MAX)
        .output_buffer_size(32 * 1024)
        .user_agent(AutoHeaderValue::None)
        .accept(AutoHeaderValue::None)
        .accept_encoding(AutoHeaderValue::None)
        .build()
}

/// One worker's agent.
struct UreqTransport {
    shared: Arc<Shared>,
    agent: Agent,
    watch: Arc<Watch>,
}

impl UreqTransport {
    fn new(shared: Arc<Shared>) -> Self {
        let watch = Arc::new(Watch::default());
        let agent = agent(&shared, &watch);
        Self { shared, agent, watch }
    }

    fn exchange(&self, delivery: &Delivery<'_>, start: Instant) -> Result<Response, Failure> {
        let trace = rand::random();
        let credentials = self.shared.keyring.get();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let request = || self.shared.template.request(delivery, trace, &credentials, now);
        match self.once(request(), &credentials) {
            Err((failure, true)) => {
                let left = self.shared.timeout.saturating_sub(start.elapsed());
                if left.is_zero() {
                    return Err(failure);
                }
                // The pool held one connection and that one is gone, so this one is fresh.
                let again = self.agent.configure_request(request()).timeout_global(Some(left)).build();
                self.once(again, &credentials).map_err(|(failure, _)| Failure { sent: Sent::Unknown, ..failure })
            }
            result => result.map_err(|(failure, _)| failure),
        }
    }

    /// One request. With a failure comes whether it may be sent again at once: a reused connection broke before any byte
    /// of an answer, as it does when the service closes an idle connection at the moment we use it.
    fn once(&self, request: Request<&[u8]>, credentials: &Credentials) -> Result<Response, (Failure, bool)> {
        self.watch.reset();
        let result = self.agent.run(request);
        let wrote = self.watch.wrote.load(Relaxed);
        match result {
            // It cannot have accepted what it has not read.
            Ok(response) if self.watch.cut.load(Relaxed) && response.status().is_success() => {
                let text = format!("answered {} before it had the whole request", response.status().as_u16());
                Err((Failure { kind: FailureKind::Reset, sent: Sent::Unknown, text }, false))
            }
            Ok(response) => Ok(read_response(response, self.shared.keep_answer, credentials)),
            Err(error) => {
                let failure = failure(&error, wrote, self.shared.addresses.last_error());
                let reused = !self.watch.fresh.load(Relaxed);
                if !reused && failure.kind == FailureKind::Connect {
                    self.shared.addresses.refresh();
                }
                let resend = reused && failure.kind == FailureKind::Reset && !self.watch.read.load(Relaxed);
                Err((failure, resend))
            }
        }
    }
}

fn agent(shared: &Shared, watch: &Arc<Watch>) -> Agent {
    let generation = Generation { addresses: shared.addresses.clone(), keyring: Arc::clone(&shared.keyring) };
    let chain = NoteFresh(Arc::clone(watch), generation.clone())
        .chain(Tcp)
        .chain(shared.tls.clone())
        .chain(Watching { watch: Arc::clone(watch), generation });
    Agent::with_parts(shared.agent.clone(), chain, shared.addresses.clone())
}

/// After a refusal that new secrets may heal, their files are read again; what that changed, for people.
fn look_for_new_secrets(keyring: &Keyring, result: &Result<Response, Failure>) -> Option<String> {
    let cause = match result {
        Ok(response) if response.status == 401 => "a 401",
        Err(failure) if failure.kind == FailureKind::Tls => "a failure of TLS",
        // A service that does not accept our certificate may break the connection before its alert is read.
        Err(failure) if failure.kind == FailureKind::Reset && keyring.get().own_expiry.is_some() => "a connection that broke",
        _ => return None,
    };
    match keyring.read_after_refusal()? {
        Ok(false) => None,
        Ok(true) => Some(format!("the files with the secrets for the service hold new ones, read after {cause}")),
        Err(problem) => Some(format!("{problem} (read again after {cause}; what was read before stays in use)")),
    }
}

impl Transport for UreqTransport {
    fn send(&mut self, delivery: &Delivery<'_>) -> Answer {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.exchange(delivery, start))).unwrap_or_else(|_| {
            // The old agent may be in any state. What ureq's fault is must not end the process, or one answer could
            // stop the pipeline for good.
            let sent = if self.watch.wrote.load(Relaxed) { Sent::Unknown } else { Sent::No };
            self.agent = agent(&self.shared, &self.watch);
            Err(Failure { kind: FailureKind::Protocol, sent, text: "the HTTP client panicked".into() })
        });
        let latency = start.elapsed();
        let note = look_for_new_secrets(&self.shared.keyring, &result);
        Answer { result, latency, note }
    }
}

/// Reads what is kept of the body and, so that the connection can be used again, the rest of a short one. The status has
/// decided already: a body that breaks off or does not end in time changes nothing.
fn read_response(response: http::Response<ureq::Body>, keep_answer: usize, credentials: &Credentials) -> Response {
    let (head, body) = response.into_parts();
    let retry_after = head.headers.get(RETRY_AFTER).map(|v| clean_text(v.as_bytes(), RETRY_AFTER_TEXT_MAX));
    let keep = if head.status.is_success() || keep_answer == 0 { 0 } else { keep_answer + credentials.longest_hidden() };
    let mut kept = read_body(body.into_reader(), keep);
    credentials.redact(&mut kept);
    let text = (!kept.is_empty()).then(|| clean_text(&kept, keep_answer));
    Response { status: head.status.as_u16(), retry_after, text }
}

fn read_body(mut body: impl Read, keep: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut total = 0;
    let mut buffer = [0; 4096];
    while total <= BODY_MAX {
        match body.read(&mut buffer) {
            Ok(n) if n > 0 => {
                total += n;
                kept.extend_from_slice(&buffer[..n.min(keep - kept.len())]);
            }
            Ok(_) | Err(_) => break,
        }
    }
    kept
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
