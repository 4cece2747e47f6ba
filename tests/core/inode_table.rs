//! Exact lookup counts: after the last forget the table holds the root alone, whatever happened
//! before.

use unionfs::union::{Caching, ROOT_INO, RenameFlags, Write};

use crate::support::{World, caller};

/// More than the cache of names holds.
const MANY: u64 = 100_000;

/// Counts each lookup once and forgets it after the unlink, as the kernel does.
#[test]
fn many_created_and_removed_names_leave_nothing() {
    let world = World::new(1, |_, _| {});
    let union = &world.union;
    let empty = world.inodes();
    let caller = caller();
    for n in 0..MANY {
        let name = format!("f{n}");
        let name = name.as_bytes();
        let entry = union.mknod(
            &caller,
            ROOT_INO,
            name,
            libc::S_IFREG | 0o644,
            0o022,
            (0, 0),
        );
        let ino = entry.unwrap().surrender();
        union.unlink(ROOT_INO, name).unwrap();
        union.forget(ino, 1);
    }
    assert_eq!(world.inodes(), empty);
    assert!(world.union.counters().cached_names <= 65536);
}

/// Many names are alive at once, are looked up several times, and are forgotten together.
#[test]
fn counts_add_up() {
    const NAMES: u64 = 2000;
    let world = World::new(1, |_, dir| {
        for n in 0..NAMES {
            std::fs::write(dir.join(format!("f{n}")), "").unwrap();
        }
    });
    let empty = world.inodes();
    let look = |n: u64| {
        let entry = world.union.lookup(ROOT_INO, format!("f{n}").as_bytes());
        entry.unwrap().unwrap().surrender()
    };
    let inos: Vec<_> = (0..NAMES).map(look).collect();
    assert_eq!(world.inodes(), empty + NAMES);
    for n in 0..NAMES {
        assert_eq!(look(n), inos[n as usize]);
    }
    for ino in &inos {
        world.union.forget(*ino, 1);
    }
    assert_eq!(world.inodes(), empty + NAMES, "one lookup each is left");
    for ino in &inos {
        world.union.forget(*ino, 1);
    }
    assert_eq!(world.inodes(), empty);
}

/// An entry that the transport could not send gives its count back on drop.
#[test]
fn dropped_entries_are_not_counted() {
    let world = World::new(1, |_, dir| std::fs::write(dir.join("f"), "").unwrap());
    let empty = world.inodes();
    for _ in 0..3 {
        assert!(world.union.lookup(ROOT_INO, b"f").unwrap().is_some());
    }
    assert_eq!(world.inodes(), empty);
    let caller = caller();
    let refused = world.union.mkdir(&caller, ROOT_INO, b"f", 0o755, 0);
    assert_eq!(refused.err().unwrap().errno(), libc::EEXIST);
    drop(
        world
            .union
            .mkdir(&caller, ROOT_INO, b"d", 0o755, 0)
            .unwrap(),
    );
    assert_eq!(world.inodes(), empty);
}

/// READDIRPLUS counts exactly the entries that the sink accepts.
#[test]
fn readdirplus_counts_what_was_taken() {
    const NAMES: usize = 100;
    let world = World::new(1, |_, dir| {
        for n in 0..NAMES {
            std::fs::write(dir.join(format!("f{n}")), "").unwrap();
        }
    });
    let empty = world.inodes();
    let mut taken = Vec::new();
    let mut offered = 0;
    let sink = &mut |mut item: unionfs::union::DirItem<'_, '_>| {
        offered += 1;
        // `.` and `..` carry no entry.
        let dots = item.name == b"." || item.name == b"..";
        assert_eq!(item.entry.is_none(), dots);
        if taken.len() == 40 {
            return false;
        }
        taken.extend(item.entry.take().map(unionfs::union::EntryRef::surrender));
        true
    };
    world.union.readdirplus(ROOT_INO, 0, sink).unwrap();
    assert!(offered >= 41, "{offered}");
    assert_eq!(world.inodes(), empty + 40);
    for ino in taken {
        world.union.forget(ino, 1);
    }
    assert_eq!(world.inodes(), empty);
}

/// Renames and replacements while the kernel still knows the replaced file.
#[test]
fn replaced_entries_live_until_forgotten() {
    let world = World::new(1, |_, dir| {
        for name in ["a", "b"] {
            std::fs::write(dir.join(name), name).unwrap();
        }
    });
    let union = &world.union;
    let empty = world.inodes();
    let a = union.lookup(ROOT_INO, b"a").unwrap().unwrap().surrender();
    let b = union.lookup(ROOT_INO, b"b").unwrap().unwrap().surrender();
    let flags = RenameFlags::default();
    union.rename(ROOT_INO, b"a", ROOT_INO, b"b", flags).unwrap();
    assert!(union.lookup(ROOT_INO, b"a").unwrap().is_none());
    let found = union.lookup(ROOT_INO, b"b").unwrap().unwrap().attr().ino;
    assert_eq!(found, a);
    // The replaced file still answers, because a process may have it open.
    let mut buf = [0; 8];
    assert_eq!(union.read(b, 0, &mut buf, Caching::Cached).unwrap(), 1);
    assert_eq!(buf[0], b'b');
    assert_eq!(union.getattr(b).unwrap().nlink, 0);
    union.forget(b, 1);
    union.forget(a, 1);
    assert_eq!(world.inodes(), empty);
}

/// An unnamed file exists as long as its count is not zero, unless it gets a name.
#[test]
fn unnamed_files() {
    let world = World::new(1, |_, _| {});
    let union = &world.union;
    let empty = world.inodes();
    let caller = caller();
    let make = || union.tmpfile(&caller, ROOT_INO, 0o640, 0).unwrap();
    let (lost, named) = (make(), make());
    let ino = named.attr().ino;
    assert_ne!(ino, lost.attr().ino);
    assert_eq!(
        union
            .write(ino, 0, b"unnamed", Write::default(), None)
            .unwrap(),
        7
    );
    assert_eq!(union.getattr(ino).unwrap().nlink, 0);
    assert!(world.names(ROOT_INO).unwrap().is_empty());
    drop(union.link(ino, ROOT_INO, b"named").unwrap());
    drop((lost, named));
    assert_eq!(world.inodes(), empty);
    assert_eq!(world.names(ROOT_INO).unwrap(), [b"named"]);
    let found = union.lookup(ROOT_INO, b"named").unwrap().unwrap();
    assert_eq!((found.attr().size, found.attr().nlink), (7, 1));
}
