//! Files that survive a crash whole: written under a new name, synced, renamed; and the
//! random names for them. Called by the other files of `writable`.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::io::Errno;

use crate::store::error::{Error, Result};

/// Makes an error of `action` on `path`.
pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Error::io(action, &path, errno)
    }
}

/// Makes a directory of exactly that mode; false where it exists.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<bool> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            // The umask has taken bits away.
            let mode = Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).map_err(io("chmod", path))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io("create", path)(error)),
    }
}

/// Makes a directory that must not exist.
pub(super) fn new_dir(path: &Path, mode: u32) -> Result<()> {
    match make_dir(path, mode)? {
        true => Ok(()),
        false => Err(Error::io("create", path, Errno::EXIST)),
    }
}

/// Creates a file that must not exist.
pub(super) fn create(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(io("create", path))
}

/// Writes a file that must not exist, and syncs it.
pub(super) fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut file = create(path, mode)?;
    file.write_all(bytes).map_err(io("write", path))?;
    file.sync_all().map_err(io("sync", path))
}

/// Writes a file in place of another or of none: readers see the old or the new one.
/// `staging` is a directory on the same file system.
pub(super) fn replace(staging: &Path, path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let staged = staging.join(random_hex(16)?);
    let outcome = write_new(&staged, mode, bytes).and_then(|()| publish(&staged, path));
    if outcome.is_err() {
        // The first failure is the one to report.
        let _ = std::fs::remove_file(&staged);
    }
    outcome
}

/// Renames what is synced already, and makes the new name durable.
pub(super) fn publish(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(io("rename", to))?;
    sync_parent(to)
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<()> {
    let Some(dir) = path.parent() else {
        return Ok(());
    };
    let opened = File::open(dir).map_err(io("open", dir))?;
    opened.sync_all().map_err(io("sync", dir))
}

/// Removes a file; one that is gone is no error.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// `count` random bytes in hexadecimal.
pub(super) fn random_hex(count: usize) -> Result<String> {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * count);
    for byte in random(count)? {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// A layer's short name: 26 characters of base32, as Docker makes them.
pub(super) fn random_link() -> Result<String> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let letter = |byte: u8| char::from(ALPHABET[usize::from(byte % 32)]);
    Ok(random(26)?.into_iter().map(letter).collect())
}

fn random(count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let flags = rustix::rand::GetRandomFlags::empty();
    // Never short for so few bytes (getrandom(2)).
    match rustix::rand::getrandom(&mut bytes[..], flags) {
        Ok(got) if got == count => Ok(bytes),
        Ok(_) => Err(Error::io("read", Path::new("random bytes"), Errno::IO)),
        Err(errno) => Err(Error::io("read", Path::new("random bytes"), errno)),
    }
}
