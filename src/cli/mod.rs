//! The command line, one file per command group.

use std::process::ExitCode;

/// Entry of the `txrelay` command.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
