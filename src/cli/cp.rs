//! `unionfs cp` copies files out of an image, container or layer without a mount.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, IsTerminal as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::archive_names;
use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::cp_target::{Owners, Target};
use super::error::Usage;
use super::named_tree::{InTree, Opening};
use super::progress::{ON_TERMINAL, ProgressArgs, Unit, Work, verb};
use unionfs::changes::{self, LastLink, Node, Tree};
use unionfs::progress::Counted;
use unionfs::union::FileKind;

/// Copy files out of an image, container or layer, without a mount
#[derive(Debug, clap::Args)]
#[command(mut_arg("progress", |arg| arg.help(ON_TERMINAL)), after_help = "\
Examples:
  unionfs cp myapp:2:/etc/os-release .
  unionfs cp -a myapp:2:/srv/. /tmp/srv
  unionfs cp web:/etc - | tar -t

SOURCE and DESTINATION mean what they mean to docker cp: a directory is copied into a directory that
exists, and else gets the name of DESTINATION; with /. at its end only its content is copied. A
symlink is copied as a symlink, except with -L. Symlinks on the path of SOURCE are followed within
the image. With - as DESTINATION, a tar goes to standard output.

Copies belong to the caller, and have the modes and times of the originals. With --archive they have
their owners, set-id bits and file capabilities too, as far as the caller may give them, and root
makes device nodes. Without it set-id bits are dropped and devices left out, unlike by docker cp:
they would act for the caller, on this system. Sockets are always left out.

A file appears under its name when it is complete, and replaces the file or symlink that has the
name. Symlinks in DESTINATION are never followed, except on the path that is given.")]
pub(super) struct Args {
    /// The file or directory
    #[arg(value_name = "NAME:/PATH", add = candidates::trees())]
    source: OsString,
    /// Where to copy it to, or - for a tar on standard output
    destination: PathBuf,
    /// Keep owners, set-id bits and file capabilities
    #[arg(long, short = 'a')]
    archive: bool,
    /// Follow a symlink that is the last name of SOURCE
    #[arg(long, short = 'L')]
    follow_link: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let InTree { name, path } = InTree::parse(&args.source)?;
    let Some(path) = path else {
        let text = format!(
            "{:?} names no file in an image: unionfs cp NAME:/PATH DESTINATION copies out of one",
            args.source
        );
        return Err(Usage(text).into());
    };
    let to_tar = args.destination == Path::new("-");
    if to_tar && io::stdout().is_terminal() {
        return Err(Usage("a tar is not for a terminal: give a directory or a pipe".into()).into());
    }
    let resolved = archive_names::resolve(&name, &args.sandbox, root)?;
    let mut opening = Opening::prepare("cp", &args.sandbox, root, &[&*resolved])?;
    opening.cage = opening.cage.moves_images();
    let target = if to_tar {
        None
    } else {
        Some(Target::prepare(&mut opening.cage, &args.destination)?)
    };
    let trees = opening.enter()?;
    let tree = trees.open_with_files(&resolved)?;
    let last = if args.follow_link {
        LastLink::Follow
    } else {
        LastLink::Keep
    };
    let failed = || format!("cannot copy from {name}");
    let node = tree.find(&path, last).with_context(failed)?;
    let what = args.source.to_string_lossy();
    let work = (args.progress).work_on(&what, Unit::Bytes, verb("copying", "copied"));
    let Some(target) = target else {
        return tar(&tree, node, &path, work);
    };
    let owners = if args.archive {
        Owners::Kept
    } else {
        Owners::Caller
    };
    let place = target.place(&node, &path)?;
    place
        .copy(node, owners, &|count| work.advance(count))
        .with_context(failed)?;
    work.done();
    Ok(())
}

/// Returns the name of the copy: the last name of the path, as it was written; `None` for the
/// content of a directory.
pub(super) fn copy_name<'p>(path: &'p [u8], node: &Node<'_>) -> Option<&'p OsStr> {
    if node.attr().kind == FileKind::Directory && (path.ends_with(b"/.") || path == b".") {
        return None;
    }
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let name = path.rsplit(|byte| *byte == b'/').next();
    let name = name.filter(|name| !matches!(name, [] | [b'.'] | [b'.', b'.']));
    name.map(OsStr::from_bytes)
}

fn tar(tree: &Tree, node: Node<'_>, path: &[u8], work: Work) -> anyhow::Result<()> {
    let name = copy_name(path, &node).map_or(&b""[..], OsStr::as_bytes);
    let out = BufWriter::new(io::stdout().lock());
    let mut out = Counted::new(out, |count| work.advance(count));
    match tree.pack_below(node, name, &mut out) {
        // The reader of the pipe has closed it.
        Err(changes::Error::Write { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            Ok(())
        }
        packed => {
            packed?;
            drop(out);
            work.done();
            Ok(())
        }
    }
}
