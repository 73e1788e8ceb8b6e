//! F34: outcomes that PostgreSQL refuses. Their deliveries are put off, loudly; they hold up no other, however many they are, and
//! while none is taken the service hears little.

use std::time::{Duration, Instant};

use txrelay::store::{Claimant, Leased, Registration};

use crate::refused::spread;
use crate::rig::{Ledger, Relay, Topic, eventually, ids};
use crate::store::{LEASE, Store, TIME};

/// A start of `workers = 8`, and PostgreSQL refuses the outcome of every transaction that is like `which`.
fn outcomes_refused(which: &str, fail_points: &str) -> (Topic, Ledger, Relay) {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    relay.env("FAILPOINTS", fail_points);
    assert!(relay.command(&["migrate"]).status().expect("runs").success());
    let refuse = format!(
        "create function no() returns trigger language plpgsql as $$ begin \
           if exists (select from tx where id = new.tx_id and transaction_id like '{which}') then raise exception 'closed'; end if; \
           return new; end $$; \
         create trigger no before insert on attempt for each row execute function no()"
    );
    relay.sql().batch_execute(&refuse).expect("altered");
    relay.start();
    (topic, ledger, relay)
}

const STALLED: &str = "stalled{reason=\"schema\"}";

/// A trigger on `attempt`: the batch was written again and again, and nothing that was in it was ever settled.
#[test]
fn an_outcome_that_postgresql_refuses_is_put_off_loudly_and_holds_up_no_other() {
    let (topic, ledger, mut relay) = outcomes_refused("odd", "put-off=return(3000)");
    let others = ids("a", 0..60);
    topic.raw(&spread(&[&others[..30], &["odd".to_owned()], &others[30..]].concat()));
    eventually("the others are settled", || {
        relay.count("select count(*) from attempt") == 60 && relay.count("select count(*) from delivery") == 1
    });
    eventually("it is said", || relay.metric(STALLED) == Some(1.0));
    let words = "PostgreSQL refuses the outcome of tx.id ";
    let ready = relay.http("/readyz").expect("answers");
    assert!(ready.contains(words) && ready.contains("closed"), "{ready}");
    let log = relay.log();
    assert!(log.lines().any(|line| line.contains("[ERROR]") && line.contains(words) && line.contains("put off for 3s")), "{log}");
    topic.raw(&spread(&ids("b", 0..60)));
    eventually("others go on", || relay.count("select count(*) from attempt") == 120);
    eventually("it is sent again", || ledger.count("accepted_twice") == 1);
    relay.sql().batch_execute("drop trigger no on attempt").expect("mended");
    eventually("it settles", || relay.count("select count(*) from delivery") == 0);
    eventually("nothing waits", || relay.metric(STALLED) == Some(0.0));
    assert_eq!((ledger.count("accepted"), ledger.count("accepted_twice")), (121, 1));
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

/// They stopped everything for good: nothing was claimed any more, and so nothing came that could be taken.
#[test]
fn forty_refused_outcomes_hold_up_no_others_while_they_come_again_and_again() {
    let (topic, ledger, mut relay) = outcomes_refused("odd%", "put-off=return(2000);brake=return(1000)");
    topic.raw(&spread(&ids("odd", 0..40)));
    eventually("it is said", || relay.log().contains("PostgreSQL takes no outcome any more"));
    eventually("they come again", || ledger.count("requests") > 40);
    let ready = relay.http("/readyz").expect("answers");
    assert!(ready.contains("no outcome is taken any more") && relay.metric(STALLED) == Some(1.0), "{ready}");
    for round in 1..=2 {
        topic.raw(&spread(&ids(&format!("good-{round}"), 0..60)));
        eventually("the others are settled", || relay.count("select count(*) from attempt") == round * 60);
        assert_eq!(relay.count("select count(*) from delivery"), 40, "nothing of the refused is lost");
        let again = ledger.count("requests");
        eventually("the refused are alone again", || ledger.count("requests") > again + 20);
    }
    let twice = "select count(*) from (select from attempt group by tx_id having count(*) > 1) a";
    assert_eq!(relay.count(twice), 0);
    relay.sql().batch_execute("drop trigger no on attempt").expect("mended");
    eventually("they settle", || relay.count("select count(*) from delivery") == 0);
    eventually("nothing waits", || relay.metric(STALLED) == Some(0.0));
    assert!(relay.log().contains("PostgreSQL takes outcomes again"), "{}", relay.log());
    assert_eq!(ledger.count("accepted"), 160);
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

/// All of them are due again after a second, and would be sent again each second, with nothing to show for it.
#[test]
fn where_postgresql_takes_no_outcome_at_all_the_service_gets_one_delivery_in_five_seconds() {
    let (topic, ledger, mut relay) = outcomes_refused("%", "put-off=return(1000)");
    topic.raw(&spread(&ids("a", 0..300)));
    eventually("it is said", || relay.log().contains("PostgreSQL takes no outcome any more"));
    eventually("what was under way is put off", || relay.count("select count(*) from delivery where lease is not null") == 0);
    let (before, began) = (ledger.count("requests"), Instant::now());
    eventually("some time passes", || began.elapsed() > Duration::from_secs(12));
    let sent = ledger.count("requests") - before;
    assert!((1..=began.elapsed().as_secs() / 5 + 1).contains(&sent), "{sent} in {:?}", began.elapsed());
    assert_eq!(relay.count("select count(*) from delivery"), 300, "nothing is lost");
    relay.sql().batch_execute("drop trigger no on attempt").expect("mended");
    eventually("all settle", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(ledger.count("accepted"), 300);
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

fn claim_one(store: &mut Store, lease: i64) -> Vec<Leased> {
    let room = store.room.reserve_rows(1).expect("room");
    store.session.claim_one(Claimant { process: 1, lease, time: TIME }, room).expect("claimed").0.rows
}

/// It was given back as if it had not been sent, and preferred from then on as never tried.
#[test]
fn a_delivery_that_is_put_off_was_tried_and_what_never_was_goes_first() {
    let mut store = Store::new();
    let id = store.store(&[("odd", "1")], Some(5)).new[0].1;
    assert!(!store.session.put_off(id, 4, Duration::ZERO).expect("looked"), "another's lease");
    assert!(store.session.put_off(id, 5, Duration::ZERO).expect("put off"));
    assert_eq!(store.number("select count(*) from delivery where attempt = 1 and lease is null and leased_by is null"), 1);
    assert_eq!(store.number("select count(*) from attempt"), 0);
    let others = "insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
         select 10000 + g, 'p' || g, 'x', 0, 100 + g, 1, 0 from generate_series(1, 300) g; \
         insert into delivery (id, due_at, attempt) select 10000 + g, now() - g * interval '1 second', 1 from generate_series(1, 300) g";
    store.session.client().batch_execute(others).expect("more of them");
    store.session.client().batch_execute("update delivery set attempt = 0 where id = 10100").expect("one of them never tried");
    let found = claim_one(&mut store, 6);
    assert_eq!((found[0].id, found[0].attempt, found[0].probe), (10100, 1, false), "what was never tried");
    assert_eq!(claim_one(&mut store, 7)[0].id, 10300, "then what is due first");
    store.session.client().batch_execute("update delivery set due_at = now() + interval '1 second'").expect("not due");
    assert!(claim_one(&mut store, 8).is_empty(), "nothing before its time");
}

/// A process dies with a delivery whose outcomes are refused: so is the attempt that its lease leaves behind.
#[test]
fn leases_that_ran_out_are_taken_although_their_history_is_refused() {
    type Take = (&'static str, fn(&mut Store) -> usize);
    let take: [Take; 5] = [
        ("claim", |store| store.claim(6).len()),
        ("claim_one", |store| claim_one(store, 6).len()),
        ("claim_probe", |store| {
            let room = store.room.reserve_rows(1).expect("room");
            store.session.claim_probe(Claimant { process: 1, lease: 6, time: TIME }, room).expect("claimed").0.rows.len()
        }),
        ("expire", |store| store.session.expire(None, LEASE).expect("expired").0 as usize),
        ("sweep", |store| {
            store.session.client().batch_execute("update delivery set due_at = now() + interval '1 second'").expect("leased");
            store.session.bury(&[1]).expect("dead");
            store.session.sweep(&[1], LEASE).expect("swept") as usize
        }),
    ];
    for (name, take) in take {
        for (refuse, lost) in [("", 1), ("alter table attempt add check (outcome <> 7)", 0)] {
            let mut store = Store::new();
            let registration = Registration { instance: None, lock: None, host: "it".to_owned(), version: "0", lease: LEASE };
            assert_eq!(store.session.register(&registration).expect("registered").id, 1);
            store.store(&[("a", "1")], Some(5));
            store.forward(100);
            store.session.client().batch_execute(refuse).expect("altered");
            assert_eq!(take(&mut store), 1, "{name}");
            assert_eq!(store.number("select count(*) from attempt where outcome = 7"), lost, "{name}");
            // Claims hand it on with what they found.
            if matches!(name, "expire" | "sweep") {
                assert_eq!(store.session.history_refused().is_some(), lost == 0, "{name} says so");
            }
        }
    }
}
