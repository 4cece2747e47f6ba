//! The files of an image, a container, a named layer or a layer of an image, read in this process
//! without a mount: `ls`, `cat`, `cp`, and `diff` of two trees.
//!
//! Names are searched as by `export`: named layers and containers first, then images, then layers
//! of images by their digests. Names and attributes of an image come from its catalog, if there is
//! one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

use super::archive_names;
use super::command_sandbox::{Cage, Missing, SandboxArgs};
use super::error::Usage;
use super::outside_helper::Outside;
use unionfs::catalog::{CatalogFile, Label};
use unionfs::changes::Tree;
use unionfs::image_mounts::{ImageCatalogs, label_below_container, label_of_image};
use unionfs::layer::StackSpec;
use unionfs::store::{Error, Image, Places, Stores};
use unionfs::union::Options;

/// A name, and the paths in its tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InTree {
    pub(super) name: String,
    pub(super) path: Option<Vec<u8>>,
}

impl InTree {
    /// Parses `NAME` or `NAME:/PATH`. In the name of an archive the path begins after the last
    /// colon that is before a slash, because the archive has a path too; elsewhere after the first,
    /// which in the name of a store is behind the bracket.
    pub(super) fn parse(text: &OsStr) -> Result<Self, Usage> {
        let bytes = text.as_bytes();
        let is_archive = text.to_str().is_some_and(archive_names::is_one);
        let mut colons = bytes.windows(2).enumerate();
        let is_path = |(_, pair): &(usize, &[u8])| *pair == b":/";
        let colon = if is_archive {
            // The first one ends the kind of the archive.
            let kind = bytes.iter().position(|byte| *byte == b':').unwrap_or(0);
            colons.rfind(|pair| is_path(pair) && pair.0 > kind)
        } else {
            let bracket = bytes.starts_with(b"containers-storage:[");
            let end = bracket.then(|| bytes.iter().position(|byte| *byte == b']'));
            let end = end.flatten().unwrap_or(0);
            colons.find(|pair| is_path(pair) && pair.0 >= end)
        };
        let (name, path) = match colon {
            Some((at, _)) => (&bytes[..at], Some(bytes[at + 1..].to_vec())),
            None => (bytes, None),
        };
        match std::str::from_utf8(name) {
            Ok(name) if !name.is_empty() => Ok(Self {
                name: name.to_owned(),
                path,
            }),
            _ => Err(Usage(format!(
                "{text:?} does not begin with the name of an image or container"
            ))),
        }
    }
}

/// Returns the name and the paths of `NAME [PATH]…` or `NAME:/PATH [PATH]…`.
pub(super) fn operands(all: &[OsString]) -> Result<(String, Vec<Vec<u8>>), Usage> {
    let (first, rest) = all
        .split_first()
        .ok_or_else(|| Usage("the name of an image or container is missing".into()))?;
    let first = InTree::parse(first)?;
    let rest = rest.iter().map(|path| path.clone().into_vec());
    Ok((first.name, first.path.into_iter().chain(rest).collect()))
}

/// The access to trees, before the sandbox is entered.
pub(super) struct Opening {
    pub(super) cage: Cage,
    places: Places,
    catalogs: Option<ImageCatalogs>,
    outside: Arc<Outside>,
}

impl Opening {
    /// Opens what the command needs for trees with these names. There must be no second thread yet.
    pub(super) fn prepare(
        command: &str,
        sandbox: &SandboxArgs,
        root: Option<&Path>,
        names: &[&str],
    ) -> anyhow::Result<Self> {
        let mut cage = sandbox.cage(command)?;
        let places = cage.stores_of_containers(root, names)?;
        let catalogs = cage.catalogs(Missing::Leave)?.map(ImageCatalogs::of);
        let outside = Outside::start(None, Some(&places)).context("cannot start a process")?;
        Ok(Self {
            cage,
            places,
            catalogs,
            outside,
        })
    }

    /// Enters the sandbox.
    pub(super) fn enter(self) -> anyhow::Result<Trees> {
        Ok(Trees {
            stores: self.cage.enter_with_stores(self.places)?,
            catalogs: self.catalogs,
            outside: self.outside,
        })
    }
}

/// The access to trees.
pub(super) struct Trees {
    stores: Stores,
    catalogs: Option<ImageCatalogs>,
    outside: Arc<Outside>,
}

impl Trees {
    /// Opens the tree with this name. `None`: an image without layers, which has no files.
    pub(super) fn open(&self, name: &str) -> anyhow::Result<Option<Tree>> {
        let (stack, label) = self.find(name)?;
        if stack.dirs().next().is_none() {
            return Ok(None);
        }
        let mut options = Options::default();
        if let (Some(catalogs), Some(label)) = (&self.catalogs, label) {
            let catalog = catalogs.choose(label);
            options.names = Some(CatalogFile::source(catalog.path()));
        }
        let tree = Tree::open_with(&stack, &options)?;
        tree.find_origins_by(&self.outside.finder());
        Ok(Some(tree))
    }

    /// As [`Trees::open`], for a command that needs a file.
    pub(super) fn open_with_files(&self, name: &str) -> anyhow::Result<Tree> {
        let tree = self.open(name)?;
        tree.with_context(|| format!("image {name:?} has no files: it has no layers"))
    }

    fn find(&self, name: &str) -> anyhow::Result<(StackSpec, Option<Label>)> {
        // Engines give containers no such names, and the search of all containers costs a file for
        // each.
        if !name.contains(['/', ':', '@']) {
            match self.stores.container(name) {
                Ok(container) => {
                    self.outside.flush(&container)?;
                    let own = self.stores.all().first().map(|store| store.root());
                    let label = own.and_then(|own| label_below_container(own, &container));
                    // A label of another store leads to a catalog that does not fit and is not used.
                    return Ok((container.observed_stack(), label));
                }
                Err(Error::UnknownContainer { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let noted = |chain: &_| self.catalogs.as_ref()?.note(chain);
        match self.stores.mountable(name, noted) {
            Ok(found) => {
                let label = label_of_image(&found);
                Ok((lowers(found.lowers), label))
            }
            Err(error @ Error::UnknownImage { .. }) => match self.layer(name)? {
                Some(stack) => Ok((stack, None)),
                None => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Finds a layer of an image: by its chain ID with all layers below, by its diff ID alone.
    fn layer(&self, digest: &str) -> anyhow::Result<Option<StackSpec>> {
        let prefix = digest.strip_prefix("sha256:").unwrap_or(digest);
        if prefix.len() < SHORTEST || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let images = self.stores.images().images;
        let mut found: Vec<(String, StackSpec)> = Vec::new();
        for image in &images {
            for (at, layer) in image.layers.iter().enumerate() {
                if layer.chain_id.hex().starts_with(prefix) {
                    found.push((layer.chain_id.hex(), below(image, at)?));
                } else if layer.diff_id.hex().starts_with(prefix) {
                    let dir = layer.place.dir().filter(|_| !layer.whole || at == 0);
                    let dir = dir.with_context(|| {
                        format!("the files of layer {} alone are not stored", layer.diff_id)
                    })?;
                    found.push((layer.diff_id.hex(), lowers(vec![dir.clone()])));
                }
            }
        }
        let first = found.first().map(|(id, _)| id.clone());
        anyhow::ensure!(
            found.iter().all(|(id, _)| Some(id) == first.as_ref()),
            "several layers begin with {digest:?}: give more of the digest"
        );
        Ok(found.into_iter().next().map(|(_, stack)| stack))
    }
}

/// The fewest digits of a digest that name a layer.
const SHORTEST: usize = 6;

/// Returns the layers of an image up to this one.
fn below(image: &Image, last: usize) -> anyhow::Result<StackSpec> {
    let mut part = image.clone();
    part.layers.truncate(last + 1);
    Ok(lowers(part.stack()?))
}

fn lowers(lowers: Vec<unionfs::layer::LayerSpec>) -> StackSpec {
    StackSpec {
        lowers,
        data_only: Vec::new(),
        upper: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_after_the_name() {
        let parse = |text: &str| {
            let found = InTree::parse(text.as_ref()).unwrap();
            let path = found.path.map(|path| String::from_utf8(path).unwrap());
            (found.name, path)
        };
        let with = |name: &str, path: &str| (name.to_owned(), Some(path.to_owned()));
        assert_eq!(parse("app:2:/etc/x"), with("app:2", "/etc/x"));
        assert_eq!(parse("app:/a:/b"), with("app", "/a:/b"));
        assert_eq!(parse("web:/"), with("web", "/"));
        assert_eq!(parse("app:2"), ("app:2".to_owned(), None));
        assert_eq!(
            parse("host:5000/app:2"),
            ("host:5000/app:2".to_owned(), None)
        );
        assert_eq!(parse("oci:/lay/out"), ("oci:/lay/out".to_owned(), None));
        assert_eq!(
            parse("oci:/lay/out:v1:/etc"),
            with("oci:/lay/out:v1", "/etc")
        );
        assert_eq!(parse("oci:dir:/etc"), with("oci:dir", "/etc"));
        assert!(InTree::parse(":/etc".as_ref()).is_err());
        assert!(InTree::parse("".as_ref()).is_err());
    }
}
