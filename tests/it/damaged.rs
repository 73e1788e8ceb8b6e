//! A batch that is damaged on the broker's disk: an alarm, its partition waits, the others go on.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::lost::{every_offset_is_in_one_place, gaps};
use crate::rig::{Admin, Broker, Ledger, Relay, Topic, eventually, ids, throughout};

/// Every batch is a segment.
const SEGMENTS: [&str; 1] = ["segment.ms=1"];

/// Flips a bit in the middle of a segment's only batch.
fn flip(segment: &Path) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(segment).expect("a segment");
    let middle = file.metadata().expect("its length").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x10], middle).expect("written");
}

/// F43 on this broker, plain and compressed.
fn damage_is_contained(broker: &Broker) {
    for gzip in [false, true] {
        let (topic, ledger) = (Topic::on(&broker.address, 3, &SEGMENTS), Ledger::start());
        let write = |partition, ids| if gzip { topic.write_gzip(partition, ids) } else { topic.write(partition, ids) };
        let pieces = |stem: &str| ["a", "b", "c"].map(|part| ids(&format!("{stem}{part}"), 0..50));
        let [a, damaged, c] = pieces("damaged-").map(|ids| write(0, ids));
        let mut expected = vec![a];
        for partition in [1, 2] {
            expected.extend(pieces(&format!("p{partition}-")).map(|ids| write(partition, ids)));
        }
        broker.stop();
        flip(&broker.segments(&topic.name, 0)[1]);
        broker.up();

        let mut relay = Relay::new(&topic.name, &ledger.url(), "");
        relay.set(&format!("kafka.brokers=[\"{}\"]", broker.address));
        relay.start();
        eventually("what is sound is delivered", || ledger.count("accepted") as usize == expected.concat().len());
        let stalled = || relay.metric("stalled{reason=\"partition\"}");
        eventually("the partition is named", || stalled() == Some(1.0));
        let named = format!("{}/0 at offset 50", topic.name);
        eventually("the words name it", || relay.http("/readyz").is_some_and(|words| words.contains(&named)));
        assert!(relay.log().contains("this partition waits, the others go on"), "{}", relay.log());
        // A restart comes to the same.
        assert!(relay.stop().success());
        relay.start();
        expected.push(write(1, ids("later", 0..50)));
        eventually("the others go on", || ledger.count("accepted") as usize == expected.concat().len());
        eventually("it is named again", || relay.http("/readyz").is_some_and(|words| words.contains(&named)));
        throughout(std::time::Duration::from_secs(2), "nothing is passed over", || gaps(&relay).is_empty());
        ledger.has_exactly(&expected.concat());

        // Given up by a person.
        Admin::of(&broker.address).delete_records(&topic.name, 0, 100);
        expected.extend([c, write(0, ids("end", 0..5))]);
        eventually("the rest is delivered", || ledger.count("accepted") as usize == expected.concat().len());
        eventually("nothing waits", || relay.metric("stalled{reason=\"partition\"}") == Some(0.0));
        eventually("all is settled", || relay.count("select count(*) from delivery") == 0);
        ledger.has_exactly(&expected.concat());
        assert!(!ledger.accepted().iter().any(|id| damaged.contains(id)));
        assert_eq!(gaps(&relay), [(0, 0, 50, 100, "retention".to_owned())]);
        every_offset_is_in_one_place(&relay);
        // It is read with the others again.
        let last = write(0, ids("last", 0..5));
        eventually("the last is delivered", || ledger.accepted().contains(&last[4]));
    }
}

/// F43.
#[test]
fn a_batch_damaged_on_disk_stops_its_partition_alone_until_it_is_given_up() {
    damage_is_contained(&Broker::start());
}

/// F43 on an older broker.
#[test]
#[ignore = "takes minutes: make test-long"]
fn a_batch_damaged_on_disk_stops_its_partition_alone_on_kafka_3_9() {
    damage_is_contained(&Broker::with(&["--version", "3.9.2"]));
}
