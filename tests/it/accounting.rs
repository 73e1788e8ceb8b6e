//! Every offset in one place and every transaction in one state: what the audit finds, and what it does not mistake.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use txrelay::core::audit::{Audit, Problem};
use txrelay::store::Session;

use crate::reconcile::command;
use crate::rig::{Ledger, Relay, Topic, eventually, ids, wrong_offsets};
use crate::store::{Store, role};

const KEEP: Duration = Duration::from_secs(90 * 86_400);
const ME: i64 = 1;

fn run(store: &mut Store, sql: &str) {
    store.session.client().batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// In short: kind, and the first and last offset or the number of the transaction.
fn short(problem: &Problem) -> (String, i64, i64) {
    match (problem.place(), problem.tx_id()) {
        (Some((_, offsets)), _) => (problem.kind().to_owned(), offsets.start, offsets.end),
        (_, Some(id)) => (problem.kind().to_owned(), id, id),
        _ => panic!("neither: {problem:?}"),
    }
}

/// Goes over everything that is there, `rows` at a time, and looks a second time.
fn problems(session: &mut Session, mut audit: Audit, rows: i64) -> BTreeSet<(String, i64, i64)> {
    let lives = session.moment(None).expect("a moment").lives;
    assert!(audit.learn(&lives));
    let mut suspects = Vec::new();
    while !audit.is_finished() {
        suspects.extend(session.audit_step(&mut audit, i64::MAX, rows).expect("a step"));
    }
    suspects.extend(audit.missing());
    if audit.is_whole() {
        suspects.extend(audit.purged(&lives.iter().map(|life| (life.id.clone(), life.purged.offsets)).collect()));
        suspects.extend(session.audit_outside(&audit).expect("held against the lives"));
    }
    let once: BTreeSet<_> = suspects.iter().map(short).collect();
    let certain = session.audit_confirm(&audit, &suspects).expect("a second look");
    let twice: BTreeSet<_> = certain.iter().map(short).collect();
    assert_eq!(once, twice, "nothing has changed between two looks");
    twice
}

fn whole(store: &mut Store, rows: i64) -> BTreeSet<(String, i64, i64)> {
    problems(&mut store.session, Audit::whole(), rows)
}

/// Offsets 0 to `n` of the log, each at random in one of the places, each transaction at random in one of the states. Returns
/// the offsets of transactions: a transaction's number is a thousand and its offset.
fn laid_out(store: &mut Store, random: &mut SmallRng, n: i64) -> Vec<i64> {
    let at = |offset| format!("'payments', 0, 0, {offset}");
    let mut transactions = Vec::new();
    let mut sql = format!("update consumer_position set next_offset = {n};");
    let mut offset = 0;
    while offset < n {
        let id = 1000 + offset;
        let length = random.random_range(1..4).min(n - offset);
        let (place, used) = match random.random_range(0..12) {
            0 => (format!("insert into duplicate values ({}, 1, now())", at(offset)), 1),
            1 => (
                format!(
                    "insert into rejected (topic, partition, incarnation, kafka_offset, reason) values ({}, 'tombstone')",
                    at(offset)
                ),
                1,
            ),
            2 => (format!("insert into skipped values ({}, '{{[{offset},{})}}', now())", at(offset), offset + length), length),
            3 if length > 2 => {
                // One batch that skipped something around one record.
                let skipped = format!(
                    "insert into skipped values ({}, '{{[{offset},{}),[{},{})}}', now())",
                    at(offset),
                    offset + 1,
                    offset + 2,
                    offset + 3
                );
                (format!("{skipped}; insert into duplicate values ({}, 1, now())", at(offset + 1)), 3)
            }
            4 => (format!("insert into known_gap values ('payments', 0, 0, {offset}, {}, 'retention')", offset + length), length),
            5 => {
                (format!("insert into known_gap values ('payments', 0, 0, {offset}, {}, 'unexplained')", offset + length), length)
            }
            _ => {
                transactions.push(offset);
                let state = match random.random_range(0..4) {
                    0 => format!("insert into delivery (id, due_at) values ({id}, now())"),
                    1 => format!("insert into dead (id, attempts, reason) values ({id}, 1, 'refused')"),
                    2 => format!("insert into resolved (id, who, reason) values ({id}, 'me', '')"),
                    _ => format!(
                        "insert into attempt (tx_id, n, outcome, sent) values ({id}, 1, 2, 1), ({id}, 2, 1, 1), ({id}, 3, 1, 1)"
                    ),
                };
                let tx = format!(
                    "insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) values ({id}, 't{offset}', 'x', 0, {offset}, 1, 0)"
                );
                (format!("{tx}; {state}"), 1)
            }
        };
        sql += &place;
        sql.push(';');
        offset += used;
    }
    run(store, &sql);
    transactions
}

#[test]
fn whatever_row_goes_astray_is_named_and_nothing_else() {
    for seed in 0..8 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let mut store = Store::new();
        let transactions = laid_out(&mut store, random, 200);
        assert_eq!(wrong_offsets(store.session.client()), "");
        assert_eq!(whole(&mut store, 7), BTreeSet::new(), "seed {seed}");
        let mut expected = BTreeSet::new();
        let mut is_hit = BTreeSet::new();
        for fault in 0..6 {
            let offset = transactions[random.random_range(0..transactions.len())];
            // Neighbours would be one finding.
            if (offset - 1..=offset + 1).any(|near| is_hit.contains(&near)) {
                continue;
            }
            is_hit.insert(offset);
            let id = 1000 + offset;
            let stored =
                |store: &mut Store, table: &str| store.number(&format!("select count(*) from {table} where id = {id}")) > 0;
            let waits = ["delivery", "dead", "resolved"].into_iter().find(|table| stored(&mut store, table));
            match (fault, waits) {
                (0 | 1, _) => {
                    run(&mut store, &format!("delete from tx where id = {id}"));
                    expected.insert(("offset_missing".to_owned(), offset, offset + 1));
                    if waits.is_some() {
                        expected.insert(("without_transaction".to_owned(), id, id));
                    }
                }
                (2 | 3, _) => {
                    run(
                        &mut store,
                        &format!(
                            "delete from {} where {} = {id}",
                            waits.unwrap_or("attempt"),
                            if waits.is_some() { "id" } else { "tx_id" }
                        ),
                    );
                    expected.insert(("unaccounted".to_owned(), id, id));
                }
                (4, Some(table)) => {
                    let other = if table == "dead" {
                        "resolved (id, who, reason) values (ID, '', '')"
                    } else {
                        "dead (id, attempts, reason) values (ID, 1, 'refused')"
                    };
                    run(&mut store, &format!("insert into {}", other.replace("ID", &id.to_string())));
                    expected.insert(("two_states".to_owned(), id, id));
                }
                (5, _) => {
                    run(&mut store, &format!("insert into duplicate values ('payments', 0, 0, {offset}, 1, now())"));
                    expected.insert(("offset_twice".to_owned(), offset, offset + 1));
                }
                _ => {}
            }
        }
        for rows in [3, 50, 1000] {
            assert_eq!(whole(&mut store, rows), expected, "seed {seed}, {rows} rows");
            let from_the_start = problems(&mut store.session, Audit::from(0, 0), rows);
            assert_eq!(from_the_start, expected, "seed {seed}, {rows} rows, as new ones");
        }
    }
}

#[test]
fn a_log_without_its_life_and_what_lies_above_a_position_are_named() {
    let mut store = Store::new();
    laid_out(&mut store, &mut SmallRng::seed_from_u64(3), 60);
    let first = store.number("select min(kafka_offset) from tx where kafka_offset >= 40");
    let (first_of_all, last) =
        (store.number("select min(kafka_offset) from tx"), store.number("select max(kafka_offset) from tx"));
    assert_eq!(whole(&mut store, 7), BTreeSet::new());
    run(&mut store, "update consumer_position set next_offset = 40");
    let above = |from: i64| ("above_position".to_owned(), from, last + 1);
    let found = whole(&mut store, 7);
    assert!(found.contains(&above(first)), "{found:?}");
    run(&mut store, "create table kept as select * from consumer_position; delete from consumer_position");
    let expected = BTreeSet::from([above(first_of_all), ("offset_missing".to_owned(), 0, 0)]);
    assert_eq!(whole(&mut store, 7), expected, "a life that is read has a position");
    run(
        &mut store,
        "insert into consumer_position select * from kept; update consumer_position set next_offset = 60; delete from life",
    );
    let of_log = [(first_of_all, last + 1), (60, 60)].map(|(from, to)| ("offset_missing".to_owned(), from, to));
    assert_eq!(whole(&mut store, 7), BTreeSet::from(of_log), "its transactions, and its position");
    let problems = store.session.audit_outside(&Audit::whole()).expect("asked");
    assert_eq!(store.session.audit_keep(&problems).expect("kept"), 1);
}

#[test]
fn what_retention_deletes_is_counted_and_a_row_that_goes_among_them_is_noticed() {
    let mut store = Store::new();
    laid_out(&mut store, &mut SmallRng::seed_from_u64(7), 300);
    run(
        &mut store,
        "update tx set received_at = now() - interval '100 days'; update attempt set finished_at = now() - interval '99 days'; \
         update resolved set resolved_at = now() - interval '99 days' where id % 2 = 0; \
         update duplicate set seen_at = now() - interval '99 days' where kafka_offset % 3 > 0; \
         update skipped set seen_at = now() - interval '99 days' where from_offset < 250; \
         update rejected set resolved_at = now() - interval '99 days' where kafka_offset % 2 = 0",
    );
    let steps = crate::upkeep::pass(&mut store.session, 7).1;
    assert!(steps > 10, "{steps}");
    assert!(store.number("select offsets from purged") > 100);
    assert_eq!(wrong_offsets(store.session.client()), "");
    assert_eq!(whole(&mut store, 10), BTreeSet::new());
    run(
        &mut store,
        "delete from dead where id = (select min(id) from dead); delete from tx where id = (select min(id) from dead) - 0",
    );
    let below = store.number("select to_offset from purged");
    let found = whole(&mut store, 10);
    assert!(found.contains(&("purged".to_owned(), 0, below)), "{found:?}");
    // It stays one finding while retention goes on, and counts as one.
    for below in [below, below + 5] {
        let life = store.session.moment(None).expect("a moment").lives[0].id.clone();
        let problem = Problem::Purged {
            life,
            offsets: 0..below,
            holes: (vec![0..2], false),
            traces: (vec![], false),
            missing: 2,
            deleted: (1, 1),
        };
        store.session.audit_keep(&[problem]).expect("kept");
    }
    assert_eq!(store.number("select to_offset from audit_finding"), below + 5);
    assert_eq!(store.session.gauges().expect("counted").offsets_wrong, 1);
    assert!(!wrong_offsets(store.session.client()).is_empty());
}

#[test]
fn an_audit_beside_ingest_settling_and_retention_suspects_nothing_that_a_second_look_confirms() {
    for seed in 0..4 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let mut store = Store::new();
        let mut audits = [Audit::whole(), Audit::from(0, 0)];
        let (mut n, mut lease) = (0, 100);
        let mut certain = Vec::new();
        for _ in 0..80 {
            match random.random_range(0..6) {
                0 | 1 => {
                    // Some ids come again.
                    let ids: Vec<String> = (0..20).map(|i| format!("t{}", n + i - random.random_range(0..2) * 3)).collect();
                    n += 20;
                    let values: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "1")).collect();
                    store.store(&values, None);
                }
                2 => {
                    lease += 1;
                    for row in store.claim(lease).into_iter().take(30) {
                        let what = match random.random_range(0..3) {
                            0 => txrelay::store::Settled::Died {
                                tried: crate::store::tried(txrelay::core::outcome::Outcome::Refused, 400),
                                reason: "refused",
                            },
                            _ => txrelay::store::Settled::Delivered(crate::store::tried(
                                txrelay::core::outcome::Outcome::Delivered,
                                200,
                            )),
                        };
                        store.settle(row.id, lease, row.attempt, what);
                    }
                    run(&mut store, "update delivery set lease = null, leased_by = null, due_at = now()");
                }
                3 => {
                    let old = "update attempt set finished_at = now() - interval '91 days' where tx_id in (select id from tx order by id limit 60); \
                         update tx set received_at = now() - interval '92 days' where id in (select id from tx order by id limit 60); \
                         update duplicate set seen_at = now() - interval '91 days'";
                    run(&mut store, &format!("{old}; update pipeline set retention_ended_at = null"));
                    store.session.purge_delivered(ME, i64::MIN, 50, KEEP).expect("a step").expect("our turn");
                    let first = (String::new(), i32::MIN, i16::MIN, i64::MIN);
                    store.session.purge_duplicates(ME, &first, 5, KEEP).expect("a step").expect("our turn");
                }
                _ => {
                    for audit in &mut audits {
                        if audit.is_finished() || random.random_range(0..3) == 0 {
                            assert!(audit.learn(&store.session.moment(None).expect("a moment").lives));
                        }
                        let mut suspects = store.session.audit_step(audit, i64::MAX, 15).expect("a step");
                        suspects.extend(audit.missing());
                        certain.extend(store.session.audit_confirm(audit, &suspects).expect("looked"));
                        audit.forget_missing();
                        certain.extend(store.session.audit_outside(audit).expect("looked"));
                    }
                }
            }
        }
        assert_eq!(certain, [], "seed {seed}");
        assert_eq!(wrong_offsets(store.session.client()), "");
        assert_eq!(whole(&mut store, 40), BTreeSet::new());
    }
}

#[test]
fn a_schema_of_the_release_before_is_accounted_for_from_its_first_offset() {
    let config = crate::store::postgres(&crate::rig::unique("it_before"));
    let mut session = Session::connect(&config, &role()).expect("connects");
    let before = format!(
        "create schema \"{}\"; create table migration (version int primary key, name text not null, compatible_from int not null, \
           applied_at timestamptz not null default now()); {}; {}; \
         insert into migration values (1, 'initial', 1), (2, 'retention', 1); insert into pipeline (name) values ('it')",
        config.schema,
        include_str!("../../sql/migrations/0001_initial.sql"),
        include_str!("../../sql/migrations/0002_retention.sql")
    );
    session.client().batch_execute(&before).expect("as it was");
    // Offsets 30 to 39 and 71 to 99 were skipped or deleted, which nobody wrote down; partition 1 is in its second life.
    let rows = "insert into topic (name) values ('payments'); \
         insert into consumer_position (topic, partition, incarnation, next_offset, owner, epoch) values \
           ('payments', 0, 0, 100, 0, 1), ('payments', 1, 1, 5, 0, 1), ('payments', 2, 0, 0, 0, 1); \
         insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
           select g, 't' || g, 'x', 0, g, 1, 0 from generate_series(20, 59) g where g not between 30 and 39; \
         insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) values (101, 'a', 'x', 1, 3, 1, 0), (102, 'b', 'x', 1, 6, 1, 0); \
         insert into attempt (tx_id, n, outcome, sent) select id, 1, 1, 1 from tx; \
         insert into duplicate (topic, partition, incarnation, kafka_offset, tx_id) select 'payments', 0, 0, g, 20 from generate_series(60, 69) g; \
         insert into rejected (topic, partition, incarnation, kafka_offset, reason) values ('payments', 0, 0, 70, 'tombstone')";
    session.client().batch_execute(rows).expect("rows");
    assert_eq!(
        txrelay::store::migrate(&mut session, &config.schema).expect("migrated"),
        ["0003 accounting", "0004 gentle vacuum"]
    );
    let mut session = Session::connect(&config, &role()).expect("connects");
    assert_eq!(wrong_offsets(session.client()), "");
    assert_eq!(problems(&mut session, Audit::whole(), 10), BTreeSet::new());
    let purged = "select string_agg(format('%s/%s %s of %s', partition, incarnation, offsets, to_offset), ', ' order by partition) from purged";
    let purged: String = session.client().query_one(purged, &[]).expect("some").get(0);
    assert_eq!(purged, "0/0 39 of 100, 1/0 2 of 7");
    session.client().batch_execute("delete from duplicate where kafka_offset = 63").expect("by hand");
    assert_eq!(problems(&mut session, Audit::whole(), 10), BTreeSet::from([("purged".to_owned(), 20, 100)]));
    session.client().batch_execute(&format!("drop schema \"{}\" cascade", config.schema)).expect("dropped");
}

#[test]
fn one_process_audits_until_it_ends_or_falls_silent() {
    let mut store = Store::new();
    let mut other = Session::connect(&store.config, &role()).expect("connects");
    run(&mut store, "insert into process (host, pid, version, lease_ms) values ('a', 1, '', 1), ('b', 2, '', 1)");
    assert!(store.session.audit_turn(1).expect("asked").is_some_and(|turn| turn.whole_due && turn.audited_id == 0));
    assert_eq!(other.audit_turn(2).expect("asked"), None);
    assert!(store.session.audit_note(1, 77, None, false, &[]).expect("noted"));
    run(&mut store, "update process set ended_at = now() where id = 1");
    assert_eq!(other.audit_turn(2).expect("asked").map(|turn| turn.audited_id), Some(77));
    assert!(!store.session.audit_note(1, 99, None, false, &[]).expect("asked"), "it comes back too late");
    assert_eq!(store.session.audit_turn(1).expect("asked"), None);
    run(&mut store, "update pipeline set audit_at = now() - interval '61 s'");
    assert_eq!(store.session.audit_turn(1).expect("asked").map(|turn| turn.audited_id), Some(77));
    // Retention keeps out of the way of an audit over everything, for some hours.
    assert!(store.session.audit_note(1, 77, Some(5), true, &[]).expect("noted"));
    assert_eq!(other.purge_delivered(2, 0, 4, KEEP).expect("no step"), None);
    run(&mut store, "update pipeline set audit_whole_began_at = now() - interval '7 hours'");
    assert!(other.purge_delivered(2, 0, 4, KEEP).expect("a step").is_some());
    assert!(store.session.audit_turn(1).expect("asked").is_some_and(|turn| turn.retaining));
}

fn imbalance(relay: &Relay, equation: &str) -> Option<f64> {
    relay.metric(&format!("ledger_imbalance{{equation=\"{equation}\"}}"))
}

#[test]
fn a_delivery_that_is_deleted_by_hand_is_named_everywhere_until_it_is_back() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    ledger.behave(&serde_json::json!([{ "status": 500, "ids": ["a-7"] }]));
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    topic.transactions(ids("a", 0..40));
    eventually("all others are delivered", || {
        relay.count("select count(*) from delivery") == 1 && ledger.count("accepted") == 39
    });
    eventually("all are audited", || {
        relay.count("select count(*) from pipeline where audited_id = (select max(id) from tx)") == 1
    });
    assert_eq!(command(&relay, &["reconcile"]).0, Some(0), "{}", command(&relay, &["reconcile"]).1);
    let mut sql = relay.sql();
    // Not while it is in flight: its settle would write the attempt, and find no row.
    let deleted = "delete from delivery where lease is null returning id";
    let mut id = None;
    eventually("it is deleted", || {
        id = sql.query_opt(deleted, &[]).expect("asked").map(|row| row.get::<_, i64>(0));
        id.is_some()
    });
    let id = id.expect("one");
    let named = format!("transaction a-7 (row {id}): unaccounted");
    eventually("the log names it", || relay.log().contains(&named));
    assert_eq!(imbalance(&relay, "ingested"), Some(1.0));
    let (code, said) = command(&relay, &["reconcile"]);
    assert!(
        code == Some(1)
            && said.contains(&format!("transaction a-7 (row {id}) from {}", topic.name))
            && said.contains("unaccounted"),
        "{said}"
    );
    let (code, said) = command(&relay, &["status"]);
    assert!(code == Some(1) && said.contains(&named), "{said}");
    let (code, said) = command(&relay, &["retry", "a-7", "--yes"]);
    assert!(code == Some(1) && said.contains("stored, and its state was lost"), "{code:?} {said}");
    ledger.behave_well();
    sql.execute("insert into delivery (id, due_at, attempt) values ($1, now(), 1)", &[&id]).expect("back");
    eventually("it is delivered", || ledger.count("accepted") == 40);
    eventually("nothing is wrong any more", || {
        imbalance(&relay, "ingested") == Some(0.0) && relay.count("select count(*) from audit_finding") == 0
    });
    assert_eq!(command(&relay, &["reconcile"]).0, Some(0));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    relay.balanced();
}

#[test]
fn a_transaction_that_is_deleted_by_hand_is_found_by_upkeep_and_by_reconcile() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    topic.transactions(ids("a", 0..60));
    eventually("all are delivered", || ledger.count("accepted") == 60 && relay.count("select count(*) from delivery") == 0);
    eventually("all are audited", || relay.count("select count(*) from audit_position where next_offset = 60") == 1);
    let row = "with d as (delete from tx where kafka_offset = 33 returning id) delete from attempt using d where tx_id = d.id";
    relay.sql().batch_execute(&format!("create table kept as select * from tx where kafka_offset = 33; {row}")).expect("deleted");
    let named = format!("{}/0 offset 33: read, and in no place", topic.name);
    let (code, said) = command(&relay, &["reconcile"]);
    assert!(code == Some(1) && said.contains(&named), "{said}");
    // Once a day, which is now.
    let now = "update pipeline set audit_whole_at = now() - interval '25 hours'";
    relay.sql().batch_execute(now).expect("a day later");
    eventually("upkeep finds it", || relay.log().contains(&named));
    eventually("it shows", || imbalance(&relay, "read") == Some(1.0));
    let back = "insert into tx select * from kept; insert into attempt (tx_id, n, outcome, sent) select id, 1, 1, 1 from kept; drop table kept";
    relay.sql().batch_execute(&format!("{back}; {now}")).expect("back, and a day later");
    assert!(!command(&relay, &["status"]).1.contains("last audited"), "a day is not long");
    eventually("it is found right again", || relay.log().contains("found 1 findings right again"));
    eventually("it shows", || imbalance(&relay, "read") == Some(0.0));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    relay.sql().batch_execute("update pipeline set audit_whole_at = now() - interval '75 hours'").expect("days later");
    let said = command(&relay, &["status"]).1;
    assert!(said.contains("audit        everything was last audited 3 d 3 h ago"), "{said}");
    relay.balanced();
}

#[test]
fn a_batch_that_is_committed_late_is_audited_and_not_missed() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.start();
    topic.transactions(ids("a", 0..20));
    eventually("they are audited", || relay.count("select count(*) from audit_position where next_offset = 20") == 1);
    // Another process' batch: its ids come before those of what is read meanwhile, its commit after.
    let mut late = relay.sql();
    let mut late = late.transaction().expect("begins");
    late.batch_execute(
        "insert into topic (name) values ('late'); \
         insert into consumer_position (topic, partition, next_offset, owner, epoch) values ('late', 0, 5, 0, 0); \
         insert into life (topic, partition, incarnation, first_offset) values ('late', 0, 0, 0); \
         with b as materialized (select nextval('batch_seq') as base) \
         insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
           select b.base + g, 'late-' || g, 'x', 0, g, t.id, 0 from b, generate_series(0, 4) g, topic t where t.name = 'late'; \
         insert into delivery (id, due_at) select id, now() from tx where transaction_id like 'late-%'; \
         insert into counter (slot, name, n) values (0, 1, 5), (0, 2, 5)",
    )
    .expect("inserted");
    let last = "select max(id) from tx where transaction_id like 'late-%'";
    let its: i64 = late.query_one(last, &[]).expect("an id").get(0);
    topic.transactions(ids("b", 0..20));
    eventually("what came later is delivered", || ledger.count("accepted") == 40);
    crate::rig::throughout(Duration::from_secs(5), "the audit waits", || relay.count("select audited_id from pipeline") < its);
    late.commit().expect("committed");
    eventually("all are delivered", || ledger.count("accepted") == 45);
    eventually("and audited", || {
        relay.count("select count(*) from audit_position where (topic = 'late' and next_offset = 5) or next_offset = 40") == 2
    });
    assert_eq!(relay.count("select count(*) from audit_finding"), 0, "{}", relay.log());
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert!(!relay.log().contains("the audit:"), "{}", relay.log());
    relay.balanced();
}
