//! What is wrong with a configuration, and where: one line each, never a value.

use std::fmt;
use std::path::{Path, PathBuf};

/// Everything that is wrong, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    file: PathBuf,
    list: Vec<Problem>,
}

/// Where something was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    /// Nowhere: the file as a whole.
    File,
    /// Line and column, in characters, from 1.
    Line(usize, usize),
    /// On the command line.
    Set,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub at: At,
    /// Empty: it is not about one key.
    pub key: String,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl Problems {
    pub(super) fn new(file: &Path, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|p| p.at);
        list.dedup();
        Self { file: file.to_path_buf(), list }
    }

    /// How many there are; at least one.
    pub fn count(&self) -> usize {
        self.list.len()
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    /// One line per problem, without a newline at the end: `FILE:LINE:COL: key: what is wrong, what would be right`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = visible(&self.file.display().to_string());
        for (n, problem) in self.list.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            match problem.at {
                At::File => write!(f, "{file}: ")?,
                At::Line(line, column) => write!(f, "{file}:{line}:{column}: ")?,
                At::Set => write!(f, "--set: ")?,
            }
            if !problem.key.is_empty() {
                write!(f, "{}: ", visible(&problem.key))?;
            }
            write!(f, "{}", visible(&problem.text))?;
        }
        Ok(())
    }
}

/// Text in which no control character can forge a line, drive a terminal or turn the order of what follows.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Line and paragraph separators, and the marks that write from right to left.
        let turns =
            matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}
