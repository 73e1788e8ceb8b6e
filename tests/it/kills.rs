//! kill -9 at random moments, again and again. The seed is printed; `TXRELAY_TEST_SEED` gives it, and the same process is killed
//! after the same times (what each is doing then is not repeated).

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::rig::{Ledger, Load, Relay, Topic, bed, bootstrap, eventually, ids, postgres_url};

fn seeded() -> SmallRng {
    let seed = std::env::var("TXRELAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let test = std::thread::current();
    eprintln!("{}: TXRELAY_TEST_SEED={seed}", test.name().unwrap_or_default());
    SmallRng::seed_from_u64(seed)
}

/// What is done to two processes while records keep coming.
struct Plan {
    records: u64,
    per_second: u64,
    kills: usize,
    /// Between two kills, in milliseconds.
    pause: std::ops::Range<u64>,
}

/// Writes transactions and its own ledger of them.
struct Producer {
    child: Child,
    ledger: std::path::PathBuf,
}

impl Producer {
    fn start(topic: &Topic, relay: &Relay, plan: &Plan) -> Self {
        let ledger = relay.directory.join("produced");
        let (count, rate) = (plan.records.to_string(), plan.per_second.to_string());
        let child = Command::new(env!("CARGO_BIN_EXE_bed"))
            .args([
                "produce",
                "--brokers",
                &bootstrap(),
                "--topic",
                &topic.name,
                "--count",
                &count,
                "--rate",
                &rate,
                "--bytes",
                "300",
            ])
            .args(["--duplicates", "2", "--conflicts", "1", "--unreadable", "1", "--ledger"])
            .arg(&ledger)
            .stdout(Stdio::null())
            .spawn()
            .expect("the producer starts");
        Self { child, ledger }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills either of two processes; afterwards the ledgers of the producer, of the service and in the tables agree.
fn survive(plan: &Plan) {
    let mut random = seeded();
    let mut draw = |range: std::ops::Range<u64>| Duration::from_millis(random.random_range(range));
    // Drawn before anything runs, so that nothing that happens changes it: which, after how long, and how long it stays away.
    let deaths: Vec<(bool, Duration, Duration)> =
        (0..plan.kills).map(|_| (draw(0..2).as_millis() == 1, draw(plan.pause.clone()), draw(0..1500))).collect();
    let (topic, ledger) = (Topic::new(6), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 5 }));
    let mut one = Relay::new(&topic.name, &ledger.url(), "workers = 16\ntimeout = \"2s\"\nconnect_timeout = \"1s\"");
    let mut other = one.twin();
    one.start();
    other.start();
    let mut producer = Producer::start(&topic, &one, plan);
    eventually("under way", || ledger.count("accepted") > 0);
    let mut may_repeat = 0;
    for (n, (is_one, pause, away)) in deaths.into_iter().enumerate() {
        std::thread::park_timeout(pause);
        let victim = if is_one { &mut one } else { &mut other };
        let process = victim.process();
        victim.kill_9();
        // What it held leased may have been sent; its last settle may still be on its way, and makes it fewer.
        let held = victim.count(&format!("select count(*) from delivery where leased_by = {process}"));
        eprintln!("kill {}: process {process} held {held}", n + 1);
        may_repeat += held as u64;
        std::thread::park_timeout(away);
        victim.start();
    }
    assert!(producer.child.wait().expect("its status").success(), "the producer");
    let produced = producer.ledger.to_str().expect("text");
    let url = format!("http://{}", ledger.address);
    let verdict = ["--ledger-url", &url, "--dsn", &postgres_url(), "--schema", &one.schema, "--wait", "60s"];
    eprintln!("{}", bed(&[&["verdict", "--produced", produced], &verdict[..]].concat()));
    one.balanced();
    let twice = ledger.count("accepted_twice");
    assert!(twice <= may_repeat, "{twice} repeated, {may_repeat} were leased by processes that were killed");
    // Whatever was held: never more than there is room for, per kill.
    assert!(twice <= plan.kills as u64 * (16 + 1024 + 500), "{twice} repeated");
    assert_eq!(one.count("select coalesce(max(spent_ms), 0) from delivery") + one.count("select count(*) from dead"), 0);
    assert_eq!((one.stop().code(), other.stop().code()), (Some(0), Some(0)), "{}\n{}", one.log(), other.log());
}

#[test]
fn six_kills_of_either_of_two_processes_lose_nothing() {
    survive(&Plan { records: 10_000, per_second: 600, kills: 6, pause: 500..3500 });
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn a_hundred_thousand_records_through_thirty_kills_lose_nothing() {
    survive(&Plan { records: 100_000, per_second: 800, kills: 30, pause: 500..5500 });
}

/// Each life is killed after 2 to `longest` seconds, but not before it has delivered something.
fn crash_loop(lives: usize, longest: u64) {
    let mut random = seeded();
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    // Some are in flight in every life, and never answered: crashes alone must not count against them.
    let victims = ids("hangs", 0..4);
    ledger.behave(&json!([{ "action": "hang", "ids": victims }, { "delay_ms": 5 }]));
    topic.transactions(victims.clone());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8\n[retry]\ngive_up_after = \"1s\"\ncap = \"1s\"");
    let load = Load::start(&topic.name, "x", 100);
    let mut may_repeat = 0;
    for life in 0..lives {
        let (began, before) = (Instant::now(), ledger.count("accepted"));
        relay.start();
        let time = Duration::from_millis(random.random_range(2000..longest * 1000));
        eventually(&format!("life {life} delivers something"), || ledger.count("accepted") > before);
        eventually(&format!("life {life} tries what hangs"), || ledger.requests("hangs-0").len() > life);
        std::thread::park_timeout(time.saturating_sub(began.elapsed()));
        relay.kill_9();
        may_repeat += relay.count("select count(*) from delivery where lease is not null") as u64;
        assert_eq!(relay.count("select coalesce(max(spent_ms), 0) from delivery"), 0, "a crash is no failure of a delivery");
        assert_eq!(relay.count("select count(*) from dead"), 0);
    }
    assert!(relay.count("select max(attempt)::bigint from delivery") >= lives as i64 - 1);
    ledger.behave_well();
    relay.start();
    let mut sent = load.finish();
    sent.extend(victims);
    eventually("all delivered", || ledger.count("accepted") == sent.len() as u64);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    ledger.has_exactly(&sent);
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    let twice = ledger.count("accepted_twice");
    assert!(twice <= may_repeat, "{twice} repeated, {may_repeat} were leased");
}

/// F9, for some lives.
#[test]
fn a_crash_loop_makes_progress_in_every_life_and_spends_no_budget() {
    crash_loop(5, 4);
}

/// F9, for two minutes or more.
#[test]
#[ignore = "takes minutes: make test-long"]
fn a_long_crash_loop_makes_progress_in_every_life_and_spends_no_budget() {
    crash_loop(22, 10);
}
