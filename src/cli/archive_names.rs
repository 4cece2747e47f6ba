//! Images in archives, named as skopeo names them, where a command takes an image:
//!
//! ```text
//! oci:DIR[:REF]              a layout of OCI; REF is a tag, or @N, the number of an image
//! oci-archive:FILE[:REF]     the same as a tar
//! docker-archive:FILE[:REF]  what `docker save` writes; REF is a name, or @N
//! dir:DIR                    a directory of skopeo's kind `dir:`
//! ```
//!
//! A confined copy of this process takes the image into the own store, without a name. The command
//! then finds it by its ID. If the store has the image, only the metadata of the archive is read.
//! `unionfs prune --dangling` removes it, but not while the command that named it holds the lock for
//! readers ([`Taken`]).

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::archive_policy::Verdicts;
use super::command_sandbox::{Cage, Input, SandboxArgs};
use super::confined_queries::ask;
use super::error::{self, Usage};
use super::progress::{Items, verb};
use super::{own_store, path_hints, remote_names, short_names, warn};
use unionfs::archive::{self, Source};
use unionfs::layer_tar::Limits;
use unionfs::oci::{Digest, Reference};
use unionfs::progress::Progress;
use unionfs::sandbox::Mode;
use unionfs::store::Writable;

/// The names of the kinds.
const KINDS: [&str; 4] = ["oci", "oci-archive", "docker-archive", "dir"];

/// The name of an image in an archive.
#[derive(Debug, PartialEq, Eq)]
struct ArchiveName<'t> {
    path: &'t str,
    reference: Option<&'t str>,
}

impl<'t> ArchiveName<'t> {
    /// `None` if the text names no archive. The path ends at the first colon, as with skopeo.
    fn parse(text: &'t str) -> Result<Option<Self>, Usage> {
        let Some((kind, rest)) = text.split_once(':') else {
            return Ok(None);
        };
        if !KINDS.contains(&kind) {
            return Ok(None);
        }
        let (path, reference) = match rest.split_once(':') {
            // The path of a directory of this kind may have colons: it has one image.
            _ if kind == "dir" => (rest, None),
            Some((path, reference)) => (path, Some(reference)),
            None => (rest, None),
        };
        if path.is_empty() || path == "-" {
            return Err(Usage(format!(
                "{text:?} names no archive: {kind}:PATH names one, and docker.io/library/{text} an image"
            )));
        }
        let reference = reference.filter(|reference| !reference.is_empty());
        Ok(Some(Self { path, reference }))
    }
}

/// Returns the path of an archive, and the reference of an image in it, for a command that takes archives: it
/// may be written as skopeo writes it too. What exists by the whole text is a path.
pub(super) fn path_of(text: &Path) -> Result<(PathBuf, Option<String>), Usage> {
    let plain = || Ok((text.to_owned(), None));
    let Some(written) = text.to_str() else {
        return plain();
    };
    if written == "-" || std::fs::symlink_metadata(text).is_ok() {
        return plain();
    }
    if let Some(name) = written.strip_prefix(remote_names::REGISTRY) {
        return Err(Usage(format!(
            "{written:?} is in a registry: `unionfs pull {name}` pulls it"
        )));
    }
    if remote_names::is_of_engine(written) {
        return Err(Usage(format!(
            "{written:?} is in a store: `unionfs copy {written} NAME` copies it into the own store"
        )));
    }
    match ArchiveName::parse(written)? {
        Some(name) => Ok((name.path.into(), name.reference.map(str::to_owned))),
        None => plain(),
    }
}

/// Says what to type instead of the name of an image where an archive is wanted.
pub(super) fn no_archive(error: anyhow::Error, text: &Path) -> anyhow::Error {
    let is_absent = error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    let written = text.to_str().unwrap_or_default();
    let is_name = Reference::parse(written).is_ok() && !written.starts_with('.');
    if is_absent && is_name {
        let text = format!("`unionfs pull {written}` pulls an image of that name");
        return anyhow::anyhow!("{}; {text}", error::line(&error));
    }
    error
}

/// Whether a text names an image in an archive, rightly or wrongly.
pub(super) fn is_one(image: &str) -> bool {
    !matches!(ArchiveName::parse(image), Ok(None))
}

/// Returns an image's name for the stores: the ID of an image that was taken from an archive, else the name
/// that was given.
pub(super) fn resolve<'t>(
    image: &'t str,
    sandbox: &SandboxArgs,
    root: Option<&Path>,
) -> anyhow::Result<Cow<'t, str>> {
    let taken = take_in(image, sandbox.mode()?, root, None)?;
    if taken.is_none() {
        path_hints::learn(image);
        short_names::learn(image);
    }
    Ok(taken.map_or(Cow::Borrowed(image), |taken| taken.id.to_string().into()))
}

/// As [`resolve`], for several.
pub(super) fn resolve_all(
    images: &[String],
    sandbox: &SandboxArgs,
    root: Option<&Path>,
) -> anyhow::Result<Vec<String>> {
    let resolved = images.iter().map(|image| resolve(image, sandbox, root));
    resolved.map(|image| image.map(Cow::into_owned)).collect()
}

/// An image that an archive has, and the own store by now.
pub(super) struct Taken {
    pub(super) id: Digest,
    /// A lock that keeps the image from being removed.
    pub(super) held: File,
}

/// Takes the image into the own store if it names an archive. `lock` is the lock of the own store if
/// the caller has it.
pub(super) fn take_in(
    image: &str,
    mode: Mode,
    root: Option<&Path>,
    lock: Option<&File>,
) -> anyhow::Result<Option<Taken>> {
    let Some(name) = ArchiveName::parse(image)? else {
        return Ok(None);
    };
    if root.is_some() {
        let text = format!("--root names a store and {image:?} an archive: leave one of them out");
        return Err(Usage(text).into());
    }
    let own = own_store::open()?;
    let own_root: PathBuf = own.root().to_owned();
    // The copy of this process takes it, and this process keeps it.
    let lease = own.lease()?;
    // The opened store holds directories.
    drop(own);
    let mut cage = Cage::to_take_in(mode)?;
    let path = Path::new(name.path);
    let input = Input::of(&mut cage, Some(path), "")?;
    let verdicts = Verdicts::of(Some(path));
    let answer = ask(cage.into_sandbox(&own_root)?, 1024, || {
        let own = Writable::open(&own_root)?;
        let (tmp, limits) = (own.staging(), Limits::default());
        let source = match input {
            Input::At(place) => Source::open_as(&place, path, &tmp, limits.bytes)?,
            Input::Open(file) => Source::of_file(file, path, &tmp, limits.bytes)?,
            Input::Stdin => anyhow::bail!("an archive that is named is not standard input"),
        };
        verdicts.require(&source)?;
        let mut incoming = archive::find(&source, name.reference, None)?;
        incoming.names.clear();
        let id = Digest::of(&incoming.config);
        lease.hold()?;
        if own.store().image(&id).is_err() {
            // Who has the store may wait for readers.
            lease.release()?;
            let items = Items::on_terminal(verb("extracting", "taken in"));
            let locked = match lock {
                Some(lock) => own.locked_by(lock.try_clone().context("cannot keep the lock")?)?,
                None => own_store::lock(&own)?,
            };
            let show = |step: Progress<'_, &Digest>| items.show(step);
            let taken = archive::take(&locked, &source, &incoming, None, &limits, &show)?;
            // Nobody removes the image before the store is unlocked.
            lease.hold()?;
            super::load::warn_of_devices(taken.kept_devices);
            let root = own_root.display();
            warn(format_args!(
                "{image} is unpacked into {root}, without a name"
            ));
        }
        Ok(id.to_string().into_bytes())
    })?;
    let id = std::str::from_utf8(&answer).ok().and_then(Digest::parse);
    let id = id.context("the process that reads the archive gave no answer that can be read")?;
    let held = lease.into_file();
    Ok(Some(Taken { id, held }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_named_as_skopeo_names_them() {
        let parse = |text: &'static str| {
            let name = ArchiveName::parse(text).unwrap();
            name.map(|name| (name.path, name.reference))
        };
        assert_eq!(parse("oci:dir"), Some(("dir", None)));
        assert_eq!(parse("oci:/a/b:v1"), Some(("/a/b", Some("v1"))));
        assert_eq!(parse("oci-archive:a.tar:@0"), Some(("a.tar", Some("@0"))));
        assert_eq!(parse("oci:dir:"), Some(("dir", None)));
        assert_eq!(
            parse("docker-archive:a.tar:docker.io/library/app:1"),
            Some(("a.tar", Some("docker.io/library/app:1")))
        );
        assert_eq!(parse("dir:a:b"), Some(("a:b", None)));
        for none in [
            "app:1",
            "app",
            "localhost:5000/oci:1",
            "docker.io/library/oci:1",
            "ocid:x",
        ] {
            assert_eq!(parse(none), None, "{none}");
        }
        for bad in ["oci:", "oci::tag", "dir:", "docker-archive:-"] {
            assert!(ArchiveName::parse(bad).is_err(), "{bad}");
        }
    }
}
