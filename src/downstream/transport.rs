//! Sending over HTTP with ureq, every default set that is wrong for this job.
//!
//! One agent per worker with one idle connection: no lock between workers, and a connection that breaks leaves none
//! behind, so that the next request of the same agent goes over a fresh one.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::config::{AutoHeaderValue, Config};
use ureq::http::header::RETRY_AFTER;
use ureq::http::{self, Request};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::transport::{Connector, NativeTlsConnector, TcpConnector};

use super::connection::{NoteFresh, SharedTls, Watch, Watching};
use super::failure::failure;
use super::request::Template;
use super::resolver::Addresses;
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
pub struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    template: Template,
    addresses: Addresses,
    tls: SharedTls,
    agent: Config,
    timeout: Duration,
    keep_answer: usize,
}

impl Service {
    /// Fails on what cannot be sent at all (see `request`); says nothing about whether the service is there. For a host
    /// name it starts the thread `resolver`, which ends with the last transport.
    pub fn new(config: &config::Downstream) -> anyhow::Result<Self> {
        let template = Template::new(config)?;
        let addresses = Addresses::of(&template.uri)?;
        Ok(Self::with(config, template, addresses))
    }

    fn with(config: &config::Downstream, template: Template, addresses: Addresses) -> Self {
        let agent = agent_config(config, template.uri.scheme_str() == Some("https"));
        let shared = Shared {
            template,
            addresses,
            tls: SharedTls(Arc::new(NativeTlsConnector::default())),
            agent,
            timeout: config.timeout,
            keep_answer: config.keep_answer,
        };
        Self { shared: Arc::new(shared) }
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
        // The roots are the system's; the default is a list compiled into ureq. Host names are verified either way.
        .tls_config(TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build())
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
        match self.once(self.shared.template.request(delivery, trace)) {
            Err((failure, true)) => {
                let left = self.shared.timeout.saturating_sub(start.elapsed());
                if left.is_zero() {
                    return Err(failure);
                }
                // The pool held one connection and that one is gone, so this one is fresh.
                let again = self.shared.template.request(delivery, trace);
                let again = self.agent.configure_request(again).timeout_global(Some(left)).build();
                self.once(again).map_err(|(failure, _)| Failure { sent: Sent::Unknown, ..failure })
            }
            result => result.map_err(|(failure, _)| failure),
        }
    }

    /// One request. With a failure comes whether it may be sent again at once: a reused connection broke before any byte
    /// of an answer, as it does when the service closes an idle connection at the moment we use it.
    fn once(&self, request: Request<&[u8]>) -> Result<Response, (Failure, bool)> {
        self.watch.reset();
        let result = self.agent.run(request);
        let wrote = self.watch.wrote.load(Relaxed);
        match result {
            // It cannot have accepted what it has not read.
            Ok(response) if self.watch.cut.load(Relaxed) && response.status().is_success() => {
                let text = format!("answered {} before it had the whole request", response.status().as_u16());
                Err((Failure { kind: FailureKind::Reset, sent: Sent::Unknown, text }, false))
            }
            Ok(response) => Ok(read_response(response, self.shared.keep_answer)),
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
    let chain = NoteFresh(Arc::clone(watch))
        .chain(TcpConnector::default())
        .chain(shared.tls.clone())
        .chain(Watching { watch: Arc::clone(watch), addresses: shared.addresses.clone() });
    Agent::with_parts(shared.agent.clone(), chain, shared.addresses.clone())
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
        Answer { result, latency: start.elapsed() }
    }
}

/// Reads what is kept of the body and, so that the connection can be used again, the rest of a short one. The status has
/// decided already: a body that breaks off or does not end in time changes nothing.
fn read_response(response: http::Response<ureq::Body>, keep_answer: usize) -> Response {
    let (head, body) = response.into_parts();
    let retry_after = head.headers.get(RETRY_AFTER).map(|v| clean_text(v.as_bytes(), RETRY_AFTER_TEXT_MAX));
    let keep = if head.status.is_success() { 0 } else { keep_answer };
    let kept = read_body(body.into_reader(), keep);
    let text = (!kept.is_empty()).then(|| clean_text(&kept, keep));
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
