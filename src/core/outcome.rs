//! What an attempt told us: the class of every HTTP status and of every transport failure (DESIGN section 6).

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
