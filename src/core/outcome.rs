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

    /// The outcome that a configuration may give to a status; `None` for any other word. `lost` is no answer's outcome.
    pub fn of_answer(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| *o != Self::Lost && o.label() == label)
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

/// Statuses of one class, and why they are of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// First status.
    pub from: u16,
    /// Last status.
    pub to: u16,
    /// Their class.
    pub outcome: Outcome,
    /// For people.
    pub reason: &'static str,
}

const fn rule(from: u16, to: u16, outcome: Outcome, reason: &'static str) -> Rule {
    Rule { from, to, outcome, reason }
}

const SETUP: &str = "the same for every transaction: somebody has to change a setting, here or there";
const NEVER: &str = "the service will never take this one as it is";
const PASSING: &str = "passes by itself";
const UPSTREAM: &str = "the service, or something in front of it, is down or overloaded";
const UNKNOWN: &str = "not assigned: tried again, as the safest of guesses";

/// Every status from 100 to 999, in order; what is not in it does not come over HTTP.
static RULES: &[Rule] = &[
    rule(100, 199, Outcome::Retry, "not a final answer"),
    rule(200, 299, Outcome::Delivered, "accepted, whatever becomes of the rest of the answer"),
    rule(300, 399, Outcome::Misconfigured, "redirects are not followed: downstream.url must be where they lead"),
    rule(400, 400, Outcome::Refused, NEVER),
    rule(401, 401, Outcome::Misconfigured, "the token or password is missing, wrong or has run out"),
    rule(402, 402, Outcome::Refused, NEVER),
    rule(403, 403, Outcome::Misconfigured, "not allowed: rights, or a firewall"),
    rule(404, 404, Outcome::Misconfigured, "a wrong URL, or a load balancer that has lost its routes"),
    rule(405, 407, Outcome::Misconfigured, SETUP),
    rule(408, 408, Outcome::Retry, PASSING),
    rule(409, 409, Outcome::Retry, "often our own earlier request, still running"),
    rule(410, 410, Outcome::Misconfigured, "the service has moved away"),
    rule(411, 414, Outcome::Refused, NEVER),
    rule(415, 415, Outcome::Misconfigured, SETUP),
    rule(416, 417, Outcome::Refused, NEVER),
    rule(418, 420, Outcome::Retry, UNKNOWN),
    rule(421, 421, Outcome::Retry, PASSING),
    rule(422, 422, Outcome::Refused, NEVER),
    rule(423, 425, Outcome::Retry, PASSING),
    rule(426, 426, Outcome::Misconfigured, SETUP),
    rule(427, 427, Outcome::Retry, UNKNOWN),
    rule(428, 428, Outcome::Refused, NEVER),
    rule(429, 429, Outcome::Throttled, "the service asks for less"),
    rule(430, 430, Outcome::Retry, UNKNOWN),
    rule(431, 431, Outcome::Refused, NEVER),
    rule(432, 450, Outcome::Retry, UNKNOWN),
    rule(451, 451, Outcome::Refused, NEVER),
    rule(452, 499, Outcome::Retry, UNKNOWN),
    rule(500, 500, Outcome::Retry, "the service failed over this one; if it does over all, that is an outage"),
    rule(501, 501, Outcome::Misconfigured, SETUP),
    rule(502, 502, Outcome::Down, UPSTREAM),
    rule(503, 503, Outcome::Down, "without a Retry-After: the service, or something in front of it, is down or overloaded"),
    rule(504, 504, Outcome::Down, UPSTREAM),
    rule(505, 505, Outcome::Misconfigured, SETUP),
    rule(506, 506, Outcome::Retry, UNKNOWN),
    rule(507, 509, Outcome::Down, UPSTREAM),
    rule(510, 510, Outcome::Retry, UNKNOWN),
    rule(511, 511, Outcome::Misconfigured, "something on the way wants a login"),
    rule(512, 519, Outcome::Retry, UNKNOWN),
    rule(520, 530, Outcome::Down, UPSTREAM),
    rule(531, 999, Outcome::Retry, UNKNOWN),
];

/// Why 503 with a Retry-After is not down.
const ASKED: &str = "with a Retry-After: the service asks for less";

/// The class of a status. Total: whatever is not assigned, in or out of 100-999, is `Retry`.
///
/// `has_retry_after`: a Retry-After that [`parse_retry_after`] understands came with it; nonsense does not count.
pub fn classify_status(status: u16, has_retry_after: bool) -> Outcome {
    match status {
        // The one that matters for speed.
        200..=299 => Outcome::Delivered,
        503 if has_retry_after => Outcome::Throttled,
        _ => RULES.iter().find(|r| (r.from..=r.to).contains(&status)).map_or(Outcome::Retry, |r| r.outcome),
    }
}

/// What a configuration says about statuses, in place of the rules: first and last status, and their class. Ranges do not
/// overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides(Vec<(u16, u16, Outcome)>);

/// A line of the effective table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// First and last status, class, and reason; of an overridden one the reason of the rule that does not hold.
    pub rule: Rule,
    /// Only with a Retry-After.
    pub with_retry_after: bool,
    /// The class that the configuration has replaced.
    pub instead_of: Option<Outcome>,
}

impl Overrides {
    /// Adds a line: "409" or "520-530", and a class.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn add(&mut self, statuses: &str, class: &str) -> Result<(), String> {
        let status = |text: &str| {
            let number = text.parse().ok().filter(|_| text.len() == 3);
            number.filter(|n| (200..=999).contains(n))
        };
        let (from, to) = statuses.split_once('-').unwrap_or((statuses, statuses));
        let (Some(from), Some(to)) = (status(from.trim()), status(to.trim())) else {
            return Err("must be a status from 200 to 999, or a range such as \"520-530\"".into());
        };
        if from > to {
            return Err(format!("is a range from high to low: \"{to}-{from}\""));
        }
        let Some(outcome) = Outcome::of_answer(class) else {
            return Err("is no class: delivered, retry, throttled, down, misconfigured or refused".into());
        };
        if self.0.iter().any(|(low, high, _)| from <= *high && *low <= to) {
            return Err("names a status that another line names too".into());
        }
        self.0.push((from, to, outcome));
        Ok(())
    }

    /// [`classify_status`], but for what is overridden.
    pub fn classify(&self, status: u16, has_retry_after: bool) -> Outcome {
        let own = self.0.iter().find(|(from, to, _)| (*from..=*to).contains(&status));
        own.map_or_else(|| classify_status(status, has_retry_after), |(.., outcome)| *outcome)
    }

    /// Every status from 100 to 999 once, and 503 with a Retry-After.
    pub fn table(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for default in RULES {
            for status in default.from..=default.to {
                let instead_of = self.0.iter().any(|(from, to, _)| (*from..=*to).contains(&status)).then_some(default.outcome);
                let rule = Rule { from: status, to: status, outcome: self.classify(status, false), ..*default };
                match lines.last_mut() {
                    Some(last) if continues(last, &rule, instead_of) => last.rule.to = status,
                    _ => lines.push(Line { rule, with_retry_after: false, instead_of }),
                }
                if status == 503 && instead_of.is_none() {
                    let rule = Rule { outcome: Outcome::Throttled, reason: ASKED, ..rule };
                    lines.push(Line { rule, with_retry_after: true, instead_of });
                }
            }
        }
        lines
    }
}

/// Whether a status belongs to the line before it.
fn continues(line: &Line, rule: &Rule, instead_of: Option<Outcome>) -> bool {
    !line.with_retry_after && (line.rule.outcome, line.rule.reason, line.instead_of) == (rule.outcome, rule.reason, instead_of)
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [FailureKind; 7] =
        [Self::Dns, Self::Connect, Self::Tls, Self::Timeout, Self::Reset, Self::Protocol, Self::BadRequest];

    /// For people: what happened, and why its class is what it is.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Dns => ("name does not resolve", "not sent"),
            Self::Connect => ("no connection", "not sent"),
            Self::Tls => ("TLS", "a certificate or a setting has to be changed; not sent, but for an alert after the handshake"),
            Self::Timeout => ("no answer in time", "sent or not is unknown: the service may have taken it"),
            Self::Reset => ("connection broke", "sent or not is unknown: the service may have taken it"),
            Self::Protocol => ("answer is not HTTP", "sent or not is unknown"),
            Self::BadRequest => ("URL cannot be used", "not sent"),
        }
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
#[path = "outcome_tests.rs"]
mod tests;
