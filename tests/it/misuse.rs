//! Bad input and missing services: one clear line that says what to do, and the right exit status or patience.

use std::process::{Command, Output};
use std::time::Duration;

use crate::rig::{Ledger, Relay, Topic, bootstrap, eventually, postgres_url, unique};

fn output(relay: &Relay, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = relay.command(args).output().expect("runs");
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

#[test]
fn a_wrong_file_says_every_problem_at_once_and_exits_78() {
    let directory = std::env::temp_dir().join(unique("txrelay-misuse"));
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("payments.toml");
    let text = "[kafka]\nbrokers = [\"kafka-1\"]\ntopcs = [\"a\"]\n[postgres]\nurl = \"postgresql://u:hunter2@db/x\"\nlease = \"16s\"\n\
         [downstream]\nurl = \"http://ledger.internal/x\"\ntimeout = 15\n";
    std::fs::write(&file, text).unwrap();
    for command in ["check-config", "run"] {
        let out = Command::new(env!("CARGO_BIN_EXE_txrelay")).arg("-c").arg(&file).arg(command).output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(78), "{said}");
        for part in [
            "payments.toml:2:",
            "payments.toml:3:1",
            "topics",
            "payments.toml:5:",
            "password_file",
            "payments.toml:8:",
            "payments.toml:9:",
        ] {
            assert!(said.contains(part), "{part} is missing in:\n{said}");
        }
        assert!(!said.contains("hunter2"), "a secret was shown:\n{said}");
    }
    let missing = Command::new(env!("CARGO_BIN_EXE_txrelay")).args(["-c", "/nonexistent/x.toml", "run"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(78));
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_lease_shorter_than_the_timeout_is_refused() {
    let relay = Relay::with("t", "http://127.0.0.1:1/", &postgres_url(), "timeout = \"30s\"\n[shutdown]\ntimeout = \"60s\"");
    let (code, said) = output(&relay, &["check-config", "--set", "postgres.lease=\"30s\""]);
    assert_eq!(code, Some(78));
    assert!(said.contains("postgres.lease"), "{said}");
}

#[test]
fn a_port_in_use_is_said_and_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = Relay::new("t", "http://127.0.0.1:1/", "");
    let listen = format!("metrics.listen=\"{}\"", taken.local_addr().unwrap());
    let (code, said) = output(&relay, &["run", "--set", &listen]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("metrics.listen") && said.contains(&taken.local_addr().unwrap().to_string()), "{said}");
}

#[test]
fn a_second_process_under_the_same_name_is_refused() {
    let mut relay = Relay::new(&unique("nothing"), "http://127.0.0.1:1/", "");
    relay.start();
    eventually("the first one runs", || relay.http("/livez").is_some());
    let (code, said) = output(&relay, &["run", "--set", "metrics.listen=\"127.0.0.1:0\""]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("another process holds"), "{said}");
}

#[test]
fn a_schema_of_another_pipeline_ends_the_process_with_78() {
    let ours = Relay::new("t", "http://127.0.0.1:1/", "");
    assert_eq!(output(&ours, &["migrate"]).0, Some(0));
    let (code, said) =
        output(&ours, &["run", "--set", "name=\"stranger\"", "--set", &format!("postgres.schema=\"{}\"", ours.schema)]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("belongs to the pipeline"), "{said}");
}

/// Starts a daemon that cannot do its work, waits until it says so, and stops it.
#[track_caller]
fn waits_for(mut relay: Relay, reason: &str, words: &[&str]) {
    relay.start();
    eventually(&format!("stalled by {reason}"), || relay.metric(&format!("stalled{{reason=\"{reason}\"}}")) == Some(1.0));
    eventually("it says so in the log", || words.iter().all(|word| relay.log().contains(word)));
    let ready = relay.http("/readyz").unwrap_or_default();
    assert!(ready.contains("[-]"), "{ready}");
    assert!(relay.http("/livez").unwrap_or_default().contains("[+]"));
    let status = relay.stop();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}

#[test]
fn without_postgresql_it_waits_and_says_so() {
    waits_for(Relay::with("t", "http://127.0.0.1:1/", "postgresql://x@127.0.0.1:1/x", ""), "postgres", &["waiting"]);
}

#[test]
fn with_a_role_that_is_not_there_it_waits_and_says_so() {
    let url = postgres_url();
    let rest = url.split('@').nth(1).expect("user@host");
    waits_for(
        Relay::with("t", "http://127.0.0.1:1/", &format!("postgresql://nobody_here@{rest}"), ""),
        "postgres",
        &["nobody_here"],
    );
}

#[test]
fn with_a_schema_that_it_may_not_make_it_names_the_command() {
    let relay = Relay::new("t", "http://127.0.0.1:1/", "");
    let (_, said) = output(&relay, &["status"]);
    assert!(said.contains("txrelay migrate"), "{said}");
    let mut relay = relay;
    relay.set("postgres.migrate=false");
    waits_for(relay, "schema", &["txrelay migrate"]);
}

#[test]
fn without_kafka_it_waits_and_says_so() {
    let mut relay = Relay::new("t", "http://127.0.0.1:1/", "");
    relay.set("kafka.brokers=[\"127.0.0.1:1\"]");
    waits_for(relay, "kafka", &["waiting", "Kafka"]);
}

#[test]
fn a_topic_that_does_not_exist_is_named_and_not_made() {
    let name = unique("missing");
    let mut relay = Relay::new(&name, "http://127.0.0.1:1/", "");
    relay.start();
    eventually("the topic is named", || relay.log().contains(&name) && relay.log().contains("does not exist"));
    assert_eq!(relay.stop().code(), Some(0));
    let described =
        Command::new(env!("CARGO_BIN_EXE_bed")).args(["topic", "--brokers", &bootstrap(), "--describe", &name]).output().unwrap();
    assert!(!described.status.success(), "the topic was made");
}

#[test]
fn a_topic_that_already_holds_records_needs_a_start() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    topic.transactions(["a".to_owned()]);
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.unset_start();
    relay.start();
    eventually("it asks", || relay.log().contains("kafka.start") && relay.metric("stalled{reason=\"kafka\"}") == Some(1.0));
    assert_eq!(ledger.count("requests"), 0);
    assert_eq!(relay.stop().code(), Some(0));
    relay.set("kafka.start=\"latest\"");
    relay.start();
    eventually("it begins with what comes from now on", || relay.count("select count(*) from consumer_position") == 2);
    eventually("it reads", || relay.metric("kafka_up") == Some(1.0));
    topic.transactions(["b".to_owned()]);
    eventually("only the new one comes", || ledger.accepted() == ["b"]);
    assert_eq!(relay.stop().code(), Some(0));
}

#[test]
fn a_topic_that_is_added_and_needs_a_decision_does_not_keep_the_others() {
    let (known, new, ledger) = (Topic::new(1), Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&known.name, &ledger.url(), "");
    relay.start();
    eventually("it reads", || relay.count("select count(*) from consumer_position") == 1);
    assert_eq!(relay.stop().code(), Some(0));
    new.transactions(["old".to_owned()]);
    relay.unset_start();
    relay.set(&format!("kafka.topics=[\"{}\", \"{}\"]", known.name, new.name));
    relay.start();
    eventually("it asks", || relay.log().contains("kafka.start") && relay.log().contains(&new.name));
    known.transactions(["a".to_owned()]);
    eventually("the known topic is read", || ledger.accepted() == ["a"]);
    assert_eq!(relay.metric("stalled{reason=\"kafka\"}"), Some(1.0), "and it still says what it waits for");
    assert_eq!(relay.stop().code(), Some(0));
}

#[test]
fn nobody_at_the_metrics_port_can_end_the_daemon() {
    let mut relay = Relay::new(&unique("nothing"), "http://127.0.0.1:1/", "");
    relay.start();
    eventually("it serves", || relay.http("/livez").is_some());
    for head in [
        "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000000000\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        let mut client = relay.connect();
        std::io::Write::write_all(&mut client, head.as_bytes()).unwrap();
        assert!(relay.http("/metrics").is_some(), "{head:?}");
    }
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&serde_json::json!({ "action": "hang" }));
    topic.transactions(["a".to_owned()]);
    let mut relay = Relay::new(&topic.name, &ledger.url(), "timeout = \"60s\"\n[shutdown]\ntimeout = \"90s\"");
    relay.start();
    eventually("a request hangs", || ledger.count("requests") == 1 || relay.metric("requests_in_flight") == Some(1.0));
    relay.signal("TERM");
    eventually("it is stopping", || relay.log().contains("stopping"));
    let began = std::time::Instant::now();
    let status = relay.stop();
    assert_eq!(status.code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(relay.log().contains("second signal"), "{}", relay.log());
}
