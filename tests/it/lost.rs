//! Positions that have left their log: nothing is passed over silently, and everything that can still be read is delivered.

use crate::rig::{Admin, Broker, Ledger, Relay, Topic, bootstrap, eventually, ids};

/// Soon enough for a test: new partitions, deleted topics.
const REFRESH: &str = "[kafka.librdkafka]\n\"topic.metadata.refresh.interval.ms\" = \"1000\"\n";

/// Every offset of every log that was read, from where reading began, is in exactly one place.
#[track_caller]
pub fn every_offset_is_in_one_place(relay: &Relay) {
    let off = relay
        .sql()
        .query(
            "select l.topic, l.partition, l.incarnation, coalesce(l.end_offset, p.next_offset) - l.first_offset as offsets,
               (select count(*) from tx x join topic t on t.id = x.topic_id
                where t.name = l.topic and x.partition = l.partition and x.incarnation = l.incarnation)
               + (select count(*) from duplicate d
                  where d.topic = l.topic and d.partition = l.partition and d.incarnation = l.incarnation)
               + (select count(*) from rejected r
                  where r.topic = l.topic and r.partition = l.partition and r.incarnation = l.incarnation)
               + (select coalesce(sum(upper(r) - lower(r)), 0) from skipped s, unnest(s.offsets) r
                  where s.topic = l.topic and s.partition = l.partition and s.incarnation = l.incarnation)::bigint
               + (select coalesce(sum(to_offset - from_offset), 0) from known_gap g
                  where g.topic = l.topic and g.partition = l.partition and g.incarnation = l.incarnation
                    and g.reason in ('retention', 'unexplained'))::bigint as places
             from life l join consumer_position p using (topic, partition)",
            &[],
        )
        .expect("the tables are there");
    assert!(!off.is_empty());
    for row in off {
        let (topic, partition, incarnation, offsets, places): (String, i32, i16, i64, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
        assert_eq!(offsets, places, "life {incarnation} of {topic}/{partition}: offsets read, and places that hold one");
    }
}

/// Partition, incarnation, from, to, reason.
pub fn gaps(relay: &Relay) -> Vec<(i32, i16, i64, i64, String)> {
    let rows = relay
        .sql()
        .query(
            "select partition, incarnation, from_offset, to_offset, reason from known_gap order by noticed_at, from_offset",
            &[],
        )
        .expect("the table is there");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))).collect()
}

#[track_caller]
fn delivered(relay: &Relay, ledger: &Ledger, expected: &[Vec<String>]) {
    let expected: Vec<String> = expected.concat();
    let n = expected.len();
    eventually(&format!("{n} are delivered"), || ledger.count("accepted") as usize >= n);
    ledger.has_exactly(&expected);
    eventually("all is settled", || relay.count("select count(*) from delivery") == 0);
    every_offset_is_in_one_place(relay);
}

fn stalled(relay: &Relay, reason: &str) -> bool {
    relay.metric(&format!("stalled{{reason=\"{reason}\"}}")) == Some(1.0)
}

fn stop_when_lost(relay: &mut Relay) {
    relay.edit(|file| file.replace("[kafka]\n", "[kafka]\non_lost_position = \"stop\"\n"));
}

/// By a reload, as a person does it.
#[track_caller]
fn goes_on_when_told(relay: &mut Relay, gaps_before: usize, words: &str) {
    eventually("the partition waits", || stalled(relay, "partition"));
    let waits = "this partition is not read until it is";
    eventually(words, || relay.log().lines().any(|line| line.contains(words) && line.contains(waits)));
    assert_eq!(gaps(relay).len(), gaps_before, "nothing is moved before a person says so");
    relay.edit(|file| file.replace("on_lost_position = \"stop\"\n", "on_lost_position = \"continue\"\n"));
    relay.signal("HUP");
    eventually("it goes on", || !stalled(relay, "partition") && gaps(relay).len() > gaps_before);
}

/// F39, at a start.
#[test]
fn what_retention_took_while_txrelay_was_down_is_a_recorded_gap_and_all_that_is_left_is_delivered() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    let before = topic.write(0, ids("a", 0..10));
    relay.start();
    delivered(&relay, &ledger, std::slice::from_ref(&before));
    assert!(relay.stop().success());
    topic.write(0, ids("lost", 0..15));
    let after = topic.write(0, ids("b", 0..5));
    Admin::of(&bootstrap()).delete_records(&topic.name, 0, 25);
    relay.start();
    delivered(&relay, &ledger, &[before, after]);
    assert_eq!(gaps(&relay), [(0, 0, 10, 25, "retention".to_owned())]);
    let series = format!("gap_records_total{{reason=\"retention\",topic=\"{}\"}}", topic.name);
    assert_eq!(relay.metric(&series), Some(15.0));
    assert!(relay.log().contains("position 10 has left the log (retention): the gap is recorded in known_gap"));
}

/// F39, while it runs: between two fetches the log's start passes the position.
#[test]
fn what_retention_takes_from_under_a_running_reader_is_a_recorded_gap() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    let before = topic.write(0, ids("a", 0..10));
    relay.start();
    delivered(&relay, &ledger, std::slice::from_ref(&before));
    relay.signal("STOP");
    // The fetch that is under way waits 0.1 s at the broker (fetch.wait.max.ms), and would bring them all.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let lost = topic.write(0, ids("lost", 0..30));
    let after = topic.write(0, ids("b", 0..5));
    Admin::of(&bootstrap()).delete_records(&topic.name, 0, 40);
    relay.signal("CONT");
    eventually("the last is delivered", || ledger.accepted().contains(&after[4]));
    // A fetch that was under way may have brought some of them.
    let gaps = gaps(&relay);
    assert!(gaps.len() == 1 && (gaps[0].3, gaps[0].4.as_str()) == (40, "retention"), "{gaps:?}");
    let read = (gaps[0].2 - 10) as usize;
    delivered(&relay, &ledger, &[before, lost[..read].to_vec(), after]);
}

/// F39 and F40 with `on_lost_position = "stop"`.
#[test]
fn with_stop_a_lost_position_waits_for_a_person_and_then_goes_on() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    let admin = Admin::of(&bootstrap());
    let a = topic.write(0, ids("a", 0..10));
    relay.start();
    delivered(&relay, &ledger, std::slice::from_ref(&a));
    assert!(relay.stop().success());

    topic.write(0, ids("lost", 0..5));
    let b = topic.write(0, ids("b", 0..5));
    admin.delete_records(&topic.name, 0, 15);
    stop_when_lost(&mut relay);
    relay.start();
    goes_on_when_told(&mut relay, 0, "position 10 has left the log (retention)");
    delivered(&relay, &ledger, &[a.clone(), b.clone()]);
    assert!(relay.stop().success());

    topic.delete();
    topic.create(1, &[]);
    let c = topic.write(0, ids("c", 0..30));
    relay.edit(|file| file.replace("on_lost_position = \"continue\"\n", "on_lost_position = \"stop\"\n"));
    relay.start();
    goes_on_when_told(&mut relay, 1, "position 20 has left the log (recreated)");
    delivered(&relay, &ledger, &[a, b, c]);
}

/// F40, at a start: the new log has long grown past the old position.
#[test]
fn a_topic_that_was_made_again_while_txrelay_was_down_is_read_from_its_first_record() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    let old = topic.write(0, ids("old", 0..10));
    relay.start();
    delivered(&relay, &ledger, std::slice::from_ref(&old));
    assert!(relay.stop().success());
    topic.delete();
    topic.create(2, &[]);
    topic.write(0, ids("gone", 0..3));
    let new = topic.write(0, ids("new", 0..30));
    let other = topic.write(1, ids("other", 0..5));
    // Of the new log, too, what retention takes before it is read is named.
    Admin::of(&bootstrap()).delete_records(&topic.name, 0, 3);
    relay.start();
    delivered(&relay, &ledger, &[old, new, other]);
    let expected = [(0, 0, 10, 10, "recreated"), (0, 1, 0, 3, "retention"), (1, 0, 0, 0, "recreated")];
    let mut found = gaps(&relay);
    found.sort();
    assert_eq!(found, expected.map(|(p, i, from, to, why)| (p, i, from, to, why.to_owned())));
    assert_eq!(relay.count("select count(*) from life where end_offset is null and incarnation = 1"), 2);
}

/// F40, while it runs.
#[test]
fn a_topic_that_is_made_again_under_a_running_reader_is_read_from_its_first_record() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), REFRESH);
    let old = topic.write(0, ids("old", 0..10));
    relay.start();
    delivered(&relay, &ledger, std::slice::from_ref(&old));
    topic.delete();
    topic.create(1, &[]);
    let new = topic.write(0, ids("new", 0..30));
    delivered(&relay, &ledger, &[old, new]);
    assert_eq!(relay.count("select count(*) from known_gap where reason = 'recreated'"), 1);
}

/// Of F40: a name that leads to another cluster. Where brokers have no topic ids, only the cluster's tells.
#[test]
fn another_cluster_under_the_same_name_is_read_from_its_first_record() {
    let (topic, ledger, other) = (Topic::new(1), Ledger::start(), Broker::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    let here = topic.write(0, ids("here", 0..10));
    relay.start();
    delivered(&relay, &ledger, std::slice::from_ref(&here));
    assert!(relay.stop().success());
    let there = topic.twin(&other.address);
    let new = there.write(0, ids("there", 0..30));
    assert_eq!(relay.sql().execute("update consumer_position set topic_id = null", &[]).unwrap(), 1);
    relay.set(&format!("kafka.brokers=[\"{}\"]", other.address));
    stop_when_lost(&mut relay);
    relay.start();
    goes_on_when_told(&mut relay, 0, "position 10 has left the log (recreated)");
    delivered(&relay, &ledger, &[here, new]);
    assert_eq!(relay.count("select count(distinct cluster_id) from life"), 2);
}

/// A log that was cut, by an unclean election or a restored disk, and that has grown beyond the position again before it was
/// looked at a second time: what was written since lies below the position.
#[test]
fn what_is_written_to_a_log_that_was_cut_is_delivered() {
    let broker = Broker::start();
    let (topic, ledger) = (Topic::on(&broker.address, 1, &[]), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.set(&format!("kafka.brokers=[\"{}\"]", broker.address));
    relay.env("FAILPOINTS", "believe-truncation=return(1500)");
    stop_when_lost(&mut relay);
    let first = topic.write(0, ids("a", 0..10));
    let log = broker.segments(&topic.name, 0).remove(0);
    let length = std::fs::metadata(&log).unwrap().len();
    let second = topic.write(0, ids("b", 0..20));
    relay.start();
    delivered(&relay, &ledger, &[first.clone(), second.clone()]);

    broker.kill_9();
    std::fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(length).unwrap();
    for index in ["index", "timeindex"] {
        std::fs::remove_file(log.with_extension(index)).unwrap();
    }
    broker.up();
    assert_eq!(Admin::of(&broker.address).ends(&topic.name, 0), (0, 10));
    eventually("it is seen", || stalled(&relay, "partition"));
    // 10..35: beyond the old position.
    let new = topic.write(0, ids("c", 0..25));
    goes_on_when_told(&mut relay, 0, "position 30 has left the log (truncated)");
    delivered(&relay, &ledger, &[first, second, new]);
    assert_eq!(gaps(&relay), [(0, 0, 10, 30, "truncated".to_owned())]);
}

/// The position is PostgreSQL's.
#[test]
fn a_consumer_group_that_kafka_has_forgotten_changes_nothing() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "[kafka.librdkafka]\n\"session.timeout.ms\" = \"6000\"\n");
    let before = topic.write(0, ids("a", 0..10));
    relay.start();
    delivered(&relay, &ledger, std::slice::from_ref(&before));
    assert!(relay.stop().success());
    Admin::of(&bootstrap()).delete_group(&format!("txrelay-{}", relay.name));
    let after = topic.write(0, ids("b", 0..10));
    relay.start();
    delivered(&relay, &ledger, &[before, after]);
    assert_eq!((ledger.count("accepted_twice"), gaps(&relay)), (0, vec![]));
}

/// F41.
#[test]
fn partitions_that_are_added_while_it_runs_are_read_from_their_first_record() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), &format!("{REFRESH}\"session.timeout.ms\" = \"6000\"\n"));
    let admin = Admin::of(&bootstrap());
    let a = topic.write(0, ids("a", 0..10));
    relay.start();
    delivered(&relay, &ledger, std::slice::from_ref(&a));
    admin.add_partitions(&topic.name, 3);
    let grown = Topic::existing(&topic.name);
    let b = grown.write(1, ids("b", 0..10));
    let c = grown.write(2, ids("c", 0..10));
    delivered(&relay, &ledger, &[a.clone(), b.clone(), c.clone()]);
    assert_eq!(gaps(&relay), []);

    // One that appears while txrelay is down for a moment, and has lost records before it is ever seen. Kafka gives a member
    // that is back within its session what it had.
    assert!(relay.stop().success());
    relay.env("FAILPOINTS", "unassigned=return(1)");
    admin.add_partitions(&topic.name, 4);
    let grown = Topic::existing(&topic.name);
    grown.write(3, ids("lost", 0..6));
    let d = grown.write(3, ids("d", 0..4));
    admin.delete_records(&topic.name, 3, 6);
    relay.start();
    delivered(&relay, &ledger, &[a, b, c, d]);
    assert_eq!(gaps(&relay), [(3, 0, 0, 6, "retention".to_owned())]);
}

#[test]
fn a_topic_that_keeps_records_longer_than_txrelay_keeps_their_ids_is_warned_of_once() {
    let ledger = Ledger::start();
    let words = "delivered as a new transaction";
    for (settings, warned) in [(&["retention.ms=864000000"][..], 1), (&["retention.ms=3600000"], 0), (&["retention.ms=-1"], 1)] {
        let topic = Topic::on(&bootstrap(), 2, settings);
        let mut relay = Relay::new(&topic.name, &ledger.url(), "[retention]\ndelivered = \"7d\"\n");
        relay.start();
        eventually("it reads", || relay.partitions() == 2);
        assert_eq!(relay.log().matches(words).count(), warned, "{settings:?}: {}", relay.log());
    }
}
