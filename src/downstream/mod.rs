//! The HTTP service: how a request is made of a transaction, sent, and what came back. Returns values; classes of answers
//! are decided in `core::outcome`, what follows from them in `deliver`.
//!
//! May use `config` and `core`. Never: SQL, Kafka, metrics, logging.

use std::time::Duration;

use crate::core::outcome::Sent;

mod connection;
mod credentials;
mod failure;
mod probe;
mod request;
mod resolver;
mod tcp;
mod tls;
mod transport;

pub use crate::core::outcome::FailureKind;
pub use probe::probe;
pub use transport::Service;

/// What is delivered: a stored transaction and which attempt this is. Borrowed from the claimed row.
#[derive(Debug, Clone)]
pub struct Delivery<'a> {
    /// The id, exactly as stored.
    pub transaction_id: &'a str,
    /// The stored bytes of the record's value; sent as they are.
    pub payload: &'a [u8],
    /// Kafka headers of the record, in order.
    pub headers: &'a [(String, Option<Vec<u8>>)],
    /// Topic, partition, offset it was read from.
    pub source: (&'a str, i32, i64),
    /// When it was stored.
    pub received_at: std::time::SystemTime,
    /// 1 for the first attempt.
    pub attempt: i32,
}

/// What came back from one attempt.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The response, or why there is none.
    pub result: Result<Response, Failure>,
    /// From before the connection was taken to the end of the exchange.
    pub latency: Duration,
    /// What somebody should know beside the answer: the files with our secrets were read again, and how that went.
    pub note: Option<String>,
}

/// The response as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 100-599.
    pub status: u16,
    /// The `Retry-After` header as it came.
    pub retry_after: Option<String>,
    /// At most `keep_answer` bytes of the body, cleaned to text, of an answer that is not 2xx.
    pub text: Option<String>,
}

/// Why there is no response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which class of fault; decides the outcome.
    pub kind: FailureKind,
    /// Whether the service may have seen the request.
    pub sent: Sent,
    /// For people: at most 1 kB, no secret, no URL.
    pub text: String,
}

/// Sends deliveries; one per worker thread.
pub trait Transport: Send {
    /// One attempt within `downstream.timeout`. One resend on a fresh connection is allowed inside when a reused one was
    /// reset before any byte of the answer. Never panics on what the service does.
    fn send(&mut self, delivery: &Delivery<'_>) -> Answer;
}
