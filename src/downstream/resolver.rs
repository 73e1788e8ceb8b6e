//! The service's addresses, looked up in the background.
//!
//! ureq asks its resolver before every request, also for a pooled connection, and its own resolver starts a thread for
//! each look-up when there is a deadline: 206 us per request instead of 26 (measured with ureq 3.5, 64 threads). This one
//! answers from memory. One thread looks the name up every 30 s and when asked after a failed connect; while a look-up
//! fails or hangs, the old addresses stay. The thread ends when the last user is gone (a look-up that hangs in
//! `getaddrinfo` cannot be interrupted, so nobody waits for it).
//!
//! Every connection is made to an address that comes out of here, so this is where addresses are refused that nothing is sent
//! to (`core::address`), whatever name leads there. A URL that names this machine leads to this machine only.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::config::is_loopback;
use crate::core::address::forbidden;
use crate::core::text::clean_text;

/// Between two look-ups that nobody asked for.
const REFRESH_EVERY: Duration = Duration::from_secs(30);

/// For so long after a look-up no other one is made: a service that refuses connections must not become a flood of
/// look-ups.
const QUIET_AFTER_LOOKUP: Duration = Duration::from_secs(1);

/// As many as ureq takes.
const ADDRESSES_MAX: usize = 16;

/// Looks up a host and port.
pub(super) type Lookup = Box<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send>;

/// The addresses of one host, shared by all workers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Addresses {
    known: Arc<Known>,
    /// Asks for a look-up; disconnecting it ends the thread. `None` for a literal address.
    ask: Option<Sender<()>>,
}

/// Why a look-up gave no address.
enum LookupError {
    /// It failed.
    Failed(String),
    /// It gave only addresses that nothing is sent to.
    Forbidden(String),
}

/// What the workers and the thread share.
struct Known {
    /// The URL names this machine.
    is_loopback: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    addresses: Vec<SocketAddr>,
    /// Raised when an address has disappeared.
    generation: u64,
    /// When the last look-up ended, and how if it failed.
    looked_up: Option<Instant>,
    error: Option<LookupError>,
    /// Look-ups that ended.
    n_lookups: u64,
}

impl Addresses {
    /// For a URL's host. A literal address is taken as it is; for a name the look-up begins at once.
    pub(super) fn of(uri: &Uri) -> anyhow::Result<Self> {
        Self::with_lookup(uri, Box::new(|host, port| Ok((host, port).to_socket_addrs()?.collect())))
    }

    pub(super) fn with_lookup(uri: &Uri, lookup: Lookup) -> anyhow::Result<Self> {
        let host = uri.host().context("downstream.url: without a host")?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let known = Arc::new(Known { is_loopback: is_loopback(host), state: Mutex::default(), changed: Condvar::new() });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            known.learn(Ok(vec![SocketAddr::new(ip, port)]));
            return Ok(Self { known, ask: None });
        }
        // One question is enough: its answer serves everybody.
        let (ask, asked) = crossbeam_channel::bounded(1);
        let (shared, host) = (Arc::clone(&known), host.to_owned());
        thread::Builder::new()
            .name("resolver".into())
            .spawn(move || keep_looking(&shared, &asked, || lookup(&host, port)))
            .context("failed to start the resolver's thread")?;
        Ok(Self { known, ask: Some(ask) })
    }

    /// Asks for a look-up soon: the addresses did not work.
    pub(super) fn refresh(&self) {
        if let Some(ask) = &self.ask {
            // Full: somebody has asked already.
            let _ = ask.try_send(());
        }
    }

    /// Raised each time that an address has disappeared; connections made before should not be used again.
    pub(super) fn generation(&self) -> u64 {
        self.known.lock().generation
    }

    /// What the last look-up failed with, for people.
    pub(super) fn last_error(&self) -> Option<String> {
        match &self.known.lock().error {
            Some(LookupError::Failed(text) | LookupError::Forbidden(text)) => Some(text.clone()),
            None => None,
        }
    }

    /// The addresses; waits for the first ones up to `timeout`. `Ok` is never empty.
    fn wait(&self, timeout: Duration) -> Result<Vec<SocketAddr>, ureq::Error> {
        let mut state = self.known.lock();
        if state.addresses.is_empty() {
            let failed_now = state.looked_up.is_some_and(|at| at.elapsed() < QUIET_AFTER_LOOKUP);
            if failed_now || self.ask.is_none() {
                return Err(state.failure());
            }
            self.refresh();
            let before = state.n_lookups;
            state = self
                .known
                .changed
                .wait_timeout_while(state, timeout, |s| s.addresses.is_empty() && s.n_lookups == before)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if state.addresses.is_empty() { Err(state.failure()) } else { Ok(state.addresses.clone()) }
    }
}

impl State {
    /// Why there are no addresses.
    fn failure(&self) -> ureq::Error {
        match &self.error {
            Some(LookupError::Failed(_)) => ureq::Error::HostNotFound,
            Some(LookupError::Forbidden(_)) => ureq::Error::BadUri(String::new()),
            None => ureq::Error::Timeout(ureq::Timeout::Resolve),
        }
    }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, found: io::Result<Vec<SocketAddr>>) {
        let mut state = self.lock();
        state.looked_up = Some(Instant::now());
        state.n_lookups += 1;
        match found.map_err(|e| LookupError::Failed(clean_text(e.to_string().as_bytes(), 200))).and_then(|all| self.allowed(all))
        {
            Ok(addresses) => {
                if state.addresses.iter().any(|old| !addresses.contains(old)) {
                    state.generation += 1;
                }
                state.addresses = addresses;
                state.error = None;
            }
            Err(error) => state.error = Some(error),
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Those that may be connected to; at least one.
    fn allowed(&self, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, LookupError> {
        let mut refused = LookupError::Failed("no address".into());
        let mut allowed = Vec::new();
        for address in found {
            let ip = address.ip();
            let elsewhere = (self.is_loopback && !ip.is_loopback()).then_some("another machine, and it should be this one");
            match forbidden(ip).or(elsewhere) {
                None => allowed.push(address),
                Some(why) => refused = LookupError::Forbidden(format!("it leads to {ip}: {why}")),
            }
        }
        allowed.truncate(ADDRESSES_MAX);
        if allowed.is_empty() { Err(refused) } else { Ok(allowed) }
    }
}

fn keep_looking(known: &Known, asked: &Receiver<()>, lookup: impl Fn() -> io::Result<Vec<SocketAddr>>) {
    loop {
        known.learn(lookup());
        // Questions of the first second have their answer already.
        match asked.recv_timeout(REFRESH_EVERY) {
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => continue,
            Ok(()) => {}
        }
        let quiet = known.lock().looked_up.map_or(Duration::ZERO, |at| QUIET_AFTER_LOOKUP.saturating_sub(at.elapsed()));
        // A wait for the end of the last user, not a sleep; questions asked meanwhile are the same question.
        let end = Instant::now() + quiet;
        loop {
            match asked.recv_deadline(end) {
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
                Ok(()) => {}
            }
        }
    }
}

impl Resolver for Addresses {
    fn resolve(&self, _: &Uri, config: &ureq::config::Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        // `timeout` is the rest of the whole deadline or of `timeout_resolve`, whichever is shorter.
        let wait = config.timeouts().connect.map_or(*timeout.after, |connect| connect.min(*timeout.after));
        let mut resolved = self.empty();
        for address in self.wait(wait)? {
            resolved.push(address);
        }
        Ok(resolved)
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
