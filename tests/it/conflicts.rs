//! F46, F47: one id twice. Equal bytes are a duplicate, other bytes a conflict; in one batch, across partitions, and in two
//! processes at the same moment. Both records are kept, each offset in one place, and nothing is swallowed.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use txrelay::config;
use txrelay::core::record::{LogId, Record, TopicPartition};
use txrelay::store::{Advance, Batch, Candidate, Ingested, Session, StoreError, Topics, Writer, ensure_pipeline, migrate};

use crate::rig::{Ledger, Pg, Raw, Relay, Topic, eventually, ids, postgres_url, transaction, unique};
use crate::store::{LEASE, role};

/// A migrated schema.
fn schema(dsn: &str) -> config::Postgres {
    let config = config::Postgres::plain(dsn.parse().expect("a DSN"), &unique("it_conflicts"), LEASE);
    let mut session = Session::connect(&config, &role()).expect("PostgreSQL answers");
    migrate(&mut session, &config.schema).expect("migrated");
    ensure_pipeline(&mut Session::connect(&config, &role()).expect("PostgreSQL answers"), "it").expect("ours");
    config
}

/// A process that reads one partition.
struct Side {
    session: Session,
    topics: Topics,
    at: TopicPartition,
    process: i64,
    epoch: i64,
    position: i64,
}

impl Side {
    fn new(config: &config::Postgres, partition: i32) -> Self {
        let mut session = Session::connect(config, &role()).expect("PostgreSQL answers");
        let at = TopicPartition { topic: Arc::from("payments"), partition };
        let topics = session.topics(std::slice::from_ref(&at.topic)).expect("numbered");
        let process = i64::from(partition) + 1;
        let epoch = session.own(process, &[(at.clone(), 0, LogId::default())]).expect("owned")[0].epoch;
        Self { session, topics, at, process, epoch, position: 0 }
    }

    /// The next records, with these ids and values.
    fn batch(&self, records: &[(String, String)]) -> Batch {
        let candidate = |(offset, (id, value)): (i64, &(String, String))| Candidate {
            transaction_id: id.clone(),
            record: Record {
                at: self.at.clone(),
                offset,
                timestamp_ms: None,
                key: None,
                value: Some(value.as_bytes().to_vec()),
                headers: Vec::new(),
            },
            incarnation: 0,
        };
        let advance = Advance {
            at: self.at.clone(),
            incarnation: 0,
            epoch: self.epoch,
            expected: self.position,
            new: self.position + records.len() as i64,
            skipped: Vec::new(),
            unexplained: Vec::new(),
        };
        Batch {
            candidates: (self.position..).zip(records).map(candidate).collect(),
            rejects: Vec::new(),
            advances: vec![advance],
            lease: None,
        }
    }

    fn ingest(&mut self, batch: &Batch) -> Result<Ingested, StoreError> {
        let writer = Writer { process: self.process, lease: LEASE };
        let done = self.session.ingest(writer, &self.topics, batch)?;
        self.position = batch.advances[0].new;
        Ok(done)
    }

    fn number(&mut self, query: &str) -> i64 {
        self.session.client().query_one(query, &[]).expect("answers").get(0)
    }
}

/// Two partitions have been read up to here, and each of their offsets is in exactly one place; of each conflict both records
/// are there, with different bytes.
#[track_caller]
fn each_offset_is_in_one_place(side: &mut Side, up_to: [i64; 2]) {
    let places = "select count(*) from (select partition, kafka_offset from tx union all select partition, kafka_offset from duplicate \
         union all select partition, kafka_offset from rejected) p";
    let n = up_to.iter().sum::<i64>();
    assert_eq!(side.number(places), n, "places");
    assert_eq!(side.number(&places.replace("count(*)", "count(distinct (partition, kafka_offset))")), n, "different places");
    let apart = "select count(*) from rejected r where reason = 'conflict' and not exists \
         (select from tx t where t.id = r.tx_id and t.payload <> r.payload)";
    assert_eq!(side.number(apart), 0, "a conflict whose other record is not there");
    let same = "select count(*) from duplicate q where not exists (select from tx t where t.id = q.tx_id)";
    assert_eq!(side.number(same), 0, "a duplicate of nothing");
    let read = "select coalesce(sum(n) filter (where name = 1), 0)::bigint - coalesce(sum(n) filter (where name in (2, 3, 4)), 0)::bigint \
         from counter";
    assert_eq!(side.number(read), 0, "read = ingested + duplicates + rejected");
    let counted = "select coalesce(sum(n), 0)::bigint from counter where name = 1";
    assert_eq!(side.number(counted), n, "each was counted once");
}

fn record(id: &str, value: &str) -> (String, String) {
    (id.to_owned(), value.to_owned())
}

/// Two processes insert the same ids at the same moment, in opposite orders, some with the same bytes and some with others;
/// once more with what the other has, and inside one batch.
fn race(dsn: &str, rounds: usize) {
    let config = schema(dsn);
    let barrier = Barrier::new(2);
    let run = |partition: i32| {
        let mut side = Side::new(&config, partition);
        let isolation = "select current_setting('transaction_isolation')";
        assert_eq!(side.session.client().query_one(isolation, &[]).expect("asked").get::<_, String>(0), "read committed");
        let (mut new, mut duplicates, mut conflicts) = (0, 0, 0);
        for round in 0..rounds {
            let mut records: Vec<(String, String)> = (0..8).map(|i| record(&format!("same-{round}-{i}"), "{}")).collect();
            records.extend((0..8).map(|i| record(&format!("other-{round}-{i}"), &format!("from {partition}"))));
            // Twice in one batch: once equal, once not.
            records.push(record(&format!("same-{round}-0"), "{}"));
            records.push(record(&format!("same-{round}-0"), "[]"));
            if partition == 1 {
                records.reverse();
                // The first of equal ids wins, so that the one with other bytes must not be it.
                records.rotate_left(2);
            }
            let batch = side.batch(&records);
            barrier.wait();
            let done = side.ingest(&batch).expect("stored");
            assert_eq!(done.new.len() + done.duplicates.len() + done.rejected.len(), records.len(), "nothing is swallowed");
            new += done.new.len();
            duplicates += done.duplicates.len();
            conflicts += done.rejected.len();
        }
        (side, [new, duplicates, conflicts])
    };
    let (mut side, counts) = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let (side, [a, b, c]) = run(0);
        let (_, [d, e, f]) = other.join().expect("no panic");
        (side, [a + d, b + e, c + f])
    });
    // Of 16 ids each round one process wins each; the other's is a duplicate or a conflict.
    assert_eq!(counts, [16 * rounds, 10 * rounds, 10 * rounds]);
    each_offset_is_in_one_place(&mut side, [18 * rounds as i64; 2]);
    side.session.client().batch_execute(&format!("drop schema \"{}\" cascade", config.schema)).expect("dropped");
}

/// F47
#[test]
fn two_processes_that_store_the_same_ids_at_the_same_moment_swallow_nothing() {
    race(&postgres_url(), 60);
}

/// A role's default must not make the loser of a race fail, or blind to the winner.
#[test]
fn nor_do_they_where_the_role_defaults_to_repeatable_read_or_serializable() {
    let pg = Pg::start();
    for isolation in ["repeatable read", "serializable"] {
        pg.sql().batch_execute(&format!("alter role postgres set default_transaction_isolation = '{isolation}'")).expect("set");
        race(pg.dsn(), 20);
    }
}

/// Exactly this: the winner has inserted and not committed, the loser waits for it, and then it commits, or does not.
#[test]
fn the_loser_of_a_race_waits_and_then_sees_the_winner_or_wins() {
    let config = schema(&postgres_url());
    let (mut first, mut second) = (Side::new(&config, 0), Side::new(&config, 1));
    let mut gate = Session::connect(&config, &role()).expect("PostgreSQL answers");
    let mut watch = Session::connect(&config, &role()).expect("PostgreSQL answers");
    // Who has inserted an id waits at the gate, before its COMMIT.
    let key: i64 = i64::from(std::process::id()) << 20;
    gate.client()
        .batch_execute(&format!(
            "create function at_the_gate() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock_shared({key}); return null; end $$; \
             create trigger gate after insert on tx for each row execute function at_the_gate()"
        ))
        .expect("a gate");
    let mut round = 0;
    for (commits, value) in [(true, "{}"), (true, "[]"), (false, "{}"), (false, "[]")] {
        for swapped in [false, true] {
            round += 1;
            let id = format!("race-{round}");
            gate.client().batch_execute(&format!("select pg_advisory_lock({key})")).expect("shut");
            let (winner, loser) = if swapped { (&mut second, &mut first) } else { (&mut first, &mut second) };
            let (winners, losers) = (winner.batch(&[record(&id, "{}")]), loser.batch(&[record(&id, value)]));
            let pid_of = |side: &mut Side| side.number("select pg_backend_pid()::bigint");
            let (winner_pid, loser_pid) = (pid_of(winner), pid_of(loser));
            let waits = |watch: &mut Session, pid: i64, what: &str| {
                let query = format!("select count(*) from pg_locks where pid = {pid} and not granted and locktype = '{what}'");
                eventually(what, || watch.client().query_one(&query, &[]).expect("asked").get::<_, i64>(0) > 0);
            };
            let done = std::thread::scope(|scope| {
                let first = scope.spawn(|| winner.ingest(&winners));
                waits(&mut watch, winner_pid, "advisory");
                let second = scope.spawn(|| loser.ingest(&losers));
                waits(&mut watch, loser_pid, "transactionid");
                if !commits {
                    gate.client().execute("select pg_cancel_backend($1::bigint::int)", &[&winner_pid]).expect("cancelled");
                }
                let first = if commits { None } else { Some(first.join().expect("no panic")) };
                gate.client().batch_execute(&format!("select pg_advisory_unlock({key})")).expect("open");
                assert!(first.is_none_or(|failed| matches!(failed, Err(StoreError::Busy(_)))), "the winner was cancelled");
                second.join().expect("no panic").expect("stored")
            });
            let counts = (done.new.len(), done.duplicates.len(), done.rejected.len());
            match (commits, value) {
                (true, "{}") => assert_eq!(counts, (0, 1, 0)),
                (true, _) => assert_eq!(counts, (0, 0, 1)),
                (false, _) => assert_eq!(counts, (1, 0, 0)),
            }
            if !commits {
                // Nothing was done: it is tried again, and now the other was first.
                let again = winner.ingest(&winners).expect("stored");
                assert_eq!((again.new.len(), again.duplicates.len() + again.rejected.len()), (0, 1));
            }
        }
    }
    // A winner that committed moved its position in PostgreSQL.
    let positions = "select sum(next_offset)::bigint from consumer_position";
    assert_eq!(first.number(positions), 16);
    each_offset_is_in_one_place(&mut first, [8, 8]);
    first.session.client().batch_execute(&format!("drop schema \"{}\" cascade", config.schema)).expect("dropped");
}

/// Values of `ids` that differ from those of `transaction`.
fn other(id: &str) -> Vec<u8> {
    format!(r#"{{"transaction_id":"{id}","amount":"99.99","currency":"EUR"}}"#).into_bytes()
}

/// F46 and F47 with the real binary in two processes, and a role that defaults to serializable.
#[test]
fn a_second_record_under_a_known_id_is_kept_counted_and_said() {
    let pg = Pg::start();
    pg.sql().batch_execute("alter role postgres set default_transaction_isolation = 'serializable'").expect("set");
    let (topic, ledger) = (Topic::new(4), Ledger::start());
    let mut relay = Relay::on(&topic.name, &ledger.url(), pg.dsn(), pg.dsn(), "workers = 8");
    let mut twin = relay.twin();
    let names = ids("c", 0..200);
    // In one partition, next to each other; in two partitions at once, which two processes may read; equal and not.
    let mut records = Vec::new();
    for (i, id) in names.iter().enumerate() {
        let (here, there) = ((i % 4) as i32, ((i + 1) % 4) as i32);
        records.push(Raw { partition: here, ..Raw::value(transaction(id)) });
        let second = match i % 4 {
            0 => Raw { partition: here, ..Raw::value(transaction(id)) },
            1 => Raw { partition: here, ..Raw::value(other(id)) },
            2 => Raw { partition: there, ..Raw::value(transaction(id)) },
            _ => Raw { partition: there, ..Raw::value(other(id)) },
        };
        records.push(second);
    }
    relay.start();
    eventually("the schema is there", || relay.partitions() == 4);
    twin.start();
    eventually("they share the partitions", || relay.partitions() == 2 && twin.partitions() == 2);
    topic.raw(&records);
    eventually("all read", || relay.count("select sum(next_offset)::bigint from consumer_position") == 400);
    eventually("all delivered", || ledger.count("accepted") == 200);
    ledger.has_exactly(&names);
    let sum = |series: &str| relay.metric(series).unwrap_or(0.0) + twin.metric(series).unwrap_or(0.0);
    assert_eq!(sum(&format!("records_total{{result=\"duplicate\",topic=\"{}\"}}", topic.name)), 100.0);
    assert_eq!(sum("rejected_total{reason=\"conflict\"}"), 100.0);
    eventually("the alarm's gauge", || relay.metric("rejected_unresolved") == Some(100.0));
    let log = format!("{}{}", relay.log(), twin.log());
    let line = log.lines().find(|line| line.contains("[ERROR]") && line.contains("conflict")).expect("a loud line");
    assert!(line.contains(&topic.name) && line.contains("offset="), "{line}");
    assert!(log.lines().filter(|line| line.contains("conflict")).count() < 10, "{log}");
    // Both records of each: bytes, and where they stood.
    let both = "select count(*) from rejected r join tx t on t.id = r.tx_id where r.reason = 'conflict' and r.payload <> t.payload \
         and r.topic = $1 and convert_from(r.payload, 'UTF8')::jsonb->>'transaction_id' = t.transaction_id \
         and (r.partition, r.kafka_offset) <> (t.partition, t.kafka_offset)";
    assert_eq!(relay.sql().query_one(both, &[&topic.name]).expect("asked").get::<_, i64>(0), 100);
    relay.balanced();
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(twin.stop().code(), Some(0), "{}", twin.log());
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());

    // Somebody sets a position back: each is found where it is, and nothing is counted or sent again.
    let evidence = "select md5(string_agg(p::text, ',' order by p::text)) from (select 't', partition, kafka_offset from tx union all \
         select 'd', partition, kafka_offset from duplicate union all select 'r', partition, kafka_offset from rejected) p";
    let state = |relay: &Relay| relay.sql().query_one(evidence, &[]).expect("asked").get::<_, String>(0);
    let before = state(&relay);
    relay.sql().batch_execute("update consumer_position set next_offset = 0").expect("set back");
    relay.start();
    eventually("all read again", || relay.count("select sum(next_offset)::bigint from consumer_position") == 400);
    std::thread::park_timeout(Duration::from_millis(100));
    assert_eq!(state(&relay), before);
    assert_eq!(relay.metric("rejected_unresolved"), Some(100.0));
    assert_eq!(ledger.count("requests"), 200, "nothing is sent again");
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
