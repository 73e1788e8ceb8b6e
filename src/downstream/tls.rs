//! TLS to the service, with the system's OpenSSL.
//!
//! ureq's own connector keeps one set-up for ever, does not tell why a certificate is refused and not when one ends. This one
//! takes the set-up of `credentials` for each connection, and says all of it. Chain and host name are verified, always: nothing
//! here can turn it off.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering::Relaxed};

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{self, SslConnector, SslMethod, SslStream, SslVerifyMode, SslVersion};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Ref};
use ureq::Error;
use ureq::unversioned::transport::time::{Duration, Instant};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use super::credentials::Keyring;
use crate::config::Secrets;
use crate::core::tls::{Alert, Refusal, unix_seconds};

/// Why there is no TLS, or no more: one sentence that names the cause and what to change.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TlsFailure(pub(super) String);

/// The set-up for secrets that have been read, and when our own certificate ends.
pub(super) fn set_up(secrets: &Secrets) -> Result<(SslConnector, Option<i64>), String> {
    let failed = |error: ErrorStack| format!("OpenSSL: {error}");
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(failed)?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(failed)?;
    if let Some(pem) = &secrets.ca {
        // In place of the system's: a private CA is the only one that is trusted then.
        let mut store = X509StoreBuilder::new().map_err(failed)?;
        for certificate in X509::stack_from_pem(pem).map_err(failed)? {
            store.add_cert(certificate).map_err(failed)?;
        }
        builder.set_cert_store(store.build());
    }
    let mut own_expiry = None;
    if let Some((chain, key)) = &secrets.client {
        let mut chain = X509::stack_from_pem(chain).map_err(failed)?.into_iter();
        let own = chain.next().ok_or("downstream.tls.cert_file: holds no certificate")?;
        own_expiry = ends(&own);
        builder.set_certificate(&own).map_err(failed)?;
        for between in chain {
            builder.add_extra_chain_cert(between).map_err(failed)?;
        }
        let key = PKey::private_key_from_pem_passphrase(key, b"").map_err(failed)?;
        builder.set_private_key(&key).map_err(failed)?;
        builder.check_private_key().map_err(failed)?;
    }
    Ok((builder.build(), own_expiry))
}

fn ends(certificate: &X509Ref) -> Option<i64> {
    unix_seconds(certificate.not_after())
}

/// The link of the chain that puts TLS over a connection.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) keyring: Arc<Keyring>,
    /// When the first certificate of the service's chain ends, as last seen, in seconds since the epoch; 0: none was seen.
    pub(super) service_expiry: Arc<AtomicI64>,
}

impl<In: Transport> Connector<In> for Tls {
    type Out = Either<In, TlsTransport<In>>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let Some(inner) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(inner)));
        }
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let mut wire = TransportAdapter::new(inner, details.current_time.clone());
        wire.set_timeout(what_is_left(details));
        let stream = self.shake_hands(host, wire)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { stream, buffers })))
    }
}

/// The handshake is part of connecting: what opening the socket took is gone.
fn what_is_left(details: &ConnectionDetails) -> NextTimeout {
    let mut timeout = details.timeout;
    if let (Duration::Exact(after), Instant::Exact(began), Instant::Exact(now)) =
        (timeout.after, details.now, (details.current_time)())
    {
        timeout.after = Duration::Exact(after.saturating_sub(now.saturating_duration_since(began)));
    }
    timeout
}

impl Tls {
    pub(super) fn shake_hands<S: Read + Write>(&self, host: &str, wire: S) -> Result<SslStream<S>, Error> {
        let refused = Arc::new(AtomicI32::new(0));
        let expiry = Arc::new(AtomicI64::new(i64::MAX));
        let credentials = self.keyring.get();
        let connector = credentials.tls.as_ref().ok_or(Error::TlsRequired)?;
        let mut configuration = connector.configure().map_err(own_fault)?;
        let (code, earliest) = (Arc::clone(&refused), Arc::clone(&expiry));
        configuration.set_verify_callback(SslVerifyMode::PEER, move |accepted, context| {
            if let Some(at) = context.current_cert().and_then(ends) {
                earliest.fetch_min(at, Relaxed);
            }
            if !accepted {
                code.store(context.error().as_raw(), Relaxed);
            }
            accepted
        });
        let result = configuration.into_ssl(host).map_err(own_fault).and_then(|ssl| {
            let mut stream = SslStream::new(ssl, wire).map_err(own_fault)?;
            stream.connect().map_err(|error| handshake_error(error, refused.load(Relaxed)))?;
            Ok(stream)
        });
        if expiry.load(Relaxed) != i64::MAX {
            self.service_expiry.store(expiry.load(Relaxed), Relaxed);
        }
        result
    }
}

fn own_fault(error: ErrorStack) -> Error {
    tls_error(format!("OpenSSL: {error}"))
}

fn tls_error(text: String) -> Error {
    Error::Other(Box::new(TlsFailure(text)))
}

/// SSL_R_* of sslerr.h.
const UNEXPECTED_EOF: i32 = 294;
const WRONG_VERSION_NUMBER: i32 = 267;
const HTTP_REQUEST: i32 = 156;
const PACKET_LENGTH_TOO_LONG: i32 = 198;
const UNSUPPORTED_PROTOCOL: i32 = 258;
const ALERT_PROTOCOL_VERSION: i32 = 1070;

fn reason(error: &ssl::Error) -> Option<i32> {
    error.ssl_error()?.errors().first().map(|e| e.reason_code())
}

/// `refused`: what the verification found, as OpenSSL's code; 0: nothing.
fn handshake_error(error: ssl::Error, refused: i32) -> Error {
    if refused != 0 {
        let refusal = Refusal::from_code(refused);
        let hint = match refusal {
            Refusal::NotYetValid => ": is one of the clocks wrong?",
            Refusal::Untrusted => ": does downstream.tls.ca_file name the CA that signed it?",
            Refusal::Name => ": downstream.url must name the host as it does",
            _ => "",
        };
        return tls_error(format!("the service's certificate is not accepted: {}{hint}", refusal.words()));
    }
    match reason(&error) {
        // Whoever closes in the middle of a handshake is being restarted, or is no more.
        Some(UNEXPECTED_EOF) => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
        Some(WRONG_VERSION_NUMBER | HTTP_REQUEST | PACKET_LENGTH_TOO_LONG) => {
            tls_error("the service does not speak TLS: is it the right port, or does it want plain HTTP?".into())
        }
        Some(UNSUPPORTED_PROTOCOL | ALERT_PROTOCOL_VERSION) => tls_error("the service speaks no TLS from 1.2 on".into()),
        Some(reason) => alert(reason).unwrap_or_else(|| tls_error(format!("the TLS handshake failed: {error}"))),
        None => error.into_io_error().unwrap_or_else(|_| io::ErrorKind::UnexpectedEof.into()).into(),
    }
}

/// What the service thinks of our certificate; with TLS 1.3 it says so after its side of the handshake, as the failure of the
/// first read.
fn alert(reason: i32) -> Option<Error> {
    let text = match Alert::from_reason(reason)? {
        Alert::Certificate => {
            "the service does not accept our certificate (downstream.tls.cert_file): did a CA that it trusts sign it?"
        }
        Alert::Expired => "the service does not accept our certificate (downstream.tls.cert_file): it has expired",
        Alert::Wanted => "the service asks for a client certificate: name one with downstream.tls.cert_file",
    };
    Some(tls_error(text.into()))
}

/// A connection with TLS.
pub(super) struct TlsTransport<T: Transport> {
    stream: SslStream<TransportAdapter<T>>,
    buffers: LazyBuffers,
}

/// An error of OpenSSL after the handshake: what lies below it, such as a timeout, goes before what it says itself.
fn stream_error(error: io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ssl::Error>());
    let Some(inner) = inner else { return error.into() };
    match reason(inner) {
        Some(UNEXPECTED_EOF) => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
        Some(reason) => alert(reason).unwrap_or_else(|| tls_error(format!("TLS: {inner}"))),
        None => tls_error(format!("TLS: {inner}")),
    }
}

impl<T: Transport> Transport for TlsTransport<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.get_mut().set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount]).map_err(stream_error)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf()).map_err(stream_error)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Bytes that came without being asked for may be the service's farewell, or what it takes for another answer: that must
    /// never be read as the answer to the next request. They are on the socket, in its buffer, or in OpenSSL's.
    fn is_open(&mut self) -> bool {
        let pending = self.stream.ssl().pending();
        let wire = self.stream.get_mut().get_mut();
        pending == 0 && wire.buffers().input().is_empty() && wire.is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl<T: Transport> fmt::Debug for TlsTransport<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}
