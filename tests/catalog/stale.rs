//! Catalogs of other layers than the mounted ones, and of layers that were changed: the union shows
//! the layers.

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use testkit::catalogs::{ROOT, build, find, observe, read, seal, stack};
use testkit::layers::{self, Form, Layer};
use testkit::mount::Scratch;
use testkit::need_mounts;
use unionfs::layer::{Dialect, LayerSpec, OpenDir, StackSpec, UpperSpec};
use unionfs::union::{Options, SetAttr, Union};

fn layers() -> Vec<Layer> {
    let top = Layer::new().dir("d").file("d/top", "top");
    let bottom = Layer::new()
        .dir("d")
        .file("d/f", "old")
        .file("d/other", "other")
        .symlink("d/link", "old");
    vec![top, bottom]
}

struct World {
    scratch: Scratch,
    lowers: Vec<PathBuf>,
    stack: StackSpec,
    catalog: PathBuf,
}

impl World {
    fn new() -> Self {
        let scratch = Scratch::disk();
        let lowers = layers::write_all(&layers(), scratch.path(), Form::Kernel);
        let stack = stack(&lowers);
        let catalog = scratch.path().join("catalogs/c");
        build(&stack, &catalog);
        let world = Self {
            scratch,
            lowers,
            stack,
            catalog,
        };
        assert!(world.is_used());
        world
    }

    fn is_used(&self) -> bool {
        observe(&self.stack, &self.catalog).is_catalogued()
    }

    fn data(&self, path: &str) -> Option<Vec<u8>> {
        let union = observe(&self.stack, &self.catalog);
        let (ino, size) = find(&union, path)?;
        Some(read(&union, ino, size).unwrap())
    }
}

/// A file that differs from its record gives ESTALE; from then on the server reads the layers.
#[test]
fn a_changed_file_is_noticed_when_it_is_opened() {
    need_mounts!();
    let changes: [fn(&Path); 4] = [
        |f| std::fs::write(f, "new and longer").unwrap(),
        |f| {
            std::fs::remove_file(f).unwrap();
            std::fs::write(f, "old").unwrap();
        },
        |f| layers::set_mtime(f, (5, 5)),
        |f| std::fs::set_permissions(f, std::fs::Permissions::from_mode(0o600)).unwrap(),
    ];
    for (n, change) in changes.iter().enumerate() {
        let world = World::new();
        let file = world.lowers[1].join("d/f");
        change(&file);
        let union = observe(&world.stack, &world.catalog);
        assert!(union.is_catalogued(), "change {n} is too deep to be seen");
        let (other, size) = find(&union, "d/other").unwrap();
        assert_eq!(read(&union, other, size), Ok(b"other".to_vec()));
        let (ino, size) = find(&union, "d/f").unwrap();
        assert_eq!(read(&union, ino, size), Err(libc::ESTALE), "change {n}");
        assert!(!union.is_catalogued());
        union.forget(ino, 1);
        let (ino, size) = find(&union, "d/f").unwrap();
        assert_eq!(read(&union, ino, size), Ok(std::fs::read(&file).unwrap()));
        // The next mount does not use the catalog again.
        assert!(!world.catalog.exists());
        assert_eq!(world.data("d/f"), Some(std::fs::read(&file).unwrap()));
    }
}

/// No part of a wrong answer gets into the upper.
#[test]
fn a_changed_file_is_not_copied_up() {
    need_mounts!();
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 3] = [
        ("d", |dir| std::fs::write(dir.join("d/new"), "").unwrap()),
        ("d/f", |dir| {
            chown(dir.join("d/f"), Some(7), Some(7)).unwrap();
        }),
        ("d/link", |dir| {
            std::fs::remove_file(dir.join("d/link")).unwrap();
            symlink("new", dir.join("d/link")).unwrap();
        }),
    ];
    for (path, change) in changes {
        let mut world = World::new();
        // The topmost directory is the one that the union shows.
        let layer = usize::from(path != "d");
        let (upper, work) = (world.scratch.dir("upper"), world.scratch.dir("work"));
        world.stack.upper = Some(UpperSpec {
            layer: LayerSpec::open(&upper, Dialect::ALL).unwrap(),
            work: OpenDir::open(work).unwrap(),
        });
        change(&world.lowers[layer]);
        let options = Options {
            names: Some(unionfs::catalog::CatalogFile::source(&world.catalog)),
            ..Options::default()
        };
        let union = Union::new(&world.stack, options).unwrap();
        let (ino, _) = find(&union, path).unwrap();
        let owner = SetAttr {
            uid: Some(9),
            ..SetAttr::default()
        };
        let answer = union.setattr(&ROOT, ino, &owner).map_err(|e| e.errno());
        assert_eq!(answer, Err(libc::ESTALE), "{path}");
        assert!(!union.is_catalogued());
        assert!(upper.join(path).symlink_metadata().is_err());
    }
}

/// New entries of a directory are shown once the catalog is disabled.
#[test]
fn directories_known_already_are_read_again() {
    need_mounts!();
    let world = World::new();
    std::fs::write(world.lowers[1].join("d/f"), "other").unwrap();
    std::fs::write(world.lowers[1].join("d/new"), "new").unwrap();
    let union = observe(&world.stack, &world.catalog);
    assert_eq!(find(&union, "d/new"), None, "the catalog does not have it");
    let (ino, size) = find(&union, "d/f").unwrap();
    assert_eq!(read(&union, ino, size), Err(libc::ESTALE));
    assert!(find(&union, "d/new").is_some());
    assert!(find(&union, "d/top").is_some());
}

/// The same with a layer above those of the catalog, which has the directory too.
#[test]
fn directories_below_another_layer_are_read_again() {
    need_mounts!();
    let mut world = World::new();
    let own = world.scratch.dir("own");
    Layer::new()
        .dir("d")
        .dir("d/was")
        .file("d/was/own", "own")
        .write(&own);
    std::fs::create_dir(world.lowers[1].join("d/was")).unwrap();
    std::fs::write(world.lowers[1].join("d/was/new"), "new").unwrap();
    std::fs::write(world.lowers[1].join("d/f"), "other").unwrap();
    world
        .stack
        .lowers
        .insert(0, LayerSpec::open(&own, Dialect::ALL).unwrap());
    let before = observe(&world.stack, &world.catalog);
    assert!(before.is_catalogued());
    let new = find(&before, "d/was/new");
    assert_eq!(new, None, "the catalog does not have it");
    assert!(find(&before, "d/was/own").is_some());
    // Another one, since a directory stays as it is as long as it is known.
    let union = observe(&world.stack, &world.catalog);
    let (ino, size) = find(&union, "d/f").unwrap();
    assert_eq!(read(&union, ino, size), Err(libc::ESTALE));
    for path in ["d/was/new", "d/was/own", "d/top"] {
        assert!(find(&union, path).is_some(), "{path}");
    }
}

#[test]
fn changed_and_replaced_roots_are_noticed_at_once() {
    need_mounts!();
    let world = World::new();
    std::fs::write(world.lowers[1].join("new"), "new").unwrap();
    assert!(!world.is_used());
    assert_eq!(world.data("new"), Some(b"new".to_vec()));

    let world = World::new();
    let (layer, aside) = (&world.lowers[0], world.scratch.path().join("aside"));
    std::fs::rename(layer, &aside).unwrap();
    std::fs::create_dir(layer).unwrap();
    layers()[0].write(layer);
    assert!(!world.is_used());
    assert_eq!(world.data("d/top"), Some(b"top".to_vec()));
}

#[test]
fn other_stacks_are_told_apart() {
    need_mounts!();
    let world = World::new();
    let used = |stack: &StackSpec| observe(stack, &world.catalog).is_catalogued();
    let mut other = world.stack.clone();
    other.lowers.swap(0, 1);
    assert!(!used(&other), "in another order");
    other.lowers.truncate(1);
    assert!(!used(&other), "with one layer less");
    let mut other = world.stack.clone();
    other.lowers[1].dialect = Dialect::KERNEL;
    assert!(!used(&other), "with other markers");
    let mut other = world.stack.clone();
    other.data_only = other.lowers.split_off(1);
    assert!(!used(&other), "for data only");
    assert!(used(&world.stack));
}

#[test]
fn files_that_others_could_have_written_are_not_taken() {
    need_mounts!();
    let world = World::new();
    let set = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&world.catalog, mode).unwrap();
    };
    for mode in [0o620, 0o602, 0o666] {
        set(mode);
        assert!(!world.is_used(), "{mode:o}");
    }
    set(0o644);
    assert!(world.is_used());
    chown(&world.catalog, Some(1000), None).unwrap();
    assert!(!world.is_used());
    chown(&world.catalog, Some(0), None).unwrap();
    assert!(world.is_used());

    let aside = world.scratch.path().join("aside");
    std::fs::rename(&world.catalog, &aside).unwrap();
    symlink(&aside, &world.catalog).unwrap();
    assert!(!world.is_used(), "a symlink");
    std::fs::remove_file(&world.catalog).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &world.catalog,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(!world.is_used(), "a FIFO, which must not be waited for");
    assert_eq!(world.data("d/f"), Some(b"old".to_vec()));
}

#[test]
fn other_versions_are_not_read() {
    need_mounts!();
    let world = World::new();
    let whole = std::fs::read(&world.catalog).unwrap();
    for version in [0u32, 1, 2, 3, 5, u32::MAX] {
        let mut bytes = whole.clone();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        seal(&mut bytes);
        std::fs::write(&world.catalog, bytes).unwrap();
        assert!(!world.is_used());
        assert_eq!(world.data("d/f"), Some(b"old".to_vec()));
    }
    std::fs::write(&world.catalog, "").unwrap();
    assert!(!world.is_used());
    build(&world.stack, &world.catalog);
    assert!(world.is_used());
}
