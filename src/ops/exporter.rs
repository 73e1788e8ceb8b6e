//! `/metrics`, `/livez`, `/readyz` and `/`, on a thread of its own. Never asks PostgreSQL: it serves what others have left.
//!
//! tiny_http has no time-outs, a thread per slow client, and stops accepting for good after one error. So its answers have a
//! time-out of ours, `doorman` bounds the connections, and a probe of its own finds out when it no longer serves.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use tiny_http::{Header, Method, Request, Response, Server};

use super::doorman;
use super::health::Health;
use super::metrics::Metrics;
use super::pulse;
use super::pulse::Pulses;
use super::stop::Stop;
use super::throttle::Throttle;
use crate::failpoint::failpoint;

/// How long an answer may stand still because its reader takes nothing. The one exporter waits so long.
const STANDSTILL: Duration = Duration::from_secs(5);
/// How often it asks itself, and how long it waits for the answer.
const PROBE: Duration = Duration::from_secs(15);
const PROBE_ANSWER: Duration = Duration::from_secs(5);
/// One wait for a request.
const TURN: Duration = Duration::from_millis(250);

/// Binds before the daemon says READY, so that a port in use is a clear error at start.
pub fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let failed = || format!("failed to listen on {listen} (metrics.listen)");
    let listener = TcpListener::bind(listen).with_context(failed)?;
    // On Linux what is accepted inherits it.
    set_socket_timeout(&listener, Timeout::Send, Some(STANDSTILL)).with_context(failed)?;
    Ok(listener)
}

/// What serves.
pub struct Exporter {
    /// From [`bind`]; it outlives every server that is built on it.
    pub listener: TcpListener,
    /// `/metrics`
    pub metrics: Metrics,
    /// `/readyz`
    pub health: Health,
    /// `/livez`
    pub pulses: Pulses,
    /// Told to stop, it ends.
    pub stop: Stop,
}

impl Exporter {
    /// Serves until told to stop.
    pub fn run(&self) -> anyhow::Result<()> {
        let address = self.listener.local_addr().context("failed to ask for the address of the metrics port")?;
        let mut serving = Some(self.server()?);
        let mut throttle = Throttle::per_minute();
        let mut probe = Probe::new(address, Instant::now());
        let mut gone = Gone::default();
        loop {
            pulse::at("serving", pulse::PROMPT);
            failpoint("thread-exporter");
            if self.stop.is_stopping() {
                return Ok(());
            }
            let fault = match serving.as_ref().map(|server| server.recv_timeout(TURN)) {
                Some(Ok(None)) => probe.turn(Instant::now()).err(),
                Some(Ok(Some(request))) => {
                    // Without a bound: somebody who reads slowly must not be able to have the process ended.
                    pulse::at("answering", None);
                    self.answer(request, address, &mut gone);
                    None
                }
                // An error of accept (no descriptor left) has ended tiny_http's own thread for good.
                Some(Err(error)) => Some(error.to_string()),
                None => Some("there is no server".to_owned()),
            };
            let Some(fault) = fault else { continue };
            if let Some(note) = throttle.admit("fault", Instant::now()) {
                log::warn!("metrics are not served for a moment, the server is built anew: {fault}{note}");
            }
            if self.stop.wait(TURN) {
                return Ok(());
            }
            pulse::at("building the server anew", pulse::REMOTE);
            // First the new one: dropping the old one connects to the port, and would wait where nobody accepts any more.
            let new = self.server().ok();
            drop(std::mem::replace(&mut serving, new));
            probe = Probe::new(address, Instant::now());
        }
    }

    fn server(&self) -> anyhow::Result<Server> {
        let listener = self.listener.try_clone().context("failed to clone the listener")?;
        Server::from_listener(listener, None).map_err(|e| anyhow::anyhow!("failed to serve metrics: {e}"))
    }

    fn answer(&self, request: Request, address: SocketAddr, gone: &mut Gone) {
        let Some(client) = request.remote_addr().copied() else { return };
        if gone.contains(client, Instant::now()) {
            return;
        }
        if request.body_length().is_some_and(|length| length > READ_BODY) {
            return refuse(request, address);
        }
        let path = request.url().split('?').next().unwrap_or_default().to_owned();
        const TEXT: &str = "text/plain; charset=utf-8";
        let (status, kind, body) = match path.as_str() {
            "/metrics" => (200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render()),
            "/livez" => {
                let stalled = self.pulses.stalled(Instant::now());
                (if stalled.is_empty() { 200 } else { 503 }, TEXT, lively(&stalled))
            }
            "/readyz" => (if self.health.is_ready() { 200 } else { 503 }, TEXT, checks(&self.health)),
            "/" => (200, TEXT, landing(&self.health)),
            _ => (404, TEXT, "not here: /metrics /livez /readyz\n".to_owned()),
        };
        let header = Header::from_bytes("Content-Type", kind).expect("a valid header");
        let response = Response::from_string(body).with_status_code(status).with_header(header);
        // Not `respond`: it hides most errors.
        let (version, headers) = (request.http_version().clone(), request.headers().to_vec());
        let is_head = *request.method() == Method::Head;
        let mut writer = request.into_writer();
        if response.raw_print(&mut writer, version, &headers, is_head, None).and_then(|()| writer.flush()).is_err() {
            doorman::shut(address, client);
            gone.add(client, Instant::now());
        }
    }
}

/// Clients that have hung up or do not read. The requests that they have sent before are not worth an answer, and a
/// thousand of them must not keep others waiting.
#[derive(Default)]
struct Gone(HashMap<SocketAddr, Instant>);

impl Gone {
    /// For so long; another connection may have the same address later.
    const LATELY: Duration = Duration::from_secs(10);

    fn contains(&self, client: SocketAddr, now: Instant) -> bool {
        self.0.get(&client).is_some_and(|at| now.saturating_duration_since(*at) < Self::LATELY)
    }

    fn add(&mut self, client: SocketAddr, now: Instant) {
        if self.0.len() >= 4096 {
            self.0.retain(|_, at| now.saturating_duration_since(*at) < Self::LATELY);
        }
        self.0.insert(client, now);
    }
}

/// The largest body that tiny_http has read before it hands the request over.
const READ_BODY: usize = 1024;

/// Nobody has a reason to send a body here. tiny_http reads the rest of it before it lets go of the request, into memory of
/// the size that the client claims: with the connection shut there is nothing to read, and the memory is never touched. A
/// claim that the machine has no memory for would end the process; only then the request (a thread, a descriptor) is leaked.
fn refuse(request: Request, address: SocketAddr) {
    let is_shut = request.remote_addr().is_some_and(|client| doorman::shut(address, *client));
    let claimed = request.body_length().unwrap_or_default();
    if is_shut && Vec::<u8>::new().try_reserve_exact(claimed).is_ok() {
        drop(request);
    } else {
        std::mem::forget(request);
    }
}

/// Asks `/livez` over the front door now and then, without waiting for the answer: it is this thread that gives it.
struct Probe {
    address: SocketAddr,
    next: Instant,
    asked: Option<(TcpStream, Instant)>,
}

impl Probe {
    fn new(listening: SocketAddr, now: Instant) -> Self {
        let ip = match listening.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Self { address: SocketAddr::new(ip, listening.port()), next: now + PROBE, asked: None }
    }

    /// Asks when it is time, and looks for the answer; an error when there is none in time.
    fn turn(&mut self, now: Instant) -> Result<(), String> {
        if let Some((stream, since)) = &mut self.asked {
            match stream.read(&mut [0; 64]) {
                Ok(n) if n > 0 => self.asked = None,
                Err(e) if e.kind() == ErrorKind::WouldBlock && now.saturating_duration_since(*since) < PROBE_ANSWER => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(format!("no answer to itself for {PROBE_ANSWER:?}")),
                Ok(_) => return Err("its own connection was closed".to_owned()),
                Err(e) => return Err(format!("its own connection failed: {e}")),
            }
        } else if now >= self.next {
            self.next = now + PROBE;
            let stream = self.ask().map_err(|e| format!("it cannot reach itself: {e}"))?;
            self.asked = Some((stream, now));
        }
        Ok(())
    }

    fn ask(&self) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1))?;
        stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n")?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

fn lively(stalled: &[String]) -> String {
    if stalled.is_empty() {
        return "[+]threads ok\n".to_owned();
    }
    stalled.iter().map(|words| format!("[-]thread {words}\n")).collect()
}

/// One line per check: what is waited for, or that nothing is.
fn checks(health: &Health) -> String {
    let waits = health.waits();
    if waits.is_empty() {
        return format!("{}{}\n", if health.is_ready() { "[+]" } else { "[-]" }, health.words());
    }
    waits.iter().map(|(reason, words)| format!("[-]{reason} {words}\n")).collect()
}

fn landing(health: &Health) -> String {
    format!("txrelay {}\n{}\n\n/metrics /livez /readyz\n", super::VERSION, health.words())
}
