//! The `unionfs` program: hands the arguments to [`unionfs::cli`] and turns the
//! outcome into an exit code. Called by users, podman, mount(8).

use std::process::ExitCode;

fn main() -> ExitCode {
    unionfs::cli::main()
}
