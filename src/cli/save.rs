//! `unionfs save`: images as an archive. Called by `cli::main`.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use super::error::Usage;
use super::open_stores;
use super::transfer::Transfer;
use super::whole_file::write_file;
use crate::store::archive::{ArchiveError, Format, Outgoing, save};
use crate::store::{Error, Reference, Stores};

/// Write images as an archive
///
/// Layers are byte for byte what once came in; each is checked on the way. Images of every store
/// can be saved, Docker's and podman's too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs save myapp:2 -o myapp.tar
  unionfs save myapp:2 | docker load
  unionfs save myapp:2 --format oci | zstd > myapp.oci.tar.zst")]
pub(super) struct Args {
    /// The images: names, IDs or starts of IDs
    #[arg(required = true)]
    images: Vec<String>,
    /// Write to this file, which appears when it is complete [default: -, standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// docker: for docker load and podman load, an OCI layout as well; oci: only that
    #[arg(long, value_enum, default_value = "docker")]
    format: Kind,
    /// Show no progress
    #[arg(long, short = 'q')]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    Docker,
    Oci,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let stdout = io::stdout();
    let output = args.output.as_deref().filter(|o| *o != Path::new("-"));
    if output.is_none() && stdout.is_terminal() {
        let what = "an archive is not for a terminal: give -o FILE or a pipe";
        return Err(Usage(what.into()).into());
    }
    let stores = open_stores(root)?;
    let images = outgoing(&stores, &args.images)?;
    let format = match args.format {
        Kind::Docker => Format::Docker,
        Kind::Oci => Format::Oci,
    };
    let transfer = Transfer::new(args.quiet, "saved");
    let write = |out: &mut dyn Write| save(&images, format, out, &|step| transfer.show(step));
    match output {
        Some(path) => write_file(path, |out| Ok(write(out)?)),
        None => match write(&mut BufWriter::new(stdout.lock())) {
            // Whoever reads the pipe has seen enough.
            Err(Error::Archive(ArchiveError::Write(e)))
                if e.kind() == io::ErrorKind::BrokenPipe =>
            {
                Ok(())
            }
            other => Ok(other?),
        },
    }
}

/// The images meant, each once, with the names they were asked for by.
fn outgoing<'s>(stores: &'s Stores, texts: &[String]) -> anyhow::Result<Vec<Outgoing<'s>>> {
    let mut images: Vec<Outgoing<'s>> = Vec::new();
    for text in texts {
        let (store, id) = stores.locate(text)?;
        let image = store.image(&id)?;
        let name = Reference::parse(text).ok();
        let name = name.filter(|n| n.digest().is_none() && image.names.iter().any(|i| i.is(n)));
        match images.iter_mut().find(|o| o.image.id == id) {
            Some(known) => known.names.extend(name),
            None => images.push(Outgoing {
                store,
                image,
                names: name.into_iter().collect(),
            }),
        }
    }
    Ok(images)
}
