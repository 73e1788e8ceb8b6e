//! What the files of `[downstream.auth]`, `[downstream.tls]` and `[downstream.signing]` come to: a header, a TLS set-up, keys
//! that sign. Read at the start, on SIGHUP, and after the service has refused them; until new ones are read whole and fit
//! together, the old ones stay.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openssl::base64::encode_block;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use openssl::ssl::SslConnector;
use ureq::http::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::tls;
use crate::config::{Auth, Secrets, Security};

/// Between two readings that refusals ask for: a service that refuses everything must not become a flood of them.
const QUIET_AFTER_READING: Duration = Duration::from_secs(5);

/// One reading, ready for use.
pub(super) struct Credentials {
    /// Goes into every request; marked as sensitive, so that nothing prints it.
    pub(super) header: Option<(HeaderName, HeaderValue)>,
    /// Makes connections with TLS; `None` for a URL without: the system's trust store takes milliseconds and megabytes.
    pub(super) tls: Option<SslConnector>,
    /// When our own certificate ends, in seconds since the epoch.
    pub(super) own_expiry: Option<i64>,
    signing: Vec<PKey<Private>>,
    /// What must not be kept of an answer that repeats it.
    hidden: Vec<Vec<u8>>,
    secrets: Secrets,
}

impl Credentials {
    fn of(security: &Security, https: bool, secrets: Secrets) -> Result<Self, String> {
        let failed = |error: ErrorStack| format!("OpenSSL: {error}");
        let (tls, own_expiry) = if https { tls::set_up(&secrets).map(|(tls, ends)| (Some(tls), ends))? } else { (None, None) };
        let mut hidden: Vec<Vec<u8>> = secrets.auth.iter().cloned().collect();
        let header = match (&security.auth, &secrets.auth) {
            (Auth::None, _) | (_, None) => None,
            (Auth::Bearer(_), Some(token)) => Some((AUTHORIZATION, sensitive(&[b"Bearer ", token.as_slice()].concat())?)),
            (Auth::Basic(user, _), Some(password)) => {
                let encoded = encode_block(&[user.as_bytes(), b":", password.as_slice()].concat());
                hidden.push(encoded.clone().into_bytes());
                Some((AUTHORIZATION, sensitive(format!("Basic {encoded}").as_bytes())?))
            }
            (Auth::Header(name, _), Some(value)) => {
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "downstream.auth.header_name: not a name")?;
                Some((name, sensitive(value)?))
            }
        };
        let signing = secrets.signing.iter().map(|key| PKey::hmac(key)).collect::<Result<_, _>>().map_err(failed)?;
        Ok(Self { header, tls, own_expiry, signing, hidden, secrets })
    }

    /// `webhook-signature` (Standard Webhooks): one `v1,BASE64` for each secret.
    pub(super) fn signature(&self, id: &str, timestamp: &str, body: &[u8]) -> HeaderValue {
        let sign = |key: &PKey<Private>| -> Result<String, ErrorStack> {
            let mut signer = Signer::new(MessageDigest::sha256(), key)?;
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                signer.update(part)?;
            }
            Ok(format!("v1,{}", encode_block(&signer.sign_to_vec()?)))
        };
        let all: Result<Vec<String>, ErrorStack> = self.signing.iter().map(sign).collect();
        let all = all.expect("an HMAC over bytes in memory fails only without memory");
        HeaderValue::try_from(all.join(" ")).expect("base64 is visible ASCII")
    }

    /// Whether requests are signed.
    pub(super) fn signs(&self) -> bool {
        !self.signing.is_empty()
    }

    /// As many bytes more must be read of an answer than are kept of it, so that no part of a secret is left at its end.
    pub(super) fn longest_hidden(&self) -> usize {
        self.hidden.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Takes out of an answer what the service repeats of our secrets: some show the request that they refuse.
    pub(super) fn redact(&self, text: &mut Vec<u8>) {
        // Shorter ones would blot out what is no secret.
        for secret in self.hidden.iter().filter(|secret| secret.len() >= 4) {
            while let Some(at) = text.windows(secret.len()).position(|window| window == secret.as_slice()) {
                text.splice(at..at + secret.len(), *b"***");
            }
        }
    }
}

fn sensitive(value: &[u8]) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_bytes(value).map_err(|_| "downstream.auth: not a header's value")?;
    value.set_sensitive(true);
    Ok(value)
}

/// Keeps the credentials for all workers.
pub(super) struct Keyring {
    security: Security,
    https: bool,
    now: Mutex<Arc<Credentials>>,
    /// When the files were last read; held while somebody reads. Nobody else waits for that: a file may lie on a disk that hangs.
    read_at: Mutex<Instant>,
    /// Raised when other credentials have taken the place of the old ones.
    generation: AtomicU64,
}

impl Keyring {
    /// `https`: whether the URL asks for TLS.
    pub(super) fn new(security: &Security, https: bool) -> Result<Self, String> {
        let now = Mutex::new(Arc::new(Credentials::of(security, https, security.read()?)?));
        let read_at = Mutex::new(Instant::now());
        Ok(Self { security: security.clone(), https, now, read_at, generation: AtomicU64::new(0) })
    }

    /// Those that hold now.
    pub(super) fn get(&self) -> Arc<Credentials> {
        Arc::clone(&lock(&self.now))
    }

    /// Connections of an earlier generation should not be used again: they were made with another certificate.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads the files again. `Ok(true)`: others than before.
    pub(super) fn read_again(&self) -> Result<bool, String> {
        self.read(&mut lock(&self.read_at))
    }

    /// The same because the service has refused us. `None`: there is nothing to read, or somebody has just done it.
    pub(super) fn read_after_refusal(&self) -> Option<Result<bool, String>> {
        if self.security.is_empty() {
            return None;
        }
        let mut read_at = self.read_at.try_lock().ok()?;
        (read_at.elapsed() >= QUIET_AFTER_READING).then(|| self.read(&mut read_at))
    }

    fn read(&self, read_at: &mut Instant) -> Result<bool, String> {
        let secrets = self.security.read();
        *read_at = Instant::now();
        let secrets = secrets?;
        if secrets == self.get().secrets {
            return Ok(false);
        }
        let new = Arc::new(Credentials::of(&self.security, self.https, secrets)?);
        *lock(&self.now) = new;
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(true)
    }
}

/// What the locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
