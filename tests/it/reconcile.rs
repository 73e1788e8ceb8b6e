//! `txrelay reconcile` and `txrelay rejected` on a real Kafka with everything that leaves offsets out.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::rig::{Admin, LIMIT, Ledger, Relay, Topic, bootstrap, eventually, ids};

/// Exit status, and what it says.
pub fn command(relay: &Relay, args: &[&str]) -> (Option<i32>, String) {
    let output = relay.command(args).output().expect("txrelay runs");
    let text = String::from_utf8(output.stdout).expect("text") + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[track_caller]
fn reconciled(relay: &Relay, args: &[&str], status: i32) -> Value {
    let (code, said) = command(relay, &[&["reconcile", "--json"], args].concat());
    assert_eq!(code, Some(status), "{said}");
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

/// Of the only partition: first offsets and those behind the last, of one place.
fn ranges(report: &Value, place: &str) -> Vec<(i64, i64)> {
    serde_json::from_value(report["partitions"][0]["ranges"][place].clone()).expect("ranges")
}

/// Writes one record with this key and value.
fn write(topic: &Topic, key: &str, value: Option<&[u8]>) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", bootstrap()).create().expect("a producer");
    let mut record = BaseRecord::<str, [u8]>::to(&topic.name).partition(0).key(key);
    record.payload = value;
    producer.send(record).map_err(|(e, _)| e).expect("queued");
    producer.flush(LIMIT).expect("Kafka takes it");
}

/// A topic of so many partitions whose transactions have all been delivered, and the pipeline, stopped.
fn relayed(partitions: i32, n: usize) -> (Topic, Relay) {
    let (topic, ledger) = (Topic::new(partitions), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    topic.transactions(ids("a", 0..n));
    let is_done = |relay: &Relay| relay.count("select count(*) from delivery") == 0;
    eventually("all is delivered", || ledger.count("accepted") == n as u64 && is_done(&relay));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    (topic, relay)
}

fn position(relay: &Relay) -> i64 {
    relay.count("select coalesce(max(next_offset), 0) from consumer_position")
}

/// Waits until the cleaner has taken the first `n` offsets.
#[track_caller]
fn compacted(topic: &Topic, n: i64) {
    eventually("the topic is compacted", || crate::apart::look(topic, 0..n).readable.is_empty());
}

#[test]
fn every_offset_of_a_log_with_everything_that_leaves_some_out_is_named() {
    let settings =
        ["cleanup.policy=compact,delete", "segment.ms=100", "min.cleanable.dirty.ratio=0.01", "min.compaction.lag.ms=0"];
    let topic = Topic::on(&bootstrap(), 1, &settings);
    let admin = Admin::of(&bootstrap());
    // A segment is closed by what is written after its time.
    let rest = || std::thread::park_timeout(Duration::from_millis(150));
    topic.write(0, ids("c", 0..5));
    topic.write(0, ids("k", 0..5));
    rest();
    topic.write(0, ids("c", 0..5));
    rest();
    topic.write_in_transaction(0, ids("aborted", 0..3), false);
    topic.write_in_transaction(0, ids("committed", 0..3), true);
    compacted(&topic, 5);
    let ledger = Ledger::start();
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("all of it is read", || position(&relay) >= 22);
    eventually("and delivered", || ledger.count("accepted") == 13);
    topic.write(0, vec!["twice".to_owned(), "twice".to_owned()]);
    write(&topic, "twice", Some(br#"{"transaction_id":"twice","amount":"99"}"#));
    write(&topic, "k-0", None);
    write(&topic, "nonsense", Some(b"nonsense"));
    eventually("that too", || position(&relay) == 28 && ledger.count("accepted") == 14);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());

    // Kafka's retention overtakes the daemon.
    topic.write(0, ids("lost", 0..7));
    topic.write(0, ids("z", 0..3));
    admin.delete_records(&topic.name, 0, 35);
    let (code, said) = command(&relay, &["reconcile"]);
    assert!(
        code == Some(1) && said.contains(&format!("{}/0 offset 28-34: Kafka's retention has deleted records", topic.name)),
        "{said}"
    );
    relay.start();
    eventually("the rest is read", || position(&relay) == 38 && ledger.count("accepted") == 17);

    let report = reconciled(&relay, &[], 0);
    assert_eq!(report["well"], true);
    assert_eq!(report["partitions"][0]["log"], json!({ "low": 35, "high": 38 }), "{report}");
    assert_eq!(report["partitions"][0]["same_topic"], true);
    let mut all: Vec<(i64, i64)> = Vec::new();
    let places = ["transaction", "duplicate", "rejected", "skipped", "gap_retention", "gap_unexplained"];
    places.iter().for_each(|place| all.extend(ranges(&report, place)));
    all.sort_unstable();
    assert!(all.first().is_some_and(|first| first.0 == 0) && all.last().is_some_and(|last| last.1 == 38), "{all:?}");
    assert!(all.windows(2).all(|pair| pair[0].1 == pair[1].0), "each offset is in one place: {all:?}");
    // Compacted, aborted with their marker, and the marker of what was committed.
    let skipped = ranges(&report, "skipped");
    assert!(skipped.contains(&(0, 5)) && skipped.contains(&(15, 19)) && skipped.contains(&(22, 23)), "{skipped:?}");
    assert_eq!(ranges(&report, "duplicate"), [(24, 25)]);
    assert_eq!(ranges(&report, "rejected"), [(25, 28)]);
    assert_eq!(report["partitions"][0]["rejected"], json!({ "conflict": 1, "tombstone": 1, "unreadable": 1 }));
    assert_eq!(ranges(&report, "gap_retention"), [(28, 35)]);
    let conflict = &report["conflicts"][0];
    assert_eq!((&conflict["rejected"]["offset"], &conflict["transaction"]["transaction_id"]), (&json!(25), &json!("twice")));
    assert_eq!(conflict["transaction"]["offset"], 23);
    let (code, said) = command(&relay, &["reconcile", "--full", "--topic", &topic.name]);
    for words in [
        "nothing is wrong: each offset is in one place",
        "7 gap: retention: 28-34",
        "3 rejected (1 conflict, 1 tombstone, 1 unreadable): 25-27",
        &format!("from {0}/0 offset 25, with transaction twice (row ", topic.name),
        &format!(") from {0}/0 offset 23", topic.name),
    ] {
        assert!(code == Some(0) && said.contains(words), "{words}\n{said}");
    }

    relay.sql().batch_execute("delete from tx where kafka_offset = 23").expect("deleted by hand");
    let report = reconciled(&relay, &["--full"], 1);
    let problem = report["problems"].as_array().expect("some").iter().find(|p| p["kind"] == "offset_missing").expect("one");
    assert_eq!((&problem["topic"], &problem["from_offset"], &problem["to_offset"]), (&json!(topic.name), &json!(23), &json!(24)));
    let (_, said) = command(&relay, &["reconcile"]);
    assert!(said.contains(&format!("{}/0 offset 23: read, and in no place", topic.name)), "{said}");
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn a_record_that_was_skipped_and_can_be_read_is_named() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    topic.write(0, ids("a", 0..20));
    topic.write_in_transaction(0, ids("aborted", 0..5), false);
    topic.write(0, ids("b", 0..5));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    eventually("all is delivered", || ledger.count("accepted") == 25 && relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    let report = reconciled(&relay, &[], 0);
    assert_eq!(
        (&report["partitions"][0]["skipped_proven"], &report["partitions"][0]["skipped_unproven"]),
        (&json!(6), &json!(0))
    );
    // As if the client had passed over a record.
    let missed = "with d as (delete from tx where kafka_offset = 13 returning id), a as (delete from attempt using d where tx_id = d.id) \
         insert into skipped select topic, 0, 0, 13, '{[13,14)}', now() from life";
    relay.sql().batch_execute(missed).expect("missed");
    let report = reconciled(&relay, &[], 1);
    let problem = &report["problems"][0];
    assert_eq!(
        (&problem["kind"], &problem["from_offset"], &problem["to_offset"]),
        (&json!("skipped_readable"), &json!(13), &json!(14))
    );
    relay.sql().batch_execute("update consumer_position set next_offset = 50").expect("too far");
    let (code, said) = command(&relay, &["reconcile"]);
    assert!(code == Some(1) && said.contains("the position 50 lies above the log's end 31"), "{said}");
    assert!(said.contains("offset 31-49: read, and in no place"), "{said}");
}

#[test]
fn a_counter_that_was_altered_is_wrong_for_reconcile_as_for_status() {
    let (_topic, relay) = relayed(1, 5);
    assert_eq!(reconciled(&relay, &[], 0)["ledger_imbalance"], json!({ "read": 0, "ingested": 0, "dead": 0 }));
    relay.sql().batch_execute("delete from counter where name = 2").expect("by hand");
    let report = reconciled(&relay, &[], 1);
    assert_eq!((&report["well"], &report["ledger_imbalance"]["read"]), (&json!(false), &json!(5)));
    assert_eq!(report["problems"][0]["kind"], "ledger_imbalance");
    let (code, said) = command(&relay, &["reconcile"]);
    assert!(code == Some(1) && said.contains("WRONG        the ledger's equation \"read\" is off by 5"), "{said}");
}

#[test]
fn what_kafka_has_and_postgresql_does_not_is_said() {
    let (topic, relay) = relayed(2, 20);
    let other = Topic::new(1);
    other.write(0, ids("b", 0..3));
    let both = ["--set".to_owned(), format!("kafka.topics=[\"{}\", \"{}\"]", topic.name, other.name)];
    let both: Vec<&str> = both.iter().map(String::as_str).collect();
    let report = reconciled(&relay, &both, 0);
    assert_eq!(report["not_begun"], json!([{ "topic": other.name, "partition": 0, "low": 0, "high": 3 }]));
    let (code, said) = command(&relay, &[&["reconcile"], &both[..]].concat());
    assert!(code == Some(0) && said.contains(&format!("{}/0: not read yet; Kafka has 0 to 3", other.name)), "{said}");
    // Only one topic, and what is wrong with it: its log, and a log that lost its life.
    let alone = ["--topic", &topic.name, both[0], both[1]];
    assert_eq!(reconciled(&relay, &alone, 0)["not_begun"], json!([]));
    relay.sql().batch_execute("delete from life where partition = 1").expect("by hand");
    let report = reconciled(&relay, &alone, 1);
    let kinds: Vec<&Value> = report["problems"].as_array().expect("some").iter().map(|problem| &problem["kind"]).collect();
    assert!(kinds.iter().all(|kind| *kind == "offset_missing") && !kinds.is_empty(), "{report}");
    let absent = ["--set", "kafka.topics=[\"it-there-is-no-such-topic\"]"];
    let (_, said) = command(&relay, &[&["reconcile"][..], &absent].concat());
    assert!(said.contains("kafka.topics names this topic, and Kafka does not have it"), "{said}");
}

#[test]
fn without_kafka_postgresql_is_still_accounted_for() {
    let (topic, relay) = relayed(2, 20);
    let without = ["--set", "kafka.brokers=[\"127.0.0.1:1\"]"];
    let (code, said) = command(&relay, &[&["reconcile"][..], &without].concat());
    assert!(code == Some(69) && said.contains("kafka        not asked, only PostgreSQL:"), "{code:?} {said}");
    assert!(said.contains("\nPostgreSQL's side is right; Kafka was not asked"), "{said}");
    assert!(!said.contains("nothing is wrong") && said.contains(&format!("{}/1 offsets 0 to", topic.name)), "{said}");
    assert_eq!(reconciled(&relay, &without, 69)["well"], Value::Null);
    relay.sql().batch_execute("delete from tx where id = (select min(id) from tx)").expect("deleted");
    assert_eq!(reconciled(&relay, &without, 1)["problems"][0]["kind"], "offset_missing");
    let (code, said) = command(&relay, &["reconcile", "--topic", "unheard-of"]);
    assert!(code == Some(2) && said.contains("nothing was ever read from a topic unheard-of"), "{said}");
    let (code, _) = command(&relay, &["reconcile", "--set", "postgres.url=\"postgres://nobody@127.0.0.1:1/x\""]);
    assert_eq!(code, Some(69));
}

#[test]
fn both_records_of_a_conflict_are_listed_and_shown() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    topic.write(0, vec!["one".to_owned()]);
    write(&topic, "one", Some(br#"{"transaction_id":"one","amount":"0.01"}"#));
    write(&topic, "bell", Some(b"\x07 not JSON"));
    eventually("both are rejected", || relay.count("select count(*) from rejected") == 2);
    let (code, said) = command(&relay, &["rejected", "list", "--reason", "conflict"]);
    let listed = format!("conflict {0}/0 offset 1: one (row ", topic.name);
    assert!(
        code == Some(0) && said.contains(&listed) && said.contains(&format!(") is stored from {}/0 offset 0", topic.name)),
        "{said}"
    );
    let (_, lines) = command(&relay, &["rejected", "list", "--json"]);
    let mut rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    rows.sort_by_key(|row| row["offset"].as_i64());
    assert_eq!(rows.len(), 2, "{lines}");
    assert_eq!(
        (&rows[0]["reason"], &rows[0]["offset"], &rows[0]["conflicts_with"]["offset"]),
        (&json!("conflict"), &json!(1), &json!(0))
    );
    assert_eq!(rows[0]["conflicts_with"]["transaction_id"], "one");
    assert_eq!((&rows[1]["reason"], &rows[1]["conflicts_with"]), (&json!("unreadable"), &Value::Null));
    let id = rows[0]["id"].to_string();
    let (code, said) = command(&relay, &["rejected", "show", &id]);
    for words in [r#""amount":"0.01"}"#, r#""amount":"12.34""#, "SHA-256", "conflicts    with transaction one (row "] {
        assert!(code == Some(0) && said.contains(words), "{words}: {said}");
    }
    let (_, said) = command(&relay, &["rejected", "show", &id, "--json"]);
    let record: Value = serde_json::from_str(&said).expect("JSON");
    assert_ne!(record["value"]["sha256"], record["conflicts_with"]["value"]["sha256"]);
    assert_eq!(record["value"]["text"], r#"{"transaction_id":"one","amount":"0.01"}"#);
    let (_, said) = command(&relay, &["rejected", "show", &rows[1]["id"].to_string()]);
    assert!(!said.contains('\x07'), "a terminal must not obey it: {said:?}");
    relay.sql().batch_execute("update rejected set resolved_at = now()").expect("closed");
    assert_eq!(command(&relay, &["rejected", "list"]).1, "");
    assert_eq!(command(&relay, &["rejected", "list", "--all"]).1.lines().count(), 2);
    assert_eq!(command(&relay, &["rejected", "show", "4711"]).0, Some(1));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
