//! `/metrics`, `/livez`, `/readyz` and `/`, on a thread of its own. Never asks PostgreSQL: it serves what others have left.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::Context;
use tiny_http::{Header, Request, Response, Server};

use super::health::Health;
use super::metrics::Metrics;
use super::stop::Stop;
use super::throttle::Throttle;

/// Binds before the daemon says READY, so that a port in use is a clear error at start.
pub fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).with_context(|| format!("failed to listen on {listen} (metrics.listen)"))
}

/// Serves until told to stop.
pub fn run(listener: &TcpListener, metrics: &Metrics, health: &Health, stop: &Stop) -> anyhow::Result<()> {
    let server = || -> anyhow::Result<Server> {
        let listener = listener.try_clone().context("failed to clone the listener")?;
        Server::from_listener(listener, None).map_err(|e| anyhow::anyhow!("failed to serve metrics: {e}"))
    };
    let mut serving = server()?;
    let mut throttle = Throttle::per_minute();
    while !stop.is_stopping() {
        match serving.recv_timeout(Duration::from_millis(250)) {
            Ok(None) => {}
            // A client that hangs up is its own affair.
            Ok(Some(request)) => drop(answer(request, metrics, health)),
            // An error of accept (no descriptor left) ends tiny_http's own thread for good: build it anew on the same listener.
            Err(error) => {
                if let Some(note) = throttle.admit("accept", Instant::now()) {
                    log::warn!("metrics are not served for a moment: {error}{note}");
                }
                if stop.wait(Duration::from_millis(250)) {
                    return Ok(());
                }
                serving = server().unwrap_or(serving);
            }
        }
    }
    Ok(())
}

/// The largest body that tiny_http has read before it hands the request over.
const READ_BODY: usize = 1024;

fn answer(request: Request, metrics: &Metrics, health: &Health) -> std::io::Result<()> {
    if request.body_length().is_some_and(|length| length > READ_BODY) {
        // Dropping it would allocate as many bytes as the client claims to send, and wait for them: one connection is leaked
        // instead of the process. Nobody has a reason to send a body here.
        std::mem::forget(request);
        return Ok(());
    }
    let path = request.url().split('?').next().unwrap_or_default().to_owned();
    let (status, kind, body) = match path.as_str() {
        "/metrics" => (200, "text/plain; version=0.0.4; charset=utf-8", metrics.render()),
        "/livez" => (200, "text/plain; charset=utf-8", "[+]threads ok\n".to_owned()),
        "/readyz" => (if health.is_ready() { 200 } else { 503 }, "text/plain; charset=utf-8", checks(health)),
        "/" => (200, "text/plain; charset=utf-8", landing(health)),
        _ => (404, "text/plain; charset=utf-8", "not here: /metrics /livez /readyz\n".to_owned()),
    };
    let header = Header::from_bytes("Content-Type", kind).expect("a valid header");
    request.respond(Response::from_string(body).with_status_code(status).with_header(header))
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
