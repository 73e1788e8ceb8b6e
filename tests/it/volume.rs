//! What must hold with months of transactions in the tables. Rows are made by SQL; the daemon and its load are real.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::Value;
use txrelay::core::audit::{Audit, Problem};
use txrelay::store::{Session, statements};

use crate::rig::{self, LIMIT, Ledger, Relay, Topic, eventually, ids};
use crate::store::{postgres as configured, role};

/// A migrated schema in which this relay's topic is not yet known, and a session that makes rows in it.
fn prepared(relay: &Relay) -> postgres::Client {
    assert!(relay.command(&["migrate"]).status().expect("runs").success());
    let mut sql = relay.sql();
    sql.batch_execute("set synchronous_commit = off; insert into topic (name) values ('made by SQL')").expect("a topic");
    sql
}

/// Transactions with ids `from` to `to`, `days` old.
fn stored(sql: &mut postgres::Client, from: i64, to: i64, days: u32) {
    let query = format!(
        "insert into tx (id, received_at, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
           select g, now() - interval '{days} days', 'sql-' || g, convert_to(repeat('x', 200), 'UTF8'), 0, g, 1, 0 \
           from generate_series({from}, {to}) g; \
         insert into counter as c (slot, name, n) values (0, 1, {n}), (0, 2, {n}) \
           on conflict (slot, name) do update set n = c.n + excluded.n",
        n = to - from + 1
    );
    sql.batch_execute(&query).expect("stored");
}

/// They have been delivered since.
fn delivered(sql: &mut postgres::Client, from: i64, to: i64, days: u32) {
    let query = format!(
        "insert into attempt (tx_id, finished_at, lease, n, outcome, http_status, latency_ms, sent) \
           select g, now() - interval '{days} days', g, 1, 1, 200, 5, 1 from generate_series({from}, {to}) g; \
         insert into counter as c (slot, name, n) values (0, 5, {n}) on conflict (slot, name) do update set n = c.n + excluded.n",
        n = to - from + 1
    );
    sql.batch_execute(&query).expect("delivered");
}

/// Commits so far: how long all took, how many they were, and how many took no longer than each bound.
struct Commits {
    seconds: f64,
    n: f64,
    buckets: Vec<(f64, f64)>,
}

/// By what they are for.
fn commits(relay: &Relay) -> Vec<Commits> {
    let text = relay.http("/metrics").expect("answers");
    let value = |start: &str| -> Option<f64> { text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse().ok()) };
    let of = |op: &str| {
        let name = "txrelay_commit_duration_seconds";
        let buckets = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(&format!("{name}_bucket{{op=\"{op}\",le=\""))?;
            let (bound, n) = rest.split_once("\"} ")?;
            Some((bound.parse().ok()?, n.parse().ok()?))
        });
        Commits {
            seconds: value(&format!("{name}_sum{{op=\"{op}\"}}")).unwrap_or(0.0),
            n: value(&format!("{name}_count{{op=\"{op}\"}}")).unwrap_or(0.0),
            buckets: buckets.collect(),
        }
    };
    ["ingest", "claim", "settle"].into_iter().map(of).collect()
}

/// Mean and bound of the 99th percentile between two of these.
fn described(before: &[Commits], after: &[Commits]) -> String {
    let mut out = String::new();
    for (op, (a, b)) in ["ingest", "claim", "settle"].iter().zip(before.iter().zip(after)) {
        let n = b.n - a.n;
        let p99 = a.buckets.iter().zip(&b.buckets).find(|(a, b)| b.1 - a.1 >= 0.99 * n).map_or(f64::INFINITY, |(a, _)| a.0);
        let _ = write!(
            out,
            "{op}: {n} commits, mean {:.1} ms, p99 <= {:.0} ms; ",
            (b.seconds - a.seconds) / n.max(1.0) * 1000.0,
            p99 * 1000.0
        );
    }
    out
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn a_million_old_transactions_are_deleted_while_nothing_else_stalls() {
    const OLD: i64 = 1_000_000;
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    let mut sql = prepared(&relay);
    // In between and behind them 2,000 each that are open, dead, resolved long ago and resolved lately.
    for part in 0..4 {
        let (from, to) = (part * 252_000 + 1, part * 252_000 + 250_000);
        stored(&mut sql, from, to + 2000, 100);
        delivered(&mut sql, from, to, 99);
        let (from, to) = (to + 1, to + 2000);
        let one = [
            "insert into delivery (id, due_at, attempt) select g, now() + interval '50 min', 1 from generate_series(FROM, TO) g",
            "insert into dead (id, died_at, attempts, reason) select g, now() - interval '98 days', 1, 'refused' from generate_series(FROM, TO) g; \
             insert into counter (slot, name, n) values (0, 6, 2000)",
            "insert into resolved (id, resolved_at, who, reason) select g, now() - interval '98 days', 'me', '' from generate_series(FROM, TO) g; \
             insert into counter (slot, name, n) values (0, 7, 4000)",
            "insert into resolved (id, resolved_at, who, reason) select g, now() - interval '89 days', 'me', '' from generate_series(FROM, TO) g",
        ][part as usize];
        sql.batch_execute(&one.replace("FROM", &from.to_string()).replace("TO", &to.to_string())).expect("evidence");
    }
    sql.batch_execute(
        "insert into life (topic, partition, incarnation, first_offset, end_offset, ended_at) values ('made by SQL', 0, 0, 1, 1008001, now()); \
         select setval('batch_seq', 1048576); analyze",
    )
    .expect("a life that has ended; ids of the load come behind it");
    relay.start();
    let mut sent = 0;
    // Some 50 batches a second, until `over` holds; the load must be kept up.
    let mut load = |over: &mut dyn FnMut(&Relay) -> bool, relay: &Relay| {
        let until = Instant::now() + LIMIT * 10;
        while !over(relay) {
            assert!(Instant::now() < until, "it does not end:\n{}", relay.log());
            topic.transactions(ids("load", sent..sent + 20));
            sent += 20;
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    let first = "select coalesce(min(id), 0) from tx where id < 1048576";
    load(&mut |relay| relay.count(first) > 1, &relay);
    let (began, before, mut since) = (Instant::now(), commits(&relay), relay.sql());
    let from: std::time::SystemTime = since.query_one("select clock_timestamp()", &[]).expect("a time").get(0);
    load(&mut |relay| relay.log().contains("retention deleted"), &relay);
    let took = began.elapsed();
    let during = described(&before, &commits(&relay));
    let to: std::time::SystemTime = since.query_one("select clock_timestamp()", &[]).expect("a time").get(0);
    // The same load for as long without it.
    let (again, before) = (Instant::now(), commits(&relay));
    load(&mut |_| again.elapsed() >= took, &relay);
    let after = described(&before, &commits(&relay));
    let gap = |sql: &mut postgres::Client, from: std::time::SystemTime, to: std::time::SystemTime| -> (f64, i64) {
        let row = sql.query_one(
            "select extract(epoch from max(gap))::float8, count(*) from (select finished_at - lag(finished_at) over (order by finished_at) as gap \
             from attempt where finished_at between $1 and $2 and outcome = 1) g",
            &[&from, &to],
        );
        let row = row.expect("deliveries meanwhile");
        (row.get::<_, Option<f64>>(0).unwrap_or(f64::INFINITY), row.get(1))
    };
    let end: std::time::SystemTime = since.query_one("select clock_timestamp()", &[]).expect("a time").get(0);
    let (longest, n) = gap(&mut since, from, to);
    let (longest_after, n_after) = gap(&mut since, to, end);
    println!("retention of {OLD} took {took:.1?} beside {n} deliveries; longest time without one {longest:.3} s; {during}");
    println!("without it: {n_after} deliveries; longest time without one {longest_after:.3} s; {after}");
    eventually("all of the load is delivered", || ledger.count("accepted") == sent as u64);
    eventually("and settled", || relay.count("select count(*) from delivery") == 2000);
    assert!(
        relay.log().contains(&format!("retention deleted {OLD} delivered and 2000 resolved transactions")),
        "{}",
        relay.log()
    );
    // A few seconds on a machine that does nothing else; this only catches a standstill.
    assert!(longest < 10.0, "nothing was delivered for {longest} s");
    assert_eq!(relay.count("select count(*) from tx where id < 1048576"), 6000, "open, dead and resolved lately stay");
    assert_eq!(relay.count("select count(*) from attempt where tx_id < 1048576"), 0);
    assert_eq!((relay.count("select count(*) from dead"), relay.count("select count(*) from resolved")), (2000, 2000));
    assert_eq!(relay.count("select count(*) from transaction_status where state = 'unaccounted'"), 0);
    eventually("the count is of what is stored", || relay.metric("transactions{state=\"delivered\"}") == Some(sent as f64));
    assert!(relay.metric("retention_last_success_timestamp_seconds").is_some_and(|at| at > 1.7e9));
    for equation in ["read", "ingested", "dead"] {
        assert_eq!(relay.metric(&format!("ledger_imbalance{{equation=\"{equation}\"}}")), Some(0.0), "{equation}");
    }
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    assert_eq!(ledger.count("accepted_twice"), 0);
}

/// Twenty answers of /metrics, the slowest of them.
fn slowest_answer(relay: &Relay) -> Duration {
    let answers = (0..20).map(|_| {
        let began = Instant::now();
        assert!(relay.http("/metrics").expect("it answers").contains("txrelay_transactions"));
        began.elapsed()
    });
    answers.max().unwrap_or_default()
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn metrics_answer_at_once_and_right_with_five_million_stored_and_one_open() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 4");
    let mut sql = prepared(&relay);
    // Paused: so many open ones would be delivered otherwise, and not be counted.
    sql.batch_execute("update pipeline set paused_at = now()").expect("paused");
    for million in 0..5 {
        stored(&mut sql, million * 1_000_000 + 1, (million + 1) * 1_000_000, 1);
    }
    delivered(&mut sql, 1, 4_000_000, 1);
    sql.batch_execute(
        "insert into delivery (id, due_at, attempt) select g, now() - random() * interval '1 h', g % 2 from generate_series(4000001, 5000000) g; \
         select setval('batch_seq', 8388608)",
    )
    .expect("open");
    let mut session = Session::connect(&configured(&relay.schema), &role()).expect("connects");
    let gauges = statements().into_iter().find(|sql| sql.name == "gauges").expect("it is there").render();
    for state in ["not analyzed", "analyzed"] {
        let rows = session.client().query(&format!("explain (analyze, buffers) {gauges}"), &[]).expect("explained");
        let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        println!("counting, {state}:\n{}", plan.join("\n"));
        let began = Instant::now();
        session.gauges().expect("counted");
        println!("counting, {state}, as it is: {:.0?}", began.elapsed());
        sql.batch_execute("analyze").expect("analyzed");
    }
    relay.start();
    eventually("it has counted", || relay.metric("transactions{state=\"delivered\"}") == Some(4e6));
    for (state, n) in [("pending", 5e5), ("in_flight", 0.0), ("retrying", 5e5), ("dead", 0.0), ("resolved", 0.0)] {
        assert_eq!(relay.metric(&format!("transactions{{state=\"{state}\"}}")), Some(n), "{state}");
    }
    let slowest = slowest_answer(&relay);
    println!("/metrics: slowest of 20 answers {slowest:?}");
    let status: Value =
        serde_json::from_slice(&relay.command(&["status", "--json"]).output().expect("runs").stdout).expect("JSON");
    assert_eq!(status["transactions"]["delivered"], 4_000_000, "{status}");
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
    // The goal is 50 ms; this only catches an answer that waits for the count.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

/// Goes over everything as upkeep does, with as many rows a step; returns what it suspects.
fn audited(session: &mut Session, mut audit: Audit) -> (usize, Vec<Problem>) {
    let lives = session.moment(None).expect("a moment").lives;
    audit.learn(&lives);
    let (mut steps, mut problems) = (0, Vec::new());
    while !audit.is_finished() {
        let began = Instant::now();
        problems.extend(session.audit_step(&mut audit, i64::MAX, 20_000).expect("a step"));
        assert!(began.elapsed() < Duration::from_secs(10), "no step takes ten seconds");
        steps += 1;
    }
    problems.extend(audit.missing());
    (steps, problems)
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn one_row_that_is_wrong_in_a_million_is_found_and_named() {
    const ALL: i64 = 1_000_000;
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 4");
    let mut sql = prepared(&relay);
    stored(&mut sql, 0, ALL - 1, 1);
    delivered(&mut sql, 0, ALL - 1, 1);
    let life = format!(
        "insert into life (topic, partition, incarnation, first_offset, end_offset, ended_at) values ('made by SQL', 0, 0, 0, {ALL}, now()); \
         select setval('batch_seq', 1048576)"
    );
    sql.batch_execute(&life).expect("a life that has ended");
    let mut session = Session::connect(&configured(&relay.schema), &role()).expect("connects");
    session.pin_ranges().expect("pinned");
    let server: i32 = session.client().query_one("select pg_backend_pid()", &[]).expect("a number").get(0);
    for state in ["not analyzed", "analyzed"] {
        let cpu = || [std::process::id(), server as u32].map(|pid| rig::cpu(pid).as_secs_f64());
        let (began, [mine, its]) = (Instant::now(), cpu());
        let (steps, problems) = audited(&mut session, Audit::from(-1, -1));
        let (took, used) = (began.elapsed().as_secs_f64(), cpu());
        assert_eq!(problems, []);
        let [took, client, server] = [took, used[0] - mine, used[1] - its].map(|seconds| seconds * 1e6 / ALL as f64);
        println!("{state}: {steps} steps, {took:.2} us a transaction; CPU: server {server:.2} us, client {client:.2} us");
        for table in ["tx", "attempt"] {
            sql.batch_execute(&format!("vacuum analyze {table}")).expect("analyzed");
        }
    }
    // One transaction is gone, of another the proof of delivery.
    sql.batch_execute(
        "with d as (delete from tx where id = 654321 returning id) delete from attempt using d where tx_id = d.id; \
         delete from attempt where tx_id = 765432",
    )
    .expect("planted");
    relay.start();
    let began = Instant::now();
    // Its share of each round is small.
    while relay.count("select count(*) from audit_finding") < 2 && began.elapsed() < LIMIT * 5 {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    println!("upkeep has found both after {:.1?}", began.elapsed());
    eventually("upkeep names the offset", || relay.log().contains("made by SQL/0 offset 654321: read, and in no place"));
    eventually("and the transaction", || relay.log().contains("transaction sql-765432 (row 765432): unaccounted"));
    assert_eq!(relay.count("select count(*) from audit_finding"), 2);
    for equation in ["read", "ingested"] {
        eventually("it shows", || relay.metric(&format!("ledger_imbalance{{equation=\"{equation}\"}}")) == Some(1.0));
    }
    let began = Instant::now();
    let output = relay.command(&["reconcile", "--full", "--json"]).output().expect("runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("reconcile --full took {:.2?}", began.elapsed());
    assert_eq!(output.status.code(), Some(1));
    let problems: Vec<(&str, i64)> = report["problems"]
        .as_array()
        .expect("problems")
        .iter()
        .map(|p| (p["kind"].as_str().expect("a kind"), p["from_offset"].as_i64().or(p["tx_id"].as_i64()).expect("which")))
        .collect();
    assert_eq!(problems, [("unaccounted", 765_432), ("offset_missing", 654_321)]);
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
