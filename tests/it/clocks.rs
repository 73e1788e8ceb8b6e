//! A clock an hour forward and an hour back, PostgreSQL's and txrelay's: nothing is lost, everything moves, and it is said.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::rig::{Ledger, Relay, Topic, eventually, ids, unique};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A script of the bed, to its end; what it printed.
#[track_caller]
fn script(name: &str, args: &[&str]) -> String {
    let out = Command::new(Path::new(HERE).join("tests/bed").join(name)).args(args).output().expect("the script runs");
    assert!(out.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text").trim().to_owned()
}

/// libfaketime, and a file that says what it adds to the clock of a program that is started with it.
struct Clock {
    folder: PathBuf,
}

impl Clock {
    fn new() -> Self {
        let folder =
            PathBuf::from(std::env::var("TXRELAY_TEST_DIR").expect("run the tests through `make test`")).join(unique("clock"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let package = script("debs.sh", &["libfaketime"]);
        let found = Command::new("find").args([&package, "-name", "libfaketimeMT.so.1"]).output().expect("find runs");
        let library = String::from_utf8(found.stdout).expect("text");
        // PostgreSQL may run as another user, who cannot reach the cache.
        std::fs::copy(library.trim(), folder.join("libfaketime.so")).expect("it is in the package");
        let shim = Path::new(HERE).join("tests/bed/cnd_timedwait.c");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(folder.join("shim.so")).arg(shim).status();
        assert!(built.expect("cc runs").success());
        let clock = Self { folder };
        clock.set(0);
        clock
    }

    /// Seconds that are added from now on.
    fn set(&self, seconds: i64) {
        let (file, next) = (self.folder.join("now"), self.folder.join("next"));
        std::fs::write(&next, format!("{seconds:+}\n")).expect("written");
        std::fs::rename(next, file).expect("in one piece");
    }

    fn environment(&self) -> Vec<(String, String)> {
        let at = |name: &str| self.folder.join(name).to_str().expect("text").to_owned();
        let pairs = [
            ("LD_PRELOAD", format!("{}:{}", at("libfaketime.so"), at("shim.so"))),
            ("FAKETIME_TIMESTAMP_FILE", at("now")),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DISABLE_SHM", "1".to_owned()),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).to_vec()
    }
}

/// A PostgreSQL of its own, whose clock can be set.
struct Cluster {
    clock: Clock,
    folder: String,
    dsn: String,
}

impl Cluster {
    fn start() -> Self {
        let clock = Clock::new();
        let folder = clock.folder.join("pg").to_str().expect("text").to_owned();
        let environment: Vec<String> = clock.environment().iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut args = vec!["up", &folder];
        environment.iter().for_each(|pair| args.extend(["--env", pair]));
        let dsn = script("pg.sh", &args);
        Self { clock, folder, dsn }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        script("pg.sh", &["down", &self.folder, "-m", "immediate"]);
    }
}

const SLOW_RETRIES: &str =
    "workers = 4\ntimeout = \"3s\"\n[retry]\nbase = \"20s\"\n[gate]\nprobe_cap = \"20s\"\nshut_after = 1000";

/// How many open deliveries lie more than half an hour ahead of this machine's clock, which nobody sets here.
fn ahead(relay: &Relay, what: &str) -> i64 {
    let now = std::time::SystemTime::now();
    let query = format!("select count(*) from delivery where due_at > $1::timestamptz + interval '30 min' and {what}");
    relay.sql().query_one(&query, &[&now]).map_or(0, |row| row.get(0))
}

#[test]
fn postgresqls_clock_an_hour_forward_and_back_loses_nothing_and_everything_moves() {
    let (cluster, topic, ledger) = (Cluster::start(), Topic::new(2), Ledger::start());
    let mut relay = Relay::on(&topic.name, &ledger.url(), &cluster.dsn, &cluster.dsn, SLOW_RETRIES);
    relay.set("postgres.lease=\"20s\"");
    relay.start();
    let mut sent = ids("retrying", 0..30);
    ledger.behave(&json!({ "status": 503 }));
    topic.transactions(sent.clone());
    eventually("all have failed once", || relay.count("select count(*) from delivery where attempt > 0 and lease is null") == 30);
    relay.sql().batch_execute("update pipeline set paused_at = now()").expect("paused");
    eventually("it is paused", || relay.metric("stalled{reason=\"paused\"}") == Some(1.0));
    let pending = ids("pending", 0..20);
    topic.transactions(pending.clone());
    sent.extend(pending);
    eventually("stored", || relay.count("select count(*) from delivery where attempt = 0") == 20);

    cluster.clock.set(3600);
    eventually("it says that the clock has jumped", || relay.log().contains("s forward: waits and leases end"));
    relay.sql().batch_execute("update pipeline set paused_at = null").expect("resumed");
    eventually("the new clock has written all of them", || ahead(&relay, "attempt > 0 and lease is null") == 50);
    ledger.behave(&json!({ "action": "hang" }));
    let held = ids("held", 0..12);
    topic.transactions(held.clone());
    sent.extend(held);
    eventually("some are leased by the new clock", || ahead(&relay, "lease is not null") >= 4);

    cluster.clock.set(0);
    eventually("it says that the clock was set back", || relay.log().contains("s back: what waits is moved to the new time"));
    eventually("nothing lies an hour ahead", || ahead(&relay, "true") == 0);
    ledger.behave_well();
    eventually("all delivered", || ledger.count("accepted") == sent.len() as u64);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    let accepted: std::collections::BTreeSet<String> = ledger.accepted().into_iter().collect();
    assert!(sent.iter().all(|id| accepted.contains(id)));
    assert_eq!(relay.count("select round(clock_back_ms / 60000.0)::bigint from pipeline where clock_back_next is null"), 60);
    relay.balanced();
}

#[test]
fn a_clock_set_back_while_nobody_ran_is_noticed_at_the_start() {
    let (cluster, topic, ledger) = (Cluster::start(), Topic::new(1), Ledger::start());
    cluster.clock.set(3600);
    let mut relay = Relay::on(&topic.name, &ledger.url(), &cluster.dsn, &cluster.dsn, SLOW_RETRIES);
    relay.set("postgres.lease=\"20s\"");
    ledger.behave(&json!({ "status": 503 }));
    topic.transactions(ids("w", 0..20));
    relay.start();
    eventually("all have failed once", || relay.count("select count(*) from delivery where attempt > 0 and lease is null") == 20);
    ledger.behave(&json!({ "action": "hang" }));
    topic.transactions(ids("h", 0..4));
    eventually("some are leased", || relay.count("select count(*) from delivery where lease is not null") >= 4);
    relay.kill_9();
    cluster.clock.set(0);
    ledger.behave_well();
    eventually("the clock is set back", || {
        relay.count("select count(*) from process where seen_at > clock_timestamp() + interval '50 min'") == 1
    });
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 24);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert!(relay.log().contains("behind the newest heartbeat in its tables"), "{}", relay.log());
    assert_eq!(relay.count("select count(*) from process where seen_at > now()"), 0);
    relay.balanced();
}

#[test]
fn txrelays_own_clock_an_hour_forward_and_back_stops_nothing_and_retention_waits() {
    let (clock, topic, ledger) = (Clock::new(), Topic::new(2), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    for (key, value) in clock.environment() {
        relay.env(&key, &value);
    }
    relay.start();
    topic.transactions(ids("a", 0..50));
    eventually("the first are delivered", || ledger.count("accepted") == 50);
    relay
        .sql()
        .batch_execute(
            "insert into tx (id, received_at, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
               values (1, now() - interval '100 days', 'old', 'x', 0, 1000000, 1, 0); \
             insert into attempt (tx_id, finished_at, n, outcome, sent) values (1, now() - interval '100 days', 1, 1, 1)",
        )
        .expect("an old transaction");
    clock.set(3600);
    eventually("it says so", || relay.log().contains("s forward: nothing waits for it"));
    topic.transactions(ids("b", 0..50));
    eventually("it delivers", || ledger.count("accepted") == 100);
    eventually("retention waits", || relay.log().contains("retention waits: PostgreSQL's clock and this machine's are"));
    clock.set(0);
    eventually("it says that, too", || relay.log().contains("s back: nothing waits for it"));
    topic.transactions(ids("c", 0..50));
    eventually("it delivers again", || ledger.count("accepted") == 150);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.count("select count(*) from tx where id = 1"), 1, "it was not deleted by a wrong clock");
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(ledger.count("requests"), 150, "each was sent once");
}

#[test]
fn a_clock_years_ahead_deletes_nothing() {
    const YEARS: i64 = 3 * 366 * 86_400;
    let (cluster, topic, ledger) = (Cluster::start(), Topic::new(1), Ledger::start());
    let mut relay = Relay::on(&topic.name, &ledger.url(), &cluster.dsn, &cluster.dsn, "");
    topic.transactions(ids("young", 0..20));
    // PostgreSQL's alone, from the start.
    cluster.clock.set(YEARS);
    relay.start();
    eventually("all settled", || relay.count("select count(*) from attempt where outcome = 1") == 20);
    cluster.clock.set(0);
    relay
        .sql()
        .batch_execute(
            "update attempt set finished_at = now() - interval '1 h'; update tx set received_at = now() - interval '1 h'",
        )
        .expect("by the right clock");
    cluster.clock.set(YEARS);
    eventually("retention waits", || relay.log().contains("retention waits: PostgreSQL's clock and this machine's are"));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(relay.count("select count(*) from tx"), 20);

    // Both, as where they are one machine's, and while it runs.
    cluster.clock.set(0);
    for (key, value) in cluster.clock.environment() {
        relay.env(&key, &value);
    }
    relay.start();
    topic.transactions(ids("later", 0..1));
    eventually("it runs", || ledger.count("accepted") == 21);
    cluster.clock.set(YEARS);
    eventually("retention waits", || relay.log().contains("retention waits: a clock was set forward"));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(relay.count("select count(*) from tx"), 21);
    assert_eq!(relay.count("select count(*) from pipeline where retention_ended_at is null"), 1);
}
