//! A file that has its name only when it is complete. Called by `export` and `save`.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;

/// Writes a file that gets its name when it is complete. A device or a pipe is written to.
pub(super) fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<std::fs::File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let failed = || format!("cannot write {path:?}");
    if path.metadata().is_ok_and(|meta| !meta.is_file()) {
        let file = std::fs::File::options().write(true).open(path);
        let mut out = BufWriter::new(file.with_context(failed)?);
        write(&mut out)?;
        return out.flush().with_context(failed);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let temp = tempfile::Builder::new()
        .prefix(".unionfs-")
        .permissions(mode)
        .tempfile_in(dir.unwrap_or(Path::new(".")))
        .with_context(failed)?;
    let (file, temp) = temp.into_parts();
    let mut out = BufWriter::new(file);
    write(&mut out)?;
    let file = out.into_inner().map_err(|e| e.into_error());
    file.and_then(|file| file.sync_all()).with_context(failed)?;
    temp.persist(path).map_err(|e| e.error).with_context(failed)
}
