//! The gate, on the real binary: what a service is sent while it fails and when it comes back, and what its failures cost.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rig::{Blackhole, Ledger, Load, Nowhere, Relay, Topic, eventually, free_address, ids, throughout};

/// Probes that a test can wait for.
const PROBES: &str = "[gate]\nprobe_every = \"200ms\"\nprobe_cap = \"400ms\"";

fn is_shut(relay: &Relay) -> bool {
    relay.metric("gate_open") == Some(0.0)
}

/// Requests that all probes since `began` can have made, and one more.
fn probes_since(began: Instant) -> u64 {
    (began.elapsed().as_millis() / 160) as u64 + 1
}

#[test]
fn an_outage_of_any_kind_is_sent_probes_only_and_costs_no_delivery_anything() {
    for (rule, answer, reason) in [
        (json!({ "status": 503 }), "503", "gate_down"),
        (json!({ "status": 500 }), "500", "gate_down"),
        (json!({ "status": 401 }), "401", "gate_misconfigured"),
        (json!({ "action": "hang" }), "hang", "gate_down"),
        (json!({ "status": 429, "retry_after": "1" }), "429", "throttled"),
        (json!({ "action": "reset_after" }), "reset_after", "gate_down"),
    ] {
        let (topic, ledger) = (Topic::new(2), Ledger::start());
        ledger.behave(&rule);
        let sent = ids("o", 0..300);
        topic.transactions(sent.clone());
        let mut relay = Relay::new(
            &topic.name,
            &ledger.url(),
            &format!("workers = 8\ntimeout = \"500ms\"\nconnect_timeout = \"500ms\"\n{PROBES}"),
        );
        relay.start();
        eventually("the gate shuts", || is_shut(&relay));
        let began = Instant::now();
        let at_once = ledger.count("requests");
        assert!(at_once <= 20 + 8 + probes_since(began), "{answer}: {at_once} requests before it was shut");
        assert_eq!(relay.metric("gate_rate"), Some(0.0));
        assert_eq!(relay.metric(&format!("stalled{{reason=\"{reason}\"}}")), Some(1.0), "{answer}");
        eventually("probes", || ledger.count("requests") >= at_once + 4);
        let requests = ledger.count("requests");
        assert!(requests <= at_once + 8 + probes_since(began), "{answer}: {requests} after {:?}", began.elapsed());
        // What was leased and not sent is back, once; nothing else was claimed, counted or written.
        let back = relay.metric("given_back_total");
        eventually("two more probes", || ledger.count("requests") >= requests + 2);
        assert_eq!(relay.metric("given_back_total"), back, "{answer}: what waits is left alone");
        eventually("a probe at most is leased", || relay.count("select count(*) from delivery where lease is not null") <= 1);
        assert!(relay.count("select count(*) from attempt") <= ledger.count("requests") as i64);
        assert_eq!(relay.count("select count(*) from dead"), 0);
        assert_eq!(relay.count("select coalesce(sum(spent_ms), 0)::bigint from delivery"), 0, "{answer}: nothing is spent");
        // In the heartbeat, and so for commands.
        eventually("the heartbeat says so", || {
            let shut = "select count(*) from process where not gate_open and gate_why is not null and next_probe_at > seen_at - interval '5 s'";
            relay.count(shut) == 1
        });
        let screen = relay.command(&["status"]).output().expect("runs").stdout;
        assert!(String::from_utf8_lossy(&screen).contains("gate         shut since"), "{}", String::from_utf8_lossy(&screen));
        ledger.behave_well();
        eventually("all delivered", || ledger.count("accepted") == 300);
        eventually("all settled", || relay.count("select count(*) from delivery") == 0);
        assert_eq!(relay.metric(&format!("stalled{{reason=\"{reason}\"}}")), Some(0.0), "{answer}");
        assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
        ledger.has_exactly(&sent);
        let log = relay.log();
        let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        assert_eq!((lines("the gate is shut: deliveries"), lines("the gate is open: a probe")), (1, 1), "{log}");
        relay.balanced();
    }
}

/// F51. Nobody listens; later somebody does.
#[test]
fn a_service_that_is_not_there_shuts_the_gate_within_twenty_failures() {
    let topic = Topic::new(2);
    let address = free_address();
    topic.transactions(ids("n", 0..200));
    let mut relay = Relay::new(&topic.name, &format!("http://{address}/"), &format!("workers = 8\n{PROBES}"));
    relay.start();
    eventually("the gate shuts", || is_shut(&relay));
    let shut = Instant::now();
    let failed = |relay: &Relay| relay.metric("attempts_total{outcome=\"down\"}").unwrap_or(0.0) as u64;
    eventually("probes", || failed(&relay) >= 24);
    assert!(failed(&relay) <= 20 + 8 + probes_since(shut), "{} attempts", failed(&relay));
    assert_eq!(relay.metric("attempts_unknown_total"), Some(0.0), "nothing was sent");
    let ledger = Ledger::start_at(&address);
    eventually("all delivered", || ledger.count("accepted") == 200);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(relay.count("select count(*) from dead"), 0);
    relay.balanced();
}

/// F52. A host that drops what is sent to it: connections begin and never stand.
#[test]
fn a_blackholed_service_shuts_the_gate_and_stops_nothing_else() {
    let topic = Topic::new(1);
    let blackhole = Blackhole::new();
    topic.transactions(ids("b", 0..100));
    let more = format!("workers = 4\ntimeout = \"1s\"\nconnect_timeout = \"300ms\"\n[gate]\nshut_after = 8\n{}", &PROBES[7..]);
    let mut relay = Relay::new(&topic.name, &format!("http://{}/", blackhole.address), &more);
    relay.start();
    eventually("the gate shuts", || is_shut(&relay));
    eventually("its threads are free but for a probe", || relay.metric("requests_in_flight").is_some_and(|n| n <= 1.0));
    topic.transactions(ids("b", 100..200));
    eventually("reading goes on", || relay.count("select count(*) from delivery") == 200);
    assert_eq!(relay.metric("attempts_unknown_total"), Some(0.0), "nothing was sent");
    assert_eq!(relay.count("select count(*) from dead"), 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn a_deploy_that_answers_400_to_everything_kills_few_and_the_printed_command_brings_them_back() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), &format!("workers = 8\n{PROBES}"));
    // Dead before, of its own: it stays.
    ledger.behave(&json!({ "status": 400, "ids": ["own-0"] }));
    topic.transactions(["own-0".to_owned()]);
    relay.start();
    eventually("one is dead", || relay.count("select count(*) from dead") == 1);
    topic.transactions(["between".to_owned()]);
    eventually("another is accepted", || ledger.count("accepted") == 1);
    // The command's time is cut to seconds, with two of slack.
    std::thread::sleep(Duration::from_secs(3));
    ledger.behave(&json!({ "status": 400 }));
    let sent = ids("d", 0..300);
    topic.transactions(sent.clone());
    eventually("the gate shuts", || is_shut(&relay));
    assert_eq!(relay.metric("stalled{reason=\"gate_misconfigured\"}"), Some(1.0));
    let before = ledger.answered("400");
    eventually("probes", || ledger.answered("400") >= before + 5);
    let dead = relay.count("select count(*) from dead");
    assert!((2..=1 + 20 + 8).contains(&dead), "{dead} are dead: refused probes stay open");
    ledger.behave(&json!({ "status": 400, "ids": ["own-0"] }));
    eventually("the others are delivered", || ledger.count("accepted") as i64 == 301 - (dead - 1));
    let log = relay.log();
    let command = log.lines().find_map(|line| Some(line.split_once("bring them back with `txrelay ")?.1.split_once('`')?.0));
    let command: Vec<&str> = command.unwrap_or_else(|| panic!("no command in\n{log}")).split(' ').collect();
    assert_eq!((command[0], &command[2..6]), ("-c", &["retry", "--state", "dead", "--since"][..]), "{command:?}");
    let out = relay.command(&command[2..]).arg("--yes").output().expect("runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    eventually("all delivered", || ledger.count("accepted") == 301);
    assert_eq!(ledger.requests("own-0").len(), 1, "what was dead before is not touched");
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    ledger.has_exactly(&[sent, vec!["between".to_owned()]].concat());
    relay.balanced();
}

/// F61.
#[test]
fn a_retry_after_holds_everything_and_nonsense_is_counted_and_not_obeyed() {
    let in_a_while = |seconds: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    };
    // What it says, and how long nothing may come, in seconds; `None`: it goes on.
    let table: [(&dyn Fn() -> String, Option<u64>); 7] = [
        (&|| "2".to_owned(), Some(2)),
        (&|| in_a_while(4), Some(2)),
        (&|| "1000000000000".to_owned(), Some(2)),
        (&|| "0".to_owned(), None),
        (&|| "-5".to_owned(), None),
        (&|| "abc".to_owned(), None),
        (&|| in_a_while(-60), None),
    ];
    for (text, pause) in table {
        let (topic, ledger) = (Topic::new(1), Ledger::start());
        let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 4");
        relay.start();
        topic.transactions(ids("warm", 0..20));
        eventually("it works", || ledger.count("accepted") == 20);
        let text = text();
        ledger.behave(&json!({ "status": 503, "retry_after": text, "times": 1 }));
        topic.transactions(ids("r", 0..100));
        eventually("it has said so", || ledger.answered("503") == 1);
        match pause {
            Some(seconds) => {
                eventually("it is held", || relay.metric("stalled{reason=\"throttled\"}") == Some(1.0));
                // Those in flight end; then nothing comes.
                let held = ledger.count("requests");
                throughout(Duration::from_secs(seconds) - Duration::from_millis(900), "nothing starts", || {
                    ledger.count("requests") <= held + 4
                });
                assert_eq!(relay.metric("gate_open"), Some(1.0), "held, not shut");
            }
            None => eventually("all delivered", || ledger.count("accepted") == 120),
        }
        if pause.is_some() && !text.starts_with("1000") {
            eventually("it goes on", || ledger.count("accepted") == 120);
            assert_eq!(relay.metric("stalled{reason=\"throttled\"}"), Some(0.0));
        }
        let nonsense = relay.log().contains("a Retry-After that says nothing");
        assert_eq!(nonsense, text == "-5" || text == "abc", "{text}: {}", relay.log());
        assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
        relay.balanced();
    }
}

#[test]
fn no_more_than_the_rate_limit_is_sent_and_a_reload_changes_it() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 16\nrate_limit = 50");
    topic.transactions(ids("l", 0..400));
    relay.start();
    eventually("under way", || ledger.count("requests") >= 100);
    assert_eq!(relay.metric("gate_rate"), Some(50.0));
    assert_eq!(relay.metric("gate_open"), Some(1.0));
    let summary = ledger.summary();
    let (first, last) = (summary["first_ms"].as_u64().expect("a time"), summary["last_ms"].as_u64().expect("a time"));
    let allowed = (last - first) as f64 / 1000.0 * 50.0 + 3.0;
    assert!(summary["requests"].as_f64().expect("a number") <= allowed, "{summary}");
    relay.edit(|file| file.replace("rate_limit = 50", "rate_limit = 0"));
    relay.signal("HUP");
    eventually("no limit any more", || relay.metric("gate_rate") == Some(f64::INFINITY));
    let metrics = relay.http("/metrics").expect("answers");
    assert!(metrics.contains("txrelay_gate_rate +Inf\n"), "{metrics}");
    eventually("all delivered", || ledger.count("accepted") == 400);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(ledger.count("accepted_twice"), 0);
}

#[test]
fn who_waits_for_a_permit_gives_back_at_once_at_a_stop() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 16\nrate_limit = 1");
    topic.transactions(ids("w", 0..100));
    relay.start();
    eventually("under way", || ledger.count("accepted") >= 2);
    let cpu = relay.proc_status("voluntary_ctxt_switches");
    let began = Instant::now();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}, with a request a second", began.elapsed());
    assert!(cpu < 10_000, "waiting costs nothing: {cpu} switches");
    assert_eq!(relay.count("select count(*) from delivery where lease is not null or attempt > 0"), 0, "nothing counts");
    assert_eq!(relay.count("select count(*) from delivery") as u64, 100 - ledger.count("accepted"));
    relay.balanced();
}

/// F67. Three quarters of the workers never touch what has failed by itself.
#[test]
fn no_good_transaction_waits_for_a_poison_one_and_the_poison_dies_by_its_rule() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let hangs = ids("hang", 0..10);
    ledger.behave(&json!([
        { "action": "hang", "ids": hangs },
        { "status": 500, "ids": ids("fail", 0..10) },
        { "status": 400, "ids": ids("bad", 0..10) },
    ]));
    let mut relay = Relay::new(
        &topic.name,
        &ledger.url(),
        "workers = 8\ntimeout = \"500ms\"\nconnect_timeout = \"500ms\"\n[retry]\nbase = \"100ms\"\ncap = \"1s\"\ngive_up_after = \"2s\"\n[gate]\nprobe_cap = \"2s\"",
    );
    relay.start();
    let load = Load::start(&topic.name, "good", 100);
    eventually("it works", || ledger.count("accepted") > 20);
    for n in 0..10 {
        topic.transactions([format!("hang-{n}"), format!("fail-{n}"), format!("bad-{n}")]);
        eventually("good ones go on", || ledger.count("accepted") > 20 + n as u64 * 10);
    }
    eventually("all poison is dead", || relay.count("select count(*) from dead") == 30);
    let sent = load.finish();
    eventually("all good ones are delivered", || ledger.count("accepted") == sent.len() as u64);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    ledger.has_exactly(&sent);
    assert!(!relay.log().contains("the gate is shut"), "{}", relay.log());
    // First attempts of poison take a worker for a second; nobody waits for the second ones.
    let late = "select count(*) from transaction_status s where s.transaction_id like 'good-%' and s.delivered_at - s.received_at > interval '5 s'";
    assert_eq!(relay.count(late), 0, "a good one waited");
    let by = |what: &str| relay.count(&format!("select count(*) from dead d join tx t using (id) where {what}"));
    assert_eq!(by("reason = 'refused' and transaction_id like 'bad-%'"), 10);
    assert_eq!(by("reason = 'gave_up' and (transaction_id like 'hang-%' or transaction_id like 'fail-%')"), 20);
    relay.balanced();
}

/// F66, where each attempt may fail.
#[test]
fn a_service_that_fails_half_of_the_time_gets_everything_and_the_gate_stays_open() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    ledger.behave(&json!({ "status": 500, "share": 0.5 }));
    let sent = ids("half", 0..400);
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8\n[retry]\nbase = \"50ms\"\n[gate]\nprobe_cap = \"1s\"");
    relay.start();
    topic.transactions(sent.clone());
    eventually("all delivered", || ledger.count("accepted") == 400);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    ledger.has_exactly(&sent);
    assert!(!relay.log().contains("the gate is shut"), "{}", relay.log());
    assert_eq!(relay.count("select count(*) from dead"), 0);
}

/// F68, small: `make bench-herd` has the numbers.
#[test]
fn a_service_that_comes_back_is_not_met_by_a_herd() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    ledger.behave(&json!({ "status": 503 }));
    topic.transactions(ids("h", 0..1500));
    let mut relay = Relay::new(&topic.name, &ledger.url(), &format!("workers = 32\n{PROBES}"));
    relay.start();
    eventually("the gate shuts", || is_shut(&relay));
    eventually("all stored", || relay.count("select count(*) from delivery") == 1500);
    let down = ledger.count("requests");
    ledger.behave(&json!([{ "status": 503, "body": "too much", "capacity": 200 }, { "delay_ms": 5 }]));
    eventually("all delivered", || ledger.count("accepted") == 1500);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    let refused = ledger.answered("503").saturating_sub(down);
    assert!(refused <= 75, "{refused} of 1500 refused: {}", ledger.summary());
    let mut at: Vec<u64> =
        ledger.all().iter().map(|request| request["at"].as_u64().expect("a time")).skip(down as usize).collect();
    at.sort_unstable();
    let most = at.iter().enumerate().map(|(n, from)| at[n..].iter().take_while(|at| **at < from + 1000).count()).max();
    assert!(most <= Some(300), "{most:?} in a second, of a service that bears 200");
    relay.balanced();
}

/// F65. The process stands still for longer than its lease, with a request under way; the other one delivers meanwhile.
#[test]
fn an_answer_that_comes_after_the_lease_changes_nothing() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 1500, "times": 1 }));
    let more = "workers = 2\ntimeout = \"2s\"\nconnect_timeout = \"1s\"";
    let mut relay = Relay::new(&topic.name, &ledger.url(), more);
    relay.set("postgres.lease=\"13s\"");
    relay.start();
    topic.transactions(["late".to_owned()]);
    eventually("it is under way", || ledger.count("requests") == 1);
    relay.signal("STOP");
    let mut other = relay.twin();
    other.start();
    eventually("the other has delivered it", || other.count("select count(*) from delivery") == 0);
    relay.signal("CONT");
    eventually("the late answer is noted", || relay.metric("settles_stale_total") == Some(1.0));
    assert_eq!(relay.count("select count(*) from attempt where outcome = 1 and not stale"), 1, "one of them counts");
    assert_eq!(relay.count("select count(*) from attempt where stale"), 1);
    assert_eq!((relay.stop().code(), other.stop().code()), (Some(0), Some(0)), "{}", relay.log());
    relay.balanced();
}

/// F69. What is leased is what can start in time at the new pace.
#[test]
fn a_service_that_becomes_slow_is_sent_nothing_twice_and_costs_no_thread() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 5 }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8\ntimeout = \"10s\"");
    relay.set("postgres.lease=\"22s\"");
    relay.start();
    topic.transactions(ids("quick", 0..300));
    eventually("quick", || ledger.count("accepted") == 300);
    let threads = relay.resources().threads;
    ledger.behave(&json!({ "delay_ms": 4000 }));
    topic.transactions(ids("slow", 0..40));
    eventually("some are slow", || ledger.count("requests") >= 316);
    assert!(relay.resources().threads <= threads + 1);
    ledger.behave_well();
    eventually("all delivered", || ledger.count("accepted") == 340);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(ledger.count("requests"), 340, "each once");
    assert_eq!(relay.count("select count(*) from attempt where outcome = 7 or stale"), 0);
}

/// The way of one of them to the service is broken: it stops, says so, and what it had is delivered by the other.
#[test]
fn each_process_of_a_pipeline_has_a_gate_of_its_own_and_says_how_it_stands() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), &format!("workers = 4\n{PROBES}"));
    relay.start();
    topic.transactions(ids("t", 0..20));
    eventually("it works", || ledger.count("accepted") == 20);
    let mut twin = relay.twin();
    let nowhere = Nowhere::new();
    twin.edit(|file| file.replace(&ledger.url(), &format!("http://{}/", nowhere.address)));
    twin.start();
    let mut n = 20;
    eventually("its gate shuts", || {
        topic.transactions(ids("t", n..n + 40));
        n += 40;
        is_shut(&twin)
    });
    assert_eq!((relay.metric("gate_open"), relay.metric("stalled{reason=\"gate_down\"}")), (Some(1.0), Some(0.0)));
    assert_eq!(twin.metric("stalled{reason=\"gate_down\"}"), Some(1.0));
    eventually("both heartbeats say so", || {
        relay.count("select count(*) from process where gate_open and gate_why is null") == 1
            && relay.count("select count(*) from process where not gate_open and gate_why is not null") == 1
    });
    let out = relay.command(&["status", "--json"]).output().expect("runs").stdout;
    let status: Value = serde_json::from_slice(&out).expect("JSON");
    let mut open: Vec<bool> =
        status["processes"].as_array().expect("two").iter().filter_map(|one| one["gate"]["open"].as_bool()).collect();
    open.sort_unstable();
    assert_eq!(open, [false, true], "{status}");
    eventually("the other delivers all", || ledger.count("accepted") == n as u64);
    assert!(is_shut(&twin), "what the other delivers opens nothing");
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!((twin.stop().code(), relay.stop().code()), (Some(0), Some(0)), "{}", twin.log());
    assert_eq!(
        relay.count("select coalesce(sum(spent_ms), 0)::bigint from delivery") + relay.count("select count(*) from dead"),
        0
    );
    ledger.has_exactly(&ids("t", 0..n));
    relay.balanced();
}

/// So that the numbers above stay those of a user's configuration, too.
#[test]
fn status_in_json_says_how_the_gate_stands() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("it beats", || {
        let out = relay.command(&["status", "--json"]).output().expect("runs").stdout;
        let status: Value = serde_json::from_slice(&out).unwrap_or_default();
        status["processes"][0]["gate"]["open"] == true && status["processes"][0]["gate"]["rate"].is_null()
    });
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
