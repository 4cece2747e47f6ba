//! `unionfs push` copies an image of any store to a registry.

use std::path::Path;

use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::output::{print, print_json};
use super::pool::PoolArgs;
use super::progress::{ProgressArgs, verb};
use super::registry_args::RegistryArgs;
use super::{archive_names, command_sandbox, own_store, remote_names, short_names};
use unionfs::oci::Reference;
use unionfs::registry::{LayerCompression, ManifestFormat, Purpose, PushOptions, push};
use unionfs::store::ImageName;
use unionfs::store::writable::Staging;

/// Push an image to a registry
///
/// Each layer is rebuilt, checked, and compressed to the same bytes each time. Blobs that the
/// registry has are not sent. The layers of a pulled image keep their digests. Images of every
/// store can be pushed, including those of Docker. Logins and certificates are those of unionfs
/// pull. With --all, an index and all its images are copied as they are, where they are kept: in
/// the own store (pull --all, load --all), containerd's stores and OCI layouts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs push registry.example.org/team/app:2
  unionfs push myapp:2 localhost:5000/myapp:2
  unionfs push --compression zstd myapp:2 localhost:5000/myapp:2
  unionfs push --compression zstd:chunked myapp:2 localhost:5000/myapp:2
  unionfs push --json myapp:2 localhost:5000/myapp | jq -r .digest")]
pub(super) struct Args {
    /// The image: name, ID or ID prefix
    #[arg(add = candidates::images())]
    image: String,
    /// The destination: [HOST/]NAME[:TAG] [default: the name of the image]
    destination: Option<String>,
    /// Push the index and the images for all platforms, as they are
    #[arg(
        long,
        short = 'a',
        conflicts_with_all = ["format", "compression", "compression_level", "plain_http", "pool_data", "pool_metadata"]
    )]
    all: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Media types of the manifest: docker: version 2, schema 2; oci: OCI [default: docker, with zstd oci]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Compress layers that the registry does not have with this; zstd needs the media types of OCI;
    /// podman and CRI-O pull only missing files of zstd:chunked
    #[arg(long, value_enum, default_value = "gzip")]
    compression: Compression,
    /// From 1 (fast) to 9 for gzip, to 20 for zstd (small) [default: 4 for gzip, 3 for zstd]
    #[arg(long, value_name = "LEVEL")]
    compression_level: Option<u32>,
    #[command(flatten)]
    progress: ProgressArgs,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pool: PoolArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Docker,
    Oci,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Compression {
    Gzip,
    Zstd,
    #[value(name = "zstd:chunked")]
    ZstdChunked,
}

/// How the arguments want the image: the kind of its manifest, and the compression of its layers.
fn wanted(args: &Args) -> Result<(ManifestFormat, LayerCompression), Usage> {
    let level = args.compression_level;
    let zstd_level = level
        .and_then(|level| i32::try_from(level).ok())
        .unwrap_or(3);
    let (compression, last, default) = match args.compression {
        Compression::Gzip => (
            LayerCompression::Gzip(level.unwrap_or(4)),
            9,
            Format::Docker,
        ),
        Compression::Zstd => (LayerCompression::Zstd(zstd_level), 20, Format::Oci),
        Compression::ZstdChunked => (LayerCompression::ZstdChunked(zstd_level), 20, Format::Oci),
    };
    if let Some(level) = level.filter(|level| !(1..=last).contains(level)) {
        let text = format!("--compression-level {level}: levels go from 1 to {last}");
        return Err(Usage(text));
    }
    match (args.format.unwrap_or(default), compression) {
        (Format::Docker, LayerCompression::Gzip(_)) => Ok((ManifestFormat::Docker, compression)),
        (Format::Docker, _) => Err(Usage(
            "--compression zstd needs --format oci: Docker's media types have no zstd".into(),
        )),
        (Format::Oci, _) => Ok((ManifestFormat::Oci, compression)),
    }
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let (kind, compression) = wanted(args)?;
    let name = match &args.destination {
        Some(destination) => own_store::new_name(remote_names::of_registry(destination, || {
            format!("`unionfs copy {} {destination}` writes it", args.image)
        })?)?,
        None if archive_names::is_one(&args.image) => {
            let text = format!("{:?} is in an archive: give a destination", args.image);
            return Err(Usage(text).into());
        }
        None => implied(&args.image)?,
    };
    if args.all {
        return super::again(copy_of_index(args, &name), root);
    }
    let image = archive_names::resolve(&args.image, &args.sandbox, root)?;
    let mut access = args.registry.access()?;
    let mut cage = args.sandbox.cage("push")?.moves_images();
    let mut places = cage.stores(root, &[&*image])?;
    args.pool.open(&mut places)?;
    // The given root is not a store of unionfs, as with --root of Docker: no blobs are recorded
    // there.
    let ours = own_store::existing().ok().flatten();
    access.look_up(&name, Purpose::Push)?;
    // An image that was found by its short name goes to where its own name says.
    let mut others = short_names::of(&args.image);
    others
        .retain(|other| args.destination.is_none() && access.look_up(other, Purpose::Push).is_ok());
    cage.talk()?;
    let files = args.registry.parallel * compression.files_per_layer();
    let temporary = match &ours {
        Some(_) => None,
        None => Some(Staging::of_files(files)?),
    };
    let ours = match ours {
        Some(ours) => Some(cage.enter_with_own(ours)?),
        None => {
            cage.enter()?;
            None
        }
    };
    let stores = command_sandbox::open(places)?;
    let (store, id) = stores.locate(&image)?;
    let image = store.image(&id)?;
    let has = |name: &Reference| image.names.iter().any(|known| known.is(name));
    let other = others.into_iter().find(|other| !has(&name) && has(other));
    let name = other.unwrap_or(name);
    let mut options = PushOptions::new(match (&ours, temporary) {
        (Some(ours), _) => ours.staging(),
        (None, Some(temporary)) => temporary,
        (None, None) => Staging::of_files(files)?,
    });
    options.access = access;
    (options.kind, options.compression) = (kind, compression);
    options.parallel = args.registry.parallel;
    let blobs = args.progress.items(verb("uploading", "pushed"));
    let pushed = push(store, &image, &name, &options, &|step| blobs.show(step))?;
    let noted = ours.filter(|ours| ours.root() == image.root);
    // While this process waits for the lock, it must not keep others from removing layers.
    drop(stores);
    if let Some(ours) = noted {
        pushed.note(&own_store::lock(&ours)?)?;
    }
    if args.json {
        print_json(&pushed)
    } else {
        print(&format!(
            "Digest: {}\nPushed: {}\n",
            pushed.digest, pushed.name
        ))
    }
}

/// Returns the command that copies an index with all its images.
fn copy_of_index(args: &Args, name: &Reference) -> Vec<String> {
    let mut words = vec![
        "copy".to_owned(),
        "--all".to_owned(),
        args.image.clone(),
        format!("docker://{name}"),
        format!("--parallel={}", args.registry.parallel),
    ];
    let logins = args.registry.words();
    words.extend(logins.iter().map(|word| word.replacen("--", "--dest-", 1)));
    words.extend(args.progress.word());
    words.extend(args.json.then(|| "--json".to_owned()));
    words.extend(args.sandbox.word());
    words
}

/// Returns the name of the image as the destination.
fn implied(image: &str) -> anyhow::Result<Reference> {
    use unionfs::oci::Query;
    let refused = |why: &str| Usage(format!("{image:?} {why}: give a destination"));
    match Query::parse(ImageName::parse(image)?.name())? {
        Query::Id(_) => Err(refused("is an ID").into()),
        Query::Name { reference, .. } if reference.digest().is_some() => {
            Err(refused("has a digest, which no image is pushed under").into())
        }
        Query::Name { reference, .. } => Ok(reference),
    }
}
