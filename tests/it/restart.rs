//! Ends and beginnings under load: clean stops, kill -9, and two processes of one pipeline.

use serde_json::json;

use crate::fencing::{is_done, moves_by};
use crate::rig::{Ledger, Load, Relay, Topic, eventually};

/// What a kill -9 may repeat (README): requests in hand, outcomes on their way to the settler, and its batch.
const fn unsettled_at_most(workers: u64) -> u64 {
    workers + 1024 + 500
}

#[test]
fn twenty_clean_stops_and_restarts_under_load_lose_nothing_and_send_nothing_twice() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 10 }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 16");
    let load = Load::start(&topic.name, "c", 200);
    for n in 0..20 {
        relay.start();
        moves_by(&ledger, 100);
        assert_eq!(relay.stop().code(), Some(0), "stop {n}: {}", relay.log());
        assert_eq!(relay.count("select count(*) from delivery where lease is not null"), 0, "stop {n}: something stays leased");
    }
    relay.start();
    let sent = load.finish();
    is_done(&relay, &ledger, &sent);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(ledger.count("requests"), sent.len() as u64, "each was sent once: {}", ledger.summary());
}

/// F4-F7 of the fault matrix (reliability, section 5), at whatever step the process is; `crash` dies at each of them.
#[test]
fn kill_9_at_full_load_five_times_loses_nothing_and_repeats_only_what_was_not_settled() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 2 }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 16");
    // More than it delivers, so that there is always something in hand.
    topic.transactions(crate::rig::ids("full", 0..4000));
    let load = Load::start(&topic.name, "k", 600);
    let mut may_repeat = 0;
    for _ in 0..5 {
        relay.start();
        moves_by(&ledger, 500);
        let before = ledger.count("accepted_twice");
        relay.kill_9();
        // What the dead process held; a last settle of its may still be on its way, and makes it fewer.
        may_repeat += relay.count("select count(*) from delivery where lease is not null") as u64;
        assert!(before <= may_repeat, "{before} of {may_repeat}");
    }
    relay.start();
    let mut sent = load.finish();
    sent.extend(crate::rig::ids("full", 0..4000));
    is_done(&relay, &ledger, &sent);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    let twice = ledger.count("accepted_twice");
    assert!(twice <= may_repeat && twice <= 5 * unsettled_at_most(16), "{twice} repeated, {may_repeat} were in hand");
}

/// Both run and share the six partitions.
#[track_caller]
fn share(one: &Relay, other: &Relay) {
    eventually("both read", || one.partitions() > 0 && other.partitions() > 0 && one.partitions() + other.partitions() == 6);
}

/// F17: the same name and group, each with a state directory of its own.
#[test]
fn two_processes_of_one_pipeline_deliver_every_record_once() {
    let (topic, ledger) = (Topic::new(6), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 10 }));
    let mut one = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    let mut other = one.twin();
    one.start();
    let load = Load::start(&topic.name, "t", 200);
    moves_by(&ledger, 200);
    other.start();
    share(&one, &other);
    moves_by(&ledger, 600);
    let delivered = |relay: &Relay| relay.metric("attempts_total{outcome=\"delivered\"}").unwrap_or_default();
    assert!(delivered(&one) > 0.0 && delivered(&other) > 0.0, "{} and {}", delivered(&one), delivered(&other));
    // One leaves cleanly: what it held moves at once, its partitions after the session timeout.
    assert_eq!(one.stop().code(), Some(0), "{}", one.log());
    assert!(one.log().contains("stopped: "), "{}", one.log());
    eventually("the other reads all partitions", || other.partitions() == 6);
    moves_by(&ledger, 200);
    one.start();
    share(&one, &other);
    let sent = load.finish();
    is_done(&one, &ledger, &sent);
    assert_eq!((one.stop().code(), other.stop().code()), (Some(0), Some(0)), "{}\n{}", one.log(), other.log());
    assert_eq!(ledger.count("requests"), sent.len() as u64, "each was sent once: {}", ledger.summary());
}

#[test]
fn either_of_two_processes_can_be_killed() {
    let (topic, ledger) = (Topic::new(6), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 10 }));
    // Without the sweep of a restart, what the dead one held waits for the end of its leases.
    let mut one = Relay::new(&topic.name, &ledger.url(), "workers = 8\ntimeout = \"1s\"\nconnect_timeout = \"1s\"");
    one.set("postgres.lease=\"12s\"");
    let mut other = one.twin();
    one.start();
    other.start();
    let load = Load::start(&topic.name, "e", 200);
    share(&one, &other);
    let mut may_repeat = 0;
    for _ in 0..2 {
        moves_by(&ledger, 400);
        one.kill_9();
        let held = "select count(*) from delivery where lease is not null";
        // The other's are among them: the bound is what both could have had in hand.
        may_repeat += (one.count(held) as u64).max(1);
        eventually("the other reads all partitions", || other.partitions() == 6);
        let of_the_dead = "select count(*) from delivery d where lease is not null \
             and leased_by <> (select max(id) from process where pid = $pid)";
        let of_the_dead = of_the_dead.replace("$pid", &other.pid().to_string());
        eventually("what the dead one held is taken over", || one.count(&of_the_dead) == 0);
        moves_by(&ledger, 200);
        one.start();
        share(&one, &other);
        std::mem::swap(&mut one, &mut other);
    }
    let sent = load.finish();
    is_done(&one, &ledger, &sent);
    assert_eq!((one.stop().code(), other.stop().code()), (Some(0), Some(0)), "{}\n{}", one.log(), other.log());
    let twice = ledger.count("accepted_twice");
    assert!(twice <= may_repeat && twice <= 2 * unsettled_at_most(8), "{twice} repeated, {may_repeat} were in hand");
}
