//! Faults of brokers and of the group: reading goes on by itself, nothing is lost, nothing is sent twice.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::lost::{every_offset_is_in_one_place, gaps};
use crate::rig::{Admin, Broker, LIMIT, Ledger, Proxy, Relay, Topic, bootstrap, eventually, ids, postgres_url, throughout};

#[track_caller]
fn delivered_once(relay: &Relay, ledger: &Ledger, expected: &[String]) {
    eventually("all are delivered", || ledger.count("accepted") as usize >= expected.len());
    ledger.has_exactly(expected);
    eventually("all is settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!((ledger.count("accepted_twice"), gaps(relay)), (0, vec![]));
    every_offset_is_in_one_place(relay);
}

fn on(brokers: &str, topic: &Topic, ledger: &Ledger) -> Relay {
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.set(&format!("kafka.brokers=[\"{brokers}\"]"));
    relay
}

/// librdkafka's thread of a lost broker is busy for a moment now and then (0.11 and 0.38 of a core in two of seventy
/// outages); a loop that never waits is busy in every window.
#[track_caller]
fn waits_without_haste(relay: &Relay) {
    let mut shares = Vec::new();
    while shares.last().is_none_or(|share| *share >= 0.1) {
        assert!(shares.len() < 3, "so much of a core while there is nothing to do: {shares:.2?}");
        let (began, before) = (Instant::now(), relay.cpu());
        std::thread::sleep(Duration::from_secs(2));
        shares.push((relay.cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64());
    }
    println!("{shares:.2?} of a core while the broker is away");
}

/// F35.
#[test]
fn a_broker_that_is_killed_and_comes_back_is_read_on_without_a_restart_and_waited_for_without_haste() {
    let broker = Broker::start();
    let (topic, ledger) = (Topic::on(&broker.address, 3, &[]), Ledger::start());
    let mut relay = on(&broker.address, &topic, &ledger);
    relay.start();
    let mut sent = topic.write(0, ids("a", 0..100));
    delivered_once(&relay, &ledger, &sent);
    let pid = relay.pid();
    for (round, kill) in [Broker::kill_9 as fn(&Broker), Broker::stop].into_iter().enumerate() {
        kill(&broker);
        eventually("it is noticed", || relay.metric("stalled{reason=\"kafka\"}") == Some(1.0));
        waits_without_haste(&relay);
        broker.up();
        sent.extend(topic.write(1, ids(&format!("b{round}"), 0..100)));
        delivered_once(&relay, &ledger, &sent);
        eventually("all is well", || relay.metric("stalled{reason=\"kafka\"}") == Some(0.0));
    }
    assert_eq!(relay.pid(), pid);
    assert!(relay.is_running());
}

/// F35.
#[test]
#[ignore = "takes minutes: make test-long"]
fn a_broker_that_stands_still_for_a_minute_is_read_on_without_a_restart() {
    let broker = Broker::start();
    let (topic, ledger) = (Topic::on(&broker.address, 3, &[]), Ledger::start());
    let mut relay = on(&broker.address, &topic, &ledger);
    relay.start();
    let mut sent = topic.write(0, ids("a", 0..100));
    delivered_once(&relay, &ledger, &sent);
    broker.freeze();
    throughout(Duration::from_secs(60), "metrics are there", || relay.metric("kafka_up").is_some());
    broker.thaw();
    sent.extend(topic.write(1, ids("b", 0..100)));
    delivered_once(&relay, &ledger, &sent);
    assert!(relay.is_running());
}

/// F36: leaders and the coordinator move as brokers stop, die and come back.
#[test]
#[ignore = "takes minutes: make test-long"]
fn leaders_and_coordinators_that_move_leave_no_gap_and_nothing_comes_twice() {
    let three = ["--set", "offsets.topic.replication.factor=3", "--set", "default.replication.factor=3"];
    let first = Broker::with(&three);
    let others = [first.joined_by(), first.joined_by()];
    let topic = Topic::replicated(&first.address, 6, 3);
    let ledger = Ledger::start();
    let mut relay = on(&first.address, &topic, &ledger);
    relay.start();
    let mut sent = Vec::new();
    let mut write = |round: &str| {
        for partition in 0..6 {
            sent.extend(topic.write(partition, ids(&format!("{round}-{partition}"), 0..50)));
        }
        delivered_once(&relay, &ledger, &sent);
    };
    write("before");
    for (n, broker) in others.iter().enumerate() {
        for kill in [Broker::stop as fn(&Broker), Broker::kill_9] {
            kill(broker);
            write(&format!("without-{n}-{kill:p}"));
            broker.up();
            write(&format!("with-{n}-{kill:p}"));
        }
        broker.freeze();
        write(&format!("frozen-{n}"));
        broker.thaw();
        write(&format!("thawed-{n}"));
    }
    assert!(relay.is_running());
}

/// A partition that nobody has ever read and that has no leader, in another process's hands: this one took it for nobody's, and left the
/// group every two minutes.
#[test]
#[ignore = "takes minutes: make test-long"]
fn a_partition_without_a_leader_is_somebodys_and_the_others_are_read_without_a_break() {
    let broker = Broker::start();
    let (topic, ledger) = (Topic::on(&broker.address, 1, &[]), Ledger::start());
    let mut relay = on(&broker.address, &topic, &ledger);
    relay.set("log.level=\"debug\"");
    relay.start();
    let mut sent = topic.write(0, ids("a", 0..10));
    delivered_once(&relay, &ledger, &sent);
    assert!(relay.stop().success());
    // The group's coordinator is the first, by now.
    let second = broker.joined_by();
    Admin::of(&broker.address).add_partition_on(&topic.name, 2, 2);
    let lonely = topic.grown().write(1, ids("lonely", 0..10));
    second.stop();

    relay.env("FAILPOINTS", "unassigned=return(1000)");
    let mut twin = relay.twin();
    relay.start();
    twin.start();
    let waits = |relay: &Relay| relay.log().contains("1 partitions have no leader");
    let reads = |relay: &Relay| relay.partitions() == 1;
    eventually("each has one of them", || (waits(&relay) && reads(&twin)) || (waits(&twin) && reads(&relay)));
    eventually("it is somebody's", || relay.count("select count(*) from consumer_position") == 2);
    let rejoins = || [&relay, &twin].map(|relay| relay.log().matches("are nobody's").count());
    let before = rejoins();
    // Both compare the topics every ten seconds while something is missing, and once a minute otherwise.
    throughout(Duration::from_secs(75), "nobody leaves the group", || rejoins() == before);
    sent.extend(topic.write(0, ids("b", 0..10)));
    delivered_once(&relay, &ledger, &sent);
    second.up();
    sent.extend(lonely);
    delivered_once(&relay, &ledger, &sent);
    assert_eq!(relay.count("select count(*) from known_gap"), 0);
    assert_eq!((relay.stop().code(), twin.stop().code()), (Some(0), Some(0)));
}

/// More partitions than can be asked for their logs in one go: each round began after a longer pause than the one before, and nobody
/// said what was waited for.
#[test]
fn partitions_that_are_too_many_for_one_round_are_read_without_growing_pauses_and_waited_for_in_words() {
    const N: i32 = 24;
    let (topic, ledger) = (Topic::new(N), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    // Each round asks for one or two: 5 ms after it has begun, nobody is asked any more.
    relay.env("FAILPOINTS", "ends=return(3000);ends-least=return(2995);parked=return(50)");
    let sent: Vec<String> = (0..N).flat_map(|partition| topic.write(partition, ids(&format!("p{partition}"), 0..2))).collect();
    relay.start();
    eventually("it is said", || {
        relay.http("/readyz").is_some_and(|text| text.contains("partitions are still to be asked for the ends of their logs"))
    });
    eventually("all are read", || relay.partitions() == N as usize);
    delivered_once(&relay, &ledger, &sent);
    eventually("nothing is waited for", || relay.metric("stalled{reason=\"kafka\"}") == Some(0.0));
}

/// What the group has committed of partition 0.
fn committed(brokers: &str, relay: &Relay, topic: &str) -> Result<Option<i64>, String> {
    let group = format!("txrelay-{}", relay.name);
    let mut config = ClientConfig::new();
    let consumer: BaseConsumer = config.set("bootstrap.servers", brokers).set("group.id", group).create().expect("a client");
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, 0);
    let found = consumer.committed_offsets(list, LIMIT).map_err(|error| error.to_string())?;
    match found.elements()[0].offset() {
        Offset::Offset(offset) => Ok(Some(offset)),
        _ => Ok(None),
    }
}

/// F38: the broker refuses every commit, because what it would store is too large.
#[test]
fn offsets_that_kafka_never_takes_change_nothing_because_the_position_is_postgresqls() {
    let broker = Broker::start();
    let (topic, ledger, admin) = (Topic::on(&broker.address, 1, &[]), Ledger::start(), Admin::of(&broker.address));
    let mut relay = on(&broker.address, &topic, &ledger);
    relay.start();
    eventually("it reads", || relay.partitions() == 1);
    let compact = ("cleanup.policy", "compact");
    admin.settings("__consumer_offsets", &[compact, ("max.message.bytes", "10")]);
    let mut sent = topic.write(0, ids("a", 0..100));
    delivered_once(&relay, &ledger, &sent);
    sent.extend(topic.write(0, ids("b", 0..100)));
    delivered_once(&relay, &ledger, &sent);
    // Two commits' time, and it still reads.
    std::thread::sleep(Duration::from_secs(2));
    sent.extend(topic.write(0, ids("c", 0..100)));
    delivered_once(&relay, &ledger, &sent);
    assert_eq!(relay.count("select next_offset from consumer_position"), 300);
    relay.kill_9();
    admin.settings("__consumer_offsets", &[compact]);
    eventually("the coordinator is well", || committed(&broker.address, &relay, &topic.name).is_ok());
    assert_eq!(committed(&broker.address, &relay, &topic.name), Ok(None), "Kafka took an offset, so this showed nothing");
    sent.extend(topic.write(0, ids("d", 0..100)));
    relay.start();
    delivered_once(&relay, &ledger, &sent);
    assert_eq!(ledger.count("requests"), 400, "a restart reads on at PostgreSQL's position");
}

/// F37: the group gives its partition away while it has a batch in hand that PostgreSQL does not answer for.
#[test]
fn a_process_that_lost_its_partitions_in_the_middle_of_a_batch_stores_and_commits_nothing_of_it() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let (mut proxy, through) = Proxy::postgres();
    let quick = "[kafka.librdkafka]\n\"session.timeout.ms\" = \"6000\"\n";
    let mut one = Relay::with(&topic.name, &ledger.url(), &through, quick);
    one.start();
    let mut sent = topic.write(0, ids("a", 0..100));
    delivered_once(&one, &ledger, &sent);
    let mut other = one.twin();
    other.edit(|file| file.replace(&through, &postgres_url()));
    proxy.tell("hold");
    sent.extend(topic.write(0, ids("b", 0..100)));
    // It has the batch in hand, and hears nothing.
    let waits = |words: &str| words.contains("PostgreSQL has owed consumer an answer");
    eventually("it waits for PostgreSQL", || one.http("/readyz").is_some_and(|words| waits(&words)));
    one.signal("STOP");
    other.start();
    eventually("the other has taken over", || other.partitions() == 1);
    delivered_once(&other, &ledger, &sent);
    proxy.tell("pass");
    one.signal("CONT");
    eventually("the first one starts over", || one.log().contains("reading starts over from the positions in PostgreSQL"));
    sent.extend(topic.write(0, ids("c", 0..100)));
    delivered_once(&other, &ledger, &sent);
    let position = other.count("select next_offset from consumer_position");
    let in_kafka = || committed(&bootstrap(), &other, &topic.name).expect("Kafka answers");
    eventually("only what is stored is committed", || {
        assert!(in_kafka().is_none_or(|offset| offset <= position), "{:?}, and {position} are stored", in_kafka());
        in_kafka() == Some(position)
    });
    assert!(one.is_running() && other.is_running());
}
