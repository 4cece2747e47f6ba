//! A file that has its name only when it is complete. Called by `export` and `save`.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;

use crate::store::interrupt;

/// A file that fails when a signal ends the command, so that it is removed.
pub(super) struct Ending(std::fs::File);

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
pub(super) fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<Ending>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let failed = || format!("cannot write {path:?}");
    if path.metadata().is_ok_and(|meta| !meta.is_file()) {
        let file = std::fs::File::options().write(true).open(path);
        let mut out = BufWriter::new(Ending(file.with_context(failed)?));
        write(&mut out)?;
        return out.flush().with_context(failed);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let _at_work = interrupt::begin()?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let temp = tempfile::Builder::new()
        .prefix(".unionfs-")
        .permissions(mode)
        .tempfile_in(dir.unwrap_or(Path::new(".")))
        .with_context(failed)?;
    let (file, temp) = temp.into_parts();
    let mut out = BufWriter::new(Ending(file));
    write(&mut out)?;
    let file = out.into_inner().map_err(|e| e.into_error());
    file.and_then(|file| file.0.sync_all())
        .with_context(failed)?;
    temp.persist(path).map_err(|e| e.error).with_context(failed)
}
