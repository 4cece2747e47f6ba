//! Inode numbers of the upper that are reused while the kernel still knows the file that had them
//! before.

use unionfs::union::{ROOT_INO, Union};

use crate::support::{World, caller};

/// More than the number of descriptors that keep removed files.
const KEPT: usize = 300;
/// The number of directories of one name, made one after the other.
const ROUNDS: usize = 6;

fn make_and_remove(union: &Union, name: &str) -> u64 {
    let made = union.mkdir(&caller(), ROOT_INO, name.as_bytes(), 0o755, 0o022);
    let ino = made.unwrap_or_else(|error| panic!("mkdir {name}: {error}"));
    let ino = ino.surrender();
    union.rmdir(ROOT_INO, name.as_bytes()).unwrap();
    ino
}

/// Returns removed files that the kernel knows; they use up all descriptors that keep such files.
fn take_descriptors(union: &Union) -> Vec<u64> {
    let made_and_removed = |n: usize| {
        let (name, mode) = (format!("f{n}"), libc::S_IFREG | 0o644);
        let made = union.mknod(&caller(), ROOT_INO, name.as_bytes(), mode, 0o022, (0, 0));
        let ino = made.unwrap().surrender();
        union.unlink(ROOT_INO, name.as_bytes()).unwrap();
        ino
    };
    (0..KEPT).map(made_and_removed).collect()
}

/// Beyond the limit no descriptor keeps a removed directory, so the next one may get its inode
/// number. A directory that is not forgotten yet does not prevent the creation of others of its
/// name, however often.
#[test]
fn a_directory_is_made_again_before_the_kernel_forgets() {
    let world = World::new(1, |_, _| {});
    let union = &world.union;
    let held = take_descriptors(union);
    let mut made: Vec<u64> = (0..ROUNDS).map(|_| make_and_remove(union, "sub")).collect();
    made.push(make_and_remove(union, "other"));
    for (n, ino) in made.iter().enumerate() {
        assert!(union.is_known(*ino));
        assert!(!made[..n].contains(ino), "{made:?}: no two share a number");
    }
    for ino in made.into_iter().chain(held) {
        union.forget(ino, 1);
    }
    assert_eq!(world.inodes(), 1);
}

/// The same for a file without a name (O_TMPFILE).
#[test]
fn a_file_without_a_name_is_made_with_the_number_of_a_removed_directory() {
    let world = World::new(1, |_, _| {});
    let union = &world.union;
    let mut held = take_descriptors(union);
    for _ in 0..ROUNDS {
        held.push(make_and_remove(union, "sub"));
        let made = union.tmpfile(&caller(), ROOT_INO, 0o644, 0o022);
        let ino = made.unwrap_or_else(|error| panic!("O_TMPFILE: {error}"));
        let ino = ino.surrender();
        assert!(!held.contains(&ino));
        held.push(ino);
    }
    for ino in held {
        union.forget(ino, 1);
    }
    assert_eq!(world.inodes(), 1);
}
