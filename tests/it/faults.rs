//! PostgreSQL does its worst while records keep coming: it stops, crashes, freezes, cuts, refuses, fails over, fills up.
//!
//! Of each fault the same is promised: nothing is lost; nothing is sent twice, because the process keeps every outcome until
//! it is written, and claims nothing before that; the same process goes on; meanwhile `stalled` and /readyz say why nothing
//! moves, /metrics answers, and memory, threads and descriptors stay where they were.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use crate::rig::{Ledger, Load, Pg, Proxy, Relay, Resources, Seen, Topic, Watch, eventually, throughout, within_bounds};

/// Small enough that two leases pass within a test; the shortest for a timeout of 1 s is above 11 s.
pub const SHORT_LEASE: &str = "timeout = \"1s\"\nconnect_timeout = \"1s\"\nworkers = 8";

/// A pipeline under steady load, watched.
pub struct Running {
    pub ledger: Ledger,
    pub relay: Relay,
    load: Load,
    watch: Watch,
    before: Resources,
    pid: u32,
}

impl Running {
    /// From Kafka through the PostgreSQL of `url` to a service of 2 ms; returns when it is under way.
    #[track_caller]
    pub fn start(url: &str, superuser: &str, more: &str) -> Self {
        Self::set_up(url, superuser, more, &[])
    }

    #[track_caller]
    pub fn set_up(url: &str, superuser: &str, more: &str, sets: &[&str]) -> Self {
        let (topic, ledger) = (Topic::new(3), Ledger::start());
        ledger.behave(&json!({ "delay_ms": 2 }));
        let mut relay = Relay::on(&topic.name, &ledger.url(), url, superuser, more);
        sets.iter().for_each(|set| relay.set(set));
        relay.start();
        let load = Load::start(&topic.name, "f", 200);
        // Every worker has its connection, and every thread its session.
        eventually("under way", || ledger.count("accepted") >= 600);
        let (before, watch, pid) = (relay.resources(), Watch::start(&relay), relay.pid());
        Self { ledger, relay, load, watch, before, pid }
    }

    /// The fault goes on for this long, and the daemon answers all the while.
    #[track_caller]
    pub fn endures(&mut self, seconds: u64) {
        let relay = &mut self.relay;
        throughout(Duration::from_secs(seconds), "the daemon runs", || relay.is_running());
    }

    #[track_caller]
    pub fn is_stalled(&self) {
        eventually("it says that PostgreSQL holds it up", || self.relay.metric("stalled{reason=\"postgres\"}") == Some(1.0));
    }

    /// Something was delivered from now on.
    #[track_caller]
    pub fn moves(&self) {
        let now = self.ledger.count("accepted");
        eventually("deliveries move again", || self.ledger.count("accepted") > now + 100);
    }

    /// The fault is over: everything is delivered, once; what was promised held.
    #[track_caller]
    pub fn heals(self) -> Seen {
        self.moves();
        let Self { ledger, mut relay, load, watch, before, pid } = self;
        let sent = load.finish();
        eventually("all delivered", || ledger.count("accepted") == sent.len() as u64);
        eventually("all settled", || relay.count("select count(*) from delivery") == 0);
        eventually("it says that all is well", || relay.http("/readyz").is_some_and(|ready| ready.contains("[+]relaying")));
        assert_eq!(relay.metric("stalled{reason=\"postgres\"}"), Some(0.0));
        assert_eq!(relay.metric("postgres_up"), Some(1.0));
        let seen = watch.finish();
        assert!(relay.is_running() && relay.pid() == pid, "the same process all along");
        ledger.has_exactly(&sent);
        assert_eq!(ledger.count("accepted_twice"), 0, "{}\n{}", ledger.summary(), relay.log());
        assert_eq!(relay.count("select count(*) from dead"), 0);
        relay.balanced();
        assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
        assert_eq!(seen.unanswered, 0, "of {} looks at /metrics and /readyz", seen.looks);
        within_bounds(before, seen.most);
        seen
    }
}

/// That it stood still because of PostgreSQL, and said so.
#[track_caller]
pub fn said_postgres(seen: &Seen, words: &[&str]) {
    assert!(seen.stalled.contains("postgres"), "stalled: {:?}", seen.stalled);
    seen.said(words);
}

#[test]
fn postgresql_stopped_for_20_s_loses_nothing_and_sends_nothing_twice() {
    let pg = Pg::start();
    let mut running = Running::start(pg.dsn(), pg.dsn(), "workers = 8");
    pg.stop("fast");
    running.is_stalled();
    running.endures(20);
    pg.up();
    let seen = running.heals();
    said_postgres(&seen, &["postgres", pg.host()]);
}

/// Longer than a lease of a minute and than the half minute after which Kafka's partitions are paused.
#[test]
#[ignore = "takes minutes: make test-long"]
fn postgresql_stopped_for_longer_than_a_lease_loses_nothing_and_sends_nothing_twice() {
    let pg = Pg::start();
    let mut running = Running::start(pg.dsn(), pg.dsn(), "workers = 8");
    // So slow that hundreds are sent after the stop: their outcomes wait for longer than their leases last.
    running.ledger.behave(&json!({ "delay_ms": 80 }));
    eventually("there is a backlog", || running.relay.count("select count(*) from delivery where lease is not null") > 600);
    pg.stop("fast");
    running.is_stalled();
    running.endures(100);
    running.ledger.behave(&json!({ "delay_ms": 2 }));
    pg.up();
    let seen = running.heals();
    said_postgres(&seen, &["postgres", pg.host()]);
}

/// F19
#[test]
fn postgresql_shut_down_at_once_under_load_loses_nothing_and_sends_nothing_twice() {
    let pg = Pg::start();
    let running = Running::start(pg.dsn(), pg.dsn(), "workers = 8");
    for _ in 0..3 {
        pg.stop("immediate");
        running.is_stalled();
        pg.up();
        running.moves();
    }
    let seen = running.heals();
    said_postgres(&seen, &["postgres", "PostgreSQL"]);
}

#[test]
fn a_host_of_postgresql_that_dies_under_load_loses_nothing_and_sends_nothing_twice() {
    let pg = Pg::start();
    let running = Running::start(pg.dsn(), pg.dsn(), "workers = 8");
    pg.kill_9();
    running.is_stalled();
    pg.up();
    said_postgres(&running.heals(), &["postgres", "PostgreSQL"]);
}

/// Five a second, whichever of the pipeline's sessions comes first.
#[track_caller]
fn terminate_sessions(pg: &Pg, running: &mut Running, seconds: u64) {
    let mut sql = pg.sql();
    let pattern = running.relay.sessions();
    let mut terminated = 0;
    for _ in 0..seconds * 5 {
        let one = "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity where application_name like $1 \
             order by random() limit 1) s";
        terminated += sql.query_one(one, &[&pattern]).expect("terminated").get::<_, i64>(0);
        let relay = &mut running.relay;
        throughout(Duration::from_millis(200), "the daemon runs", || relay.is_running());
    }
    assert!(terminated > seconds as i64, "only {terminated} sessions were ended: this showed nothing");
}

/// F27: each is an outcome that nobody knows.
#[test]
fn terminated_backends_five_a_second_for_20_s_lose_nothing_and_send_nothing_twice() {
    let pg = Pg::start();
    let mut running = Running::start(pg.dsn(), pg.dsn(), "workers = 8");
    let before = running.ledger.count("accepted");
    terminate_sessions(&pg, &mut running, 20);
    // Each session is back within a moment: it is a nuisance, not an outage.
    assert!(running.ledger.count("accepted") > before + 200, "hardly anything moved meanwhile");
    said_postgres(&running.heals(), &["postgres", "terminating connection"]);
}

/// F24
#[test]
fn a_role_that_may_not_connect_for_10_s_is_waited_for() {
    let pg = Pg::start();
    pg.sql().batch_execute("create role relay login; grant create on database postgres to relay").expect("a role");
    let mut running = Running::start(&pg.dsn_of("relay"), pg.dsn(), "workers = 8");
    let sessions = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'relay'";
    pg.sql().batch_execute(&format!("alter role relay connection limit 0; {sessions}")).expect("locked out");
    running.is_stalled();
    running.endures(10);
    pg.sql().batch_execute("alter role relay connection limit -1").expect("let in");
    said_postgres(&running.heals(), &["postgres", "too many connections for role \"relay\""]);
}

/// F20: of ingest, settle and claim.
#[test]
fn commits_whose_answers_are_lost_are_neither_lost_nor_repeated() {
    let pg = Pg::start();
    let (mut proxy, through) = Proxy::before(pg.dsn());
    let running = Running::start(&through, pg.dsn(), "workers = 8\n[gate]\nprobe_cap = \"1s\"");
    // One in five fails and is claimed again: a claim whose COMMIT is in doubt holds rows.
    running.ledger.behave(&json!([{ "status": 503, "share": 0.2 }, { "delay_ms": 2 }]));
    let fired = |proxy: &mut Proxy| -> u64 {
        let status = proxy.tell("status");
        status.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number at its end")
    };
    // Ingest, settle and claim have a connection each.
    for (round, role) in ["consumer", "settler", "claimer"].iter().cycle().take(12).enumerate() {
        proxy.tell(&format!("aim {}{role}", running.relay.sessions().trim_end_matches('%')));
        proxy.tell("drop-answer-after COMMIT");
        eventually(&format!("the answer to a COMMIT of the {role} is lost"), || fired(&mut proxy) == round as u64 + 1);
        running.moves();
    }
    let log = running.relay.log();
    assert!(log.contains("was committed although its answer was lost"), "{log}");
    assert!(log.contains("failed to write") && log.contains("failed to claim"), "{log}");
    assert!(running.relay.count("select count(*) from delivery where attempt > 0") > 0, "nothing was there to be claimed");
    running.ledger.behave(&json!({ "delay_ms": 2 }));
    // A settle whose answer was lost is repeated and finds its rows done: that is not a late answer.
    assert_eq!(running.relay.metric("settles_stale_total"), Some(0.0));
    said_postgres(&running.heals(), &["postgres"]);
}

#[test]
fn cut_connections_are_made_again_and_nothing_is_sent_twice() {
    let pg = Pg::start();
    let (mut proxy, through) = Proxy::before(pg.dsn());
    let running = Running::start(&through, pg.dsn(), "workers = 8");
    for _ in 0..10 {
        proxy.tell("cut");
        running.moves();
    }
    proxy.tell("refuse");
    running.is_stalled();
    proxy.tell("pass");
    said_postgres(&running.heals(), &["postgres"]);
}

/// F22.
#[test]
fn a_read_only_standby_is_said_in_words_and_is_no_failure_of_any_delivery() {
    let pg = Pg::start();
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    // There is a pipeline with open work, and its file then names the standby alone.
    ledger.behave(&json!({ "action": "hang" }));
    let mut relay = Relay::on(&topic.name, &ledger.url(), pg.dsn(), pg.dsn(), "workers = 4");
    topic.transactions(crate::rig::ids("r", 0..40));
    relay.start();
    eventually("stored", || relay.count("select count(*) from delivery") == 40);
    relay.kill_9();
    let standby = pg.standby();
    let attempts = "select sum(attempt)::bigint from delivery";
    let before = relay.count(attempts);
    ledger.behave_well();
    relay.set(&format!("postgres.url=\"{}\"", standby.dsn()));
    relay.start();
    eventually("it says that it waits", || relay.metric("stalled{reason=\"postgres\"}") == Some(1.0));
    let watch = Watch::start(&relay);
    throughout(Duration::from_secs(5), "the daemon runs", || relay.is_running());
    watch.finish().said(&["postgres", standby.host(), "does not allow writes"]);
    assert_eq!(relay.count(attempts), before, "no attempt is counted");
    assert_eq!(relay.count("select count(*) from dead"), 0);
    // Promoted, it is what the process has waited for.
    let pid = relay.pid();
    pg.kill_9();
    standby.promote();
    relay.ask(standby.dsn());
    eventually("all delivered", || ledger.count("accepted") == 40);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert!(relay.is_running() && relay.pid() == pid);
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

/// F21 with a replica that has missed nothing; `fencing` has those that have.
#[test]
fn a_standby_promoted_under_load_is_gone_over_to() {
    let pg = Pg::start();
    let standby = pg.standby();
    let both = pg.dsn().replace(pg.host(), &format!("{},{}", pg.host(), standby.host()));
    let mut running = Running::start(&both, pg.dsn(), "workers = 8");
    pg.kill_9();
    running.is_stalled();
    standby.promote();
    running.relay.ask(standby.dsn());
    said_postgres(&running.heals(), &["postgres", pg.host(), standby.host()]);
}

/// F29
#[test]
fn postgresql_frozen_for_two_leases_loses_nothing_and_sends_nothing_twice() {
    let pg = Pg::start();
    let mut running = Running::set_up(pg.dsn(), pg.dsn(), SHORT_LEASE, &["postgres.lease=\"12s\""]);
    pg.freeze();
    running.is_stalled();
    running.endures(24);
    pg.thaw();
    said_postgres(&running.heals(), &["postgres", "PostgreSQL"]);
}

/// F28
#[test]
fn a_disk_full_under_postgresql_is_said_in_words_and_loses_nothing() {
    let pg = Pg::with(&["--tmpfs", "112M", "--set", "min_wal_size=24MB", "--set", "max_wal_size=24MB"]);
    let mut running = Running::start(pg.dsn(), pg.dsn(), "workers = 8");
    let filler = pg.data().join("filler");
    let mut file = std::fs::File::create(&filler).expect("a file on the tmpfs");
    // Until nothing is left, again and again: what PostgreSQL frees is taken too.
    let block = vec![0; 64 << 10];
    eventually("the disk is full, and it says so", || {
        while file.write_all(&block).is_ok() {}
        while file.write_all(&block[..512]).is_ok() {}
        running.relay.http("/readyz").is_some_and(|ready| ready.contains("No space left on device"))
    });
    running.endures(10);
    drop(file);
    std::fs::remove_file(&filler).expect("removed");
    // Without room for its WAL it may have ended itself.
    pg.up();
    said_postgres(&running.heals(), &["postgres", "No space left on device"]);
}
