//! What every key comes to, and where that was said: for telling two configurations apart.

use std::collections::BTreeMap;

use super::keys::{KEYS, Key};
use super::problems::At;

/// One key's value. It is TOML, and may hold what must not be shown (the path of a URL): only names of keys are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// In one way of writing, so that `"60s"` equals `"1m"`. `None`: not given, and without a default.
    pub value: Option<String>,
    /// Who said so.
    pub source: Source,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The table of keys, or other keys.
    Default,
    /// This line of the file.
    File(usize),
    /// `--set`
    Set,
}

impl From<At> for Source {
    fn from(at: At) -> Self {
        match at {
            At::File => Self::Default,
            At::Line(line, _) => Self::File(line),
            At::Set => Self::Set,
        }
    }
}

/// All keys of this version. Of a key that names a secret's file it holds the path, never the secret.
#[derive(Debug, Clone, Default)]
pub struct View(BTreeMap<&'static str, Effective>);

impl View {
    pub(super) fn new(values: BTreeMap<&'static str, Effective>) -> Self {
        Self(values)
    }

    /// What `path` comes to.
    pub fn get(&self, path: &str) -> Option<&Effective> {
        self.0.get(path)
    }

    /// The keys that come to something else in `other`, in the order of the reference file.
    pub fn differing(&self, other: &Self) -> Vec<&'static Key> {
        let value = |view: &Self, path: &str| view.get(path).and_then(|effective| effective.value.clone());
        KEYS.iter().filter(|key| value(self, key.path) != value(other, key.path)).collect()
    }
}
