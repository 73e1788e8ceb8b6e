//! What a record's id is and why it has none.

use proptest::prelude::*;

use super::*;
use crate::core::record::TopicPartition;

const MAX: usize = 1 << 20;

fn record(value: Option<&[u8]>) -> Record {
    Record {
        at: TopicPartition { topic: "t".into(), partition: 0 },
        offset: 0,
        timestamp_ms: None,
        key: None,
        value: value.map(<[u8]>::to_vec),
        headers: Vec::new(),
    }
}

fn pointer(pointer: &str) -> IdRule {
    IdRule::Value(pointer.split('/').skip(1).map(|t| t.replace("~1", "/").replace("~0", "~")).collect())
}

fn outcome(rule: &IdRule, record: &Record) -> Result<String, Reason> {
    let result = identify(rule, record, MAX);
    if let Err(reject) = &result {
        assert!(reject.detail.len() <= DETAIL_MAX && !reject.detail.is_empty(), "{reject:?}");
    }
    result.map(|i| i.transaction_id).map_err(|r| r.reason)
}

#[track_caller]
fn check(value: impl AsRef<[u8]>, expected: Result<&str, Reason>) {
    check_at("/id", value, expected);
}

#[track_caller]
fn check_at(at: &str, value: impl AsRef<[u8]>, expected: Result<&str, Reason>) {
    assert_eq!(outcome(&pointer(at), &record(Some(value.as_ref()))), expected.map(str::to_owned));
}

#[test]
fn an_id_is_taken_exactly_as_it_is_written() {
    check(r#"{"id":"tx-1"}"#, Ok("tx-1"));
    check(r#" { "a" : [1, {"id": 2}], "id" : " Tx 1 " , "z": null } "#, Ok(" Tx 1 "));
    check(r#"{"id":"\u0041\n\ud83d\ude00\/"}"#, Ok("A\n😀/"));
    check(r#"{"\u0069d":"escaped key"}"#, Ok("escaped key"));
    // Nothing is folded: case, normal form and white space are the sender's.
    for id in ["tx-1", "TX-1", "tx-1 ", " ", "é", "e\u{301}", "\u{feff}tx", "1", "1\u{a0}"] {
        check(format!(r#"{{"id":"{id}"}}"#), Ok(id));
    }
    check(r#"{"id":42}"#, Ok("42"));
    check(r#"{"id":-7}"#, Ok("-7"));
    check(r#"{"id":123456789012345678901234567890}"#, Ok("123456789012345678901234567890"));
    let digits = "9".repeat(ID_MAX);
    check(format!(r#"{{"id":{digits}}}"#), Ok(&digits));
}

#[test]
fn what_cannot_be_an_id_is_invalid() {
    for leaf in [
        "1.0",
        "1e3",
        "-0.5",
        "true",
        "false",
        "null",
        "{}",
        "[]",
        r#"{"id":"x"}"#,
        r#"["x"]"#,
        r#""""#,
        r#""a\u0000b""#,
        r#""\ud800""#,
        r#""\udc00 \ud800""#,
    ] {
        check(format!(r#"{{"id":{leaf}}}"#), Err(Reason::IdInvalid));
    }
    check(format!(r#"{{"id":"{}"}}"#, "x".repeat(ID_MAX + 1)), Err(Reason::IdInvalid));
    check(format!(r#"{{"id":{}}}"#, "1".repeat(ID_MAX + 1)), Err(Reason::IdInvalid));
}

#[test]
fn an_ambiguous_id_is_invalid() {
    check(r#"{"id":"a","id":"b"}"#, Err(Reason::IdInvalid));
    check(r#"{"id":"a","id":"a"}"#, Err(Reason::IdInvalid));
    check(r#"{"id":"a","\u0069d":"b"}"#, Err(Reason::IdInvalid));
    check_at("/a/id", r#"{"a":{"id":1},"a":{}}"#, Err(Reason::IdInvalid));
    // A duplicate elsewhere says nothing about the id.
    check(r#"{"x":1,"x":2,"id":"a","y":{"id":1,"id":2}}"#, Ok("a"));
}

#[test]
fn a_missing_id_is_missing() {
    for value in ["{}", r#"{"ID":"a"}"#, r#"{"a":{"id":"b"}}"#, "[]", "17", r#""id""#, "null", r#"[{"id":"x"}]"#] {
        check(value, Err(Reason::IdMissing));
    }
}

#[test]
fn pointers_follow_rfc_6901() {
    check_at("/a/b/c", r#"{"a":{"b":{"c":"deep"},"z":1},"b":2}"#, Ok("deep"));
    check_at("/a/b/c", r#"{"a":{"b":7}}"#, Err(Reason::IdMissing));
    check_at("/a/b/c", r#"{"a":{"b":"c"}}"#, Err(Reason::IdMissing));
    check_at("/1", r#"["x","y","z"]"#, Ok("y"));
    check_at("/1", r#"{"1":"member"}"#, Ok("member"));
    check_at("/3", r#"["x","y","z"]"#, Err(Reason::IdMissing));
    for not_an_index in ["/01", "/-", "/-1", "/", "/99999999999999999999999", "/+1"] {
        check_at(not_an_index, r#"["x","y"]"#, Err(Reason::IdMissing));
    }
    check_at("/0/id", r#"[{"id":5}]"#, Ok("5"));
    check_at("/a~1b~0", r#"{"a/b~":"x"}"#, Ok("x"));
    check_at("/", r#"{"":"empty key"}"#, Ok("empty key"));
    check_at("", r#" "whole" "#, Ok("whole"));
    check_at("", "12", Ok("12"));
    check_at("", "{}", Err(Reason::IdInvalid));
}

#[test]
fn what_is_not_json_in_utf8_is_unreadable() {
    let bad: [&[u8]; 19] = [
        b"",
        b" ",
        b"not json",
        b"{\"id\":\"a\"",
        b"{\"id\":\"a\"} x",
        b"{\"id\":\"a\"}{}",
        b"{\"id\":\"a\",}",
        b"{\"id\":\"a\",\"b\":nul}",
        b"{\"id\":\"a\",\"b\":01}",
        b"{'id':'a'}",
        b"{\"id\":NaN}",
        b"{\"id\":\"a\",\"b\":\"\xff\"}",
        b"\xef\xbb\xbf{\"id\":\"a\"}",
        b"{\"id\":\"\\ud80\"}",
        b"{\"\n\":1,\"id\":\"a\"}",
        b"{\"\\x\":1,\"id\":\"a\"}",
        b"{id:\"a\"}",
        b"{\"id\":\"a\",\"b\":\"\n\"}",
        b"{\"id\":\"a\",\"b\":\"\\x\"}",
    ];
    for value in bad {
        check(value, Err(Reason::Unreadable));
    }
    check_at("", r#""a" "b""#, Err(Reason::Unreadable));
}

#[test]
fn parts_beside_the_id_may_be_anything_that_json_allows() {
    check(format!(r#"{{"big":1e999,"long":{},"lone":"\ud800","id":"a"}}"#, "8".repeat(5000)), Ok("a"));
    check(r#"{"\ud800":1,"\\":{"\udfff":2},"id":"a"}"#, Ok("a"));
    check_at("/a/id", r#"{"\ud800":1,"a":{"\udfff":2,"id":"a"}}"#, Ok("a"));
    let deep = 200_000;
    check(format!(r#"{{"deep":{}{},"id":"a"}}"#, "[".repeat(deep), "]".repeat(deep)), Ok("a"));
    check(format!(r#"{{"deep":{},"id":"a"}}"#, "[".repeat(deep)), Err(Reason::Unreadable));
}

#[test]
fn a_tombstone_is_one_whatever_the_rule() {
    let mut tombstone = record(None);
    tombstone.key = Some(b"k".to_vec());
    for rule in [pointer("/id"), IdRule::Key, IdRule::Header("h".into())] {
        assert_eq!(outcome(&rule, &tombstone), Err(Reason::Tombstone));
    }
}

#[test]
fn keys_and_headers_are_text() {
    let mut r = record(Some(b""));
    let header = IdRule::Header("id".into());
    assert_eq!(outcome(&IdRule::Key, &r), Err(Reason::IdMissing));
    assert_eq!(outcome(&header, &r), Err(Reason::IdMissing));

    r.key = Some("schlüssel 1".into());
    r.headers = vec![("id".into(), Some(b"first".to_vec())), ("ID".into(), None), ("id".into(), Some(b"last".to_vec()))];
    // An empty value is a legal body where the id stands elsewhere.
    assert_eq!(outcome(&IdRule::Key, &r), Ok("schlüssel 1".into()));
    assert_eq!(outcome(&header, &r), Ok("last".into()));

    for bytes in [&b""[..], b"\xff", b"a\0b", &[b'x'; ID_MAX + 1]] {
        r.key = Some(bytes.to_vec());
        r.headers = vec![("id".into(), Some(bytes.to_vec()))];
        assert_eq!(outcome(&IdRule::Key, &r), Err(Reason::IdInvalid));
        assert_eq!(outcome(&header, &r), Err(Reason::IdInvalid));
    }
    r.headers = vec![("id".into(), None)];
    assert_eq!(outcome(&header, &r), Err(Reason::IdMissing));
}

#[test]
fn a_record_is_measured_with_key_and_headers() {
    let mut r = record(Some(br#"{"id":"a"}"#));
    r.key = Some(vec![0; 20]);
    r.headers = vec![("name".into(), Some(vec![0; 6])), ("null".into(), None)];
    let size = 10 + 20 + 4 + 6 + 4;
    assert!(identify(&pointer("/id"), &r, size).is_ok());
    assert_eq!(identify(&pointer("/id"), &r, size - 1).map_err(|r| r.reason), Err(Reason::TooLarge));
}

#[test]
fn a_detail_never_quotes_the_payload() {
    for value in
        [r#"{"id":SECRET}"#, r#"{"id":"SECRET"#, r#"{"SECRET":1}"#, r#"{"id":{"SECRET":1}}"#, r#"SECRET"#, r#"{"id":"SECRET\q"}"#]
    {
        let reject = identify(&pointer("/id"), &record(Some(value.as_bytes())), MAX).expect_err("none has an id");
        assert!(!reject.detail.contains("SECRET"), "{reject:?}");
    }
}

proptest! {
    #[test]
    fn nothing_panics_and_ids_keep_to_their_bounds(value: Vec<u8>) {
        for rule in [pointer("/id"), pointer(""), IdRule::Key] {
            let mut r = record(Some(&value));
            r.key = Some(value.clone());
            if let Ok(i) = identify(&rule, &r, MAX) {
                prop_assert!((1..=ID_MAX).contains(&i.transaction_id.len()) && !i.transaction_id.contains('\0'));
            }
        }
    }

    #[test]
    fn any_string_comes_back_as_it_went_in(id in "[^\0]{1,100}", other: String) {
        let value = serde_json::json!({ "other": other, "id": id, "last": [other] }).to_string();
        prop_assert_eq!(outcome(&pointer("/id"), &record(Some(value.as_bytes()))), Ok(id));
    }
}
