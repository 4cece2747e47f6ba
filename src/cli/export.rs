//! `unionfs export`: a tree as one flat tar. Called by `cli::main`.

use std::io::{self, BufWriter, IsTerminal as _};
use std::path::{Path, PathBuf};

use super::error::Usage;
use super::transfer::Transfer;
use super::whole_file::write_file;
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
    /// Show no progress
    #[arg(long, short = 'q')]
    quiet: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let stdout = io::stdout().lock();
    if args.output.is_none() && stdout.is_terminal() {
        return Err(Usage("a tar is not for a terminal: give -o FILE or a pipe".into()).into());
    }
    let tree = Tree::open(&stack(&open_stores(root)?, &args.name)?)?;
    let transfer = Transfer::new(args.quiet, "exported");
    transfer.begin(&args.name, None);
    let Some(path) = &args.output else {
        let out = BufWriter::new(transfer.counted(stdout));
        match tree.pack_all(out) {
            // Whoever reads the pipe has seen enough.
            Err(changes::Error::Write { source, .. })
                if source.kind() == io::ErrorKind::BrokenPipe =>
            {
                return Ok(());
            }
            other => other?,
        }
        transfer.done(None);
        return Ok(());
    };
    write_file(path, |out| Ok(tree.pack_all(transfer.counted(out))?))?;
    transfer.done(None);
    Ok(())
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
