//! Random namespace operations on the core and on a model in memory. The model is a tree of maps
//! without layers. Answers and trees must agree, and the inode table must be empty at the end.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use unionfs::union::{Caching, FileKind, ROOT_INO, RenameFlags, Write};

use crate::support::{Held, World, caller};

/// An object of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    /// A file with its content.
    File(Vec<u8>),
    Dir(BTreeMap<&'static str, Node>),
}

type Path = Vec<&'static str>;

#[derive(Clone, Debug)]
enum Op {
    Create(Path),
    Mkdir(Path),
    Write(Path, u8),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path, bool),
    Exchange(Path, Path),
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn path() -> impl Strategy<Value = Path> {
    vec(prop::sample::select(&NAMES[..]), 1..4)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => path().prop_map(Op::Create),
        2 => path().prop_map(Op::Mkdir),
        2 => (path(), any::<u8>()).prop_map(|(p, b)| Op::Write(p, b)),
        2 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        3 => (path(), path(), any::<bool>()).prop_map(|(a, b, n)| Op::Rename(a, b, n)),
        1 => (path(), path()).prop_map(|(a, b)| Op::Exchange(a, b)),
    ]
}

impl Node {
    fn dir(&mut self) -> Result<&mut BTreeMap<&'static str, Node>, i32> {
        match self {
            Self::Dir(map) => Ok(map),
            Self::File(_) => Err(libc::ENOTDIR),
        }
    }

    fn find(&mut self, path: &[&'static str]) -> Result<&mut Node, i32> {
        let mut here = self;
        for name in path {
            here = here.dir()?.get_mut(name).ok_or(libc::ENOENT)?;
        }
        Ok(here)
    }

    fn parent(&mut self, path: &Path) -> Result<&mut BTreeMap<&'static str, Node>, i32> {
        self.find(&path[..path.len() - 1])?.dir()
    }

    /// Resolves both directories before either name is looked up.
    fn parents(&mut self, a: &Path, b: &Path) -> Result<(), i32> {
        self.parent(a)?;
        self.parent(b).map(|_| ())
    }

    fn add(&mut self, path: &Path, node: Node) -> Result<(), i32> {
        let dir = self.parent(path)?;
        if dir.contains_key(last(path)) {
            return Err(libc::EEXIST);
        }
        dir.insert(last(path), node);
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Result<(), i32> {
        match op {
            Op::Create(p) => self.add(p, Node::File(Vec::new())),
            Op::Mkdir(p) => self.add(p, Node::Dir(BTreeMap::new())),
            Op::Write(p, byte) => match self.find(p)? {
                Node::File(data) if data.is_empty() => {
                    data.push(*byte);
                    Ok(())
                }
                Node::File(data) => {
                    data[0] = *byte;
                    Ok(())
                }
                Node::Dir(_) => Err(libc::EISDIR),
            },
            Op::Unlink(p) => match self.find(p)? {
                Node::Dir(_) => Err(libc::EISDIR),
                Node::File(_) => self.parent(p)?.remove(last(p)).map(|_| ()).ok_or(0),
            },
            Op::Rmdir(p) => match self.find(p)? {
                Node::File(_) => Err(libc::ENOTDIR),
                Node::Dir(map) if !map.is_empty() => Err(libc::ENOTEMPTY),
                Node::Dir(_) => self.parent(p)?.remove(last(p)).map(|_| ()).ok_or(0),
            },
            Op::Rename(from, to, noreplace) => self.rename(from, to, *noreplace),
            Op::Exchange(a, b) => self.exchange(a, b),
        }
    }

    fn rename(&mut self, from: &Path, to: &Path, noreplace: bool) -> Result<(), i32> {
        self.parents(from, to)?;
        let node = self.find(from)?.clone();
        if from == to {
            return if noreplace { Err(libc::EEXIST) } else { Ok(()) };
        }
        match (self.find(to).ok(), &node) {
            (Some(_), _) if noreplace => return Err(libc::EEXIST),
            (None | Some(Node::File(_)), Node::File(_)) | (None, _) => {}
            (Some(Node::Dir(map)), Node::Dir(_)) if map.is_empty() => {}
            (Some(Node::Dir(_)), Node::Dir(_)) => return Err(libc::ENOTEMPTY),
            (Some(Node::Dir(_)), Node::File(_)) => return Err(libc::EISDIR),
            (Some(Node::File(_)), Node::Dir(_)) => return Err(libc::ENOTDIR),
        }
        self.parent(from)?.remove(last(from));
        self.parent(to)?.insert(last(to), node);
        Ok(())
    }

    fn exchange(&mut self, a: &Path, b: &Path) -> Result<(), i32> {
        self.parents(a, b)?;
        let (x, y) = (self.find(a)?.clone(), self.find(b)?.clone());
        *self.find(a)? = y;
        *self.find(b)? = x;
        Ok(())
    }
}

fn last(path: &Path) -> &'static str {
    path[path.len() - 1]
}

/// Tells whether the kernel refuses an operation before any file system sees it: a move of a
/// directory into itself, or onto one of its ancestors.
fn kernel_refuses(op: &Op) -> bool {
    match op {
        Op::Rename(a, b, _) | Op::Exchange(a, b) => {
            a != b && (a.starts_with(b) || b.starts_with(a))
        }
        _ => false,
    }
}

/// Performs an operation as the kernel does: it looks the parent up name by name, then calls the
/// operation.
fn perform(world: &World, op: &Op) -> Result<(), i32> {
    let union = &world.union;
    let caller = caller();
    let dir = |path: &Path| -> Result<Option<Held<'_>>, i32> {
        let mut here = None;
        for n in 1..path.len() {
            let found = world.resolve(&path[..n]).map_err(|e| e.errno())?;
            let held = found.ok_or(libc::ENOENT)?;
            if held.0.attr().kind != FileKind::Directory {
                return Err(libc::ENOTDIR);
            }
            here = Some(held);
        }
        Ok(here)
    };
    let ino = |held: &Option<Held<'_>>| held.as_ref().map_or(ROOT_INO, Held::ino);
    let exists = |p: &Path| {
        let found = world.resolve(p).map_err(|e| e.errno())?;
        found.ok_or(libc::ENOENT)
    };
    let result = match op {
        Op::Create(p) => {
            let d = dir(p)?;
            let mode = libc::S_IFREG | 0o644;
            let name = last(p).as_bytes();
            let made = union.mknod(&caller, ino(&d), name, mode, 0o022, (0, 0));
            made.map(drop)
        }
        Op::Mkdir(p) => {
            let d = dir(p)?;
            let made = union.mkdir(&caller, ino(&d), last(p).as_bytes(), 0o755, 0o022);
            made.map(drop)
        }
        Op::Write(p, byte) => {
            dir(p)?;
            let file = exists(p)?;
            if file.0.attr().kind == FileKind::Directory {
                return Err(libc::EISDIR);
            }
            union
                .write(file.ino(), 0, &[*byte], Write::default(), None)
                .map(|_| ())
        }
        Op::Unlink(p) => union.unlink(ino(&dir(p)?), last(p).as_bytes()),
        Op::Rmdir(p) => union.rmdir(ino(&dir(p)?), last(p).as_bytes()),
        Op::Rename(a, b, _) | Op::Exchange(a, b) => {
            let flags = RenameFlags {
                noreplace: matches!(op, Op::Rename(_, _, true)),
                exchange: matches!(op, Op::Exchange(..)),
                whiteout: false,
            };
            let (from, to) = (dir(a)?, dir(b)?);
            let (a, b) = (last(a).as_bytes(), last(b).as_bytes());
            union.rename(ino(&from), a, ino(&to), b, flags)
        }
    };
    result.map_err(|e| e.errno())
}

/// Returns the union's tree in the form of the model.
fn snapshot(world: &World, dir: u64) -> Node {
    let mut map = BTreeMap::new();
    for name in world.names(dir).unwrap() {
        let entry = world.union.lookup(dir, &name).unwrap().unwrap();
        let ino = entry.attr().ino;
        let node = match entry.attr().kind {
            FileKind::Directory => snapshot(world, ino),
            _ => {
                let mut data = vec![0; entry.attr().size as usize];
                let n = world
                    .union
                    .read(ino, 0, &mut data, Caching::Cached)
                    .unwrap();
                assert_eq!(n, data.len());
                Node::File(data)
            }
        };
        let known = NAMES.iter().find(|n| n.as_bytes() == name);
        map.insert(*known.expect("a name nobody made"), node);
    }
    Node::Dir(map)
}

/// Fills two layers with an object under most names.
fn fill(n: usize, dir: &std::path::Path) {
    let write = |path: &str, data: &str| std::fs::write(dir.join(path), data).unwrap();
    match n {
        0 => {
            std::fs::create_dir_all(dir.join("a/b")).unwrap();
            write("a/b/c", "0");
            write("b", "0");
        }
        _ => {
            std::fs::create_dir_all(dir.join("a/b")).unwrap();
            std::fs::create_dir_all(dir.join("c/a")).unwrap();
            write("a/b/a", "1");
            write("a/a", "1");
            write("b", "1");
            write("c/a/b", "1");
        }
    }
}

fn initial() -> Node {
    let file = |text: &str| Node::File(text.into());
    let dir = |entries: &[(&'static str, Node)]| Node::Dir(entries.iter().cloned().collect());
    dir(&[
        (
            "a",
            dir(&[
                ("a", file("1")),
                ("b", dir(&[("a", file("1")), ("c", file("0"))])),
            ]),
        ),
        ("b", file("0")),
        ("c", dir(&[("a", dir(&[("b", file("1"))]))])),
    ])
}

/// Tells whether redirects can be written: `trusted.*` needs CAP_SYS_ADMIN.
fn privileged() -> bool {
    rustix::process::geteuid().is_root()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn namespace_operations_follow_the_model(ops in vec(op(), 1..40)) {
        let world = World::new(2, fill);
        let mut model = initial();
        let empty = world.inodes();
        for op in ops.iter().filter(|op| !kernel_refuses(op)) {
            let before = model.clone();
            let expected = model.apply(op);
            let got = perform(&world, op);
            // Without redirects a lower directory stays where it is.
            if got == Err(libc::EXDEV) && expected.is_ok() && !privileged() {
                model = before;
                continue;
            }
            prop_assert_eq!(got, expected, "answer of {:?}", op);
        }
        prop_assert_eq!(snapshot(&world, ROOT_INO), model);
        prop_assert_eq!(world.inodes(), empty, "inodes left in the table");
    }
}

#[test]
fn the_model_starts_as_the_union_does() {
    assert_eq!(snapshot(&World::new(2, fill), ROOT_INO), initial());
}
