//! Kafka headers as JSON and back, exactly: order, repetition, null and bytes that are not text survive.
//!
//! `[["name", "text"], ["name", null], ["name", {"hex": "00ff"}]]`. Hex is used for bytes that PostgreSQL's jsonb cannot
//! hold as text: invalid UTF-8, and NUL.

use serde_json::{Value, json};

use super::record::HeaderValue;

/// Headers of one record, in order.
pub type Headers = Vec<(String, HeaderValue)>;

/// What is stored; `None` where there are no headers.
pub fn to_json(headers: &[(String, HeaderValue)]) -> Option<Value> {
    if headers.is_empty() {
        return None;
    }
    let pair = |(name, value): &(String, HeaderValue)| json!([name, value.as_deref().map(value_to_json)]);
    Some(Value::Array(headers.iter().map(pair).collect()))
}

fn value_to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Value::String(text.to_owned()),
        _ => json!({ "hex": to_hex(bytes) }),
    }
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// What was stored. Entries of another shape (edited by hand) are left out.
pub fn from_json(stored: &Value) -> Headers {
    let pair = |entry: &Value| {
        let name = entry.get(0)?.as_str()?.to_owned();
        let value = match entry.get(1)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone().into_bytes()),
            other => Some(from_hex(other.get("hex")?.as_str()?)?),
        };
        Some((name, value))
    };
    stored.as_array().map(|entries| entries.iter().filter_map(pair).collect()).unwrap_or_default()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn headers_come_back_exactly_as_they_were(headers in prop::collection::vec(
            ("[^\0]{0,12}", prop::option::of(prop::collection::vec(any::<u8>(), 0..12))), 0..6)) {
            let back = to_json(&headers).map(|json| from_json(&json)).unwrap_or_default();
            prop_assert_eq!(back, headers);
        }
    }
}
