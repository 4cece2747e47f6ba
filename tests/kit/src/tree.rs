//! Full listings of directory trees and their comparison. Compared are names (bytes), type, mode,
//! owner, size, content, xattrs, hard-link groups, link count, mtime to the nanosecond, device
//! number and symlink target.
//!
//! Not compared, because overlay file systems leave them to the backing file system: size, blocks
//! and link count of directories, atime and ctime. An mtime at or after the start of the script
//! counts as "recent" and equals every other recent one: two runs cannot happen in the same
//! nanosecond, but whether an operation changes an mtime at all must agree.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::escape;

/// Seconds and nanoseconds.
pub type Stamp = (i64, i64);

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub nlink: u64,
    pub rdev: u64,
    pub ino: u64,
    pub dev: u64,
    pub mtime: Stamp,
    /// The target of a symlink, or the SHA-256 (hex) of a regular file's content.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name (in byte order) of the same inode, if it has several in this tree.
    pub group: Option<Vec<u8>>,
}

impl Entry {
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
    /// Whether it is a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.kind() == libc::S_IFCHR && self.rdev == 0
    }
}

/// A listing: path below the root (empty for the root itself) to entry.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// Whether `name` is an overlay's private xattr, in any dialect.
pub fn is_private(name: &[u8]) -> bool {
    [
        &b"trusted.overlay."[..],
        b"user.overlay.",
        b"user.fuseoverlayfs.",
    ]
    .iter()
    .any(|p| name.starts_with(p))
}

/// Lists a mounted tree, without private xattrs.
pub fn list(root: &Path) -> Tree {
    let mut tree = list_raw(root);
    for entry in tree.values_mut() {
        entry.xattrs.retain(|name, _| !is_private(name));
    }
    tree
}

/// Lists a directory as it is on disk, with every xattr.
pub fn list_raw(root: &Path) -> Tree {
    let mut tree = Tree::new();
    walk(root, Vec::new(), &mut tree);
    let mut groups: BTreeMap<(u64, u64), Vec<Vec<u8>>> = BTreeMap::new();
    for (path, entry) in &tree {
        if !entry.is_dir() {
            let group = groups.entry((entry.dev, entry.ino)).or_default();
            group.push(path.clone());
        }
    }
    for paths in groups.into_values().filter(|g| g.len() > 1) {
        for path in &paths {
            tree.get_mut(path).unwrap().group = Some(paths[0].clone());
        }
    }
    tree
}

/// Returns `root` joined with a path of a listing.
pub fn at(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() {
        return root.to_path_buf();
    }
    root.join(std::ffi::OsStr::from_bytes(path))
}

fn walk(root: &Path, path: Vec<u8>, tree: &mut Tree) {
    let full = at(root, &path);
    let entry = read_entry(&full);
    let is_dir = entry.is_dir();
    tree.insert(path.clone(), entry);
    if !is_dir {
        return;
    }
    for child in std::fs::read_dir(&full).unwrap_or_else(|e| fail(&full, "readdir", &e)) {
        let child = child.unwrap_or_else(|e| fail(&full, "readdir", &e));
        let mut below = path.clone();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend(child.file_name().as_bytes());
        assert!(
            !tree.contains_key(&below),
            "{} is listed twice",
            escape(&below)
        );
        walk(root, below, tree);
    }
}

fn fail<T>(path: &Path, what: &str, error: &dyn std::fmt::Display) -> T {
    panic!("{what} {}: {error}", path.display())
}

fn read_entry(full: &Path) -> Entry {
    let meta = std::fs::symlink_metadata(full).unwrap_or_else(|e| fail(full, "lstat", &e));
    let kind = meta.mode() & libc::S_IFMT;
    let content = if kind == libc::S_IFREG {
        hash(full).unwrap_or_else(|e| fail(full, "read", &e))
    } else if kind == libc::S_IFLNK {
        let target = std::fs::read_link(full).unwrap_or_else(|e| fail(full, "readlink", &e));
        target.as_os_str().as_bytes().to_vec()
    } else {
        Vec::new()
    };
    Entry {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        size: meta.size(),
        nlink: meta.nlink(),
        rdev: meta.rdev(),
        ino: meta.ino(),
        dev: meta.dev(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        content,
        xattrs: xattrs(full).unwrap_or_else(|e| fail(full, "xattrs", &e)),
        group: None,
    }
}

/// Returns the SHA-256 of a file in hex.
pub fn hash(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buf = vec![0u8; 1 << 16];
    loop {
        let n = std::io::Read::read(&mut file, &mut buf)?;
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
    }
    let mut hex = String::new();
    for byte in hasher.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex.into_bytes())
}

/// Returns the names of a file's xattrs, in byte order. Symlinks are not followed.
pub fn xattr_names(path: &Path) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut buf = vec![0u8; 65536];
    let n = rustix::fs::llistxattr(path, &mut buf[..])?;
    Ok(xattr_list(&buf[..n]))
}

/// Returns the names in an answer of listxattr(2), sorted.
pub fn xattr_list(answer: &[u8]) -> Vec<Vec<u8>> {
    let names = answer.split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut names: Vec<_> = names.map(<[u8]>::to_vec).collect();
    names.sort();
    names
}

/// Returns the value of an xattr. Symlinks are not followed.
pub fn xattr(path: &Path, name: &[u8]) -> rustix::io::Result<Vec<u8>> {
    let mut buf = vec![0u8; 65536];
    let n = rustix::fs::lgetxattr(path, name, &mut buf[..])?;
    buf.truncate(n);
    Ok(buf)
}

fn xattrs(path: &Path) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let names = match xattr_names(path) {
        Err(rustix::io::Errno::OPNOTSUPP) => Vec::new(),
        other => other?,
    };
    let mut map = BTreeMap::new();
    for name in names {
        let value = xattr(path, &name)?;
        map.insert(name, value);
    }
    Ok(map)
}

/// The properties that a comparison includes.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// mtimes from here on are "recent"; see the header of the module.
    pub recent: Stamp,
    /// Compare mtimes of directories.
    pub dir_mtimes: bool,
    /// Compare link counts of non-directories.
    pub nlink: bool,
    /// Compare inode numbers and the device.
    pub ino: bool,
}

impl Mask {
    /// Everything but inode numbers. No mtime is recent.
    pub const ALL: Self = Self {
        recent: (i64::MAX, 0),
        dir_mtimes: true,
        nlink: true,
        ino: false,
    };

    /// Makes times from now on recent. The clock of file systems lags by up to a tick.
    pub fn from_now() -> Self {
        let now = SystemTime::now() - Duration::from_secs(1);
        let since = now.duration_since(UNIX_EPOCH).unwrap();
        Self {
            recent: (since.as_secs() as i64, 0),
            ..Self::ALL
        }
    }

    fn mtime(&self, entry: &Entry) -> String {
        if entry.mtime >= self.recent {
            "recent".into()
        } else {
            format!("{}.{:09}", entry.mtime.0, entry.mtime.1)
        }
    }

    /// Returns the compared properties of an entry, each with its name.
    pub fn facts(&self, entry: &Entry) -> Vec<(String, String)> {
        let mut facts = vec![
            ("mode".into(), format!("{:o}", entry.mode)),
            ("owner".into(), format!("{}:{}", entry.uid, entry.gid)),
        ];
        if self.dir_mtimes || !entry.is_dir() {
            facts.push(("mtime".into(), self.mtime(entry)));
        }
        if !entry.is_dir() {
            facts.push(("size".into(), entry.size.to_string()));
            facts.push(("content".into(), escape(&entry.content)));
            let (major, minor) = (libc::major(entry.rdev), libc::minor(entry.rdev));
            facts.push(("rdev".into(), format!("{major}:{minor}")));
            let group = entry.group.as_deref().unwrap_or(b"-");
            facts.push(("link group".into(), escape(group)));
            if self.nlink {
                facts.push(("nlink".into(), entry.nlink.to_string()));
            }
        }
        if self.ino {
            facts.push(("inode".into(), format!("{}:{}", entry.dev, entry.ino)));
        }
        for (name, value) in &entry.xattrs {
            facts.push((format!("xattr {}", escape(name)), escape(value)));
        }
        facts
    }
}

/// Returns the differences between two trees, one line each; empty if they are equal.
pub fn diff(left: &Tree, right: &Tree, mask: &Mask) -> Vec<String> {
    let mut lines = Vec::new();
    let mut paths: Vec<_> = left.keys().chain(right.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let name = format!("/{}", escape(path));
        match (left.get(path), right.get(path)) {
            (Some(l), None) => lines.push(format!("{name}: only left ({:o})", l.mode)),
            (None, Some(r)) => lines.push(format!("{name}: only right ({:o})", r.mode)),
            (Some(l), Some(r)) => {
                let (l, r) = (mask.facts(l), mask.facts(r));
                let differing = l.iter().filter(|f| !r.contains(f)).map(|f| ("left", f));
                let missing = r.iter().filter(|f| !l.contains(f)).map(|f| ("right", f));
                for (side, (what, value)) in differing.chain(missing) {
                    lines.push(format!("{name}: {what}: {side} has {value}"));
                }
            }
            (None, None) => {}
        }
    }
    lines
}

/// Fails with the differences, if there are any.
pub fn assert_same(what: &str, left: &Tree, right: &Tree, mask: &Mask) {
    let lines = diff(left, right, mask);
    assert!(lines.is_empty(), "{what}:\n  {}", lines.join("\n  "));
}
