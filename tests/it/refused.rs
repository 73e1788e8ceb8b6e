//! F34: what PostgreSQL refuses. A value is rejected singly; anything else that it refuses stops its partition, loudly, and
//! nothing else; an answer's text never holds up an outcome.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use txrelay::store::StoreError;

use crate::lost::gaps;
use crate::rig::{Admin, Ledger, Raw, Relay, Topic, bootstrap, eventually, ids, transaction};
use crate::store::Store;

/// Values of transactions, spread over three partitions by their place.
pub fn spread(ids: &[String]) -> Vec<Raw> {
    ids.iter().enumerate().map(|(i, id)| Raw { partition: (i % 3) as i32, ..Raw::value(transaction(id)) }).collect()
}

fn position(relay: &Relay, partition: i32) -> i64 {
    relay.count(&format!("select next_offset from consumer_position where partition = {partition}"))
}

/// A start that has relayed 30 records, ten from each partition.
fn under_way() -> (Topic, Ledger, Relay) {
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "workers = 8");
    relay.start();
    topic.raw(&spread(&ids("first", 0..30)));
    eventually("under way", || ledger.count("accepted") == 30);
    (topic, ledger, relay)
}

/// What `refuse` makes PostgreSQL refuse is in partition 1, at the offset of `bad`: that partition stands there, the others go
/// on, it is said, the process lives; once `mend` has run it goes on by itself, and nothing is missing.
#[track_caller]
fn stops_its_partition_only(refuse: &str, mend: &str, bad: Raw, words: &str) {
    let (topic, ledger, mut relay) = under_way();
    relay.sql().batch_execute(refuse).expect("altered");
    let mut sent = ids("before", 0..30);
    let mut records = spread(&sent);
    let culprit = 20;
    records.push(Raw { partition: 1, ..bad });
    sent.extend(ids("behind", 0..30));
    records.extend(spread(&sent[30..]));
    topic.raw(&records);
    let delivered =
        |id: &String| !(id.starts_with("behind") && id.rsplit('-').next().is_some_and(|n| n.parse::<u32>().unwrap() % 3 == 1));
    let others = sent.iter().filter(|id| delivered(id)).count() as u64;
    eventually("the others are delivered", || ledger.count("accepted") == 30 + others);
    eventually("it is said", || relay.metric("stalled{reason=\"partition\"}") == Some(1.0));
    assert_eq!(position(&relay, 1), culprit, "it stands at the record that is refused, and nothing before it waits");
    let ready = relay.http("/readyz").expect("answers");
    let place = format!("{}/1 stands still at {culprit}", topic.name);
    assert!(ready.contains(&place) && ready.contains(words), "{ready}");
    let log = relay.log();
    assert!(log.lines().any(|line| line.contains("[ERROR]") && line.contains(&place) && line.contains(words)), "{log}");
    // It is tried again all the while, and the others are not held up.
    let more = ids("more", 0..60);
    topic.raw(spread(&more).iter().filter(|raw| raw.partition != 1));
    eventually("the others go on", || ledger.count("accepted") == 30 + others + 40);
    let refusals = |relay: &Relay| -> f64 {
        ["value", "constraint", "refused"]
            .iter()
            .filter_map(|kind| relay.metric(&format!("postgres_errors_total{{kind=\"{kind}\"}}")))
            .sum()
    };
    let before = refusals(&relay);
    eventually("it is tried again", || refusals(&relay) > before);
    assert!(relay.is_running());
    assert_eq!(relay.metric("stalled{reason=\"postgres\"}"), Some(0.0), "PostgreSQL is well");
    assert_eq!(position(&relay, 1), culprit, "nothing is skipped");
    relay.balanced();
    relay.sql().batch_execute(mend).expect("mended");
    eventually("it goes on by itself", || position(&relay, 1) == culprit + 11);
    eventually("all delivered", || ledger.count("accepted") >= 30 + 60 + 40);
    assert_eq!(relay.metric("stalled{reason=\"partition\"}"), Some(0.0));
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(ledger.count("accepted_twice"), 0);
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

/// A check constraint that somebody added: SQLSTATE 23514.
#[test]
fn a_transaction_that_a_constraint_refuses_stops_its_partition_only() {
    stops_its_partition_only(
        "alter table tx add constraint no_refunds check (transaction_id not like 'refund%')",
        "alter table tx drop constraint no_refunds",
        Raw::value(transaction("refund-1")),
        "no_refunds",
    );
}

/// A trigger that raises: P0001. So would one that runs into whatever is not there.
#[test]
fn a_transaction_that_a_trigger_refuses_stops_its_partition_only() {
    stops_its_partition_only(
        "create function no() returns trigger language plpgsql as $$ begin \
           if new.transaction_id like 'refund%' then raise exception 'refunds go another way'; end if; return new; end $$; \
         create trigger no before insert on tx for each row execute function no()",
        "drop trigger no on tx",
        Raw::value(transaction("refund-2")),
        "refunds go another way",
    );
}

/// A unique index that somebody added: SQLSTATE 23505, and no other try will be better.
#[test]
fn a_transaction_that_a_unique_index_refuses_stops_its_partition_only() {
    stops_its_partition_only(
        "create unique index once on tx ((case when transaction_id in ('first-0', 'refund-5') then 'x' else transaction_id end))",
        "drop index once",
        Raw::value(transaction("refund-5")),
        "once",
    );
}

/// A trigger that swallows a row without a word: the record is neither inserted nor there, and must not be passed over.
#[test]
fn a_transaction_that_a_trigger_swallows_stops_its_partition_only() {
    stops_its_partition_only(
        "create function gone() returns trigger language plpgsql as $$ begin \
           if new.transaction_id like 'refund%' then return null; end if; return new; end $$; \
         create trigger gone before insert on tx for each row execute function gone()",
        "drop trigger gone on tx",
        Raw::value(transaction("refund-3")),
        "neither inserted nor found",
    );
}

/// A deferred one speaks only at COMMIT.
#[test]
fn a_transaction_that_is_refused_at_commit_stops_its_partition_only() {
    stops_its_partition_only(
        "create function late() returns trigger language plpgsql as $$ begin \
           if new.transaction_id like 'refund%' then raise exception 'not at this hour'; end if; return null; end $$; \
         create constraint trigger late after insert on tx deferrable initially deferred for each row execute function late()",
        "drop trigger late on tx",
        Raw::value(transaction("refund-4")),
        "not at this hour",
    );
}

/// A rejected record has no other place to go.
#[test]
fn a_rejected_record_that_postgresql_refuses_stops_its_partition_only() {
    stops_its_partition_only(
        "alter table rejected add constraint small check (octet_length(payload) < 10)",
        "alter table rejected drop constraint small",
        Raw::value("not JSON, and longer than ten bytes"),
        "small",
    );
}

/// A person gives the record up in Kafka, and nothing follows it: the partition no longer waits, and must not say so for ever.
#[test]
fn a_refused_record_that_is_deleted_from_the_log_is_a_recorded_gap_and_nothing_waits_any_more() {
    let (topic, _ledger, relay) = under_way();
    relay
        .sql()
        .batch_execute("alter table tx add constraint no_refunds check (transaction_id not like 'refund%')")
        .expect("altered");
    topic.write(1, vec!["refund-6".to_owned()]);
    let stalled = || relay.metric("stalled{reason=\"partition\"}");
    eventually("it is said", || stalled() == Some(1.0));
    Admin::of(&bootstrap()).delete_records(&topic.name, 1, 11);
    eventually("it is given up", || position(&relay, 1) == 11);
    eventually("nothing waits", || stalled() == Some(0.0));
    assert_eq!(gaps(&relay), [(1, 0, 10, 11, "retention".to_owned())]);
}

#[test]
fn what_is_refused_first_is_found_and_what_lies_before_it_is_taken() {
    let mut store = Store::new();
    let alter = "alter table tx add check (transaction_id <> 'bad'); alter table duplicate add check (kafka_offset <> 257)";
    store.session.client().batch_execute(alter).expect("altered");
    store.store(&[("known", "{}")], None);
    let mut stands = 1;
    // The places of what is refused in a batch of 100, and of the first of them.
    for (round, bad) in [&[][..], &[0], &[1], &[50], &[98], &[99], &[7, 60]].into_iter().enumerate() {
        let ids: Vec<String> =
            (0..100).map(|i| if bad.contains(&i) { "bad".to_owned() } else { format!("{round}-{i}") }).collect();
        let values: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "{}")).collect();
        let candidates = store.records(&values);
        let batch = store.batch(candidates, Vec::new(), None);
        let before = store.number("select count(*) from tx");
        let found = store.first_refused(&batch);
        assert_eq!(found, bad.first().map(|place| stands + *place as i64), "{bad:?}");
        assert_eq!(store.number("select count(*) from tx"), before, "looking stores nothing");
        let Some(offset) = found else { continue };
        assert!(store.ingest(&batch).is_err_and(|error| error.is_about_rows()));
        store.ingest(&batch.before(offset)).expect("taken");
        stands = offset;
    }
    // Not a transaction's own row but its duplicate's.
    assert_eq!(stands, 256);
    let candidates = store.records(&[("known", "{}"); 3]);
    let batch = store.batch(candidates, Vec::new(), None);
    assert_eq!(store.first_refused(&batch), Some(257));
}

#[test]
fn a_value_beside_what_a_trigger_refuses_is_still_rejected_singly() {
    let mut store = Store::new();
    store.session.client().batch_execute("alter table tx add check (transaction_id <> 'bad')").expect("altered");
    let mut candidates = store.records(&[("a", "1"), ("bad", "2"), ("c", "3"), ("d", "4")]);
    candidates[2].transaction_id = "c\0".to_owned();
    let batch = store.batch(candidates, Vec::new(), None);
    assert_eq!(store.find_unstorable(&batch), [2]);
    assert!(store.ingest(&batch).is_err_and(|error| matches!(error, StoreError::Value(_))));
}

/// Otherwise the batch would be tried for ever, without a look at Kafka.
#[test]
fn a_value_beside_what_a_unique_index_refuses_is_still_rejected_singly() {
    let mut store = Store::new();
    store.session.client().batch_execute("create unique index once on tx (payload)").expect("altered");
    store.store(&[("known", "1")], None);
    let mut candidates = store.records(&[("a", "0"), ("b", "1"), ("c", "3"), ("d", "4")]);
    candidates[2].transaction_id = "c\0".to_owned();
    let batch = store.batch(candidates, Vec::new(), None);
    assert_eq!(store.find_unstorable(&batch), [2]);
}

/// Answers the first request for each path with what no database likes, and later ones with 200.
struct Hostile {
    url: String,
    healed: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
    accepted: Arc<AtomicU64>,
}

impl Hostile {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/t", listener.local_addr().expect("its address"));
        let hostile = Self { url, healed: Arc::default(), refused: Arc::default(), accepted: Arc::default() };
        let (healed, refused, accepted) = (hostile.healed.clone(), hostile.refused.clone(), hostile.accepted.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (healed, refused, accepted) = (healed.clone(), refused.clone(), accepted.clone());
                // An answer that is cut off is one more fault of the service.
                std::thread::spawn(move || serve(stream.expect("a connection"), &healed, &refused, &accepted));
            }
        });
        hostile
    }
}

fn serve(mut stream: std::net::TcpStream, healed: &AtomicBool, refused: &AtomicU64, accepted: &AtomicU64) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap_or(0);
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if healed.load(Ordering::Relaxed) {
            accepted.fetch_add(1, Ordering::Relaxed);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let n = refused.fetch_add(1, Ordering::Relaxed);
        let body: Vec<u8> = match n % 5 {
            0 => b"nul \0 inside".to_vec(),
            1 => b"\xff\xfe\xc3\x28 not UTF-8 \xed\xa0\x80".to_vec(),
            2 => vec![0; 10 << 20],
            3 => "\u{1b}]0;owned\u{7}'; drop table tx; --".as_bytes().to_vec(),
            _ => [&[b'x'; 1023][..], "\u{1f600}".as_bytes()].concat(),
        };
        // Every other one answers a header that is no text, too.
        let odd: &[u8] = if n.is_multiple_of(2) { b"X-Odd: \xff\xfe\r\n" } else { b"" };
        let head = format!("HTTP/1.1 500 \r\nContent-Length: {}\r\n", body.len());
        stream.write_all(&[head.as_bytes(), odd, b"\r\n"].concat())?;
        stream.write_all(&body)?;
    }
}

/// NUL, invalid UTF-8, terminal escapes, 10 MB: each outcome is written at once, its neighbours' too.
#[test]
fn answers_that_postgresql_would_refuse_hold_up_no_outcome() {
    let (topic, service) = (Topic::new(1), Hostile::start());
    let mut relay = Relay::new(&topic.name, &service.url, "workers = 8\nkeep_answer = \"1 KiB\"\n[gate]\nshut_after = 1000");
    relay.start();
    topic.transactions(ids("h", 0..50));
    eventually("every outcome is written", || {
        relay.count("select count(distinct tx_id) from attempt where outcome = 2 and http_status = 500") == 50
    });
    let kept =
        "select count(*) from attempt where error is not null and octet_length(error) <= 1024 and error !~ '[\\x01-\\x1f\\x7f]'";
    assert_eq!(relay.count(kept), relay.count("select count(*) from attempt where error is not null"));
    assert!(relay.count(kept) >= 40, "the text of an answer is kept");
    assert_eq!(relay.count("select count(*) from attempt where outcome <> 2"), 0);
    service.healed.store(true, Ordering::Relaxed);
    eventually("all delivered", || service.accepted.load(Ordering::Relaxed) >= 50);
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    assert_eq!(relay.metric("settles_stale_total"), Some(0.0));
    let used = relay.resources();
    assert!(used.rss_peak_mb < 150.0, "{used:?}");
    assert!(!relay.log().contains("failed to write"), "{}", relay.log());
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
