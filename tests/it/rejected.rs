//! What people do to records that could not become transactions, and to what was delivered, under a daemon that runs.

use serde_json::json;

use crate::commands::run;
use crate::rig::{Ledger, Relay, Topic, eventually, ids};

/// Five transactions delivered, and four records whose id stands elsewhere, one of them under an id that is taken.
fn with_rejected() -> (Topic, Ledger, Relay) {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    topic.transactions(ids("a", 0..5));
    topic.produce([
        br#"{"id":"b-0","amount":"1.00"}"#.as_slice(),
        br#"{"id":"b-1","amount":"1.00"}"#,
        br#"{"id":"a-0","amount":"9.99"}"#,
        b"no JSON",
    ]);
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("all are read", || relay.count("select count(*) from rejected") == 4);
    eventually("and delivered", || relay.count("select count(*) from delivery") == 0 && ledger.count("accepted") == 5);
    (topic, ledger, relay)
}

#[test]
fn rejected_records_become_transactions_under_the_present_configuration_and_keep_their_places() {
    let (topic, ledger, mut relay) = with_rejected();
    assert_eq!(relay.stop().code(), Some(0));
    let rule = "[transaction]\nid = \"value:/id\"\n";
    relay.edit(|config| format!("{config}{rule}"));
    let (code, out, said) = run(&relay, &["rejected", "retry", "--all", "--why", "id_missing", "--yes"], &[]);
    assert_eq!(code, Some(1), "one stays: {out}{said}");
    assert!(said.contains("3 rejected records, read from"), "{said}");
    assert_eq!(out, "1: is now transaction b-0, due now\n2: is now transaction b-1, due now\n");
    assert!(said.contains("3: stays: other bytes are stored as a-0"), "{said}");
    let places = "select count(*) from tx t join topic p on p.id = t.topic_id join rejected j on j.became_id = t.id \
         where p.name = j.topic and t.partition = j.partition and t.incarnation = j.incarnation and t.kafka_offset = j.kafka_offset \
         and t.payload = j.payload and j.resolved_at is not null";
    assert_eq!(relay.count(places), 2);
    relay.balanced();
    relay.start();
    eventually("they are delivered", || ledger.count("accepted") == 7);
    eventually("and settled", || relay.count("select count(*) from delivery") == 0);
    let source = |id: &str| ledger.requests(id)[0]["headers"]["txrelay-source"].clone();
    assert!(source("b-0").is_null() || source("b-0") == json!(format!("{}/0/5", topic.name)), "{}", source("b-0"));
    // Read again under the old rule, after somebody set the position back, nothing has a second place.
    assert_eq!(relay.stop().code(), Some(0));
    relay.edit(|config| config.replace(rule, ""));
    relay.sql().batch_execute("update consumer_position set next_offset = 0").expect("set back");
    relay.start();
    eventually("all is read again", || relay.count("select min(next_offset) from consumer_position") == 9);
    assert_eq!(relay.count("select count(*) from tx"), 7);
    // Upkeep's audit, and one over everything, find each offset in one place.
    let audited = "select (audited_id >= (select max(id) from tx))::int::bigint from pipeline";
    eventually("the audit has come so far", || relay.count(audited) == 1);
    let (code, out, said) = run(&relay, &["reconcile", "--full"], &[]);
    assert_eq!(code, Some(0), "{out}{said}");
    assert_eq!(relay.count("select count(*) from audit_finding"), 0);
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();
    assert_eq!(run(&relay, &["rejected", "retry", "1"], &[]).0, Some(1), "it is resolved already");
}

#[test]
fn retention_takes_a_record_and_the_transaction_that_it_became_and_counts_one_offset() {
    let (_topic, ledger, mut relay) = with_rejected();
    assert_eq!(run(&relay, &["rejected", "resolve", "1", "--as-id", "b-0", "--reason", "renamed"], &[]).0, Some(0));
    eventually("it is delivered and settled", || {
        ledger.count("accepted") == 6 && relay.count("select count(*) from delivery") == 0
    });
    assert_eq!(relay.stop().code(), Some(0));
    let old = "update tx set received_at = received_at - interval '99 days'; \
         update attempt set finished_at = finished_at - interval '99 days'; \
         update rejected set resolved_at = resolved_at - interval '99 days'; update pipeline set retention_ended_at = null";
    relay.sql().batch_execute(old).expect("aged");
    relay.start();
    eventually("the transactions go", || relay.count("select count(*) from tx") == 0);
    // The record goes in the same pass or the next, and never before its transaction.
    relay.sql().batch_execute("update pipeline set retention_ended_at = null").expect("again");
    eventually("and so does the record", || relay.count("select count(*) from rejected") == 3);
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();
    assert_eq!(relay.count("select sum(offsets)::bigint from purged"), 6);
}

#[test]
fn a_person_gives_a_rejected_record_its_id_or_closes_it() {
    let (_topic, ledger, mut relay) = with_rejected();
    let resolve = |args: &[&str]| run(&relay, &[&["rejected", "resolve"], args].concat(), &[]);
    let (code, out, said) = resolve(&["1", "--as-id", "b-0", "--reason", "the field was renamed", "--dry-run"]);
    assert_eq!((code, out.as_str()), (Some(0), "1: would become transaction b-0, due now\n"), "{said}");
    assert_eq!(relay.count("select count(*) from tx"), 5, "a dry run changes nothing");
    let (code, _, said) = resolve(&["1", "--as-id", "a-1", "--reason", "x"]);
    assert!(code == Some(1) && said.contains("stays: other bytes are stored as a-1"), "{said}");
    let (code, out, said) = resolve(&["1", "--as-id", "b-0", "--reason", "the field was renamed"]);
    assert_eq!((code, out.as_str()), (Some(0), "1: is now transaction b-0, due now\n"), "{said}");
    eventually("it is delivered", || ledger.count("accepted") == 6);
    let body = ledger.requests("b-0").pop().expect("a request");
    assert!(!body.to_string().contains("transaction_id\":\"b-0\\\""), "its bytes are as they were");
    assert_eq!(resolve(&["2", "4", "--reason", "a test of the producer", "--yes"]).0, Some(0));
    assert_eq!(relay.count("select count(*) from rejected where resolved_at is null"), 1);
    let why = "select count(*) from rejected where resolved_reason = 'a test of the producer' and resolved_by is not null";
    assert_eq!(relay.count(why), 2);
    eventually("it is settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();
    assert_eq!(relay.count("select count(*) from audit_log"), 2);
}

#[test]
fn what_was_erased_is_a_duplicate_when_it_comes_again_and_is_never_sent() {
    let (topic, ledger, mut relay) = with_rejected();
    assert_eq!(run(&relay, &["erase", "a-0", "--reason", "request 17"], &[]).0, Some(0));
    topic.transactions(ids("a", 0..1));
    eventually("the same bytes are a duplicate", || relay.count("select count(*) from duplicate") == 1);
    topic.produce([br#"{"transaction_id":"a-0","amount":"other"}"#.as_slice()]);
    eventually("others a conflict", || relay.count("select count(*) from rejected where reason = 'conflict'") == 1);
    let (code, _, said) = run(&relay, &["retry", "a-0", "--even-delivered"], &[]);
    assert!(code == Some(1) && said.contains("a-0: erased: there is nothing left to send"), "{said}");
    assert_eq!(ledger.requests("a-0").len(), 1);
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();
}

#[test]
fn a_pause_holds_deliveries_and_ends_by_itself() {
    let (topic, ledger, mut relay) = with_rejected();
    let (code, out, _) = run(&relay, &["pause", "--reason", "deploy of the ledger"], &[]);
    assert!(code == Some(0) && out.contains("until `txrelay resume`"), "{out}");
    eventually("the daemon says so", || relay.metric("stalled{reason=\"paused\"}") == Some(1.0));
    topic.transactions(ids("p", 0..3));
    eventually("reading goes on", || relay.count("select count(*) from delivery") == 3);
    let (code, out, _) = run(&relay, &["explain", "p-0"], &[]);
    assert!(code == Some(0) && out.contains("delivering is paused") && out.contains("(deploy of the ledger)"), "{out}");
    assert_eq!(ledger.count("accepted"), 5, "nothing is sent");
    assert!(run(&relay, &["resume"], &[]).1.contains("goes on"));
    eventually("they are delivered", || ledger.count("accepted") == 8);
    assert_eq!(run(&relay, &["pause", "--for", "2s"], &[]).0, Some(0));
    eventually("the daemon says so again", || relay.metric("stalled{reason=\"paused\"}") == Some(1.0));
    topic.transactions(ids("q", 0..3));
    eventually("it ends by itself", || ledger.count("accepted") == 11);
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();
}
