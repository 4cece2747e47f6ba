//! The source of `unionfs copy`: opened before the sandbox is entered, read in it.

use std::cell::RefCell;
use std::fs::File;
use std::path::Path;

use super::archive_policy::Verdicts;
use super::command_sandbox::{self, Cage, Input};
use super::copy::{Args, End, no_index};
use super::copy_staged::{self, ForDocker};
use super::{remote_names, short_names};
use unionfs::archive::{self, Format, Outgoing, Repacked, Source};
use unionfs::layer_tar::Limits;
use unionfs::oci::{Digest, Platform, Reference};
use unionfs::progress::Progress;
use unionfs::registry::{Access, CopyFrom, Purpose};
use unionfs::store::ImageName;
use unionfs::store::Places;
use unionfs::store::writable::Staging;

/// An opened source.
pub(super) enum OpenedSource<'t> {
    Registry(Box<(Reference, Access)>),
    Archive {
        end: End<'t>,
        input: RefCell<Option<Input>>,
        verdicts: Verdicts,
        /// The names of the image of an archive of Docker, once it is read.
        names: RefCell<Vec<Reference>>,
    },
    Store {
        image: &'t str,
        places: RefCell<Option<Places>>,
        /// The wanted image of an index, and whether it goes to a registry.
        platform: Option<(Platform, bool)>,
        /// What keeps the index from being removed.
        held: RefCell<Vec<File>>,
    },
    /// An index in a store, with all its images.
    Index {
        image: &'t str,
        places: RefCell<Option<Places>>,
        /// What keeps it from being removed.
        held: RefCell<Vec<File>>,
    },
}

impl<'t> OpenedSource<'t> {
    pub(super) fn open(
        args: &Args,
        from: End<'t>,
        cage: &mut Cage,
        root: Option<&Path>,
    ) -> anyhow::Result<Self> {
        match from {
            End::Registry(text) => {
                let mut access = args.logins.source().access()?;
                let name = remote_names::only(&access, text)?;
                access.look_up(&name, Purpose::Pull)?;
                Ok(Self::Registry((name, access).into()))
            }
            End::Store(image) => {
                short_names::learn(image);
                let mut places = cage.stores(root, &[image])?;
                if args.all {
                    let places = Some(places).into();
                    let held = RefCell::default();
                    return Ok(Self::Index {
                        image,
                        places,
                        held,
                    });
                }
                places.open_pools(None)?;
                let to_registry = remote_names::is_one(&args.destination);
                let platform = args.platform.clone();
                Ok(Self::Store {
                    image,
                    places: Some(places).into(),
                    platform: platform.map(|platform| (platform, to_registry)),
                    held: RefCell::default(),
                })
            }
            _ => {
                let (path, _) = from.place().unwrap_or((Path::new(""), None));
                Ok(Self::Archive {
                    end: from,
                    input: Some(Input::of(cage, Some(path), "")?).into(),
                    verdicts: Verdicts::of(Some(path)),
                    names: RefCell::default(),
                })
            }
        }
    }

    /// Opens an archive, inside of the sandbox. An image of a store or of an archive of Docker becomes a
    /// layout in a file without a name. `None`: the source is a registry.
    pub(super) fn read(
        &self,
        staging: &Staging,
        show: &dyn Fn(Progress<'_, &Digest>),
    ) -> anyhow::Result<Option<Source>> {
        match self {
            Self::Registry(_) => Ok(None),
            Self::Store {
                image,
                places,
                platform,
                held,
            } => {
                let Some(places) = places.take() else {
                    anyhow::bail!("the stores are read already");
                };
                let stores = command_sandbox::open(places)?;
                let (store, id) = stores.locate(image)?;
                if let Some((platform, to_registry)) = platform {
                    if let Some(content) = stores.pulled_content(image)? {
                        held.replace(stores.into_held());
                        return Ok(Some(Source::of_pulled(content)));
                    }
                    copy_staged::require(&store.image(&id)?, image, platform)?;
                    // push compresses it, which a copy of bytes does not.
                    anyhow::ensure!(
                        !to_registry,
                        "{image} has no other image than that for {platform}: leave --platform out"
                    );
                }
                let outgoing = Outgoing::new(store, store.image(&id)?, Vec::new());
                let file = staging.file()?;
                archive::save(&[outgoing], Format::Oci, &file, show)?;
                copy_staged::layout(file, image, staging).map(Some)
            }
            Self::Index {
                image,
                places,
                held,
            } => {
                let Some(places) = places.take() else {
                    anyhow::bail!("the stores are read already");
                };
                let stores = command_sandbox::open(places)?;
                let content = stores.pulled_content(image)?;
                held.replace(stores.into_held());
                let content = content.ok_or_else(|| no_index(image))?;
                Ok(Some(Source::of_pulled(content)))
            }
            Self::Archive {
                end,
                input,
                verdicts,
                names,
            } => {
                let (path, tag) = end.place().unwrap_or((Path::new(""), None));
                let limit = Limits::default().bytes;
                let source = match input.take() {
                    Some(Input::At(place)) => Source::open_as(&place, path, staging, limit)?,
                    Some(Input::Open(file)) => Source::of_file(file, path, staging, limit)?,
                    _ => anyhow::bail!("an archive that is named is not standard input"),
                };
                verdicts.require(&source)?;
                let End::DockerArchive(..) = end else {
                    return Ok(Some(source));
                };
                let image = archive::find(&source, tag, None)?;
                names.borrow_mut().clone_from(&image.names);
                let repacked = Repacked::new(&source, &image, Vec::new());
                let file = staging.file()?;
                archive::repack(&repacked, Format::Oci, staging, &file, show)?;
                copy_staged::layout(file, &path.to_string_lossy(), staging).map(Some)
            }
        }
    }

    /// Returns the source for a copy byte by byte. `archive` is what [`Self::read`] has returned.
    pub(super) fn from<'c>(&'c self, archive: Option<&'c Source>) -> anyhow::Result<CopyFrom<'c>> {
        match (self, archive) {
            (Self::Registry(both), _) => Ok(CopyFrom::Registry(&both.0, &both.1)),
            (_, None) => anyhow::bail!("the archive is not open"),
            (Self::Archive { end, .. }, Some(source)) => Ok(match end {
                End::Dir(_) => CopyFrom::Dir(source),
                // It is the only image of the layout that was made of it.
                End::DockerArchive(..) => CopyFrom::Layout(source, None),
                _ => CopyFrom::Layout(source, end.place().and_then(|(_, tag)| tag)),
            }),
            (Self::Store { .. } | Self::Index { .. }, Some(source)) => {
                Ok(CopyFrom::Layout(source, None))
            }
        }
    }

    /// Returns the image for an archive of Docker. `name`: its name there, in place of the one that it
    /// has at the source.
    pub(super) fn image<'s>(
        &self,
        source: &'s Source,
        platform: Option<&Platform>,
        name: Option<Reference>,
    ) -> anyhow::Result<ForDocker<'s>> {
        let reference = match self {
            Self::Archive {
                end: End::Layout(_, tag) | End::LayoutArchive(_, tag),
                ..
            } => *tag,
            _ => None,
        };
        let image = archive::find(source, reference, platform)?;
        let tagged = |name: &Reference| name.digest().is_none();
        let own = match self {
            Self::Registry(both) => Some(both.0.clone()),
            Self::Store { image, .. } | Self::Index { image, .. } => {
                named(ImageName::parse(image)?.name())
            }
            Self::Archive { .. } => None,
        };
        let names = match (name, own.filter(tagged), self) {
            (Some(name), _, _) | (None, Some(name), _) => vec![name],
            (None, None, Self::Archive { names, .. }) if !names.borrow().is_empty() => {
                names.borrow().clone()
            }
            (None, None, _) => image.names.clone(),
        };
        Ok(ForDocker {
            source,
            image,
            names,
        })
    }
}

/// Returns the name that a text is, if it can be no ID.
fn named(text: &str) -> Option<Reference> {
    use unionfs::oci::Query;
    match Query::parse(text).ok()? {
        Query::Name {
            reference,
            prefix: None,
        } => Some(reference),
        _ => None,
    }
}
