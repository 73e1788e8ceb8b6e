//! Several instances of a pipeline that come and go, and all brokers of a cluster one after the other, under a steady load. These
//! take minutes.

use std::time::{Duration, Instant};

use super::kafka_client::kafka_3_9;
use crate::rig::{Admin, Broker, Ledger, Load, Relay, Topic, eventually, ids, throughout};

const PARTITIONS: usize = 12;

/// The consumer group's and the broker's own; see `source/librdkafka/settings.rs`.
const SESSION: Duration = Duration::from_secs(10);

/// How many partitions each of them reads now.
fn shares(relays: &[&Relay]) -> Vec<usize> {
    relays.iter().map(|relay| relay.partitions()).collect()
}

/// As even as can be.
#[track_caller]
fn share_fairly(what: &str, relays: &[&Relay]) {
    let (least, most) = (PARTITIONS / relays.len(), PARTITIONS.div_ceil(relays.len()));
    let began = Instant::now();
    eventually(what, || {
        let shares = shares(relays);
        shares.iter().sum::<usize>() == PARTITIONS && shares.iter().all(|share| (least..=most).contains(share))
    });
    println!("{what}: {:?} after {:.1} s", shares(relays), began.elapsed().as_secs_f64());
}

/// PostgreSQL's clock, in seconds.
fn now(relay: &Relay) -> f64 {
    relay.sql().query_one("select extract(epoch from clock_timestamp())::float8", &[]).expect("a time").get(0)
}

/// The longest that a record which was written since then has waited to be stored.
fn longest_wait(relay: &Relay, since: f64) -> Duration {
    let query =
        "select coalesce(max(extract(epoch from received_at - record_at)), 0)::float8 from tx where record_at > to_timestamp($1)";
    Duration::from_secs_f64(relay.sql().query_one(query, &[&since]).expect("a number").get::<_, f64>(0).max(0.0))
}

/// The longest time in which nothing was stored, then or since. For the client that gives no record times.
fn longest_silence(relay: &Relay, since: f64) -> Duration {
    let query = "select coalesce(max(extract(epoch from d)), 0)::float8 from (select received_at - lag(received_at, 1, to_timestamp($1)) over (order by received_at) as d \
                 from tx where received_at > to_timestamp($1)) gaps";
    Duration::from_secs_f64(relay.sql().query_one(query, &[&since]).expect("a number").get(0))
}

/// Stored once, each of them, and delivered.
#[track_caller]
fn all_arrived(relay: &Relay, ledger: &Ledger, sent: &[String]) {
    let n = sent.len() as i64;
    eventually("all are stored", || relay.count("select count(*) from tx") == n);
    eventually("all are delivered", || ledger.count("accepted") == n as u64);
    eventually("all is settled", || relay.count("select count(*) from delivery") == 0);
    ledger.has_exactly(sent);
    assert_eq!(relay.count("select (select count(*) from duplicate) + (select count(*) from rejected)"), 0, "stored twice");
    relay.balanced();
    println!("{n} records, {} requests, {} accepted twice", ledger.count("requests"), ledger.count("accepted_twice"));
}

/// One joins, one stops, one is killed, one is frozen for a minute: the group shares the partitions out anew each time.
#[test]
#[ignore = "takes minutes: make test-long"]
fn three_instances_share_twelve_partitions_whoever_comes_goes_dies_or_freezes() {
    let (topic, ledger) = (Topic::new(PARTITIONS as i32), Ledger::start());
    let mut one = Relay::new(&topic.name, &ledger.url(), "");
    let (mut two, mut three) = (one.twin(), one.twin());
    one.start();
    two.start();
    share_fairly("two share", &[&one, &two]);
    let load = Load::start(&topic.name, "a", 100);
    // A rebalance, or what a member that has gone without a word leaves unread: its session, and a rebalance. Twice the longer one
    // for each of them, because the machine is loaded.
    const BOUND: Duration = SESSION.saturating_mul(2);
    let phase = |relay: &Relay, what: &str, began: f64| {
        // What waited is stored by now.
        std::thread::sleep(Duration::from_secs(3));
        let wait = longest_wait(relay, began);
        println!("{what}: nobody waited longer than {:.1} s", wait.as_secs_f64());
        assert!(wait < BOUND, "{what}: {wait:?}");
    };

    let mut began = now(&one);
    three.start();
    share_fairly("one has joined", &[&one, &two, &three]);
    phase(&one, "one joins", began);

    began = now(&one);
    assert!(three.stop().success());
    share_fairly("one has stopped", &[&one, &two]);
    phase(&one, "one stops", began);

    began = now(&one);
    three.start();
    share_fairly("it is back", &[&one, &two, &three]);
    phase(&one, "it comes back", began);

    began = now(&one);
    three.kill_9();
    share_fairly("one was killed", &[&one, &two]);
    phase(&one, "one is killed", began);
    three.start();
    share_fairly("it is back", &[&one, &two, &three]);

    began = now(&one);
    two.kill_9();
    two.start();
    eventually("it has its partitions again", || two.partitions() == PARTITIONS / 3);
    phase(&one, "one is killed and started again at once", began);

    began = now(&two);
    one.signal("STOP");
    let frozen = Instant::now();
    share_fairly("one was frozen", &[&two, &three]);
    phase(&two, "one is frozen", began);
    std::thread::sleep(Duration::from_secs(60).saturating_sub(frozen.elapsed()));
    began = now(&two);
    one.signal("CONT");
    share_fairly("it has thawed", &[&one, &two, &three]);
    phase(&two, "it thaws", began);

    let sent = load.finish();
    all_arrived(&two, &ledger, &sent);
    assert!(one.is_running() && two.is_running() && three.is_running());
    // What the two that were killed and the frozen one had in hand; nothing else.
    assert!(ledger.count("accepted_twice") <= 3 * 64, "{}", ledger.count("accepted_twice"));
}

/// Who is written down as the reader of any partition.
fn readers(relay: &Relay) -> i64 {
    relay.count("select count(distinct owner) from consumer_position")
}

/// The client without a group: one reads all, and another takes over.
#[test]
#[ignore = "takes minutes: make test-long"]
fn three_instances_of_the_pure_rust_client_have_one_reader_whoever_stops_dies_or_freezes() {
    let (topic, ledger) = (Topic::on(&kafka_3_9().address, PARTITIONS as i32, &[]), Ledger::start());
    let mut first = Relay::new(&topic.name, &ledger.url(), "");
    for set in ["kafka.client=kafka", "postgres.lease=15s", "downstream.timeout=4s"] {
        first.set(set);
    }
    first.set(&format!("kafka.brokers={}", kafka_3_9().address));
    let mut all = vec![first];
    all.push(all[0].twin());
    all.push(all[0].twin());
    all[0].start();
    eventually("it reads", || all[0].partitions() == PARTITIONS);
    all[1].start();
    all[2].start();
    let load = Load::on(&kafka_3_9().address, &topic.name, "a", 100);
    // The one that reads, of those that answer.
    let reader = |all: &[Relay], but: &[usize]| {
        let mut found = None;
        eventually("one reads", || {
            let read: Vec<usize> = (0..3).filter(|n| !but.contains(n) && all[*n].partitions() == PARTITIONS).collect();
            found = read.first().copied();
            read.len() == 1
        });
        found.expect("it was found")
    };
    let never_two = |all: &[Relay], but: &[usize]| {
        throughout(Duration::from_secs(5), "one reader", || {
            let read = (0..3).filter(|n| !but.contains(n) && all[*n].partitions() > 0).count();
            read <= 1 && readers(&all[0]) == 1
        });
    };
    let phase = |all: &[Relay], what: &str, began: f64, bound: Duration| {
        let silence = longest_silence(&all[0], began);
        println!("{what}: nothing was read for {:.1} s", silence.as_secs_f64());
        assert!(silence < bound, "{what}: {silence:?}");
    };
    never_two(&all, &[]);

    let mut began = now(&all[0]);
    assert!(all[0].stop().success());
    let second = reader(&all, &[0]);
    all[0].start();
    never_two(&all, &[]);
    phase(&all, "the reader stops", began, SESSION);

    began = now(&all[0]);
    all[second].kill_9();
    let third = reader(&all, &[second]);
    all[second].start();
    never_two(&all, &[]);
    phase(&all, "the reader is killed", began, SESSION);

    began = now(&all[0]);
    all[third].signal("STOP");
    let frozen = Instant::now();
    let fourth = reader(&all, &[third]);
    never_two(&all, &[third]);
    // The lease, and a look at the lock.
    phase(&all, "the reader is frozen", began, Duration::from_secs(25));
    std::thread::sleep(Duration::from_secs(60).saturating_sub(frozen.elapsed()));
    all[third].signal("CONT");
    eventually("it stands by", || all[third].partitions() == 0);
    never_two(&all, &[]);
    assert_eq!(reader(&all, &[]), fourth, "the thawed one has not taken it back");

    let sent = load.finish();
    all_arrived(&all[0], &ledger, &sent);
    assert!(all.iter_mut().all(Relay::is_running));
    // As above.
    assert!(ledger.count("accepted_twice") <= 3 * 64, "{}", ledger.count("accepted_twice"));
}

/// Each of three brokers is stopped for some seconds and comes back, as when they are upgraded.
#[track_caller]
fn a_rolling_restart_costs_nothing(version: &str, client: &str) {
    let three = ["--version", version, "--set", "offsets.topic.replication.factor=3", "--set", "default.replication.factor=3"];
    let first = Broker::with(&three);
    let others = [first.joined_by(), first.joined_by()];
    let brokers = [&others[0].address, &others[1].address, &first.address].map(String::as_str).join(",");
    let (topic, ledger, admin) = (Topic::replicated(&brokers, 6, 3), Ledger::start(), Admin::of(&brokers));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.set(&format!("kafka.brokers=[\"{}\"]", brokers.replace(',', "\",\"")));
    relay.set(&format!("kafka.client={client}"));
    relay.start();
    eventually("it reads", || relay.partitions() == 6);
    let pid = relay.pid();
    let load = Load::on(&brokers, &topic.name, "a", 50);
    let busy = |relay: &Relay, what: &str, time: Duration| {
        let (began, before) = (Instant::now(), relay.cpu());
        std::thread::sleep(time);
        let share = (relay.cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("{client} on {version}: {share:.2} of a core {what}");
        // A debug build at 50 records a second; a loop without a pause takes a core.
        assert!(share < 0.6, "{share:.2} of a core {what}");
    };
    busy(&relay, "before", Duration::from_secs(5));
    // The controller last.
    for (n, broker) in others.iter().chain([&first]).enumerate() {
        let before = admin.leaders(&topic.name);
        broker.stop();
        eventually("leaders have moved", || {
            let without = admin.leaders(&topic.name);
            without.len() == before.len() && without.iter().all(|leader| *leader > 0) && without != before
        });
        busy(&relay, &format!("without broker {n}"), Duration::from_secs(6));
        broker.up();
        eventually("all copies are in step", || admin.copies_in_step(&topic.name) == 6 * 3);
        busy(&relay, &format!("after broker {n} has come back"), Duration::from_secs(3));
    }
    let sent = load.finish();
    all_arrived(&relay, &ledger, &sent);
    assert_eq!(ledger.count("requests"), sent.len() as u64, "each once");
    assert_eq!(relay.pid(), pid);
    assert!(relay.is_running());
    eventually("nothing is waited for", || relay.metric("stalled{reason=\"kafka\"}") == Some(0.0));
}

/// F36.
#[test]
#[ignore = "takes minutes: make test-long"]
fn all_brokers_restarted_one_by_one_cost_nothing() {
    a_rolling_restart_costs_nothing("4.3.1", "librdkafka");
}

/// F36.
#[test]
#[ignore = "takes minutes: make test-long"]
fn all_brokers_restarted_one_by_one_cost_the_pure_rust_client_nothing() {
    a_rolling_restart_costs_nothing("3.9.2", "kafka");
}

/// What Kafka has not been told yet, and brokers that stand still or are gone: a stop has its time and no more.
#[test]
fn with_the_brokers_away_a_stop_takes_no_longer_than_it_may() {
    const TIME: Duration = Duration::from_secs(45);
    let broker = Broker::with(&["--version", "3.9.2"]);
    let ledger = Ledger::start();
    let pipelines = ["librdkafka", "kafka"].map(|client| {
        let topic = Topic::on(&broker.address, 3, &[]);
        let mut relay = Relay::new(&topic.name, &ledger.url(), "");
        relay.set(&format!("kafka.brokers={}", broker.address));
        relay.set(&format!("kafka.client={client}"));
        relay.set(&format!("shutdown.timeout={}s", TIME.as_secs()));
        (topic, relay)
    });
    let mut pipelines = pipelines;
    let mut sent = 0;
    for (round, leave) in [Broker::freeze as fn(&Broker), Broker::kill_9].into_iter().enumerate() {
        for (topic, relay) in &mut pipelines {
            relay.start();
            let name = format!("{}-{round}", topic.name);
            sent +=
                (0..3).map(|partition| topic.write(partition, ids(&format!("{name}-{partition}"), 0..50)).len()).sum::<usize>();
        }
        eventually("all are delivered", || ledger.count("accepted") == sent as u64);
        leave(&broker);
        let began = Instant::now();
        pipelines.iter().for_each(|(_, relay)| relay.signal("TERM"));
        for (_, relay) in &mut pipelines {
            let status = relay.wait();
            let took = began.elapsed();
            println!("round {round}: stopped after {:.1} s", took.as_secs_f64());
            assert!(status.success() && took < TIME, "{status} after {took:?}\n{}", relay.log());
            assert!(!relay.log().contains("shutdown.timeout is over"), "{}", relay.log());
        }
        if round == 0 {
            broker.thaw();
        }
    }
    assert_eq!(ledger.count("requests"), sent as u64, "each once");
    for (_, relay) in &pipelines {
        relay.balanced();
    }
}
