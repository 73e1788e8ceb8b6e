//! The whole way: real Kafka, real PostgreSQL, a real HTTP service, the real binary.

use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;

use crate::rig::{Ledger, Proxy, Relay, Topic, bed, bootstrap, eventually, ids, transaction};

#[test]
fn what_is_produced_is_delivered_byte_for_byte_with_its_headers() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    let sent = ids("t", 0..300);
    topic.transactions(sent.clone());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 300);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    ledger.has_exactly(&sent);
    assert_eq!(ledger.count("requests"), 300);
    let request = &ledger.requests("t-7")[0];
    assert_eq!(request["bytes"].as_u64(), Some(transaction("t-7").len() as u64), "{request}");
    assert_eq!(request["attempt"].to_string().trim_matches('"'), "1", "{request}");
    relay.balanced();
    let row = relay.sql().query_one(
        "select state, attempts, payload_json->>'amount', last_http_status from transaction_status where transaction_id = 't-7'",
        &[],
    );
    let row = row.expect("its status");
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1), row.get::<_, &str>(2)), ("delivered", 1, "12.34"));
    assert_eq!(row.get::<_, i16>(3), 200);
}

#[test]
fn kill_9_under_load_loses_nothing() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 5 }));
    let sent = ids("k", 0..6000);
    topic.transactions(sent.clone());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 16");
    for delivered in [1000, 3000] {
        relay.start();
        eventually("under way", || ledger.count("accepted") >= delivered);
        relay.kill_9();
    }
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 6000);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    ledger.has_exactly(&sent);
    // Each kill can repeat what was sent and not settled: what was in flight, and the settler's batches.
    assert!(ledger.count("accepted_twice") <= 2 * (16 + 1024), "{}", ledger.summary());
    relay.balanced();
}

#[test]
fn a_clean_stop_under_load_sends_nothing_twice_and_exits_0() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 10 }));
    let sent = ids("c", 0..4000);
    topic.transactions(sent.clone());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 16");
    for delivered in [500, 1500, 2500] {
        relay.start();
        eventually("under way", || ledger.count("accepted") >= delivered);
        assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
        assert_eq!(relay.count("select count(*) from delivery where lease is not null"), 0, "nothing stays leased");
    }
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 4000);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    ledger.has_exactly(&sent);
    assert_eq!(ledger.count("requests"), 4000, "each was sent once");
    relay.balanced();
}

#[test]
fn threads_stop_in_order() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 1000 }));
    topic.transactions(ids("o", 0..40));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 4");
    relay.start();
    eventually("under way", || ledger.count("requests") >= 4);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    let log = relay.log();
    let line = log.lines().find(|line| line.contains("stopped: ")).expect("a last line");
    let after: Vec<u64> = line.split(" after ").skip(1).filter_map(|part| part.split(' ').next()?.parse().ok()).collect();
    assert!(after.len() == 5 && after.is_sorted(), "{line}");
    // The workers had a second of their requests left, and the settler waited for them.
    assert!(after[1] > after[0] && line.contains("settler after"), "{line}");
    // The request in hand was finished and is settled; what was not sent was given back and does not count.
    assert_eq!(relay.count("select count(*) from attempt where outcome = 1"), ledger.count("accepted") as i64);
    assert_eq!(relay.count("select count(*) from delivery where attempt > 0"), 0, "what was given back does not count");
}

#[test]
fn redelivery_by_kafka_makes_no_second_job() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let sent = ids("r", 0..500);
    topic.transactions(sent.clone());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 500);
    relay.stop();
    // As after a failover to an older copy of the positions alone: everything is read again.
    relay.sql().batch_execute("update consumer_position set next_offset = 0").expect("set back");
    relay.start();
    eventually("read again", || relay.count("select sum(next_offset)::bigint from consumer_position") == 500);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(ledger.count("requests"), 500);
    relay.balanced();
}

#[test]
fn an_outage_creates_no_dead_letter() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    let sent = ids("s", 0..800);
    ledger.behave(&json!({ "status": 503 }));
    let mut relay = Relay::new(
        &topic.name,
        &ledger.url(),
        "workers = 8\n[gate]\nprobe_every = \"200ms\"\nprobe_cap = \"1s\"\n[retry]\ngive_up_after = \"1s\"\ncap = \"1s\"",
    );
    relay.start();
    topic.transactions(sent[..400].to_vec());
    // Shut after 20 failures, it probes. Each has long used up `give_up_after`, if it counted.
    eventually("503 to some", || ledger.answered("503") > 30);
    ledger.behave(&json!({ "status": 500 }));
    topic.transactions(sent[400..].to_vec());
    eventually("500 to some", || ledger.answered("500") > 5);
    assert_eq!(relay.count("select count(*) from dead"), 0);
    ledger.behave_well();
    eventually("all delivered", || ledger.count("accepted") == 800);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    ledger.has_exactly(&sent);
    assert_eq!(relay.count("select count(*) from dead"), 0, "nothing is dead");
    assert_eq!(ledger.count("accepted_twice"), 0);
    relay.balanced();
}

#[test]
fn a_400_is_dead_at_once_with_its_reason_and_delays_nobody() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "status": 400, "ids": ["d-3"], "body": "no such account" }));
    topic.transactions(ids("d", 0..50));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("the others are delivered", || ledger.count("accepted") == 49);
    eventually("it is dead", || relay.count("select count(*) from dead") == 1);
    assert_eq!(relay.stop().code(), Some(0));
    assert_eq!(ledger.requests("d-3").len(), 1, "sent once");
    let row = relay.sql().query_one(
        "select s.state, s.last_http_status, s.last_outcome, s.last_error, d.reason from transaction_status s, dead d where s.transaction_id = 'd-3'",
        &[],
    );
    let row = row.expect("its status");
    let found: (&str, i16, &str, &str, &str) = (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
    assert_eq!(found, ("dead", 400, "refused", "no such account", "refused"));
    relay.balanced();
}

#[test]
fn a_message_that_always_fails_dies_of_its_own_budget_while_others_pass() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "status": 500, "ids": ["p-0"] }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "[retry]\nbase = \"100ms\"\ncap = \"500ms\"\ngive_up_after = \"2s\"");
    relay.start();
    topic.transactions(ids("p", 0..20));
    let mut n = 20;
    eventually("it gave up", || {
        topic.transactions(ids("p", n..n + 5));
        n += 5;
        relay.count("select count(*) from dead where reason = 'gave_up'") == 1
    });
    eventually("the others are delivered", || ledger.count("accepted") == n as u64 - 1);
    assert_eq!(relay.stop().code(), Some(0));
    assert!(ledger.requests("p-0").len() > 4, "it was tried: {}", ledger.requests("p-0").len());
}

#[test]
fn a_slow_service_causes_no_duplicate() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 10_000 }));
    let sent = ids("slow", 0..16);
    topic.transactions(sent.clone());
    // Four rounds of 10 s are longer than a lease of 30 s: what waits in memory would outlive it.
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 4\ntimeout = \"15s\"");
    relay.set("postgres.lease=\"30s\"");
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 16);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(ledger.count("requests"), 16, "each was sent once");
    assert_eq!(relay.count("select count(*) from attempt where outcome <> 1 or stale"), 0);
    assert_eq!(ledger.count("max_in_flight"), 4);
}

#[test]
fn fresh_rows_do_not_starve_a_backlog() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    ledger.behave(&json!({ "status": 500 }));
    let backlog = ids("old", 0..300);
    topic.transactions(backlog.clone());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 2\n[gate]\nshut_after = 1000\nprobe_cap = \"1s\"");
    relay.start();
    eventually("a backlog that has failed", || relay.count("select count(*) from delivery where attempt > 1") == 300);
    // From now on it takes 100 a second, and more than that arrives.
    ledger.behave(&json!({ "delay_ms": 20 }));
    let mut fresh = 0;
    eventually("the backlog is delivered", || {
        topic.transactions(ids("new", fresh..fresh + 20));
        fresh += 20;
        let accepted = ledger.accepted();
        accepted.iter().filter(|id| id.starts_with("old-")).count() == 300
    });
    let open = relay.count("select count(*) from delivery");
    assert!(open > 0, "the service was never short of work, so this showed nothing");
    let fresh_delivered = ledger.accepted().iter().filter(|id| id.starts_with("new-")).count();
    assert!(fresh_delivered < fresh, "{fresh_delivered} of {fresh} fresh ones");
}

/// Committed offsets of the group in Kafka, summed; partitions without one count as 0.
fn committed(relay: &Relay, topic: &str, partitions: i32) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .set("group.id", format!("txrelay-{}", relay.name))
        .create()
        .expect("a client");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition(topic, partition);
    }
    let offsets = consumer.committed_offsets(list, Duration::from_secs(20)).expect("Kafka answers");
    offsets.elements().iter().map(|e| if let Offset::Offset(n) = e.offset() { n } else { 0 }).sum()
}

/// F3, and F20 for a batch of records.
#[test]
fn a_record_is_in_postgresql_before_its_kafka_offset_can_be_committed() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let (mut proxy, through) = Proxy::postgres();
    let mut relay = Relay::with(&topic.name, &ledger.url(), &through, "");
    relay.start();
    eventually("it reads", || relay.metric("kafka_up") == Some(1.0));
    let mut sent = Vec::new();
    // At each step: before the INSERT reaches PostgreSQL, before COMMIT (the INSERT is done), after COMMIT but before its
    // answer. librdkafka commits stored offsets every second, so a wrong order has every chance to show.
    for (round, fault) in
        ["cut-before step-", "cut-before COMMIT", "drop-answer-after COMMIT"].iter().cycle().take(24).enumerate()
    {
        proxy.tell(fault);
        let new = ids(&format!("step-{round}"), 0..20);
        topic.transactions(new.clone());
        sent.extend(new);
        let stored = |relay: &Relay| relay.count("select coalesce(sum(next_offset), 0)::bigint from consumer_position");
        eventually("stored", || {
            let in_kafka = committed(&relay, &topic.name, 1);
            // Read after Kafka's: it only grows.
            assert!(in_kafka <= stored(&relay), "Kafka leads PostgreSQL");
            stored(&relay) == sent.len() as i64
        });
    }
    proxy.tell("pass");
    eventually("all delivered", || ledger.count("accepted") == sent.len() as u64);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    ledger.has_exactly(&sent);
    assert!(relay.log().contains("was committed although its answer was lost"), "no COMMIT was in doubt:\n{}", relay.log());
    relay.balanced();
    assert_eq!(committed(&relay, &topic.name, 1), sent.len() as i64, "a clean stop commits what is stored");
}

#[test]
fn postgresql_away_for_a_while_is_waited_for_and_nothing_is_sent_twice() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let (mut proxy, through) = Proxy::postgres();
    let mut relay = Relay::with(&topic.name, &ledger.url(), &through, "");
    relay.start();
    topic.transactions(ids("a", 0..200));
    eventually("the first are delivered", || ledger.count("accepted") == 200);
    proxy.tell("refuse");
    topic.transactions(ids("b", 0..200));
    eventually("it says why it waits", || relay.metric("stalled{reason=\"postgres\"}") == Some(1.0));
    eventually("and that PostgreSQL is away", || relay.metric("postgres_up") == Some(0.0));
    proxy.tell("pass");
    eventually("all delivered", || ledger.count("accepted") == 400);
    eventually("it works again", || relay.metric("stalled{reason=\"postgres\"}") == Some(0.0));
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(ledger.count("accepted_twice"), 0, "{}", ledger.summary());
    relay.balanced();
}

/// F5: the requests have left, and no answer came.
#[test]
fn a_restart_after_kill_9_moves_what_the_dead_process_held() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "action": "hang" }));
    topic.transactions(ids("h", 0..20));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    relay.start();
    eventually("requests hang", || relay.metric("requests_in_flight") == Some(8.0));
    relay.kill_9();
    ledger.behave_well();
    let began = std::time::Instant::now();
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 20);
    // Without the sweep it is the lease of 60 s.
    assert!(began.elapsed() < Duration::from_secs(50), "took {:?}", began.elapsed());
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert!(relay.count("select count(*) from attempt where outcome = 7") >= 8, "what was in flight is noted as lost");
    relay.balanced();
}

/// F21, the part of it where the process is not known any more.
#[test]
fn a_thread_that_ends_ends_the_process() {
    let topic = Topic::new(1);
    let mut relay = Relay::new(&topic.name, "http://127.0.0.1:1/", "");
    relay.start();
    eventually("it is registered", || relay.count("select count(*) from process") == 1);
    // As after a restore from a backup: upkeep has no row to beat for, and gives up.
    relay.sql().batch_execute("delete from process").expect("deleted");
    assert_eq!(relay.wait().code(), Some(1), "systemd restarts it");
    assert!(relay.log().contains("thread upkeep has ended"), "{}", relay.log());
}

#[test]
fn the_status_command_works_with_and_without_the_daemon() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    topic.transactions(ids("x", 0..10));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("all delivered", || ledger.count("accepted") == 10);
    let status = |relay: &Relay| relay.command(&["status", "--json"]).output().expect("runs");
    eventually("all is well", || status(&relay).status.success());
    let running: serde_json::Value = serde_json::from_slice(&status(&relay).stdout).expect("JSON");
    assert_eq!(running["transactions"]["delivered"], 10, "{running}");
    assert_eq!(running["positions"][0]["next_offset"], 10, "{running}");
    relay.stop();
    let stopped = status(&relay);
    assert_eq!(stopped.status.code(), Some(1), "nothing runs");
    let screen = relay.command(&["status"]).output().expect("runs");
    assert!(String::from_utf8_lossy(&screen.stdout).contains("txrelay does not run"));
}

#[test]
fn the_shipped_help_and_version_answer() {
    for flag in ["--help", "--version"] {
        let out = Command::new(env!("CARGO_BIN_EXE_txrelay")).arg(flag).output().expect("runs");
        assert!(out.status.success() && !out.stdout.is_empty());
    }
}

/// A steady flow: outcomes gather, so that one commit serves several; what it costs is measured by `make bench`.
#[test]
fn in_a_steady_flow_outcomes_share_their_commits() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("it reads", || relay.partitions() == 1);
    // One every 3.3 ms, and not in bursts.
    bed(&["produce", "--brokers", &bootstrap(), "--topic", &topic.name, "--count", "900", "--rate", "300", "--bytes", "200"]);
    eventually("all are settled", || relay.metric("batch_rows_sum{op=\"settle\"}") == Some(900.0));
    let commits = relay.metric("batch_rows_count{op=\"settle\"}").expect("a number");
    // 150 on a quiet machine, above 600 if each outcome were written when it comes.
    assert!(commits <= 450.0, "{commits} commits for 900 outcomes");
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
