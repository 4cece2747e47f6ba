//! `unionfs import`: a root file system as an image of our own store. Called by `cli::main`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::error::Usage;
use super::output::{print, print_json};
use super::own;
use crate::changes::{self, Tree};
use crate::layer::{Dialect, LayerSpec, StackSpec};
use crate::store::Digest;
use crate::store::archive::{self, Import};
use crate::store::derive::Derivation;
use crate::store::tarball::Limits;
use crate::store::writable::Exclusive;

/// Bytes the pipe between packing and unpacking is written by.
const CHUNK: usize = 256 << 10;

/// Make an image of one layer from a root file system
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs import rootfs.tar.gz mybase:1
  unionfs import /srv/rootfs mybase:1 --change 'CMD [\"/bin/sh\"]'
  docker export web | unionfs import - web:flat

The image's ID is printed. --change takes the Dockerfile's CMD, ENTRYPOINT, ENV, LABEL, EXPOSE,
VOLUME, USER, WORKDIR, STOPSIGNAL and ONBUILD.")]
pub(super) struct Args {
    /// A tar, compressed or not, a directory, or - for standard input
    rootfs: PathBuf,
    /// The image's name: name[:tag]
    image: String,
    /// Say what it is
    #[arg(long, short = 'm', value_name = "TEXT")]
    message: Option<String>,
    /// Apply a Dockerfile instruction to the configuration; may be repeated
    #[arg(long, short = 'c', value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let name = own::new_name(&args.image)?;
    let from = match args.rootfs == Path::new("-") {
        true => "standard input".to_owned(),
        false => format!("{:?}", args.rootfs),
    };
    let comment = format!("Imported from {}", from.trim_matches('"'));
    let derivation = Derivation {
        author: None,
        comment: Some(args.message.clone().unwrap_or(comment)),
        created_by: String::new(),
        changes: args.change.clone(),
    };
    let import = Import {
        from: &from,
        name: Some(&name),
        derivation: &derivation,
        limits: Limits::default(),
    };
    let store = own::open(root)?;
    let store = own::lock(&store)?;
    let id = if args.rootfs.is_dir() {
        from_directory(&store, &args.rootfs, &import)?
    } else {
        take(&store, open(&args.rootfs)?, &import)?
    };
    match args.json {
        true => print_json(&serde_json::json!({"id": id, "name": name.key()})),
        false => print(&format!("{id}\n")),
    }
}

fn open(path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    if path != Path::new("-") {
        let file = File::open(path).with_context(|| format!("cannot open {path:?}"))?;
        return Ok(Box::new(file));
    }
    if std::io::stdin().is_terminal() {
        return Err(Usage("a tar is not typed: give a file or a pipe".into()).into());
    }
    Ok(Box::new(std::io::stdin()))
}

fn take(
    store: &Exclusive<'_>,
    input: impl Read + Send + 'static,
    import: &Import<'_>,
) -> anyhow::Result<Digest> {
    Ok(archive::import(store, input, import)?)
}

/// Packs the directory as if it were the only layer, and takes that tar in, both at once.
fn from_directory(
    store: &Exclusive<'_>,
    dir: &Path,
    import: &Import<'_>,
) -> anyhow::Result<Digest> {
    let absolute = dir
        .canonicalize()
        .with_context(|| format!("cannot open {dir:?}"))?;
    let tree = Tree::open(&StackSpec {
        lowers: vec![LayerSpec {
            path: absolute,
            // Files called .wh.x and device 0:0 are what they are.
            dialect: Dialect::KERNEL,
        }],
        data_only: Vec::new(),
        upper: None,
    })?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let (packed, taken) = std::thread::scope(|scope| {
        let packing = scope.spawn(move || tree.pack_all(BufWriter::with_capacity(CHUNK, writer)));
        let taken = take(store, reader, import);
        (packing.join(), taken)
    });
    match (packed, taken) {
        (Err(_), _) => bail!("packing {dir:?} failed: please report this with UNIONFS_LOG=debug"),
        // The reader went away first: its error is the cause.
        (Ok(Err(changes::Error::Write { .. })), Err(error)) => Err(error),
        (Ok(Err(error)), taken) => {
            // What was taken in is half of it.
            if let (Ok(id), Some(name)) = (taken, import.name) {
                store.untag(name)?;
                store.remove_image(&id, &|_| None)?;
            }
            Err(error.into())
        }
        (Ok(Ok(())), taken) => taken,
    }
}
