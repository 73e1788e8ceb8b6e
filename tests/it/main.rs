//! Integration tests, one binary.

mod source;
