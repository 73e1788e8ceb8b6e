//! What a process costs that has nothing to do.

use std::thread::sleep;
use std::time::Duration;

use postgres::Client;

use crate::rig::{Ledger, Pg, Relay, Topic, eventually, ids};

/// After this nobody asks for more than it must: counts, audit and claims have seen that nothing is new.
const CALM: Duration = Duration::from_secs(25);
const LOOK: Duration = Duration::from_secs(20);

fn commits(sql: &mut Client) -> i64 {
    let row = sql.query_one("select xact_commit from pg_stat_database where datname = current_database()", &[]);
    row.expect("counted").get(0)
}

#[test]
fn an_idle_process_leaves_postgresql_alone_and_takes_up_what_comes() {
    let pg = Pg::start();
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let mut relay = Relay::on(&topic.name, &ledger.url(), pg.dsn(), pg.dsn(), "");
    relay.start();
    topic.transactions(ids("a", 0..20));
    eventually("it delivers", || ledger.count("accepted") == 20);
    sleep(CALM);
    let mut sql = pg.sql();
    let before = commits(&mut sql);
    sleep(LOOK);
    let per_second = (commits(&mut sql) - before) as f64 / LOOK.as_secs_f64();
    // One is the heartbeat.
    assert!((1.0..3.0).contains(&per_second), "{per_second} transactions a second");
    assert_eq!(relay.metric("stalled{reason=\"postgres\"}"), Some(0.0));

    // A connection that goes between two heartbeats costs none.
    let upkeep = relay.sessions().replace('%', "upkeep");
    let cut = format!("select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like '{upkeep}'");
    assert!(sql.query_one(&cut, &[]).expect("cut").get::<_, i64>(0) > 0);
    eventually("it is made anew", || {
        let seen = format!("select count(*) from pg_stat_activity where application_name like '{upkeep}'");
        sql.query_one(&seen, &[]).expect("asked").get::<_, i64>(0) > 0
    });
    sleep(Duration::from_secs(2));
    assert!(!relay.log().contains("upkeep failed"), "{}", relay.log());

    topic.transactions(ids("b", 0..20));
    eventually("it delivers", || ledger.count("accepted") == 40);
    eventually("it is counted", || relay.metric("transactions{state=\"delivered\"}") == Some(40.0));
    // Made due by somebody else, without a wake-up.
    sleep(CALM / 2);
    assert!(relay.command(&["retry", "a-1", "--even-delivered"]).status().expect("it runs").success());
    eventually("it is found", || ledger.count("accepted_twice") == 1);
    eventually("and settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    relay.balanced();
}
