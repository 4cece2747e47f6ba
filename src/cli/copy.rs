//! `unionfs copy` copies images between registries, layouts, archives and stores, in skopeo's spelling.
//!
//! Between registries, layouts and `dir:` directories the bytes are copied as they are. Into stores,
//! `pull` and `load` do the work, and `push` from stores to registries. All other ways of images of stores
//! and of Docker's archives lead through a layout in a file without a name (`copy_staged`): the
//! destination gets nothing before that is complete.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::command_sandbox::SandboxArgs;
use super::copy_source::OpenedSource;
use super::copy_staged;
use super::error::Usage;
use super::output::{print, print_json};
use super::output_file::Output;
use super::progress::{Json, ProgressArgs, verb};
use super::registry_args::{Connection, Credentials, at_once};
use super::{own_store, path_hints, remote_names};
use unionfs::oci::{Digest, Platform};
use unionfs::progress::Progress;
use unionfs::registry::{Copied, CopyImages, CopyTo, PARALLEL, Purpose, copy};
use unionfs::store::writable::Staging;
use unionfs::sys::walk::{self, Trust};

/// Copy an image between registries, archives and stores
///
/// Source and destination are written as for skopeo: docker://NAME is an image of a registry, oci:DIR[:TAG]
/// and oci-archive:FILE[:TAG] are OCI layouts, dir:DIR is a directory of skopeo, docker-archive:FILE is an
/// archive of Docker, and a plain NAME is an image of a store (the destination is the own store);
/// containers-storage:NAME and docker-daemon:NAME are images of the stores of podman and Docker, which are
/// only read. Each kind can be copied to each other. The path - of a destination is standard output. Between registries, layouts and directories nothing is
/// unpacked, and digests stay; but in a layout, manifests of Docker become those of OCI, with other
/// digests. Layers from stores and archives of Docker are not compressed, except on the way to a registry.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs copy --all docker://debian:12 docker://registry.example.org/mirror/debian:12
  unionfs copy docker://debian:12 oci:layout:bookworm
  unionfs copy --all oci-archive:app.tar docker://localhost:5000/app:1
  unionfs copy docker://debian:12 docker-archive:debian.tar
  unionfs copy myapp:2 oci:layout:v2
  unionfs copy myapp:2 docker://localhost:5000/myapp:2")]
pub(super) struct Args {
    /// The image
    pub(super) source: String,
    /// Its new place
    pub(super) destination: String,
    /// Copy all images of an index, and the index [default: the image for this machine]; of the stores,
    /// those of containerd keep indexes, and the own one what was pulled, loaded or copied with --all
    #[arg(long, short = 'a')]
    pub(super) all: bool,
    /// Copy the image for this platform: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = own_store::platform, conflicts_with = "all")]
    pub(super) platform: Option<Platform>,
    #[command(flatten)]
    pub(super) logins: Logins,
    /// Number of blobs that are transferred at the same time
    #[arg(long, value_name = "N", default_value_t = PARALLEL, value_parser = at_once)]
    pub(super) parallel: usize,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) sandbox: SandboxArgs,
}

/// How the registries of both ends are reached.
#[derive(Debug, clap::Args)]
pub(super) struct Logins {
    /// Use this file of logins, and no other
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Use this file of logins for the source
    #[arg(long, value_name = "FILE")]
    src_authfile: Option<PathBuf>,
    /// Use this file of logins for the destination
    #[arg(long, value_name = "FILE")]
    dest_authfile: Option<PathBuf>,
    /// Log in to the registry of the source with these
    #[arg(long, value_name = "USER[:PASSWORD]")]
    src_creds: Option<String>,
    /// Log in to the registry of the destination with these
    #[arg(long, value_name = "USER[:PASSWORD]")]
    dest_creds: Option<String>,
    /// Take certificates for the source from this directory
    #[arg(long, value_name = "DIR")]
    src_cert_dir: Option<PathBuf>,
    /// Take certificates for the destination from this directory
    #[arg(long, value_name = "DIR")]
    dest_cert_dir: Option<PathBuf>,
    /// Check the certificate of the source, as --tls-verify of pull
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    src_tls_verify: Option<bool>,
    /// Check the certificate of the destination, as --tls-verify of push
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dest_tls_verify: Option<bool>,
}

impl Logins {
    pub(super) fn source(&self) -> Credentials {
        Credentials {
            connection: Connection {
                plain_http: false,
                tls_verify: self.src_tls_verify,
                cert_dir: self.src_cert_dir.clone(),
                authfile: self.src_authfile.clone().or(self.authfile.clone()),
            },
            creds: self.src_creds.clone(),
        }
    }

    fn destination(&self) -> Credentials {
        Credentials {
            connection: Connection {
                plain_http: false,
                tls_verify: self.dest_tls_verify,
                cert_dir: self.dest_cert_dir.clone(),
                authfile: self.dest_authfile.clone().or(self.authfile.clone()),
            },
            creds: self.dest_creds.clone(),
        }
    }
}

/// One end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End<'t> {
    Registry(&'t str),
    Layout(&'t str, Option<&'t str>),
    LayoutArchive(&'t str, Option<&'t str>),
    Dir(&'t str),
    DockerArchive(&'t str, Option<&'t str>),
    Store(&'t str),
}

impl<'t> End<'t> {
    /// Whether a destination is standard output.
    fn is_standard_output(self) -> bool {
        matches!(
            self,
            Self::LayoutArchive("-", _) | Self::DockerArchive("-", _)
        )
    }

    fn parse(text: &'t str) -> Result<Self, Usage> {
        if let Some(name) = text.strip_prefix("docker://") {
            return Ok(Self::Registry(name));
        }
        let Some((kind, rest)) = text.split_once(':') else {
            return Ok(Self::Store(text));
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag).filter(|tag| !tag.is_empty())),
            None => (rest, None),
        };
        let end = match kind {
            "oci" => Self::Layout(path, tag),
            "oci-archive" => Self::LayoutArchive(path, tag),
            "dir" => Self::Dir(rest),
            "docker-archive" => Self::DockerArchive(path, tag),
            // The kind says in which stores the name is searched.
            "containers-storage" | "docker-daemon" => Self::Store(text),
            _ => Self::Store(text),
        };
        if rest.is_empty() {
            return Err(Usage(format!("{text:?} has no name")));
        }
        Ok(end)
    }

    /// Returns the path and the tag of an archive or directory.
    pub(super) fn place(self) -> Option<(&'t Path, Option<&'t str>)> {
        match self {
            Self::Layout(path, tag)
            | Self::LayoutArchive(path, tag)
            | Self::DockerArchive(path, tag) => Some((Path::new(path), tag)),
            Self::Dir(path) => Some((Path::new(path), None)),
            _ => None,
        }
    }
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let (from, to) = (End::parse(&args.source)?, End::parse(&args.destination)?);
    if let End::Store(name) = from {
        path_hints::learn(name);
    }
    if let End::Store(path) = to
        && path.starts_with(['/', '.'])
    {
        let text = format!(
            "{path:?} is a path: write oci:{path} or dir:{path} for a directory, docker-archive:{path} or \
             oci-archive:{path} for a file"
        );
        return Err(Usage(text).into());
    }
    if remote_names::is_of_engine(&args.destination) {
        let text = "unionfs only reads the stores of podman and Docker: give a plain name, for the own store";
        return Err(Usage(text.to_owned()).into());
    }
    let is_single = |end: End<'_>| matches!(end, End::DockerArchive(..));
    if args.all && (is_single(from) || is_single(to)) {
        return Err(no_index(&args.source).into());
    }
    if to.is_standard_output() && (args.json || io::stdout().is_terminal()) {
        let text = "an archive is not for a terminal, and not beside --json: give a file or a pipe";
        return Err(Usage(text.to_owned()).into());
    }
    match (from, to) {
        (End::Store(image), End::Store(new)) => copy_staged::between_stores(args, image, new, root),
        (End::Store(_), _) if args.all || args.platform.is_some() => bytes(args, from, to, root),
        (End::Store(_) | End::DockerArchive(..), End::Registry(_)) | (_, End::Store(_)) => {
            super::again(through_store(args, from, to)?, root)
        }
        _ => bytes(args, from, to, root),
    }
}

/// The refusal of an index where there can be none.
pub(super) fn no_index(source: &str) -> Usage {
    let example = match End::parse(source) {
        Ok(End::Store(name)) => {
            format!(", such as `unionfs copy --all docker://{name} oci-archive:FILE`")
        }
        _ => String::new(),
    };
    let text = format!(
        "{source:?}: archives of Docker and the stores of Docker and podman have single images, no index, and \
         the own store keeps an index only with --all (unionfs pull --all NAME): leave --all out, or copy \
         between registries, layouts, directories and stores that have the index{example}"
    );
    Usage(text)
}

/// Returns the command that copies to a store, or from one to a registry.
fn through_store(args: &Args, from: End<'_>, to: End<'_>) -> Result<Vec<String>, Usage> {
    let (source, destination) = (args.source.as_str(), args.destination.as_str());
    for end in [from, to] {
        // It would become an option.
        if matches!(end, End::Registry(name) | End::Store(name) if name.starts_with('-')) {
            return Err(Usage("no name begins with a minus sign".to_owned()));
        }
    }
    let mut words: Vec<String> = match (from, to) {
        (End::Registry(name), End::Store(new)) => {
            let mut words = vec!["pull".to_owned(), name.to_owned(), format!("--tag={new}")];
            words.extend(args.logins.source().words());
            words
        }
        (
            End::Layout(path, tag) | End::LayoutArchive(path, tag) | End::DockerArchive(path, tag),
            End::Store(new),
        ) => {
            let mut words = vec![
                "load".to_owned(),
                format!("-i{path}"),
                format!("--tag={new}"),
            ];
            words.extend(tag.map(|tag| format!("--ref={tag}")));
            words
        }
        (End::Dir(path), End::Store(new)) => {
            vec![
                "load".to_owned(),
                format!("-i{path}"),
                format!("--tag={new}"),
            ]
        }
        (End::Store(_) | End::DockerArchive(..), End::Registry(name)) => {
            let mut words = vec!["push".to_owned(), source.to_owned(), name.to_owned()];
            words.extend(args.logins.destination().words());
            words
        }
        _ => {
            let text = format!("no command copies from {source:?} to {destination:?}");
            return Err(Usage(text));
        }
    };
    let platform = args
        .platform
        .as_ref()
        .map(|one| format!("--platform={one}"));
    let takes_it = matches!(words.first().map(String::as_str), Some("pull" | "load"));
    words.extend(platform.filter(|_| takes_it));
    words.extend((takes_it && args.all).then(|| "--all".to_owned()));
    words.extend(args.progress.word());
    words.extend(args.json.then(|| "--json".to_owned()));
    words.extend(args.sandbox.word());
    Ok(words)
}

/// What a copy has made.
enum Done {
    Copied(Copied),
    /// The ID of the image in an archive of Docker.
    Archived(Digest),
}

/// Copies without `pull`, `load` and `push`.
fn bytes(args: &Args, from: End<'_>, to: End<'_>, root: Option<&Path>) -> anyhow::Result<()> {
    let mut cage = args.sandbox.cage("copy")?.moves_images();
    // The others: for an archive that is compressed, for a layout on the way from a store or archive of
    // Docker, for one on the way to such an archive, and for a layer.
    let staging = Staging::of_files(args.parallel + 4)?;
    let source = OpenedSource::open(args, from, &mut cage, root)?;
    let output = match to {
        _ if to.is_standard_output() => Some(Output::standard()?),
        End::LayoutArchive(path, _) | End::DockerArchive(path, _) => {
            Some(Output::open(Path::new(path), None)?)
        }
        _ => None,
    };
    let folder = match to {
        End::Layout(path, _) | End::Dir(path) => Some(cage.directory_to_fill(Path::new(path))?),
        _ => None,
    };
    let name = match to {
        End::DockerArchive(_, Some(name)) => Some(own_store::new_name(name)?),
        _ => None,
    };
    let registry = match to {
        End::Registry(name) => {
            let name = own_store::new_name(name)?;
            let mut access = args.logins.destination().access()?;
            access.look_up(&name, Purpose::Push)?;
            Some((name, access))
        }
        _ => None,
    };
    cage.talk()?;
    cage.enter()?;
    let items = args
        .progress
        .items_beside(Json::of(args.json), verb("copying", "copied"));
    let show = |step: Progress<'_, &Digest>| items.show(step);
    let archive = source.read(&staging, &show)?;
    let dir = folder.map(|path| walk::open_directory(&path, Trust::of_root()));
    let dir = dir.transpose()?;
    let images = match (&args.platform, args.all) {
        (_, true) => CopyImages::All,
        (Some(platform), false) => CopyImages::Of(platform.clone()),
        (None, false) => CopyImages::Host,
    };
    let run = |to: CopyTo<'_>| -> anyhow::Result<Copied> {
        let from = source.from(archive.as_ref())?;
        Ok(copy(from, to, &images, (&staging, args.parallel), &show)?)
    };
    let tag = to.place().and_then(|(_, tag)| tag);
    let mut done = None;
    match (to, &registry, &dir, output) {
        (_, Some((name, access)), _, _) => {
            done = Some(Done::Copied(run(CopyTo::Registry(name, access))?));
        }
        (End::Dir(_), _, Some(dir), _) => done = Some(Done::Copied(run(CopyTo::Dir(dir))?)),
        (_, _, Some(dir), _) => done = Some(Done::Copied(run(CopyTo::Layout(dir, tag))?)),
        (End::DockerArchive(..), _, None, Some(output)) => {
            // A registry's image is staged as a layout.
            let staged = match &archive {
                Some(_) => None,
                None => {
                    let file = staging.file()?;
                    run(CopyTo::LayoutArchive(Box::new(&file), None))?;
                    Some(copy_staged::layout(file, &args.source, &staging)?)
                }
            };
            let image = staged.as_ref().or(archive.as_ref());
            let image = image.context("nothing was read")?;
            let image = source.image(image, args.platform.as_ref(), name)?;
            done = Some(Done::Archived(Digest::of(&image.image.config)));
            output.write(|out| Ok(image.write(&staging, out, &show)?))?;
        }
        (_, _, None, Some(output)) => output.write(|out| {
            done = Some(Done::Copied(run(CopyTo::LayoutArchive(
                Box::new(out),
                tag,
            ))?));
            Ok(())
        })?,
        _ => {}
    }
    if to.is_standard_output() {
        return Ok(());
    }
    let (label, digest) = match &done {
        Some(Done::Copied(copied)) if args.json => return print_json(copied),
        Some(Done::Copied(copied)) => ("Digest", copied.digest),
        Some(Done::Archived(id)) if args.json => {
            return print_json(&serde_json::json!({ "id": id }));
        }
        Some(Done::Archived(id)) => ("ID", *id),
        None => anyhow::bail!("nothing was copied"),
    };
    print(&format!(
        "{label}: {digest}\nCopied: {}\n",
        args.destination
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_written_as_for_skopeo() {
        for (text, end) in [
            ("docker://debian:12", End::Registry("debian:12")),
            ("oci:/a/b:v1", End::Layout("/a/b", Some("v1"))),
            ("oci-archive:a.tar", End::LayoutArchive("a.tar", None)),
            ("dir:a:b", End::Dir("a:b")),
            (
                "docker-archive:a.tar:app:1",
                End::DockerArchive("a.tar", Some("app:1")),
            ),
            (
                "containers-storage:app:1",
                End::Store("containers-storage:app:1"),
            ),
            ("app:1", End::Store("app:1")),
            ("localhost:5000/app", End::Store("localhost:5000/app")),
        ] {
            assert_eq!(End::parse(text).unwrap(), end, "{text}");
        }
        assert!(End::parse("oci:").is_err());
    }
}
