//! Who may write: zombies, copies of a state file, partitions that move, primaries that are no more.

use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use txrelay::{config, source};

use crate::rig::{Ledger, Load, Pg, Relay, Topic, eventually, ids, throughout};

/// The shortest for a timeout of 1 s is above 11 s.
const SHORT: &str = "timeout = \"1s\"\nconnect_timeout = \"1s\"\nworkers = 8";
const LEASE: &str = "postgres.lease=\"12s\"";

/// All is delivered and settled; the service has accepted exactly `sent`, and each offset is in one place.
#[track_caller]
pub fn is_done(relay: &Relay, ledger: &Ledger, sent: &[String]) {
    eventually("all delivered", || ledger.count("accepted") >= sent.len() as u64);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    ledger.has_exactly(sent);
    relay.balanced();
}

/// So many more are accepted, from now on.
#[track_caller]
pub fn moves_by(ledger: &Ledger, n: u64) {
    let now = ledger.count("accepted");
    eventually("deliveries move", || ledger.count("accepted") >= now + n);
}

#[track_caller]
fn share(one: &Relay, other: &Relay) {
    eventually("both read", || one.partitions() > 0 && other.partitions() > 0 && one.partitions() + other.partitions() == 6);
}

#[track_caller]
fn stop(relay: &mut Relay) {
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

/// The epochs of the partitions, and their sum: each move of a partition raises one.
fn epochs(relay: &Relay) -> i64 {
    relay.count("select sum(epoch)::bigint from consumer_position")
}

/// F10, for half a lease and for two (which also stand for the 10 minutes of the matrix: everything that has a bound has passed
/// it by then, Kafka's session of 10 s among them).
#[test]
fn a_process_that_was_asleep_moves_no_position_and_settles_nothing() {
    let (topic, ledger) = (Topic::new(6), Ledger::start());
    let mut one = Relay::new(&topic.name, &ledger.url(), SHORT);
    one.set(LEASE);
    let mut other = one.twin();
    one.start();
    other.start();
    let load = Load::start(&topic.name, "z", 150);
    share(&one, &other);
    // So slow that the sleeper always has requests in flight, whose answers it reads when it wakes.
    ledger.behave(&json!({ "delay_ms": 50 }));
    moves_by(&ledger, 100);

    let at_first = epochs(&one);
    one.signal("STOP");
    let mut may_repeat = one.held();
    let process = other.process();
    throughout(Duration::from_secs(6), "the other runs", || other.is_running());
    one.signal("CONT");
    share(&one, &other);
    moves_by(&ledger, 300);
    assert_eq!(epochs(&one), at_first, "half a lease: its partitions were its own all the while");

    // So slow that it surely has some in hand now.
    ledger.behave(&json!({ "delay_ms": 250 }));
    eventually("requests are in flight", || one.metric("requests_in_flight") >= Some(3.0));
    one.signal("STOP");
    may_repeat += one.held();
    ledger.behave(&json!({ "delay_ms": 50 }));
    eventually("the other reads all partitions", || other.partitions() == 6);
    let sleepers = format!("select count(*) from delivery where lease is not null and leased_by <> {process}");
    eventually("what the sleeper held is taken over", || one.count(&sleepers) == 0);
    throughout(Duration::from_secs(6), "the other runs", || other.is_running());
    let (lost, before) = (one.count("select count(*) from attempt where outcome = 7"), ledger.count("requests"));
    assert!(lost > 0, "the sleeper had nothing in hand: this showed nothing");
    let others = format!("select count(*) from consumer_position where owner = {process}");
    assert_eq!(one.count(&others), 6, "all partitions are the other's");
    one.signal("CONT");
    eventually("its late answers are stale", || one.metric("settles_stale_total") > Some(0.0));
    assert!(one.count("select count(*) from attempt where stale") > 0, "and in the history");
    // It has learnt that its partitions are another's, and takes only what the group gives it.
    share(&one, &other);
    moves_by(&ledger, 300);
    assert!(one.is_running() && other.is_running());
    let sent = load.finish();
    is_done(&one, &ledger, &sent);
    stop(&mut one);
    stop(&mut other);
    let (twice, requests) = (ledger.count("accepted_twice"), ledger.count("requests"));
    assert!(twice <= may_repeat, "{twice} repeated, {may_repeat} were in hand");
    // No storm: each record once, and what was in hand once more.
    assert!(requests - before <= sent.len() as u64 - before.min(sent.len() as u64) + 2 * may_repeat + 100, "{requests} requests");
}

/// Partitions go to and fro between an older and a newer process, whichever leaves: every record once, no offset twice.
#[test]
fn partitions_that_move_to_and_fro_lose_nothing_and_repeat_nothing() {
    let (topic, ledger) = (Topic::new(6), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 5 }));
    let mut older = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    // Without a state directory it is no static member: its partitions move at once when it leaves.
    older.env("STATE_DIRECTORY", "");
    let mut newer = older.twin();
    older.start();
    let load = Load::start(&topic.name, "m", 200);
    moves_by(&ledger, 100);
    let at_first = epochs(&older);
    for _ in 0..6 {
        newer.start();
        share(&older, &newer);
        moves_by(&ledger, 100);
        stop(&mut older);
        eventually("the other reads all", || newer.partitions() == 6);
        moves_by(&ledger, 100);
        std::mem::swap(&mut older, &mut newer);
    }
    let sent = load.finish();
    is_done(&older, &ledger, &sent);
    stop(&mut older);
    // At least three came and three went in each round.
    assert!(epochs(&older) >= at_first + 6 * 6, "they did not move: {} -> {}", at_first, epochs(&older));
    assert_eq!(ledger.count("requests"), sent.len() as u64, "each was sent once: {}", ledger.summary());
    assert_eq!(older.count("select count(*) from duplicate"), 0, "no record was read twice");
}

/// F17: the same state directory is refused; the same name from elsewhere is a second process of the pipeline.
#[test]
fn a_second_process_on_the_same_state_directory_ends_with_78_and_one_on_its_own_shares_the_work() {
    let (topic, ledger) = (Topic::new(6), Ledger::start());
    let mut one = Relay::new(&topic.name, &ledger.url(), "");
    one.start();
    let load = Load::start(&topic.name, "s", 100);
    moves_by(&ledger, 50);
    let mut second = one.twin();
    second.env("STATE_DIRECTORY", one.directory.join("state").to_str().expect("text"));
    second.start();
    assert_eq!(second.wait().code(), Some(78), "{}", second.log());
    assert!(second.log().contains("one txrelay runs per state directory"), "{}", second.log());
    let mut other = one.twin();
    other.start();
    share(&one, &other);
    moves_by(&ledger, 100);
    let sent = load.finish();
    is_done(&one, &ledger, &sent);
    assert_eq!(one.count("select count(*) from process where ended_at is null"), 2);
    stop(&mut one);
    stop(&mut other);
    assert_eq!(ledger.count("requests"), sent.len() as u64, "each was sent once: {}", ledger.summary());
}

/// The state file is copied with its machine: which of the two came first goes on, and the copy says what to do. Only when the
/// first one is silent is it taken over from.
#[test]
fn a_cloned_machine_disturbs_nobody_and_is_told_what_to_do() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 20 }));
    let mut one = Relay::new(&topic.name, &ledger.url(), SHORT);
    one.start();
    let load = Load::start(&topic.name, "c", 150);
    moves_by(&ledger, 100);
    let mut clone = one.cloned();
    let (epochs_before, pid) = (epochs(&one), one.pid());
    clone.start();
    assert_eq!(clone.wait().code(), Some(78), "{}", clone.log());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for part in
        [&format!("on host {host} (pid {pid})"), clone.state_file().to_str().expect("text"), "Remove that file on the copy"]
    {
        assert!(clone.log().contains(part), "{part} is not in:\n{}", clone.log());
    }
    moves_by(&ledger, 100);
    assert_eq!(epochs(&one), epochs_before, "its partitions stayed");
    assert_eq!(one.count("select count(*) from attempt where outcome = 7"), 0, "none of its leases was swept");
    assert_eq!(ledger.count("accepted_twice"), 0, "{}", ledger.summary());

    // Silent for 10 s it counts as dead, whatever it is; when it wakes it leaves.
    one.signal("STOP");
    let may_repeat = one.held();
    clone.start();
    eventually("it waits and says for whom", || {
        clone.http("/readyz").is_some_and(|ready| ready.contains("waiting to see whether it still lives"))
    });
    eventually("it takes over", || clone.partitions() == 3);
    moves_by(&ledger, 100);
    one.signal("CONT");
    assert_eq!(one.wait().code(), Some(78), "{}", one.log());
    one.start();
    assert_eq!(one.wait().code(), Some(78), "now it is the copy that lives: {}", one.log());
    assert!(one.log().contains(&format!("(pid {})", clone.pid())), "{}", one.log());
    let sent = load.finish();
    is_done(&clone, &ledger, &sent);
    stop(&mut clone);
    let twice = ledger.count("accepted_twice");
    assert!(twice <= may_repeat, "{twice} repeated, {may_repeat} were in hand");
}

/// Of two that know each other by Kafka alone one ends; one that only woke up too late is outlived.
#[test]
fn who_is_fenced_once_joins_again_and_who_is_fenced_again_ends() {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), SHORT);
    relay.start();
    topic.transactions(ids("before", 0..20));
    eventually("delivered", || ledger.count("accepted") == 20);
    let config = config::load(&relay.config_file(), &[]).expect("loads");
    let uuid = std::fs::read_to_string(relay.state_file()).expect("a state file");
    let mark: String = Sha256::digest(&topic.name)[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let member = format!("txrelay-{}-{}-{mark}", relay.name, uuid.trim());
    let other = || source::open(&config.kafka, Some(&member)).expect("opens");
    let mut comes = other();
    eventually("it is fenced", || {
        let _ = comes.poll(Duration::from_millis(50));
        relay
            .log()
            .contains("reading starts over from the positions in PostgreSQL: another process has joined the consumer group")
    });
    drop(comes);
    topic.transactions(ids("after", 0..20));
    eventually("it reads on", || ledger.count("accepted") == 40);
    assert!(relay.is_running(), "{}", relay.log());
    let mut comes_again = other();
    eventually("it ends", || {
        let _ = comes_again.poll(Duration::from_millis(50));
        !relay.is_running()
    });
    assert_eq!(relay.wait().code(), Some(78), "{}", relay.log());
    assert!(relay.log().contains("was this machine cloned?"), "{}", relay.log());
}

/// Deliveries that have an end, as a replica knows them.
fn known(replica: &Pg, relay: &Relay) -> u64 {
    let query = format!("select count(*) from \"{}\".attempt where outcome = 1 and not stale", relay.schema);
    replica.sql().query_one(&query, &[]).expect("answers").get::<_, i64>(0) as u64
}

/// F21. The new primary has missed some seconds: what it does not know is read from Kafka again, which leads it.
#[test]
fn a_replica_that_is_behind_takes_over_and_nothing_is_lost() {
    let pg = Pg::start();
    let replica = pg.replica();
    let both = pg.dsn().replace(pg.host(), &format!("{},{}", pg.host(), replica.host()));
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 2 }));
    let mut relay = Relay::on(&topic.name, &ledger.url(), &both, pg.dsn(), "workers = 8");
    relay.start();
    let load = Load::start(&topic.name, "f", 200);
    moves_by(&ledger, 300);
    replica.cut_off();
    moves_by(&ledger, 600);
    let (known, pid) = (known(&replica, &relay), relay.pid());
    pg.kill_9();
    eventually("it notices", || relay.metric("stalled{reason=\"postgres\"}") == Some(1.0));
    let accepted = ledger.count("accepted");
    assert!(accepted >= known + 500, "the replica missed nothing: this showed nothing");
    replica.promote();
    relay.ask(replica.dsn());
    moves_by(&ledger, 300);
    let sent = load.finish();
    is_done(&relay, &ledger, &sent);
    assert!(relay.is_running() && relay.pid() == pid, "the same process all along");
    stop(&mut relay);
    let twice = ledger.count("accepted_twice");
    assert!(twice <= accepted - known, "{twice} repeated, of {} that the replica did not know", accepted - known);
    assert!(twice > 0, "what was done on the old primary only is sent again, because nobody there knows of it");
}

/// F21, where the replica does not even know this process: it ends, systemd starts it anew, and it goes on.
#[test]
fn a_process_that_the_new_primary_does_not_know_starts_anew_and_loses_nothing() {
    let pg = Pg::start();
    let replica = pg.replica();
    let both = pg.dsn().replace(pg.host(), &format!("{},{}", pg.host(), replica.host()));
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    let mut relay = Relay::on(&topic.name, &ledger.url(), &both, pg.dsn(), "workers = 8");
    relay.start();
    topic.transactions(ids("first", 0..50));
    eventually("the first are delivered", || ledger.count("accepted") == 50);
    stop(&mut relay);
    replica.cut_off();
    relay.start();
    let load = Load::start(&topic.name, "g", 200);
    moves_by(&ledger, 300);
    pg.kill_9();
    eventually("it notices", || relay.metric("stalled{reason=\"postgres\"}") == Some(1.0));
    let accepted = ledger.count("accepted");
    replica.promote();
    relay.ask(replica.dsn());
    assert_eq!(relay.wait().code(), Some(1), "systemd restarts it: {}", relay.log());
    assert!(relay.log().contains("no longer registered"), "{}", relay.log());
    relay.start();
    moves_by(&ledger, 300);
    let mut sent = load.finish();
    sent.extend(ids("first", 0..50));
    is_done(&relay, &ledger, &sent);
    stop(&mut relay);
    let twice = ledger.count("accepted_twice");
    // Before it ended it may have begun to send again.
    assert!(twice <= accepted, "{twice} repeated of {accepted}");
}

/// F23. A replica was promoted, and the old primary still answers and takes writes. As soon as one session has seen the new one,
/// all go there; and when it is away for a moment, none goes back.
#[test]
fn of_two_primaries_only_the_newer_one_is_worked_on() {
    let pg = Pg::start();
    let replica = pg.replica();
    // An ordinary role: the question which timeline it is needs no privilege.
    pg.sql().batch_execute("create role relay login; grant create on database postgres to relay").expect("a role");
    let both = pg.dsn_of("relay").replace(pg.host(), &format!("{},{}", replica.host(), pg.host()));
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    ledger.behave(&json!({ "delay_ms": 2 }));
    let mut relay = Relay::on(&topic.name, &ledger.url(), &both, pg.dsn(), "workers = 8");
    relay.start();
    let load = Load::start(&topic.name, "p", 200);
    moves_by(&ledger, 300);
    let sessions = |role: &str| {
        let query = format!(
            "select count(*) from pg_stat_activity where application_name like '{}'",
            relay.sessions().replace('%', role)
        );
        pg.sql().query_one(&query, &[]).expect("answers").get::<_, i64>(0)
    };
    assert!(sessions("consumer") == 1 && sessions("settler") == 1 && sessions("claimer") == 1);
    replica.promote();
    let before = ledger.count("accepted");
    // One connection breaks, as some always does.
    let cut = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like '{}'",
        relay.sessions().replace('%', "claimer")
    );
    pg.sql().batch_execute(&cut).expect("cut");
    eventually("no session is left on the old primary", || sessions("%") == 0);
    let on_both = ledger.count("accepted");
    let position = format!("select sum(next_offset)::bigint from \"{}\".consumer_position", relay.schema);
    let position = || pg.sql().query_one(&position, &[]).expect("answers").get::<_, i64>(0);
    let left_at = position();
    relay.ask(replica.dsn());
    moves_by(&ledger, 300);

    replica.stop("immediate");
    eventually("it says in words why it does not take the one that answers", || {
        relay.http("/readyz").is_some_and(|ready| ready.contains("this is an old primary, on timeline 1"))
    });
    throughout(Duration::from_secs(2), "the old primary is left alone", || position() == left_at);
    replica.up();
    moves_by(&ledger, 300);
    let sent = load.finish();
    is_done(&relay, &ledger, &sent);
    assert!(relay.is_running());
    assert_eq!(position(), left_at);
    stop(&mut relay);
    // What was settled on the old one after the promotion is not known on the new one; and the batches in flight between.
    let (twice, may_repeat) = (ledger.count("accepted_twice"), on_both - before + 8 + 1024 + 500);
    assert!(twice <= may_repeat, "{twice} repeated, {may_repeat} may be");
}
