//! TLS to PostgreSQL, as libpq's words in `postgres.url` mean it. The `postgres` crate knows `disable`, `prefer` and `require`
//! only and rejects the other words: they are taken out of the URL here, and the store's connector obeys them.
//!
//! Two differences from libpq, both on the safe side: `verify-ca` and `verify-full` without `sslrootcert` mean the system's
//! trust store (libpq looks for a file in the user's home), and with `prefer` a failed handshake is an error.

use std::path::PathBuf;

use super::certificates;

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
        let about = |word: &'static str| move |problem: String| format!("{word}: {problem}");
        let root =
            root_word.filter(|_| !system).map(|file| certificates::path(&file)).transpose().map_err(about("sslrootcert"))?;
        if let Some(root) = &root
            && !certificates::is_hidden(&root_written)
        {
            certificates::read(root).map_err(about("sslrootcert"))?;
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

pub(super) fn client_certificate(cert: &str, key: &str) -> Result<ClientCertificate, String> {
    let about = |word: &'static str| move |problem: String| format!("{word}: {problem}");
    let chain = certificates::path(cert).map_err(about("sslcert"))?;
    let key_file = certificates::path(key).map_err(about("sslkey"))?;
    if !certificates::is_hidden(cert) && !certificates::is_hidden(key) {
        let certificate = certificates::read(&chain).map_err(about("sslcert"))?;
        let private = certificates::read_key(key).map_err(about("sslkey"))?;
        certificates::match_each_other(&certificate, &chain, &private, &key_file.display().to_string())
            .map_err(about("sslkey"))?;
    }
    Ok(ClientCertificate { chain, key: key_file })
}
