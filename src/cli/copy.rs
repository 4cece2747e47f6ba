//! `unionfs copy` copies images between registries, layouts, archives and stores, in skopeo's spelling.
//!
//! Between registries, layouts and `dir:` directories the bytes are copied as they are. To and from
//! stores, `pull`, `push`, `load` and `save` do the work.

use std::path::{Path, PathBuf};

use super::archive_policy::Verdicts;
use super::command_sandbox::{Cage, Input, SandboxArgs};
use super::error::Usage;
use super::output::{print, print_json};
use super::output_file::Output;
use super::progress::{Json, ProgressArgs, verb};
use super::registry_args::{Connection, Credentials, at_once};
use super::{own_store, remote_names};
use unionfs::archive::Source;
use unionfs::layer_tar::Limits;
use unionfs::oci::{Digest, Platform, Reference};
use unionfs::progress::Progress;
use unionfs::registry::{Access, Copied, CopyFrom, CopyImages, CopyTo, PARALLEL, Purpose, copy};
use unionfs::store::writable::Staging;
use unionfs::sys::walk::{self, Trust};

/// Copy an image between registries, archives and stores
///
/// Source and destination are written as for skopeo: docker://NAME is an image of a registry, oci:DIR[:TAG]
/// and oci-archive:FILE[:TAG] are OCI layouts, dir:DIR is a directory of skopeo, docker-archive:FILE is an
/// archive of Docker, and a plain NAME is an image of a store (the destination is the own store). Between
/// registries, layouts and directories nothing is unpacked, and digests stay; but in a layout, manifests of
/// Docker become those of OCI, with other digests.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs copy --all docker://debian:12 docker://registry.example.org/mirror/debian:12
  unionfs copy docker://debian:12 oci:layout:bookworm
  unionfs copy --all oci-archive:app.tar docker://localhost:5000/app:1
  unionfs copy myapp:2 docker://localhost:5000/myapp:2")]
pub(super) struct Args {
    /// The image
    source: String,
    /// Its new place
    destination: String,
    /// Copy all images of an index, and the index [default: the image for this machine]
    #[arg(long, short = 'a')]
    all: bool,
    /// Copy the image for this platform: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = own_store::platform, conflicts_with = "all")]
    platform: Option<Platform>,
    #[command(flatten)]
    logins: Logins,
    /// Number of blobs that are transferred at the same time
    #[arg(long, value_name = "N", default_value_t = PARALLEL, value_parser = at_once)]
    parallel: usize,
    #[command(flatten)]
    progress: ProgressArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// How the registries of both ends are reached.
#[derive(Debug, clap::Args)]
struct Logins {
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
    fn source(&self) -> Credentials {
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
enum End<'t> {
    Registry(&'t str),
    Layout(&'t str, Option<&'t str>),
    LayoutArchive(&'t str, Option<&'t str>),
    Dir(&'t str),
    DockerArchive(&'t str, Option<&'t str>),
    Store(&'t str),
}

impl<'t> End<'t> {
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
            "containers-storage" | "docker-daemon" => Self::Store(rest),
            _ => Self::Store(text),
        };
        if rest.is_empty() {
            return Err(Usage(format!("{text:?} has no name")));
        }
        Ok(end)
    }

    /// Returns the path and the tag of an archive or directory.
    fn place(self) -> Option<(&'t Path, Option<&'t str>)> {
        match self {
            Self::Layout(path, tag) | Self::LayoutArchive(path, tag) => {
                Some((Path::new(path), tag))
            }
            Self::Dir(path) => Some((Path::new(path), None)),
            _ => None,
        }
    }
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let (from, to) = (End::parse(&args.source)?, End::parse(&args.destination)?);
    if ["containers-storage:", "docker-daemon:"]
        .iter()
        .any(|kind| args.destination.starts_with(kind))
    {
        let text = "unionfs only reads the stores of podman and Docker: give a plain name, for the own store";
        return Err(Usage(text.to_owned()).into());
    }
    match (from, to) {
        (End::Store(_) | End::DockerArchive(..), _)
        | (_, End::Store(_) | End::DockerArchive(..)) => {
            super::again(through_store(args, from, to)?, root)
        }
        _ => bytes(args, from, to),
    }
}

/// Returns the command that copies to or from a store.
fn through_store(args: &Args, from: End<'_>, to: End<'_>) -> Result<Vec<String>, Usage> {
    if args.all {
        let text = "a store has single images, no index: leave --all out, or copy between registries and \
                    layouts";
        return Err(Usage(text.to_owned()));
    }
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
        (End::Store(_) | End::DockerArchive(..), End::LayoutArchive(path, None)) => {
            let output = format!("-o{path}");
            vec![
                "save".to_owned(),
                source.to_owned(),
                "--format=oci".to_owned(),
                output,
            ]
        }
        (End::Store(_), End::DockerArchive(path, None)) => {
            vec!["save".to_owned(), source.to_owned(), format!("-o{path}")]
        }
        _ => {
            return Err(Usage(format!(
                "copy cannot go from {source:?} to {destination:?} at once: copy into the own store first \
                 (a plain name), or to oci-archive:FILE without a tag"
            )));
        }
    };
    let platform = args
        .platform
        .as_ref()
        .map(|one| format!("--platform={one}"));
    let takes_it = matches!(words.first().map(String::as_str), Some("pull" | "load"));
    words.extend(platform.filter(|_| takes_it));
    let saves = words.first().is_some_and(|word| word == "save");
    words.extend(args.progress.word());
    words.extend((args.json && !saves).then(|| "--json".to_owned()));
    words.extend(args.sandbox.word());
    Ok(words)
}

/// Copies without a store.
fn bytes(args: &Args, from: End<'_>, to: End<'_>) -> anyhow::Result<()> {
    let mut cage = args.sandbox.cage("copy")?.moves_images();
    // One file more: for an archive that is compressed.
    let staging = Staging::of_files(args.parallel + 1)?;
    let source = OpenedSource::open(args, from, &mut cage)?;
    let output = match to {
        End::LayoutArchive(path, _) => Some(Output::open(Path::new(path), None)?),
        _ => None,
    };
    let folder = match to {
        End::Layout(..) | End::Dir(_) => to.place().map(|(path, _)| cage.directory_to_fill(path)),
        _ => None,
    };
    let folder = folder.transpose()?;
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
    let archive = source.read(&staging)?;
    let items = args
        .progress
        .items_beside(Json::of(args.json), verb("copying", "copied"));
    let show = |step: Progress<'_, &Digest>| items.show(step);
    let tag = to.place().and_then(|(_, tag)| tag);
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
    let mut copied = None;
    match (to, &registry, &dir, output) {
        (_, Some((name, access)), _, _) => copied = Some(run(CopyTo::Registry(name, access))?),
        (End::Dir(_), _, Some(dir), _) => copied = Some(run(CopyTo::Dir(dir))?),
        (_, _, Some(dir), _) => copied = Some(run(CopyTo::Layout(dir, tag))?),
        (_, _, None, Some(output)) => output.write(|out| {
            copied = Some(run(CopyTo::LayoutArchive(Box::new(out), tag))?);
            Ok(())
        })?,
        _ => {}
    }
    let Some(copied) = copied else {
        anyhow::bail!("nothing was copied");
    };
    if args.json {
        return print_json(&copied);
    }
    print(&format!(
        "Digest: {}\nCopied: {}\n",
        copied.digest, args.destination
    ))
}

/// The source of a copy, before the sandbox is entered.
enum OpenedSource<'t> {
    Registry(Box<(Reference, Access)>),
    Archive {
        end: End<'t>,
        input: std::cell::RefCell<Option<Input>>,
        verdicts: Verdicts,
    },
}

impl<'t> OpenedSource<'t> {
    fn open(args: &Args, from: End<'t>, cage: &mut Cage) -> anyhow::Result<Self> {
        if let End::Registry(text) = from {
            let mut access = args.logins.source().access()?;
            let name = remote_names::only(&access, text)?;
            access.look_up(&name, Purpose::Pull)?;
            return Ok(Self::Registry((name, access).into()));
        }
        let (path, _) = from.place().unwrap_or((Path::new(""), None));
        Ok(Self::Archive {
            end: from,
            input: Some(Input::of(cage, Some(path), "")?).into(),
            verdicts: Verdicts::of(Some(path)),
        })
    }

    /// Opens an archive, inside of the sandbox.
    fn read(&self, staging: &Staging) -> anyhow::Result<Option<Source>> {
        let Self::Archive {
            end,
            input,
            verdicts,
        } = self
        else {
            return Ok(None);
        };
        let (path, _) = end.place().unwrap_or((Path::new(""), None));
        let limit = Limits::default().bytes;
        let source = match input.take() {
            Some(Input::At(place)) => Source::open_as(&place, path, staging, limit)?,
            Some(Input::Open(file)) => Source::of_file(file, path, staging, limit)?,
            _ => anyhow::bail!("an archive that is named is not standard input"),
        };
        verdicts.require(&source)?;
        Ok(Some(source))
    }

    fn from<'c>(&'c self, archive: Option<&'c Source>) -> anyhow::Result<CopyFrom<'c>> {
        match (self, archive) {
            (Self::Registry(both), _) => Ok(CopyFrom::Registry(&both.0, &both.1)),
            (
                Self::Archive {
                    end: End::Dir(_), ..
                },
                Some(source),
            ) => Ok(CopyFrom::Dir(source)),
            (Self::Archive { end, .. }, Some(source)) => {
                let tag = end.place().and_then(|(_, tag)| tag);
                Ok(CopyFrom::Layout(source, tag))
            }
            (Self::Archive { .. }, None) => anyhow::bail!("the archive is not open"),
        }
    }
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
            ("containers-storage:app:1", End::Store("app:1")),
            ("app:1", End::Store("app:1")),
            ("localhost:5000/app", End::Store("localhost:5000/app")),
        ] {
            assert_eq!(End::parse(text).unwrap(), end, "{text}");
        }
        assert!(End::parse("oci:").is_err());
    }
}
