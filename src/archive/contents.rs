//! The content of an archive: its images, all of them or those that the caller wants, and
//! artifacts.

use std::collections::HashMap;

use super::artifact::Artifact;
use super::docker_archive;
use super::error::{Error, Result};
use super::layout;
use super::source::Source;
use crate::layer_tar::Limits;
use crate::oci::platform::Platform;
use crate::oci::text::excerpt;
use crate::oci::{Digest, Reference};

/// The limit of bytes that are read to list the images: enough for all images of usual archives.
pub(super) const MAX_KNOWN: usize = 256 << 20;
/// The bytes that are counted for a layer, and for a name besides its text.
const EACH: usize = 256;
/// The number of names that a message lists.
const SHOWN: usize = 20;

/// An image of an archive.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Incoming {
    /// Its configuration; the image ID is its SHA-256.
    pub config: Vec<u8>,
    /// The diff IDs of its layers, base first.
    pub diff_ids: Vec<Digest>,
    /// The layers' blobs; the same number as `diff_ids`.
    pub layers: Vec<LayerBlob>,
    /// The names that the archive has for it.
    pub names: Vec<Reference>,
    /// Its references in the archive: tags of a layout, as in `oci:DIR:TAG`, or whole names.
    pub references: Vec<String>,
    /// The digest of the object that has the name: an index, or a manifest; `None` in an archive of
    /// Docker's kind.
    pub object: Option<Digest>,
}

/// The place of a layer's tar.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerBlob {
    /// The entry.
    pub path: String,
    /// The digest that the entry, compressed as it is, must have; `None` if the archive does not
    /// have it.
    pub digest: Option<Digest>,
    /// The length in bytes, if it is declared.
    pub size: Option<u64>,
}

/// The parts of an archive that the caller wants.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Wanted<'p> {
    /// The limits of what is expanded.
    pub limits: Limits,
    /// The platform of the images; `None` for that of this machine.
    pub platform: Option<&'p Platform>,
    /// Only images with these references: a tag or name as in the archive, or `@N`, the image's
    /// number from 0 on. Empty means all images.
    pub references: &'p [String],
    /// The repository of names for images of which a layout has only a tag: `app` gives `app:TAG`.
    /// `None` gives them no name.
    pub repository: Option<&'p str>,
    /// Whether the objects of the names are kept whole: an index with all images of it that are there.
    pub whole: bool,
}

/// The content of an archive.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Contents {
    /// The images. No two of them have the same name.
    pub images: Vec<Incoming>,
    /// The other content.
    pub artifacts: Vec<Artifact>,
    /// As [`Wanted::whole`].
    pub whole: bool,
}

/// Returns the wanted content of an archive.
///
/// # Errors
/// [`Error::NoImage`] if there are artifacts only, [`Error::NoReference`] if a wanted reference
/// does not exist; others if it is not an archive, is incomplete, or contradicts itself.
pub fn contents(source: &Source, wanted: &Wanted<'_>) -> Result<Contents> {
    let host = wanted.platform.is_none().then(Platform::host);
    let Some(platform) = wanted.platform.or(host.as_ref()) else {
        return Ok(Contents::default());
    };
    let mut found = Found::new(source, wanted);
    found.contents.whole = wanted.whole;
    let docker_too = |bytes: &[u8]| bytes.trim_ascii_start().starts_with(b"[");
    let listed = source.metadata("manifest.json")?;
    // Only the layout beside Docker's list has the objects of the names.
    let listed = match listed {
        Some(bytes)
            if wanted.whole && docker_too(&bytes) && source.metadata("index.json")?.is_some() =>
        {
            None
        }
        other => other,
    };
    match listed {
        Some(bytes) if bytes.trim_ascii_start().starts_with(b"{") => {
            layout::directory(source, &bytes, platform, &mut found)?;
        }
        Some(bytes) => docker_archive::read(source, &bytes, &mut found)?,
        None => match source.metadata("index.json")? {
            Some(bytes) => layout::read(source, &bytes, platform, &mut found)?,
            None => {
                return Err(Error::NotAnArchive {
                    archive: source.name().to_owned(),
                });
            }
        },
    }
    found.finish()
}

/// Returns every image of an archive for `platform`; `None` for that of this machine.
///
/// # Errors
/// Those of [`contents`].
pub fn images(source: &Source, platform: Option<&Platform>) -> Result<Vec<Incoming>> {
    let wanted = Wanted {
        platform,
        ..Wanted::default()
    };
    Ok(contents(source, &wanted)?.images)
}

/// Finds the image with a reference, as in skopeo's `oci:DIR:REF` and `docker-archive:FILE:REF`: a
/// tag or name as in the archive, or `@N`, its number from 0 on. `None` for the only image.
///
/// ```no_run
/// # use unionfs::archive::{self, Source};
/// # use unionfs::store::Writable;
/// # let (dir, store) = (std::path::Path::new("layout"), Writable::open("own".as_ref())?);
/// let source = Source::open(dir, &store.staging(), u64::MAX)?;
/// let image = archive::find(&source, Some("v1"), None)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::NoReference`], which lists the references, if none or more than one fits; those of
/// [`contents`].
pub fn find(
    source: &Source,
    reference: Option<&str>,
    platform: Option<&Platform>,
) -> Result<Incoming> {
    let references: Vec<String> = reference.iter().map(|&text| text.to_owned()).collect();
    let wanted = Wanted {
        platform,
        references: &references,
        ..Wanted::default()
    };
    let mut images = contents(source, &wanted)?.images;
    match (images.len(), images.pop()) {
        (1, Some(only)) => Ok(only),
        (_, last) => Err(Error::NoReference {
            archive: source.name().to_owned(),
            wanted: match reference {
                Some(text) => format!("more than one image {}", excerpt(text.as_bytes())),
                None => format!("{} images", images.len() + last.iter().len()),
            },
            offered: offered(
                images
                    .iter()
                    .chain(&last)
                    .flat_map(|image| &image.references),
            ),
        }),
    }
}

fn offered<'t>(texts: impl Iterator<Item = &'t String>) -> String {
    let mut shown: Vec<String> = texts
        .take(SHOWN + 1)
        .map(|text| excerpt(text.as_bytes()))
        .collect();
    if shown.len() > SHOWN {
        shown[SHOWN] = "others".to_owned();
    }
    if shown.is_empty() {
        "none with a name".to_owned()
    } else {
        shown.join(", ")
    }
}

/// The images found so far. An image that is found twice counts once, with all names. Two images
/// with the same name are an error, because one would take the name from the other.
pub(super) struct Found<'w> {
    source: &'w Source,
    wanted: &'w Wanted<'w>,
    contents: Contents,
    /// The index of each image in the list; of those that are kept whole, of each object too.
    places: HashMap<(Digest, Option<Digest>), usize>,
    /// The image that has a name.
    names: HashMap<String, Digest>,
    /// The bytes that were read so far.
    size: usize,
    /// Whether each wanted reference was found.
    met: Vec<bool>,
    /// The references that exist, for a message.
    seen: Vec<String>,
}

impl<'w> Found<'w> {
    fn new(source: &'w Source, wanted: &'w Wanted<'w>) -> Self {
        Self {
            source,
            wanted,
            contents: Contents::default(),
            places: HashMap::new(),
            names: HashMap::new(),
            size: 0,
            met: vec![false; wanted.references.len()],
            seen: Vec::new(),
        }
    }

    /// Whether the image with this number and these references is wanted.
    pub(super) fn wants(&mut self, number: usize, called: &[&str]) -> bool {
        if self.wanted.references.is_empty() {
            return true;
        }
        if self.seen.len() <= SHOWN {
            self.seen.extend(called.iter().map(|&text| text.to_owned()));
        }
        let mut any = false;
        for (wanted, met) in self.wanted.references.iter().zip(&mut self.met) {
            let key = |text: &str| Reference::parse(text).ok().map(|name| name.key());
            let is_it = wanted.strip_prefix('@').and_then(|n| n.parse().ok()) == Some(number)
                || called.contains(&wanted.as_str())
                || called.iter().any(|text| {
                    text.contains([':', '/']) && key(text).is_some_and(|k| key(wanted) == Some(k))
                });
            *met |= is_it;
            any |= is_it;
        }
        any
    }

    /// Returns the name of an image for which the archive has only a tag.
    pub(super) fn of_tag(&self, tag: &str) -> Option<Reference> {
        let repository = self.wanted.repository?;
        Reference::parse(&format!("{repository}:{tag}")).ok()
    }

    pub(super) fn artifact(&mut self, artifact: Artifact) -> Result<()> {
        self.size += artifact.kind.len() + EACH;
        self.contents.artifacts.push(artifact);
        self.is_within_bounds()
    }

    fn is_within_bounds(&self) -> Result<()> {
        if self.size <= MAX_KNOWN {
            return Ok(());
        }
        let what = format!("what its images say of themselves takes more than {MAX_KNOWN} bytes");
        Err(Error::entry(self.source.name(), "the archive", what))
    }

    pub(super) fn add(&mut self, mut image: Incoming) -> Result<()> {
        let id = Digest::of(&image.config);
        // An image that was found before counts too: it was read again.
        self.size += image.config.len() + image.layers.len() * EACH;
        self.size += image.references.iter().map(String::len).sum::<usize>();
        let mut new = Vec::new();
        for name in std::mem::take(&mut image.names) {
            let key = name.key();
            match self.names.get(&key) {
                None => {
                    self.size += key.len() + EACH;
                    self.names.insert(key, id);
                    new.push(name);
                }
                Some(other) if *other == id => {}
                Some(other) => {
                    let what = format!(
                        "two images ask for the name {name}, {other} and {id}: nothing was loaded; \
                         make the archive again with a name for each"
                    );
                    return Err(Error::entry(self.source.name(), "the archive", what));
                }
            }
        }
        let key = (id, image.object.filter(|_| self.wanted.whole));
        let known = self.places.get(&key).copied();
        match known.and_then(|at| self.contents.images.get_mut(at)) {
            Some(known) => {
                known.names.extend(new);
                known.references.extend(image.references);
                // An image of several objects is none of them.
                known.object = known.object.filter(|_| known.object == image.object);
            }
            None => {
                self.places.insert(key, self.contents.images.len());
                image.names = new;
                self.contents.images.push(image);
            }
        }
        self.is_within_bounds()
    }

    fn finish(self) -> Result<Contents> {
        let mut asked = self.wanted.references.iter().zip(&self.met);
        if let Some((missing, _)) = asked.find(|(_, met)| !**met) {
            return Err(Error::NoReference {
                archive: self.source.name().to_owned(),
                wanted: format!("no image {}", excerpt(missing.as_bytes())),
                offered: offered(self.seen.iter()),
            });
        }
        match self.contents.artifacts.first() {
            Some(first) if self.contents.images.is_empty() => Err(Error::NoImage {
                archive: self.source.name().to_owned(),
                kind: first.kind.clone(),
            }),
            _ => Ok(self.contents),
        }
    }
}
