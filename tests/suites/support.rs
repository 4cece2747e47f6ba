//! Finds the programs that `ci/tools.sh` installs, and makes a stack to run them on.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::layers::{self, Form, Layer};
use testkit::mount::{Scratch, Stack};

/// Returns the path of a program in `target/tools`, or a reason to skip.
pub(crate) fn tool(name: &str) -> Result<PathBuf, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
    let path = path.join(name);
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("needs {}: run ci/tools.sh", path.display()))
    }
}

/// Makes a stack over `layers` in a scratch directory, not mounted.
pub(crate) fn stack_in(scratch: &Scratch, layers: &[Layer]) -> Stack {
    Stack {
        lowers: layers::write_all(layers, scratch.path(), Form::Kernel),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    }
}

/// Runs a command and returns its stdout. If it fails, the test fails with all its output.
pub(crate) fn output_of(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{out}\n{err}",
        output.status
    );
    out.into_owned()
}
