//! What is measured, and where: the subjects, the layers, and a mount that a workload may
//! unmount, mount again and make cold. Used by `main` and every workload.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::mount::{Fs, Mounted, Scratch, Stack, UNIONFS};

/// Kernel overlayfs as it comes: what the ratios are to.
const KERNEL: Fs = Fs::Kernel("redirect_dir=on,metacopy=off");

/// One column of the report.
pub(crate) struct Subject {
    pub(crate) name: String,
    /// `None`: a plain directory with the same files, the limit of what a disk gives.
    fs: Option<Fs>,
}

impl Subject {
    pub(crate) fn is_plain(&self) -> bool {
        self.fs.is_none()
    }

    /// What a program of somebody else's says it is.
    pub(crate) fn version(&self) -> Option<String> {
        let Some(Fs::Program(program)) = &self.fs else {
            return None;
        };
        let text = sh("\"$1\" --version 2>&1", &[program]).ok()?;
        text.lines().next().map(str::to_owned)
    }
}

/// Kernel overlayfs first: the ratios are to it.
pub(crate) fn subjects(peer: Option<PathBuf>) -> Vec<Subject> {
    let one = |name: &str, fs| Subject {
        name: name.into(),
        fs,
    };
    let mut subjects = vec![one("kernel", Some(KERNEL)), one("unionfs", Some(UNIONFS))];
    let peer = peer
        .or_else(|| std::env::var_os("PEER").map(Into::into))
        .or_else(|| on_path("fuse-overlayfs"));
    if let Some(program) = peer {
        subjects.push(one("fuse-overlayfs", Some(Fs::Program(program))));
    }
    subjects.push(one("plain", None));
    subjects
}

/// Where a program is.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|p| p.exists())
}

/// Runs a command; its output when it fails is the error.
pub(crate) fn sh(script: &str, args: &[&Path]) -> Result<String, String> {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script, "bash"])
        .args(args)
        .output()
        .map_err(|e| format!("bash: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

/// The files, in stacks of several depths; and somewhere to put more.
pub(crate) struct Layers {
    pub(crate) scratch: Scratch,
    tree: PathBuf,
    /// Whether the tree is a root file system with programs in it.
    pub(crate) rootfs: bool,
}

/// Depths of the stacks that are made.
const DEPTHS: [usize; 4] = [1, 4, 32, 128];
/// Bytes of the file whose copy-up is measured, at the root of the top layer.
pub(crate) const LARGE: u64 = 1 << 30;
/// Its name.
pub(crate) const LARGE_NAME: &str = "large.bin";
/// Bytes of `lower.bin`, beside it, which fio reads; as `size` in `benches/fio/data.fio`.
pub(crate) const FIO_SIZE: u64 = 256 << 20;
/// Directory with [`MANY`] entries, in the bottom layer.
pub(crate) const MANY_NAME: &str = "many";
/// Its entries.
pub(crate) const MANY: usize = 100_000;

impl Layers {
    /// From a Debian root file system (kept in `target/bench/rootfs`), or `quick`ly made up.
    pub(crate) fn make(quick: bool) -> Self {
        let scratch = Scratch::disk();
        let tree = if quick {
            made_tree(&scratch.dir("tree"))
        } else {
            rootfs()
        };
        let layers = Self {
            scratch,
            tree,
            rootfs: !quick,
        };
        for depth in DEPTHS {
            eprintln!("spreading the files over {depth} layers");
            layers.spread(depth);
        }
        let top = layers.stack(4)[0].clone();
        fill(&top.join(LARGE_NAME), LARGE);
        fill(&top.join("lower.bin"), FIO_SIZE);
        let many = layers.stack(4)[3].join(MANY_NAME);
        fs::create_dir(&many).unwrap();
        for n in 0..MANY {
            fs::File::create(many.join(format!("entry-{n}"))).unwrap();
        }
        layers
    }

    /// Directories of a stack, top first.
    fn stack(&self, depth: usize) -> Vec<PathBuf> {
        let base = self.scratch.path().join(format!("stack-{depth}"));
        (0..depth).map(|n| base.join(n.to_string())).collect()
    }

    /// Every file goes to one of `depth` layers; a directory to those that have something in
    /// it, which is what makes a merge.
    fn spread(&self, depth: usize) {
        let stack = self.stack(depth);
        for layer in &stack {
            fs::create_dir_all(layer).unwrap();
        }
        place(&self.tree, Path::new(""), &stack);
    }
}

fn fill(path: &Path, size: u64) {
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
            // In the bottom layer with its mode, above where needed.
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

fn rootfs() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("target/bench/rootfs");
    if !dir.exists() {
        eprintln!("making a Debian root file system in {}", dir.display());
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        let script = root.join("benches/rootfs.sh");
        if let Err(why) = sh("\"$1\" \"$2\"", &[&script, &dir]) {
            panic!("benches/rootfs.sh: {why} (--quick measures without it)");
        }
    }
    dir
}

/// Why a row has no figure for a subject that has no such thing; not a failure.
pub(crate) const NOTHING: &str = "has no such thing";

/// A place to run workloads on. Made fresh for every subject and round; what a workload
/// leaves in it the later ones see.
pub(crate) struct Bed<'l> {
    pub(crate) layers: &'l Layers,
    fs: Option<&'l Fs>,
    stack: Stack,
    mounted: Option<Mounted>,
    own: PathBuf,
}

impl<'l> Bed<'l> {
    pub(crate) fn new(layers: &'l Layers, subject: &'l Subject, depth: usize) -> Self {
        let own = layers.scratch.dir(&format!("bed-{}", subject.name));
        let dir = |name: &str| layers.scratch.dir(&format!("bed-{}/{name}", subject.name));
        let stack = Stack {
            lowers: layers.stack(depth),
            upper: Some((dir("upper"), dir("work"))),
            mnt: dir("mnt"),
        };
        let mut bed = Self {
            layers,
            fs: subject.fs.as_ref(),
            stack,
            mounted: None,
            own,
        };
        if bed.fs.is_none() {
            bed.fill_plain();
        }
        bed.mount();
        bed
    }

    /// The merged files as an ordinary directory.
    fn fill_plain(&self) {
        let stack = Stack {
            mnt: self.own.join("merged"),
            ..self.stack.clone()
        };
        fs::create_dir(&stack.mnt).unwrap();
        let merged = KERNEL.mount(&stack);
        sh("cp -a \"$1/.\" \"$2\"", &[merged.path(), &self.stack.mnt]).unwrap();
    }

    fn mount(&mut self) {
        self.mounted = self.fs.map(|fs| fs.mount(&self.stack));
    }

    /// Where the files are.
    pub(crate) fn path(&self) -> &Path {
        &self.stack.mnt
    }

    /// A directory on the disk beside the mount, for what goes in or out.
    pub(crate) fn outside(&self) -> &Path {
        &self.own
    }

    /// Fails on the plain directory: there is nothing of this kind to measure.
    pub(crate) fn need_mount(&self) -> Result<(), String> {
        self.fs.map(drop).ok_or_else(|| NOTHING.to_owned())
    }

    /// Processes that serve the mount.
    pub(crate) fn servers(&self) -> &[u32] {
        self.mounted.as_ref().map_or(&[], Mounted::servers)
    }

    /// Unmounts and mounts again: the server and the kernel have forgotten names and pages of
    /// the mount, but not of the layers. How long the mounting took.
    pub(crate) fn remount(&mut self) -> std::time::Duration {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount();
        }
        let start = std::time::Instant::now();
        self.mount();
        start.elapsed()
    }

    /// After it the disk is cold too.
    pub(crate) fn drop_caches(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount();
        }
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        self.mount();
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        self.mounted = None;
        if let Err(e) = fs::remove_dir_all(&self.own) {
            eprintln!("remove {}: {e}", self.own.display());
        }
    }
}
