//! The files of all measurements: a Debian root file system in stacks of several depths. Each stack
//! is loaded as an image into a store of unionfs, whose directories the other subjects mount.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use testkit::mount::Scratch;

use crate::disk::Disk;
use crate::image;
use crate::subjects::sh;

/// The files, in stacks of several depths, and a place for more.
pub(crate) struct Layers {
    pub(crate) scratch: Scratch,
    /// A directory that is kept for later runs. After its removal the images are made again.
    images: PathBuf,
    /// Whether the tree is a root file system with programs in it.
    pub(crate) rootfs: bool,
    /// The directories of each image, top first.
    stacks: BTreeMap<String, Vec<PathBuf>>,
}

/// The depths of the stacks.
const DEPTHS: [usize; 5] = [1, DEPTH, 32, 128, 500];
/// The number of layers of the stack for most measurements.
pub(crate) const DEPTH: usize = 4;
/// The size of the file for the copy-up measurement, at the root of the top layer.
pub(crate) const LARGE: u64 = 1 << 30;
/// The name of that file.
pub(crate) const LARGE_NAME: &str = "large.bin";
/// The size of `lower.bin`, beside it, which fio reads; it equals `size` in `benches/fio/data.fio`.
pub(crate) const FIO_SIZE: u64 = 256 << 20;
/// A directory with [`MANY`] entries, in the bottom layer.
pub(crate) const MANY_NAME: &str = "many";
/// The number of its entries.
pub(crate) const MANY: usize = 100_000;
/// A directory with [`SOME`] entries, in the layer above the bottom one.
pub(crate) const SOME_NAME: &str = "some";
/// The number of its entries.
pub(crate) const SOME: usize = 20_000;
/// An image of one layer with a million files in a thousand directories.
pub(crate) const MILLION: &str = "bench:million";

impl Layers {
    /// Makes the `wanted` images that do not exist, from a Debian root file system, or from a small
    /// made tree if `quick`. They stay on the disk.
    pub(crate) fn make(disk: &Disk, quick: bool, wanted: impl Fn(&str) -> bool) -> Self {
        let images = if quick { "images-quick" } else { "images" };
        // The number changes with the files that the rows need.
        let images = format!("{images}-2");
        fs::create_dir_all(disk.path()).unwrap();
        let mut layers = Self {
            scratch: Scratch::beneath(disk.path()),
            images: disk.path().join(images),
            rootfs: !quick,
            stacks: BTreeMap::new(),
        };
        let mut tree = None;
        for depth in DEPTHS.into_iter().filter(|d| wanted(&Self::image(*d))) {
            layers.keep(&Self::image(depth), |scratch| {
                let tree = tree.get_or_insert_with(|| {
                    if quick {
                        made_tree(&scratch.dir("tree"))
                    } else {
                        rootfs(&Disk::here().path().join("rootfs"))
                    }
                });
                let stack = spread(tree, &scratch.path().join(format!("stack-{depth}")), depth);
                if depth == DEPTH {
                    fill(&stack[0].join(LARGE_NAME), LARGE);
                    fill(&stack[0].join("lower.bin"), FIO_SIZE);
                    fill_directory(&stack[depth - 1].join(MANY_NAME), MANY);
                    fill_directory(&stack[depth - 2].join(SOME_NAME), SOME);
                }
                stack
            });
        }
        if !quick && wanted(MILLION) {
            layers.keep(MILLION, |scratch| {
                let layer = scratch.dir("million");
                for n in 0..1000 {
                    fill_directory(&layer.join(n.to_string()), 1000);
                }
                vec![layer]
            });
        }
        layers
    }

    /// Loads the result of `make`, unless an earlier run has done so.
    fn keep(&mut self, name: &str, make: impl FnOnce(&Scratch) -> Vec<PathBuf>) {
        let store = self.store();
        let stack = image::directories(&store, name).unwrap_or_else(|| {
            eprintln!("making image {name} in {}", store.display());
            image::load(&store, name, &make(&self.scratch));
            image::directories(&store, name).unwrap()
        });
        // A catalog that this version can read needs no work.
        image::build_catalog(&store, name);
        self.stacks.insert(name.to_owned(), stack);
    }

    /// Returns the data root of the store that contains the images.
    pub(crate) fn store(&self) -> PathBuf {
        self.images.clone()
    }

    /// Returns the name of the image with this number of layers.
    pub(crate) fn image(depth: usize) -> String {
        format!("bench:{depth}")
    }

    /// Returns the directories of an image, top first; `None` if a quick run has no such image.
    pub(crate) fn stack(&self, image: &str) -> Option<&[PathBuf]> {
        self.stacks.get(image).map(Vec::as_slice)
    }
}

/// Puts every file into one of `depth` layers. A directory is in each layer that has a file of it,
/// so there is something to merge.
fn spread(tree: &Path, base: &Path, depth: usize) -> Vec<PathBuf> {
    let stack: Vec<_> = (0..depth).map(|n| base.join(n.to_string())).collect();
    for layer in &stack {
        fs::create_dir_all(layer).unwrap();
    }
    place(tree, Path::new(""), &stack);
    stack
}

fn fill_directory(dir: &Path, entries: usize) {
    fs::create_dir(dir).unwrap();
    for n in 0..entries {
        fs::File::create(dir.join(format!("entry-{n}"))).unwrap();
    }
}

/// Makes a file of `size` bytes without holes.
pub(crate) fn fill(path: &Path, size: u64) {
    let file = fs::File::create(path).unwrap();
    let block = vec![0x5a; 1 << 20];
    for n in 0..size >> 20 {
        std::os::unix::fs::FileExt::write_all_at(&file, &block, n << 20).unwrap();
    }
}

fn place(tree: &Path, relative: &Path, stack: &[PathBuf]) {
    for entry in fs::read_dir(tree.join(relative)).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        let path = relative.join(entry.file_name());
        if kind.is_dir() {
            // The bottom layer has the directory with its mode; upper layers have it if they need
            // it.
            copy_dir(tree, &path, stack.last().unwrap());
            place(tree, &path, stack);
            continue;
        }
        if kind.is_char_device() || kind.is_block_device() || kind.is_socket() {
            continue;
        }
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        let layer = &stack[hasher.finish() as usize % stack.len()];
        copy_dir(tree, relative, layer);
        let (from, to) = (tree.join(&path), layer.join(&path));
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
        }
        let meta = from.symlink_metadata().unwrap();
        std::os::unix::fs::lchown(&to, Some(meta.uid()), Some(meta.gid())).unwrap();
    }
}

fn copy_dir(tree: &Path, relative: &Path, layer: &Path) {
    let mut below = PathBuf::new();
    for part in relative.components() {
        below.push(part);
        let to = layer.join(&below);
        if fs::create_dir(&to).is_ok() {
            let meta = tree.join(&below).metadata().unwrap();
            fs::set_permissions(&to, meta.permissions()).unwrap();
        }
    }
}

fn made_tree(dir: &Path) -> PathBuf {
    let data = vec![b'x'; 4096];
    for n in 0..4000 {
        let dir = dir.join(format!("usr/d{}/e{}", n % 20, n % 100));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), &data).unwrap();
    }
    dir.to_path_buf()
}

fn rootfs(dir: &Path) -> PathBuf {
    if !dir.exists() {
        eprintln!("making a Debian root file system in {}", dir.display());
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/rootfs.sh");
        if let Err(why) = sh("\"$1\" \"$2\"", &[&script, dir]) {
            panic!("benches/rootfs.sh: {why} (--quick measures without it)");
        }
    }
    dir.to_path_buf()
}
