//! What the store promises, on a real PostgreSQL, with a schema per test.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use txrelay::config;
use txrelay::core::outcome::{Outcome, Sent};
use txrelay::core::record::{LogId, Record, TopicPartition};
use txrelay::store::{
    Advance, Batch, Candidate, Claimant, Floor, Heartbeat, Ingested, LeaseTime, Leased, Link, Pool, Registration, Reject, Role,
    Room, SchemaState, Session, Settled, Settlement, StoreError, Timelines, Topics, Tried, Writer, ensure_pipeline, eraser_role,
    migrate, print_sql, reader_role, schema_state,
};

use crate::rig::{postgres_url, unique};

pub const LEASE: Duration = Duration::from_secs(60);
pub const TIME: LeaseTime = LeaseTime { lease: LEASE, timeout: Duration::from_secs(15) };

/// A migrated schema, and what a consumer needs to write to it.
pub struct Store {
    pub session: Session,
    pub config: config::Postgres,
    topics: Topics,
    topic: Arc<str>,
    pub room: Arc<Room>,
    position: i64,
    epoch: i64,
}

pub fn postgres(schema: &str) -> config::Postgres {
    config::Postgres::plain(postgres_url().parse().expect("a DSN"), schema, LEASE)
}

pub fn role() -> Role {
    Role { pipeline: "it".to_owned(), role: "test" }
}

impl Store {
    pub fn new() -> Self {
        let config = postgres(&unique("it_store"));
        let mut session = Session::connect(&config, &role()).expect("PostgreSQL answers");
        migrate(&mut session, &config.schema).expect("migrated");
        let mut session = Session::connect(&config, &role()).expect("PostgreSQL answers");
        ensure_pipeline(&mut session, "it").expect("ours");
        let topic: Arc<str> = Arc::from("payments");
        let topics = session.topics(std::slice::from_ref(&topic)).expect("numbered");
        let at = TopicPartition { topic: topic.clone(), partition: 0 };
        let owned = session.own(1, &[(at, 0, LogId::default())]).expect("owned");
        let room = Room::new(64, TIME);
        (0..500).for_each(|_| room.observe(Duration::from_millis(1)));
        Self { session, config, topics, topic, room, position: 0, epoch: owned[0].epoch }
    }

    pub fn at(&self) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition: 0 }
    }

    /// Records as they would be read next.
    pub fn records(&mut self, values: &[(&str, &str)]) -> Vec<Candidate> {
        let at = self.at();
        let candidate = |(i, (id, value)): (usize, &(&str, &str))| Candidate {
            transaction_id: (*id).to_owned(),
            record: Record {
                at: at.clone(),
                offset: self.position + i as i64,
                timestamp_ms: Some(1_700_000_000_000),
                key: None,
                value: Some(value.as_bytes().to_vec()),
                headers: vec![("traceparent".to_owned(), Some(b"00-1".to_vec()))],
            },
            incarnation: 0,
        };
        values.iter().enumerate().map(candidate).collect()
    }

    pub fn batch(&mut self, candidates: Vec<Candidate>, rejects: Vec<Reject>, lease: Option<i64>) -> Batch {
        let new = self.position + (candidates.len() + rejects.len()) as i64;
        let advance = Advance {
            at: self.at(),
            incarnation: 0,
            epoch: self.epoch,
            expected: self.position,
            new,
            skipped: Vec::new(),
            unexplained: Vec::new(),
        };
        Batch { candidates, rejects, advances: vec![advance], lease }
    }

    pub fn writer(&self) -> Writer {
        Writer { process: 1, lease: LEASE }
    }

    pub fn ingest(&mut self, batch: &Batch) -> Result<Ingested, StoreError> {
        let (writer, topics) = (self.writer(), self.topics.clone());
        let done = self.session.ingest(writer, &topics, batch)?;
        self.position = batch.advances[0].new;
        Ok(done)
    }

    /// Nothing is stored any more.
    pub fn reset(&mut self) {
        let empty = "truncate tx, delivery, attempt, dead, resolved, rejected, duplicate, known_gap, skipped, purged, counter, audit_log; \
             update consumer_position set next_offset = 0, skipped = 0";
        self.session.client().batch_execute(empty).expect("emptied");
        self.position = 0;
    }

    /// Somebody sets the position back by `n` records.
    pub fn set_back(&mut self, n: i64) {
        self.session.client().execute("update consumer_position set next_offset = next_offset - $1", &[&n]).expect("set back");
        self.position -= n;
    }

    /// So many seconds pass.
    pub fn forward(&mut self, seconds: i64) {
        let back = |(table, columns): (&str, &[&str])| {
            let set: Vec<String> = columns.iter().map(|c| format!("{c} = {c} - interval '{seconds} seconds'")).collect();
            format!("update {table} set {};", set.join(", "))
        };
        let tables: [(&str, &[&str]); 7] = [
            ("tx", &["received_at"]),
            ("delivery", &["due_at"]),
            ("attempt", &["finished_at"]),
            ("dead", &["died_at"]),
            ("resolved", &["resolved_at"]),
            ("rejected", &["received_at", "resolved_at"]),
            ("duplicate", &["seen_at"]),
        ];
        let sql: String = tables.into_iter().map(back).collect();
        self.session.client().batch_execute(&sql).expect("moved");
    }

    pub fn first_refused(&mut self, batch: &Batch) -> Option<i64> {
        let (writer, topics) = (self.writer(), self.topics.clone());
        self.session.first_refused(writer, &topics, batch).expect("looked")
    }

    pub fn find_unstorable(&mut self, batch: &Batch) -> Vec<usize> {
        let (writer, topics) = (self.writer(), self.topics.clone());
        self.session.find_unstorable(writer, &topics, batch).expect("looked")
    }

    /// Stores transactions and returns what came of them.
    pub fn store(&mut self, values: &[(&str, &str)], lease: Option<i64>) -> Ingested {
        let candidates = self.records(values);
        let batch = self.batch(candidates, Vec::new(), lease);
        self.ingest(&batch).expect("stored")
    }

    pub fn claim(&mut self, lease: i64) -> Vec<Leased> {
        let room = self.room.reserve_rows(500).expect("room");
        let who = Claimant { process: 1, lease, time: TIME };
        self.session.claim(500, who, None, room).expect("claimed").0.rows
    }

    pub fn settle(&mut self, id: i64, lease: i64, attempt: i32, what: Settled) -> usize {
        let received_at = self.received_at(id);
        self.session.settle(1, &[Settlement { id, lease, attempt, received_at, what }]).expect("settled")
    }

    /// When that transaction was received.
    pub fn received_at(&mut self, id: i64) -> SystemTime {
        let row = self.session.client().query_opt("select received_at from tx where id = $1", &[&id]).expect("answers");
        row.map_or(SystemTime::UNIX_EPOCH, |row| row.get(0))
    }

    pub fn number(&mut self, query: &str) -> i64 {
        self.session.client().query_one(query, &[]).expect("answers").get(0)
    }

    pub fn state(&mut self, id: &str) -> String {
        let row = self.session.client().query_one("select state from transaction_status where transaction_id = $1", &[&id]);
        row.expect("known").get(0)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let schema = self.config.schema.clone();
        let _ = self.session.client().batch_execute(&format!("drop schema \"{schema}\" cascade"));
    }
}

pub fn tried(outcome: Outcome, status: u16) -> Tried {
    Tried { outcome, status: Some(status), sent: Sent::Yes, latency: Duration::from_millis(5), error: Some("said so".to_owned()) }
}

#[test]
fn every_statement_prepares() {
    let mut store = Store::new();
    assert!(store.session.prepare_everything().expect("all of sql/statements") > 25);
}

#[test]
fn every_file_of_sql_is_compiled_in() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/sql/statements");
    let names: Vec<&str> = txrelay::store::statements().iter().map(|sql| sql.name).collect();
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let file = entry.expect("an entry").file_name().into_string().expect("text");
        let name = file.trim_end_matches(".sql");
        assert!(names.iter().any(|known| *known == name || known.starts_with(&format!("{name}_"))), "{file} is not used");
    }
}

#[test]
fn the_schema_is_the_one_of_the_snapshot() {
    let mut store = Store::new();
    let query = "select c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) \
             || case when a.attnotnull then ' not null' else '' end \
         from pg_class c join pg_attribute a on a.attrelid = c.oid \
         where c.relnamespace = current_schema::regnamespace and c.relkind in ('r', 'v') and a.attnum > 0 and not a.attisdropped \
         union all select 'index ' || indexname || ' on ' || tablename from pg_indexes where schemaname = current_schema \
         order by 1";
    let found: Vec<String> = store.session.client().query(query, &[]).expect("answers").iter().map(|row| row.get(0)).collect();
    let found = found.join("\n") + "\n";
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/schema.snapshot");
    if std::env::var_os("TXRELAY_WRITE_SNAPSHOT").is_some() {
        std::fs::write(file, &found).expect("written");
    }
    let expected = std::fs::read_to_string(file).expect("tests/it/schema.snapshot");
    assert!(found == expected, "the schema has changed; if it should, run with TXRELAY_WRITE_SNAPSHOT=1 and commit:\n{found}");
}

#[test]
fn several_processes_may_migrate_at_once() {
    let config = postgres(&unique("it_migrate"));
    let applied: Vec<Vec<String>> = std::thread::scope(|scope| {
        let run = || migrate(&mut Session::connect(&config, &role()).expect("connects"), &config.schema).expect("migrates");
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(applied.iter().filter(|names| !names.is_empty()).count(), 1, "one works, the others find nothing to do");
    let mut session = Session::connect(&config, &role()).expect("connects");
    assert_eq!(schema_state(&mut session).expect("looked"), SchemaState::Ready);
    session.client().batch_execute("update migration set compatible_from = 99").expect("a newer release was here");
    assert_eq!(schema_state(&mut session).expect("looked"), SchemaState::TooNew { have: 4 });
    session.client().batch_execute(&format!("drop schema \"{}\" cascade", config.schema)).expect("dropped");
}

#[test]
fn what_is_printed_is_what_migrate_would_do() {
    let config = postgres(&unique("it_printed"));
    let mut session = Session::connect(&config, &role()).expect("connects");
    let daemon = unique("it_daemon");
    let (reader, eraser) = (reader_role(&config.schema), eraser_role(&config.schema));
    for round in ["on an empty database", "where the roles are there"] {
        session.client().batch_execute(&print_sql(&config.schema, &daemon)).expect(round);
        assert_eq!(schema_state(&mut session).expect("looked"), SchemaState::Ready);
        let allowed = "select has_table_privilege($1, 'tx', 'insert') and not has_table_privilege($1, 'audit_log', 'select') \
             and has_table_privilege($2, 'transaction_status', 'select') and not has_any_column_privilege($2, 'tx', 'update') \
             and has_column_privilege($3, 'tx', 'payload', 'update') and not has_column_privilege($3, 'tx', 'transaction_id', 'update') \
             and not has_any_column_privilege($1, 'tx', 'update')";
        let allowed: bool = session.client().query_one(allowed, &[&daemon, &reader, &eraser]).expect("answers").get(0);
        assert!(allowed, "{round}");
        session.client().batch_execute(&format!("drop schema \"{}\" cascade", config.schema)).expect("dropped");
    }
    session
        .client()
        .batch_execute(&format!("drop role \"{daemon}\"; drop role \"{reader}\"; drop role \"{eraser}\""))
        .expect("dropped");
}

#[test]
fn a_schema_of_another_pipeline_is_refused() {
    let mut store = Store::new();
    let error = ensure_pipeline(&mut store.session, "other").expect_err("it is not ours");
    assert!(matches!(&error, StoreError::Unusable(text) if text.contains("\"it\"")), "{error}");
}

#[test]
fn asking_for_a_topics_number_uses_none_up() {
    let mut store = Store::new();
    let topic = store.topic.clone();
    for _ in 0..20 {
        store.session.topics(std::slice::from_ref(&topic)).expect("numbered");
    }
    store.session.topics(&[Arc::from("another")]).expect("numbered");
    assert_eq!(store.number("select max(id)::bigint from topic"), 2, "there are 32,767");
}

/// F46, and a position that goes back.
#[test]
fn a_redelivered_record_makes_no_second_job_and_no_second_place() {
    let mut store = Store::new();
    store.store(&[("a", "1"), ("b", "2")], None);
    // Somebody set the position back: the same records come again.
    store.session.client().batch_execute("update consumer_position set next_offset = 0").expect("set back");
    store.position = 0;
    let again = store.store(&[("a", "1"), ("b", "2"), ("c", "3")], None);
    assert_eq!(again.new.len(), 1);
    assert!(again.duplicates.is_empty(), "it is the stored record itself, not a repeat");
    assert_eq!(store.number("select count(*) from delivery"), 3);
    assert_eq!(store.number("select count(*) from duplicate"), 0);
    assert_eq!(store.number("select sum(n)::bigint from counter where name = 1"), 3, "read counts each record once");
}

/// F46, F47
#[test]
fn equal_bytes_are_a_duplicate_and_other_bytes_a_conflict_also_inside_one_batch() {
    let mut store = Store::new();
    store.store(&[("a", "1")], None);
    let done = store.store(&[("b", "2"), ("b", "2"), ("b", "X"), ("a", "1"), ("a", "Y"), ("c", "3")], None);
    assert_eq!(done.new.iter().map(|new| new.0).collect::<std::collections::BTreeSet<_>>(), [0, 5].into());
    assert_eq!(done.duplicates.len(), 2);
    assert_eq!(
        done.rejected.iter().map(|r| (r.0, r.2)).collect::<std::collections::BTreeSet<_>>(),
        [("conflict", 3), ("conflict", 5)].into()
    );
    assert_eq!(store.number("select count(*) from rejected r join tx t on t.id = r.tx_id where r.payload <> t.payload"), 2);
    assert_eq!(store.number("select count(*) from duplicate"), 2);
}

#[test]
fn one_bad_record_in_a_batch_of_500_rejects_one_and_stores_499() {
    let mut store = Store::new();
    let names: Vec<String> = (0..500).map(|i| format!("id-{i:03}")).collect();
    let values: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "{}")).collect();
    let mut candidates = store.records(&values);
    let bad = candidates.remove(250);
    let reject =
        Reject { reason: "unreadable", detail: "byte 0".to_owned(), tx_id: None, record: bad.record.clone(), incarnation: 0 };
    let batch = store.batch(candidates, vec![reject], Some(7));
    let done = store.ingest(&batch).expect("stored");
    assert_eq!((done.new.len(), done.rejected.len()), (499, 1));
    let row = store.session.client().query_one("select reason, payload, kafka_offset from rejected", &[]).expect("one");
    assert_eq!((row.get::<_, &str>(0), row.get::<_, Vec<u8>>(1), row.get::<_, i64>(2)), ("unreadable", b"{}".to_vec(), 250));
    assert_eq!(store.number("select next_offset from consumer_position"), 500);
    assert_eq!(store.number("select count(*) from delivery where lease = 7 and attempt = 1"), 499);
}

/// F34
#[test]
fn what_postgresql_refuses_is_found_and_set_aside_and_the_rest_is_stored() {
    let mut store = Store::new();
    let mut candidates = store.records(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]);
    // No rule lets such an id through; PostgreSQL is the last to notice.
    candidates[3].transaction_id = "d\0".to_owned();
    let mut batch = store.batch(candidates, Vec::new(), None);
    let refused = store.ingest(&batch).expect_err("refused");
    assert!(matches!(refused, StoreError::Value(_)), "{refused}");
    let (writer, topics) = (store.writer(), store.topics.clone());
    let places = store.session.find_unstorable(writer, &topics, &batch).expect("found");
    assert_eq!(places, [3]);
    assert_eq!(store.number("select count(*) from tx"), 0, "looking stores nothing");
    batch.set_aside(&places, "refused");
    let done = store.ingest(&batch).expect("stored");
    assert_eq!((done.new.len(), done.rejected[0].0), (4, "not_storable"));
}

#[test]
fn a_position_that_somebody_else_moved_stores_nothing() {
    let mut store = Store::new();
    let at = store.at();
    store.session.own(2, &[(at, 0, LogId::default())]).expect("another process takes it");
    let candidates = store.records(&[("a", "1")]);
    let batch = store.batch(candidates, Vec::new(), None);
    let error = store.ingest(&batch).expect_err("fenced");
    assert!(matches!(error, StoreError::Fenced(_)), "{error}");
    assert_eq!(store.number("select count(*) from tx"), 0);
    assert_eq!(store.number("select count(*) from counter"), 0);
}

#[test]
fn a_stale_settle_changes_no_row_and_leaves_its_attempt() {
    let mut store = Store::new();
    let id = store.store(&[("a", "1")], Some(11)).new[0].1;
    store.session.client().batch_execute("update delivery set due_at = now() - interval '1 s'").expect("the lease ran out");
    let rows = store.claim(22);
    assert_eq!((rows.len(), rows[0].attempt), (1, 2));
    let before = store.number("select hashtext(d::text)::bigint from delivery d");
    for what in [
        Settled::Delivered(tried(Outcome::Delivered, 200)),
        Settled::Died { tried: tried(Outcome::Refused, 400), reason: "refused" },
        Settled::Failed { tried: tried(Outcome::Retry, 500), delay: Duration::ZERO, spend: Duration::from_secs(9) },
        Settled::GivenBack,
    ] {
        store.settle(id, 11, 1, what);
    }
    assert_eq!(store.number("select hashtext(d::text)::bigint from delivery d"), before, "the row is untouched");
    assert_eq!(store.number("select count(*) from attempt where stale and lease = 11 and n = 1"), 1);
    assert_eq!(store.number("select count(*) from attempt where outcome = 7 and lease = 11"), 1, "lost, noted by the claim");
    assert_eq!(store.state("a"), "in_flight", "a stale answer is no proof of delivery");
    assert_eq!(store.number("select count(*) from dead"), 0);
}

#[test]
fn a_settle_whose_commit_answer_was_lost_can_be_repeated() {
    let mut store = Store::new();
    let new = store.store(&[("a", "1"), ("b", "2"), ("c", "3")], Some(5)).new;
    let settlements = |id: i64, what| Settlement { id, lease: 5, attempt: 1, received_at: SystemTime::UNIX_EPOCH, what };
    let batch = [
        settlements(new[0].1, Settled::Delivered(tried(Outcome::Delivered, 200))),
        settlements(
            new[1].1,
            Settled::Failed { tried: tried(Outcome::Retry, 500), delay: Duration::ZERO, spend: Duration::from_secs(1) },
        ),
        settlements(new[2].1, Settled::Died { tried: tried(Outcome::Refused, 400), reason: "refused" }),
    ];
    assert_eq!(store.session.settle(1, &batch).expect("settled"), 0);
    assert_eq!(store.session.settle(1, &batch).expect("settled again"), 0, "repeated, not stale");
    assert_eq!(store.number("select count(*) from attempt"), 3);
    assert_eq!(store.number("select sum(n)::bigint from counter where name in (5, 6)"), 2);
    assert_eq!(store.number("select spent_ms from delivery"), 1000);
}

#[test]
fn a_given_back_delivery_is_due_and_its_attempt_does_not_count() {
    let mut store = Store::new();
    let id = store.store(&[("a", "1")], Some(5)).new[0].1;
    store.settle(id, 5, 1, Settled::GivenBack);
    assert_eq!(store.number("select count(*) from attempt"), 0);
    let rows = store.claim(6);
    assert_eq!((rows[0].attempt, rows[0].transaction_id.as_str(), rows[0].payload.as_slice()), (1, "a", &b"1"[..]));
    assert_eq!(rows[0].headers, [("traceparent".to_owned(), Some(b"00-1".to_vec()))]);
}

#[test]
fn a_claim_in_doubt_is_given_back_whole_and_nothing_else_is() {
    let mut store = Store::new();
    store.store(&[("a", "1"), ("b", "2")], None);
    assert_eq!(store.claim(31).len(), 2);
    store.store(&[("c", "3")], Some(32));
    assert_eq!(store.session.give_back_lease(31, LEASE).expect("given back"), 2);
    assert_eq!(store.number("select count(*) from delivery where lease = 32"), 1);
    assert_eq!(store.claim(33).iter().map(|row| row.attempt).collect::<Vec<_>>(), [1, 1], "nothing was sent, nothing counts");
}

/// F34
#[test]
fn a_refused_text_settles_without_it() {
    let mut store = Store::new();
    let id = store.store(&[("a", "1")], Some(5)).new[0].1;
    let mut bad = tried(Outcome::Retry, 500);
    bad.error = Some("nul \0 inside".to_owned());
    let settlement = Settlement {
        id,
        lease: 5,
        attempt: 1,
        received_at: SystemTime::UNIX_EPOCH,
        what: Settled::Failed { tried: bad, delay: LEASE, spend: Duration::ZERO },
    };
    let refused = store.session.settle(1, std::slice::from_ref(&settlement)).expect_err("PostgreSQL holds no NUL");
    assert!(matches!(refused, StoreError::Value(_)), "{refused}");
    assert_eq!(store.session.settle(1, &[settlement.without_text()]).expect("settled"), 0);
    assert_eq!(store.number("select count(*) from attempt where error is null"), 1);
}

#[test]
fn a_claim_takes_no_more_bytes_than_there_is_room_for() {
    let mut store = Store::new();
    let big = "x".repeat(3 << 20);
    for i in 0..14 {
        store.store(&[(&format!("big-{i}"), &big)], None);
    }
    let room = store.room.reserve_rows(64).expect("room");
    let who = Claimant { process: 1, lease: 9, time: TIME };
    let (claimed, claims) = store.session.claim(64, who, None, room).expect("claimed");
    assert_eq!((claimed.rows.len(), claimed.too_much.len(), claims.short), (10, 4, true), "32 MiB hold ten of 3 MiB");
    assert_eq!(store.session.give_back(&claimed.too_much, Duration::ZERO).expect("given back"), 4);
    assert_eq!(store.number("select count(*) from delivery where lease is null and attempt = 0"), 4);
}

#[test]
fn a_heartbeat_learns_of_a_pause_and_of_its_end() {
    let mut store = Store::new();
    let registration = Registration { instance: None, lock: None, host: "it".to_owned(), version: "0", lease: LEASE };
    let process = store.session.register(&registration).expect("registered");
    let mut is_paused = |sql: &str| {
        store.session.client().batch_execute(sql).expect(sql);
        store.session.heartbeat(process, &Heartbeat::default()).expect("beats").expect("known").paused
    };
    assert!(!is_paused("select"));
    assert!(is_paused("update pipeline set paused_at = now()"));
    assert!(is_paused("update pipeline set paused_until = now() + interval '1 hour'"));
    assert!(!is_paused("update pipeline set paused_until = now()"), "it has ended by itself");
}

#[test]
fn a_session_goes_after_an_unknown_failure_with_all_that_it_had_prepared() {
    let store = Store::new();
    let mut link = Link::new(&store.config, "it", "test", &Timelines::default());
    let pid = |session: &mut Session| Ok(session.client().query_one("select pg_backend_pid()", &[])?.get::<_, i32>(0));
    let first = link.run(pid).expect("connects");
    assert_eq!(link.run(pid).expect("the same session"), first);
    let busy = link.run::<()>(|_| Err(StoreError::Busy("locked".to_owned())));
    assert!(busy.is_err() && link.run(pid).expect("the same session") == first, "what may succeed at once keeps it");
    let changed = link.run::<()>(|_| Err(StoreError::Other("cached plan must not change result type".to_owned())));
    assert!(changed.is_err() && link.run(pid).expect("connects") != first);
}

#[test]
fn a_pause_stops_claims_and_ends_by_itself() {
    let mut store = Store::new();
    store.store(&[("a", "1")], None);
    store.session.client().batch_execute("update pipeline set paused_at = now()").expect("paused");
    assert!(store.claim(1).is_empty());
    store.session.client().batch_execute("update pipeline set paused_until = now() - interval '1 s'").expect("over");
    assert_eq!(store.claim(2).len(), 1);
}

#[test]
fn the_leases_of_a_dead_predecessor_are_freed_and_leave_a_trace() {
    let mut store = Store::new();
    let registration = Registration { instance: None, lock: None, host: "it".to_owned(), version: "0", lease: LEASE };
    assert_eq!(store.session.register(&registration).expect("registered").id, 1);
    store.store(&[("a", "1"), ("b", "2")], Some(5));
    store.session.bury(&[1]).expect("dead");
    assert_eq!(store.session.sweep(&[99], LEASE).expect("swept"), 0, "another process's leases are not touched");
    assert_eq!(store.session.sweep(&[98, 1], LEASE).expect("swept"), 2);
    assert_eq!(store.number("select count(*) from attempt where outcome = 7 and sent = 2"), 2);
    // It was only asleep, and takes them: they would go to and fro until it hears that it is dead.
    assert_eq!(store.claim(6).len(), 2);
    assert_eq!(store.session.sweep(&[1], LEASE).expect("swept"), 0, "what it takes after its burial is its own");
}

#[test]
fn a_row_that_a_clock_set_back_left_in_the_far_future_is_pulled_in() {
    let mut store = Store::new();
    store.store(&[("a", "1")], None);
    store.session.client().batch_execute("update delivery set due_at = now() + interval '30 days'").expect("far ahead");
    assert_eq!(store.session.pull_in(Duration::from_secs(3600)).expect("pulled in"), 1);
    assert_eq!(store.number("select count(*) from delivery where due_at <= now() + interval '1 hour'"), 1);
}

#[test]
fn a_probe_is_one_that_never_failed_however_many_always_do() {
    let mut store = Store::new();
    let fresh = store.store(&[("fresh", "1")], None).new[0].1;
    // Due before it and younger than it, tried and not, in one go that no statistics know of.
    let poison = "insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
         select 10000000 + g, 'p' || g, 'x', 0, 100 + g, 1, 0 from generate_series(1, 20000) g; \
         insert into delivery (id, due_at, attempt, spent_ms) \
         select 10000000 + g, now() - g * interval '1 second', 3, 1000 from generate_series(1, 20000) g; \
         update delivery set due_at = now() - interval '1 day' where id % 100 = 0 and attempt > 0";
    store.session.client().batch_execute(poison).expect("poison");
    let probe = |store: &mut Store, lease: i64| {
        let room = store.room.reserve_rows(1).expect("room");
        let who = Claimant { process: 1, lease, time: TIME };
        let began = Instant::now();
        let claimed = store.session.claim_probe(who, room).expect("claimed").0.rows;
        assert!(began.elapsed() < Duration::from_secs(5), "it uses its indexes: {:?}", began.elapsed());
        claimed
    };
    // The 64 earliest and the 64 newest are poison, as are ten thousands between them.
    let found = probe(&mut store, 1);
    assert_eq!((found[0].id, found[0].probe, found[0].attempt), (fresh, true, 1), "what was never tried");
    let newest = "insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
         values (20000000, 'new', 'x', 0, 99999, 1, 0); insert into delivery (id, due_at) values (20000000, now())";
    store.session.client().batch_execute(newest).expect("a new one");
    assert_eq!(probe(&mut store, 2)[0].id, 20_000_000, "what has just come");
    // In the middle of the others, by its id and by its time: one that an outage failed.
    let middle = "update delivery set spent_ms = 0 where id = 10010001";
    store.session.client().batch_execute(middle).expect("one that did not fail by itself");
    assert_eq!(probe(&mut store, 3)[0].id, 10_010_001, "rather one that did not fail by itself");
    assert_eq!(probe(&mut store, 30)[0].attempt, 4, "rather poison than nothing");
    // Nothing but what waits for its next attempt is left, due or not.
    let rest = "delete from delivery where id > 10000002; delete from delivery where id < 10000000; \
         update delivery set due_at = now() + interval '1 hour', lease = null where id = 10000001; \
         update delivery set due_at = now() + interval '2 hours', lease = null, spent_ms = 0 where id = 10000002";
    store.session.client().batch_execute(rest).expect("two are left");
    assert_eq!(probe(&mut store, 4)[0].id, 10_000_002, "rather one that did not fail by itself, due or not");
    assert_eq!(probe(&mut store, 5)[0].id, 10_000_001);
    assert!(probe(&mut store, 6).is_empty(), "both are leased");
    store
        .session
        .client()
        .batch_execute("update delivery set lease = null; update pipeline set paused_at = now()")
        .expect("paused");
    assert!(probe(&mut store, 7).is_empty(), "paused");
}

/// What stores is planned once, and so is nothing that looks for rows: its plan would be kept while the tables grow.
#[test]
fn only_what_can_be_done_in_one_way_is_planned_once() {
    let mut store = Store::new();
    for n in 0..8 {
        store.store(&[(&format!("a{n}"), "1"), (&format!("b{n}"), "2")], None);
        store.store(&[(&format!("a{n}"), "1"), (&format!("c{n}"), "3")], None);
        store.claim(n);
    }
    let query =
        "select statement, generic_plans, custom_plans from pg_prepared_statements where generic_plans + custom_plans > 0";
    let rows = store.session.client().query(query, &[]).expect("PostgreSQL says");
    let plans: Vec<(String, i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let of = |part: &str| {
        let (_, generic, custom) = plans.iter().find(|plan| plan.0.contains(part)).expect("it was used");
        (*generic, *custom)
    };
    assert_eq!(of("A batch that brings nothing but new"), (16, 0));
    assert_eq!(of("Claim and reclaim").0, 0);
    assert!(of("Claim and reclaim").1 >= 8);
    let seen = include_str!("../../sql/statements/seen.sql");
    assert_eq!(of(&seen[..60]), (0, 8));
}

#[test]
fn a_claim_on_a_backlog_that_came_at_once_uses_its_index() {
    let mut store = Store::new();
    // The plan is made while the queue is empty; then 200,000 rows arrive before anybody analyzes them.
    assert!(store.claim(1).is_empty());
    store
        .session
        .client()
        .batch_execute(
            "insert into tx (id, transaction_id, payload, partition, kafka_offset, topic_id, incarnation) \
             select 1024 * g, 'b' || g, 'x', 0, g, 1, 0 from generate_series(1, 200000) g; \
             insert into delivery (id, due_at) select 1024 * g, now() from generate_series(1, 200000) g",
        )
        .expect("a backlog");
    let began = Instant::now();
    let rows = store.claim(2);
    assert_eq!(rows.len(), 500);
    let new = rows.iter().map(|row| Settlement {
        id: row.id,
        lease: 2,
        attempt: row.attempt,
        received_at: row.received_at,
        what: Settled::Delivered(tried(Outcome::Delivered, 200)),
    });
    let batch: Vec<Settlement> = new.collect();
    store.session.settle(1, &batch).expect("settled");
    // With the wrong plan the claim alone takes minutes.
    assert!(began.elapsed() < Duration::from_secs(10), "claim and settle took {:?}", began.elapsed());
}

#[test]
fn the_floor_never_hides_a_due_row() {
    let mut store = Store::new();
    let mut floor = Floor::default();
    let now = Instant::now();
    for round in 0..20 {
        store.store(&[(&format!("r{round}"), "1")], None);
        let room = store.room.reserve_rows(64).expect("room");
        let who = Claimant { process: 1, lease: round, time: TIME };
        let (claimed, claims) = store.session.claim(64, who, floor.take(now), room).expect("claimed");
        floor.learn(&claims);
        assert_eq!(claimed.rows.len(), 1, "round {round}");
    }
}

#[test]
fn a_pool_without_a_database_says_so_and_does_not_hang() {
    let mut config = postgres("nowhere");
    config.client = "postgresql://x@127.0.0.1:1/x".parse().expect("a DSN");
    let error = Pool::new(&config, "it", &Timelines::default()).session().err().expect("nobody listens there");
    assert!(matches!(error, StoreError::Connection(_)), "{error}");
}

/// After a failover to a replica that was behind, its sequences give ids anew.
#[test]
fn an_answer_under_an_id_that_is_anothers_by_now_enters_no_history() {
    let mut store = Store::new();
    let id = store.store(&[("a", "1")], Some(5)).new[0].1;
    let received_at = store.received_at(id);
    let answer = |received_at| {
        [
            Settled::Delivered(tried(Outcome::Delivered, 200)),
            Settled::Died { tried: tried(Outcome::Refused, 400), reason: "refused" },
        ]
        .map(|what| Settlement { id, lease: 999, attempt: 1, received_at, what })
    };
    let other = answer(received_at - Duration::from_micros(1));
    assert_eq!(store.session.settle(1, &other).expect("refused in silence"), 0);
    let unknown = answer(received_at).map(|settlement| Settlement { id: id + 1, ..settlement });
    assert_eq!(store.session.settle(1, &unknown).expect("refused in silence"), 0);
    assert_eq!(store.number("select count(*) from attempt"), 0, "not a word of them");
    assert_eq!(store.state("a"), "in_flight");
    assert_eq!(store.session.settle(1, &answer(received_at)[..1]).expect("stale"), 1, "a late answer of its own is history");
    assert_eq!(store.number("select count(*) from attempt where stale"), 1);
}

#[test]
fn a_process_whose_number_is_anothers_by_now_neither_beats_nor_ends_for_it() {
    let mut store = Store::new();
    let registration = Registration { instance: None, lock: None, host: "it".to_owned(), version: "0", lease: LEASE };
    let process = store.session.register(&registration).expect("registered");
    // Another was registered under the number, on a primary that does not know the first.
    store.session.client().batch_execute("update process set started_at = started_at + interval '1 second'").expect("replaced");
    assert!(store.session.heartbeat(process, &Heartbeat::default()).expect("answers").is_none());
    store.session.goodbye(process).expect("answers");
    assert_eq!(store.number("select count(*) from process where ended_at is null"), 1);
}

#[test]
fn a_predecessor_is_dead_by_its_lock_its_word_or_its_silence() {
    let mut store = Store::new();
    let (instance, ours, others) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let mut register = |lock| {
        let registration = Registration { instance: Some(instance), lock, host: "it".to_owned(), version: "0", lease: LEASE };
        store.session.register(&registration).expect("registered")
    };
    let [same_lock, other_lock, old_release, ended, silent, ahead, me] =
        [Some(ours), Some(others), None, Some(others), Some(others), Some(others), Some(ours)].map(|lock| register(lock).id);
    let mut run = |sql: &str| store.session.client().batch_execute(sql).expect("runs");
    run(&format!("update process set ended_at = now() where id = {ended}"));
    run(&format!("update process set seen_at = now() - interval '11 seconds' where id = {silent}"));
    run(&format!("update process set seen_at = now() + interval '1 hour' where id = {ahead}"));
    let found = store.session.predecessors(instance, Some(ours), me).expect("answers");
    let dead: std::collections::BTreeSet<i64> = found.iter().filter(|p| p.is_dead).map(|p| p.id).collect();
    assert_eq!(dead, [same_lock, ended, silent, ahead].into(), "its clock was set back: what lies ahead was not written since");
    let alive: std::collections::BTreeSet<i64> = found.iter().filter(|p| !p.is_dead).map(|p| p.id).collect();
    assert_eq!(alive, [other_lock, old_release].into());
    let without = store.session.predecessors(instance, None, me).expect("answers");
    assert!(without.iter().any(|p| p.id == same_lock && !p.is_dead), "a lock without a name proves nothing");
}
