//! `unionfs load` stores images of an archive in the own store.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive_policy::Verdicts;
use super::command_sandbox::{Input, SandboxArgs};
use super::error::Usage;
use super::output::{print, print_json};
use super::progress::{Json, ProgressArgs, verb};
use super::{archive_names, own_store, warn};
use unionfs::archive::{Loaded, Source, Wanted, contents, load_contents};
use unionfs::layer_tar::Limits;
use unionfs::oci::{Platform, Reference};
use unionfs::store::writable::{Exclusive, Kept, LiveMounts as _, LiveUse, Writable};

/// Load images from an archive into the own store
///
/// An archive may come from `docker save`, `podman save` or skopeo, be an OCI layout as a tar or a
/// directory, or a directory of skopeo's kind `dir:`. It may be compressed with gzip, zstd, xz or bzip2. Every digest is checked. All images of an
/// archive appear at the same time; if one of them is damaged, none appears. Several archives are
/// loaded one after the other.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs load -i myapp.tar
  unionfs load base.tar myapp.tar
  docker save myapp:2 | unionfs load
  unionfs load -i layout                      all images, named layout:TAG
  unionfs load -i layout --ref v2 --tag myapp:2
  unionfs load oci:layout:v2                  the same image, as layout:v2

In an OCI layout an image often has only a tag. Then its name is the layout's file name and that tag,
as umoci and skopeo call it (layout:v2). Signatures, SBOMs and other artifacts are left out with a
line for each.

From an index with several platforms, the image for this machine or for --platform is loaded: on
arm the newest variant that runs (v7, v6, v5), on other machines the image without a variant first.
With --all, the index and its other images are kept beside it, as unionfs pull --all does.
In the store of a plain user all files belong to that user, device nodes are empty files, and xattrs
that need root are left out; save still has them all.")]
pub(super) struct Args {
    /// The archives: files or directories, also as skopeo names them (oci:DIR:TAG, docker-archive:FILE)
    /// [default: -, standard input]
    #[arg(value_name = "ARCHIVE", conflicts_with = "input")]
    archives: Vec<PathBuf>,
    /// As ARCHIVE, as docker load has it
    #[arg(long, short = 'i', value_name = "ARCHIVE")]
    input: Option<PathBuf>,
    /// Give the image this name instead of the names in the archive; may be repeated
    #[arg(long, value_name = "NAME")]
    tag: Vec<String>,
    /// Load only the image that the archive calls so: its tag in a layout, its name, or @N, its number
    /// from 0 on; may be repeated
    #[arg(long = "ref", value_name = "REF")]
    references: Vec<String>,
    /// Check the layers that the store has already, and replace the files of damaged ones
    #[arg(long)]
    repair: bool,
    /// Load the image for this platform: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = own_store::platform)]
    platform: Option<Platform>,
    /// Also keep the images for all platforms, and the index, as pull --all does
    #[arg(long)]
    all: bool,
    /// Refuse layers and compressed archives that expand to more than this number of bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().bytes)]
    max_layer_size: u64,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    own_store::refuse_root("load", root)?;
    let names = args.tag.iter().map(|name| own_store::new_name(name));
    let names = names.collect::<anyhow::Result<Vec<_>>>()?;
    let given = args.archives.iter().chain(&args.input);
    let given = given.map(|text| Ok((archive_names::path_of(text)?, text)));
    let given = given.collect::<Result<Vec<_>, Usage>>()?;
    let mut named: Vec<_> = given
        .iter()
        .map(|((path, reference), text)| (Some(&**path), reference.clone(), Some(text)))
        .collect();
    if named.is_empty() {
        named.push((None, None, None));
    }
    let mut cage = args.sandbox.cage("load")?;
    let store = own_store::open()?;
    let typed = "an archive is not typed: give -i ARCHIVE or a pipe";
    let mut inputs = Vec::with_capacity(named.len());
    for (path, reference, text) in named {
        let references = args.references.iter().cloned();
        let input = Input::of(&mut cage, path, typed);
        inputs.push(Archive {
            references: references.chain(reference).collect(),
            repository: path.and_then(repository),
            shown: path.unwrap_or(Path::new("-")),
            verdicts: Verdicts::of(path.filter(|path| *path != Path::new("-"))),
            input: match text {
                Some(text) => input.map_err(|error| archive_names::no_archive(error, text))?,
                None => input?,
            },
        });
    }
    let (store, held) = if args.repair {
        let (store, lock, mounted) = cage.moves_images().enter_with_mounts(store)?;
        (store, Some((lock, mounted)))
    } else {
        (cage.enter_to_take_in(store)?, None)
    };
    let (locked, mounted) = match held {
        Some((lock, mounted)) => {
            let mounted: LiveUse = Arc::new(move |diff| mounted.layer(diff));
            (Some(store.locked_by(lock)?), Some(mounted))
        }
        None => (None, None),
    };
    let mut loading = Loading {
        args,
        names: &names,
        store: &store,
        locked,
        mounted,
    };
    let mut loaded = Vec::new();
    let mut failure = None;
    for archive in inputs {
        match loading.load(archive) {
            Ok(images) => loaded.extend(images),
            Err(error) => {
                // Archives before it stay loaded, and are shown.
                failure = Some(error);
                break;
            }
        }
    }
    match failure {
        Some(error) if loaded.is_empty() => return Err(error),
        _ => show(args, &loaded)?,
    }
    failure.map_or(Ok(()), Err)
}

/// One archive, opened before the sandbox is entered.
struct Archive<'p> {
    /// The repository for images that only have a tag.
    repository: Option<String>,
    shown: &'p Path,
    /// The references of the wanted images; empty for all.
    references: Vec<String>,
    /// What the signature policy says of it.
    verdicts: Verdicts,
    input: Input,
}

/// What is the same for all archives.
struct Loading<'s> {
    args: &'s Args,
    names: &'s [Reference],
    store: &'s Writable,
    /// Taken when the first archive has been opened.
    locked: Option<Exclusive<'s>>,
    mounted: Option<LiveUse>,
}

impl Loading<'_> {
    fn load(&mut self, archive: Archive<'_>) -> anyhow::Result<Vec<Loaded>> {
        let (args, store, names) = (self.args, self.store, self.names);
        let tmp = store.staging();
        let limits = Limits {
            bytes: args.max_layer_size,
            ..Limits::default()
        };
        let source = match archive.input {
            Input::At(place) => Source::open_as(&place, archive.shown, &tmp, limits.bytes)?,
            Input::Open(file) => Source::of_file(file, archive.shown, &tmp, limits.bytes)?,
            Input::Stdin => Source::from_reader(std::io::stdin(), &tmp, limits.bytes)?,
        };
        archive.verdicts.require(&source)?;
        let layers = args
            .progress
            .items_beside(Json::of(args.json), verb("extracting", "loaded"));
        let locked = match &self.locked {
            Some(locked) => locked,
            None => self.locked.insert(own_store::lock(store)?),
        };
        let mut wanted = Wanted::default();
        wanted.limits = limits;
        wanted.platform = args.platform.as_ref();
        wanted.references = &archive.references;
        wanted.repository = archive.repository.as_deref();
        wanted.whole = args.all;
        let contents = contents(&source, &wanted)?;
        for artifact in &contents.artifacts {
            warn(format_args!("{artifact} is no image and left out"));
        }
        let nameless = contents
            .images
            .iter()
            .filter(|image| image.names.is_empty());
        let tags = nameless
            .filter(|_| names.is_empty())
            .flat_map(|image| &image.references);
        let tags: Vec<String> = tags.cloned().collect();
        if let Some(mounted) = &self.mounted {
            // Images share layers.
            let mut checked = HashSet::new();
            for image in &contents.images {
                let damaged = store.damaged_layers(&image.diff_ids, &mut checked)?;
                locked.distrust(damaged, Arc::clone(mounted))?;
            }
        }
        let loaded = load_contents(locked, &source, contents, names, &limits, &|step| {
            layers.show(step);
        })?;
        for tag in tags {
            warn(format_args!(
                "the image with the tag {tag:?} got no name: give it one with --ref {tag} --tag NAME"
            ));
        }
        Ok(loaded)
    }
}

fn show(args: &Args, loaded: &[Loaded]) -> anyhow::Result<()> {
    let lost: u64 = loaded.iter().map(|image| image.lost_xattrs).sum();
    if lost > 0 {
        warn(format_args!(
            "{lost} extended attributes could not be set, which need root or another file \
             system; `unionfs save` still has them"
        ));
    }
    warn_of_devices(loaded.iter().map(|image| image.kept_devices).sum());
    if args.json {
        return print_json(&loaded);
    }
    let mut text = String::new();
    for image in loaded {
        for layer in &image.repaired_layers {
            text += &format!("Repaired layer: {layer}\n");
        }
        text += &image.kept.as_ref().map_or_else(String::new, whole);
        for name in &image.names {
            text += &format!("Loaded image: {name}\n");
        }
        if image.names.is_empty() {
            text += &format!("Loaded image ID: {}\n", image.id);
        }
    }
    print(&text)
}

/// Says what is kept whole of a name.
pub(super) fn whole(kept: &Kept) -> String {
    let images = match kept.images {
        1 => "1 image".to_owned(),
        count => format!("{count} images"),
    };
    let missing = match kept.missing {
        0 => String::new(),
        count => format!("; {count} more of its index were not there"),
    };
    format!("Kept whole: {} with {images}{missing}\n", kept.digest)
}

/// Warns that device nodes are stored as files.
pub(super) fn warn_of_devices(count: u64) {
    let what = match count {
        0 => return,
        1 => "1 device node is kept as an empty file".to_owned(),
        count => format!("{count} device nodes are kept as empty files"),
    };
    warn(format_args!(
        "{what}: only root can make device nodes; `unionfs save` still has them"
    ));
}

/// Returns the repository for images that only have a tag: the name of the archive without its
/// suffix.
fn repository(archive: &Path) -> Option<String> {
    // The names `.` and `..` give no repository.
    let full = archive.canonicalize().ok()?;
    let name = full.file_name()?.to_str()?.to_ascii_lowercase();
    let kinds = [".gz", ".zst", ".xz", ".bz2", ".tar", ".tgz", ".oci"];
    let mut stem = name.as_str();
    while let Some(shorter) = kinds.iter().find_map(|kind| stem.strip_suffix(kind)) {
        stem = shorter;
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let text: String = stem
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .collect();
    let text = text.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    (!text.is_empty()).then(|| text.to_owned())
}
