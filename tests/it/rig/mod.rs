//! The rig: one call per boundary. Real PostgreSQL and Kafka (from the environment; missing = failure), the real binary, the
//! bed's ledger service, all with a name of their own per test.

mod acl;
mod blackhole;
mod broker;
mod certificates;
mod fake_broker;
mod kafka;
mod ledger;
mod postgres;
mod proxy;
mod relay;
mod resources;
mod rogue;
mod truth;
mod watch;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub use acl::{On, Right, To};
pub use blackhole::{Blackhole, Nowhere};
pub use broker::{Admin, Broker};
pub use certificates::{Authority, Issued, write_private};
pub use fake_broker::{FETCH, FakeBroker, Fault, OFFSET_COMMIT, TOPIC};
pub use kafka::{LARGEST, Load, Raw, Topic, end_transaction, ids, transaction};
pub use ledger::Ledger;
pub use postgres::Pg;
pub use proxy::Proxy;
pub use relay::Relay;
pub use resources::{Resources, cpu, within_bounds};
pub use rogue::{Opening, Peer, Request, Rogue, Then};
pub use truth::wrong_offsets;
pub use watch::{Seen, Watch};

/// Catches hangs only: ten times what anything here needs.
pub const LIMIT: Duration = Duration::from_secs(60);

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests through `make test`"))
}

/// DSN of a superuser.
pub fn postgres_url() -> String {
    env("TXRELAY_TEST_PG")
}

pub fn bootstrap() -> String {
    env("TXRELAY_TEST_KAFKA")
}

/// The folder in which a Debian package is unpacked, without being installed (`tests/bed/debs.sh`).
#[track_caller]
pub fn unpacked(package: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/debs.sh");
    let out = Command::new(script).arg(package).output().expect("debs.sh runs");
    assert!(out.status.success(), "debs.sh {package}: {}", String::from_utf8_lossy(&out.stderr));
    PathBuf::from(String::from_utf8(out.stdout).expect("text").trim())
}

/// Polls until `what` holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < until, "after {LIMIT:?} still not: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

pub fn unique(stem: &str) -> String {
    format!("{stem}-{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

/// An address that nobody listens on, and that no other test gets: neither one that the kernel gives to a connection (from 32768
/// on) nor one of the bed's scripts (20000 to 29999).
pub fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 10) as u16 * 1000;
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().expect("its number").to_string();
        }
    }
}

/// Runs a subcommand of the bed to its end and returns its output.
#[track_caller]
pub fn bed(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_bed")).args(args).output().expect("bed runs");
    assert!(out.status.success(), "bed {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// A child that is killed, by its own pid, when the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Either may fail because it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Holds `what` against the process for all of `time`, many times a second: a fault that lasts.
#[track_caller]
pub fn throughout(time: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        assert!(holds(), "not any more: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// The body of an answer, whatever its status; `None` where nobody answers within the 10 s that a scraper waits.
pub fn http(address: &str, path: &str) -> Option<String> {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(LIMIT / 6)).build();
    ureq::Agent::from(agent).get(format!("http://{address}{path}")).call().ok()?.body_mut().read_to_string().ok()
}

/// Every `.rs` file below `directory`, with its path relative to it.
pub fn sources(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(directory).expect("below it").to_string_lossy().into_owned();
                found.push((name, std::fs::read_to_string(&path).expect("text")));
            }
        }
    }
    found.sort();
    found
}
