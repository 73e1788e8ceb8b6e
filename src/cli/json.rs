//! Values as `--json` writes them. The names are documented in docs/commands.md and stable.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::core::times::precise;
use crate::store::{AttemptRow, ListRow};

/// RFC 3339 in UTC with milliseconds, or null.
pub(super) fn time(time: Option<SystemTime>) -> Value {
    time.map_or(Value::Null, |time| precise(time).into())
}

/// Bytes: a text where they are UTF-8, `{"hex": ...}` where they are not, null where there are none. The same form as in the
/// column `headers`.
pub(super) fn bytes(bytes: Option<&[u8]>) -> Value {
    match bytes {
        None => Value::Null,
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => json!({ "hex": hex(bytes) }),
        },
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The columns of view `transaction_status`, without key and payload.
pub(super) fn transaction(row: &ListRow) -> Value {
    json!({
        "transaction_id": row.transaction_id,
        "state": row.state,
        "topic": row.topic,
        "partition": row.partition,
        "incarnation": row.incarnation,
        "kafka_offset": row.kafka_offset,
        "received_at": time(Some(row.received_at)),
        "attempts": row.attempts,
        "unknown_attempts": row.unknown_attempts,
        "next_attempt_at": time(row.next_attempt_at),
        "delivered_at": time(row.delivered_at),
        "last_outcome": row.last_outcome,
        "last_http_status": row.last_http_status,
        "last_error": row.last_error,
    })
}

/// The columns of view `attempt_history`, without the id.
pub(super) fn attempt(row: &AttemptRow) -> Value {
    json!({
        "attempt": row.n,
        "finished_at": time(Some(row.finished_at)),
        "outcome": row.outcome,
        "http_status": row.http_status,
        "latency_ms": row.latency_ms,
        "sent": row.sent,
        "stale": row.stale,
        "error": row.error,
    })
}
