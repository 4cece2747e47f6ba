//! Lowers that are neither directories nor a catalog: names, attributes and data in memory, as an
//! image would be whose data is fetched when it is read. The union is the same over all three.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use unionfs::catalog::{self, CatalogFile, Label};
use unionfs::layer::at::Stat;
use unionfs::layer::lower::LowerDir;
use unionfs::layer::origin::Origin;
use unionfs::layer::{Dialect, LayerSpec, OpenDir, StackSpec, UpperSpec};
use unionfs::lowers::{
    FileId, FoundIn, Gather, LayerEntry, LayerListing, Layers, LowerDirs, LowerFile, LowerLookup,
    Lowers, MergedDir, Plain, Source,
};
use unionfs::union::{
    Caching, FileKind, Ino, Options, ROOT_INO, RenameFlags, Result, Union, Write, XattrFlags,
};

use crate::support::caller;

/// The lowers: path, permissions, and content, target or nothing.
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
    /// For a directory, and for the root, which is the first node.
    dir: Option<Arc<LowerDir>>,
}

/// The lowers of a mount. No layer has any of their names.
#[derive(Clone, Debug)]
struct Memory(Arc<Nodes>);

#[derive(Debug)]
struct Nodes {
    layers: Arc<Layers>,
    nodes: Vec<Node>,
    opened: Arc<AtomicUsize>,
}

/// Opens [`Memory`], and counts how often data is opened.
#[derive(Clone, Debug, Default)]
struct InMemory {
    opened: Arc<AtomicUsize>,
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
                // A file system of its own: its numbers are not those of another one.
                dev: u64::MAX,
                ino: 100 + n as u64,
                kind,
                perm,
                nlink: 1,
                size: content.len() as u64,
                blocks: content.len().div_ceil(512) as u64,
                ..over.stat
            };
            let name = name.as_bytes();
            let dir = || LowerDir::known(&over, name, stat, false);
            nodes.push(Node {
                parent,
                name: name.into(),
                stat,
                content,
                dir: (kind == FileKind::Directory).then(dir),
            });
        }
        Some(Arc::new(Memory(Arc::new(Nodes {
            layers: Arc::clone(layers),
            nodes,
            opened: Arc::clone(&self.opened),
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

    /// The number of a file, in a directory.
    fn id_of(&self, file: &LowerFile) -> FileId {
        file.id.expect("all files have numbers")
    }
}

impl Lowers for Memory {
    fn layers(&self) -> &Arc<Layers> {
        &self.0.layers
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
        // Directories are asked themselves.
        self.node(id).dir.is_none().then_some(Errno::NODATA)
    }

    fn hold_dir(&self, _: &LowerDir) -> Result<Arc<OwnedFd>, Errno> {
        // No directory has xattrs, and the layer's root has none either.
        Ok(Arc::clone(&self.0.layers.roots()[0].layer.root))
    }

    fn origin(&self, _: &LowerFile) -> Result<Option<Origin>, Errno> {
        Ok(None)
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
        self.0.opened.fetch_add(1, Ordering::Relaxed);
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
                    name: Arc::clone(&node.name),
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

/// Where lower names come from.
#[derive(Clone, Debug)]
enum Names {
    Directories,
    Catalog,
    Memory(InMemory),
}

/// A stack of one lower and an upper, and where its lower names come from.
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
        let union = Union::new(&self.stack(), options).unwrap();
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

/// A path that was looked up, with all counts given back.
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

/// What a union shows below a directory: attributes, and content if wanted.
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

/// Changes of all kinds; returns what each answered.
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

/// One script over layer directories, a catalog, and memory: the answers are the same, and what is
/// there afterwards, now and for the next union over the same upper.
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

/// Data is opened when it is read or copied up, and not before.
#[test]
fn data_in_memory_is_opened_on_demand() {
    let source = InMemory::default();
    let opened = || source.opened.load(Ordering::Relaxed);
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
