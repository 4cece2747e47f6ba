//! `unionfs export`: a tree as one flat tar. Called by `cli::main`.

use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::error::Usage;
use super::{open_stores, own};
use crate::changes::{self, Tree};
use crate::layer::StackSpec;
use crate::store::{Error, Stores};

/// Write the files of a container, named layer or image as a tar
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs export web -o web.tar
  unionfs export myapp:2 | tar -t

A name is first looked for among named layers and containers, then among images. It may be
mounted meanwhile; what is written during the export may be in it or not. Sockets are left
out: a tar has none.")]
pub(super) struct Args {
    /// Name, ID or start of an ID
    name: String,
    /// Write to this file, which appears when it is complete [default: standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let stdout = io::stdout().lock();
    if args.output.is_none() && stdout.is_terminal() {
        return Err(Usage("a tar is not for a terminal: give -o FILE or a pipe".into()).into());
    }
    let tree = Tree::open(&stack(&open_stores(root)?, &args.name)?)?;
    let Some(path) = &args.output else {
        return match tree.pack_all(BufWriter::new(stdout)) {
            // Whoever reads the pipe has seen enough.
            Err(changes::Error::Write { source, .. })
                if source.kind() == io::ErrorKind::BrokenPipe =>
            {
                Ok(())
            }
            other => Ok(other?),
        };
    };
    write_file(path, |out| Ok(tree.pack_all(out)?))
}

/// What the name means: a container, else an image.
fn stack(stores: &Stores, name: &str) -> anyhow::Result<StackSpec> {
    match stores.container(name) {
        Ok(container) => {
            own::flush(&container)?;
            Ok(container.observed_stack())
        }
        Err(Error::UnknownContainer { .. }) => Ok(StackSpec {
            lowers: stores.find(name)?.stack()?,
            data_only: Vec::new(),
            upper: None,
        }),
        Err(error) => Err(error.into()),
    }
}

/// Writes a file that gets its name when it is complete. A device or a pipe is written to.
fn write_file(
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
        .prefix(".unionfs-export-")
        .permissions(mode)
        .tempfile_in(dir.unwrap_or(Path::new(".")))
        .with_context(failed)?;
    let (file, temp) = temp.into_parts();
    let mut out = BufWriter::new(file);
    write(&mut out)?;
    out.flush().with_context(failed)?;
    temp.persist(path).map_err(|e| e.error).with_context(failed)
}
