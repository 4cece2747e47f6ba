//! Reads a configuration file that decides whom we trust.

use std::io::{self, Read as _};
use std::path::Path;

use super::super::error::{Error, Result};
use crate::sys::walk::{self, Trust};

/// The size limit of a configuration file, in bytes.
const LIMIT: u64 = 4 << 20;

/// Returns the text of a file; `None` if it does not exist.
pub(in crate::registry) fn read(path: &Path) -> Result<Option<String>> {
    read_unless(path, is_absent)
}

/// As [`read`], but a file that this user may not read counts as missing. For files that only make more
/// possible.
pub(in crate::registry) fn read_if_allowed(path: &Path) -> Result<Option<String>> {
    read_unless(path, |error| {
        is_absent(error) || error.kind() == io::ErrorKind::PermissionDenied
    })
}

fn read_unless(path: &Path, missing: impl Fn(&io::Error) -> bool) -> Result<Option<String>> {
    let failed = |error: io::Error| bad(path, format!("cannot be read: {error}"));
    let file = match walk::open_file(path, Trust::of_root()) {
        Ok(file) => file,
        Err(error) if missing(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !walk::is_trusted(&file).map_err(failed)? {
        let why = "belongs to another user or can be written by others: give it to root or to \
                   yourself, and take the others' right to write";
        return Err(bad(path, why));
    }
    let mut text = String::new();
    let read = file.take(LIMIT).read_to_string(&mut text);
    read.map_err(failed)?;
    Ok(Some(text))
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// Returns the error for a fault of a configuration file.
pub(in crate::registry) fn bad(path: &Path, why: impl Into<String>) -> Error {
    Error::Configuration {
        path: path.to_owned(),
        why: why.into(),
    }
}
