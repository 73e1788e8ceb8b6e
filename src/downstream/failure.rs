//! What a failed exchange means: every error of ureq as a kind and a sentence.
//!
//! Matched on variants, never on text. Whether the service may have seen the request is not guessed from the error: the
//! connection knows whether a byte of it was written (`connection`).

use std::io;

use ureq::{Error, Timeout};

use super::tls::TlsFailure;
use super::{Failure, FailureKind};
use crate::core::outcome::Sent;
use crate::core::text::{ERROR_MAX, clean_text};

/// Makes a failure of an error. `wrote`: some of the request may have left. `lookup`: why the last look-up of the name
/// failed.
pub(super) fn failure(error: &Error, wrote: bool, lookup: Option<String>) -> Failure {
    let sent = if wrote { Sent::Unknown } else { Sent::No };
    let text = sentence(error, wrote, lookup);
    Failure { kind: kind(error, wrote), sent, text: clean_text(text.as_bytes(), ERROR_MAX) }
}

/// What each error of ureq says about the service. What is not listed, and whatever a later ureq adds, is `Protocol`: tried
/// again, as the safest of guesses.
fn kind(error: &Error, wrote: bool) -> FailureKind {
    match error {
        Error::HostNotFound | Error::Timeout(Timeout::Resolve) => FailureKind::Dns,
        Error::ConnectionFailed | Error::ConnectProxyFailed(_) | Error::Timeout(Timeout::Connect) => FailureKind::Connect,
        // Global, per call, per read, per write: by how far the exchange had come.
        Error::Timeout(_) => {
            if wrote {
                FailureKind::Timeout
            } else {
                FailureKind::Connect
            }
        }
        Error::Io(e) => io_kind(e, wrote),
        Error::Tls(_) => FailureKind::Tls,
        Error::Other(e) if e.is::<TlsFailure>() => FailureKind::Tls,
        Error::BadUri(_)
        | Error::Http(_)
        | Error::InvalidProxyUrl
        | Error::RequireHttpsOnly(_)
        | Error::TlsRequired
        | Error::BodyExceedsLimit(_)
        | Error::RedirectFailed
        | Error::TooManyRedirects => FailureKind::BadRequest,
        // StatusCode does not occur: statuses are no errors here.
        Error::Protocol(_) | Error::LargeResponseHeader(..) | Error::BodyStalled | Error::Other(_) | Error::StatusCode(_) => {
            FailureKind::Protocol
        }
        _ => FailureKind::Protocol,
    }
}

fn io_kind(error: &io::Error, wrote: bool) -> FailureKind {
    use io::ErrorKind::*;
    match error.kind() {
        ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable => FailureKind::Connect,
        TimedOut | WouldBlock if wrote => FailureKind::Timeout,
        // Before a byte was written, whatever the operating system says, there was no usable connection.
        _ if !wrote => FailureKind::Connect,
        _ => FailureKind::Reset,
    }
}

/// For people, without a URL.
fn sentence(error: &Error, wrote: bool, lookup: Option<String>) -> String {
    match error {
        Error::HostNotFound | Error::Timeout(Timeout::Resolve) => match lookup {
            Some(why) => format!("the host name does not resolve: {why}"),
            None => "the host name did not resolve in time".into(),
        },
        Error::Timeout(_) if wrote => "no answer within downstream.timeout".into(),
        Error::Timeout(_) => "no connection in time".into(),
        Error::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof && wrote => "the connection was closed without an answer".into(),
        Error::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => "the connection was closed during the handshake".into(),
        Error::Io(e) => e.to_string(),
        Error::BadUri(_) => match lookup {
            Some(why) => format!("downstream.url cannot be used: {why}"),
            None => "downstream.url cannot be used".into(),
        },
        Error::Other(e) if e.is::<TlsFailure>() => e.to_string(),
        Error::RequireHttpsOnly(_) | Error::TlsRequired => "the connection must use TLS".into(),
        Error::LargeResponseHeader(_, max) => format!("the answer's head is larger than {max} bytes"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FailureKind as K;

    /// Every variant of ureq 3.5.2 with the features that are on here, except `Protocol`, which cannot be made without naming
    /// another crate: real servers bring it forth in the transport's tests.
    fn errors() -> Vec<(Error, FailureKind, FailureKind)> {
        let io = |kind: io::ErrorKind| Error::Io(kind.into());
        let no_uri = ureq::http::Uri::try_from("\0").expect_err("no URI");
        // error, kind before a byte of the request was written, kind after
        vec![
            (Error::HostNotFound, K::Dns, K::Dns),
            (Error::Timeout(Timeout::Resolve), K::Dns, K::Dns),
            (Error::Timeout(Timeout::Connect), K::Connect, K::Connect),
            (Error::Timeout(Timeout::Global), K::Connect, K::Timeout),
            (Error::Timeout(Timeout::PerCall), K::Connect, K::Timeout),
            (Error::Timeout(Timeout::PerRead), K::Connect, K::Timeout),
            (Error::Timeout(Timeout::PerWrite), K::Connect, K::Timeout),
            (Error::Timeout(Timeout::SendRequest), K::Connect, K::Timeout),
            (Error::Timeout(Timeout::SendBody), K::Connect, K::Timeout),
            (Error::Timeout(Timeout::RecvResponse), K::Connect, K::Timeout),
            (Error::Timeout(Timeout::RecvBody), K::Connect, K::Timeout),
            (io(io::ErrorKind::ConnectionRefused), K::Connect, K::Connect),
            (io(io::ErrorKind::HostUnreachable), K::Connect, K::Connect),
            (io(io::ErrorKind::NetworkUnreachable), K::Connect, K::Connect),
            (io(io::ErrorKind::AddrNotAvailable), K::Connect, K::Connect),
            (io(io::ErrorKind::PermissionDenied), K::Connect, K::Reset),
            (io(io::ErrorKind::TimedOut), K::Connect, K::Timeout),
            (io(io::ErrorKind::ConnectionReset), K::Connect, K::Reset),
            (io(io::ErrorKind::ConnectionAborted), K::Connect, K::Reset),
            (io(io::ErrorKind::BrokenPipe), K::Connect, K::Reset),
            (io(io::ErrorKind::UnexpectedEof), K::Connect, K::Reset),
            (io(io::ErrorKind::NotConnected), K::Connect, K::Reset),
            // EMFILE: no descriptor left.
            (Error::Io(io::Error::from_raw_os_error(24)), K::Connect, K::Reset),
            (Error::Tls("no"), K::Tls, K::Tls),
            (Error::Other(Box::new(TlsFailure("an alert".into()))), K::Tls, K::Tls),
            (Error::LargeResponseHeader(2, 1), K::Protocol, K::Protocol),
            (Error::BodyStalled, K::Protocol, K::Protocol),
            (Error::Other("x".into()), K::Protocol, K::Protocol),
            (Error::StatusCode(500), K::Protocol, K::Protocol),
            (Error::ConnectionFailed, K::Connect, K::Connect),
            (Error::ConnectProxyFailed("x".into()), K::Connect, K::Connect),
            (Error::BadUri("https://SECRET/".into()), K::BadRequest, K::BadRequest),
            (Error::Http(no_uri.into()), K::BadRequest, K::BadRequest),
            (Error::InvalidProxyUrl, K::BadRequest, K::BadRequest),
            (Error::RequireHttpsOnly("http://SECRET/".into()), K::BadRequest, K::BadRequest),
            (Error::TlsRequired, K::BadRequest, K::BadRequest),
            (Error::BodyExceedsLimit(1), K::BadRequest, K::BadRequest),
            (Error::RedirectFailed, K::BadRequest, K::BadRequest),
            (Error::TooManyRedirects, K::BadRequest, K::BadRequest),
        ]
    }

    #[test]
    fn every_error_has_its_kind_and_no_url() {
        for (error, before, after) in errors() {
            let unsent = failure(&error, false, None);
            let sent = failure(&error, true, None);
            assert_eq!((unsent.kind, unsent.sent), (before, Sent::No), "{error:?}");
            assert_eq!((sent.kind, sent.sent), (after, Sent::Unknown), "{error:?}");
            for text in [unsent.text, sent.text] {
                assert!(!text.is_empty() && text.len() <= ERROR_MAX && !text.contains("SECRET"), "{text}");
            }
        }
    }

    #[test]
    fn a_name_that_does_not_resolve_is_told_with_its_reason() {
        let failure = failure(&Error::HostNotFound, false, Some("Name or service not known".into()));
        assert_eq!(failure.text, "the host name does not resolve: Name or service not known");
    }
}
