//! A file that gets its name only when it is complete.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustix::fs::{AtFlags, Mode, OFlags};

use super::outside_helper::Outside;
use unionfs::store::Places;
use unionfs::sys::interrupt;
use unionfs::sys::walk::{self, Trust};

/// A writer that fails when a signal ends the command, so that the file is removed.
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

/// The output of a command, opened before the sandbox is entered.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    file: File,
    /// A device or a pipe, which has its name already.
    is_special: bool,
    outside: Arc<Outside>,
}

impl Output {
    /// Opens a file that gets its name when it is complete. A device or a pipe is written to
    /// directly.
    ///
    /// The name may be in a directory that others write to, such as /tmp. The file is therefore a
    /// new one beside its place, and a file in that place is replaced, never written to. Root
    /// writes to no device or pipe, and through no symlink, that another user could have put there.
    ///
    /// With `places`, mounts of layers in them can be flushed.
    pub(super) fn open(path: &Path, places: Option<&Places>) -> anyhow::Result<Self> {
        let failed = || format!("cannot write {path:?}");
        let (dir, name) = walk::open_parent(path, Trust::of_root()).with_context(failed)?;
        let is_special = is_descriptor(path) || path.metadata().is_ok_and(|meta| !meta.is_file());
        let (file, temporary) = if is_special {
            walk::require_own_name(dir.as_fd(), &name, Trust::of_root()).with_context(failed)?;
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&dir, &name, flags, Mode::empty());
            (file.map(File::from).with_context(failed)?, None)
        } else {
            let (temporary, file) = Temporary::beside(dir, name).with_context(failed)?;
            (file, Some(temporary))
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            is_special,
            outside: Outside::start(temporary, places).context("cannot start a process")?,
        })
    }

    /// Writes to standard output.
    pub(super) fn standard() -> anyhow::Result<Self> {
        let stdout = io::stdout();
        let file = stdout.as_fd().try_clone_to_owned();
        Ok(Self {
            path: "-".into(),
            file: file.context("cannot write to standard output")?.into(),
            is_special: true,
            outside: Outside::start(None, None).context("cannot start a process")?,
        })
    }

    /// The process outside.
    pub(super) fn outside(&self) -> &Arc<Outside> {
        &self.outside
    }

    /// Calls `write` with the file, then gives the file its name.
    pub(super) fn write(
        self,
        write: impl FnOnce(&mut BufWriter<Ending>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let failed = || format!("cannot write {:?}", self.path);
        let _at_work = interrupt::begin()?;
        let mut out = BufWriter::new(Ending(self.file.try_clone().with_context(failed)?));
        write(&mut out)?;
        let file = out.into_inner().map_err(|e| e.into_error());
        let file = file.with_context(failed)?;
        if !self.is_special {
            file.0.sync_all().with_context(failed)?;
            self.outside.publish().with_context(failed)?;
        }
        Ok(())
    }
}

/// Whether a path leads to an open descriptor, as /dev/stdout does. Then no file can take the place
/// of that name.
fn is_descriptor(path: &Path) -> bool {
    let mut path = path.to_owned();
    for _ in 0..8 {
        let above = match path.parent() {
            Some(above) if !above.as_os_str().is_empty() => above.to_owned(),
            _ => PathBuf::from("."),
        };
        let kind = rustix::fs::statfs(&above).map(|stat| stat.f_type);
        if kind.is_ok_and(|kind| kind == rustix::fs::PROC_SUPER_MAGIC) {
            return true;
        }
        match std::fs::read_link(&path) {
            Ok(target) => path = above.join(target),
            Err(_) => return false,
        }
    }
    false
}

impl Drop for Output {
    fn drop(&mut self) {
        // The failure that led here is reported.
        let _ = self.outside.discard();
    }
}

/// A file with a temporary name. It is removed unless it gets its real name.
#[derive(Debug)]
pub(super) struct Temporary {
    dir: OwnedFd,
    /// `None`: another process removes it.
    temporary: Option<String>,
    name: OsString,
}

impl Temporary {
    fn beside(dir: OwnedFd, name: OsString) -> io::Result<(Self, File)> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let temporary = format!(".unionfs-{:016x}", u64::from_ne_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, &*temporary, flags, Mode::from_raw_mode(0o666))?;
        Ok((Self::again(dir, temporary, name), File::from(file)))
    }

    /// Returns the directory that contains it.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns its name and its real name, for another process that has the directory.
    pub(super) fn into_names(mut self) -> (String, OsString) {
        let temporary = self.temporary.take().unwrap_or_default();
        (temporary, std::mem::take(&mut self.name))
    }

    /// Takes the file with these names.
    pub(super) fn again(dir: OwnedFd, temporary: String, name: OsString) -> Self {
        Self {
            dir,
            temporary: Some(temporary),
            name,
        }
    }

    /// Gives it its real name.
    pub(super) fn persist(mut self) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            rustix::fs::renameat(&self.dir, &**temporary, &self.dir, &self.name)?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The failure that led here is reported.
            let _ = rustix::fs::unlinkat(&self.dir, &**temporary, AtFlags::empty());
        }
    }
}
