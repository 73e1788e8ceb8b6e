//! How a connection to PostgreSQL comes about: TLS as `postgres.url` says, and a bound on each of its waits.
//!
//! The `postgres` crate hands its socket to a TLS connector right after it is open when it is told to require TLS and to
//! negotiate it "directly". This connector takes that place: it asks the server for TLS itself (PostgreSQL's protocol,
//! "SSL Session Encryption"), bounded, and where TLS is not wanted or not offered it returns the plain socket, bounded.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{ConnectConfiguration, SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use postgres_openssl::TlsConnector;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::StoreError;
use super::patience::{Bounded, Patience};
use crate::config::{PostgresTls, TlsMode};
use crate::core::tls::{Alert, Refusal, unix_seconds};

/// For one connection: asking for TLS, and the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Makes connections of one thread.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tls: PostgresTls,
    patience: Patience,
    seen: Seen,
}

/// What the server's certificate said, last time.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Certificate>);

#[derive(Debug, Default)]
struct Certificate {
    /// Seconds since the epoch; 0: none was seen.
    expires_at: AtomicI64,
    /// Why it was not accepted, as OpenSSL's code (X509_V_ERR_*); 0: it was.
    refused: AtomicI32,
}

impl Connector {
    pub(super) fn new(tls: &PostgresTls, patience: Patience) -> Self {
        Self { tls: tls.clone(), patience, seen: Seen::default() }
    }

    /// When the certificate of the server last connected to expires, in seconds since the epoch.
    pub(super) fn certificate_expires_at(&self) -> Option<i64> {
        Some(self.seen.0.expires_at.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    /// What a failure to connect means. A server that does not accept our certificate may reset the connection before its alert
    /// is read: then there is nothing to go by but that it was shown.
    pub(super) fn explain(&self, error: postgres::Error) -> StoreError {
        let broke = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>()).is_some_and(|e| {
            matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof)
        });
        if broke && self.tls.client.is_some() {
            let words = "the server closed the connection: it does not accept our certificate (sslcert), or is being restarted";
            return StoreError::Connection(words.to_owned());
        }
        error.into()
    }

    /// Reads the files anew: a certificate that was renewed holds from the next connection on.
    fn openssl(&self) -> Result<ConnectConfiguration, TlsError> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        let verify = match self.tls.mode {
            TlsMode::VerifyCa | TlsMode::VerifyFull => SslVerifyMode::PEER,
            TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => SslVerifyMode::NONE,
        };
        if let Some(root) = &self.tls.root {
            // In place of the system's: a private CA is the only one that is trusted then.
            let mut store = X509StoreBuilder::new()?;
            for certificate in X509::stack_from_pem(&read("sslrootcert", root)?)? {
                store.add_cert(certificate)?;
            }
            builder.set_cert_store(store.build());
        }
        if let Some(client) = &self.tls.client {
            let failed = |what, path: &Path| TlsError::File(what, path.display().to_string());
            builder.set_certificate_chain_file(&client.chain).map_err(|_| failed("sslcert", &client.chain))?;
            builder.set_private_key_file(&client.key, SslFiletype::PEM).map_err(|_| failed("sslkey", &client.key))?;
        }
        let mut ssl = builder.build().configure()?;
        ssl.set_verify_hostname(self.tls.mode == TlsMode::VerifyFull);
        let seen = self.seen.clone();
        seen.0.refused.store(0, Ordering::Relaxed);
        ssl.set_verify_callback(verify, move |accepted, context| {
            if let Some(certificate) = context.current_cert().filter(|_| context.error_depth() == 0) {
                seen.0.expires_at.store(unix_seconds(certificate.not_after()).unwrap_or(0), Ordering::Relaxed);
            }
            // Without verification OpenSSL goes on all the same.
            if !accepted && verify == SslVerifyMode::PEER {
                seen.0.refused.store(context.error().as_raw(), Ordering::Relaxed);
            }
            accepted
        });
        Ok(ssl)
    }
}

/// A file of `postgres.url` that cannot be read now.
fn read(word: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|_| TlsError::File(word, path.display().to_string()))
}

/// Why there is no connection, in one sentence that names the cause and what to change.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("the server offers no TLS, and sslmode asks for it: switch ssl on there, or change sslmode")]
    NotOffered,
    #[error("the server does not speak PostgreSQL's protocol: is it the right port?")]
    NotPostgres,
    #[error("no answer within {HANDSHAKE:?} while connecting: the server is frozen, or something between drops what is sent")]
    Silent,
    #[error("the server's certificate is not accepted: {words}{hint}")]
    Refused { words: &'static str, hint: &'static str },
    #[error("the server's certificate is not accepted: it was made for another host name (sslmode=verify-full)")]
    Name,
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    #[error("{0}: {1} cannot be read or holds nothing usable any more")]
    File(&'static str, String),
    #[error("the connection broke while connecting: {0}")]
    Io(#[from] io::Error),
    #[error("OpenSSL: {0}")]
    OpenSsl(#[from] ErrorStack),
}

impl TlsError {
    /// `code`: X509_V_ERR_* of x509_vfy.h.
    fn refused(code: i32) -> Self {
        let refusal = Refusal::from_code(code);
        let hint = match refusal {
            Refusal::Name => return Self::Name,
            Refusal::NotYetValid => ": is one of the clocks wrong?",
            Refusal::Untrusted => ": does sslrootcert name the CA that signed it?",
            _ => "",
        };
        Self::Refused { words: refusal.words(), hint }
    }
}

/// What the server thinks of our certificate. It says so by an alert after its side of the handshake, so it comes as the failure
/// of a later read.
pub(super) fn alert(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut source = Some(error);
    while let Some(error) = source {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref::<openssl::ssl::Error>());
        let reason = inner.and_then(|e| e.ssl_error()?.errors().first().map(|e| e.reason_code()));
        match reason.and_then(Alert::from_reason) {
            Some(Alert::Certificate) => {
                return Some("the server does not accept our certificate (sslcert): did a CA that it trusts sign it?");
            }
            Some(Alert::Expired) => return Some("the server does not accept our certificate (sslcert): it has expired"),
            Some(Alert::Wanted) => return Some("the server asks for a client certificate: name one with sslcert and sslkey"),
            None => source = error.source(),
        }
    }
    None
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Wire;
    type TlsConnect = Connecting;
    type Error = TlsError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Connecting, TlsError> {
        Ok(Connecting { connector: self.clone(), host: domain.to_owned() })
    }
}

/// One connection on its way.
pub(super) struct Connecting {
    connector: Connector,
    host: String,
}

impl TlsConnect<Socket> for Connecting {
    type Stream = Wire;
    type Error = TlsError;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, TlsError>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let patience = self.connector.patience.clone();
            let stream = timeout(HANDSHAKE, self.negotiate(socket)).await.map_err(|_| TlsError::Silent)??;
            Ok(Wire(Bounded::new(stream, patience)))
        })
    }
}

/// SSLRequest: its length, and the code that stands where the protocol's version would.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

impl Connecting {
    async fn negotiate(self, mut socket: Socket) -> Result<Stream, TlsError> {
        let mode = self.connector.tls.mode;
        if mode == TlsMode::Disable {
            return Ok(Stream::Plain(socket));
        }
        socket.write_all(&SSL_REQUEST).await?;
        match socket.read_u8().await? {
            b'S' => {}
            b'N' if mode == TlsMode::Prefer => return Ok(Stream::Plain(socket)),
            b'N' => return Err(TlsError::NotOffered),
            _ => return Err(TlsError::NotPostgres),
        }
        let connector = TlsConnector::new(self.connector.openssl()?, &self.host);
        match connector.connect(socket).await {
            Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
            Err(error) => Err(match self.connector.seen.0.refused.load(Ordering::Relaxed) {
                0 => TlsError::Handshake(error.to_string()),
                code => TlsError::refused(code),
            }),
        }
    }
}

/// A connection, plain or not.
pub(super) struct Wire(Bounded<Stream>);

enum Stream {
    Plain(Socket),
    Tls(Box<postgres_openssl::TlsStream<Socket>>),
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        match self.0.get_ref() {
            Stream::Plain(_) => ChannelBinding::none(),
            Stream::Tls(stream) => stream.channel_binding(),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
