//! The pure-Rust client (`kafka.client = "kafka"`) on a real broker of the last line that it can read from: Kafka 3.9.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use txrelay::config::{self, KafkaClient, Start};
use txrelay::core::record::{Record, TopicPartition};
use txrelay::source::{self, MessageSource, Polled};

use crate::rig::{Broker, LIMIT, Ledger, Relay, Topic, eventually, ids, throughout};

/// One broker for all tests here; with-bed.sh ends it.
pub fn kafka_3_9() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(|| Broker::with(&["--version", "3.9.2"]))
}

fn topic(partitions: i32) -> Topic {
    Topic::on(&kafka_3_9().address, partitions, &[])
}

fn kafka(topic: &Topic) -> config::Kafka {
    let group = format!("group-{}", topic.name);
    config::Kafka { client: KafkaClient::Kafka, ..config::Kafka::plain(&[&kafka_3_9().address], &[&topic.name], &group) }
}

fn relay(topic: &Topic, ledger: &Ledger) -> Relay {
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.set(&format!("kafka.brokers={}", kafka_3_9().address));
    relay.set("kafka.client=kafka");
    relay
}

/// A consumer thread in miniature.
struct Reader {
    source: Box<dyn MessageSource>,
    records: Vec<Record>,
    positions: HashMap<TopicPartition, i64>,
    said: Vec<String>,
}

impl Reader {
    fn new(kafka: &config::Kafka) -> Self {
        let source = source::open(kafka, None).expect("the settings are good");
        Self { source, records: Vec::new(), positions: HashMap::new(), said: Vec::new() }
    }

    fn step(&mut self) {
        match self.source.poll(Duration::from_millis(20)).expect("the source is well") {
            Some(Polled::Record(record)) => {
                // Never twice and never over another one.
                let next = self.positions.get_mut(&record.at).expect("a started partition");
                assert!(record.offset >= *next, "{record:?} where {next} was next");
                *next = record.offset + 1;
                self.records.push(record);
            }
            Some(Polled::Assigned(partitions)) => {
                let at: Vec<(TopicPartition, i64)> = partitions
                    .into_iter()
                    .map(|at| {
                        let low = self.source.watermarks(&at, LIMIT).expect("an answer").low;
                        (at, low)
                    })
                    .collect();
                self.positions.extend(at.clone());
                self.source.start(&at).expect("a start");
            }
            Some(Polled::Trouble(trouble)) => self.said.push(trouble.text),
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < LIMIT, "not {what}: {} records, said {:?}", self.records.len(), self.said);
            self.step();
        }
    }

    #[track_caller]
    fn read(&mut self, n: usize) {
        self.until("all records", |r| r.records.len() >= n);
    }

    /// The ids of one partition, in order.
    fn ids(&self, partition: i32) -> Vec<String> {
        let ours = self.records.iter().filter(|record| record.at.partition == partition);
        ours.map(|record| String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned()).collect()
    }
}

/// L1: on meeting a compressed batch the crate throws away the plain ones before it in the same answer, and its own Consumer
/// commits past them: 5 of 15 were lost here.
#[test]
fn plain_batches_before_a_compressed_one_all_arrive() {
    let topic = topic(2);
    let mut expected = topic.write(0, ids("a", 0..5));
    expected.extend(topic.write_gzip(0, ids("b", 0..50)));
    expected.extend(topic.write(0, ids("c", 0..200)));
    for (i, codec) in ["none", "snappy", "none", "none", "gzip", "gzip", "none", "snappy"].iter().enumerate() {
        expected.extend(topic.write_as(codec, 0, ids(&format!("d{i}"), 0..40)));
    }
    let other = topic.write_gzip(1, ids("e", 0..50));
    let mut reader = Reader::new(&kafka(&topic));
    reader.read(expected.len() + other.len());
    assert_eq!(reader.ids(0), expected);
    assert_eq!(reader.ids(1), other);
    assert!(reader.said.is_empty(), "{:?}", reader.said);
    let at = TopicPartition { topic: Arc::from(topic.name.as_str()), partition: 0 };
    assert!(reader.source.positions().contains(&(at, expected.len() as i64)));
}

#[test]
fn every_start_resolves_to_a_number_and_commits_are_for_tools() {
    let topic = topic(2);
    topic.write(0, ids("a", 0..10));
    let mut reader = Reader::new(&kafka(&topic));
    // The first question of all makes the broker create where groups are kept.
    let any = TopicPartition { topic: Arc::from(topic.name.as_str()), partition: 0 };
    eventually("groups are kept", || reader.source.resolve(&any, Start::Committed, LIMIT).is_ok());
    let at = |partition| TopicPartition { topic: Arc::from(topic.name.as_str()), partition };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    for (start, offset) in
        [(Start::Earliest, 0), (Start::Latest, 10), (Start::Committed, 0), (Start::Time(0), 0), (Start::Time(now + 60_000), 10)]
    {
        assert_eq!(reader.source.resolve(&at(0), start, LIMIT).expect("an answer"), offset, "{start:?}");
        assert_eq!(reader.source.resolve(&at(1), start, LIMIT).expect("an answer"), 0, "{start:?} of an empty log");
    }
    let info = reader.source.topics(LIMIT).expect("an answer").remove(0);
    assert!(info.id.is_some() && info.partitions == Some(2), "{info:?}");
    assert!(reader.source.cluster_id(LIMIT).expect("an answer").is_some());
    let settings = reader.source.settings(&topic.name, LIMIT).expect("an answer").expect("permitted");
    assert_eq!((settings.compacted, settings.retention), (false, Some(Duration::from_secs(7 * 86_400))));
    reader.read(10);
    reader.source.store(&[(at(0), 7)]);
    reader.source.close(LIMIT);
    let mut other = Reader::new(&kafka(&topic));
    assert_eq!(other.source.resolve(&at(0), Start::Committed, LIMIT).expect("an answer"), 7);
}

#[test]
fn a_position_outside_the_log_is_told_and_nothing_is_skipped() {
    let topic = topic(1);
    topic.write(0, ids("a", 0..10));
    let mut source = source::open(&kafka(&topic), None).expect("the settings are good");
    let at = TopicPartition { topic: Arc::from(topic.name.as_str()), partition: 0 };
    let began = Instant::now();
    let poll = |source: &mut Box<dyn MessageSource>| {
        assert!(began.elapsed() < LIMIT, "nothing was told");
        source.poll(Duration::from_millis(20)).expect("the source is well")
    };
    while !matches!(poll(&mut source), Some(Polled::Assigned(_))) {}
    source.start(&[(at.clone(), 1000)]).expect("a start");
    while !matches!(poll(&mut source), Some(Polled::PositionLost(_))) {}
    assert!(source.positions().is_empty(), "a lost position must not be stored");
    source.start(&[(at, 4)]).expect("a start");
    loop {
        if let Some(Polled::Record(record)) = poll(&mut source) {
            assert_eq!(record.offset, 4);
            break;
        }
    }
}

#[test]
fn transactions_cost_holes_that_are_passed_and_told_once() {
    let topic = topic(1);
    topic.write(0, ids("a", 0..3)); // 0..3
    topic.write_in_transaction(0, ids("b", 0..3), true); // 3..6, marker 6
    topic.write(0, ids("c", 0..3)); // 7..10
    topic.write_in_transaction(0, ids("d", 0..3), true); // 10..13, marker 13
    topic.write(0, ids("e", 0..3)); // 14..17
    let mut reader = Reader::new(&kafka(&topic));
    reader.read(15);
    // A marker comes a moment after its commit is acknowledged, perhaps behind what was written next.
    let offsets: Vec<i64> = reader.records.iter().map(|record| record.offset).collect();
    let holes: Vec<i64> = (0..offsets[14]).filter(|offset| !offsets.contains(offset)).collect();
    assert!(!holes.is_empty() && holes.len() <= 2, "{offsets:?}");
    assert_eq!(reader.ids(0).len(), 15);
    let told: Vec<&String> =
        reader.said.iter().filter(|said| said.contains(&format!("no records at offsets {} to", holes[0]))).collect();
    assert!(told.len() == 1 && told[0].contains("kafka.client = \"librdkafka\""), "{:?}", reader.said);
    // With "stop" nothing behind the hole is read.
    let mut stops = kafka(&topic);
    stops.on_lost_position = config::OnLostPosition::Stop;
    let mut reader = Reader::new(&stops);
    reader.until("a word", |r| r.said.iter().any(|said| said.contains("is not read further")));
    assert_eq!(reader.records.len() as i64, holes[0]);
}

#[test]
fn the_pure_rust_client_delivers_everything_once() {
    let (topic, ledger) = (topic(4), Ledger::start());
    let mut all = Vec::new();
    for (partition, codec) in ["none", "gzip", "snappy", "none"].iter().enumerate() {
        let partition = i32::try_from(partition).expect("a few");
        all.extend(topic.write_as(codec, partition, ids(&format!("a{partition}"), 0..300)));
    }
    let mut relay = relay(&topic, &ledger);
    relay.start();
    eventually("everything is delivered", || ledger.count("accepted") >= 1200);
    assert_eq!(relay.metric("kafka_up"), Some(1.0));
    relay.stop();
    // The rest at a second start, from PostgreSQL's position.
    all.extend(topic.write_gzip(1, ids("b", 0..100)));
    relay.start();
    eventually("the rest, too", || ledger.count("accepted") >= 1300);
    ledger.has_exactly(&all);
    relay.balanced();
    assert_eq!(ledger.count("requests"), 1300, "each once");
}

#[test]
fn one_process_reads_and_another_takes_over_when_it_stops_or_is_killed() {
    let (topic, ledger) = (topic(3), Ledger::start());
    let mut first = relay(&topic, &ledger);
    let mut second = first.twin();
    first.start();
    eventually("the first reads", || first.partitions() == 3);
    second.start();
    eventually("the second stands by", || second.log().contains("another process of this pipeline reads"));
    let mut all = topic.write(0, ids("a", 0..50));
    eventually("the first has read", || ledger.count("accepted") == 50);
    assert_eq!(second.partitions(), 0, "never two readers");
    assert!(first.stop().success());
    eventually("the second reads", || second.partitions() == 3);
    all.extend(topic.write(1, ids("b", 0..50)));
    eventually("the second has read", || ledger.count("accepted") == 100);
    first.start();
    eventually("the first stands by", || first.log().contains("another process of this pipeline reads"));
    second.kill_9();
    eventually("the first reads again", || first.partitions() == 3);
    all.extend(topic.write(2, ids("c", 0..50)));
    eventually("it has read", || ledger.count("accepted") == 150);
    ledger.has_exactly(&all);
    first.balanced();
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn a_reader_that_is_frozen_is_replaced_within_a_lease_and_reads_no_more() {
    let (topic, ledger) = (topic(3), Ledger::start());
    let mut first = relay(&topic, &ledger);
    first.set("postgres.lease=15s");
    first.set("downstream.timeout=4s");
    let mut second = first.twin();
    first.start();
    eventually("the first reads", || first.partitions() == 3);
    second.start();
    let mut all = topic.write(0, ids("a", 0..50));
    eventually("the first has read", || ledger.count("accepted") == 50);
    first.signal("STOP");
    all.extend(topic.write(1, ids("b", 0..50)));
    let began = Instant::now();
    eventually("the second reads", || second.partitions() == 3);
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    eventually("the second has read", || ledger.count("accepted") == 100);
    first.signal("CONT");
    eventually("the first stands by", || first.partitions() == 0);
    all.extend(topic.write(2, ids("c", 0..50)));
    eventually("the second has read", || ledger.count("accepted") == 150);
    throughout(Duration::from_secs(5), "one reader", || (first.partitions(), second.partitions()) == (0, 3));
    ledger.has_exactly(&all);
    first.balanced();
}
