//! The command line: one file per command. Called by `main.rs`.

use std::process::ExitCode;

/// Parses the arguments, runs the command and reports errors on stderr.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
