//! `unionfs import` makes an image of the own store from a root file system.

use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustix::fs::AtFlags;

use super::command_sandbox::{Input, SandboxArgs};
use super::error::Usage;
use super::load::warn_of_devices;
use super::progress::{Items, Json, ProgressArgs, verb};
use super::{archive_names, own_store, warn};
use unionfs::archive::{self, Import};
use unionfs::changes::Tree;
use unionfs::layer::{Dialect, LayerSpec, StackSpec};
use unionfs::oci::Digest;
use unionfs::oci::derived_config::Derivation;
use unionfs::store::writable::{Exclusive, StagedLayer};

/// Create an image with one layer from a root file system
///
/// The image and its name appear when the import is complete. An image that had the name loses it then.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs import rootfs.tar.gz mybase:1
  unionfs import /srv/rootfs mybase:1 --change 'CMD [\"/bin/sh\"]'
  docker export web | unionfs import - web:flat

The image's ID is printed. --change takes the Dockerfile's CMD, ENTRYPOINT, ENV, LABEL, EXPOSE,
VOLUME, USER, WORKDIR, STOPSIGNAL and ONBUILD.
The image's / has the mode and owner of the directory, or of the entry ./ of the tar; without that
entry it has mode 0755 and belongs to root. A mode that keeps others out is warned of.")]
pub(super) struct Args {
    /// A tar, compressed or not, a directory, or - for standard input
    rootfs: PathBuf,
    /// The image's name: name[:tag]
    image: String,
    /// Set the comment of the image
    #[arg(long, short = 'm', value_name = "TEXT")]
    message: Option<String>,
    /// Apply a Dockerfile instruction to the configuration; may be repeated
    #[arg(long, short = 'c', value_name = "INSTRUCTION")]
    change: Vec<String>,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    own_store::refuse_root("import", root)?;
    let name = own_store::new_name(&args.image)?;
    let from = if args.rootfs == Path::new("-") {
        "standard input".to_owned()
    } else {
        format!("{:?}", args.rootfs)
    };
    let comment = format!("Imported from {}", from.trim_matches('"'));
    let mut derivation = Derivation::default();
    derivation.comment = Some(args.message.clone().unwrap_or(comment));
    derivation.changes.clone_from(&args.change);
    let mut import = Import::new(&from, &derivation);
    import.name = Some(&name);
    let mut cage = args.sandbox.cage("import")?;
    let store = own_store::open()?;
    let typed = "a tar is not typed: give a file or a pipe";
    let (rootfs, _) = archive_names::path_of(&args.rootfs)?;
    if rootfs != args.rootfs {
        let text = format!("{:?} is an image: `unionfs load` takes it", args.rootfs);
        return Err(Usage(text).into());
    }
    let input = Input::of(&mut cage, Some(&args.rootfs), typed)
        .map_err(|error| archive_names::no_archive(error, &args.rootfs))?;
    let store = cage.enter_to_take_in(store)?;
    let items = args
        .progress
        .items_beside(Json::of(args.json), verb("importing", "imported"));
    let store = own_store::lock(&store)?;
    let id = match input {
        Input::At(dir) if dir.is_dir() => from_directory(&store, &dir, &import, &items)?,
        input => from_tar(&store, input, &args.rootfs, &import, &items)?,
    };
    own_store::print_made(&id, &name, args.json)
}

fn from_tar(
    store: &Exclusive<'_>,
    input: Input,
    path: &Path,
    import: &Import<'_>,
    items: &Items,
) -> anyhow::Result<Digest> {
    let file = match input {
        Input::Stdin => None,
        Input::Open(file) => Some(file),
        Input::At(place) => {
            let file = File::open(place);
            Some(file.with_context(|| format!("cannot open {path:?}"))?)
        }
    };
    let meta = file.as_ref().and_then(|file| file.metadata().ok());
    let bytes = meta.filter(Metadata::is_file).map(|meta| meta.len());
    let input: Box<dyn Read + Send> = match file {
        Some(file) => Box::new(file),
        None => Box::new(std::io::stdin()),
    };
    let item = Arc::new(items.begin(import.from, bytes));
    let passed = {
        let item = item.clone();
        move |count| item.add(count)
    };
    let (mut kept_out, mut devices) = (None, 0);
    let id = archive::import(store, import, |staged| {
        let unpacked = archive::fill_from_tar(staged, input, import, passed)?;
        warn_of_image(staged, import.from);
        kept_out = mode_for_its_owner(staged);
        devices = unpacked.kept_devices;
        Ok::<_, archive::Error>(unpacked)
    })?;
    item.done();
    warn_of_mode(kept_out);
    warn_of_devices(devices);
    Ok(id)
}

/// Packs the directory like a single layer and unpacks that tar into the store at the same time.
fn from_directory(
    store: &Exclusive<'_>,
    dir: &Path,
    import: &Import<'_>,
    items: &Items,
) -> anyhow::Result<Digest> {
    // Files called .wh.x and devices 0:0 are ordinary files here.
    let layer = LayerSpec::open(dir, Dialect::KERNEL)?;
    let tree = Tree::open(&StackSpec {
        lowers: vec![layer],
        data_only: Vec::new(),
        upper: None,
    })?;
    let item = items.begin(import.from, None);
    let pack = |out: &mut dyn Write| anyhow::Ok(tree.pack_all(out)?);
    let (mut kept_out, mut devices) = (None, 0);
    let id = archive::import(store, import, |staged| {
        let unpacked = staged.unpack_from(&import.limits, pack, |count| item.add(count))?;
        warn_of_image(staged, import.from);
        kept_out = mode_for_its_owner(staged);
        devices = unpacked.kept_devices;
        anyhow::Ok(unpacked)
    })?;
    item.done();
    warn_of_mode(kept_out);
    warn_of_devices(devices);
    Ok(id)
}

/// Returns the mode of the root directory of the layer, if other users may not enter it.
fn mode_for_its_owner(staged: &StagedLayer<'_>) -> Option<u32> {
    let dir = File::from(staged.diff().try_clone_to_owned().ok()?);
    let mode = dir.metadata().ok()?.permissions().mode() & 0o7777;
    (mode & 0o001 == 0).then_some(mode)
}

/// Warns if the root file system is rather an archive of an image, as engines and skopeo write it.
fn warn_of_image(staged: &StagedLayer<'_>, from: &str) {
    let has = |name| rustix::fs::statat(staged.diff(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if has("manifest.json") && !has("etc") || has("oci-layout") && has("index.json") {
        warn(format_args!(
            "{from} looks like an archive of an image, not like a root file system: `unionfs load` takes those"
        ));
    }
}

fn warn_of_mode(mode: Option<u32>) {
    if let Some(mode) = mode {
        warn(format_args!(
            "the image's / has mode {mode:04o}, as the root file system says: other users cannot \
             enter it; if they should, chmod 755 that directory and import it again"
        ));
    }
}
