//! `[kafka.tls]` and `[kafka.sasl]`. Their files are looked at when the configuration is loaded, and read again for every
//! client that is made: a renewed certificate or password needs no restart.

use std::path::PathBuf;

use super::postgres_tls::{ClientCertificate, client_certificate};
use super::problems::At;
use super::raw::Written;
use super::{Password, certificates, secret};

/// Keys of files and what stands for none of them: for a command that does not speak to Kafka.
pub const KAFKA_FILES: [(&str, &str); 4] = [
    ("kafka.tls.ca_file", "\"\""),
    ("kafka.tls.cert_file", "\"\""),
    ("kafka.tls.key_file", "\"\""),
    ("kafka.sasl.password_file", "\"\""),
];

/// TLS to Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KafkaTls {
    /// PEM; `None`: the system's trust store.
    pub ca: Option<PathBuf>,
    /// What brokers may ask for.
    pub client: Option<ClientCertificate>,
}

impl KafkaTls {
    /// The files' present content, for clients that take text: CA, certificates, key.
    ///
    /// # Errors
    /// One sentence that names the file.
    pub fn read(&self) -> Result<[Option<String>; 3], String> {
        let text =
            |bytes: Vec<u8>, path: &PathBuf| String::from_utf8(bytes).map_err(|_| format!("{} is not PEM", path.display()));
        let open = |path: &PathBuf| {
            let bytes = std::fs::read(path).map_err(|e| format!("{} cannot be read: {}", path.display(), super::io_text(&e)))?;
            text(bytes, path)
        };
        let ca = self.ca.as_ref().map(open).transpose()?;
        let certificate = self.client.as_ref().map(|client| open(&client.chain)).transpose()?;
        let key = self.client.as_ref().map(|client| {
            let path = client.key.to_str().ok_or_else(|| format!("{} is not UTF-8", client.key.display()))?;
            text(secret::read_now(path)?, &client.key)
        });
        Ok([ca, certificate, key.transpose()?])
    }
}

/// How txrelay logs in to Kafka.
#[derive(Clone)]
pub struct KafkaSasl {
    /// `mechanism`
    pub mechanism: SaslMechanism,
    /// `username`
    pub username: String,
    /// `password_file`
    pub password: Password,
}

impl std::fmt::Debug for KafkaSasl {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSasl").field("mechanism", &self.mechanism).field("username", &self.username).finish_non_exhaustive()
    }
}

impl KafkaSasl {
    /// The password as it is now.
    ///
    /// # Errors
    /// One sentence that names the file, without any of its content.
    pub fn read_password(&self) -> Result<String, String> {
        let bytes = self.password.read()?.unwrap_or_default();
        String::from_utf8(bytes).map_err(|_| "kafka.sasl.password_file: the password is not UTF-8".to_owned())
    }
}

/// Mechanisms of SASL that are offered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// The password as it is; only within TLS.
    Plain,
    /// RFC 5802 with SHA-256.
    ScramSha256,
    /// RFC 5802 with SHA-512.
    ScramSha512,
}

impl SaslMechanism {
    /// As Kafka calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// `Some(None)`: no TLS. `None` only together with a problem.
pub(super) fn tls(w: &mut Written) -> Option<Option<KafkaTls>> {
    let is_written = w.is_table_written("kafka.tls");
    let path = |w: &mut Written, key: &'static str| w.text(key).filter(|(path, _)| !path.is_empty());
    let mut good = true;
    let mut ca = None;
    if let Some((written, at)) = path(w, "kafka.tls.ca_file") {
        let checked = certificates::path(&written).and_then(|path| {
            if !certificates::is_hidden(&written) {
                certificates::read(&path)?;
            }
            Ok(path)
        });
        match checked {
            Ok(path) => ca = Some(path),
            Err(problem) => {
                good = false;
                w.refuse("kafka.tls.ca_file", at, problem);
            }
        }
    }
    let (cert, key) = (path(w, "kafka.tls.cert_file"), path(w, "kafka.tls.key_file"));
    let client = match (cert, key) {
        (None, None) => None,
        (Some((cert, at)), Some((key, _))) => match client_certificate(&cert, &key) {
            Ok(client) => Some(client),
            Err(problem) => {
                good = false;
                // Both words are those of libpq's connection strings.
                let (path, text) = match problem.strip_prefix("sslkey: ") {
                    Some(text) => ("kafka.tls.key_file", text),
                    None => ("kafka.tls.cert_file", problem.trim_start_matches("sslcert: ")),
                };
                w.refuse(path, at, text);
                None
            }
        },
        (Some((_, at)), None) => {
            good = false;
            w.refuse("kafka.tls.cert_file", at, "stands without kafka.tls.key_file: its private key is needed too");
            None
        }
        (None, Some((_, at))) => {
            good = false;
            w.refuse("kafka.tls.key_file", at, "stands without kafka.tls.cert_file: the certificate is needed too");
            None
        }
    };
    let good = good && ["kafka.tls.ca_file", "kafka.tls.cert_file", "kafka.tls.key_file"].iter().all(|key| w.is_good(key));
    good.then(|| is_written.then_some(KafkaTls { ca, client }))
}

/// `Some(None)`: no SASL. `None` only together with a problem.
pub(super) fn sasl(w: &mut Written) -> Option<Option<KafkaSasl>> {
    if !w.is_table_written("kafka.sasl") {
        return Some(None);
    }
    let at = w.table_at("kafka.sasl");
    let mechanism = w.parsed("kafka.sasl.mechanism", |word| {
        Ok(match word {
            "PLAIN" => SaslMechanism::Plain,
            "SCRAM-SHA-256" => SaslMechanism::ScramSha256,
            _ => SaslMechanism::ScramSha512,
        })
    });
    if mechanism == Some(SaslMechanism::Plain) && !w.is_table_written("kafka.tls") {
        let text = "PLAIN sends the password as it is: it needs TLS, so write a table [kafka.tls] too, or use SCRAM-SHA-512";
        w.refuse("kafka.sasl.mechanism", at, text);
    }
    let username = w.text("kafka.sasl.username");
    if username.as_ref().is_some_and(|(name, _)| name.is_empty()) {
        w.refuse("kafka.sasl.username", at, "is missing: [kafka.sasl] says that somebody logs in");
    }
    let password = w.text("kafka.sasl.password_file").and_then(|(path, written_at)| {
        if path.is_empty() && written_at == At::Set {
            return Some(Password::None);
        }
        if path.is_empty() {
            w.refuse("kafka.sasl.password_file", at, "is missing: [kafka.sasl] says that somebody logs in");
            return None;
        }
        let password = Password::File(path);
        match password.read() {
            Ok(_) => Some(password),
            Err(problem) => {
                w.refuse("kafka.sasl.password_file", written_at, problem);
                None
            }
        }
    });
    let keys = ["kafka.sasl.mechanism", "kafka.sasl.username", "kafka.sasl.password_file"];
    let good = keys.iter().all(|key| w.is_good(key));
    let (mechanism, (username, _), password) = (mechanism?, username?, password?);
    good.then_some(Some(KafkaSasl { mechanism, username, password }))
}
