//! When the client is to be made anew because a file of `[kafka.tls]` or `[kafka.sasl]` has new content: after a reload, and
//! after a failed log-in or handshake. Not at any time: a certificate is replaced before its key is.

use std::sync::Arc;

use super::consumer::{Consumer, Leave};
use crate::config::{Config, KafkaClient};
use crate::source::{Secrets, Trouble, TroubleKind};

/// What the client in use was made with.
#[derive(Debug, Default)]
pub(super) struct MadeWith {
    config: Option<Arc<Config>>,
    secrets: Option<Secrets>,
    is_in_doubt: bool,
}

impl Consumer {
    /// Before a client is made.
    pub(super) fn note_secrets(&mut self) {
        let config = self.config.get();
        self.made_with = MadeWith { secrets: Secrets::of(&config.kafka), config: Some(config), is_in_doubt: false };
    }

    pub(super) fn doubt_secrets(&mut self, trouble: &Trouble) {
        self.made_with.is_in_doubt |= matches!(trouble.kind, TroubleKind::Authentication | TroubleKind::Tls);
    }

    /// Asked once a turn; the files are read only when there is reason to.
    pub(super) fn new_secrets(&mut self) -> Option<Leave> {
        let config = self.config.get();
        let is_reloaded = self.made_with.config.as_ref().is_some_and(|old| !Arc::ptr_eq(old, &config));
        if !is_reloaded && !self.made_with.is_in_doubt {
            return None;
        }
        let old = self.made_with.config.replace(Arc::clone(&config));
        self.made_with.is_in_doubt = false;
        let lost = |config: &Config| config.kafka.on_lost_position;
        if config.kafka.client == KafkaClient::Kafka && old.is_some_and(|old| lost(&old) != lost(&config)) {
            return Some(Leave::Rebuild("kafka.on_lost_position has changed".to_owned()));
        }
        // What cannot be read now is being replaced, and read again with the next doubt.
        let now = Secrets::of(&config.kafka)?;
        (self.made_with.secrets != Some(now))
            .then(|| Leave::Rebuild("a file of [kafka.tls] or [kafka.sasl] has new content".to_owned()))
    }
}
