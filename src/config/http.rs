//! Checks of what goes into requests: the URL and header names and values. The parsers are those of ureq, so that what is
//! accepted here is accepted there. No message repeats a value.

use std::net::IpAddr;

use ureq::http::{HeaderName, HeaderValue, Uri};

use crate::core::address::forbidden;

/// Absolute, http or https, without user info and fragment; http only to this machine unless `allow_plain_http`.
pub(super) fn check_url(url: &str, allow_plain_http: bool) -> Result<(), String> {
    let form = || "must be an absolute URL, such as \"https://ledger.internal/transactions\"".to_string();
    let authority = url.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    // Before parsing: a password with odd characters in it must not be called a malformed URL.
    if authority.ok_or_else(form)?.contains('@') {
        return Err("holds a user or password: take everything before the @ out, [downstream.auth] is their place".into());
    }
    if url.contains('#') {
        return Err("holds a fragment (#...), which is never sent: take it out".into());
    }
    let uri: Uri = url.parse().map_err(|_| form())?;
    let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(form)?;
    let port_fits = uri.authority().is_some_and(|a| a.as_str().len() == host.len() || uri.port_u16().is_some_and(|p| p > 0));
    if !port_fits {
        return Err("holds a port that is none: 1 to 65535, or leave it out".into());
    }
    if let Some(why) = literal(host).and_then(forbidden) {
        return Err(format!("leads to {why}: nothing is ever sent there"));
    }
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if allow_plain_http || is_loopback(host) => Ok(()),
        Some("http") => {
            Err("sends transactions in the clear to another machine: use https://, or set downstream.allow_plain_http = true"
                .into())
        }
        _ => Err("must begin with https:// (or http://)".into()),
    }
}

/// Whether a URL that was checked goes to another machine in the clear.
pub(super) fn is_open_to_others(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http") && !uri.host().is_some_and(is_loopback))
}

/// Whether a host is this machine by its name or address.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || literal(host).is_some_and(|ip| ip.is_loopback())
}

fn literal(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// A header's name that txrelay does not set itself, and that carries no secret.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    check_free_name(name)?;
    if SECRET.iter().any(|s| s.eq_ignore_ascii_case(name)) {
        return Err("names a header that carries a secret: [downstream.auth] reads it from a file".into());
    }
    Ok(())
}

/// A header's name that txrelay does not set itself.
pub(super) fn check_free_name(name: &str) -> Result<(), String> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err("must be a header's name: letters, digits and -".into());
    }
    if OWN.iter().any(|own| own.eq_ignore_ascii_case(name)) || starts_with(name, "txrelay-") {
        return Err("names a header that txrelay sets itself: choose another".into());
    }
    Ok(())
}

/// [`check_name`] for a header beside the idempotency key's.
pub(super) fn check_extra_name(name: &str, idempotency_header: &str) -> Result<(), String> {
    if name.eq_ignore_ascii_case(idempotency_header) {
        return Err("is the idempotency header, which carries the transaction's id: take it out".into());
    }
    check_name(name)
}

/// A header's value as HTTP allows it.
pub(super) fn check_value(value: &str) -> Result<(), String> {
    let fits = !value.is_empty() && value.trim() == value && value.bytes().all(|b| (0x20..0x7f).contains(&b));
    if fits && HeaderValue::from_str(value).is_ok() {
        Ok(())
    } else {
        Err("must be a header's value: visible ASCII, no blanks at the ends".into())
    }
}

/// A fixed header, name and value.
pub(super) fn check_fixed(name: &str, value: &str, idempotency_header: &str) -> Result<(), String> {
    check_extra_name(name, idempotency_header)?;
    if name.eq_ignore_ascii_case("traceparent") {
        return Err("differs from request to request, txrelay sets it: take it out".into());
    }
    check_value(value)
}

/// What txrelay and its HTTP client set, or what belongs to the connection.
const OWN: &[&str] = &[
    "Host",
    "Content-Length",
    "Content-Encoding",
    "Content-Type",
    "Transfer-Encoding",
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Upgrade",
    "Expect",
    "User-Agent",
    "Accept-Encoding",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

const SECRET: &[&str] = &["Authorization", "Proxy-Authorization", "Cookie"];

fn starts_with(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|p| p.eq_ignore_ascii_case(prefix))
}
