//! Which transaction a record is.

/// `transaction.id`: where the id stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdRule {
    /// A JSON pointer (RFC 6901) into the value, `""` or beginning with `/`; the unescaped reference tokens.
    Value(Vec<String>),
    /// The record's key.
    Key,
    /// The header of this name (its last occurrence).
    Header(String),
}
