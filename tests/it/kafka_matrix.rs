//! Both clients on both lines of Kafka, the whole path.

use std::time::{Duration, Instant};

use super::kafka_client::kafka_3_9;
use crate::rig::{Admin, Broker, Ledger, Relay, Topic, bootstrap, eventually, ids};

fn relay(brokers: &str, topic: &Topic, ledger: &Ledger, sets: &[&str]) -> Relay {
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.set(&format!("kafka.brokers={brokers}"));
    sets.iter().for_each(|set| relay.set(set));
    relay
}

/// 12 partitions, these codecs in turn, plain batches between, records of nearly 1 MB.
#[track_caller]
fn everything_arrives(brokers: &str, codecs: &[&str], with_transactions: bool, sets: &[&str]) {
    let (topic, ledger) = (Topic::on(brokers, 12, &[]), Ledger::start());
    let mut all = Vec::new();
    for partition in 0..12 {
        for (round, codec) in codecs.iter().enumerate() {
            all.extend(topic.write_as(codec, partition, ids(&format!("a{partition}-{round}"), 0..60)));
            all.extend(topic.write(partition, ids(&format!("b{partition}-{round}"), 0..3)));
        }
        let large = format!("large-{partition}");
        topic.write_large(partition, &large, 900_000);
        all.push(large);
        if with_transactions {
            topic.write_in_transaction(partition, ids(&format!("aborted{partition}"), 0..5), false);
            all.extend(topic.write_in_transaction(partition, ids(&format!("c{partition}"), 0..5), true));
        }
    }
    let mut relay = relay(brokers, &topic, &ledger, sets);
    relay.start();
    eventually("everything is delivered", || ledger.count("accepted") >= all.len() as u64);
    ledger.has_exactly(&all);
    assert_eq!(ledger.count("requests"), all.len() as u64, "each once");
    relay.balanced();
}

const ALL: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

#[test]
#[ignore = "takes minutes: make test-long"]
fn librdkafka_reads_every_codec_and_no_aborted_record_on_kafka_4() {
    everything_arrives(&bootstrap(), &ALL, true, &[]);
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn librdkafka_reads_every_codec_and_no_aborted_record_on_kafka_3_9() {
    everything_arrives(&kafka_3_9().address, &ALL, true, &[]);
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn the_pure_rust_client_reads_its_codecs_on_kafka_3_9() {
    everything_arrives(&kafka_3_9().address, &["none", "gzip", "snappy"], false, &["kafka.client=kafka"]);
}

/// Queues are capped: 16 MiB of fetched records, 8 MiB of a batch, 32 MiB in the workers' hands.
#[test]
#[ignore = "takes minutes: make test-long"]
fn a_hundred_partitions_of_large_records_stay_under_200_mb() {
    for client in ["librdkafka", "kafka"] {
        let (topic, ledger) = (Topic::on(&kafka_3_9().address, 100, &[]), Ledger::start());
        for partition in 0..100 {
            (0..3).for_each(|n| topic.write_large(partition, &format!("{client}-{partition}-{n}"), 900_000));
        }
        let client_is = format!("kafka.client={client}");
        let mut relay = relay(&kafka_3_9().address, &topic, &ledger, &[client_is.as_str()]);
        relay.start();
        eventually("everything is delivered", || ledger.count("accepted") == 300);
        let peak = relay.resources().rss_peak_mb;
        assert!(peak < 200.0, "{client}: {peak} MB");
        relay.balanced();
    }
}

#[test]
fn the_newer_group_protocol_reads_where_the_broker_has_it() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    let all = topic.write(1, ids("a", 0..20));
    let mut first = relay(&bootstrap(), &topic, &ledger, &["kafka.librdkafka.group.protocol=consumer"]);
    first.start();
    eventually("everything is delivered", || ledger.count("accepted") == 20);
    ledger.has_exactly(&all);
    let mut second = first.twin();
    second.start();
    eventually("both read", || {
        first.partitions() > 0 && second.partitions() > 0 && first.partitions() + second.partitions() == 3
    });
    first.balanced();
}

#[test]
fn what_the_broker_cannot_do_for_this_client_is_told_and_nothing_else_happens() {
    let ledger = Ledger::start();
    for (brokers, set, words) in [
        (bootstrap(), "kafka.client=kafka", "the kafka client only 0: set kafka.client = \"librdkafka\""),
        (
            kafka_3_9().address.clone(),
            "kafka.librdkafka.group.protocol=consumer",
            "does not have the group protocol \"consumer\"",
        ),
    ] {
        let topic = Topic::on(&brokers, 1, &[]);
        let mut relay = relay(&brokers, &topic, &ledger, &[set]);
        relay.start();
        eventually("the sentence", || relay.log().contains(words));
        assert_eq!(relay.metric("stalled{reason=\"kafka\"}"), Some(1.0));
        assert!(relay.is_running() && relay.stop().success());
    }
    for (codec, words) in [("zstd", "zstd"), ("lz4", "lz4")] {
        let topic = Topic::on(&kafka_3_9().address, 1, &[]);
        topic.write_as(codec, 0, ids("a", 0..200));
        let relay = relay(&kafka_3_9().address, &topic, &ledger, &["kafka.client=kafka"]);
        let out = relay.command(&["check-config", "--connect"]).output().expect("it runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && said.contains(words) && said.contains("set kafka.client"), "{said}");
    }
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn a_broker_that_dies_and_comes_back_costs_the_pure_rust_client_nothing() {
    let broker = Broker::with(&["--version", "3.9.2"]);
    let (topic, ledger) = (Topic::on(&broker.address, 3, &[]), Ledger::start());
    let mut relay = relay(&broker.address, &topic, &ledger, &["kafka.client=kafka"]);
    let mut all = topic.write(0, ids("a", 0..50));
    relay.start();
    eventually("the first", || ledger.count("accepted") == 50);
    for round in 0..3 {
        broker.kill_9();
        eventually("it is noticed", || relay.metric("stalled{reason=\"kafka\"}") == Some(1.0));
        let (began, before) = (Instant::now(), relay.cpu());
        std::thread::sleep(Duration::from_secs(5));
        let used = relay.cpu() - before;
        assert!(used < began.elapsed() / 4, "{used:?} of CPU while nobody is there");
        broker.up();
        all.extend(topic.write(round, ids(&format!("b{round}"), 0..50)));
        eventually("the next", || ledger.count("accepted") == all.len() as u64);
    }
    // More partitions are seen within a minute.
    Admin::of(&broker.address).add_partitions(&topic.name, 5);
    // The old producer would not know of it for minutes.
    all.extend(topic.write_as("none", 4, ids("c", 0..50)));
    let began = Instant::now();
    while ledger.count("accepted") < all.len() as u64 {
        assert!(began.elapsed() < Duration::from_secs(120), "the new partition is not read");
        std::thread::sleep(Duration::from_millis(200));
    }
    ledger.has_exactly(&all);
    assert_eq!(ledger.count("requests"), all.len() as u64, "each once");
    relay.balanced();
}
