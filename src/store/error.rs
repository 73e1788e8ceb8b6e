//! What can go wrong with PostgreSQL, by what has to be done about it.

use postgres::error::SqlState;

/// A failed piece of work. Which kind it is decides what its thread does next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The session is gone or useless: reconnect. If it happened at COMMIT, nobody knows whether it was done.
    #[error("{0}")]
    Connection(String),
    /// Nothing was done; the same may succeed at once (deadlock, lock or statement timeout).
    #[error("{0}")]
    Busy(String),
    /// Nothing was done, because PostgreSQL cannot hold some value.
    #[error("{0}")]
    Value(String),
    /// Nothing was done: a row is already there that must not be. Somebody changed rows by hand, or a sequence went back with
    /// a stale replica; the next try draws another number.
    #[error("{0}")]
    Taken(String),
    /// Nothing was done: a constraint refuses some row. None of ours does; somebody has added one.
    #[error("{0}")]
    Constraint(String),
    /// Nothing was done: something in the database refuses these rows, and others perhaps not: a trigger, a rule, an index that
    /// was dropped. A person has to look.
    #[error("{0}")]
    Refused(String),
    /// Another process has taken the partition, or the database went back in time: rebuild from what it holds.
    #[error("{0}")]
    Fenced(String),
    /// The schema cannot be used by this version or belongs to another pipeline: exit 78.
    #[error("{0}")]
    Unusable(String),
    /// The role lacks a privilege; an administrator may grant it.
    #[error("{0}")]
    NotPermitted(String),
    /// An administrator has to do something (missing table, disk full); try again later.
    #[error("{0}")]
    Other(String),
}

/// Kinds of [`StoreError`] as the label of `postgres_errors_total`.
pub const ERROR_KINDS: [&str; 9] =
    ["connection", "busy", "value", "constraint", "refused", "fenced", "unusable", "not_permitted", "other"];

impl StoreError {
    /// The same with the server's place, for a failure to connect.
    pub(super) fn at(self, place: &str) -> Self {
        let with = |text: String| format!("{place}: {text}");
        match self {
            Self::Connection(text) => Self::Connection(with(text)),
            Self::Other(text) => Self::Other(with(text)),
            other => other,
        }
    }

    /// Whether it may be these rows that PostgreSQL does not take, and others might pass.
    pub fn is_about_rows(&self) -> bool {
        matches!(self, Self::Value(_) | Self::Constraint(_) | Self::Refused(_))
    }

    /// As `is_about_rows`, and also a row that is there already: it may be a unique index that somebody added.
    pub fn refuses_rows(&self) -> bool {
        self.is_about_rows() || matches!(self, Self::Taken(_))
    }

    /// For the label of `postgres_errors_total`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connection(_) => "connection",
            Self::Busy(_) => "busy",
            Self::Value(_) => "value",
            Self::Constraint(_) | Self::Taken(_) => "constraint",
            Self::Refused(_) => "refused",
            Self::Fenced(_) => "fenced",
            Self::Unusable(_) => "unusable",
            Self::NotPermitted(_) => "not_permitted",
            Self::Other(_) => "other",
        }
    }
}

impl From<postgres::Error> for StoreError {
    fn from(error: postgres::Error) -> Self {
        let text = describe(&error);
        match error.as_db_error().map(|db| db.code().clone()) {
            None if error.is_closed() || is_io(&error) => Self::Connection(text),
            // A conversion failure of this client is a bug of ours; anything else without a code came from the connection.
            None if text.starts_with("error serializing") || text.starts_with("error deserializing") => Self::Other(text),
            None => Self::Connection(text),
            Some(code) => by_code(&code, text),
        }
    }
}

/// The one place that says which SQLSTATE means what (PostgreSQL appendix A).
fn by_code(code: &SqlState, text: String) -> StoreError {
    match code.code() {
        // Deadlock, serialization, lock not available, statement timeout or cancelled.
        "40P01" | "40001" | "55P03" | "57014" => StoreError::Busy(text),
        // Shut down, starting up, idle in transaction for too long, or the server turned read-only (a standby).
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25006" => StoreError::Connection(text),
        // Too many connections, and everything about connecting and authorization.
        "53300" => StoreError::Connection(text),
        c if c.starts_with("08") || c.starts_with("28") || c.starts_with("3D") => StoreError::Connection(text),
        // Data exceptions, and what exceeds a limit (a btree row too large).
        c if c.starts_with("22") || c == "54000" => StoreError::Value(text),
        "23505" => StoreError::Taken(text),
        c if c.starts_with("23") => StoreError::Constraint(text),
        "42501" => StoreError::NotPermitted(text),
        // Cardinality and data changes of triggers, what a function raises or runs into, a check of a view, and syntax, names
        // and types: where all that this program prepares is accepted, it comes from what was added by hand.
        c if ["09", "21", "27", "2F", "38", "39", "42", "44", "P0"].iter().any(|class| c.starts_with(class)) => {
            StoreError::Refused(text)
        }
        _ => StoreError::Other(text),
    }
}

fn is_io(error: &postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

/// One line without values: the server's message and code, or the chain of causes.
fn describe(error: &postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        // What an administrator has to do stands first where PostgreSQL's own words do not say it.
        let what = match db.code().code() {
            "53100" => "PostgreSQL's disk is full: ",
            "53200" => "PostgreSQL is out of memory: ",
            "53300" => "PostgreSQL takes no more connections: ",
            "25006" => "this PostgreSQL is read-only, a standby: ",
            _ => "",
        };
        return format!("{what}{} (SQLSTATE {})", db.message(), db.code().code());
    }
    if let Some(words) = super::connector::alert(error) {
        return words.to_owned();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_says_what_to_do() {
        let kind = |code: &str| by_code(&SqlState::from_code(code), String::new()).kind();
        for (codes, expected) in [
            (&["40P01", "40001", "55P03", "57014"][..], "busy"),
            (&["57P01", "57P03", "08006", "08001", "28P01", "28000", "3D000", "53300", "25006"][..], "connection"),
            (&["22021", "22P05", "22001", "54000"][..], "value"),
            (&["23505", "23514"][..], "constraint"),
            (&["42501"][..], "not_permitted"),
            (&["P0001", "42P01", "42P10", "27000", "38000", "44000"][..], "refused"),
            (&["53100", "0A000", "XX000"][..], "other"),
        ] {
            for code in codes {
                assert_eq!(kind(code), expected, "{code}");
            }
        }
    }
}
