//! TLS to brokers by OpenSSL, for what is not librdkafka: preflight, and the pure-Rust client.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};

use openssl::error::ErrorStack;
use openssl::ssl::{HandshakeError, SslConnector, SslFiletype, SslMethod, SslStream, SslVerifyMode};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use crate::config::KafkaTls;
use crate::core::tls::unix_seconds;

/// Why there is no TLS, each told apart: librdkafka has the same words for the first three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsFault {
    /// The broker's certificate has expired.
    Expired,
    /// Its certificate is not valid yet.
    NotYetValid,
    /// No CA that is trusted here has signed it.
    UnknownIssuer,
    /// It is for another host name.
    WrongHost,
    /// Refused for another reason (OpenSSL's words).
    Refused(String),
    /// The broker does not take our certificate, or asks for one: the alert's number.
    Alert(i32),
    /// What answers does not speak TLS.
    NotTls,
    /// A file of ours cannot be used.
    Files(String),
    /// The handshake broke off.
    Broken(String),
}

/// A connector as `[kafka.tls]` says, with the files' present content.
pub(super) fn connector(tls: &KafkaTls) -> Result<SslConnector, TlsFault> {
    let unusable = |path: &Path| TlsFault::Files(format!("{} cannot be read or holds nothing usable", path.display()));
    let internal = |e: ErrorStack| TlsFault::Files(format!("OpenSSL: {e}"));
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(internal)?;
    if let Some(ca) = &tls.ca {
        // In place of the system's: a private CA is the only one that is trusted then.
        let mut store = X509StoreBuilder::new().map_err(internal)?;
        let pem = std::fs::read(ca).map_err(|_| unusable(ca))?;
        for certificate in X509::stack_from_pem(&pem).map_err(|_| unusable(ca))? {
            store.add_cert(certificate).map_err(internal)?;
        }
        builder.set_cert_store(store.build());
    }
    if let Some(client) = &tls.client {
        builder.set_certificate_chain_file(&client.chain).map_err(|_| unusable(&client.chain))?;
        builder.set_private_key_file(&client.key, SslFiletype::PEM).map_err(|_| unusable(&client.key))?;
        builder.check_private_key().map_err(|_| unusable(&client.key))?;
    }
    Ok(builder.build())
}

/// The handshake over a socket that has its timeouts.
pub(super) fn handshake(connector: &SslConnector, host: &str, socket: TcpStream) -> Result<SslStream<TcpStream>, TlsFault> {
    look(connector, host, socket).1
}

/// As [`handshake`]; and when the first certificate of the broker's chain ends, in seconds since the epoch, also where it is not
/// accepted. `None`: none was shown.
pub(super) fn look(
    connector: &SslConnector,
    host: &str,
    socket: TcpStream,
) -> (Option<i64>, Result<SslStream<TcpStream>, TlsFault>) {
    let verdict = Arc::new(AtomicI32::new(0));
    let earliest = Arc::new(AtomicI64::new(i64::MAX));
    let mut ssl = match connector.configure() {
        Ok(ssl) => ssl,
        Err(error) => return (None, Err(TlsFault::Files(format!("OpenSSL: {error}")))),
    };
    let (seen, ends) = (Arc::clone(&verdict), Arc::clone(&earliest));
    ssl.set_verify_callback(SslVerifyMode::PEER, move |accepted, context| {
        if let Some(at) = context.current_cert().and_then(|certificate| unix_seconds(certificate.not_after())) {
            ends.fetch_min(at, Ordering::Relaxed);
        }
        if !accepted {
            seen.store(context.error().as_raw(), Ordering::Relaxed);
        }
        accepted
    });
    let stream = ssl.connect(host, socket).map_err(|error| match verdict.load(Ordering::Relaxed) {
        0 => broken(&error),
        code => refused(code),
    });
    (Some(earliest.load(Ordering::Relaxed)).filter(|at| *at != i64::MAX), stream)
}

/// When our own certificate ends, as it lies there now.
pub(super) fn own_end(tls: &KafkaTls) -> Option<i64> {
    let pem = std::fs::read(&tls.client.as_ref()?.chain).ok()?;
    unix_seconds(X509::stack_from_pem(&pem).ok()?.first()?.not_after())
}

/// X509_V_ERR_* of x509_vfy.h.
fn refused(code: i32) -> TlsFault {
    match code {
        9 => TlsFault::NotYetValid,
        10 => TlsFault::Expired,
        // 7: another CA of the same name.
        2 | 7 | 18..=21 | 24 | 27 => TlsFault::UnknownIssuer,
        62..=64 => TlsFault::WrongHost,
        other => {
            // SAFETY is not needed: OpenSSL's own words for a code, which the crate gives by value.
            TlsFault::Refused(format!("OpenSSL's verification error {other}"))
        }
    }
}

fn broken(error: &HandshakeError<TcpStream>) -> TlsFault {
    let inner = match error {
        HandshakeError::Failure(stream) | HandshakeError::WouldBlock(stream) => Some(stream.error()),
        HandshakeError::SetupFailure(_) => None,
    };
    match inner.and_then(alert) {
        Some(1408 | 267) => TlsFault::NotTls,
        Some(reason @ 1000..1256) => TlsFault::Alert(reason - 1000),
        _ => TlsFault::Broken(inner.map_or_else(|| "OpenSSL cannot begin".to_owned(), ToString::to_string)),
    }
}

/// OpenSSL's reason: for an alert from the other side it is 1000 and the alert's number (RFC 8446, section 6.2); 267 is
/// "wrong version number", which is what the answer of something that speaks no TLS comes to.
pub(super) fn alert(error: &openssl::ssl::Error) -> Option<i32> {
    Some(error.ssl_error()?.errors().first()?.reason_code())
}
