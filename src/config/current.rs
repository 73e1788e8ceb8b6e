//! The configuration that holds now. A reload puts another whole one in its place, never a part of one.

use std::sync::{Arc, PoisonError, RwLock};

use super::Config;

/// Shared by the threads that obey a reload: they ask for it where they use it and keep no copy.
#[derive(Debug, Clone)]
pub struct Current(Arc<RwLock<Arc<Config>>>);

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
}
