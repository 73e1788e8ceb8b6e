//! The request of a delivery (README.md): method, URL and headers. The body is the stored bytes, untouched.
//!
//! A record's headers come from anybody who may write to the topic, so they get no say in the framing of the request:
//! only names that the configuration lists are passed on, only values of visible ASCII, and 8 kB of them at most. What does
//! not fit is left out, and the request is sent without it: a header that was cut or encoded would say something else. The
//! two that must always be there, the id and the source, are encoded (`core::idempotency`); a content type that cannot be
//! one is replaced by the configured one, and a trace that is none by a new one.

use anyhow::{Context, bail, ensure};
use ureq::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use ureq::http::{HeaderMap, Method, Request, Uri};

use super::Delivery;
use super::credentials::Credentials;
use crate::config::{self, IdempotencyFormat};
use crate::core::idempotency;

/// Most bytes of forwarded headers in one request, counted as they stand on the wire.
const FORWARDED_MAX: usize = 8 * 1024;

/// Longest content type taken from a record.
const CONTENT_TYPE_MAX: usize = 256;

const ATTEMPT: HeaderName = HeaderName::from_static("txrelay-attempt");
const SOURCE: HeaderName = HeaderName::from_static("txrelay-source");
const FIRST_RECEIVED: HeaderName = HeaderName::from_static("txrelay-first-received");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Names that decide where a request ends or where it goes; nobody but the HTTP library sets them.
const FRAMING: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Everything of a request that is the same for all deliveries.
#[derive(Debug)]
pub(super) struct Template {
    method: Method,
    /// Absolute; http or https.
    pub(super) uri: Uri,
    fixed: HeaderMap,
    idempotency_header: HeaderName,
    idempotency_format: IdempotencyFormat,
    content_type: HeaderValue,
    forward: Vec<HeaderName>,
}

impl Template {
    /// Fails on a URL, header name or header value that cannot be used, and on names that txrelay or HTTP itself sets.
    /// The errors name keys, never values.
    pub(super) fn new(config: &config::Downstream) -> anyhow::Result<Self> {
        let uri: Uri = config.url.parse().context("downstream.url: not a URL")?;
        ensure!(uri.host().is_some_and(|h| !h.is_empty()), "downstream.url: without a host");
        ensure!(matches!(uri.scheme_str(), Some("http" | "https")), "downstream.url: neither http nor https");

        let idempotency_header = name("downstream.idempotency_header", &config.idempotency_header)?;
        let ours = [CONTENT_TYPE, USER_AGENT, ATTEMPT, SOURCE, FIRST_RECEIVED, idempotency_header.clone()];
        ensure!(!ours[..5].contains(&idempotency_header), "downstream.idempotency_header: {idempotency_header} is taken");

        let mut fixed = HeaderMap::new();
        for (n, v) in &config.headers {
            let header = name("downstream.headers", n)?;
            if ours.contains(&header) || header == TRACEPARENT {
                bail!("downstream.headers: txrelay sets {header} itself");
            }
            let value = visible(v.as_bytes()).with_context(|| format!("downstream.headers: {header}: not visible ASCII"))?;
            fixed.append(header, value);
        }
        let forward =
            config.forward_headers.iter().map(|n| name("downstream.forward_headers", n)).collect::<anyhow::Result<Vec<_>>>()?;
        if let Some(taken) = forward.iter().find(|n| **n != CONTENT_TYPE && ours.contains(n)) {
            bail!("downstream.forward_headers: txrelay sets {taken} itself");
        }
        fixed.insert(USER_AGENT, HeaderValue::from_static(concat!("txrelay/", env!("CARGO_PKG_VERSION"))));
        Ok(Self {
            method: match config.method {
                config::Method::Post => Method::POST,
                config::Method::Put => Method::PUT,
            },
            uri,
            fixed,
            idempotency_header,
            idempotency_format: config.idempotency_format,
            content_type: visible(config.content_type.as_bytes()).context("downstream.content_type: not visible ASCII")?,
            forward,
        })
    }

    /// The request of a delivery. `trace` is 24 random bytes, used where the record brings no valid `traceparent`; `now` is the
    /// time that is signed, in seconds since the epoch.
    pub(super) fn request<'a>(
        &self,
        delivery: &Delivery<'a>,
        trace: [u8; 24],
        credentials: &Credentials,
        now: u64,
    ) -> Request<&'a [u8]> {
        let mut request = Request::new(delivery.payload);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        *headers = self.fixed.clone();
        let key = match self.idempotency_format {
            IdempotencyFormat::Plain => idempotency::encode(delivery.transaction_id),
            IdempotencyFormat::Quoted => idempotency::quoted(delivery.transaction_id),
        };
        let (topic, partition, offset) = delivery.source;
        // A legal topic name is its own encoding.
        let source = format!("{}/{partition}/{offset}", idempotency::encode(topic));
        headers.insert(self.idempotency_header.clone(), ascii(key));
        headers.insert(ATTEMPT, HeaderValue::from(delivery.attempt));
        headers.insert(SOURCE, ascii(source));
        headers.insert(FIRST_RECEIVED, ascii(rfc3339(delivery.received_at)));
        headers.insert(CONTENT_TYPE, content_type(delivery).unwrap_or_else(|| self.content_type.clone()));
        self.forward(delivery, headers);
        if !headers.contains_key(TRACEPARENT) {
            // A tracestate belongs to its traceparent (W3C Trace Context section 3.3.1.1).
            headers.remove(TRACESTATE);
            headers.insert(TRACEPARENT, ascii(new_traceparent(trace)));
        }
        guard(headers, delivery, credentials, now);
        request
    }

    fn forward(&self, delivery: &Delivery<'_>, headers: &mut HeaderMap) {
        let mut total = 0;
        for (n, value) in delivery.headers {
            let Some(header) = self.forward.iter().find(|f| f.as_str().eq_ignore_ascii_case(n)) else { continue };
            // What the operator has fixed, no record overrides.
            if *header == CONTENT_TYPE || self.fixed.contains_key(header) {
                continue;
            }
            let Some(value) = value.as_deref().and_then(visible) else { continue };
            let size = header.as_str().len() + value.len() + ": \r\n".len();
            if total + size > FORWARDED_MAX {
                continue;
            }
            if *header == TRACEPARENT {
                // There may be one only; the last one is the newest hop's.
                if is_traceparent(value.as_bytes()) {
                    headers.insert(header.clone(), value);
                    total += size;
                }
                continue;
            }
            headers.append(header.clone(), value);
            total += size;
        }
    }
}

/// Who we are, and that the request is ours. Last, so that nothing else can stand in these places.
fn guard(headers: &mut HeaderMap, delivery: &Delivery<'_>, credentials: &Credentials, now: u64) {
    if let Some((name, value)) = &credentials.header {
        headers.insert(name.clone(), value.clone());
    }
    if credentials.signs() {
        let (id, timestamp) = (idempotency::webhook_id(delivery.transaction_id), now.to_string());
        let signature = credentials.signature(&id, &timestamp, delivery.payload);
        headers.insert(WEBHOOK_ID, ascii(id));
        headers.insert(WEBHOOK_TIMESTAMP, ascii(timestamp));
        headers.insert(WEBHOOK_SIGNATURE, signature);
    }
}

fn name(key: &str, name: &str) -> anyhow::Result<HeaderName> {
    let header = HeaderName::from_bytes(name.as_bytes()).with_context(|| format!("{key}: {name:?} is not a header name"))?;
    ensure!(!FRAMING.contains(&header.as_str()), "{key}: {header} belongs to the connection and cannot be set");
    Ok(header)
}

/// A header's value of visible ASCII, spaces and tabs, without these two around it; not empty. A line break at the end is no
/// blank that may be cut: what holds one is not a header's value.
fn visible(bytes: &[u8]) -> Option<HeaderValue> {
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
    let start = bytes.iter().position(|b| !is_blank(b)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|b| !is_blank(b)).map_or(start, |n| n + 1);
    let bytes = &bytes[start..end];
    let legal = !bytes.is_empty() && bytes.iter().all(|b| matches!(b, b'\t' | b' '..=b'~'));
    if legal { HeaderValue::from_bytes(bytes).ok() } else { None }
}

fn ascii(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("made of visible ASCII by its caller")
}

/// The record's own content type, if it can be one.
fn content_type(delivery: &Delivery<'_>) -> Option<HeaderValue> {
    let (_, value) = delivery.headers.iter().rev().find(|(n, _)| n.eq_ignore_ascii_case("content-type"))?;
    let value = visible(value.as_deref()?)?;
    (value.len() <= CONTENT_TYPE_MAX && value.as_bytes().contains(&b'/')).then_some(value)
}

/// UTC, with milliseconds. A time outside of years -9999 to 9999 is not one that PostgreSQL gave us; it is written as 1970.
fn rfc3339(time: std::time::SystemTime) -> String {
    format!("{:.3}", jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
}

/// W3C Trace Context section 3.2: version, trace id, parent id, flags; later versions may append more.
fn is_traceparent(value: &[u8]) -> bool {
    let hex = |from: usize, to: usize| value[from..to].iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |from: usize, to: usize| value[from..to].iter().all(|b| *b == b'0');
    value.len() >= 55
        && [2, 35, 52].iter().all(|dash| value[*dash] == b'-')
        && hex(0, 2)
        && hex(3, 35)
        && hex(36, 52)
        && hex(53, 55)
        && !zero(3, 35)
        && !zero(36, 52)
        && &value[..2] != b"ff"
        && (value.len() == 55 || (&value[..2] != b"00" && value[55] == b'-'))
}

/// A new trace, marked as sampled.
fn new_traceparent(random: [u8; 24]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(55);
    text.push_str("00-");
    for (i, byte) in random.iter().enumerate() {
        if i == 16 {
            text.push('-');
        }
        // Neither id may be all zero.
        let byte = if matches!(i, 15 | 23) { byte | 1 } else { *byte };
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text.push_str("-01");
    text
}

#[cfg(test)]
#[path = "request_tests.rs"]
pub(super) mod tests;
