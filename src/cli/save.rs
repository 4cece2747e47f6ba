//! `unionfs save` writes images to an archive.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use super::archive_names;
use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::output_file::Output;
use super::pool::PoolArgs;
use super::progress::{ProgressArgs, verb};
use unionfs::archive::{self, Format, Outgoing, save};
use unionfs::oci::Reference;
use unionfs::store::{ImageName, Stores};

/// Save images to an archive
///
/// Each layer is rebuilt byte for byte and checked against its digest. Images of every store can
/// be saved, including those of Docker and podman. Of an index with several platforms, the image
/// for this machine is saved. With --all, the index and all its images are copied as they are, where
/// they are kept: in the own store (pull --all, load --all), containerd's stores, OCI layouts and
/// registries (docker://NAME).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs save myapp:2 -o myapp.tar
  unionfs save myapp:2 | docker load
  unionfs save myapp:2 --format oci | zstd > myapp.oci.tar.zst")]
pub(super) struct Args {
    /// The images: names, IDs or ID prefixes
    #[arg(required = true, add = candidates::images())]
    images: Vec<String>,
    /// Write to this file; it appears when it is complete [default: -, standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Save one image as an OCI layout, with the index and the images for all platforms
    #[arg(long, conflicts_with_all = ["format", "pool_data", "pool_metadata"])]
    all: bool,
    /// docker: for docker load and podman load, and an OCI layout too; oci: an OCI layout only
    #[arg(long, value_enum, default_value = "docker")]
    format: Kind,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pool: PoolArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    Docker,
    Oci,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    if args.all {
        return super::again(copy_of_index(args)?, root);
    }
    let stdout = io::stdout();
    let output = args.output.as_deref().filter(|o| *o != Path::new("-"));
    if output.is_none() && stdout.is_terminal() {
        let what = "an archive is not for a terminal: give -o FILE or a pipe";
        return Err(Usage(what.into()).into());
    }
    let names = archive_names::resolve_all(&args.images, &args.sandbox, root)?;
    let mut cage = args.sandbox.cage("save")?.moves_images();
    let texts: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut places = cage.stores(root, &texts)?;
    args.pool.open(&mut places)?;
    let output = output.map(|path| Output::open(path, None)).transpose()?;
    let stores = cage.enter_with_stores(places)?;
    let images = outgoing(&stores, &names)?;
    let format = match args.format {
        Kind::Docker => Format::Docker,
        Kind::Oci => Format::Oci,
    };
    let layers = args.progress.items(verb("saving", "saved"));
    let write = |out: &mut dyn Write| save(&images, format, out, &|step| layers.show(step));
    match output {
        Some(output) => output.write(|out| Ok(write(out)?)),
        None => match write(&mut BufWriter::new(stdout.lock())) {
            // The reader of the pipe has closed it.
            Err(archive::Error::Write(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        },
    }
}

/// Returns the command that copies an index with all its images.
fn copy_of_index(args: &Args) -> Result<Vec<String>, Usage> {
    let [image] = args.images.as_slice() else {
        return Err(Usage("--all saves one image: call it for each".to_owned()));
    };
    let path = args.output.as_deref().unwrap_or(Path::new("-")).to_str();
    let path = path.filter(|path| !path.contains(':')).ok_or_else(|| {
        Usage("--all: the path of the archive must be UTF-8 text without a colon".to_owned())
    })?;
    let mut words = vec![
        "copy".to_owned(),
        "--all".to_owned(),
        image.clone(),
        format!("oci-archive:{path}"),
    ];
    words.extend(args.progress.word());
    words.extend(args.sandbox.word());
    Ok(words)
}

/// Returns the images, each once, with the names by which they were asked for.
fn outgoing<'s>(stores: &'s Stores, texts: &[String]) -> anyhow::Result<Vec<Outgoing<'s>>> {
    let mut images: Vec<Outgoing<'s>> = Vec::new();
    for text in texts {
        let (store, id) = stores.locate(text)?;
        let image = store.image(&id)?;
        let name = Reference::parse(ImageName::parse(text)?.name()).ok();
        let name = name.filter(|n| n.digest().is_none() && image.names.iter().any(|i| i.is(n)));
        match images.iter_mut().find(|o| o.image.id == id) {
            Some(known) => known.names.extend(name),
            None => images.push(Outgoing::new(store, image, name.into_iter().collect())),
        }
    }
    Ok(images)
}
