//! Lowers that are neither directories nor a catalog: names, attributes and data are in memory,
//! like an image whose data is fetched on a read. The union is the same over all three kinds. It
//! never reads the layer directory that the lowers in memory replace.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io::Write as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{MemfdFlags, StatVfs, StatVfsMountFlags};
use rustix::io::Errno;
use testkit::layers::set_xattr;
use testkit::need;
use testkit::need::is_root;
use unionfs::catalog::{self, CatalogFile, Label};
use unionfs::layer::at::Stat;
use unionfs::layer::lower::{KnownDir, LowerDir};
use unionfs::layer::origin::{Origin, OriginFile};
use unionfs::layer::{Dialect, LayerSpec, OpenDir, StackSpec, UpperSpec};
use unionfs::lowers::{
    FileId, FindOrigin, FoundIn, Gather, LayerEntry, LayerListing, Layers, ListedName, LowerDirs,
    LowerFile, LowerLookup, Lowers, MergedDir, Plain, Source,
};
use unionfs::union::{
    Caching, FileKind, Ino, Options, ROOT_INO, RenameFlags, Result, Union, Write, XattrFlags,
};

use crate::support::caller;

/// The lowers: path, permissions, and content, link target or nothing.
const TREE: [(&str, FileKind, u32, &str); 7] = [
    ("a", FileKind::Regular, 0o644, "the first file"),
    ("bin", FileKind::Directory, 0o755, ""),
    ("bin/link", FileKind::Symlink, 0o777, "tool"),
    ("bin/tool", FileKind::Regular, 0o755, "a program"),
    ("etc", FileKind::Directory, 0o755, ""),
    ("etc/conf", FileKind::Regular, 0o600, "key=value"),
    ("etc/empty", FileKind::Regular, 0o644, ""),
];

/// One file of [`TREE`].
#[derive(Debug)]
struct Node {
    parent: usize,
    name: Arc<[u8]>,
    stat: Stat,
    content: &'static str,
    /// Set for a directory, and for the root, which is the first node.
    dir: Option<Arc<LowerDir>>,
}

/// The lowers of a mount. The layer directory has none of their names.
#[derive(Clone, Debug)]
struct Memory(Arc<Nodes>);

#[derive(Debug)]
struct Nodes {
    nodes: Vec<Node>,
    source: InMemory,
}

/// Opens [`Memory`], and counts the requests.
#[derive(Clone, Debug, Default)]
struct InMemory {
    calls: Arc<Calls>,
    /// Whether the process may not search for origins.
    is_unprivileged: bool,
}

#[derive(Debug, Default)]
struct Calls {
    opened: AtomicUsize,
    searched: AtomicUsize,
    looked_up: AtomicUsize,
    compared: AtomicUsize,
}

/// The device number of the lowers in memory.
const DEVICE: u64 = u64::MAX;
const UUID: [u8; 16] = [7; 16];
const BLOCKS: u64 = 4711;
const NAME_MAX: usize = 300;

/// Returns the origin of a node: `struct ovl_fb` with its number as the handle.
fn origin_of(id: FileId) -> Origin {
    let head = [0, 0xfb, 25, 0, 1];
    let bytes = [&head[..], &UUID, &id.0.to_ne_bytes()].concat();
    Origin::parse(&bytes).unwrap()
}

/// A directory of [`Memory`].
#[derive(Debug)]
struct Directory {
    lowers: Memory,
    node: usize,
    top: Arc<LowerDir>,
}

impl Source for InMemory {
    fn open(&self, layers: &Arc<Layers>) -> Option<Arc<dyn Lowers>> {
        let root = Arc::clone(&layers.roots()[0]);
        let mut nodes = vec![Node {
            parent: 0,
            name: Arc::default(),
            stat: root.stat,
            content: "",
            dir: Some(root),
        }];
        for (n, (path, kind, perm, content)) in TREE.into_iter().enumerate() {
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = TREE.iter().position(|(path, ..)| *path == above);
            let parent = parent.map_or(0, |n| n + 1);
            let over = nodes[parent].dir.clone().unwrap();
            let stat = Stat {
                // A separate file system: its inode numbers are independent of others.
                dev: DEVICE,
                ino: 100 + n as u64,
                kind,
                perm,
                nlink: 1,
                size: content.len() as u64,
                blocks: content.len().div_ceil(512) as u64,
                ..over.stat
            };
            let name = name.as_bytes();
            let dir = || {
                LowerDir::known(
                    &over,
                    name,
                    KnownDir {
                        stat,
                        xwhiteouts: false,
                        wh_files: false,
                    },
                )
            };
            nodes.push(Node {
                parent,
                name: name.into(),
                stat,
                content,
                dir: (kind == FileKind::Directory).then(dir),
            });
        }
        Some(Arc::new(Memory(Arc::new(Nodes {
            nodes,
            source: self.clone(),
        }))))
    }
}

impl Memory {
    fn node(&self, id: FileId) -> &Node {
        &self.0.nodes[id.0 as usize]
    }

    fn directory(&self, node: usize) -> Option<LowerDirs> {
        let top = self.0.nodes[node].dir.clone()?;
        let lowers = self.clone();
        Some(Arc::new(Directory { lowers, node, top }).into())
    }

    fn children(&self, parent: usize) -> impl Iterator<Item = (FileId, &Node)> {
        let nodes = self.0.nodes.iter().enumerate().skip(1);
        nodes
            .filter(move |(_, node)| node.parent == parent)
            .map(|(n, node)| (FileId(n as u32), node))
    }

    /// Returns the number of a file in a directory.
    fn id_of(&self, file: &LowerFile) -> FileId {
        file.id.expect("all files have numbers")
    }
}

impl Lowers for Memory {
    fn layers(&self) -> &Arc<Layers> {
        panic!("a layer is read")
    }

    fn root(&self) -> LowerDirs {
        self.directory(0).unwrap()
    }

    fn is_indexed(&self) -> bool {
        true
    }

    fn plain(&self, id: FileId) -> Plain {
        Plain::File(id, self.node(id).stat)
    }

    fn file(&self, id: FileId) -> Result<LowerFile, Errno> {
        let node = self.node(id);
        Ok(LowerFile {
            dir: self.0.nodes[node.parent].dir.clone().unwrap(),
            name: Arc::clone(&node.name),
            stat: node.stat,
            data: None,
            id: Some(id),
            is_bare: false,
        })
    }

    fn stat(&self, id: FileId) -> Result<Stat, Errno> {
        Ok(self.node(id).stat)
    }

    fn target(&self, id: FileId) -> Option<Vec<u8>> {
        Some(self.node(id).content.as_bytes().to_vec())
    }

    fn has_no_xattrs(&self, id: FileId) -> bool {
        self.node(id).dir.is_none()
    }

    fn absent_xattr(
        &self,
        id: FileId,
        _: &[u8],
        _: &mut dyn FnMut(&CStr) -> Result<(), Errno>,
    ) -> Option<Errno> {
        // Directories answer this themselves.
        self.node(id).dir.is_none().then_some(Errno::NODATA)
    }

    fn hold_dir(&self, _: &LowerDir) -> Result<Arc<OwnedFd>, Errno> {
        // No directory has xattrs, and neither has the layer's root.
        Ok(Arc::clone(
            &self.0.nodes[0].dir.as_ref().unwrap().layer.root,
        ))
    }

    fn origin(&self, file: &LowerFile) -> Result<Option<Origin>, Errno> {
        Ok(Some(origin_of(self.id_of(file))))
    }

    fn dir_origin(&self, _: &LowerDir, _: BorrowedFd<'_>) -> Option<Origin> {
        None
    }

    fn find_origin(
        &self,
        origin: &Origin,
        _: Option<&FindOrigin>,
    ) -> Result<Option<OriginFile>, Errno> {
        self.0.source.calls.searched.fetch_add(1, Ordering::Relaxed);
        if self.0.source.is_unprivileged {
            return Err(Errno::PERM);
        }
        let mut ids = (0..self.0.nodes.len()).map(|n| FileId(n as u32));
        let found = ids.find(|id| origin_of(*id) == *origin);
        Ok(found.map(|id| OriginFile::from(&self.node(id).stat)))
    }

    fn same_name_origin(
        &self,
        dir: &LowerDirs,
        name: &[u8],
        origin: &Origin,
    ) -> Option<OriginFile> {
        let calls = &self.0.source.calls;
        calls.looked_up.fetch_add(1, Ordering::Relaxed);
        let parent = dir.id()?.0 as usize;
        let mut children = self.children(parent);
        let (id, node) = children.find(|(_, node)| *node.name == *name)?;
        (origin_of(id) == *origin).then(|| OriginFile::from(&node.stat))
    }

    fn check_claim(&self, claimed: &[u8], file: &LowerFile) -> Result<(), Errno> {
        self.0.source.calls.compared.fetch_add(1, Ordering::Relaxed);
        if origin_of(self.id_of(file)).as_bytes() == claimed {
            Ok(())
        } else {
            Err(Errno::IO)
        }
    }

    fn statfs(&self) -> Result<StatVfs, Errno> {
        Ok(StatVfs {
            f_bsize: 4096,
            f_frsize: 4096,
            f_blocks: BLOCKS,
            f_bfree: 0,
            f_bavail: 0,
            f_files: self.0.nodes.len() as u64,
            f_ffree: 0,
            f_favail: 0,
            f_fsid: 0,
            f_flag: StatVfsMountFlags::RDONLY,
            f_namemax: NAME_MAX as u64,
        })
    }

    fn devices(&self) -> Vec<u64> {
        vec![DEVICE]
    }

    fn name_max(&self) -> usize {
        NAME_MAX
    }

    fn has_acl(&self) -> bool {
        false
    }

    fn is_stacked(&self) -> bool {
        true
    }

    fn places(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn file_systems(&self) -> Vec<(u64, BorrowedFd<'_>)> {
        Vec::new()
    }

    fn hold(&self, file: &LowerFile) -> Result<OwnedFd, Errno> {
        if file.stat.kind == FileKind::Symlink {
            let dir = tempfile::tempdir().unwrap();
            let link = dir.path().join("link");
            std::os::unix::fs::symlink(self.node(self.id_of(file)).content, &link).unwrap();
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
            return rustix::fs::open(&link, flags, rustix::fs::Mode::empty());
        }
        rustix::fs::memfd_create("metadata", MemfdFlags::CLOEXEC)
    }

    fn open(&self, file: &LowerFile) -> Result<OwnedFd, Errno> {
        self.0.source.calls.opened.fetch_add(1, Ordering::Relaxed);
        let fd = rustix::fs::memfd_create("data", MemfdFlags::CLOEXEC)?;
        let mut data = std::fs::File::from(fd);
        let content = self.node(self.id_of(file)).content;
        data.write_all(content.as_bytes()).unwrap();
        Ok(data.into())
    }
}

impl MergedDir for Directory {
    fn parts(&self) -> usize {
        1
    }

    fn top(&self) -> &Arc<LowerDir> {
        &self.top
    }

    fn all(&self) -> Result<&[Arc<LowerDir>], Errno> {
        Ok(std::slice::from_ref(&self.top))
    }

    fn id(&self) -> Option<FileId> {
        Some(FileId(self.node as u32))
    }

    fn lookup(
        &self,
        name: &[u8],
        redirect: Option<&[u8]>,
        skip: usize,
    ) -> Result<LowerLookup, Errno> {
        assert_eq!(skip, 0, "there is one part");
        let (mut at, path) = match redirect.map(|to| (to, to.strip_prefix(b"/"))) {
            Some((_, Some(path))) => (0, path),
            Some((to, None)) => (self.node, to),
            None => (self.node, name),
        };
        let mut found = None;
        for name in path.split(|byte| *byte == b'/') {
            let mut children = self.lowers.children(at);
            let Some((id, _)) = children.find(|(_, node)| *node.name == *name) else {
                return Ok(LowerLookup::Absent);
            };
            at = id.0 as usize;
            found = Some(id);
        }
        let found = found.ok_or(Errno::NOENT)?;
        Ok(match self.lowers.directory(found.0 as usize) {
            Some(dirs) => LowerLookup::Dirs(dirs),
            None => LowerLookup::File(self.lowers.file(found)?),
        })
    }

    fn plain(&self, name: &[u8]) -> Plain {
        let mut children = self.lowers.children(self.node);
        match children.find(|(_, node)| *node.name == *name) {
            Some((id, node)) if node.dir.is_none() => Plain::File(id, node.stat),
            Some(_) => Plain::Unknown,
            None => Plain::Absent,
        }
    }

    fn list(&self, gather: &mut Gather<'_>) -> Result<(), Errno> {
        let number = gather.numbers();
        let mut entries = Vec::new();
        for (id, node) in self.lowers.children(self.node) {
            if gather.wants(&node.name) {
                entries.push(LayerEntry {
                    name: ListedName::from(&*node.name),
                    kind: Some(node.stat.kind),
                    ino: Some(number(node.stat.dev, node.stat.ino)),
                    id: node.dir.is_none().then_some(id),
                    whiteout: false,
                });
            }
        }
        gather.layer(LayerListing {
            found_in: FoundIn::Lower(0),
            entries,
            hides_below: Vec::new(),
        });
        Ok(())
    }
}

/// The source of lower names.
#[derive(Clone, Debug)]
enum Names {
    Directories,
    Catalog,
    Memory(InMemory),
}

/// A stack of one lower and an upper, and the source of its lower names.
struct World {
    dir: tempfile::TempDir,
    names: Names,
}

impl World {
    fn new(names: Names) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-core.")
            .tempdir()
            .unwrap();
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let world = Self { dir, names };
        if !matches!(world.names, Names::Memory(_)) {
            fill(&world.path("lower"));
        }
        if matches!(world.names, Names::Catalog) {
            let (stack, file) = (world.stack(), world.path("catalog"));
            catalog::build(&stack, &Label::default(), &file, &mut |_| true).unwrap();
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stack(&self) -> StackSpec {
        let layer = |name| LayerSpec::open(self.path(name), Dialect::ALL).unwrap();
        StackSpec {
            lowers: vec![layer("lower")],
            data_only: Vec::new(),
            upper: Some(UpperSpec {
                layer: layer("upper"),
                work: OpenDir::open(self.path("work")).unwrap(),
            }),
        }
    }

    fn union(&self) -> Union {
        self.union_of(&self.stack())
    }

    fn union_of(&self, stack: &StackSpec) -> Union {
        let names: Option<Arc<dyn Source>> = match &self.names {
            Names::Directories => None,
            Names::Catalog => Some(CatalogFile::source(self.path("catalog"))),
            Names::Memory(source) => Some(Arc::new(source.clone())),
        };
        let is_indexed = names.is_some();
        let options = Options {
            volatile: true,
            names,
            ..Options::default()
        };
        let union = Union::new(stack, options).unwrap();
        assert_eq!(union.is_catalogued(), is_indexed);
        union
    }
}

/// Makes [`TREE`] on disk.
fn fill(dir: &Path) {
    for (path, kind, perm, content) in TREE {
        let path = dir.join(path);
        match kind {
            FileKind::Directory => std::fs::create_dir(&path).unwrap(),
            FileKind::Symlink => std::os::unix::fs::symlink(content, &path).unwrap(),
            _ => std::fs::write(&path, content).unwrap(),
        }
        if kind != FileKind::Symlink {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(perm)).unwrap();
        }
    }
}

/// Looks a path up, calls `then`, and gives all counts back.
fn find<T>(union: &Union, path: &str, then: impl FnOnce(Ino) -> T) -> T {
    let mut held = Vec::new();
    let mut ino = ROOT_INO;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let entry = union.lookup(ino, name.as_bytes()).unwrap();
        let entry = entry.unwrap_or_else(|| panic!("{path}: no {name}"));
        ino = entry.attr().ino;
        held.push(entry);
    }
    then(ino)
}

fn listed(union: &Union, dir: Ino) -> Vec<String> {
    let mut names = Vec::new();
    let mut sink = |item: unionfs::union::DirItem<'_, '_>| {
        names.push(String::from_utf8(item.name.to_vec()).unwrap());
        true
    };
    union.readdir(dir, 0, &mut sink).unwrap();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

/// Returns what a union shows below a directory: attributes, and content if requested.
fn tree(union: &Union, content: impl Fn(Ino) -> String + Copy) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(above) = todo.pop() {
        for name in find(union, &above, |dir| listed(union, dir)) {
            let path = format!("{above}/{name}");
            let shown = find(union, &path, |ino| {
                let attr = union.getattr(ino).unwrap();
                let kind = attr.kind;
                let names = union.listxattr(ino, &|| true).unwrap();
                let shown = String::from_utf8_lossy(&names).into_owned();
                if kind == FileKind::Directory {
                    todo.push(path.clone());
                    return format!("{kind:?} {:o} {shown:?}", attr.perm);
                }
                let inside = match kind {
                    FileKind::Symlink => String::from_utf8(union.readlink(ino).unwrap()).unwrap(),
                    _ => content(ino),
                };
                let (perm, size, links) = (attr.perm, attr.size, attr.nlink);
                format!("{kind:?} {perm:o} {size} {links} {inside:?} {shown:?}")
            });
            found.insert(path, shown);
        }
    }
    found
}

fn read(union: &Union, ino: Ino) -> String {
    let mut data = [0; 64];
    let count = union.read(ino, 0, &mut data, Caching::Cached).unwrap();
    String::from_utf8(data[..count].to_vec()).unwrap()
}

/// Makes changes of all kinds; returns the answer of each.
fn change(union: &Union) -> Vec<String> {
    let mut log = Vec::new();
    let mut note = |what: &str, done: Result<()>| {
        log.push(format!("{what}: {:?}", done.map_err(|e| e.errno())));
    };
    let caller = caller();
    let write = |ino, offset, data: &[u8]| {
        let written = union.write(ino, offset, data, Write::default(), None);
        written.map(|_| ())
    };
    note("write", find(union, "a", |ino| write(ino, 4, b"FIRST")));
    let set = |ino| union.setxattr(ino, b"user.x", b"1", XattrFlags::default());
    note("setxattr", find(union, "bin/tool", set));
    note(
        "unlink",
        find(union, "etc", |dir| union.unlink(dir, b"empty")),
    );
    note(
        "no such",
        find(union, "etc", |dir| union.unlink(dir, b"no")),
    );
    note("not empty", union.rmdir(ROOT_INO, b"etc"));
    let made = union.mkdir(&caller, ROOT_INO, b"new", 0o700, 0);
    note("mkdir", made.map(|_| ()));
    let moved = find(union, "etc", |from| {
        find(union, "new", |to| {
            union.rename(from, b"conf", to, b"moved", RenameFlags::default())
        })
    });
    note("rename", moved);
    let of_dir = find(union, "new", |to| {
        union.rename(ROOT_INO, b"bin", to, b"bin", RenameFlags::default())
    });
    note("rename of a merged directory", of_dir);
    note("rmdir", union.rmdir(ROOT_INO, b"etc"));
    let linked = find(union, "a", |ino| union.link(ino, ROOT_INO, b"b"));
    note("link", linked.map(|_| ()));
    log
}

/// One script over layer directories, a catalog, and memory: the answers are the same, and so is
/// the tree afterwards, for this union and for the next one over the same upper.
#[test]
fn a_third_kind_of_lowers_needs_no_change_in_the_union() {
    let run = |names: Names| {
        let world = World::new(names);
        let union = world.union();
        let before = tree(&union, |ino| read(&union, ino));
        let log = change(&union);
        let after = tree(&union, |ino| read(&union, ino));
        assert_eq!(union.counters().inodes, 1, "all counts were given back");
        drop(union);
        let again = world.union();
        assert_eq!(tree(&again, |ino| read(&again, ino)), after, "remounted");
        (before, log, after)
    };
    let directories = run(Names::Directories);
    assert_eq!(directories.0.len(), TREE.len());
    assert_eq!(directories.2["/a"].matches("the FIRST file").count(), 1);
    assert_eq!(run(Names::Catalog), directories, "catalog");
    assert_eq!(
        run(Names::Memory(InMemory::default())),
        directories,
        "memory"
    );
}

/// Data is opened on a read or a copy-up, and not before.
#[test]
fn data_in_memory_is_opened_on_demand() {
    let source = InMemory::default();
    let opened = || source.calls.opened.load(Ordering::Relaxed);
    let world = World::new(Names::Memory(source.clone()));
    let union = world.union();
    tree(&union, |_| String::new());
    assert_eq!(opened(), 0, "names and attributes need no data");
    find(&union, "bin/tool", |ino| {
        assert_eq!(read(&union, ino), "a program");
        assert_eq!(read(&union, ino), "a program");
    });
    assert_eq!(opened(), 1);
    find(&union, "bin", |bin| {
        let to = b"renamed";
        union.rename(bin, b"link", bin, to, RenameFlags::default())
    })
    .unwrap();
    assert_eq!(opened(), 1, "a symlink has no data");
    find(&union, "etc/conf", |ino| {
        let written = union.write(ino, 0, b"K", Write::default(), None);
        assert_eq!(written.unwrap(), 1);
        assert_eq!(read(&union, ino), "Key=value");
    });
    assert_eq!(opened(), 2, "copied up once");
    let copy = std::fs::read(world.path("upper/etc/conf")).unwrap();
    assert_eq!(copy, b"Key=value");
    assert_eq!(std::fs::read_dir(world.path("lower")).unwrap().count(), 0);
}

/// A copy in the upper keeps the inode number of its lower file, also under another name, because
/// its origin refers to that file. A process that may not search looks up the file of the same
/// name.
#[test]
fn origins_of_files_in_memory_are_found() {
    let number = |union: &Union, path: &str| find(union, path, |ino| ino);
    let copied_up = |source: &InMemory| {
        let world = World::new(Names::Memory(source.clone()));
        let union = world.union();
        let numbers = ["a", "etc/conf"].map(|path| number(&union, path));
        for path in ["a", "etc/conf"] {
            let written = find(&union, path, |ino| {
                union.write(ino, 0, b"X", Write::default(), None)
            });
            written.unwrap();
        }
        find(&union, "etc", |etc| {
            union.rename(etc, b"conf", ROOT_INO, b"moved", RenameFlags::default())
        })
        .unwrap();
        drop(union);
        (world, numbers)
    };

    let source = InMemory::default();
    let (world, numbers) = copied_up(&source);
    let calls = &source.calls;
    assert_eq!(
        calls.searched.load(Ordering::Relaxed),
        0,
        "nothing was copied up before"
    );
    // The function that opens handles for a process without the privilege goes to the lowers, which
    // do not need it.
    let union = world.union();
    union.find_origins_by(Box::new(|_, _| panic!("memory has no handles")));
    assert_eq!(["a", "moved"].map(|path| number(&union, path)), numbers);
    assert_eq!(calls.looked_up.load(Ordering::Relaxed), 2, "first by name");
    assert_eq!(calls.searched.load(Ordering::Relaxed), 1, "then by origin");
    drop(union);
    let union = world.union();
    assert_eq!(["a", "moved"].map(|path| number(&union, path)), numbers);
    assert_eq!(calls.looked_up.load(Ordering::Relaxed), 2);
    assert_eq!(calls.searched.load(Ordering::Relaxed), 3);

    let source = InMemory {
        is_unprivileged: true,
        ..InMemory::default()
    };
    let (world, numbers) = copied_up(&source);
    let union = world.union();
    assert_eq!(number(&union, "a"), numbers[0]);
    assert_ne!(number(&union, "moved"), numbers[1], "it has another name");
    let calls = &source.calls;
    assert_eq!(calls.searched.load(Ordering::Relaxed), 2);
    assert_eq!(calls.looked_up.load(Ordering::Relaxed), 2);
}

/// The owner of the upper gets no data of a file that they did not copy up: the lowers check the
/// origin that a metacopy claims.
#[test]
fn claims_of_metacopies_are_checked_in_memory() {
    need!(is_root());
    let source = InMemory::default();
    let world = World::new(Names::Memory(source.clone()));
    let upper = world.path("upper");
    let id = |path: &str| TREE.iter().position(|(other, ..)| *other == path).unwrap() + 1;
    let claim = |name: &str, of: &str| {
        let path = upper.join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len("key=value".len() as u64).unwrap();
        let set = |marker: &str, value: &[u8]| {
            set_xattr(&path, format!("trusted.overlay.{marker}").as_bytes(), value);
        };
        set("metacopy", b"");
        set("redirect", b"/etc/conf");
        set("origin", origin_of(FileId(id(of) as u32)).as_bytes());
    };
    claim("right", "etc/conf");
    claim("wrong", "a");
    std::os::unix::fs::chown(&upper, Some(4711), Some(4711)).unwrap();
    let union = world.union();
    let data = find(&union, "right", |ino| read(&union, ino));
    assert_eq!(data, "key=value");
    let refused = union.lookup(ROOT_INO, b"wrong").unwrap_err();
    assert_eq!(refused.errno(), Errno::IO.raw_os_error());
    assert_eq!(source.calls.compared.load(Ordering::Relaxed), 2);
}

/// Without an upper, the union shows the file system of the lowers.
#[test]
fn memory_is_the_file_system_of_a_union_without_an_upper() {
    let world = World::new(Names::Memory(InMemory::default()));
    let union = world.union_of(&StackSpec {
        upper: None,
        ..world.stack()
    });
    let shown = union.statfs().unwrap();
    assert_eq!(shown.blocks, BLOCKS);
    assert_eq!(shown.namelen as usize, NAME_MAX);
    assert!(union.is_stacked());
    assert!(!union.has_acl());
    assert!(union.file_systems().is_empty());
    let (read, write) = union.places();
    assert_eq!((read.len(), write.len()), (0, 0));

    let writable = world.union();
    assert_ne!(
        writable.statfs().unwrap().blocks,
        BLOCKS,
        "that of the upper"
    );
    assert_eq!(writable.statfs().unwrap().namelen as usize, NAME_MAX);
}
