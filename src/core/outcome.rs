//! What an attempt told us: the class of every HTTP status and of every transport failure.

use std::time::Duration;

/// The class of an attempt. The discriminants are the codes in `attempt.outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Outcome {
    /// The service has accepted it: any 2xx, also when reading the body then fails.
    Delivered = 1,
    /// Something passing, of this message or of the service.
    Retry = 2,
    /// The service asks for less.
    Throttled = 3,
    /// The service, or the way to it, is down.
    Down = 4,
    /// The service's or our set-up is wrong.
    Misconfigured = 5,
    /// The service will never take this message.
    Refused = 6,
    /// The lease ran out: nobody knows.
    Lost = 7,
}

impl Outcome {
    /// Every outcome, in the order of the codes.
    pub const ALL: [Outcome; 7] =
        [Self::Delivered, Self::Retry, Self::Throttled, Self::Down, Self::Misconfigured, Self::Refused, Self::Lost];

    /// The code in `attempt.outcome`.
    pub fn code(self) -> i16 {
        self as i16
    }

    /// The outcome of a code; `None` for a code of a later version.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.code() == code)
    }

    /// As it is written in views, metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::Throttled => "throttled",
            Self::Down => "down",
            Self::Misconfigured => "misconfigured",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }
}

/// Whether the request reached the service. The discriminants are the codes in `attempt.sent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Sent {
    /// Certainly not.
    No = 0,
    /// Certainly: something answered.
    Yes = 1,
    /// Some of it may have, and no answer came.
    Unknown = 2,
}

impl Sent {
    /// The code in `attempt.sent`.
    pub fn code(self) -> i16 {
        self as i16
    }

    /// As it is written in views.
    pub fn label(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Yes => "yes",
            Self::Unknown => "unknown",
        }
    }
}

/// Transport failures, by what they say about the service. Mapped from every `ureq::Error` in `downstream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The name does not resolve, or resolving timed out.
    Dns,
    /// Refused, unreachable, or no connection in time.
    Connect,
    /// Handshake or certificate.
    Tls,
    /// The deadline passed after the connection stood.
    Timeout,
    /// The connection broke before an answer.
    Reset,
    /// What came back is not HTTP, or its head is too large.
    Protocol,
    /// The URL or the request cannot be used at all.
    BadRequest,
}

/// The class of a status. Total: whatever is not assigned, in or out of 100-599, is `Retry`.
///
/// `has_retry_after`: a Retry-After that [`parse_retry_after`] understands came with it; nonsense does not count.
pub fn classify_status(status: u16, has_retry_after: bool) -> Outcome {
    match status {
        200..=299 => Outcome::Delivered,
        300..=399 | 401 | 403..=407 | 410 | 415 | 426 | 501 | 505 | 511 => Outcome::Misconfigured,
        400 | 402 | 411..=414 | 416 | 417 | 422 | 428 | 431 | 451 => Outcome::Refused,
        429 => Outcome::Throttled,
        503 if has_retry_after => Outcome::Throttled,
        502..=504 | 507..=509 | 520..=530 => Outcome::Down,
        _ => Outcome::Retry,
    }
}

/// The class of a transport failure.
pub fn classify_failure(kind: FailureKind) -> Outcome {
    match kind {
        FailureKind::Dns | FailureKind::Connect | FailureKind::Timeout | FailureKind::Reset => Outcome::Down,
        FailureKind::Tls | FailureKind::BadRequest => Outcome::Misconfigured,
        FailureKind::Protocol => Outcome::Retry,
    }
}

/// Whether it looks as if the service had too much to do: less would have been accepted. A 500 or a timeout does not say so.
pub fn is_overload(answered: Result<u16, FailureKind>) -> bool {
    match answered {
        Ok(status) => matches!(status, 429 | 502 | 503),
        Err(kind) => matches!(kind, FailureKind::Connect | FailureKind::Reset),
    }
}

/// The longest Retry-After that is obeyed.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// How long a `Retry-After` (RFC 9110 section 10.2.3) asks to wait: seconds, or an HTTP date in one of its three forms
/// (section 5.6.7). At most 1 h; a date that has passed is 0; `None` is nonsense, to be ignored and counted.
pub fn parse_retry_after(text: &str, now_unix_seconds: i64) -> Option<Duration> {
    let text = text.trim_matches([' ', '\t']);
    let seconds = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are more than an hour.
        text.parse().unwrap_or(u64::MAX)
    } else {
        u64::try_from(parse_http_date(text)?.saturating_sub(now_unix_seconds)).unwrap_or(0)
    };
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Seconds since the epoch.
fn parse_http_date(text: &str) -> Option<i64> {
    // IMF-fixdate, RFC 850, asctime. A weekday that does not fit its date makes the whole nonsense.
    const FORMS: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let date = FORMS.iter().find_map(|form| jiff::civil::DateTime::strptime(form, text).ok())?;
    // Not by way of a Timestamp: the year 9999, as some write "never", does not quite fit into one.
    Some(date.duration_since(jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0)).as_secs())
}

#[cfg(test)]
mod tests {
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
        for status in (0..100).chain(600..=u16::MAX) {
            assert_eq!(classify_status(status, false), Outcome::Retry, "{status}");
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
}
