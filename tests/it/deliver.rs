//! What the claimer promises, with a real PostgreSQL and no clock to help it.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use txrelay::config;
use txrelay::deliver::{Claimer, Flow};
use txrelay::ops::health::Health;
use txrelay::ops::metrics::{Identity, Metrics};
use txrelay::ops::stop::group;
use txrelay::store::{LeaseTime, Link, Role, Room, Session, migrate};

use crate::rig::{LIMIT, postgres_url, unique};

#[test]
fn a_wake_up_is_enough_even_if_nobody_polls_for_an_hour() {
    let schema = unique("it_claimer");
    let lease = Duration::from_secs(60);
    let config = config::Postgres::plain(postgres_url().parse().unwrap(), &schema, lease);
    let role = || Role { pipeline: "it".to_owned(), role: "test" };
    migrate(&mut Session::connect(&config, &role()).unwrap(), &schema).unwrap();
    let mut session = Session::connect(&config, &role()).unwrap();
    session.client().batch_execute("insert into pipeline (name) values ('it'); insert into topic (name) values ('t')").unwrap();

    let identity =
        Identity { pipeline: "it", schema: &schema, client: "none", topics: &[], kafka_errors: &[], postgres_errors: &[] };
    let metrics = Metrics::new(identity);
    let time = LeaseTime { lease, timeout: Duration::from_secs(15) };
    let (stopper, stop) = group(&Arc::default());
    let flow = Flow::new();
    let claimer = Claimer {
        link: Link::new(&config, "it", "claimer"),
        room: Room::new(64, time),
        time,
        poll: Duration::from_secs(3600),
        fitting: 500,
        in_doubt: None,
        unsettled: flow.unsettled.clone(),
        health: Health::new(metrics.clone()),
        metrics,
        stop,
    };
    let (to_claimer, process) = bounded(1);
    let ((handoff, leased), (wake, woken)) = (flow.handoff, flow.wake);
    let thread = std::thread::spawn(move || claimer.run(&process, &woken, &handoff));
    to_claimer.send(1).unwrap();
    for i in 1..=20 {
        let insert = format!(
            "insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
             values ({i}, 'w{i}', 'x', 0, {i}, 1, 0); insert into delivery (id, due_at) values ({i}, now())"
        );
        session.client().batch_execute(&insert).unwrap();
        // As the consumer does it, after COMMIT.
        let _ = wake.try_send(());
        let got = leased.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("delivery {i} was never claimed"));
        assert_eq!(got.transaction_id, format!("w{i}"));
    }
    drop(stopper);
    thread.join().unwrap().unwrap();
    session.client().batch_execute(&format!("drop schema \"{schema}\" cascade")).unwrap();
}
