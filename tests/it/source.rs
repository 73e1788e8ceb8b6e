//! `MessageSource` against a real Kafka: what a source promises to the consumer thread.
//! The broker is named by TXRELAY_TEST_KAFKA (`host:port`, plain, topics need not be there).

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pollster::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use txrelay::config::{self, Start};
use txrelay::core::record::{Record, TopicPartition};
use txrelay::source::{self, MessageSource, Polled, SourceError, TroubleKind};

use crate::rig::end_transaction;

/// Catches hangs; nothing here needs more than a second or two.
const LIMIT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(20);

fn bootstrap() -> String {
    std::env::var("TXRELAY_TEST_KAFKA").expect("TXRELAY_TEST_KAFKA must name a Kafka broker, e.g. 127.0.0.1:29010")
}

/// A topic of its own on the real broker.
struct Rig {
    topic: String,
    admin: AdminClient<DefaultClientContext>,
    producer: BaseProducer,
}

impl Rig {
    fn new(partitions: i32) -> Self {
        let rig = Self::without_topic();
        rig.create(partitions);
        rig
    }

    fn without_topic() -> Self {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", bootstrap()).set("linger.ms", "0");
        Self {
            topic: format!("it-source-{}", uuid::Uuid::new_v4()),
            admin: client.create().expect("an admin client"),
            producer: client.create().expect("a producer"),
        }
    }

    fn create(&self, partitions: i32) {
        let topic = NewTopic::new(&self.topic, partitions, TopicReplication::Fixed(1));
        let made = block_on(self.admin.create_topics([&topic], &AdminOptions::new())).expect("Kafka answers");
        made[0].as_ref().expect("the topic is created");
    }

    fn delete(&self) {
        block_on(self.admin.delete_topics(&[&self.topic], &AdminOptions::new())).expect("Kafka answers");
    }

    fn delete_records(&self, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, Offset::Offset(before)).expect("an offset");
        block_on(self.admin.delete_records(&list, &AdminOptions::new())).expect("Kafka answers");
    }

    fn kafka(&self) -> config::Kafka {
        config::Kafka::plain(&[&bootstrap()], &[&self.topic], &format!("group-{}", self.topic))
    }

    fn open(&self) -> Box<dyn MessageSource> {
        source::open(&self.kafka(), None).expect("the settings are good")
    }

    fn at(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: Arc::from(self.topic.as_str()), partition }
    }

    /// Sends `n` records whose values are their numbers from `from` on.
    fn produce(&self, partition: i32, from: usize, n: usize) {
        for i in from..from + n {
            let value = i.to_string();
            self.send(BaseRecord::<(), str>::to(&self.topic).partition(partition).payload(&value));
        }
        self.flush();
    }

    fn send<K: rdkafka::message::ToBytes + ?Sized>(&self, record: BaseRecord<'_, K, str>) {
        if let Err((e, _)) = self.producer.send(record) {
            panic!("{e}");
        }
    }

    fn flush(&self) {
        self.producer.flush(LIMIT).expect("Kafka takes the records");
    }
}

/// A consumer thread in miniature: keeps positions where PostgreSQL would.
struct Reader {
    source: Box<dyn MessageSource>,
    records: Vec<Record>,
    assigned: Vec<TopicPartition>,
    lost_position: bool,
}

impl Reader {
    fn new(source: Box<dyn MessageSource>) -> Self {
        Self { source, records: Vec::new(), assigned: Vec::new(), lost_position: false }
    }

    fn values(&self) -> Vec<String> {
        self.records.iter().map(|r| String::from_utf8_lossy(r.value.as_deref().unwrap_or(b"null")).into_owned()).collect()
    }

    /// One poll; partitions begin where `positions` says (0 if it does not), and records move it on.
    fn step(&mut self, positions: &mut HashMap<TopicPartition, i64>) {
        match self.source.poll(TICK).expect("the source is well") {
            Some(Polled::Record(record)) => {
                positions.insert(record.at.clone(), record.offset + 1);
                self.records.push(record);
            }
            Some(Polled::Assigned(partitions)) => {
                let at: Vec<_> = partitions.iter().map(|p| (p.clone(), positions.get(p).copied().unwrap_or(0))).collect();
                self.source.start(&at).expect("a start");
                self.assigned.extend(partitions);
            }
            Some(Polled::Revoked { partitions, .. }) => {
                self.source.release(&partitions).expect("a release");
                self.assigned.retain(|p| !partitions.contains(p));
            }
            Some(Polled::PositionLost(_)) => self.lost_position = true,
            Some(Polled::Trouble(_)) | None => {}
        }
    }

    #[track_caller]
    fn until(&mut self, what: &str, positions: &mut HashMap<TopicPartition, i64>, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            let lost = if self.lost_position { ", and a position was lost" } else { "" };
            assert!(began.elapsed() < LIMIT, "waited for {what}; has {} records{lost}", self.records.len());
            self.step(positions);
        }
    }

    #[track_caller]
    fn read(&mut self, n: usize) {
        self.until(&format!("{n} records"), &mut HashMap::new(), |r| r.records.len() >= n);
    }

    /// Polls for a while without any expectation: what must not come has time to come.
    fn idle(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.step(&mut HashMap::new());
        }
    }

    /// Polls until partitions are assigned, and leaves them unanswered.
    #[track_caller]
    fn assigned(&mut self) -> Vec<TopicPartition> {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < LIMIT, "waited for an assignment");
            if let Some(Polled::Assigned(partitions)) = self.source.poll(TICK).expect("the source is well") {
                return partitions;
            }
        }
    }
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

#[test]
fn records_come_complete_and_in_order_with_null_and_empty_kept_apart() {
    let rig = Rig::new(3);
    // Within the topic's retention: the broker of the tests looks once a second for what is older.
    let written_ms = jiff::Timestamp::now().as_millisecond() - 3_600_123;
    rig.send(BaseRecord::<str, str>::to(&rig.topic).partition(0).timestamp(written_ms));
    let headers = OwnedHeaders::new()
        .insert(Header { key: "a", value: Some(&b"\x00\xff"[..]) })
        .insert(Header { key: "a", value: Some(&b""[..]) })
        .insert(Header::<&[u8]> { key: "b", value: None });
    rig.send(BaseRecord::<str, str>::to(&rig.topic).partition(0).key("").payload("").headers(headers));
    rig.flush();
    for p in 0..3 {
        rig.produce(p, 0, 1000);
    }

    let mut reader = Reader::new(rig.open());
    reader.read(3002);

    let of = |p: i32| reader.records.iter().filter(|r| r.at == rig.at(p)).collect::<Vec<_>>();
    let first = of(0);
    assert_eq!((&first[0].key, &first[0].value, &first[0].headers), (&None, &None, &vec![]));
    assert_eq!(first[0].timestamp_ms, Some(written_ms));
    assert_eq!((&first[1].key, &first[1].value), (&Some(vec![]), &Some(vec![])));
    let expected = [("a", Some(b"\x00\xff".to_vec())), ("a", Some(vec![])), ("b", None)];
    assert_eq!(first[1].headers, expected.map(|(n, v)| (n.to_owned(), v)));
    for p in 0..3 {
        let records = of(p);
        assert!(records.iter().enumerate().all(|(i, r)| r.offset == i as i64), "partition {p}");
        let values: Vec<_> = records.iter().skip(if p == 0 { 2 } else { 0 }).map(|r| r.value.clone()).collect();
        assert_eq!(values, numbers(0..1000).iter().map(|n| Some(n.clone().into_bytes())).collect::<Vec<_>>());
    }
}

#[test]
fn reading_starts_exactly_at_the_given_offset() {
    let rig = Rig::new(1);
    rig.produce(0, 0, 500);
    let mut reader = Reader::new(rig.open());
    let partitions = reader.assigned();
    reader.source.start(&[(partitions[0].clone(), 321)]).expect("a start");
    reader.read(179);
    assert_eq!(reader.values(), numbers(321..500));
    // Moved back, as after a lost position, at once and without a stale position in between.
    reader.source.start(&[(partitions[0].clone(), 100)]).expect("a start");
    assert!(reader.source.positions().iter().all(|(_, o)| *o == 100), "{:?}", reader.source.positions());
    reader.records.clear();
    reader.read(400);
    assert_eq!(reader.values(), numbers(100..500));
    assert_eq!(reader.source.positions(), [(rig.at(0), 500)]);
}

#[test]
fn positions_pass_over_aborted_transactions_and_their_markers() {
    let rig = Rig::new(1);
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", bootstrap()).set("transactional.id", &rig.topic);
    let producer: BaseProducer = client.create().expect("a producer");
    producer.init_transactions(LIMIT).expect("transactions");
    for (n, commit, behind) in [(3, true, 4), (5, false, 10), (2, true, 13), (4, false, 18)] {
        producer.begin_transaction().expect("a transaction");
        for i in 0..n {
            let value = format!("{commit} {i}");
            assert!(producer.send(BaseRecord::<(), str>::to(&rig.topic).partition(0).payload(&value)).is_ok());
        }
        producer.flush(LIMIT).expect("Kafka takes the records");
        end_transaction(&producer, commit, &rig.topic, 0, behind);
    }
    let mut reader = Reader::new(rig.open());
    reader.read(5);
    // 3 + marker, 5 aborted + marker, 2 + marker, 4 aborted + marker.
    let began = Instant::now();
    while reader.source.positions() != [(rig.at(0), 18)] {
        assert!(began.elapsed() < LIMIT, "{:?}", reader.source.positions());
        reader.step(&mut HashMap::new());
    }
    assert_eq!(reader.records.iter().map(|r| r.offset).collect::<Vec<_>>(), [0, 1, 2, 10, 11]);
    assert_eq!(reader.source.watermarks(&rig.at(0), LIMIT).expect("watermarks").high, 18);
}

#[test]
fn a_parked_partition_delivers_nothing_until_it_is_started() {
    let rig = Rig::new(2);
    rig.produce(0, 0, 100);
    rig.produce(1, 0, 100);
    rig.delete_records(1, 50); // offset 0 is not in the log: a reader of it would report that
    let mut reader = Reader::new(rig.open());
    let mut partitions = reader.assigned();
    partitions.sort();
    reader.source.park(&partitions).expect("a park");
    reader.idle(Duration::from_millis(700));
    assert!(reader.records.is_empty() && !reader.lost_position);
    assert!(reader.source.positions().is_empty());

    reader.source.start(&[(partitions[0].clone(), 0)]).expect("a start");
    reader.read(100);
    reader.idle(Duration::from_millis(300));
    assert!(reader.records.iter().all(|r| r.at == rig.at(0)) && !reader.lost_position);

    reader.source.start(&[(partitions[1].clone(), 60)]).expect("a start");
    reader.read(140);
    assert_eq!(reader.values()[100..], numbers(60..100));
}

#[test]
fn a_released_partition_delivers_nothing_more() {
    let rig = Rig::new(2);
    rig.produce(0, 0, 5000);
    let mut reader = Reader::new(rig.open());
    reader.read(10); // the rest of them is fetched and waits in the queue
    reader.source.release(&[rig.at(0)]).expect("a release");
    reader.records.clear();
    rig.produce(0, 5000, 10);
    rig.produce(1, 0, 50);
    reader.read(50);
    reader.idle(Duration::from_millis(300));
    assert!(reader.records.iter().all(|r| r.at == rig.at(1)));
    assert_eq!(reader.source.positions(), [(rig.at(1), 50)]);
}

#[test]
fn the_topic_id_changes_when_a_topic_is_deleted_and_created_again() {
    let rig = Rig::new(2);
    let mut source = rig.open();
    let before = source.topics(LIMIT).expect("an answer");
    assert_eq!((before.len(), &*before[0].topic, before[0].partitions), (1, rig.topic.as_str(), Some(2)));
    assert!(before[0].id.is_some());
    assert_eq!(source.topics(LIMIT).expect("an answer"), before);
    assert!(source.cluster_id(LIMIT).expect("an answer").is_some());
    rig.delete();
    let began = Instant::now();
    while source.topics(LIMIT).expect("an answer")[0].partitions.is_some() {
        assert!(began.elapsed() < LIMIT);
    }
    rig.create(3);
    let began = Instant::now();
    let after = loop {
        assert!(began.elapsed() < LIMIT);
        match source.topics(LIMIT) {
            Ok(topics) if topics[0].partitions.is_some() => break topics,
            _ => std::thread::sleep(TICK),
        }
    };
    assert!(after[0].id.is_some() && after[0].id != before[0].id);
    assert_eq!(after[0].partitions, Some(3));
}

#[test]
fn an_unknown_topic_is_said_and_not_created() {
    let rig = Rig::without_topic();
    let mut source = rig.open();
    assert_eq!(source.topics(LIMIT).expect("an answer")[0].partitions, None);
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < LIMIT, "nothing was said");
        if let Some(Polled::Trouble(trouble)) = source.poll(TICK).expect("the source is well") {
            assert_eq!(trouble.kind, TroubleKind::UnknownTopic, "{}", trouble.text);
            assert!(trouble.text.contains(&rig.topic), "{}", trouble.text);
            break;
        }
    }
    let asked = source.watermarks(&rig.at(0), Duration::from_secs(2));
    assert!(matches!(asked, Err(SourceError::Request(_))), "{asked:?}");
    assert_eq!(source.topics(LIMIT).expect("an answer")[0].partitions, None, "asking has created it");
}

#[test]
fn an_offset_outside_the_log_is_surfaced_and_nothing_is_skipped() {
    let rig = Rig::new(1);
    rig.produce(0, 0, 10);
    rig.delete_records(0, 4);
    for outside in [1000, 2] {
        let mut reader = Reader::new(rig.open());
        let at = reader.assigned().remove(0);
        reader.source.start(&[(at.clone(), outside)]).expect("a start");
        reader.until("the loss", &mut HashMap::new(), |r| r.lost_position);
        assert!(reader.source.positions().is_empty(), "a lost position must not be stored");
        reader.idle(Duration::from_millis(300));
        assert!(reader.records.is_empty(), "it has jumped");
        let low = reader.source.resolve(&at, Start::Earliest, LIMIT).expect("a watermark");
        reader.source.start(&[(at, low)]).expect("a start");
        reader.read(6);
        assert_eq!(reader.values(), numbers(4..10));
        reader.source.close(LIMIT);
    }
}

#[test]
fn members_share_the_partitions_and_every_record_arrives_also_after_one_leaves() {
    let rig = Rig::new(4);
    let mut positions = HashMap::new();
    let mut a = Reader::new(rig.open());
    let mut produced = 0;
    let mut produce = |n: usize| {
        for p in 0..4 {
            rig.produce(p, produced, n);
        }
        produced += n;
    };
    produce(50);
    a.until("everything", &mut positions, |r| r.records.len() == 200);
    let mut b = Reader::new(rig.open());
    let began = Instant::now();
    while a.assigned.len() != 2 || b.assigned.len() != 2 {
        assert!(began.elapsed() < LIMIT, "{} and {} partitions", a.assigned.len(), b.assigned.len());
        produce(1);
        a.step(&mut positions);
        b.step(&mut positions);
    }
    produce(50);
    let total = |a: &Reader, b: &Reader| a.records.len() + b.records.len();
    while positions.values().sum::<i64>() < 4 * produced as i64 {
        assert!(began.elapsed() < LIMIT, "{} of {}", total(&a, &b), 4 * produced);
        a.step(&mut positions);
        b.step(&mut positions);
    }
    let b_read = std::mem::take(&mut b.records);
    b.source.close(LIMIT);
    for p in 0..4 {
        rig.produce(p, produced, 50);
    }
    let expected = 4 * (produced + 50) - b_read.len();
    a.until("the rest", &mut positions, |r| r.records.len() >= expected);

    let mut all: Vec<(TopicPartition, i64)> = a.records.iter().chain(&b_read).map(|r| (r.at.clone(), r.offset)).collect();
    let n = all.len();
    all.sort();
    all.dedup();
    // Each position is kept at once here, so a clean change of hands repeats nothing.
    assert_eq!((n, all.len()), (4 * (produced + 50), 4 * (produced + 50)));
    assert!(b_read.iter().any(|_| true), "the second member read nothing");
}

#[test]
fn a_rebalance_may_be_answered_later_than_the_session_timeout() {
    // PostgreSQL is slow to say the offsets, and meanwhile another member joins.
    let rig = Rig::new(2);
    rig.produce(0, 0, 100);
    rig.produce(1, 0, 100);
    let mut kafka = rig.kafka();
    kafka.librdkafka.insert("session.timeout.ms".into(), "6000".into());
    let mut a = Reader::new(source::open(&kafka, None).expect("the settings are good"));
    let partitions = a.assigned();
    assert_eq!(partitions.len(), 2);
    std::thread::scope(|scope| {
        let b = scope.spawn(|| {
            let mut b = Reader::new(source::open(&kafka, None).expect("the settings are good"));
            b.until("a share", &mut HashMap::new(), |r| r.assigned.len() == 1 && r.records.len() == 100);
            b.source.close(LIMIT);
        });
        std::thread::sleep(Duration::from_millis(6500));
        let at: Vec<_> = partitions.iter().map(|p| (p.clone(), 0)).collect();
        a.source.start(&at).expect("a start");
        a.assigned = partitions.clone();
        a.until("the other's share", &mut HashMap::new(), |r| r.assigned.len() == 1);
        while !b.is_finished() {
            a.step(&mut HashMap::new());
        }
        b.join().expect("the other member has read its share");
    });
}

#[test]
fn a_parked_partition_can_be_taken_away_and_an_unanswered_one_closed() {
    let rig = Rig::new(2);
    for p in 0..2 {
        rig.produce(p, 0, 10);
    }
    let mut a = Reader::new(rig.open());
    let partitions = a.assigned();
    a.source.park(&partitions).expect("a park");
    a.assigned = partitions;
    let mut b = Reader::new(rig.open());
    let began = Instant::now();
    while b.records.len() < 10 {
        assert!(began.elapsed() < LIMIT, "the other member waits for a parked partition");
        a.step(&mut HashMap::new());
        b.step(&mut HashMap::new());
    }
    assert_eq!((a.assigned.len(), a.records.len()), (1, 0));
    b.source.close(LIMIT);
    let began = Instant::now();
    // Taken back, and closed without an answer to that.
    while !matches!(a.source.poll(TICK), Ok(Some(Polled::Assigned(_)))) {
        assert!(began.elapsed() < LIMIT, "the partition did not come back");
    }
    let began = Instant::now();
    a.source.close(LIMIT);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_static_member_that_went_without_leaving_reads_again_at_once() {
    let rig = Rig::new(2);
    rig.produce(0, 0, 10);
    let open = || source::open(&rig.kafka(), Some("payments-7")).expect("the settings are good");
    let mut positions = HashMap::new();
    let mut reader = Reader::new(open());
    reader.until("the first", &mut positions, |r| r.records.len() == 10);
    reader.source.close(LIMIT);
    rig.produce(0, 10, 10);
    let began = Instant::now();
    let mut reader = Reader::new(open());
    reader.until("the next", &mut positions, |r| r.records.len() == 10);
    // 10 s is the session timeout, which a dynamic member killed here would wait out.
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(reader.values(), numbers(10..20));
}

#[test]
fn a_second_process_under_the_same_name_is_told_apart_from_a_fault() {
    let rig = Rig::new(1);
    let open = || source::open(&rig.kafka(), Some("payments-7")).expect("the settings are good");
    let (mut first, mut second) = (Reader::new(open()), Reader::new(open()));
    first.until("the first member", &mut HashMap::new(), |r| !r.assigned.is_empty());
    second.until("the second member", &mut HashMap::new(), |r| !r.assigned.is_empty());
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < LIMIT, "the first member was not told");
        match first.source.poll(TICK) {
            Err(SourceError::Fenced(text)) => {
                assert!(text.contains("running twice"), "{text}");
                break;
            }
            Err(other) => panic!("{other:?}"),
            Ok(_) => second.step(&mut HashMap::new()),
        }
    }
}

#[test]
fn a_pause_delivers_nothing_and_loses_and_repeats_nothing() {
    let rig = Rig::new(1);
    rig.produce(0, 0, 2000);
    let mut reader = Reader::new(rig.open());
    reader.read(300);
    reader.source.pause();
    reader.idle(Duration::from_millis(500));
    assert_eq!(reader.records.len(), 300);
    reader.source.resume();
    reader.read(2000);
    assert_eq!(reader.values(), numbers(0..2000));
    // Given up while paused, and taken again later: the pause must not stick.
    reader.source.pause();
    reader.source.park(&[rig.at(0)]).expect("a park");
    reader.source.resume();
    reader.source.start(&[(rig.at(0), 1990)]).expect("a start");
    reader.read(2010);
}

#[test]
fn stored_offsets_are_committed_and_others_never() {
    let rig = Rig::new(2);
    rig.produce(0, 0, 20);
    rig.produce(1, 0, 20);
    let mut reader = Reader::new(rig.open());
    reader.read(40);
    reader.source.store(&[(rig.at(0), 15)]);
    reader.source.close(LIMIT);
    let mut source = rig.open();
    assert_eq!(source.resolve(&rig.at(0), Start::Committed, LIMIT).expect("an answer"), 15);
    assert_eq!(source.resolve(&rig.at(1), Start::Committed, LIMIT).expect("an answer"), 0, "read, and not stored");
}

#[test]
fn every_start_resolves_to_a_number() {
    let rig = Rig::new(2);
    // Recent times: retention would remove records of 1970.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    let base = now - 10_000;
    for ms in [1000, 2000, 3000] {
        rig.send(BaseRecord::<str, str>::to(&rig.topic).partition(0).payload("x").timestamp(base + ms));
    }
    rig.flush();
    rig.delete_records(0, 1);
    let mut source = rig.open();
    for (start, offset) in [
        (Start::Earliest, 1),
        (Start::Latest, 3),
        (Start::Committed, 1),
        (Start::Time(base + 2000), 1),
        (Start::Time(base + 2001), 2),
        (Start::Time(base + 3001), 3),
    ] {
        assert_eq!(source.resolve(&rig.at(0), start, LIMIT).expect("an answer"), offset, "{start:?}");
        assert_eq!(source.resolve(&rig.at(1), start, LIMIT).expect("an answer"), 0, "{start:?} of an empty log");
    }
}

#[test]
fn an_unreachable_broker_is_a_sentence_and_stops_nothing() {
    let mut kafka = Rig::without_topic().kafka();
    kafka.brokers = vec!["127.0.0.1:1".into()];
    let mut source = source::open(&kafka, None).expect("the settings are good");
    let asked = source.cluster_id(Duration::from_secs(2));
    assert!(matches!(&asked, Err(SourceError::Request(text)) if text.contains("127.0.0.1:1")), "{asked:?}");
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < LIMIT, "nothing was said");
        if let Some(Polled::Trouble(trouble)) = source.poll(TICK).expect("the source is well") {
            assert_eq!(trouble.kind, TroubleKind::Connection, "{}", trouble.text);
            assert!(trouble.text.contains("kafka.brokers"), "{}", trouble.text);
            break;
        }
    }
    assert!(!source.is_up());
    let began = Instant::now();
    source.close(Duration::from_secs(2));
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_property_that_librdkafka_refuses_is_named_without_a_secret() {
    let refused = |key: &str, value: &str| {
        let mut kafka = Rig::without_topic().kafka();
        kafka.librdkafka.insert(key.into(), value.into());
        match source::open(&kafka, None).err() {
            Some(SourceError::Settings(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    let text = refused("fetch.wait.max.msec", "100");
    assert!(text.contains("fetch.wait.max.msec"), "{text}");
    let text = refused("ssl.password.typo", "hunter2");
    assert!(text.contains("ssl.password.typo") && !text.contains("hunter2"), "{text}");
}

#[test]
fn a_header_name_that_is_not_utf8_stops_nothing() {
    let rig = Rig::new(1);
    rig.produce(0, 0, 1);
    produce_raw(&rig.topic, &[(b"na\xffme", Some(b"\x00\x80\xff")), (b"plain", None)]);
    rig.produce(0, 2, 1);
    let mut reader = Reader::new(rig.open());
    reader.read(3);
    let expected = [("na\u{fffd}me", Some(b"\x00\x80\xff".to_vec())), ("plain", None)];
    assert_eq!(reader.records[1].headers, expected.map(|(n, v)| (n.to_owned(), v)));
    assert_eq!(reader.records[1].value.as_deref(), Some(&b"raw"[..]));
}

/// Sends one record with these headers to partition 0, by hand: rdkafka's producer takes only UTF-8 names.
fn produce_raw(topic: &str, headers: &[(&[u8], Option<&[u8]>)]) {
    fn varint(to: &mut Vec<u8>, n: i64) {
        let mut zigzag = ((n << 1) ^ (n >> 63)).cast_unsigned();
        while zigzag >= 0x80 {
            to.push((zigzag as u8) | 0x80);
            zigzag >>= 7;
        }
        to.push(zigzag as u8);
    }
    fn bytes(to: &mut Vec<u8>, b: Option<&[u8]>) {
        varint(to, b.map_or(-1, |b| b.len() as i64));
        to.extend(b.unwrap_or_default());
    }
    fn crc32c(data: &[u8]) -> u32 {
        !data.iter().fold(!0u32, |crc, b| {
            (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 })
        })
    }
    let mut record = vec![0, 0, 0]; // attributes, time and offset deltas
    bytes(&mut record, None);
    bytes(&mut record, Some(b"raw"));
    varint(&mut record, headers.len() as i64);
    for (name, value) in headers {
        bytes(&mut record, Some(name));
        bytes(&mut record, *value);
    }
    let mut body = Vec::new(); // of the batch, from its attributes on
    body.extend(0i16.to_be_bytes());
    body.extend(0i32.to_be_bytes()); // last offset delta
    body.extend([1_700_000_000_000i64, 1_700_000_000_000, -1].iter().flat_map(|n| n.to_be_bytes())); // times, producer id
    body.extend((-1i16).to_be_bytes());
    body.extend([-1i32, 1].iter().flat_map(|n| n.to_be_bytes())); // sequence, number of records
    bytes(&mut body, Some(&record));
    let mut batch = 0i64.to_be_bytes().to_vec();
    batch.extend((body.len() as i32 + 9).to_be_bytes());
    batch.extend((-1i32).to_be_bytes());
    batch.push(2);
    batch.extend(crc32c(&body).to_be_bytes());
    batch.extend(body);

    let mut request = vec![0, 0, 0, 3, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 1]; // Produce 3, no client id, no transaction, acks
    request.extend([10_000i32, 1].iter().flat_map(|n| n.to_be_bytes())); // timeout, topics
    request.extend((topic.len() as i16).to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend([1, 0, batch.len() as i32].iter().flat_map(|n| n.to_be_bytes())); // partitions, number, size
    request.extend(batch);
    let mut broker = TcpStream::connect(bootstrap()).expect("a broker");
    broker.set_read_timeout(Some(LIMIT)).expect("a timeout");
    broker.write_all(&(request.len() as i32).to_be_bytes()).expect("a write");
    broker.write_all(&request).expect("a write");
    let mut size = [0; 4];
    broker.read_exact(&mut size).expect("an answer");
    let mut answer = vec![0; u32::from_be_bytes(size) as usize];
    broker.read_exact(&mut answer).expect("an answer");
    // Correlation, topics, name, partitions, number, then the error.
    let error = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[error..error + 2], [0, 0], "Kafka refused the record");
}
