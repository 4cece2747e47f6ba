//! Layers with given entries, with the same bytes, owners and times at every call. Entries are
//! listed once and can be written in each whiteout dialect.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::escape;
use super::tree::at;

/// The type and content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir,
    File(Vec<u8>),
    /// The length of a sparse file, and the ranges of data in it.
    Sparse(u64, Vec<(u64, Vec<u8>)>),
    Symlink(Vec<u8>),
    /// Another name of an entry that was listed before.
    Link(Vec<u8>),
    /// Type bits and device number.
    Special(u32, u32, u32),
    Whiteout,
}

/// An entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub path: Vec<u8>,
    pub node: Node,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    pub opaque: bool,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The form of whiteouts and opaque directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Char 0:0 and `trusted.overlay.opaque=y`: privileged kernel overlayfs.
    Kernel,
    /// Empty files with `trusted.overlay.whiteout`, their directory marked `opaque=x`.
    TrustedXattr,
    /// Char 0:0 and `user.overlay.opaque=y`: kernel overlayfs with `userxattr`.
    UserOpaque,
    /// Empty files with `user.overlay.whiteout`, `user.overlay.opaque=x`.
    UserXattr,
    /// Char 0:0 and `user.fuseoverlayfs.opaque=y`.
    FuseOverlayfs,
    /// `.wh.NAME` and `.wh..wh..opq`: AUFS, OCI archives.
    WhNames,
}

/// All forms.
pub const FORMS: [Form; 6] = [
    Form::Kernel,
    Form::TrustedXattr,
    Form::UserOpaque,
    Form::UserXattr,
    Form::FuseOverlayfs,
    Form::WhNames,
];

/// A layer: its entries, parents before children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    pub items: Vec<Item>,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(mut self, path: impl AsRef<[u8]>, node: Node) -> Self {
        let mode = match node {
            Node::Dir => 0o755,
            _ => 0o644,
        };
        // The value differs for each entry, and is the same in each run.
        let n = self.items.len() as i64;
        self.items.push(Item {
            path: path.as_ref().to_vec(),
            node,
            mode,
            owner: (0, 0),
            mtime: (1_500_000_000 + n * 1000, 123_456_789 + n),
            opaque: false,
            xattrs: Vec::new(),
        });
        self
    }
    pub fn dir(self, path: impl AsRef<[u8]>) -> Self {
        self.add(path, Node::Dir)
    }
    pub fn file(self, path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.add(path, Node::File(data.as_ref().to_vec()))
    }
    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.add(path, Node::Symlink(target.as_ref().to_vec()))
    }
    pub fn link(self, path: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.add(path, Node::Link(to.as_ref().to_vec()))
    }
    pub fn fifo(self, path: impl AsRef<[u8]>) -> Self {
        self.add(path, Node::Special(libc::S_IFIFO, 0, 0))
    }
    pub fn char_dev(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.add(path, Node::Special(libc::S_IFCHR, major, minor))
    }
    pub fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        self.add(path, Node::Whiteout)
    }
    /// Marks the entry added last, a directory, opaque.
    pub fn opaque(mut self) -> Self {
        self.last().opaque = true;
        self
    }
    /// Permission bits of the entry added last.
    pub fn mode(mut self, mode: u32) -> Self {
        self.last().mode = mode;
        self
    }
    /// Owner of the entry added last.
    pub fn own(mut self, uid: u32, gid: u32) -> Self {
        self.last().owner = (uid, gid);
        self
    }
    /// mtime of the entry added last.
    pub fn mtime(mut self, sec: i64, nsec: i64) -> Self {
        self.last().mtime = (sec, nsec);
        self
    }
    /// Adds an xattr to the entry added last.
    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let pair = (name.as_ref().to_vec(), value.as_ref().to_vec());
        self.last().xattrs.push(pair);
        self
    }
    fn last(&mut self) -> &mut Item {
        self.items.last_mut().unwrap()
    }

    /// Writes the layer into an empty directory, in the kernel form.
    pub fn write(&self, root: &Path) {
        self.write_as(root, Form::Kernel);
    }

    /// Writes the layer into an empty directory, in the given form.
    pub fn write_as(&self, root: &Path, form: Form) {
        for item in &self.items {
            create(root, item, form);
        }
        if matches!(form, Form::TrustedXattr | Form::UserXattr) {
            self.mark_whiteout_dirs(root, form);
        }
        for item in &self.items {
            dress(root, item, form);
        }
        // The times are set last, because creating a child changes those of its directory.
        for item in self.items.iter().rev() {
            if !matches!(item.node, Node::Link(_) | Node::Whiteout) {
                set_mtime(&at(root, &item.path), item.mtime);
            }
        }
        set_mtime(root, (1_400_000_000, 987_654_321));
    }

    /// Marks the directories that contain xattr whiteouts by `opaque=x` (Linux 6.7).
    fn mark_whiteout_dirs(&self, root: &Path, form: Form) {
        let whiteouts = self.items.iter().filter(|i| i.node == Node::Whiteout);
        let parents: BTreeSet<&[u8]> = whiteouts.map(|i| parent(&i.path)).collect();
        for dir in parents {
            set_xattr(&at(root, dir), opaque_name(form), b"x");
        }
    }
}

fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|b| *b == b'/') {
        Some(n) => &path[..n],
        None => b"",
    }
}

fn opaque_name(form: Form) -> &'static [u8] {
    match form {
        Form::Kernel | Form::TrustedXattr => b"trusted.overlay.opaque",
        Form::UserOpaque | Form::UserXattr => b"user.overlay.opaque",
        Form::FuseOverlayfs => b"user.fuseoverlayfs.opaque",
        Form::WhNames => unreachable!("a name, no xattr"),
    }
}

fn create(root: &Path, item: &Item, form: Form) {
    let path = at(root, &item.path);
    let what = || format!("{} in {}", escape(&item.path), root.display());
    match &item.node {
        Node::Dir => std::fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", what())),
        Node::File(data) => {
            std::fs::write(&path, data).unwrap_or_else(|e| panic!("{}: {e}", what()));
        }
        Node::Sparse(len, islands) => {
            let file = File::create(&path).unwrap();
            file.set_len(*len).unwrap();
            for (offset, data) in islands {
                file.write_all_at(data, *offset).unwrap();
            }
        }
        Node::Symlink(target) => rustix::fs::symlink(&target[..], &path).unwrap(),
        Node::Link(to) => std::fs::hard_link(at(root, to), &path).unwrap(),
        Node::Special(kind, major, minor) => mknod(&path, *kind, *major, *minor),
        Node::Whiteout => write_whiteout(&path, form),
    }
}

fn mknod(path: &Path, kind: u32, major: u32, minor: u32) {
    let kind = FileType::from_raw_mode(kind);
    let dev = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), dev).unwrap();
}

fn write_whiteout(path: &Path, form: Form) {
    match form {
        Form::Kernel | Form::UserOpaque | Form::FuseOverlayfs => mknod(path, libc::S_IFCHR, 0, 0),
        Form::TrustedXattr | Form::UserXattr => {
            File::create(path).unwrap();
            let name: &[u8] = match form {
                Form::TrustedXattr => b"trusted.overlay.whiteout",
                _ => b"user.overlay.whiteout",
            };
            set_xattr(path, name, b"y");
        }
        Form::WhNames => {
            let name = path.file_name().unwrap().as_bytes();
            let name = [b".wh.", name].concat();
            File::create(at(path.parent().unwrap(), &name)).unwrap();
        }
    }
}

/// Sets owner, mode and xattrs, in an order in which later calls do not reset earlier values.
fn dress(root: &Path, item: &Item, form: Form) {
    if matches!(item.node, Node::Link(_) | Node::Whiteout) {
        return;
    }
    let path = at(root, &item.path);
    std::os::unix::fs::lchown(&path, Some(item.owner.0), Some(item.owner.1)).unwrap();
    if !matches!(item.node, Node::Symlink(_)) {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(item.mode)).unwrap();
    }
    for (name, value) in &item.xattrs {
        set_xattr(&path, name, value);
    }
    if item.opaque && form == Form::WhNames {
        File::create(path.join(".wh..wh..opq")).unwrap();
    } else if item.opaque {
        set_xattr(&path, opaque_name(form), b"y");
    }
}

/// Sets an xattr, without following symlinks.
pub fn set_xattr(path: &Path, name: &[u8], value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{} on {}: {e}", escape(name), path.display()));
}

/// Sets atime and mtime, without following symlinks.
pub fn set_mtime(path: &Path, (sec, nsec): (i64, i64)) {
    let time = Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Returns a POSIX ACL in the format of its xattr (Linux `include/uapi/linux/posix_acl_xattr.h`):
/// owner, named users, group, mask, other.
pub fn acl(owner: u16, users: &[(u32, u16)], group: u16, mask: u16, other: u16) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let mut entry = |tag: u16, perm: u16, id: u32| {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    };
    entry(0x01, owner, NO_ID);
    for (uid, perm) in users {
        entry(0x02, *perm, *uid);
    }
    entry(0x04, group, NO_ID);
    entry(0x10, mask, NO_ID);
    entry(0x20, other, NO_ID);
    bytes
}

/// Returns a `security.capability` with `cap_net_raw+ep` (VFS_CAP_REVISION_2,
/// `linux/capability.h`).
pub fn net_raw_capability() -> Vec<u8> {
    let mut bytes = 0x0200_0001u32.to_le_bytes().to_vec();
    bytes.extend((1u32 << 13).to_le_bytes());
    bytes.extend([0; 12]);
    bytes
}

/// Writes `layers` (top first) into new directories `l0`, `l1`, … below `base`.
pub fn write_all(layers: &[Layer], base: &Path, form: Form) -> Vec<PathBuf> {
    let write = |(n, layer): (usize, &Layer)| {
        let dir = base.join(format!("l{n}"));
        std::fs::create_dir(&dir).unwrap();
        super::mount::chmod(&dir, 0o755);
        layer.write_as(&dir, form);
        dir
    };
    layers.iter().enumerate().map(write).collect()
}

/// Returns a stack of three layers with every kind of entry, top first.
pub fn standard() -> Vec<Layer> {
    let top = Layer::new()
        .file("top.txt", "top\n")
        .file("both.txt", "from the top layer\n")
        .dir("merged")
        .file("merged/top", "merged top\n")
        .whiteout("merged/gone")
        .file("merged/over", "top over\n")
        .dir("merged/sub")
        .file("merged/sub/t", "t\n")
        .dir("opaque")
        .opaque()
        .file("opaque/new", "new\n")
        .whiteout("removed.txt")
        .whiteout("removed-dir")
        .file("dir-to-file", "now a file\n")
        .dir("file-to-dir")
        .file("file-to-dir/in", "inside\n");
    let middle = Layer::new()
        .dir("merged")
        .mode(0o750)
        .file("merged/middle", "merged middle\n")
        .file("merged/gone", "hidden\n")
        .file("merged/over", "middle under\n")
        .dir("opaque")
        .file("opaque/old", "old\n")
        .file("removed.txt", "hidden\n")
        .dir("removed-dir")
        .file("removed-dir/f", "hidden\n")
        .dir("dir-to-file")
        .file("dir-to-file/f", "hidden\n")
        .dir("deep")
        .dir("deep/a")
        .dir("deep/a/b")
        .dir("deep/a/b/c")
        .file("deep/a/b/c/leaf", "leaf\n")
        .dir("empty");
    vec![top, middle, bottom()]
}

fn bottom() -> Layer {
    let named = acl(7, &[(1000, 7)], 5, 7, 0);
    Layer::new()
        .file("both.txt", "from the bottom layer\n")
        .file("plain.txt", "plain file, lower only\n")
        .mode(0o640)
        .own(1000, 1001)
        .file("empty.txt", "")
        .file("big.bin", big_data())
        .add(
            "sparse.bin",
            Node::Sparse(
                1 << 22,
                vec![(1 << 20, b"island".to_vec()), (4_000_000, b"end".to_vec())],
            ),
        )
        .file("suid", "#!suid\n")
        .mode(0o6755)
        .file("caps", "capable\n")
        .xattr("security.capability", net_raw_capability())
        .file("tagged", "has xattrs\n")
        .xattr("user.colour", "blue")
        .xattr("trusted.note", "secret")
        .file("acl.txt", "acl\n")
        .xattr("system.posix_acl_access", &named)
        .dir("acl-dir")
        .xattr("system.posix_acl_default", &named)
        .file("h1", "hard\n")
        .link("h2", "h1")
        .dir("merged")
        .file("merged/bottom", "merged bottom\n")
        .link("merged/h3", "h1")
        .dir("merged/sub")
        .file("merged/sub/b", "b\n")
        .symlink("link-rel", "plain.txt")
        .symlink("link-dangling", "no/such/file")
        .symlink("link-dir", "merged")
        .fifo("fifo")
        .char_dev("null", 1, 3)
        .mode(0o666)
        .add("block", Node::Special(libc::S_IFBLK, 7, 200))
        .file("file-to-dir", "was a file\n")
        .dir("sticky")
        .mode(0o1777)
        .file("sticky/of-1000", "mine\n")
        .own(1000, 1000)
        .file("sticky/of-1001", "theirs\n")
        .own(1001, 1001)
        .dir("setgid")
        .mode(0o2777)
        .own(0, 1234)
        .dir("closed")
        .mode(0o700)
        .file("closed/f", "closed\n")
        .dir("of-1000")
        .own(1000, 1000)
        .file("of-1000/f", "own\n")
        .own(1000, 1000)
        .file([b'n'; 255], "longest name\n")
        .file(b"\xff\xfe bytes", "not UTF-8\n")
        .file("new\nline", "newline in the name\n")
        .file("a:b,c=d\\e", "punctuation\n")
}

/// Returns 300,000 bytes that are not all equal.
pub fn big_data() -> Vec<u8> {
    (0..300_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}
