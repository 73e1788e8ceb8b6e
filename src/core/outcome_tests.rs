//! Which class an answer has, and what overrides change.

use super::*;
use proptest::prelude::*;

/// Runs of statuses of the same class, as text.
fn table(has_retry_after: bool) -> Vec<String> {
    let mut runs: Vec<(u16, u16, Outcome)> = Vec::new();
    for status in 100..=599 {
        let outcome = classify_status(status, has_retry_after);
        match runs.last_mut() {
            Some((_, to, last)) if *last == outcome => *to = status,
            _ => runs.push((status, status, outcome)),
        }
    }
    runs.iter().map(|(from, to, outcome)| format!("{from}-{to} {}", outcome.label())).collect()
}

#[test]
fn every_status_has_its_class() {
    let expected = [
        "100-199 retry",
        "200-299 delivered",
        "300-399 misconfigured",
        "400-400 refused",
        "401-401 misconfigured",
        "402-402 refused",
        "403-407 misconfigured",
        "408-409 retry",
        "410-410 misconfigured",
        "411-414 refused",
        "415-415 misconfigured",
        "416-417 refused",
        "418-421 retry",
        "422-422 refused",
        "423-425 retry",
        "426-426 misconfigured",
        "427-427 retry",
        "428-428 refused",
        "429-429 throttled",
        "430-430 retry",
        "431-431 refused",
        "432-450 retry",
        "451-451 refused",
        "452-500 retry",
        "501-501 misconfigured",
        "502-504 down",
        "505-505 misconfigured",
        "506-506 retry",
        "507-509 down",
        "510-510 retry",
        "511-511 misconfigured",
        "512-519 retry",
        "520-530 down",
        "531-599 retry",
    ];
    assert_eq!(table(false), expected);
}

#[test]
fn a_retry_after_changes_the_class_of_503_only() {
    let differ: Vec<u16> = (0..=u16::MAX).filter(|s| classify_status(*s, true) != classify_status(*s, false)).collect();
    assert_eq!(differ, [503]);
    assert_eq!(classify_status(503, true), Outcome::Throttled);
}

#[test]
fn a_status_out_of_range_is_tried_again() {
    for status in (0..100).chain(531..=u16::MAX) {
        assert_eq!(classify_status(status, false), Outcome::Retry, "{status}");
    }
}

#[test]
fn the_rules_name_every_status_once_and_in_order() {
    let mut next = 100;
    for rule in RULES {
        assert_eq!(rule.from, next, "{rule:?}");
        assert!(rule.from <= rule.to && !rule.reason.is_empty() && rule.outcome != Outcome::Lost);
        assert!((rule.from..=rule.to).all(|s| classify_status(s, false) == rule.outcome), "{rule:?}");
        next = rule.to + 1;
    }
    assert_eq!(next, 1000);
}

fn overrides(lines: &[(&str, &str)]) -> Overrides {
    let mut overrides = Overrides::default();
    lines.iter().for_each(|(statuses, class)| overrides.add(statuses, class).expect("legal"));
    overrides
}

#[test]
fn an_override_goes_before_the_rules_and_changes_nothing_else() {
    let own = overrides(&[("409", "delivered"), ("520-530", "retry"), ("503", "down")]);
    for status in 0..=u16::MAX {
        for after in [false, true] {
            let expected = match status {
                409 => Outcome::Delivered,
                520..=530 => Outcome::Retry,
                503 => Outcome::Down,
                _ => classify_status(status, after),
            };
            assert_eq!(own.classify(status, after), expected, "{status}");
        }
    }
}

#[test]
fn a_bad_override_is_refused_with_the_reason() {
    for (statuses, class, part) in [
        ("40", "retry", "a status from 200 to 999"),
        ("199", "retry", "a status from 200 to 999"),
        ("1000", "retry", "a status from 200 to 999"),
        ("4xx", "retry", "a status from 200 to 999"),
        ("+40", "retry", "a status from 200 to 999"),
        ("400-", "retry", "a status from 200 to 999"),
        ("400-402-404", "retry", "a status from 200 to 999"),
        ("530-520", "retry", "\"520-530\""),
        ("500", "ok", "is no class"),
        ("500", "lost", "is no class"),
        ("500", "", "is no class"),
        ("505", "down", "another line"),
        ("500-510", "down", "another line"),
    ] {
        let problem = overrides(&[("505-509", "retry")]).add(statuses, class).expect_err(statuses);
        assert!(problem.contains(part), "{statuses}: {problem}");
    }
}

#[test]
fn the_effective_table_shows_every_status_once_and_what_was_replaced() {
    for own in [overrides(&[]), overrides(&[("409", "delivered"), ("503", "down")])] {
        let mut next = 100;
        for line in own.table().iter().filter(|line| !line.with_retry_after) {
            assert_eq!(line.rule.from, next, "{line:?}");
            for status in line.rule.from..=line.rule.to {
                assert_eq!(own.classify(status, false), line.rule.outcome, "{status}");
                assert_eq!(line.instead_of.is_some(), !own.0.is_empty() && [409, 503].contains(&status), "{status}");
            }
            next = line.rule.to + 1;
        }
        assert_eq!(next, 1000);
        let asked = own.table().iter().filter(|line| line.with_retry_after).count();
        assert_eq!(asked, usize::from(own.0.is_empty()));
    }
}

#[test]
fn codes_are_kept_for_ever() {
    let codes: Vec<(i16, &str)> = Outcome::ALL.iter().map(|o| (o.code(), o.label())).collect();
    let expected =
        [(1, "delivered"), (2, "retry"), (3, "throttled"), (4, "down"), (5, "misconfigured"), (6, "refused"), (7, "lost")];
    assert_eq!(codes, expected);
    assert!(Outcome::ALL.iter().all(|o| Outcome::from_code(o.code()) == Some(*o)));
    assert_eq!((Outcome::from_code(0), Outcome::from_code(8)), (None, None));
    assert_eq!([Sent::No, Sent::Yes, Sent::Unknown].map(Sent::code), [0, 1, 2]);
}

#[test]
fn a_retry_after_is_seconds_or_a_date() {
    // Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110.
    const NOW: i64 = 784_111_777;
    for (text, seconds) in [
        ("0", Some(0)),
        ("120", Some(120)),
        (" 120\t", Some(120)),
        ("3601", Some(3600)),
        ("99999999999999999999999999", Some(3600)),
        ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
        ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
        ("Sun Nov  6 08:50:37 1994", Some(60)),
        ("Sun, 06 Nov 1994 08:49:36 GMT", Some(0)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3600)),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("120 s", None),
        ("Mon, 06 Nov 1994 08:50:37 GMT", None),
        ("Sun, 06 Nov 1994 08:50:37 CET", None),
        ("Sun, 32 Nov 1994 08:50:37 GMT", None),
        ("1994-11-06T08:50:37Z", None),
    ] {
        assert_eq!(parse_retry_after(text, NOW), seconds.map(Duration::from_secs), "{text:?}");
    }
}

proptest! {
    #[test]
    fn no_retry_after_panics_or_exceeds_an_hour(text: String, now: i64) {
        for text in [text.as_str(), "Sun, 06 Nov 1994 08:50:37 GMT"] {
            prop_assert!(parse_retry_after(text, now).is_none_or(|d| d <= RETRY_AFTER_MAX));
        }
    }
}
