//! What the crate `kafka` does by itself, and what the adapter over it makes of the same faults. The first part is why its
//! `Consumer` is not used: each of these tests shows a loss, and fails when the crate has mended it.

use std::time::{Duration, Instant};

use kafka::client::{CommitOffset, FetchOffset, FetchPartition, GroupOffsetStorage, KafkaClient};
use kafka::consumer::Consumer;
use txrelay::config;
use txrelay::source::{self, Polled};

use super::kafka_client::kafka_3_9;
use crate::rig::{FETCH, FakeBroker, Fault, LIMIT, OFFSET_COMMIT, TOPIC, Topic, ids, unique};

fn consumer(brokers: &str, topic: &str, group: &str, fallback: FetchOffset) -> Consumer {
    Consumer::from_hosts(vec![brokers.to_owned()])
        .with_topic(topic.to_owned())
        .with_group(group.to_owned())
        .with_fallback_offset(fallback)
        .with_offset_storage(Some(GroupOffsetStorage::Kafka))
        .with_fetch_max_bytes_per_partition(1 << 20)
        .create()
        .expect("a consumer")
}

/// Partition and offset of what it delivers in a second and a half; errors are what a program would retry.
fn delivered(consumer: &mut Consumer) -> Vec<(i32, i64)> {
    let (began, mut all) = (Instant::now(), Vec::new());
    while began.elapsed() < Duration::from_millis(1500) {
        let Ok(sets) = consumer.poll() else { continue };
        for set in sets.iter() {
            all.extend(set.messages().iter().map(|message| (set.partition(), message.offset)));
            let _ = consumer.consume_messageset(set);
        }
    }
    all
}

/// L1
#[test]
fn the_crates_own_consumer_loses_plain_records_before_compressed_ones_and_commits_past_them() {
    let topic = Topic::on(&kafka_3_9().address, 1, &[]);
    topic.write(0, ids("a", 0..5));
    topic.write_gzip(0, ids("b", 0..50));
    // So much that the broker's answer, which it cuts at the size of what it converts, holds all of the compressed batch.
    topic.write(0, ids("c", 0..200));
    let group = unique("group");
    let mut consumer = consumer(&kafka_3_9().address, &topic.name, &group, FetchOffset::Earliest);
    let got = delivered(&mut consumer);
    assert!(got.len() < 255 && !got.contains(&(0, 0)) && got.contains(&(0, 254)), "{} of 255", got.len());
    consumer.commit_consumed().expect("a commit");
    let stands = consumer.client_mut().fetch_group_topic_offset(&group, &topic.name).expect("an answer");
    assert_eq!(stands[0].offset, 255, "committed past what was never delivered");
}

/// L2
#[test]
fn the_crates_own_consumer_loses_a_partitions_records_when_another_partition_has_an_error() {
    let broker = FakeBroker::start();
    broker.partition(0, 0, 5).partition(1, 0, 5).next(FETCH, Fault::Partition(1, 6));
    let got = delivered(&mut consumer(&broker.address(), TOPIC, "g", FetchOffset::Earliest));
    assert_eq!(got, (0..5).map(|offset| (1, offset)).collect::<Vec<_>>(), "partition 0 is never delivered");
    assert_eq!(broker.fetched(0)[..2], [0, 5]);
}

/// L3
#[test]
fn the_crates_own_consumer_jumps_to_the_end_when_the_next_record_is_the_oldest() {
    let broker = FakeBroker::start();
    broker.partition(0, 10, 10).commit(0, 10);
    let got = delivered(&mut consumer(&broker.address(), TOPIC, "g", FetchOffset::Latest));
    assert_eq!(got, [], "ten records were there");
    assert_eq!(broker.fetched(0)[0], 20);
}

/// L4
#[test]
#[ignore = "takes minutes: make test-long"]
fn the_crate_takes_a_late_answer_for_the_acknowledgement_of_a_commit() {
    let broker = FakeBroker::start();
    // Its time-out is 120 s.
    broker.partition(0, 0, 5).next(FETCH, Fault::Late(Duration::from_secs(130))).next(OFFSET_COMMIT, Fault::Mute);
    let mut client = KafkaClient::new(vec![broker.address()]);
    client.set_group_offset_storage(Some(GroupOffsetStorage::Kafka));
    client.load_metadata(&[TOPIC]).expect("metadata");
    // So that the coordinator is known before.
    client.fetch_group_topic_offset("g", TOPIC).expect("an answer");
    client.fetch_messages(&[FetchPartition::new(TOPIC, 0, 0)]).expect_err("too late");
    client.commit_offsets("g", &[CommitOffset::new(TOPIC, 0, 5)]).expect("reported as done");
    assert_eq!(broker.committed(0), None, "and it never was");
}

/// Reads all of the fake broker's partitions through the adapter; each record exactly once and in order.
#[track_caller]
fn reads_all(broker: &FakeBroker, partitions: &[(i32, i64)]) {
    let kafka = config::Kafka { client: config::KafkaClient::Kafka, ..config::Kafka::plain(&[&broker.address()], &[TOPIC], "g") };
    let mut source = source::open(&kafka, None).expect("the settings are good");
    let mut next: Vec<(i32, i64)> = partitions.iter().map(|(partition, _)| (*partition, 0)).collect();
    let began = Instant::now();
    let mut said = Vec::new();
    while next != partitions {
        assert!(began.elapsed() < 2 * LIMIT, "{next:?} of {partitions:?}: {said:?}");
        match source.poll(Duration::from_millis(20)).expect("the source is well") {
            Some(Polled::Assigned(at)) => {
                source.start(&at.into_iter().map(|at| (at, 0)).collect::<Vec<_>>()).expect("a start");
            }
            Some(Polled::Record(record)) => {
                let place = next.iter_mut().find(|(partition, _)| *partition == record.at.partition).expect("ours");
                assert_eq!(record.offset, place.1, "partition {}", place.0);
                assert_eq!(record.value, Some(format!("{}-{}", place.0, place.1).into_bytes()));
                place.1 += 1;
            }
            Some(Polled::Trouble(trouble)) => said.push(trouble.text),
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
    // And nothing more.
    for _ in 0..10 {
        let more = source.poll(Duration::from_millis(20)).expect("the source is well");
        assert!(!matches!(more, Some(Polled::Record(_))), "{more:?}");
    }
}

#[track_caller]
fn survives(faults: &[Fault]) {
    let broker = FakeBroker::start();
    broker.partition(0, 0, 20).partition(1, 0, 20).partition(2, 0, 20);
    for fault in faults {
        broker.next(FETCH, fault.clone());
    }
    reads_all(&broker, &[(0, 20), (1, 20), (2, 20)]);
}

#[test]
fn an_error_of_one_partition_in_the_middle_of_an_answer_loses_nothing() {
    for code in [6, 5, 3, -1] {
        survives(&[Fault::Partition(1, code)]);
    }
}

#[test]
fn broken_answers_lose_nothing() {
    survives(&[Fault::Half, Fault::Close]);
    // A negative length makes the crate panic; a frame of zeros is an answer without topics.
    survives(&[Fault::Raw(vec![0xff; 64])]);
    // One topic, whose name is longer than the answer. (A longer list makes the crate ask for memory that there is not, and
    // that ends any process: then it goes on at PostgreSQL's position.)
    survives(&[Fault::Raw([&[0, 0, 0, 60, 0, 0, 0, 1, 0, 0, 0, 1][..], &[0x41; 52]].concat())]);
    survives(&[Fault::Raw([&[0, 0, 0, 8][..], &[0; 8]].concat())]);
    survives(&[Fault::Close, Fault::Close, Fault::Half, Fault::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Fault::Close]);
}

#[test]
fn an_answer_that_belongs_to_another_request_loses_nothing() {
    survives(&[Fault::Ahead(7)]);
    survives(&[Fault::Ahead(1), Fault::Ahead(3), Fault::Ahead(19)]);
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn an_answer_that_does_not_come_in_time_loses_nothing() {
    survives(&[Fault::Late(Duration::from_secs(35)), Fault::Mute]);
}
