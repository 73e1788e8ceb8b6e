//! PostgreSQL is there and in the way: deadlocks, timeouts, slow disks, long transactions, locks of administrators.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use txrelay::core::outcome::Outcome;
use txrelay::store::{Session, Settled, Settlement, StoreError};

use crate::faults::{Running, SHORT_LEASE, said_postgres};
use crate::rig::{Ledger, Pg, Relay, Topic, eventually, ids, unique};
use crate::store::{Store, role, tried};

/// A session that takes rows in the opposite order, and lets the other be the one who finds out.
struct Reverse(Session);

impl Reverse {
    fn new(store: &Store) -> Self {
        let mut session = Session::connect(&store.config, &role()).expect("PostgreSQL answers");
        session
            .client()
            .batch_execute("set deadlock_timeout = '1h'; set lock_timeout = 0; set statement_timeout = 0; begin")
            .expect("begun");
        Self(session)
    }

    fn run(&mut self, sql: &str) {
        self.0.client().batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn waits_for(&mut self, pid: i64) {
        let query = format!("select count(*) from pg_locks where pid = {pid} and not granted");
        eventually("it waits", || self.0.client().query_one(&query, &[]).expect("asked").get::<_, i64>(0) > 0);
    }
}

/// F26: 40P01. The whole transaction is undone, nothing is half done, and the same again is taken.
#[test]
fn a_deadlock_undoes_the_whole_batch_and_the_same_again_is_taken() {
    let mut store = Store::new();
    let insert = |id: &str| {
        format!(
            "insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
             select nextval('batch_seq'), '{id}', '1', 7, 0, 1, 0"
        )
    };
    let candidates = store.records(&[("z", "1"), ("a", "1"), ("m", "1")]);
    let batch = store.batch(candidates, Vec::new(), Some(5));
    let pid = store.number("select pg_backend_pid()::bigint");
    let mut other = Reverse::new(&store);
    other.run(&insert("z"));
    std::thread::scope(|scope| {
        // It inserts in order of the ids: "a" and "m", and waits for "z".
        let ours = scope.spawn(|| store.ingest(&batch).map(drop));
        other.waits_for(pid);
        let theirs = scope.spawn(|| other.run(&format!("{}; rollback", insert("a"))));
        let refused = ours.join().expect("no panic").expect_err("a deadlock");
        assert!(matches!(&refused, StoreError::Busy(text) if text.contains("40P01")), "{refused}");
        theirs.join().expect("no panic");
    });
    assert_eq!(store.number("select count(*) from tx"), 0, "nothing is half done");
    assert_eq!(store.ingest(&batch).expect("taken").new.len(), 3);

    let (first, last) = (store.number("select min(id) from tx"), store.number("select max(id) from tx"));
    let outcomes = [last, first].map(|id| Settlement {
        id,
        lease: 5,
        attempt: 1,
        received_at: store.received_at(id),
        what: Settled::Delivered(tried(Outcome::Delivered, 200)),
    });
    let mut other = Reverse::new(&store);
    other.run(&format!("select from delivery where id = {last} for update"));
    std::thread::scope(|scope| {
        let ours = scope.spawn(|| store.session.settle(1, &outcomes));
        other.waits_for(pid);
        let theirs = scope.spawn(|| other.run(&format!("select from delivery where id = {first} for update; rollback")));
        let refused = ours.join().expect("no panic").expect_err("a deadlock");
        assert!(matches!(&refused, StoreError::Busy(text) if text.contains("40P01")), "{refused}");
        theirs.join().expect("no panic");
    });
    assert_eq!(store.number("select count(*) from delivery"), 3, "nothing is half done");
    assert_eq!(store.session.settle(1, &outcomes).expect("settled"), 0);
    assert_eq!(store.number("select count(*) from attempt where outcome = 1 and not stale"), 2);
}

/// F26, F27: deadlocks, serialization failures, lock and statement timeouts, in each kind of transaction: none is lost, none
/// is sent twice. The numbers of a sequence stay used when its transaction is undone.
#[test]
fn what_may_succeed_at_once_is_tried_again_whole() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    // Some fail at first, so that there is something to claim.
    ledger.behave(&json!([{ "status": 503, "share": 0.3, "times": 60 }]));
    let mut relay = Relay::new(&topic.name, &ledger.url(), &format!("{SHORT_LEASE}\n[gate]\nprobe_cap = \"1s\""));
    relay.set("postgres.lease=\"12s\"");
    assert!(relay.command(&["migrate"]).status().expect("runs").success());
    let mut sql = String::new();
    for (table, when) in [("tx", "before insert"), ("attempt", "before insert"), ("delivery", "before update")] {
        sql.push_str(&format!(
            "create sequence trouble_{table}; create function trouble_{table}() returns trigger language plpgsql as $$ begin \
               case nextval('trouble_{table}') when 3 then raise exception 'x' using errcode = '40001'; \
               when 6 then raise exception 'x' using errcode = '40P01'; when 9 then raise exception 'x' using errcode = '55P03'; \
               when 12 then perform pg_sleep(10); else null; end case; return new; end $$; \
             create trigger trouble {when} on {table} for each row execute function trouble_{table}(); "
        ));
    }
    relay.sql().batch_execute(&sql).expect("triggers");
    relay.start();
    let sent = ids("t", 0..200);
    for some in sent.chunks(20) {
        topic.transactions(some.to_vec());
    }
    eventually("all delivered", || ledger.count("accepted") == 200);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    ledger.has_exactly(&sent);
    assert_eq!(ledger.count("accepted_twice"), 0, "{}", ledger.summary());
    for table in ["tx", "attempt", "delivery"] {
        assert!(relay.count(&format!("select last_value from trouble_{table}")) >= 12, "{table}: not all of it came");
    }
    assert!(relay.metric("postgres_errors_total{kind=\"busy\"}") >= Some(12.0));
    assert_eq!(relay.metric("settles_stale_total"), Some(0.0));
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

/// F32: an administrator's ALTER TABLE that is not committed, then a VACUUM FULL: waits end by the lock timeout, and it goes on.
#[test]
fn locks_of_an_administrator_are_waited_for() {
    let pg = Pg::start();
    let mut running = Running::set_up(pg.dsn(), pg.dsn(), SHORT_LEASE, &["postgres.lease=\"12s\""]);
    for table in ["tx", "delivery"] {
        let mut admin = running.relay.sql();
        admin.batch_execute(&format!("begin; alter table {table} add column by_hand int")).expect("altered");
        running.is_stalled();
        running.endures(5);
        admin.batch_execute("commit").expect("let go");
        running.moves();
        running.relay.sql().batch_execute(&format!("vacuum full {table}")).expect("rewritten");
        running.relay.sql().batch_execute(&format!("alter table {table} drop column by_hand")).expect("as it was");
        running.moves();
    }
    said_postgres(&running.heals(), &["postgres", "lock timeout"]);
}

/// A library that slows a PostgreSQL's disk while a file is there.
struct SlowDisk {
    folder: PathBuf,
}

impl SlowDisk {
    fn new() -> Self {
        let folder =
            PathBuf::from(std::env::var("TXRELAY_TEST_DIR").expect("run the tests through `make test`")).join(unique("disk"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/slow_fsync.c");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(folder.join("slow.so")).arg(source).status();
        assert!(built.expect("cc runs").success());
        Self { folder }
    }

    fn at(&self, name: &str) -> String {
        self.folder.join(name).to_str().expect("text").to_owned()
    }
}

/// Sum and count of a histogram.
fn histogram(relay: &Relay, name: &str, op: &str) -> (f64, f64) {
    let of = |what: &str| relay.metric(&format!("{name}_{what}{{op=\"{op}\"}}")).unwrap_or(0.0);
    (of("sum"), of("count"))
}

/// F30: half a second for each flush. Batches grow, not threads, and nothing is lost.
#[test]
fn a_slow_disk_under_postgresql_makes_batches_grow_and_loses_nothing() {
    let disk = SlowDisk::new();
    let pg =
        Pg::with(&["--env", &format!("LD_PRELOAD={}", disk.at("slow.so")), "--env", &format!("SLOW_FSYNC={}", disk.at("slow"))]);
    let mut running = Running::start(pg.dsn(), pg.dsn(), "workers = 8");
    std::fs::write(disk.at("slow"), "").expect("slow from now on");
    running.endures(2);
    let before = ["ingest", "settle"].map(|op| histogram(&running.relay, "batch_rows", op));
    let accepted = running.ledger.count("accepted");
    running.endures(8);
    for (n, op) in ["ingest", "settle"].into_iter().enumerate() {
        let (rows, batches) = histogram(&running.relay, "batch_rows", op);
        let (rows, batches) = (rows - before[n].0, batches - before[n].1);
        println!("{op} with a slow disk: {batches} batches of {:.0} rows", rows / batches);
        assert!(batches > 0.0 && rows / batches > 20.0, "{op}: {rows} rows in {batches} batches");
    }
    assert!(running.ledger.count("accepted") > accepted + 400, "hardly anything moved");
    std::fs::remove_file(disk.at("slow")).expect("removed");
    running.heals();
}

/// Claims under load while a transaction of somebody else keeps every dead row: mean time of a claim in each of `parts`.
#[track_caller]
fn claims_while_pinned(parts: usize, seconds: u64) -> Vec<Duration> {
    let pg = Pg::start();
    let mut running = Running::start(pg.dsn(), pg.dsn(), "workers = 8\n[gate]\nprobe_cap = \"1s\"");
    // A third fails and is claimed again and again.
    running.ledger.behave(&json!([{ "status": 503, "share": 0.33 }, { "delay_ms": 2 }]));
    let mut old = pg.sql();
    old.batch_execute("begin isolation level repeatable read; select count(*) from pg_class").expect("a snapshot");
    let mut means = Vec::new();
    for part in 0..parts {
        let (seconds_before, n_before) = histogram(&running.relay, "commit_duration_seconds", "claim");
        running.endures(seconds);
        let (seconds_after, n_after) = histogram(&running.relay, "commit_duration_seconds", "claim");
        assert!(n_after > n_before, "nothing was claimed");
        let mean = Duration::from_secs_f64((seconds_after - seconds_before) / (n_after - n_before));
        println!("part {part}: {} claims, {mean:.1?} each", n_after - n_before);
        means.push(mean);
    }
    let pinned = "select count(*) from pg_stat_activity where pid = pg_backend_pid() and backend_xmin is not null";
    assert_eq!(old.query_one(pinned, &[]).expect("asked").get::<_, i64>(0), 1, "the snapshot is still held");
    old.batch_execute("rollback").expect("let go");
    running.ledger.behave(&json!({ "delay_ms": 2 }));
    running.heals();
    means
}

/// F31
#[test]
fn a_long_transaction_of_somebody_else_does_not_slow_claims() {
    let means = claims_while_pinned(2, 4);
    // The goal is a few milliseconds; this only catches a claim that reads all dead rows.
    assert!(means.iter().all(|mean| *mean < Duration::from_millis(500)), "{means:?}");
}

/// F31, for as long as there are hundreds of thousands of dead rows.
#[test]
#[ignore = "takes minutes: make test-long"]
fn a_transaction_of_minutes_does_not_slow_claims_more_and_more() {
    let means = claims_while_pinned(6, 30);
    assert!(means[5] < means[0] * 5 + Duration::from_millis(50), "{means:?}");
}
