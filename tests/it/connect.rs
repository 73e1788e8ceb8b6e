//! `check-config --connect`: what is there, and what is not, in one look that changes nothing.

use std::process::Output;

use crate::rig::{Admin, Ledger, Relay, Topic, bootstrap, ids, postgres_url, unique};

#[track_caller]
fn check(relay: &Relay, status: i32) -> (String, String) {
    let Output { status: got, stdout, stderr } = relay.command(&["check-config", "--connect"]).output().expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned());
    assert_eq!(got.code(), Some(status), "{out}{err}");
    (out, err)
}

#[test]
fn a_look_at_everything_joins_no_group_writes_nothing_and_sends_nothing() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    for partition in 0..3 {
        topic.write(partition, ids(&format!("a{partition}"), 0..8));
    }
    let relay = Relay::new(&topic.name, &ledger.url(), "");
    let (out, err) = check(&relay, 0);
    assert!(out.contains("10 of the newest 10 records give an id"), "{out}{err}");
    assert!(out.contains("does not exist yet; `run` makes it") && out.contains("nothing was sent"), "{out}");
    assert_eq!(err, "");
    assert!(!Admin::of(&bootstrap()).knows_group(&format!("txrelay-{}", relay.name)), "a group was joined");
    assert_eq!(ledger.count("requests"), 0);
    let schema = "select count(*) from information_schema.schemata where schema_name = $1";
    let mut sql = postgres::Client::connect(&postgres_url(), postgres::NoTls).expect("PostgreSQL answers");
    assert_eq!(sql.query_one(schema, &[&relay.schema]).expect("an answer").get::<_, i64>(0), 0, "a schema was made");
    // And once it is made.
    assert!(relay.command(&["migrate"]).output().expect("it runs").status.success());
    let (out, _) = check(&relay, 0);
    assert!(out.contains(&format!("schema {} can be used", relay.schema)), "{out}");
}

#[test]
fn what_is_away_is_told_for_all_three_at_once() {
    let mut relay = Relay::with("t", "http://127.0.0.1:1/x", "postgresql://u@127.0.0.1:1/db", "");
    relay.set("kafka.brokers=127.0.0.1:1");
    let (_, err) = check(&relay, 69);
    for part in [
        "Kafka: 127.0.0.1:1: connection refused: is the broker up, and kafka.brokers right?",
        "PostgreSQL: 127.0.0.1:1 database db: ",
        "service: http://127.0.0.1:1: no connection to 127.0.0.1:1 (Connection refused)",
    ] {
        assert!(err.contains(part), "{err}");
    }
    relay.set("kafka.brokers=no-such-host.invalid:9092");
    relay.set("postgres.url=postgresql://u@no-such-host.invalid/db");
    relay.set("downstream.url=https://no-such-host.invalid/x");
    let (_, err) = check(&relay, 69);
    assert!(err.matches("no-such-host.invalid").count() >= 3 && err.lines().count() == 3, "{err}");
}

#[test]
fn records_without_an_id_and_topics_that_are_not_there_are_found() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    topic.produce([&b"{\"id\":1}"[..], b"no JSON"]);
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    let (out, err) = check(&relay, 1);
    assert!(out.contains("0 of the newest 2 records give an id; the others: "), "{out}");
    assert!(err.contains(&format!("no record of {} gives an id: is transaction.id right?", topic.name)), "{err}");
    relay.set("transaction.id=value:/id");
    let (out, _) = check(&relay, 0);
    assert!(out.contains("1 of the newest 2 records give an id"), "{out}");
    let missing = unique("none");
    relay.set(&format!("kafka.topics={missing}"));
    let (_, err) = check(&relay, 1);
    assert!(err.contains(&format!("topic {missing} does not exist: create it, or correct kafka.topics")), "{err}");
}

#[test]
fn a_missing_privilege_is_named() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    assert!(relay.command(&["migrate"]).output().expect("it runs").status.success());
    let role = unique("role").replace('-', "_");
    let mut sql = relay.sql();
    sql.batch_execute(&format!("create role {role} login")).expect("a role");
    relay.set(&format!("postgres.url={}", postgres_url().replacen("postgres@", &format!("{role}@"), 1)));
    let (_, err) = check(&relay, 77);
    assert!(err.contains("PostgreSQL: "), "{err}");
    let schema = relay.schema.clone();
    sql.batch_execute(&format!(
        "grant usage on schema {schema} to {role}; grant usage on all sequences in schema {schema} to {role}; \
         grant select, insert, update, delete on all tables in schema {schema} to {role}; revoke insert on {schema}.tx from {role}"
    ))
    .expect("grants");
    let (_, err) = check(&relay, 77);
    assert!(err.contains("this user lacks insert on tx: run `txrelay migrate` as the schema's owner"), "{err}");
    sql.batch_execute(&format!("grant insert on {schema}.tx to {role}")).expect("a grant");
    check(&relay, 0);
    sql.batch_execute(&format!("drop owned by {role}; drop role {role}")).expect("gone");
}
