//! `bed ledger`: the HTTP service that must not miss a transaction, written for little CPU and for faults on request. One
//! thread per connection, HTTP/1.1 by hand: at the rates of the bench a framework would cost more than the daemon.
//!
//! A POST or PUT to any path that does not begin with `/_/` is a delivery. Control:
//!
//! - `PUT /_/behave` one rule or a list of them, first match wins; `POST` puts one in front; `DELETE` ends all misbehaviour
//! - `GET /_/summary`, `GET /_/requests[?id=X]`, `GET /_/accepted`, `POST /_/reset`

mod book;
mod connection;
mod rule;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;

use book::Book;
use rule::Rule;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Append every delivery to this file, and begin with what it holds: the book then survives the process
    #[arg(long)]
    file: Option<PathBuf>,
}

/// What all connections share.
struct Service {
    state: Mutex<State>,
    in_flight: AtomicU64,
    open: AtomicU64,
    connections: AtomicU64,
}

struct State {
    book: Book,
    rules: Vec<Rule>,
    /// Counts every change of the rules; a hanging request ends when it moves.
    rules_version: u64,
}

impl Service {
    /// A thread that panicked must not take the service along.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).with_context(|| format!("failed to listen on {}", args.listen))?;
    let book = Book::open(args.file.as_deref())?;
    let service = Arc::new(Service {
        state: Mutex::new(State { book, rules: Vec::new(), rules_version: 0 }),
        in_flight: AtomicU64::new(0),
        open: AtomicU64::new(0),
        connections: AtomicU64::new(0),
    });
    println!("listening on {}", listener.local_addr()?);
    std::io::stdout().flush()?;
    loop {
        // An error here (too many open files, a connection that is gone again) is the moment's, not the service's.
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let service = Arc::clone(&service);
        service.connections.fetch_add(1, Ordering::Relaxed);
        let spawned = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            service.open.fetch_add(1, Ordering::Relaxed);
            connection::serve(&service, stream);
            service.open.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
