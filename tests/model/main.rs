//! The union under a model checker: shuttle decides at each lock and atomic of the union which
//! thread continues. It tries many different orders, and the same seed gives the same order again.
//! A new union must see the same tree in the directories that the threads leave: then the inode
//! table, the lookup cache and copy-up agree with the disk. A deadlock fails the test.
//!
//! Needs the feature `model` (`just model`), which replaces the locks of the union: see
//! `sys/sync.rs`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};
use unionfs::layer::{Dialect, LayerSpec, OpenDir, StackSpec, UpperSpec};
use unionfs::union::{
    Caching, Caller, DirItem, Error, FileKind, Ino, Options, ROOT_INO, RenameFlags, Union, Write,
};

/// The number of thread orders that each test tries, unless `UNIONFS_MODEL_ORDERS` has another.
const ORDERS: usize = 100;
/// The number of switches of the running thread in each order if they are placed by probability
/// (PCT).
const CHANGES: usize = 3;

/// A union over lowers with the files `a`, `b` and `d/c`, and an upper with `p/f`.
struct World {
    union: Union,
    stack: StackSpec,
    dir: tempfile::TempDir,
}

fn caller() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-model.")
            .tempdir()
            .unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["top", "low", "upper", "work", "low/d", "upper/p"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        for name in ["low/a", "low/d/c", "top/b", "upper/p/f"] {
            std::fs::write(path(name), "lower").unwrap();
        }
        let layer = |path: PathBuf| LayerSpec::open(path, Dialect::ALL).unwrap();
        let stack = StackSpec {
            lowers: vec![layer(path("top")), layer(path("low"))],
            data_only: Vec::new(),
            upper: Some(UpperSpec {
                layer: layer(path("upper")),
                work: OpenDir::open(path("work")).unwrap(),
            }),
        };
        let options = Options {
            volatile: true,
            ..Options::default()
        };
        let union = Union::new(&stack, options).unwrap();
        Self { union, stack, dir }
    }

    /// Returns the inode number of a name in the root and counts it. `None` if the name does not
    /// exist.
    fn find(&self, name: &str) -> Option<Ino> {
        self.find_in(ROOT_INO, name)
    }

    fn find_in(&self, dir: Ino, name: &str) -> Option<Ino> {
        let found = self.union.lookup(dir, name.as_bytes());
        Some(found.unwrap()?.surrender())
    }

    /// Returns the inode number of a name in the root without counting it.
    fn number(&self, name: &str) -> Ino {
        let mut found = None;
        let mut sink = |item: DirItem<'_, '_>| {
            if item.name == name.as_bytes() {
                found = Some(item.ino);
            }
            true
        };
        self.union.readdir(ROOT_INO, 0, &mut sink).unwrap();
        found.unwrap()
    }

    fn forget(&self, ino: Ino) {
        self.union.forget(ino, 1);
    }

    /// Writes to a name, if it exists.
    fn write(&self, name: &str, offset: u64, data: &str) {
        let Some(ino) = self.find(name) else { return };
        let written = self
            .union
            .write(ino, offset, data.as_bytes(), Write::default(), None);
        assert_eq!(written.unwrap(), data.len());
        self.forget(ino);
    }

    fn rename(&self, from: &str, to: &str) {
        let flags = RenameFlags::default();
        let done = self
            .union
            .rename(ROOT_INO, from.as_bytes(), ROOT_INO, to.as_bytes(), flags);
        may_be_gone(&done);
    }

    fn unlink(&self, name: &str) {
        may_be_gone(&self.union.unlink(ROOT_INO, name.as_bytes()));
    }

    fn create(&self, name: &str) {
        let mode = libc::S_IFREG | 0o644;
        let made = self
            .union
            .mknod(&caller(), ROOT_INO, name.as_bytes(), mode, 0o022, (0, 0));
        match made {
            Ok(entry) => self.forget(entry.surrender()),
            Err(error) => assert_eq!(error.errno(), libc::EEXIST, "{error}"),
        }
    }

    /// Asserts what must hold after every order.
    fn check(&self) {
        let fresh = Union::observe(&self.stack).unwrap();
        assert_eq!(tree(&self.union), tree(&fresh), "the union and the disk");
        let left = std::fs::read_dir(self.dir.path().join("work/work")).unwrap();
        // One whiteout may be kept for linking.
        let staged: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(staged.len() <= 1, "{staged:?}");
        assert_eq!(
            self.union.counters().inodes,
            1,
            "all was forgotten but the root"
        );
    }
}

fn may_be_gone(done: &Result<(), Error>) {
    if let Err(error) = done {
        assert_eq!(error.errno(), libc::ENOENT, "{error}");
    }
}

/// Returns the names below the root with their content, looked up and listed.
fn tree(union: &Union) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(ROOT_INO, String::new())];
    while let Some((dir, above)) = todo.pop() {
        for name in names(union, dir) {
            let path = format!("{above}/{name}");
            let entry = union.lookup(dir, name.as_bytes()).unwrap();
            let entry = entry.unwrap_or_else(|| panic!("{path} is listed and is not there"));
            let kind = entry.attr().kind;
            let size = entry.attr().size;
            let ino = entry.surrender();
            let content = match kind {
                FileKind::Directory => {
                    todo.push((ino, path.clone()));
                    "directory".to_owned()
                }
                _ => {
                    let mut data = vec![0; 64];
                    let read = union.read(ino, 0, &mut data, Caching::Cached).unwrap();
                    assert_eq!(read as u64, size, "{path}");
                    String::from_utf8_lossy(&data[..read]).into_owned()
                }
            };
            if kind != FileKind::Directory {
                union.forget(ino, 1);
            }
            found.insert(path, content);
        }
        if dir != ROOT_INO {
            union.forget(dir, 1);
        }
    }
    found
}

fn names(union: &Union, dir: Ino) -> Vec<String> {
    let mut names = Vec::new();
    let mut sink = |item: DirItem<'_, '_>| {
        names.push(String::from_utf8_lossy(item.name).into_owned());
        true
    };
    union.readdir(dir, 0, &mut sink).unwrap();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

type Job = fn(&World);

/// Runs the jobs concurrently, in many orders.
fn at_once(jobs: &'static [Job], after: fn(&World)) {
    let one = move || {
        let world = Arc::new(World::new());
        let threads: Vec<_> = jobs
            .iter()
            .map(|job| {
                let world = Arc::clone(&world);
                thread::spawn(move || job(&world))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        after(&world);
        world.check();
    };
    run(RandomScheduler::new(orders()), one);
    run(PctScheduler::new(CHANGES, orders()), one);
}

fn orders() -> usize {
    let set = std::env::var("UNIONFS_MODEL_ORDERS").ok();
    set.map_or(ORDERS, |number| number.parse().unwrap())
}

fn run(scheduler: impl Scheduler + 'static, one: impl Fn() + Send + Sync + 'static) {
    // Some locks exist once in the process: they belong to one checker at a time.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut config = Config::new();
    // The threads of the checker have small stacks, and the union's code reads directories on them.
    config.stack_size = 1 << 20;
    Runner::new(scheduler, config).run(one);
}

/// Two writers and a reader of a lower file: it is copied up once, and has the data of both
/// writers.
#[test]
fn a_file_is_copied_up_once() {
    let after = |world: &World| {
        assert_eq!(world.union.counters().copy_ups, 1);
        assert_eq!(tree(&world.union)["/a"], "XowYr");
    };
    at_once(
        &[
            |world| world.write("a", 0, "X"),
            |world| world.write("a", 3, "Y"),
            |world| {
                let ino = world.find("a").unwrap();
                let mut data = [0; 8];
                assert_eq!(
                    world
                        .union
                        .read(ino, 0, &mut data, Caching::Cached)
                        .unwrap(),
                    5
                );
                assert_eq!(&data[1..3], b"ow");
                world.forget(ino);
            },
        ],
        after,
    );
}

/// One file is renamed, removed, written to and looked up at the same time.
#[test]
fn names_and_copy_up_agree() {
    at_once(
        &[
            |world| world.rename("a", "n"),
            |world| world.unlink("a"),
            |world| world.write("a", 0, "X"),
            |world| {
                for name in ["a", "n", "a"] {
                    if let Some(ino) = world.find(name) {
                        world.forget(ino);
                    }
                }
            },
        ],
        |_| (),
    );
}

/// A name is added and removed while other threads look it up and list: no cached answer outlives
/// it.
#[test]
fn no_answer_outlives_a_name() {
    at_once(
        &[
            |world| {
                world.unlink("b");
                world.create("b");
            },
            |world| {
                world.create("x");
                world.unlink("x");
            },
            |world| {
                for name in ["b", "x", "b", "x"] {
                    if let Some(ino) = world.find(name) {
                        world.forget(ino);
                    }
                }
            },
            |world| {
                let listed = names(&world.union, ROOT_INO);
                assert!(listed.iter().any(|name| name == "a"), "{listed:?}");
            },
        ],
        |_| (),
    );
}

/// One name replaces another while both are written to.
#[test]
fn a_rename_over_a_file_that_is_copied_up() {
    let after = |world: &World| {
        let tree = tree(&world.union);
        assert!(!tree.contains_key("/a"));
        assert!(tree.contains_key("/b"));
    };
    at_once(
        &[
            |world| world.rename("a", "b"),
            |world| world.write("b", 0, "X"),
            |world| world.write("a", 1, "Y"),
        ],
        after,
    );
}

/// Lookups and forgets of one file from several threads leave one inode, and then none.
#[test]
fn counts_are_exact() {
    fn twice(world: &World, dir: Ino, name: &str) {
        let first = world.find_in(dir, name).unwrap();
        assert!(world.union.is_known(first), "it is counted");
        let second = world.find_in(dir, name).unwrap();
        assert_eq!(first, second);
        assert!(world.union.is_known(first));
        world.union.forget(first, 2);
    }
    const MERGED: Job = |world| twice(world, ROOT_INO, "a");
    const PLAIN: Job = |world| {
        let dir = world.find("p").unwrap();
        twice(world, dir, "f");
        world.forget(dir);
    };
    at_once(&[MERGED, MERGED, MERGED], |_| ());
    at_once(&[PLAIN, PLAIN, PLAIN], |_| ());
}

/// A file that is found by its number, as for a file handle, is counted before it is returned: it
/// stays in the table as long as it is held, and no other thread's forget takes its count.
#[test]
fn a_file_found_by_its_number_is_counted() {
    /// Short races need many tries.
    const TRIES: usize = 8;
    const BY_NAME: Job = |world| {
        for _ in 0..TRIES {
            let ino = world.find("a").unwrap();
            assert!(world.union.is_known(ino), "the lookup is counted");
            world.forget(ino);
        }
    };
    const BY_NUMBER: Job = |world| {
        let ino = world.number("a");
        for _ in 0..TRIES {
            let found = world.union.known_number(ino).unwrap();
            assert!(
                found.is_none() || world.union.is_known(ino),
                "it is counted"
            );
        }
    };
    at_once(&[BY_NAME, BY_NUMBER], |_| ());
    at_once(&[BY_NAME, BY_NUMBER, BY_NUMBER], |_| ());
}

/// The checker finds the fault that it is made for: two threads that add to a counter without a
/// lock.
#[test]
#[should_panic(expected = "lost")]
fn a_lost_update_is_noticed() {
    use shuttle::sync::atomic::{AtomicU64, Ordering};
    let one = || {
        let counter = Arc::new(AtomicU64::new(0));
        let add = |counter: Arc<AtomicU64>| {
            let now = counter.load(Ordering::SeqCst);
            counter.store(now + 1, Ordering::SeqCst);
        };
        let other = Arc::clone(&counter);
        let thread = thread::spawn(move || add(other));
        add(Arc::clone(&counter));
        thread.join().unwrap();
        assert_eq!(counter.load(Ordering::SeqCst), 2, "an update is lost");
    };
    run(RandomScheduler::new(orders()), one);
}

#[test]
fn the_world_is_as_described() {
    run(RandomScheduler::new(1), || {
        let world = World::new();
        let listed: Vec<_> = tree(&world.union).into_keys().collect();
        assert_eq!(listed, ["/a", "/b", "/d", "/d/c", "/p", "/p/f"]);
        assert!(Path::new(world.dir.path()).exists());
        world.check();
    });
}
