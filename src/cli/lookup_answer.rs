//! The answer of a confined process about what `mount` asked for, in a message of fixed form.
//! Layers in it are paths below the given roots. The reader opens them itself, beneath those roots
//! and without following symlinks, so the message can name nothing else. The upper and the work
//! directory must be where drivers have them.
//!
//! ```text
//! text       u32 length, bytes            (little endian)
//! layer      u8 root, text path, u8 dialect
//! message    u16 count, layers (lowers); u8 1 and a layer, u8 root, text path (upper and work), or u8 0;
//!            text label; 32 bytes (image ID) or nothing; chain or nothing; u8 whether it was made
//! chain      32 bytes chain ID, u8 root, text driver, text notes
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::options::MAX_LOWERS;
use unionfs::catalog::Label;
use unionfs::image_mounts::label_of_image;
use unionfs::layer::{Dialect, LayerSpec, OpenDir, Records, StackSpec, UpperSpec};
use unionfs::oci::Digest;
use unionfs::store::{LayerLocation, Mountable, Roots};

/// The maximum length of the label, in bytes. It is longer than any image name.
const MAX_LABEL: usize = 4096;
/// The maximum length of the note about the places of the layers, in bytes: about 200 for each
/// layer.
const MAX_NOTES: usize = 1 << 20;
/// The maximum length of the message, in bytes.
pub(super) const MAX: u64 = 8 << 20;

/// An image or container that was found in a store.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) stack: StackSpec,
    /// Its name for the user.
    pub(super) label: String,
    /// The ID of the image, if it is known.
    pub(super) image: Option<Digest>,
    /// The label of the layers, if it determines their content.
    pub(super) chain: Option<Label>,
    /// Whether a named layer was made for it.
    pub(super) made: bool,
}

impl Found {
    /// Returns the message.
    ///
    /// # Errors
    /// An error for a layer that is in none of the roots.
    pub(super) fn to_bytes(&self, roots: &[PathBuf]) -> anyhow::Result<Vec<u8>> {
        let mut out = Writer {
            roots,
            bytes: Vec::new(),
        };
        let lowers = self.stack.lowers.iter();
        out.lowers(lowers.map(|lower| (lower.path(), lower.dialect)))?;
        out.bytes.push(self.stack.upper.is_some().into());
        if let Some(upper) = &self.stack.upper {
            out.layer(upper.layer.path(), upper.layer.dialect)?;
            out.place(upper.work.path())?;
        }
        out.rest(&self.label, self.image.as_ref(), self.chain.as_ref())?;
        out.bytes.push(self.made.into());
        Ok(out.bytes)
    }

    /// Parses a message and opens the layers that it names.
    ///
    /// # Errors
    /// An error for a message of another form; those of opening the layers.
    pub(super) fn from_bytes(bytes: &[u8], roots: &Roots) -> anyhow::Result<Self> {
        let mut input = Reader { bytes, roots };
        let found = input
            .found()
            .context("the process that looks into the store gave no answer that can be read")?;
        anyhow::ensure!(
            input.bytes.is_empty(),
            "the answer of the process that looks into the store is too long"
        );
        Ok(found)
    }
}

/// Returns the message about an image whose layers are not opened.
///
/// # Errors
/// An error for a layer that is in none of the roots.
pub(super) fn of_image(
    image: &Mountable<LayerLocation>,
    roots: &[PathBuf],
) -> anyhow::Result<Vec<u8>> {
    let mut out = Writer {
        roots,
        bytes: Vec::new(),
    };
    let lowers = image.lowers.iter();
    out.lowers(lowers.map(|lower| (lower.path.as_path(), lower.dialect)))?;
    let (no_upper, not_made) = (0, 0);
    out.bytes.push(no_upper);
    let chain = label_of_image(image);
    out.rest(&image.label, Some(&image.id), chain.as_ref())?;
    out.bytes.push(not_made);
    Ok(out.bytes)
}

struct Writer<'w> {
    roots: &'w [PathBuf],
    bytes: Vec<u8>,
}

impl Writer<'_> {
    fn text(&mut self, text: &[u8]) -> anyhow::Result<()> {
        let length = u32::try_from(text.len()).context("too long")?;
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend(text);
        Ok(())
    }

    /// Returns the number of the root that contains it, the deepest of several, and the path from
    /// there.
    fn place(&mut self, path: &Path) -> anyhow::Result<()> {
        let roots = self.roots.iter().enumerate();
        let within = roots.filter_map(|(at, root)| Some((at, root, path.strip_prefix(root).ok()?)));
        let deepest = within.max_by_key(|(_, root, _)| root.components().count());
        let (at, _, below) = deepest.with_context(|| format!("{path:?} is in no store"))?;
        self.bytes
            .push(u8::try_from(at).context("too many stores")?);
        self.text(below.as_os_str().as_bytes())
    }

    fn lowers<'l>(
        &mut self,
        lowers: impl ExactSizeIterator<Item = (&'l Path, Dialect)>,
    ) -> anyhow::Result<()> {
        let count = u16::try_from(lowers.len()).context("too many layers")?;
        self.bytes.extend(count.to_le_bytes());
        lowers
            .into_iter()
            .try_for_each(|(path, dialect)| self.layer(path, dialect))
    }

    /// Writes what follows the layers, up to the chain.
    fn rest(
        &mut self,
        label: &str,
        image: Option<&Digest>,
        chain: Option<&Label>,
    ) -> anyhow::Result<()> {
        self.text(label.as_bytes())?;
        self.bytes.push(image.is_some().into());
        self.bytes.extend(image.into_iter().flat_map(Digest::bytes));
        self.bytes.push(chain.is_some().into());
        if let Some(chain) = chain {
            self.bytes.extend(chain.chain);
            self.place(Path::new(OsStr::from_bytes(&chain.store)))?;
            self.text(&chain.driver)?;
            self.text(&chain.notes)?;
        }
        Ok(())
    }

    fn layer(&mut self, path: &Path, dialect: Dialect) -> anyhow::Result<()> {
        self.place(path)?;
        let Dialect {
            trusted,
            user,
            fuse_overlayfs,
            wh_names,
            // The process that mounts decides about these.
            records: _,
        } = dialect;
        let bits = [trusted, user, fuse_overlayfs, wh_names]
            .into_iter()
            .enumerate();
        let bits = bits.map(|(at, bit)| u8::from(bit) << at);
        self.bytes.push(bits.sum());
        Ok(())
    }
}

struct Reader<'r> {
    bytes: &'r [u8],
    roots: &'r Roots,
}

impl<'r> Reader<'r> {
    fn found(&mut self) -> anyhow::Result<Found> {
        let count = usize::from(u16::from_le_bytes(self.array()?));
        // The limit is one more than may be mounted, so that the usual message is given.
        anyhow::ensure!(count <= MAX_LOWERS + 2, "{count} layers");
        let mut lowers = Vec::with_capacity(count);
        for _ in 0..count {
            lowers.push(self.layer()?);
        }
        let upper = if self.flag()? {
            Some(self.upper()?)
        } else {
            None
        };
        let label = String::from_utf8_lossy(self.text(MAX_LABEL)?).into_owned();
        let image = if self.flag()? {
            Some(Digest::from_bytes(self.array()?))
        } else {
            None
        };
        let chain = if self.flag()? {
            Some(self.chain()?)
        } else {
            None
        };
        Ok(Found {
            stack: StackSpec {
                lowers,
                data_only: Vec::new(),
                upper,
            },
            label,
            image,
            chain,
            made: self.flag()?,
        })
    }

    fn chain(&mut self) -> anyhow::Result<Label> {
        let chain = self.array()?;
        let (root, below) = self.place()?;
        anyhow::ensure!(below.as_os_str().is_empty(), "a store below a store");
        Ok(Label {
            chain,
            store: self
                .roots
                .path(root)
                .unwrap_or(Path::new(""))
                .as_os_str()
                .as_bytes()
                .to_vec(),
            driver: self.text(64)?.to_vec(),
            notes: self.text(MAX_NOTES)?.to_vec(),
        })
    }

    fn take(&mut self, count: usize) -> anyhow::Result<&'r [u8]> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .context("it ends too early")?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn flag(&mut self) -> anyhow::Result<bool> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => anyhow::bail!("{other} for yes or no"),
        }
    }

    fn text(&mut self, most: usize) -> anyhow::Result<&'r [u8]> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        anyhow::ensure!(length <= most, "a text of {length} bytes");
        self.take(length)
    }

    fn place(&mut self) -> anyhow::Result<(usize, &'r Path)> {
        let [root] = self.array()?;
        let root = usize::from(root);
        anyhow::ensure!(self.roots.path(root).is_some(), "there is no store {root}");
        let path = Path::new(OsStr::from_bytes(self.text(libc::PATH_MAX as usize)?));
        anyhow::ensure!(path.is_relative(), "{path:?} is not below a store");
        Ok((root, path))
    }

    /// A directory below a root, with that root and the path.
    fn dir(&mut self) -> anyhow::Result<(OpenDir, (usize, &'r Path))> {
        let (root, path) = self.place()?;
        anyhow::ensure!(!path.as_os_str().is_empty(), "a layer without a name");
        Ok((self.roots.layer_dir(root, path)?, (root, path)))
    }

    /// The upper and a directory whose content is removed. Both must be where drivers have them.
    fn upper(&mut self) -> anyhow::Result<UpperSpec> {
        let (layer, (root, path)) = self.layer_at()?;
        let (work, work_at) = self.dir()?;
        let parts: Vec<&OsStr> = path.iter().collect();
        let is_upper = matches!(parts[..], [_, _, name] if name == "diff" || name == "upper");
        anyhow::ensure!(is_upper, "{path:?} for a layer to write to");
        let beside = path.with_file_name("work");
        anyhow::ensure!(
            work_at == (root, &beside),
            "{:?} for the work directory of {path:?}",
            work_at.1
        );
        Ok(UpperSpec { layer, work })
    }

    fn layer(&mut self) -> anyhow::Result<LayerSpec> {
        Ok(self.layer_at()?.0)
    }

    fn layer_at(&mut self) -> anyhow::Result<(LayerSpec, (usize, &'r Path))> {
        let (dir, at) = self.dir()?;
        let [bits] = self.array()?;
        anyhow::ensure!(bits < 16, "{bits} for a dialect");
        let dialect = Dialect {
            trusted: bits & 1 != 0,
            user: bits & 2 != 0,
            fuse_overlayfs: bits & 4 != 0,
            wh_names: bits & 8 != 0,
            records: Records::Ignored,
        };
        Ok((LayerSpec { dir, dialect }, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(root: &Path) -> Found {
        for name in ["overlay2/a/diff", "overlay2/b/diff", "overlay2/b/work"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let dir = |name: &str| OpenDir::open(root.join(name)).unwrap();
        let layer = |name: &str, dialect| LayerSpec {
            dir: dir(name),
            dialect,
        };
        Found {
            stack: StackSpec {
                lowers: vec![layer("overlay2/a/diff", Dialect::KERNEL)],
                data_only: Vec::new(),
                upper: Some(UpperSpec {
                    layer: layer("overlay2/b/diff", Dialect::ALL),
                    work: dir("overlay2/b/work"),
                }),
            },
            label: "app:1".to_owned(),
            image: Some(Digest::of(b"image")),
            chain: Some(Label {
                chain: [7; 32],
                store: root.as_os_str().as_bytes().to_vec(),
                driver: "overlay2".into(),
                notes: b"a note".to_vec(),
            }),
            made: true,
        }
    }

    #[test]
    fn a_message_says_what_was_found() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let paths = vec![PathBuf::from("/"), root.clone()];
        let found = sample(&root);
        let bytes = found.to_bytes(&paths).unwrap();
        let roots = Roots::open(&paths).unwrap();
        let read = Found::from_bytes(&bytes, &roots).unwrap();
        let shown = |found: &Found| {
            let paths: Vec<_> = found
                .stack
                .dirs()
                .map(|dir| dir.path().to_owned())
                .collect();
            let dialects: Vec<_> = found
                .stack
                .lowers
                .iter()
                .map(|layer| layer.dialect)
                .collect();
            (
                paths,
                dialects,
                found.label.clone(),
                found.image,
                found.chain.clone(),
                found.made,
            )
        };
        assert_eq!(shown(&read), shown(&found));
        // A part of a message is never taken for a whole one, and no byte can make it name another
        // place.
        for length in 0..bytes.len() {
            assert!(
                Found::from_bytes(&bytes[..length], &roots).is_err(),
                "{length}"
            );
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                if let Ok(found) = Found::from_bytes(&changed, &roots) {
                    let inside = |dir: &OpenDir| dir.path().starts_with(&root);
                    assert!(found.stack.dirs().all(inside), "{at} {bit}");
                }
            }
        }
    }

    #[test]
    fn a_message_names_nothing_outside_of_the_stores() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        sample(&root);
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        let roots = Roots::open(&[root]).unwrap();
        for path in [
            "..",
            "overlay2/../..",
            "/etc",
            "link",
            "link/ssl",
            "",
            "overlay2/none",
        ] {
            let mut bytes = vec![1, 0, 0];
            bytes.extend(u32::try_from(path.len()).unwrap().to_le_bytes());
            bytes.extend(path.as_bytes());
            // The rest of a correct message: no upper, no label, no image, no chain, not made.
            bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, 0]);
            assert!(Found::from_bytes(&bytes, &roots).is_err(), "{path}");
        }
        assert!(Found::from_bytes(&[1, 0, 9, 0, 0, 0, 0, 1, 0], &roots).is_err());
    }

    /// A mount empties its work directory.
    #[test]
    fn a_message_has_nothing_written_but_a_layer_and_emptied_but_its_work_directory() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        sample(&root);
        for name in [
            "overlay2/a/work",
            "volumes/data/work",
            "volumes/a/data/diff",
        ] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let roots = [root.clone()];
        let opened = Roots::open(&roots).unwrap();
        let written = |upper: &str, work: &str| {
            let mut found = sample(&root);
            let open = |name: &str| OpenDir::open(root.join(name)).unwrap();
            let spec = found.stack.upper.as_mut().unwrap();
            (spec.layer.dir, spec.work) = (open(upper), open(work));
            Found::from_bytes(&found.to_bytes(&roots).unwrap(), &opened)
        };
        assert!(written("overlay2/b/diff", "overlay2/b/work").is_ok());
        for (upper, work) in [
            ("overlay2/b/diff", "overlay2/a/work"),
            ("overlay2/b/diff", "volumes/data/work"),
            ("overlay2/b/diff", "overlay2/b/diff"),
            ("overlay2/b/diff", "overlay2"),
            ("overlay2/b", "overlay2/b/work"),
            ("overlay2/b/work", "overlay2/b/work"),
            ("volumes/a/data/diff", "volumes/a/data/diff"),
            ("volumes/data", "volumes/data/work"),
        ] {
            assert!(written(upper, work).is_err(), "{upper} {work}");
        }
    }
}
