//! Whether the files of `[kafka.tls]` and `[kafka.sasl]` still hold what a client was made with. Clients read them once; what a
//! renewed certificate or password takes is a new client.

use sha2::{Digest, Sha256};

use crate::config;

/// A digest of what the files held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secrets([u8; 32]);

impl Secrets {
    /// Of their present content; `None`: some file cannot be read now, as while it is being replaced.
    pub fn of(kafka: &config::Kafka) -> Option<Self> {
        let mut digest = Sha256::new();
        if let Some(tls) = &kafka.tls {
            for content in tls.read().ok()? {
                digest.update(content.unwrap_or_default());
                digest.update([0]);
            }
        }
        if let Some(sasl) = &kafka.sasl {
            digest.update(sasl.read_password().ok()?);
        }
        Some(Self(digest.finalize().into()))
    }
}
