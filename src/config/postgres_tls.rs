//! TLS to PostgreSQL, as libpq's words in `postgres.url` mean it. The `postgres` crate knows `disable`, `prefer` and `require`
//! only and rejects the other words: they are taken out of the URL here, and the store's connector obeys them.
//!
//! Two differences from libpq, both on the safe side: `verify-ca` and `verify-full` without `sslrootcert` mean the system's
//! trust store (libpq looks for a file in the user's home), and with `prefer` a failed handshake is an error.

use std::path::{Path, PathBuf};

use openssl::pkey::PKey;
use openssl::x509::X509;

use super::secret;

/// How much TLS is asked for (libpq, `sslmode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsMode {
    /// None.
    Disable,
    /// If the server offers it; nothing is verified. libpq's default.
    #[default]
    Prefer,
    /// Required; nothing is verified.
    Require,
    /// The certificate's chain is verified, not its name.
    VerifyCa,
    /// Chain and host name.
    VerifyFull,
}

/// TLS to PostgreSQL. Files are read at every connect, so that new ones hold from the next connection on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PostgresTls {
    /// `sslmode`; `require` with a root file is `verify-ca`, as in libpq.
    pub mode: TlsMode,
    /// `sslrootcert`, PEM; `None`: the system's trust store.
    pub root: Option<PathBuf>,
    /// `sslcert` and `sslkey`, PEM.
    pub client: Option<ClientCertificate>,
}

/// What the server may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those between it and its root.
    pub chain: PathBuf,
    /// Its private key, without a passphrase.
    pub key: PathBuf,
}

/// Words of a connection string that are about TLS and are not the crate's to see.
#[derive(Debug, Default)]
pub(super) struct TlsWords {
    pub mode: Option<String>,
    pub root: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
}

impl TlsWords {
    /// The word's place; `None`: it is not about TLS.
    pub fn place(&mut self, word: &str) -> Option<&mut Option<String>> {
        Some(match word {
            "sslmode" => &mut self.mode,
            "sslrootcert" => &mut self.root,
            "sslcert" => &mut self.cert,
            "sslkey" => &mut self.key,
            _ => return None,
        })
    }

    /// What the words mean, with every file looked at.
    ///
    /// # Errors
    /// One sentence that names the word and what is wrong with its file.
    pub fn mean(self) -> Result<PostgresTls, String> {
        let filled = |word: Option<String>| word.filter(|text| !text.is_empty());
        let root_word = filled(self.root);
        // libpq 16: the system's trust store, and then nothing less than verify-full makes sense.
        let system = root_word.as_deref() == Some("system");
        let mode = match self.mode.as_deref() {
            None if system => TlsMode::VerifyFull,
            None | Some("prefer") => TlsMode::Prefer,
            Some("disable") => TlsMode::Disable,
            Some("require") => TlsMode::Require,
            Some("verify-ca") => TlsMode::VerifyCa,
            Some("verify-full") => TlsMode::VerifyFull,
            _ => return Err("holds an sslmode that is none: disable, prefer, require, verify-ca or verify-full".into()),
        };
        if system && mode != TlsMode::VerifyFull {
            return Err("says sslrootcert=system, which goes with sslmode=verify-full".into());
        }
        let root_written = root_word.clone().unwrap_or_default();
        let root = root_word.filter(|_| !system).map(|path| file("sslrootcert", &path)).transpose()?;
        if let Some(root) = &root
            && !hidden(&root_written)
        {
            certificates("sslrootcert", root)?;
        }
        let client = match (filled(self.cert), filled(self.key)) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(client_certificate(&cert, &key)?),
            (Some(_), None) => return Err("names sslcert without sslkey: its private key is needed too".into()),
            (None, Some(_)) => return Err("names sslkey without sslcert: the certificate is needed too".into()),
        };
        let mode = if mode == TlsMode::Require && root.is_some() { TlsMode::VerifyCa } else { mode };
        Ok(PostgresTls { mode, root, client })
    }
}

pub(super) fn file(word: &str, path: &str) -> Result<PathBuf, String> {
    if hidden(path) {
        return Ok(path.into());
    }
    secret::expand(path, |variable| std::env::var_os(variable)).map_err(|problem| format!("{word}: {problem}"))
}

pub(super) fn hidden(path: &str) -> bool {
    secret::is_hidden(path, |variable| std::env::var_os(variable))
}

pub(super) fn certificates(word: &str, path: &Path) -> Result<Vec<X509>, String> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|e| format!("{word}: {shown} cannot be read: {}", super::io_text(&e)))?;
    match X509::stack_from_pem(&pem) {
        Ok(stack) if !stack.is_empty() => Ok(stack),
        _ => Err(format!("{word}: {shown} holds no certificate in PEM form")),
    }
}

pub(super) fn client_certificate(cert: &str, key: &str) -> Result<ClientCertificate, String> {
    let (chain, key_file) = (file("sslcert", cert)?, file("sslkey", key)?);
    if hidden(cert) || hidden(key) {
        return Ok(ClientCertificate { chain, key: key_file });
    }
    let certificate = certificates("sslcert", &chain)?.remove(0);
    let pem = secret::read(key, |variable| std::env::var_os(variable)).map_err(|problem| format!("sslkey: {problem}"))?;
    // An empty passphrase, so that OpenSSL does not ask on the terminal for that of an encrypted key.
    let private = PKey::private_key_from_pem_passphrase(&pem, b"")
        .map_err(|_| format!("sslkey: {} holds no private key in PEM form without a passphrase", key_file.display()))?;
    if certificate.public_key().is_ok_and(|public| public.public_eq(&private)) {
        Ok(ClientCertificate { chain, key: key_file })
    } else {
        Err(format!("sslkey: {} is not the key of the certificate in {}", key_file.display(), chain.display()))
    }
}
