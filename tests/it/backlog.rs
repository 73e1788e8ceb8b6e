//! What stays in Kafka while too much is open, and what becomes of leases while delivering is paused: with real processes.

use serde_json::json;

use crate::rig::{Ledger, Relay, Topic, eventually, ids};

fn stored(relay: &Relay) -> i64 {
    relay.count("select coalesce(sum(next_offset), 0)::bigint from consumer_position")
}

/// Lag of all partitions, as a process shows it.
fn lag(relay: &Relay) -> f64 {
    let text = relay.http("/metrics").unwrap_or_default();
    let values = text.lines().filter(|line| line.starts_with("txrelay_kafka_lag_records{"));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn a_full_backlog_stays_in_kafka_and_is_delivered_once_when_the_service_is_back() {
    let (topic, ledger) = (Topic::new(4), Ledger::start());
    ledger.behave(&json!({ "status": 503 }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 4\n[gate]\nprobe_cap = \"2s\"");
    relay.set("kafka.backlog_max=200");
    relay.start();
    let full = |relay: &Relay| relay.metric("stalled{reason=\"backlog_full\"}") == Some(1.0);
    topic.transactions(ids("b", 0..250));
    eventually("it stops reading", || full(&relay));
    assert!(relay.log().contains("reading stops: 250 deliveries are open, and kafka.backlog_max is 200"), "{}", relay.log());
    assert!(relay.http("/readyz").expect("answers").contains("Kafka keeps the rest"));
    topic.transactions(ids("c", 0..600));
    eventually("the lag says what waits in Kafka", || lag(&relay) == 600.0);
    assert_eq!(stored(&relay), 250, "nothing is read");

    // Another process joins: partitions move, and neither reads them.
    let mut twin = relay.twin();
    twin.start();
    eventually("it holds some and reads none", || full(&twin) && lag(&twin) > 0.0 && lag(&twin) < 600.0);
    assert_eq!(stored(&relay), 250);
    // Somebody else has been at the positions: both build their source anew.
    relay.sql().batch_execute("update consumer_position set epoch = epoch + 1").expect("fenced");
    eventually("both start over", || [&relay, &twin].iter().all(|process| process.log().contains("reading starts over")));
    eventually("and hold all of them again", || lag(&relay) + lag(&twin) == 600.0);
    assert_eq!(stored(&relay), 250);
    assert!(full(&relay) && full(&twin));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    relay.start();
    eventually("it stands again after a restart", || full(&relay));
    assert_eq!(stored(&relay), 250);

    ledger.behave_well();
    eventually("all delivered", || ledger.count("accepted") == 850);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    eventually("it says that it goes on", || relay.metric("stalled{reason=\"backlog_full\"}") == Some(0.0));
    assert_eq!(twin.stop().code(), Some(0), "{}", twin.log());
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!((ledger.count("accepted_twice"), stored(&relay)), (0, 850), "{}", ledger.summary());
    relay.balanced();
}

#[test]
fn leases_of_a_dead_process_elsewhere_run_out_also_while_paused() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    ledger.behave(&json!({ "action": "hang" }));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 4\ntimeout = \"3s\"");
    relay.set("postgres.lease=\"14s\"");
    topic.transactions(ids("h", 0..8));
    relay.start();
    eventually("requests hang", || relay.metric("requests_in_flight") == Some(4.0));
    relay.sql().batch_execute("update pipeline set paused_at = now()").expect("paused");
    relay.kill_9();
    let held = relay.count("select count(*) from delivery where lease is not null");
    let lost_before = relay.count("select count(*) from attempt where outcome = 7");
    assert!(held >= 4, "{held}");
    // On another host: it does not know that the other one is dead.
    let mut twin = relay.twin();
    twin.start();
    eventually("what it held is due again", || relay.count("select count(*) from delivery where lease is null") == 8);
    // What the dead one had sent to PostgreSQL may have come after it died: at least those, and one for each lease.
    let lost = relay.count("select count(*) from attempt where outcome = 7 and sent = 2") - lost_before;
    assert!(lost >= held, "{lost} of {held}");
    assert_eq!(
        relay.count("select count(*) from (select 1 from attempt where outcome = 7 group by tx_id, lease having count(*) > 1) x"),
        0
    );
    assert_eq!(twin.metric("attempts_total{outcome=\"lost\"}"), Some(lost as f64));
    let retrying = "select count(*) from transaction_status where state = 'retrying'";
    assert_eq!(relay.count(retrying), relay.count("select count(*) from delivery where attempt > 0"));
    assert!(twin.log().contains("had leases that ran out"), "{}", twin.log());
    ledger.behave_well();
    relay.sql().batch_execute("update pipeline set paused_at = null").expect("resumed");
    eventually("all delivered", || ledger.count("accepted") == 8);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(twin.stop().code(), Some(0), "{}", twin.log());
    assert_eq!(relay.count("select count(*) from attempt where outcome = 7") - lost_before, lost, "and no more of them");
    relay.balanced();
}
