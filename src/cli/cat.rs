//! `unionfs cat` prints files of an image, container or layer without a mount.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;

use super::archive_names;
use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::ls::report;
use super::named_tree::{self, Opening};
use unionfs::changes::{LastLink, Tree};
use unionfs::union::FileKind;

/// Print files of an image, container or layer, without a mount
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs cat myapp:2 /etc/os-release
  unionfs cat myapp:2:/etc/passwd | cut -d: -f1

NAME is as for unionfs ls. Symlinks are followed within the image. The bytes are printed as they are,
also on a terminal.")]
pub(super) struct Args {
    /// The image, container or layer, and paths in it
    #[arg(value_name = "NAME[:/PATH] [PATH]", required = true, add = candidates::trees())]
    operands: Vec<OsString>,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let (name, paths) = named_tree::operands(&args.operands)?;
    if paths.is_empty() {
        return Err(Usage(format!("a path is missing: unionfs cat {name} /PATH")).into());
    }
    let resolved = archive_names::resolve(&name, &args.sandbox, root)?;
    let trees = Opening::prepare("cat", &args.sandbox, root, &[&*resolved])?.enter()?;
    let tree = trees.open_with_files(&resolved)?;
    let mut failed = None;
    for path in &paths {
        match copy(&tree, path) {
            Ok(Reader::Reads) => {}
            Ok(Reader::Gone) => return Ok(()),
            Err(error) => failed = report(failed, error.context(format!("cannot read {name}"))),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// The reader of the output.
enum Reader {
    Reads,
    /// It has closed the pipe.
    Gone,
}

fn copy(tree: &Tree, path: &[u8]) -> anyhow::Result<Reader> {
    let file = tree.find(path, LastLink::Follow)?;
    let kind = file.attr().kind;
    anyhow::ensure!(
        kind == FileKind::Regular,
        "{:?}: it is a {kind}, not a file",
        String::from_utf8_lossy(path)
    );
    let mut out = io::stdout().lock();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        let read = file.read(offset, &mut buffer)?;
        if read == 0 {
            return Ok(Reader::Reads);
        }
        match out.write_all(&buffer[..read]).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Reader::Gone),
            written => written.context("cannot write to standard output")?,
        }
        offset += read as u64;
    }
}
