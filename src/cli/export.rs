//! `unionfs export` writes a tree as one flat tar.

use std::io::{self, BufWriter, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;

use super::archive_names;
use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::output_file::Output;
use super::outside_helper::Outside;
use super::progress::{ProgressArgs, verb};
use unionfs::changes::{self, Tree};
use unionfs::layer::StackSpec;
use unionfs::store::{Error, Stores};

/// Export the files of a container, named layer or image as a tar
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs export web -o web.tar
  unionfs export myapp:2 | tar -t

A name is searched first among named layers and containers, then among images. The layer may be
mounted; changes that are made during the export may be missing. Sockets are left out, since a tar
cannot contain them.")]
pub(super) struct Args {
    /// The container, named layer or image: name, ID or ID prefix
    #[arg(add = candidates::trees())]
    name: String,
    /// Write to this file; it appears when it is complete [default: standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let stdout = io::stdout().lock();
    if args.output.is_none() && stdout.is_terminal() {
        return Err(Usage("a tar is not for a terminal: give -o FILE or a pipe".into()).into());
    }
    let name = archive_names::resolve(&args.name, &args.sandbox, root)?;
    let mut cage = args.sandbox.cage("export")?.moves_images();
    let places = cage.stores_of_containers(root, &[&*name])?;
    let path = args.output.as_deref();
    let output = path.map(|path| Output::open(path, Some(&places)));
    let output = output.transpose()?;
    let outside = match &output {
        Some(output) => Arc::clone(output.outside()),
        None => Outside::start(None, Some(&places)).context("cannot start a process")?,
    };
    let stores = cage.enter_with_stores(places)?;
    let stack = stack(&stores, &name, &outside)?;
    // `None`: an image without layers.
    let tree = stack
        .dirs()
        .next()
        .map(|_| Tree::open(&stack))
        .transpose()?;
    if let Some(tree) = &tree {
        tree.find_origins_by(&outside.finder());
    }
    let pack = |out: &mut dyn io::Write| match &tree {
        Some(tree) => tree.pack_all(out),
        None => changes::pack_nothing(out),
    };
    let tar = args
        .progress
        .items(verb("exporting", "exported"))
        .begin(&args.name, None);
    let Some(output) = output else {
        let mut out = BufWriter::new(tar.counted(stdout));
        match pack(&mut out) {
            // The reader of the pipe has closed it.
            Err(changes::Error::Write { source, .. })
                if source.kind() == io::ErrorKind::BrokenPipe =>
            {
                return Ok(());
            }
            other => other?,
        }
        tar.done();
        return Ok(());
    };
    output.write(|out| Ok(pack(&mut tar.counted(out))?))?;
    tar.done();
    Ok(())
}

/// Finds the container with this name, else the image.
fn stack(stores: &Stores, name: &str, outside: &Outside) -> anyhow::Result<StackSpec> {
    match stores.container(name) {
        Ok(container) => {
            outside.flush(&container)?;
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
