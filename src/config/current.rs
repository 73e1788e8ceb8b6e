//! The configuration that holds now. A reload puts another whole one in its place, never a part of one.

use std::sync::{Arc, PoisonError, RwLock};

use super::keys::Change;
use super::{Config, Problems, load};

/// Shared by the threads that obey a reload: they ask for it where they use it and keep no copy.
#[derive(Debug, Clone)]
pub struct Current(Arc<RwLock<Arc<Config>>>);

/// Why a reload changed nothing.
#[derive(Debug)]
pub enum Refused {
    /// The file is wrong.
    Problems(Problems),
    /// It changes keys that only a restart can change.
    Restart {
        /// These.
        restart: Vec<&'static str>,
        /// Others that it changes, and a reload could have.
        reload: Vec<&'static str>,
    },
}

impl Current {
    /// What was loaded at the start.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(config))))
    }

    /// As it is at this moment.
    pub fn get(&self) -> Arc<Config> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on it is this one.
    pub fn replace(&self, config: Config) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Reads the file again, with the same `--set` before it, and takes it whole or not at all. Returns the keys that have
    /// changed. What stands in a secret's file is read too, but a new secret alone is no change.
    pub fn reload(&self) -> Result<Vec<&'static str>, Refused> {
        let old = self.get();
        let new = load(&old.file, &old.sets).map_err(Refused::Problems)?;
        let (reload, restart): (Vec<_>, Vec<_>) =
            old.view.differing(&new.view).into_iter().partition(|key| key.change == Change::Reload);
        let paths = |keys: Vec<&super::keys::Key>| keys.into_iter().map(|key| key.path).collect();
        if !restart.is_empty() {
            return Err(Refused::Restart { restart: paths(restart), reload: paths(reload) });
        }
        self.replace(new);
        Ok(paths(reload))
    }
}
