//! A file that has its name only when it is complete. Called by `export` and `save`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::store::interrupt;
use crate::sys::walk::{self, Trust};

/// A file that fails when a signal ends the command, so that it is removed.
pub(super) struct Ending(File);

impl Write for Ending {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        interrupt::check()?;
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes a file that gets its name when it is complete. A device or a pipe is written to.
///
/// The name may be in a directory that others write to, such as /tmp: the file is a new one, beside
/// its place, and what is in that place is replaced, never written through. Root writes to no
/// device or pipe, and through no symlink, that another user could have put there.
pub(super) fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<Ending>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let failed = || format!("cannot write {path:?}");
    let (dir, name) = walk::open_parent(path, Trust::of_root()).with_context(failed)?;
    if path.metadata().is_ok_and(|meta| !meta.is_file()) {
        walk::require_own_name(dir.as_fd(), &name, Trust::of_root()).with_context(failed)?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, &name, flags, Mode::empty());
        let mut out = BufWriter::new(Ending(file.map(File::from).with_context(failed)?));
        write(&mut out)?;
        return out.flush().with_context(failed);
    }
    let _at_work = interrupt::begin()?;
    let (temp, file) = Temporary::beside(dir).with_context(failed)?;
    let mut out = BufWriter::new(Ending(file));
    write(&mut out)?;
    let file = out.into_inner().map_err(|e| e.into_error());
    file.and_then(|file| file.0.sync_all())
        .with_context(failed)?;
    temp.persist(&name).with_context(failed)
}

/// A file under a name of its own, which is removed unless it gets its real one.
struct Temporary {
    dir: OwnedFd,
    name: Option<String>,
}

impl Temporary {
    fn beside(dir: OwnedFd) -> io::Result<(Self, File)> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let name = format!(".unionfs-{:016x}", u64::from_ne_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, &*name, flags, Mode::from_raw_mode(0o666))?;
        let name = Some(name);
        Ok((Self { dir, name }, File::from(file)))
    }

    fn persist(mut self, to: &OsStr) -> io::Result<()> {
        if let Some(name) = &self.name {
            rustix::fs::renameat(&self.dir, &**name, &self.dir, to)?;
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // The failure that led here is the one to report.
            let _ = rustix::fs::unlinkat(&self.dir, &**name, AtFlags::empty());
        }
    }
}
