//! Which transaction a record is, or why it is none.
//!
//! What is decided here decides about money, so nothing is guessed: an id is taken as it is written or not at all. JSON
//! is read once per level of the pointer, without building a tree, and the whole document must be valid. Parts beside
//! the pointer's way are checked as JSON text (RFC 8259) and no further: they may nest as deep as they like (skipping
//! does not recurse), hold numbers of any size, duplicated keys and lone surrogates; the service gets the same bytes.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::record::Record;
use super::text::clean_text;

/// Longest id in bytes.
pub const ID_MAX: usize = 512;

/// Longest [`Reject::detail`] in bytes.
const DETAIL_MAX: usize = 200;

/// `transaction.id`: where the id stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdRule {
    /// A JSON pointer (RFC 6901) into the value, `""` or beginning with `/`; the unescaped reference tokens.
    Value(Vec<String>),
    /// The record's key.
    Key,
    /// The header of this name (its last occurrence).
    Header(String),
}

/// A record that is a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// 1-512 bytes without NUL, as it is written in the record. A JSON string and a JSON integer that are written alike
    /// (`"5"` and `5`) are the same id.
    pub transaction_id: String,
}

/// Why a record could not become a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// For the label of `rejected_total` and the column `rejected.reason`.
    pub reason: Reason,
    /// For people: at most 200 bytes, names positions and kinds, never quotes the payload.
    pub detail: String,
}

/// The closed list of reasons, as in column `rejected.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The value is not JSON in UTF-8.
    Unreadable,
    /// There is no id where the rule looks for it.
    IdMissing,
    /// What stands there cannot be an id.
    IdInvalid,
    /// The id is taken by other bytes.
    Conflict,
    /// Larger than `kafka.record_max`.
    TooLarge,
    /// The value is null.
    Tombstone,
    /// PostgreSQL refused it.
    NotStorable,
}

impl Reason {
    /// Every reason, for metrics that are there from the start.
    pub const ALL: [Reason; 7] =
        [Self::Unreadable, Self::IdMissing, Self::IdInvalid, Self::Conflict, Self::TooLarge, Self::Tombstone, Self::NotStorable];

    /// As it is written in the database and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::IdMissing => "id_missing",
            Self::IdInvalid => "id_invalid",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::Tombstone => "tombstone",
            Self::NotStorable => "not_storable",
        }
    }
}

impl Reject {
    /// A rejection with its detail cleaned and cut to 200 bytes.
    pub fn new(reason: Reason, detail: impl AsRef<str>) -> Self {
        Self { reason, detail: clean_text(detail.as_ref().as_bytes(), DETAIL_MAX) }
    }
}

/// Finds the transaction's id by `rule`. `record_max` is in bytes of key, value and headers together.
///
/// A null value is a tombstone, whatever the rule. An empty value is a legal body where the id stands elsewhere. On the
/// pointer's way a key that stands twice makes the id invalid: readers differ in which one they take, and an ambiguous
/// id is how one transaction is taken for another.
pub fn identify(rule: &IdRule, record: &Record, record_max: usize) -> Result<Identified, Reject> {
    let Some(value) = &record.value else {
        return Err(Reject::new(Reason::Tombstone, "the value is null"));
    };
    let size = content_size(record);
    if size > record_max {
        return Err(Reject::new(Reason::TooLarge, format!("{size} bytes, kafka.record_max is {record_max}")));
    }
    let transaction_id = match rule {
        IdRule::Value(tokens) => id_in_value(tokens, value)?,
        IdRule::Key => match &record.key {
            None => return Err(Reject::new(Reason::IdMissing, "the key is null")),
            Some(key) => id_in_bytes(key, "the key")?,
        },
        IdRule::Header(name) => match record.headers.iter().rev().find(|(n, _)| n == name) {
            None => return Err(Reject::new(Reason::IdMissing, format!("no header {name}"))),
            Some((_, None)) => return Err(Reject::new(Reason::IdMissing, format!("the header {name} is null"))),
            Some((_, Some(bytes))) => id_in_bytes(bytes, "the header")?,
        },
    };
    Ok(Identified { transaction_id })
}

/// Bytes of key, value and headers.
fn content_size(record: &Record) -> usize {
    let headers: usize = record.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len)).sum();
    headers + record.key.as_ref().map_or(0, Vec::len) + record.value.as_ref().map_or(0, Vec::len)
}

fn id_in_bytes(bytes: &[u8], place: &str) -> Result<String, Reject> {
    match std::str::from_utf8(bytes) {
        Ok(text) => checked_id(text.to_owned()),
        Err(e) => Err(Reject::new(Reason::IdInvalid, format!("{place} is not UTF-8 at byte {}", e.valid_up_to()))),
    }
}

fn id_in_value(tokens: &[String], value: &[u8]) -> Result<String, Reject> {
    // serde_json does not look at the encoding of what it skips, so the whole is checked here.
    let mut text = std::str::from_utf8(value)
        .map_err(|e| Reject::new(Reason::Unreadable, format!("not UTF-8 at byte {}", e.valid_up_to())))?;
    if tokens.is_empty() {
        text = serde_json::from_str::<&RawValue>(text).map_err(unreadable)?.get();
    }
    for token in tokens {
        text = match child(text, token).map_err(unreadable)? {
            Child::One(raw) => raw.get(),
            Child::None => {
                return Err(Reject::new(Reason::IdMissing, format!("nothing at /{}", tokens.join("/"))));
            }
            Child::Several => {
                return Err(Reject::new(Reason::IdInvalid, format!("the key {token} stands more than once")));
            }
        };
    }
    id_in_leaf(text)
}

/// `text` is one valid JSON value without white space around it.
fn id_in_leaf(text: &str) -> Result<String, Reject> {
    let invalid = |what: &str| Err(Reject::new(Reason::IdInvalid, format!("the id is {what}")));
    match text.as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<String>(text) {
            Ok(id) => checked_id(id),
            // Its syntax has been checked: what is left is half of a surrogate pair, which no text can hold.
            Err(_) => invalid("not text: it escapes half of a surrogate pair"),
        },
        Some(b'-' | b'0'..=b'9') => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            if digits.bytes().all(|b| b.is_ascii_digit()) {
                checked_id(text.to_owned())
            } else {
                invalid("a number that is not written as an integer")
            }
        }
        Some(b't' | b'f') => invalid("a boolean"),
        Some(b'n') => invalid("null"),
        Some(b'{') => invalid("an object"),
        _ => invalid("an array"),
    }
}

fn checked_id(id: String) -> Result<String, Reject> {
    if id.is_empty() {
        return Err(Reject::new(Reason::IdInvalid, "the id is empty"));
    }
    if id.len() > ID_MAX {
        return Err(Reject::new(Reason::IdInvalid, format!("the id has {} bytes, at most {ID_MAX} are allowed", id.len())));
    }
    if let Some(at) = id.bytes().position(|b| b == 0) {
        return Err(Reject::new(Reason::IdInvalid, format!("the id holds NUL at its byte {at}")));
    }
    Ok(id)
}

/// serde_json's syntax errors are fixed sentences with line and column; none quotes its input.
fn unreadable(error: serde_json::Error) -> Reject {
    Reject::new(Reason::Unreadable, format!("not JSON: {error}"))
}

/// What a reference token leads to inside one JSON value.
enum Child<'a> {
    None,
    One(&'a RawValue),
    Several,
}

/// Reads one whole JSON value and keeps what `token` leads to. An error is one of syntax.
fn child<'a>(text: &'a str, token: &str) -> Result<Child<'a>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let found = match text.trim_start_matches([' ', '\t', '\n', '\r']).as_bytes().first() {
        Some(b'{') => reader.deserialize_map(InObject { token })?,
        Some(b'[') => reader.deserialize_seq(InArray { index: array_index(token) })?,
        _ => {
            Deserialize::deserialize(&mut reader).map(|IgnoredAny| ())?;
            Child::None
        }
    };
    reader.end()?;
    Ok(found)
}

/// RFC 6901 section 4: digits without a leading zero; `-` is the element after the last, which never exists.
fn array_index(token: &str) -> Option<usize> {
    let canonical = token.bytes().all(|b| b.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
    if canonical { token.parse().ok() } else { None }
}

struct InObject<'t> {
    token: &'t str,
}

impl<'de> Visitor<'de> for InObject<'_> {
    type Value = Child<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Child<'de>, A::Error> {
        let mut found = Child::None;
        while let Some(is_it) = map.next_key_seed(KeyIs(self.token))? {
            if is_it {
                let raw = map.next_value()?;
                found = if matches!(found, Child::None) { Child::One(raw) } else { Child::Several };
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

struct InArray {
    index: Option<usize>,
}

impl<'de> Visitor<'de> for InArray {
    type Value = Child<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Child<'de>, A::Error> {
        let mut found = Child::None;
        for i in 0.. {
            if Some(i) == self.index {
                match seq.next_element()? {
                    Some(raw) => found = Child::One(raw),
                    None => break,
                }
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
        }
        Ok(found)
    }
}

/// Compares an object's key, unescaped, without keeping it. One that escapes half of a surrogate pair is no text, and so none
/// of a pointer's tokens.
struct KeyIs<'t>(&'t str);

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<bool, D::Error> {
        let raw = <&RawValue>::deserialize(key)?.get();
        let inside = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(raw);
        if !inside.contains('\\') {
            return Ok(inside == self.0);
        }
        Ok(serde_json::from_str::<String>(raw).is_ok_and(|key| key == self.0))
    }
}

#[cfg(test)]
#[path = "identify_tests.rs"]
mod tests;
