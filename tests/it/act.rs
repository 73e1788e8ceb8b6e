//! What people do with the command line: retry and resolve.

use std::process::Output;

use serde_json::json;

use crate::rig::{Ledger, Load, Relay, Topic, eventually, ids};

fn run(relay: &Relay, args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = relay.command(args).output().expect("txrelay runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// Transactions a-0..a-9 of which three are dead of a 400 and one of a 422.
fn with_four_dead() -> (Topic, Ledger, Relay) {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!([{ "status": 400, "ids": ["a-1", "a-2", "a-3"] }, { "status": 422, "ids": ["a-4"] }]));
    topic.transactions(ids("a", 0..10));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("four are dead", || relay.count("select count(*) from dead") == 4);
    eventually("the others are delivered", || ledger.count("accepted") == 6);
    ledger.behave_well();
    (topic, ledger, relay)
}

#[test]
fn the_dead_are_retried_by_id_and_by_description_and_leave_a_trace() {
    let (_topic, ledger, mut relay) = with_four_dead();
    assert_eq!(run(&relay, &["retry", "a-1", "--dry-run"]), (Some(0), "a-1: would be due now\n".into(), String::new()));
    assert_eq!(relay.count("select count(*) from dead"), 4, "a dry run changes nothing");
    assert_eq!(run(&relay, &["retry", "a-1"]).0, Some(0));
    eventually("it is delivered", || ledger.count("accepted") == 7);

    let (code, _, said) = run(&relay, &["retry", "--state", "dead", "--status", "400"]);
    assert!(code == Some(1) && said.contains("2 dead transactions") && said.contains("say --yes"), "{said}");
    let (code, out, _) = run(&relay, &["retry", "--state", "dead", "--status", "400", "--since", "1h", "--limit", "1", "--yes"]);
    assert_eq!((code, out.as_str()), (Some(0), "1 due now\n"));
    let (code, out, _) = run(&relay, &["retry", "--state", "dead", "--until", "1h"]);
    assert_eq!((code, out.as_str()), (Some(0), "none is dead by that description\n"));
    eventually("one more is delivered", || ledger.count("accepted") == 8);
    assert_eq!(run(&relay, &["retry", "--state", "dead", "--yes"]).1, "2 due now\n");
    ledger_has_all(&ledger, &relay);
    assert_eq!(relay.count("select count(*) from audit_log where command like '%retry%' and host is not null"), 3);
    assert_eq!(relay.count("select max(attempts)::bigint from transaction_status"), 2, "attempts go on counting");
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();
}

#[track_caller]
fn ledger_has_all(ledger: &Ledger, relay: &Relay) {
    eventually("all are delivered", || ledger.count("accepted") == 10);
    eventually("and settled", || relay.count("select count(*) from delivery") == 0);
    ledger.has_exactly(&ids("a", 0..10));
}

#[test]
fn what_was_delivered_is_sent_again_only_when_it_is_said() {
    let (_topic, ledger, mut relay) = with_four_dead();
    let (code, out, said) = run(&relay, &["retry", "a-0", "nobody"]);
    assert!(code == Some(1) && out.is_empty(), "{out}");
    assert!(said.contains("a-0: delivered") && said.contains("twice") && said.contains("nobody: not known"), "{said}");
    assert_eq!(run(&relay, &["retry", "a-0", "--even-delivered"]).0, Some(0));
    eventually("it came twice", || ledger.count("accepted_twice") == 1);
    eventually("and is settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();
}

#[test]
fn a_person_closes_what_is_dead_or_waits_and_says_why() {
    let (topic, ledger, mut relay) = with_four_dead();
    assert_eq!(run(&relay, &["resolve", "a-1"]).0, Some(2), "without a reason");
    assert_eq!(run(&relay, &["resolve", "a-1", "--reason", " "]).0, Some(2), "with none that says anything");
    assert_eq!(run(&relay, &["resolve", "a-1", "--reason", "booked by hand"]).0, Some(0));
    assert_eq!(relay.stop().code(), Some(0));
    // Waiting, and with nobody to send it: read, not delivered.
    ledger.behave(&json!({ "status": 503 }));
    topic.transactions(ids("b", 0..1));
    relay.set("downstream.workers=1");
    relay.start();
    eventually("it waits", || relay.count("select count(*) from delivery where lease is null and attempt > 0") == 1);
    assert_eq!(relay.stop().code(), Some(0));
    assert_eq!(run(&relay, &["resolve", "b-0", "a-2", "--reason", "booked by hand", "--yes"]).0, Some(0));
    let (code, _, said) = run(&relay, &["retry", "a-1"]);
    assert!(code == Some(1) && said.contains("a-1: resolved"), "{said}");
    let (code, _, said) = run(&relay, &["resolve", "a-0", "--reason", "x"]);
    assert!(code == Some(1) && said.contains("a-0: delivered"), "{said}");
    let resolved = "select count(*) from transaction_status s join tx t using (transaction_id) join resolved r on r.id = t.id \
         where s.state = 'resolved' and r.reason = 'booked by hand'";
    assert_eq!(relay.count(resolved), 3);
    relay.balanced();
}

#[test]
fn the_dead_are_retried_under_load_once_each() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    ledger.behave(&json!({ "status": 400, "share": 0.2, "sticky": true }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    let load = Load::start(&topic.name, "l", 300);
    eventually("a fifth dies", || relay.count("select count(*) from dead") > 100);
    ledger.behave_well();
    // While others arrive, are claimed and settled.
    let retry = || run(&relay, &["retry", "--state", "dead", "--status", "400", "--limit", "30", "--yes"]);
    for _ in 0..3 {
        let (code, out, said) = retry();
        assert_eq!((code, out.as_str()), (Some(0), "30 due now\n"), "{said}");
    }
    let sent = load.finish();
    eventually("none is dead", || run(&relay, &["retry", "--state", "dead", "--yes"]).1.starts_with("none"));
    eventually("all are delivered", || ledger.count("accepted") as usize == sent.len());
    eventually("and settled", || relay.count("select count(*) from delivery") == 0);
    ledger.has_exactly(&sent);
    assert_eq!(ledger.count("accepted_twice"), 0);
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();
}
