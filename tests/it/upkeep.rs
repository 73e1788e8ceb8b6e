//! What upkeep promises, on a real PostgreSQL with a schema per test: retention, counts by state, leases that ran out, clocks.

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use txrelay::core::ledger::Imbalances;
use txrelay::core::outcome::Outcome;
use txrelay::store::{Claimant, OffsetPlace, Registration, Session, Settled, statements};

use crate::rig::{Ledger, Relay, Topic, eventually, ids};
use crate::store::{LEASE, Store, TIME, role, tried};

const KEEP: Duration = Duration::from_secs(90 * 86_400);
const ME: i64 = 1;

fn run(store: &mut Store, sql: &str) {
    store.session.client().batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// A transaction that was stored 100 days ago, with `evidence`: statements in which ID is its id.
fn old(store: &mut Store, id: i64, evidence: &str) {
    let tx = "insert into tx (id, received_at, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
         values (ID, now() - interval '100 days', 'old-' || ID, 'x', 0, ID, 1, 0);";
    run(store, &format!("{tx}{evidence}").replace("ID", &id.to_string()));
}

/// An attempt of ID, `days` ago.
fn attempt(outcome: i16, stale: bool, days: u32) -> String {
    format!(
        "insert into attempt (tx_id, finished_at, n, outcome, sent, stale) values (ID, now() - interval '{days} days', 1, {outcome}, 1, {stale});"
    )
}

/// Sets the counters to what the tables hold, as the writers would have.
fn count_what_is_there(store: &mut Store) {
    run(
        store,
        "insert into counter (slot, name, n) \
         select 0, v.name, v.n from (values (1, (select count(*) from tx)), (2, (select count(*) from tx)), \
           (8, (select count(*) from delivery d where exists (select from attempt a where a.tx_id = d.id and a.outcome = 1 and not a.stale))), \
           (5, (select count(distinct tx_id) from attempt where outcome = 1 and not stale)), \
           (12, (select count(distinct a.tx_id) from attempt a where a.outcome = 1 and not a.stale and (exists (select from delivery d where d.id = a.tx_id) \
             or exists (select from dead d where d.id = a.tx_id) or exists (select from resolved r where r.id = a.tx_id)))), \
           (6, (select count(*) from dead)), (7, (select count(*) from resolved))) v(name, n)",
    );
}

/// Walks everything as upkeep does, `rows` at a time; returns how many rows went and in how many steps.
pub fn pass(session: &mut Session, rows: i64) -> (u64, usize) {
    let (mut gone, mut steps) = (0, 0);
    let mut after = Some(i64::MIN);
    while let Some(id) = after {
        let purged = session.purge_delivered(ME, id, rows, KEEP).expect("a step").expect("our turn");
        assert!(purged.gone <= rows as u64 && purged.next.is_none_or(|next| next > id), "{purged:?} after {id}");
        (gone, steps, after) = (gone + purged.gone, steps + 1, purged.next);
    }
    let mut after = Some(i64::MIN);
    while let Some(id) = after {
        let purged = session.purge_resolved(ME, id, rows, KEEP).expect("a step").expect("our turn");
        (gone, steps, after) = (gone + purged.gone, steps + 1, purged.next);
    }
    let mut more = Some(());
    while more.is_some() {
        let purged = session.purge_rejected(ME, rows, KEEP).expect("a step").expect("our turn");
        (gone, steps, more) = (gone + purged.gone, steps + 1, purged.next);
    }
    let mut after: Option<OffsetPlace> = Some((String::new(), i32::MIN, i16::MIN, i64::MIN));
    while let Some(place) = after {
        let purged = session.purge_duplicates(ME, &place, rows, KEEP).expect("a step").expect("our turn");
        (gone, steps, after) = (gone + purged.gone, steps + 1, purged.next);
    }
    let mut after: Option<OffsetPlace> = Some((String::new(), i32::MIN, i16::MIN, i64::MIN));
    while let Some(place) = after {
        let purged = session.purge_skipped(ME, &place, rows, KEEP).expect("a step").expect("our turn");
        (gone, steps, after) = (gone + purged.gone, steps + 1, purged.next);
    }
    gone += session.end_retention(ME).expect("a step").expect("our turn");
    (gone, steps + 1)
}

#[track_caller]
fn assert_balanced(store: &mut Store) {
    let gauges = store.session.gauges().expect("counted");
    assert_eq!(gauges.ledger().imbalances(), Imbalances::default(), "{gauges:?}");
    for (state, n) in gauges.states() {
        let found = store.number(&format!("select count(*) from transaction_status where state = '{state}'"));
        assert_eq!(n, found, "{state}");
    }
}

#[test]
fn retention_deletes_what_is_finished_and_old_and_nothing_else() {
    let mut store = Store::new();
    let delivered = attempt(1, false, 95);
    let open = "insert into delivery (id, due_at, attempt) values (ID, now(), 1);";
    let dead = "insert into dead (id, died_at, attempts, reason) values (ID, now() - interval '95 days', 1, 'refused');";
    let resolved = |days: u32| {
        format!(
            "insert into resolved (id, resolved_at, who, reason) values (ID, now() - interval '{days} days', 'me', 'because');"
        )
    };
    let cases: Vec<(&str, String, bool)> = vec![
        ("delivered long ago", delivered.clone(), false),
        ("delivered long ago, at the second try", format!("{}{delivered}", attempt(2, false, 96)), false),
        ("delivered yesterday", attempt(1, false, 1), true),
        ("delivered long ago, and again yesterday", format!("{delivered}{}", attempt(1, false, 1)), true),
        ("delivered says only a stale answer", attempt(1, true, 95), true),
        ("unaccounted", String::new(), true),
        ("failed, and nothing else is known", attempt(2, false, 95), true),
        ("open", format!("{}{open}", attempt(2, false, 95)), true),
        ("delivered, and opened again", format!("{delivered}{open}"), true),
        ("dead", format!("{}{dead}", attempt(6, false, 95)), true),
        ("dead, though once delivered", format!("{delivered}{dead}"), true),
        ("resolved long ago", format!("{}{}", attempt(6, false, 96), resolved(95)), false),
        ("resolved without an attempt", resolved(95), false),
        ("resolved yesterday", format!("{}{}", attempt(6, false, 95), resolved(1)), true),
        ("resolved, and dead again", format!("{}{dead}", resolved(95)), true),
    ];
    for (n, (_, evidence, _)) in cases.iter().enumerate() {
        old(&mut store, n as i64 + 1, evidence);
    }
    store.store(&[("fresh", "1")], None);
    run(&mut store, "delete from counter");
    count_what_is_there(&mut store);
    let rejected = |days: &str| {
        format!(
            "insert into rejected (topic, partition, incarnation, kafka_offset, received_at, reason, resolved_at) \
             select 't', 0, 0, (select count(*) from rejected), now() - interval '200 days', 'tombstone', {days};"
        )
    };
    for days in ["null", "now() - interval '95 days'", "now() - interval '89 days'", "now() - interval '99 days'"] {
        run(&mut store, &rejected(days));
    }
    run(
        &mut store,
        "insert into duplicate (topic, partition, incarnation, kafka_offset, tx_id, seen_at) \
         select 't' || g % 2, g % 3, 0, g, 1, now() - interval '1 day' * (119.5 - g) from generate_series(0, 119) g; \
         insert into process (host, pid, version, lease_ms, seen_at, ended_at) values \
           ('silent', 1, '', 60000, now() - interval '31 days', null), ('ended', 1, '', 60000, now() - interval '31 days', now() - interval '31 days'), \
           ('lately', 1, '', 60000, now() - interval '29 days', null); \
         insert into process (id, host, pid, version, lease_ms, seen_at) overriding system value values (77, 'holds', 1, '', 60000, now() - interval '31 days'); \
         update delivery set lease = 5, leased_by = 77, due_at = now() - interval '30 days' where id = 8; \
         insert into audit_log (at, command) values (now() - interval '10 years', 'x'); \
         insert into known_gap (topic, partition, incarnation, from_offset, to_offset, reason, noticed_at) values ('t', 0, 0, 1, 2, 'retention', now() - interval '10 years')",
    );
    assert_eq!(store.session.gauges().expect("counted").retention_ended, None);
    assert!(store.session.gauges().expect("counted").retention_due);
    // Both kinds of retention leave 4 of the delivered and resolved; 30 duplicates, 2 rejected, 2 processes.
    let (gone, steps) = pass(&mut store.session, 4);
    assert_eq!(gone, 4 + 30 + 2 + 2);
    assert!(steps > 15, "{steps} steps of 4 rows");
    for (n, (what, _, stays)) in cases.iter().enumerate() {
        let id = n as i64 + 1;
        assert_eq!(store.number(&format!("select count(*) from tx where id = {id}")), i64::from(*stays), "{what}");
        if !stays {
            let left = "select (select count(*) from attempt where tx_id = ID) + (select count(*) from resolved where id = ID)";
            assert_eq!(store.number(&left.replace("ID", &id.to_string())), 0, "{what} left something");
        }
    }
    assert_eq!(store.number("select count(*) from attempt where not exists (select from tx where id = tx_id)"), 0);
    assert_eq!(store.number("select count(*) from attempt"), 10, "what stays keeps its attempts");
    assert_eq!(store.number("select count(*) from duplicate"), 90);
    assert_eq!(store.number("select count(*) from duplicate where seen_at < now() - interval '90 days'"), 0);
    assert_eq!(store.number("select count(*) from rejected where resolved_at is null"), 1);
    assert_eq!(store.number("select count(*) from rejected"), 2);
    let hosts: String =
        store.session.client().query_one("select string_agg(host, ' ' order by host) from process", &[]).expect("some").get(0);
    assert_eq!(hosts, "holds lately");
    assert_eq!(store.number("select (select count(*) from audit_log) + (select count(*) from known_gap) + (select count(*) from consumer_position)"), 3);
    let counter = |store: &mut Store, code: i16| {
        store.number(&format!("select coalesce(sum(n), 0)::bigint from counter where name = {code}"))
    };
    // Two were opened again before.
    assert_eq!((counter(&mut store, 12), counter(&mut store, 13)), (2 + 2, 2));
    let gauges = store.session.gauges().expect("counted");
    assert!(gauges.retention_ended.is_some() && !gauges.retention_due, "{gauges:?}");
}

#[test]
fn retention_keeps_the_ledger_balanced() {
    let mut store = Store::new();
    let delivered = attempt(1, false, 95);
    for id in 1..=40 {
        let evidence = match id % 4 {
            0 => "insert into delivery (id, due_at) values (ID, now());".to_owned(),
            1 => "insert into dead (id, attempts, reason) values (ID, 1, 'refused');".to_owned(),
            2 => "insert into resolved (id, resolved_at, who, reason) values (ID, now() - interval '95 days', 'me', '');"
                .to_owned(),
            _ => delivered.clone(),
        };
        old(&mut store, id, &evidence);
    }
    count_what_is_there(&mut store);
    assert_balanced(&mut store);
    assert_eq!(pass(&mut store.session, 7).0, 20);
    assert_balanced(&mut store);
    let states = store.session.gauges().expect("counted").states();
    assert_eq!(states.map(|state| state.1), [10, 0, 0, 0, 10, 0]);
}

#[test]
fn what_retention_leaves_to_write_is_written_slowly() {
    let mut store = Store::new();
    old(&mut store, 1, &attempt(1, false, 95));
    let mut theirs = Session::connect(&store.config, &role()).expect("connects");
    theirs.client().batch_execute("set backend_flush_after = '64kB'").expect("set");
    for (session, before, after) in [(&mut store.session, "0", "256kB"), (&mut theirs, "64kB", "64kB")] {
        let show = |session: &mut Session| -> String {
            session.client().query_one("show backend_flush_after", &[]).expect("a setting").get(0)
        };
        assert_eq!(show(session), before);
        session.purge_delivered(ME, 0, 4, KEEP).expect("a step").expect("our turn");
        assert_eq!(show(session), after);
    }
    // At 20 a page that was clean: 10,000 a second are 500 pages of 8 kB.
    let costs = "select c.relname::text, o.option_value::int * 1000 / d.option_value::int from pg_class c, \
         pg_options_to_table(c.reloptions) o, pg_options_to_table(c.reloptions) d \
         where c.relnamespace = current_schema()::regnamespace and o.option_name = 'autovacuum_vacuum_cost_limit' \
           and d.option_name = 'autovacuum_vacuum_cost_delay' order by 1";
    let costs: Vec<(String, i32)> =
        theirs.client().query(costs, &[]).expect("options").iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(costs, [("attempt".to_owned(), 20_000), ("tx".to_owned(), 10_000)]);
}

#[test]
fn one_process_does_a_pass_and_the_next_begins_an_hour_later() {
    let mut store = Store::new();
    let mut other = Session::connect(&store.config, &role()).expect("connects");
    for id in 1..=10 {
        old(&mut store, id, &attempt(1, false, 95));
    }
    let first = store.session.purge_delivered(1, 0, 4, KEEP).expect("a step").expect("nobody else is at it");
    assert_eq!((first.gone, first.next), (4, Some(4)));
    assert_eq!(other.purge_delivered(2, 0, 4, KEEP).expect("no step"), None, "the first one has a minute for its next step");
    assert_eq!(other.end_retention(2).expect("no step"), None);
    run(&mut store, "update pipeline set retention_at = now() - interval '61 s'");
    let taken_over = other.purge_delivered(2, 0, 4, KEEP).expect("a step").expect("the first one has died over it");
    assert_eq!(taken_over.gone, 4);
    assert_eq!(store.session.purge_delivered(1, 4, 4, KEEP).expect("no step"), None, "and comes back too late");
    assert!(other.end_retention(2).expect("a step").is_some());
    assert_eq!(store.session.purge_delivered(1, 4, 4, KEEP).expect("no step"), None, "the pass has ended");
    run(&mut store, "update pipeline set retention_ended_at = now() - interval '61 min'");
    assert!(store.session.purge_delivered(1, 0, 4, KEEP).expect("a step").is_some());
    // As after a clock that was an hour ahead for a while.
    run(&mut store, "update pipeline set retention_ended_at = now() + interval '1 hour', retention_by = null");
    assert!(store.session.gauges().expect("counted").retention_due);
    assert!(other.purge_delivered(2, 0, 4, KEEP).expect("a step").is_some());
}

#[test]
fn while_a_step_runs_nobody_else_does_one() {
    let mut store = Store::new();
    old(&mut store, 1, &attempt(1, false, 95));
    let lock = statements().into_iter().find(|sql| sql.name == "retention_lock").expect("it is there");
    let mut other = Session::connect(&store.config, &role()).expect("connects");
    let mut held = other.client().transaction().expect("begins");
    assert!(held.query_one(&lock.render(), &[]).expect("asked").get::<_, bool>(0));
    assert_eq!(store.session.purge_delivered(1, 0, 4, KEEP).expect("no step"), None);
    held.rollback().expect("ended");
    assert!(store.session.purge_delivered(1, 0, 4, KEEP).expect("a step").is_some());
}

/// The plan of a statement with these parameters, run once and rolled back; no node of it may read more than `most` rows.
#[track_caller]
fn assert_reads_no_more(store: &mut Store, name: &str, parameters: &str, most: f64) {
    let sql = statements().into_iter().find(|sql| sql.name == name).expect("known");
    let bitmaps = if name.starts_with("audit") { "off" } else { "on" };
    run(store, &format!("set enable_bitmapscan = {bitmaps}; prepare looked_at as {}", sql.render()));
    let mut transaction = store.session.client().transaction().expect("begins");
    let row = transaction.query_one(&format!("explain (analyze, format json) execute looked_at{parameters}"), &[]);
    let plan: Value = row.expect("explained").get(0);
    transaction.rollback().expect("rolled back");
    run(store, "deallocate looked_at");
    check_node(&plan[0]["Plan"], name, most);
}

fn check_node(node: &Value, name: &str, most: f64) {
    let number = |key: &str| node[key].as_f64().unwrap_or(0.0);
    let read = (number("Actual Rows") + number("Rows Removed by Filter") + number("Rows Removed by Join Filter"))
        * number("Actual Loops");
    assert!(read <= most, "{name} reads {read} rows in {}", serde_json::to_string_pretty(node).unwrap_or_default());
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let table = node["Relation Name"].as_str().unwrap_or_default();
    // These have few rows.
    assert!(!kind.starts_with("Seq") || ["pipeline", "process"].contains(&table), "{name}: {kind} on {table}");
    assert!(!kind.contains("Hash Join") && !kind.contains("Merge Join"), "{name}: {kind}");
    for child in node["Plans"].as_array().into_iter().flatten() {
        check_node(child, name, most);
    }
}

#[test]
fn no_step_of_upkeep_reads_more_than_its_share_of_a_large_table() {
    let mut store = Store::new();
    let steps = [
        ("purge_delivered", "(0, 200, 7776000000, 2)", 1_000.0),
        ("purge_resolved", "(0, 200, 7776000000, 2)", 1_000.0),
        ("purge_rejected", "(200, 7776000000)", 1_000.0),
        ("purge_duplicates", "('', 0, 0::smallint, 0, 200, 7776000000)", 1_000.0),
        ("purge_skipped", "('', 0, 0::smallint, 0, 200, 7776000000)", 1_000.0),
        ("audit_rows", "(1000, 60000, 500)", 1_500.0),
        ("audit_back", "(50000, 500)", 1_500.0),
        ("audit_places", "('{t}', '{0}', '{0}', '{5000}', '{5300}')", 1_000.0),
        ("audit_states", "('{5,500,50000}')", 100.0),
        ("purge_processes", "", 1_000.0),
        ("expire", "(now() - interval '10 s', 60000, true)", 2_000.0),
        ("clock_repair", "(0, 3600000, 60000)", 30_000.0),
    ];
    // On empty tables, on full ones that nobody has analyzed yet, and on analyzed ones.
    for (name, parameters, most) in steps {
        assert_reads_no_more(&mut store, name, parameters, most);
    }
    run(
        &mut store,
        "insert into tx (id, received_at, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
           select g, now() - interval '100 days', 'p' || g, 'x', 0, g, 1, 0 from generate_series(1, 60000) g; \
         insert into attempt (tx_id, finished_at, n, outcome, sent) select g, now() - interval '99 days', 1, 1, 1 from generate_series(1, 40000) g; \
         insert into delivery (id, due_at, attempt) select g, now() + interval '1 h', 1 from generate_series(40001, 55000) g; \
         insert into dead (id, attempts, reason) select g, 1, 'refused' from generate_series(55001, 57000) g; \
         insert into resolved (id, resolved_at, who, reason) select g, now() - interval '99 days', '', '' from generate_series(57001, 60000) g; \
         insert into rejected (topic, partition, incarnation, kafka_offset, reason, resolved_at) \
           select 't', 0, 0, g, 'tombstone', case when g < 2000 then now() - interval '99 days' end from generate_series(1, 20000) g; \
         insert into duplicate (topic, partition, incarnation, kafka_offset, tx_id, seen_at) \
           select 't', 0, 0, g, g, now() - interval '99 days' from generate_series(1, 20000) g; \
         insert into skipped select 't', 0, 0, 30000 + g * 3, int8multirange(int8range(30000 + g * 3, 30002 + g * 3)), now() - interval '99 days' \
           from generate_series(1, 20000) g; \
         insert into life (topic, partition, incarnation, first_offset) select 't', g, 0, 0 from generate_series(0, 500) g; \
         insert into process (host, pid, version, lease_ms, seen_at) select '', 1, '', 1, now() - interval '1 h' from generate_series(1, 500)",
    );
    for analyzed in [false, true] {
        if analyzed {
            run(
                &mut store,
                "analyze tx; analyze attempt; analyze delivery; analyze dead; analyze resolved; analyze rejected; analyze duplicate; analyze skipped; analyze life",
            );
        }
        for (name, parameters, most) in steps {
            assert_reads_no_more(&mut store, name, parameters, most);
        }
    }
}

#[test]
fn counts_and_view_name_the_same_states() {
    let mut store = Store::new();
    for (id, evidence) in [
        "insert into delivery (id, due_at) values (ID, now() - interval '1 h')",
        "insert into delivery (id, due_at) values (ID, now() + interval '1 h')",
        "insert into delivery (id, due_at, attempt, lease, leased_by) values (ID, now() + interval '1 min', 1, 5, 1)",
        "insert into delivery (id, due_at, attempt, lease, leased_by) values (ID, now() + interval '1 min', 3, 5, 1)",
        // The lease has run out: nobody holds it.
        "insert into delivery (id, due_at, attempt, lease, leased_by) values (ID, now() - interval '1 ms', 1, 5, 1)",
        "insert into delivery (id, due_at, attempt) values (ID, now() - interval '1 h', 2)",
        "insert into delivery (id, due_at, attempt) values (ID, now() + interval '1 h', 2)",
        "insert into dead (id, attempts, reason) values (ID, 1, 'refused')",
        "insert into resolved (id, who, reason) values (ID, 'me', '')",
        "insert into attempt (tx_id, n, outcome, sent) values (ID, 1, 1, 1)",
    ]
    .iter()
    .enumerate()
    {
        old(&mut store, id as i64 + 1, evidence);
    }
    count_what_is_there(&mut store);
    assert_balanced(&mut store);
    let states = store.session.gauges().expect("counted").states();
    let expected = [("pending", 2), ("in_flight", 2), ("retrying", 3), ("delivered", 1), ("dead", 1), ("resolved", 1)];
    assert_eq!(states, expected);
}

/// Looks for leases that ran out until there are none, from `from` on.
fn expire(store: &mut Store, from: Option<SystemTime>) -> (u64, Option<SystemTime>) {
    let (mut lost, mut from) = (0, from);
    loop {
        let (n, next) = store.session.expire(from, LEASE).expect("looked");
        (lost, from) = (lost + n, next.or(from));
        if n == 0 {
            return (lost, from);
        }
    }
}

#[test]
fn a_lease_that_ran_out_while_paused_is_noted_as_lost_once_and_its_late_answer_is_stale() {
    let mut store = Store::new();
    let names: Vec<String> = (0..3).map(|i| format!("l{i}")).collect();
    let values: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let new = store.store(&values, Some(11)).new;
    store.store(&[("waits", "1")], None);
    run(&mut store, "update pipeline set paused_at = now()");
    assert!(store.claim(12).is_empty(), "nobody claims");
    assert_eq!(expire(&mut store, None).0, 0, "they are held");
    run(&mut store, "update delivery set due_at = now() - interval '4 s' where lease = 11");
    assert_eq!(expire(&mut store, None).0, 0, "claimers go first");
    run(&mut store, "update delivery set due_at = now() - interval '6 s' where lease = 11");
    let (lost, from) = expire(&mut store, None);
    assert_eq!((lost, expire(&mut store, from).0), (3, 0));
    assert_eq!(store.number("select count(*) from attempt where outcome = 7 and sent = 2 and lease = 11 and n = 1"), 3);
    assert_eq!(store.number("select count(*) from delivery where lease is null and leased_by is null and due_at <= now()"), 4);
    assert_eq!(store.number("select count(*) from delivery where due_at < now() - interval '3 s'"), 0, "due now, not before");
    assert_eq!(store.state("l0"), "retrying");
    let late = store.settle(new[0].1, 11, 1, Settled::Delivered(tried(Outcome::Delivered, 200)));
    assert_eq!((late, store.state("l0").as_str()), (1, "retrying"), "it changed nothing");
    assert_eq!(store.number("select count(*) from attempt where stale and outcome = 1"), 1);
    run(&mut store, "update pipeline set paused_at = null");
    assert_eq!(store.claim(13).len(), 4);
    assert_eq!(store.number("select count(*) from attempt where outcome = 7"), 3, "one for each lease");
}

#[test]
fn a_window_that_moves_finds_each_lease_that_runs_out_and_reads_no_backlog() {
    let mut store = Store::new();
    run(
        &mut store,
        "insert into delivery (id, due_at) select g, now() - interval '20 s' from generate_series(1, 5000) g; \
         insert into delivery (id, due_at, attempt, lease, leased_by) select g, now() - interval '10 s', 1, 5, 1 from generate_series(5001, 6200) g",
    );
    // All of a batch end at the same moment, and there are more of them than fit into one statement.
    let (lost, from) = expire(&mut store, None);
    assert_eq!(lost, 1200);
    run(&mut store, "update delivery set due_at = now() - interval '5 s', lease = 6, attempt = 1 where id = 7");
    assert_eq!(expire(&mut store, from).0, 1, "it ended after the last look");
    assert_eq!(store.number("select count(*) from attempt where outcome = 7"), 1201);
}

#[test]
fn what_a_clock_set_back_left_ahead_is_moved_once() {
    let mut store = Store::new();
    let hour = Duration::from_secs(3600);
    run(
        &mut store,
        "insert into process (host, pid, version, lease_ms, seen_at) values ('old clock', 1, '', 90000, now() + interval '1 hour'); \
         insert into delivery (id, due_at, attempt) select g, now() + interval '1 hour' + g * interval '1 s', 1 from generate_series(1, 11000) g; \
         insert into delivery (id, due_at, attempt) values (20001, now() - interval '1 s', 1), (20002, now() + interval '30 s', 1); \
         insert into delivery (id, due_at, attempt, lease) values (20003, now() + interval '1 hour', 1, 5), (20004, now() + interval '50 s', 1, 6), \
           (20005, now() - interval '50 s', 1, 7); \
         update pipeline set paused_until = now() + interval '90 min'",
    );
    let behind = store.session.clock_behind().expect("asked");
    assert!(behind > hour - Duration::from_secs(30) && behind <= hour, "{behind:?}");
    assert!(store.session.note_clock_back(hour, Duration::from_secs(11)).expect("noted"), "the first to see it");
    let mut other = Session::connect(&store.config, &role()).expect("connects");
    assert!(!other.note_clock_back(hour, Duration::from_secs(11)).expect("noted"), "another has noted it");
    assert_eq!(store.session.clock_behind().expect("asked"), Duration::ZERO, "nor does a later start take it for a new one");
    // Two processes are at it in turns.
    let mut moved = Vec::new();
    for n in 0..4 {
        let session = if n % 2 == 0 { &mut store.session } else { &mut other };
        moved.push(session.repair_clock(LEASE).expect("moved"));
    }
    assert_eq!(moved, [(5000, false), (5000, false), (1002, false), (0, true)]);
    assert_eq!(other.repair_clock(LEASE).expect("moved"), (0, true), "nothing is left to do");
    let off = "select count(*) from delivery where id <= 11000 and abs(extract(epoch from due_at - now()) - id) > 30";
    assert_eq!(store.number(off), 0, "each waits as long as it would have");
    let ahead = |store: &mut Store, id: i64| {
        store.number(&format!("select extract(epoch from due_at - now())::bigint from delivery where id = {id}"))
    };
    assert!(ahead(&mut store, 20001) < 0, "what is due stays due");
    assert!((-30..=0).contains(&ahead(&mut store, 20002)), "never below now");
    assert!((60..=90).contains(&ahead(&mut store, 20003)), "a whole lease, the longest of all processes");
    assert!((20..=50).contains(&ahead(&mut store, 20004)), "a lease that may be right is not touched");
    assert!(ahead(&mut store, 20005) < 0);
    assert!((1700..=1800).contains(&store.number("select extract(epoch from paused_until - now())::bigint from pipeline")));
    assert_eq!(store.number("select count(*) from delivery"), 11_005);
}

#[test]
fn a_floor_of_before_the_clock_was_set_back_hides_nothing() {
    let mut store = Store::new();
    store.store(&[("a", "1")], None);
    let ahead = SystemTime::now() + Duration::from_secs(3600);
    assert_eq!(store.session.next_due(Some(ahead)).expect("asked"), Some(Duration::ZERO));
    let room = store.room.reserve_rows(8).expect("room");
    let who = Claimant { process: 1, lease: 3, time: TIME };
    let (claimed, _) = store.session.claim(8, who, Some(ahead), room).expect("claimed");
    assert_eq!(claimed.rows.len(), 1);
}

#[test]
fn a_start_says_when_the_clock_is_behind_what_others_wrote() {
    let mut store = Store::new();
    assert_eq!(store.session.clock_behind().expect("asked"), Duration::ZERO, "nobody was here");
    let registration = Registration { instance: None, lock: None, host: "h".to_owned(), version: "v", lease: LEASE };
    store.session.register(&registration).expect("registered");
    assert!(store.session.clock_behind().expect("asked") < Duration::from_secs(1));
}

#[test]
fn one_of_two_processes_does_the_pass_and_what_is_kept_for_ever_stays() {
    let (topic, ledger) = (Topic::new(2), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.set("retention.delivered=forever");
    assert!(relay.command(&["migrate"]).status().expect("runs").success());
    let rows = "insert into topic (name) values ('made by SQL'); \
         insert into tx (id, received_at, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
           select g, now() - interval '100 days', 'old-' || g, 'x', 0, g, 1, 0 from generate_series(1, 5) g; \
         insert into attempt (tx_id, finished_at, n, outcome, sent) select g, now() - interval '99 days', 1, 1, 1 from generate_series(1, 3) g; \
         insert into resolved (id, resolved_at, who, reason) values (4, now() - interval '91 days', '', ''), (5, now() - interval '1 h', '', ''); \
         insert into duplicate (topic, partition, incarnation, kafka_offset, tx_id, seen_at) values ('t', 0, 0, 9, 1, now() - interval '99 days'); \
         insert into counter (slot, name, n) values (0, 1, 6), (0, 2, 5), (0, 3, 1), (0, 5, 3), (0, 7, 2); select setval('batch_seq', 10240)";
    relay.sql().batch_execute(rows).expect("old rows");
    let mut twin = relay.twin();
    relay.start();
    twin.start();
    eventually("what was resolved long ago is gone", || relay.count("select count(*) from resolved") == 1);
    let ended = |process: &Relay| process.metric("retention_last_success_timestamp_seconds").unwrap_or(0.0);
    eventually("both know when the pass ended", || ended(&relay) > 1.7e9 && ended(&relay) == ended(&twin));
    let did =
        [&relay, &twin].iter().filter(|process| process.log().contains("retention deleted 0 delivered and 1 resolved")).count();
    assert_eq!(did, 1, "one of them did it");
    assert_eq!(relay.count("select count(*) from tx where id < 10240"), 4, "delivered ones are kept for ever");
    assert_eq!(relay.count("select count(*) from duplicate"), 1);
    topic.transactions(ids("new", 0..20));
    eventually("it delivers", || ledger.count("accepted") == 20);
    eventually("what is stored is counted", || relay.metric("transactions{state=\"delivered\"}") == Some(23.0));
    assert_eq!(twin.stop().code(), Some(0), "{}", twin.log());
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    // An hour later, and no longer for ever.
    relay.sql().batch_execute("update pipeline set retention_ended_at = now() - interval '61 min'").expect("set back");
    relay.set("retention.delivered=90d");
    relay.start();
    eventually("old ones go", || relay.count("select count(*) from tx where id < 10240") == 1);
    eventually("what is stored is counted", || relay.metric("transactions{state=\"delivered\"}") == Some(20.0));
    assert_eq!(relay.metric("transactions{state=\"resolved\"}"), Some(1.0));
    eventually("duplicates go with them", || relay.count("select count(*) from duplicate") == 0);
    assert_eq!(relay.metric("ledger_imbalance{equation=\"ingested\"}"), Some(0.0));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn retention_that_fails_says_so_and_stops_nothing_else() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    assert!(relay.command(&["migrate"]).status().expect("runs").success());
    let mut sql = relay.sql();
    sql.batch_execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise insufficient_privilege using message = 'may not delete'; end $$; \
         create trigger refuse before delete on resolved for each row execute function refuse(); \
         insert into resolved (id, resolved_at, who, reason) values (1, now() - interval '91 days', '', '')",
    )
    .expect("nobody may delete");
    relay.start();
    eventually("it says so", || relay.log().contains("retention failed, will try again in a minute: may not delete"));
    topic.transactions(ids("on", 0..20));
    eventually("it delivers", || ledger.count("accepted") == 20);
    assert_eq!(relay.metric("stalled{reason=\"postgres\"}"), Some(0.0));
    eventually("it is counted as an error", || relay.metric("postgres_errors_total{kind=\"not_permitted\"}") == Some(1.0));
    assert_eq!(relay.metric("retention_last_success_timestamp_seconds"), Some(0.0));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn retention_rests_as_long_as_it_works_and_a_round_that_fails_amid_its_pass_rests_as_any_other() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    assert!(relay.command(&["migrate"]).status().expect("runs").success());
    let mut sql = relay.sql();
    // Each step takes long, so that they become small and many, and notes when.
    sql.batch_execute(
        &"insert into topic (name) values ('made by SQL'); \
          insert into tx (id, received_at, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
            select g, now() - interval '100 days', 'old-' || g, 'x', 0, g, 1, 0 from generate_series(1, 6000) g; \
          insert into attempt (tx_id, finished_at, n, outcome, sent) \
            select g, now() - interval '99 days', 1, 1, 1 from generate_series(1, 6000) g; \
          insert into counter (slot, name, n) values (0, 1, 6000), (0, 2, 6000), (0, 5, 6000); \
          insert into life (topic, partition, incarnation, first_offset, end_offset, ended_at) \
            values ('made by SQL', 0, 0, 1, 6001, now()); \
          select setval('batch_seq', 10240); \
          create table step (began timestamptz, ended timestamptz); \
          create sequence failed; \
          create function slowly() returns trigger language plpgsql as $$ begin \
            perform pg_sleep(0.15); insert into SCHEMA.step values (now(), clock_timestamp()); return null; end $$; \
          create function fails() returns trigger language plpgsql as $$ begin \
            perform nextval('SCHEMA.failed'); raise 'no heartbeat'; end $$; \
          create trigger slowly after delete on tx for each statement execute function slowly()"
            .replace("SCHEMA", &relay.schema),
    )
    .expect("old rows");
    relay.start();
    eventually("it is amid a pass", || relay.count("select count(*) from step") >= 8);
    let began = Instant::now();
    sql.batch_execute("create trigger fails before update on process for each row execute function fails()").expect("made");
    std::thread::sleep(Duration::from_secs(4));
    let failed = relay.count("select last_value from failed");
    sql.batch_execute("drop trigger fails on process").expect("gone");
    // One a second, however long a busy machine took over those four.
    let seconds = began.elapsed().as_secs() as i64;
    assert!((2..=seconds + 2).contains(&failed), "{failed} rounds in {seconds} s");
    assert!(relay.count("select count(*) from tx") > 0, "it was amid a pass");
    eventually("the pass goes on to its end", || relay.log().contains("retention deleted 6000 delivered"));
    let least: f64 = sql
        .query_one(
            "select min(extract(epoch from rest) / extract(epoch from work))::float8 from (\
               select ended - began as work, lead(began) over (order by began) - ended as rest from step) s",
            &[],
        )
        .expect("asked")
        .get(0);
    assert!(least >= 1.0, "a step was followed by a rest of {least} of its time");
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
