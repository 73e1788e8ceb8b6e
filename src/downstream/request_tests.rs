//! What a request says, and what no record can make it say.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

pub(in crate::downstream) fn config(url: &str) -> config::Downstream {
    config::Downstream {
        url: url.into(),
        method: config::Method::Post,
        timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(3),
        idle_timeout: Duration::from_secs(10),
        workers: 1,
        rate_limit: None,
        content_type: "application/json".into(),
        idempotency_header: "Idempotency-Key".into(),
        idempotency_format: IdempotencyFormat::Plain,
        forward_headers: vec!["traceparent".into(), "tracestate".into(), "X-Origin".into()],
        headers: vec![("X-Fixed".into(), "yes".into())],
        keep_answer: 1024,
        security: config::Security::default(),
        outcomes: crate::core::outcome::Overrides::default(),
    }
}

fn nobody() -> std::sync::Arc<Credentials> {
    crate::downstream::credentials::Keyring::new(&config::Security::default(), false).expect("nothing to read").get()
}

const NOW: u64 = 1_700_000_000;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn template() -> Template {
    Template::new(&config("https://ledger.internal/transactions?x=1")).expect("a legal configuration")
}

fn headers_of(record: &[(&str, Option<&[u8]>)]) -> HeaderMap {
    let headers: Vec<_> = record.iter().map(|(n, v)| ((*n).to_owned(), v.map(<[u8]>::to_vec))).collect();
    let delivery = Delivery {
        transaction_id: "tx 1",
        payload: b"{}",
        headers: &headers,
        source: ("payments", 3, 42),
        received_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_007),
        attempt: 2,
    };
    template().request(&delivery, [0; 24], &nobody(), NOW).headers().clone()
}

#[track_caller]
fn check(headers: &HeaderMap, name: &str, expected: &[&str]) {
    let values: Vec<_> = headers.get_all(name).iter().map(|v| v.to_str().expect("visible ASCII")).collect();
    assert_eq!(values, expected, "{name}");
}

#[test]
fn a_request_says_what_the_interface_promises() {
    let headers = headers_of(&[]);
    check(&headers, "idempotency-key", &["tx%201"]);
    check(&headers, "txrelay-attempt", &["2"]);
    check(&headers, "txrelay-source", &["payments/3/42"]);
    check(&headers, "txrelay-first-received", &["2023-11-14T22:13:20.007Z"]);
    check(&headers, "content-type", &["application/json"]);
    check(&headers, "user-agent", &[concat!("txrelay/", env!("CARGO_PKG_VERSION"))]);
    check(&headers, "x-fixed", &["yes"]);
    check(&headers, "traceparent", &["00-00000000000000000000000000000001-0000000000000001-01"]);
    assert_eq!(headers.len(), 8);

    let mut quoted = config("http://localhost/");
    quoted.idempotency_format = IdempotencyFormat::Quoted;
    quoted.method = config::Method::Put;
    let delivery = Delivery {
        transaction_id: "a\"b",
        payload: b"\0\xffraw",
        headers: &[],
        source: ("t", 0, 0),
        received_at: SystemTime::UNIX_EPOCH,
        attempt: 1,
    };
    let request = Template::new(&quoted).expect("legal").request(&delivery, [7; 24], &nobody(), NOW);
    check(request.headers(), "idempotency-key", &["\"a%22b\""]);
    assert_eq!((request.method(), *request.body()), (&Method::PUT, &b"\0\xffraw"[..]));
}

#[test]
fn only_listed_headers_with_harmless_values_are_passed_on() {
    let big = vec![b'x'; 5000];
    let headers = headers_of(&[
        ("x-ORIGIN", Some(b"one")),
        ("X-Origin", Some(b" two\twords ")),
        ("X-Origin", Some(b"split\r\nX-Evil: 1")),
        ("X-Origin", Some(b"nul\0")),
        ("X-Origin", Some("ä".as_bytes())),
        ("X-Origin", Some(b"")),
        ("X-Origin", None),
        ("X-Fixed", Some(b"no")),
        ("Host", Some(b"evil")),
        ("Content-Length", Some(b"0")),
        ("Transfer-Encoding", Some(b"chunked")),
        ("Idempotency-Key", Some(b"other")),
        ("X-Origin", Some(&big)),
        ("X-Origin", Some(&big)),
    ]);
    check(&headers, "x-origin", &["one", "two\twords", std::str::from_utf8(&big).expect("ASCII")]);
    check(&headers, "x-fixed", &["yes"]);
    check(&headers, "idempotency-key", &["tx%201"]);
    for absent in ["host", "content-length", "transfer-encoding", "x-evil"] {
        check(&headers, absent, &[]);
    }
}

#[test]
fn a_records_content_type_wins_if_it_can_be_one() {
    for (value, expected) in [
        (Some(&b"application/cloudevents+json; charset=UTF-8"[..]), "application/cloudevents+json; charset=UTF-8"),
        (Some(b"nonsense"), "application/json"),
        (Some(b"a/b\r\nX: y"), "application/json"),
        (Some(&[b'/'; 300]), "application/json"),
        (None, "application/json"),
    ] {
        check(&headers_of(&[("Content-Type", value)]), "content-type", &[expected]);
    }
}

#[test]
fn a_trace_goes_on_or_begins_anew() {
    let headers =
        headers_of(&[("TraceParent", Some(TRACE.as_bytes())), ("tracestate", Some(b"a=1")), ("tracestate", Some(b"b=2"))]);
    check(&headers, "traceparent", &[TRACE]);
    check(&headers, "tracestate", &["a=1", "b=2"]);

    let later = TRACE.replacen("00", "42", 1) + "-what-comes-later";
    check(&headers_of(&[("traceparent", Some(later.as_bytes()))]), "traceparent", &[&later]);

    for bad in [
        String::new(),
        TRACE.to_uppercase(),
        TRACE.replacen("00", "ff", 1),
        TRACE.to_owned() + "-more",
        TRACE.replace('-', "_"),
        TRACE[..54].to_owned(),
        format!("00-{}-b7ad6b7169203331-00", "0".repeat(32)),
        format!("00-0af7651916cd43dd8448eb211c80319c-{}-00", "0".repeat(16)),
    ] {
        let headers = headers_of(&[("traceparent", Some(bad.as_bytes())), ("tracestate", Some(b"a=1"))]);
        check(&headers, "traceparent", &["00-00000000000000000000000000000001-0000000000000001-01"]);
        check(&headers, "tracestate", &[]);
    }
}

#[test]
fn what_cannot_be_sent_is_refused_at_start() {
    let refuse = |change: fn(&mut config::Downstream), expected: &str| {
        let mut c = config("https://ledger.internal/");
        change(&mut c);
        let error = format!("{:#}", Template::new(&c).expect_err(expected));
        assert!(error.contains(expected), "{error}");
    };
    refuse(|c| c.url = "not a url".into(), "downstream.url");
    refuse(|c| c.url = "/path".into(), "downstream.url");
    refuse(|c| c.url = "ftp://x/".into(), "downstream.url");
    refuse(|c| c.idempotency_header = "no spaces".into(), "downstream.idempotency_header");
    refuse(|c| c.idempotency_header = "Content-Length".into(), "downstream.idempotency_header");
    refuse(|c| c.idempotency_header = "Content-Type".into(), "downstream.idempotency_header");
    refuse(|c| c.headers = vec![("Transfer-Encoding".into(), "chunked".into())], "transfer-encoding");
    refuse(|c| c.headers = vec![("IDEMPOTENCY-KEY".into(), "x".into())], "idempotency-key");
    refuse(|c| c.headers = vec![("X".into(), "SECRET\r\nY: 1".into())], "x: not visible ASCII");
    refuse(|c| c.forward_headers = vec!["host".into()], "host");
    refuse(|c| c.forward_headers = vec!["txrelay-source".into()], "txrelay-source");
    refuse(|c| c.content_type = "a\nb".into(), "downstream.content_type");
}

/// Loading the system's trust store takes milliseconds.
static NOBODY: std::sync::LazyLock<std::sync::Arc<Credentials>> = std::sync::LazyLock::new(nobody);

proptest! {
    #[test]
    fn every_new_trace_is_valid(random: [u8; 24]) {
        prop_assert!(is_traceparent(new_traceparent(random).as_bytes()));
    }

    #[test]
    fn no_record_injects_a_header(
        id: String,
        topic: String,
        headers in prop::collection::vec((
            prop_oneof!["X-Origin", "traceparent", "tracestate", "content-type", ".*"],
            prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        ), 0..20),
    ) {
        let delivery = Delivery {
            transaction_id: &id,
            payload: b"",
            headers: &headers,
            source: (&topic, 0, 0),
            received_at: SystemTime::now(),
            attempt: 1,
        };
        let request = template().request(&delivery, [1; 24], &NOBODY, NOW);
        let known = ["idempotency-key", "txrelay-attempt", "txrelay-source", "txrelay-first-received", "content-type",
            "user-agent", "x-fixed", "traceparent", "tracestate", "x-origin"];
        for (name, value) in request.headers() {
            prop_assert!(known.contains(&name.as_str()), "{}", name);
            prop_assert!(value.as_bytes().iter().all(|b| matches!(b, b'\t' | b' '..=b'~')));
        }
        for one in &known[..8] {
            prop_assert_eq!(request.headers().get_all(*one).iter().count(), 1, "{}", one);
        }
    }
}
