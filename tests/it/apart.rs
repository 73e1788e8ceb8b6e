//! The reader apart from the group, against a real Kafka.

use std::sync::Arc;
use std::time::Instant;

use txrelay::config;
use txrelay::core::hole::Look;
use txrelay::core::offsets::Offsets;
use txrelay::core::record::TopicPartition;
use txrelay::source::{Apart, Ended, look_again};

use crate::rig::{Admin, LIMIT, Topic, bootstrap, ids};

fn kafka(topic: &Topic) -> config::Kafka {
    config::Kafka::plain(&[&bootstrap()], &[&topic.name], &format!("group-{}", topic.name))
}

fn at(topic: &Topic) -> TopicPartition {
    TopicPartition { topic: Arc::from(topic.name.as_str()), partition: 0 }
}

#[track_caller]
pub fn look(topic: &Topic, range: Offsets) -> Look {
    look_again(&kafka(topic), &at(topic), range, Instant::now() + LIMIT).expect("Kafka answers")
}

fn ranges(of: &[(i64, i64)]) -> Vec<Offsets> {
    of.iter().map(|r| r.0..r.1).collect()
}

/// Of F44.
#[test]
fn a_second_look_tells_readable_records_from_aborted_ones_and_from_markers() {
    let topic = Topic::new(1);
    topic.write(0, ids("a", 0..5)); // 0..5
    topic.write_in_transaction(0, ids("b", 0..7), false); // 5..12, marker 12
    topic.write_in_transaction(0, ids("c", 0..2), true); // 13..15, marker 15
    topic.write(0, ids("d", 0..1)); // 16
    topic.write_in_transaction(0, ids("e", 0..3), false); // 17..20, marker 20
    let expected = Look {
        readable: ranges(&[(0, 5), (13, 15), (16, 17)]),
        aborted: ranges(&[(5, 12), (17, 20)]),
        absent: ranges(&[(12, 13), (15, 16), (20, 21)]),
        gone: Vec::new(),
        compacted: Some(false),
    };
    assert_eq!(look(&topic, 0..21), expected);
    assert_eq!(look(&topic, 6..16).aborted, ranges(&[(6, 12)]));
    assert_eq!(look(&topic, 7..7), Look { compacted: Some(false), ..Look::default() });
    // What lies behind the end cannot be looked at: that is said, and not taken for a hole.
    assert!(look_again(&kafka(&topic), &at(&topic), 0..22, Instant::now() + LIMIT).is_err());

    Admin::of(&bootstrap()).delete_records(&topic.name, 0, 8);
    let after = look(&topic, 0..21);
    assert_eq!((after.gone, after.aborted), (ranges(&[(0, 8)]), ranges(&[(8, 12), (17, 20)])));
    assert_eq!(look(&topic, 0..4).gone, ranges(&[(0, 4)]));
}

/// Of F44.
#[test]
fn a_second_look_at_a_compacted_topic_says_so() {
    let topic = Topic::on(&bootstrap(), 1, &["cleanup.policy=compact,delete"]);
    topic.write(0, ids("a", 0..3));
    let found = look(&topic, 0..3);
    assert_eq!((found.readable, found.compacted), (ranges(&[(0, 3)]), Some(true)));
}

#[test]
fn reading_apart_brings_records_in_pieces_from_an_offset_to_the_end_and_leaves_the_group_alone() {
    let topic = Topic::new(1);
    topic.write(0, ids("a", 0..900));
    topic.write_in_transaction(0, ids("b", 0..3), false);
    let mut apart = Apart::open(&kafka(&topic)).expect("the settings are good");
    apart.begin(&at(&topic), 100).expect("it begins");
    let mut read = Vec::new();
    let mut pieces = Vec::new();
    let ended = loop {
        let chunk = apart.read(300, 1 << 20, Instant::now() + LIMIT).expect("Kafka answers");
        pieces.push((chunk.records.len(), chunk.next));
        read.extend(chunk.records.into_iter().map(|record| record.offset));
        if chunk.ended != Ended::Full {
            break chunk.ended;
        }
    };
    assert_eq!(ended, Ended::EndOfLog);
    assert_eq!(read, (100..900).collect::<Vec<i64>>());
    // Behind the aborted records and their marker.
    assert_eq!(pieces, [(300, 400), (300, 700), (200, 904)]);

    // The same client at another place, then outside of the log.
    apart.begin(&at(&topic), 890).expect("it begins");
    let chunk = apart.read(300, 1 << 20, Instant::now() + LIMIT).expect("Kafka answers");
    assert_eq!((chunk.records.len(), chunk.next, chunk.ended), (10, 904, Ended::EndOfLog));
    apart.begin(&at(&topic), 1_000).expect("it begins");
    let chunk = apart.read(300, 1 << 20, Instant::now() + LIMIT).expect("Kafka answers");
    assert!(matches!(chunk.ended, Ended::PositionLost(_)) && chunk.records.is_empty(), "{:?}", chunk.ended);
    assert!(!Admin::of(&bootstrap()).knows_group(&kafka(&topic).group), "it must join and commit nothing");
}
