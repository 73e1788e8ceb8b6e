//! What upstream teams send on a bad day: each record ends in a named place, at once, and its neighbours are delivered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::rig::{LARGEST, Ledger, Raw, Relay, Topic, bootstrap, eventually, ids, transaction};

/// A record of the list in reliability.md 5.5, and where it must end: as the transaction of this id, or rejected for a reason.
struct Poison {
    what: &'static str,
    record: Raw,
    place: Result<String, &'static str>,
}

fn poison(what: &'static str, value: impl Into<Vec<u8>>, place: Result<&str, &'static str>) -> Poison {
    Poison { what, record: Raw::value(value), place: place.map(str::to_owned) }
}

/// A transaction with another member beside its id.
fn beside(id: &str, more: &str) -> Vec<u8> {
    format!(r#"{{"transaction_id":"{id}",{more}}}"#).into_bytes()
}

/// The twenty payloads; the id is at `/transaction_id`. The numbers are those of the list.
fn payloads() -> Vec<Poison> {
    let id = |text: &str| format!(r#"{{"transaction_id":{text},"amount":"1.00"}}"#);
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\x56\x2a\x29\x4a\xcc".to_vec();
    let avro = b"\x00\x00\x00\x00\x07\x0ctx-123\x02\x80\x80\x08\xf6\x3f".to_vec();
    let digits = "9".repeat(39);
    let mut all = vec![
        poison("1 null value", "", Err("tombstone")),
        poison("2 empty", "", Err("unreadable")),
        poison("3 one space", " ", Err("unreadable")),
        poison("4 invalid UTF-8", [br#"{"transaction_id":"u8","name":""#, &b"\xc3\x28\"}"[..]].concat(), Err("unreadable")),
        poison("5 NUL in the id", id(r#""a\u0000b""#), Err("id_invalid")),
        poison("5 NUL beside it", beside("nul", r#""note":"a\u0000b""#), Ok("nul")),
        poison("6 lone surrogate in the id", id(r#""a\ud800b""#), Err("id_invalid")),
        poison("6 lone surrogate beside it", beside("lone", r#""note":"\udfff","\ud800":1"#), Ok("lone")),
        poison("7 truncated", r#"{"transaction_id":"cut","amount"#, Err("unreadable")),
        poison("8 trailing garbage", r#"{"transaction_id":"garbage"}}"#, Err("unreadable")),
        poison("9 duplicate keys", r#"{"transaction_id":"one","transaction_id":"two"}"#, Err("id_invalid")),
        poison("10 id missing", r#"{"id":"x","Transaction_Id":"y"}"#, Err("id_missing")),
        poison("11 id null", id("null"), Err("id_invalid")),
        poison("12 id a fraction", id("1.5"), Err("id_invalid")),
        poison("12 id an integer", id("17"), Ok("17")),
        poison("12 id an object", id(r#"{"transaction_id":"inner"}"#), Err("id_invalid")),
        poison("12 id an array", id(r#"["inner"]"#), Err("id_invalid")),
        poison("12 id a boolean", id("true"), Err("id_invalid")),
        poison("13 id empty", id(r#""""#), Err("id_invalid")),
        poison("13 id only spaces", id(r#""   ""#), Ok("   ")),
        poison("14 id of 64 kB", id(&format!("\"{}\"", "x".repeat(64 << 10))), Err("id_invalid")),
        poison("14 id of 64 kB of digits", id(&"7".repeat(64 << 10)), Err("id_invalid")),
        poison("16 NaN", beside("nan", r#""amount":NaN"#), Err("unreadable")),
        poison("16 1e999", beside("1e999", r#""amount":1e999"#), Ok("1e999")),
        poison("16 id 1e999", id("1e999"), Err("id_invalid")),
        poison("16 39 digits", beside("39 digits", &format!(r#""amount":{digits}"#)), Ok("39 digits")),
        poison("16 id of 39 digits", id(&digits), Ok(&digits)),
        poison("17 nested deep", beside("deep", &format!(r#""a":{}{}"#, "[".repeat(100_000), "]".repeat(100_000))), Ok("deep")),
        poison(
            "17 objects nested deep",
            beside("deep objects", &format!(r#""a":{}1{}"#, r#"{"a":"#.repeat(100_000), "}".repeat(100_000))),
            Ok("deep objects"),
        ),
        poison("17 nested deep and cut", beside("deep cut", &format!(r#""a":{}"#, "[".repeat(100_000))), Err("unreadable")),
        poison("17 id nested deep", id(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))), Err("id_invalid")),
        poison("18 a string of 1 MB", beside("1 MB", &format!(r#""a":"{}""#, "x".repeat(1_000_000))), Ok("1 MB")),
        poison("18 escapes of 1 MB", beside("escapes", &format!(r#""a":"{}""#, r"\u00e4".repeat(166_000))), Ok("escapes")),
        poison("19 an array of a million", beside("million", &format!(r#""a":[{}0]"#, "0,".repeat(999_999))), Ok("million")),
        poison("19 nothing but an array of a million", format!("[{}0]", "0,".repeat(999_999)), Err("id_missing")),
        poison("19 a million keys", format!(r#"{{{}"transaction_id":"keys"}}"#, r#""a":1,"#.repeat(400_000)), Ok("keys")),
        poison("20 BOM", [&b"\xef\xbb\xbf"[..], &transaction("bom")].concat(), Err("unreadable")),
        poison("20 gzip", gzip, Err("unreadable")),
        poison("20 Avro", avro, Err("unreadable")),
        poison("F42 above kafka.record_max", beside("5 MB", &format!(r#""a":"{}""#, "x".repeat(5_000_000))), Err("too_large")),
    ];
    all[0].record.value = None;
    // 15: what looks alike is not the same. One transaction each, none a duplicate of another.
    for text in
        ["look-alike", "Look-Alike", "look-alike ", "look-alik\u{e9}", "look-alike\u{301}", "l\u{3bf}ok-alike", "look-alike\\n"]
    {
        let written = text.replace("\\n", "\n");
        all.push(poison("15 look-alikes", id(&format!("\"{text}\"")), Ok(&written)));
    }
    all
}

/// Header variants; the id is in the header `id`. F45: null key, null value, empty value, 10,000 headers, repeated headers,
/// times of -1 and of the year 9999.
fn headers() -> Vec<Poison> {
    let named = |n: usize| (0..n).map(|i| (format!("h{i}"), Some(vec![0xff, i as u8]))).collect::<Vec<_>>();
    let with = |what, more: Vec<(String, Option<Vec<u8>>)>, ids: &[Option<&[u8]>], place: Result<&str, &'static str>| {
        let mut poison = poison(what, "not JSON", place);
        poison.record.headers = more;
        poison.record.headers.extend(ids.iter().map(|id| ("id".to_owned(), id.map(<[u8]>::to_vec))));
        poison
    };
    let long = vec![b'x'; 64 << 10];
    let mut all = vec![
        with("no header", vec![], &[], Err("id_missing")),
        with("null", vec![], &[None], Err("id_missing")),
        with("empty", vec![], &[Some(b"")], Err("id_invalid")),
        with("not UTF-8", vec![], &[Some(b"\xff\xfe")], Err("id_invalid")),
        with("NUL", vec![], &[Some(b"a\0b")], Err("id_invalid")),
        with("64 kB", vec![], &[Some(&long)], Err("id_invalid")),
        with("repeated: the last", vec![], &[Some(b"first"), Some(b"last")], Ok("last")),
        with("another case", vec![("ID".into(), Some(b"upper".to_vec()))], &[], Err("id_missing")),
        with("10,000 headers", named(10_000), &[Some(b"many headers")], Ok("many headers")),
        with("10,000 headers and no id", named(10_000), &[], Err("id_missing")),
        with(
            "a header of 1 MB that is not text",
            vec![("bin".into(), Some(vec![0xfe; 1_000_000]))],
            &[Some(b"binary")],
            Ok("binary"),
        ),
        with("a header of NULs", vec![("nul\u{1}".into(), Some(vec![0; 100]))], &[Some(b"nuls")], Ok("nuls")),
        with("CR LF in the id", vec![], &[Some(b"a\r\nX-Injected: 1")], Ok("a\r\nX-Injected: 1")),
        with(
            "CR LF in a forwarded header",
            vec![("traceparent".into(), Some(b"a\r\nX-Injected: 1".to_vec()))],
            &[Some(b"inject")],
            Ok("inject"),
        ),
        with("null key, null value", vec![], &[Some(b"null value")], Err("tombstone")),
        with("empty value", vec![], &[Some(b"empty value")], Ok("empty value")),
        with("a time of -1", vec![], &[Some(b"no time")], Ok("no time")),
        with("the year 9999", vec![], &[Some(b"9999")], Ok("9999")),
        with("a time beyond all years", vec![], &[Some(b"beyond")], Ok("beyond")),
    ];
    let n = all.len();
    all[n - 5].record.value = None;
    all[n - 4].record.value = Some(Vec::new());
    all[n - 3].record.timestamp = Some(-1);
    all[n - 2].record.timestamp = Some(253_402_300_799_000);
    all[n - 1].record.timestamp = Some(i64::MAX / 2);
    all
}

/// Where each offset of partition 0 is: the id of a transaction, or a reason.
fn places(relay: &Relay) -> BTreeMap<i64, Result<String, String>> {
    let query = "select kafka_offset, transaction_id, null from tx union all select kafka_offset, null, reason from rejected";
    let rows = relay.sql().query(query, &[]).unwrap_or_default();
    let place = |row: &postgres::Row| row.get::<_, Option<String>>(1).ok_or_else(|| row.get(2));
    rows.iter().map(|row| (row.get(0), place(row))).collect()
}

#[track_caller]
fn is_in_its_place(relay: &Relay, offset: i64, poison: &Poison) {
    let place = places(relay).remove(&offset);
    assert_eq!(place, Some(poison.place.clone().map_err(str::to_owned)), "{}", poison.what);
    let stored =
        "select payload, key from tx where kafka_offset = $1 union all select payload, key from rejected where kafka_offset = $1";
    let row = relay.sql().query_one(stored, &[&offset]).expect("one place");
    assert_eq!(
        (row.get(0), row.get(1)),
        (poison.record.value.clone(), poison.record.key.clone()),
        "{}: not its bytes",
        poison.what
    );
}

/// Alone and idle, and then each in the middle of 500 good ones.
#[track_caller]
fn each_ends_in_its_place(rule: &str, poisons: &[Poison], good: impl Fn(&str) -> Raw) {
    // As brokers before Kafka 4 have it: a record may come from any time.
    let any_time = format!("message.timestamp.after.max.ms={}", i64::MAX);
    let largest = format!("max.message.bytes={LARGEST}");
    let (topic, ledger) = (Topic::on(&bootstrap(), 1, &[&any_time, &largest]), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), &format!("[transaction]\nid = \"{rule}\""));
    relay.set("kafka.record_max=\"4 MiB\"");
    relay.start();
    topic.raw(&[good("first")]);
    eventually("under way", || ledger.count("accepted") == 1);
    let mut accepted = 1;
    let mut most = Duration::ZERO;
    for (offset, poison) in (1..).zip(poisons) {
        let before = relay.cpu();
        topic.raw([&poison.record]);
        accepted += u64::from(poison.place.is_ok());
        eventually(poison.what, || relay.count("select next_offset from consumer_position") == offset + 1);
        eventually("delivered", || ledger.count("accepted") == accepted);
        let cpu = relay.cpu() - before;
        assert!(cpu < Duration::from_secs(1), "{}: {cpu:?} of CPU", poison.what);
        most = most.max(cpu);
        is_in_its_place(&relay, offset, poison);
    }
    // One record too many must be as cheap among others: what a transaction is for is told apart by its id, so that the good
    // ones are others each time.
    let first = 1 + poisons.len() as i64;
    let mut middles = Vec::new();
    let mut offset = first;
    let before = relay.cpu();
    for (round, poison) in poisons.iter().enumerate() {
        let mut batch: Vec<Raw> = ids(&format!("good-{round}"), 0..500).iter().map(|id| good(id)).collect();
        let mut again = poison.record.clone();
        // Repeated as it is, a transaction would be a duplicate of the one that came alone.
        if let Ok(id) = &poison.place {
            again = good(&format!("{id} again"));
        }
        batch.insert(250, again);
        middles.push(offset + 250);
        offset += 501;
        topic.raw(&batch);
        accepted += 500 + u64::from(poison.place.is_ok());
    }
    eventually("all read", || relay.count("select next_offset from consumer_position") == offset);
    eventually("the neighbours are delivered", || ledger.count("accepted") == accepted);
    let cpu = (relay.cpu() - before) / poisons.len() as u32;
    println!("most CPU of one alone: {most:?}; of one with its 500 neighbours, requests and all: {cpu:?}");
    let found = places(&relay);
    for (poison, middle) in poisons.iter().zip(middles) {
        let expected = poison.place.clone().map(|id| format!("{id} again")).map_err(str::to_owned);
        assert_eq!(found.get(&middle), Some(&expected), "{} in the middle", poison.what);
    }
    eventually("all settled", || relay.count("select count(*) from delivery") == 0);
    // Whatever the bytes are, the view shows them.
    let shown = "select count(*) from transaction_status where state = 'delivered' and (payload_json is null or payload_json is not null)";
    assert_eq!(relay.count(shown), accepted as i64);
    assert_eq!(ledger.count("accepted_twice"), 0, "{}", ledger.summary());
    let used = relay.resources();
    assert!(used.rss_peak_mb < 150.0, "{used:?}");
    assert!(relay.log().lines().count() < 100, "{}", relay.log());
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}

#[test]
fn each_of_the_twenty_poison_payloads_ends_in_a_named_place_at_once() {
    each_ends_in_its_place("value:/transaction_id", &payloads(), |id| {
        Raw::value(serde_json::json!({ "transaction_id": id }).to_string())
    });
}

/// F45, and what ids in headers may be.
#[test]
fn each_poison_of_headers_keys_and_times_ends_in_a_named_place_at_once() {
    each_ends_in_its_place("header:id", &headers(), |id| Raw {
        headers: vec![("id".to_owned(), Some(id.as_bytes().to_vec()))],
        key: Some(b"k".to_vec()),
        ..Raw::value("{}")
    });
}

/// An alarm bounds what is rejected, and nothing is dropped: memory and log are bounded, and it is not slow.
#[test]
fn a_topic_of_nothing_but_garbage_is_stored_and_alarmed_in_a_few_lines() {
    const N: usize = 10_000;
    let (topic, ledger) = (Topic::new(3), Ledger::start());
    let garbage = |i: usize| match i % 4 {
        0 => format!("this is not JSON: {i}").into_bytes(),
        1 => format!(r#"{{"id":{i}}}"#).into_bytes(),
        2 => format!(r#"{{"transaction_id":{i}.5}}"#).into_bytes(),
        _ => vec![0xff; 700],
    };
    let records: Vec<Raw> = (0..N).map(|i| Raw { partition: (i % 3) as i32, ..Raw::value(garbage(i)) }).collect();
    topic.raw(&records);
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    let began = Instant::now();
    relay.start();
    eventually("all rejected", || relay.count("select count(*) from rejected") == N as i64);
    println!("{N} records of garbage were stored in {:?}, with {:?} of CPU", began.elapsed(), relay.cpu());
    eventually("and it is said", || relay.metric("rejected_unresolved") == Some(N as f64));
    for (reason, n) in [("unreadable", N / 2), ("id_missing", N / 4), ("id_invalid", N / 4)] {
        assert_eq!(relay.metric(&format!("rejected_total{{reason=\"{reason}\"}}")), Some(n as f64), "{reason}");
    }
    assert_eq!(ledger.count("requests"), 0);
    let log = relay.log();
    assert!(log.lines().count() < 40 && log.len() < 16_000, "{} lines, {} bytes", log.lines().count(), log.len());
    let used = relay.resources();
    assert!(used.rss_peak_mb < 150.0, "{used:?}");
    relay.balanced();
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
