//! readdir through the core: merging, and positions that stay valid while entries are added and
//! removed.

use std::collections::BTreeSet;

use unionfs::union::ROOT_INO;

use crate::support::World;

fn overlapping(lowers: usize, each: usize) -> World {
    World::new(lowers, |n, dir| {
        for i in 0..each {
            std::fs::write(dir.join(format!("f{}", n * each / 2 + i)), "").unwrap();
        }
    })
}

#[test]
fn every_name_once() {
    let (lowers, each) = (8, 60);
    let world = overlapping(lowers, each);
    let names = world.names(ROOT_INO).unwrap();
    let unique: BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len(), "listed twice");
    // Each layer but the first repeats half of the one above it.
    assert_eq!(names.len(), each + (lowers - 1) * each / 2);
}

/// d_ino equals the inode number of a lookup, before and after it.
#[test]
fn inode_numbers_agree_with_lookup() {
    let world = overlapping(3, 20);
    for _ in 0..2 {
        let mut listed = Vec::new();
        let sink = &mut |item: unionfs::union::DirItem<'_, '_>| {
            listed.push((item.name.to_vec(), item.ino, item.kind));
            true
        };
        world.union.readdir(ROOT_INO, 0, sink).unwrap();
        for (name, ino, kind) in listed {
            if name == b"." || name == b".." {
                continue;
            }
            let entry = world.union.lookup(ROOT_INO, &name).unwrap().unwrap();
            assert_eq!((entry.attr().ino, entry.attr().kind), (ino, kind));
        }
    }
}

/// Deleting entries that were read does not skip the remaining ones.
#[test]
fn deleting_while_reading() {
    let world = overlapping(2, 400);
    let total = world.names(ROOT_INO).unwrap().len();
    let (mut offset, mut seen) = (0, BTreeSet::new());
    loop {
        let mut batch = Vec::new();
        let from = offset;
        let sink = &mut |item: unionfs::union::DirItem<'_, '_>| {
            if batch.len() == 50 {
                return false;
            }
            offset = item.offset;
            batch.push(item.name.to_vec());
            true
        };
        world.union.readdir(ROOT_INO, from, sink).unwrap();
        if batch.is_empty() {
            break;
        }
        for name in batch {
            if name != b"." && name != b".." {
                world.union.unlink(ROOT_INO, &name).unwrap();
                assert!(seen.insert(name), "a name came twice");
            }
        }
    }
    assert_eq!(seen.len(), total);
    assert!(world.names(ROOT_INO).unwrap().is_empty());
}

/// A listing that is longer than one window: it is read window by window, with whiteouts in it.
#[test]
fn a_directory_of_several_windows() {
    const NAMES: usize = 270_000;
    let world = World::new(2, |n, dir| {
        for i in 0..NAMES {
            let (name, first) = (format!("f{i}"), format!("f{}", i / 50_000 * 50_000));
            if i % 50_000 == 0 {
                std::fs::write(dir.join(name), "").unwrap();
            } else if n == 1 || i % 1000 == 0 {
                std::fs::hard_link(dir.join(first), dir.join(name)).unwrap();
            }
        }
    });
    for i in 1..50 {
        let name = format!("f{i}");
        world.union.unlink(ROOT_INO, name.as_bytes()).unwrap();
    }
    let (mut names, mut offset) = (BTreeSet::new(), 0);
    loop {
        let mut room = 1000;
        let from = offset;
        let sink = &mut |item: unionfs::union::DirItem<'_, '_>| {
            if room == 0 {
                return false;
            }
            room -= 1;
            offset = item.offset;
            assert!(names.insert(item.name.to_vec()), "listed twice");
            true
        };
        world.union.readdir(ROOT_INO, from, sink).unwrap();
        if offset == from {
            break;
        }
    }
    assert_eq!(names.len(), NAMES - 49 + 2);
}

/// The number of entries of a directory that a listing gives attributes for.
fn with_attributes(world: &World, name: &str) -> usize {
    let dir = world
        .union
        .lookup(ROOT_INO, name.as_bytes())
        .unwrap()
        .unwrap()
        .surrender();
    let mut count = 0;
    let sink = &mut |item: unionfs::union::DirItem<'_, '_>| {
        count += usize::from(item.entry.is_some());
        true
    };
    world.union.readdirplus(dir, 0, sink).unwrap();
    count
}

/// After a program has looked up names of a long directory one by one, the next ones come with all
/// attributes, but not for ever.
#[test]
fn long_directories_come_with_what_their_readers_ask_for() {
    let each = 2000;
    let world = World::new(1, |_, layer| {
        for dir in 0..12 {
            let dir = layer.join(format!("d{dir}"));
            std::fs::create_dir(&dir).unwrap();
            for n in 0..each {
                std::fs::write(dir.join(format!("f{n}")), "").unwrap();
            }
        }
    });
    assert!(with_attributes(&world, "d0") < each);
    assert!(with_attributes(&world, "d1") < each, "nobody asked");
    let dir = world
        .union
        .lookup(ROOT_INO, b"d1")
        .unwrap()
        .unwrap()
        .surrender();
    for n in 0..100 {
        let name = format!("f{n}");
        world
            .union
            .lookup(dir, name.as_bytes())
            .unwrap()
            .unwrap()
            .surrender();
    }
    for next in 2..10 {
        assert_eq!(with_attributes(&world, &format!("d{next}")), each);
    }
    assert!(with_attributes(&world, "d10") < each, "tried again");
    assert!(with_attributes(&world, "d11") < each, "nobody asked");
}
