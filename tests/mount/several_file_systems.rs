//! Lowers and an upper on file systems of their own whose inode numbers collide. Every number of
//! the union belongs to one file and stays the same through copy-up and remount, as programs that
//! identify files by numbers (find, du, cp, tar) need.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::disk::Disk;
use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer, write_all};
use testkit::mount::{Fs, Scratch, Stack};
use testkit::tree::{self, Mask, Tree};
use testkit::{need, need_mounts, without};

/// Three file systems, unmounted when dropped.
struct Disks {
    paths: Vec<PathBuf>,
    // In this order: the second holds the images of the first.
    _ext4: Vec<Disk>,
    _tmpfs: Vec<Scratch>,
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes images with ext4 on them, or a tmpfs each: both number their files from the beginning.
fn disks(ext4: bool) -> Result<Disks, String> {
    if !ext4 {
        let tmpfs: Vec<_> = (0..3).map(|_| Scratch::tmpfs()).collect();
        return Ok(Disks {
            paths: tmpfs.iter().map(|t| t.path().to_owned()).collect(),
            _ext4: Vec::new(),
            _tmpfs: tmpfs,
        });
    }
    let scratch = Scratch::disk();
    let image = |name: &&str| Disk::new(scratch.path(), name, 16, "rw");
    let ext4: Vec<_> = ["one", "two", "three"]
        .iter()
        .map(image)
        .collect::<Result<_, _>>()?;
    Ok(Disks {
        paths: ext4.iter().map(|e| e.path().to_owned()).collect(),
        _ext4: ext4,
        _tmpfs: vec![scratch],
    })
}

/// Returns a layer that is the same as the others except for the names, so their files have the
/// same numbers.
fn layer(own: &str) -> Layer {
    let mut layer = Layer::new().dir("d").dir(format!("d/{own}"));
    for n in 0..20 {
        layer = layer.file(format!("d/{own}/f{n}"), format!("{own} {n}\n"));
    }
    layer
        .file(format!("{own}-link1"), format!("links of {own}\n"))
        .link(format!("{own}-link2"), format!("{own}-link1"))
        .link(format!("d/{own}/link3"), format!("{own}-link1"))
        .symlink(format!("{own}-sym"), "d")
        .fifo(format!("{own}-fifo"))
}

fn fixture(disks: &Disks, options: &'static str) -> Fixture {
    let scratch = Scratch::disk();
    let mut lowers = Vec::new();
    for (n, own) in ["top", "bottom"].iter().enumerate() {
        lowers.extend(write_all(&[layer(own)], &disks.paths[n], Form::Kernel));
    }
    let on_third = |name: &str| {
        let path = disks.paths[2].join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    // The upper's own files have the same numbers as those of the layers.
    let upper = on_third("upper");
    layer("own").write(&upper);
    let stack = Stack {
        lowers,
        upper: Some((upper, on_third("work"))),
        mnt: scratch.dir("mnt"),
    };
    Fixture::over(&Fs::Unionfs(options), scratch, stack)
}

fn numbers_in(dir: &Path) -> BTreeSet<u64> {
    tree::list_raw(dir).values().map(|e| e.ino).collect()
}

/// Asserts that there is one device, that a number belongs to one file, that listings and stat
/// agree, and that `find -inum` finds all names.
fn assert_numbers(f: &Fixture) -> BTreeMap<Vec<u8>, u64> {
    let tree = f.tree();
    let device = tree[&b""[..]].dev;
    let mut names: BTreeMap<u64, Vec<&[u8]>> = BTreeMap::new();
    for (path, entry) in &tree {
        assert_eq!(entry.dev, device);
        names.entry(entry.ino).or_default().push(path);
    }
    for (ino, paths) in &names {
        let entry = &tree[paths[0]];
        let links = if entry.is_dir() { 1 } else { entry.nlink };
        let shown: Vec<_> = paths.iter().map(|p| String::from_utf8_lossy(p)).collect();
        assert_eq!(links, paths.len() as u64, "number {ino} is of {shown:?}");
        let contents: BTreeSet<_> = paths.iter().map(|p| &tree[*p].content).collect();
        assert_eq!(contents.len(), 1, "number {ino} is of {shown:?}");
    }
    let linked = names.values().filter(|paths| paths.len() == 3).count();
    assert_eq!(linked, 3, "a group of three in each layer");
    let mut dirs = vec![f.root().to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.path().symlink_metadata().unwrap();
            assert_eq!(entry.ino(), meta.ino(), "{}", entry.path().display());
            if meta.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    let sample = ["top-link1", "bottom-link2", "own-link1", "d/top/f3", "d"];
    for name in sample {
        let ino = tree[name.as_bytes()].ino;
        let mut find = Command::new("find");
        let find = find.arg(f.root()).args(["-inum", &ino.to_string()]);
        let found = succeeds(find).lines().count();
        assert_eq!(found, names[&ino].len(), "find -inum of {name}");
    }
    tree.into_iter().map(|(p, e)| (p, e.ino)).collect()
}

/// Asserts the results of du, cp(1) and tar(1): each file once, links as links.
fn assert_programs(f: &Fixture) {
    let tree = f.tree();
    let once: BTreeMap<u64, u64> = tree
        .values()
        .filter(|e| e.kind() == libc::S_IFREG || e.kind() == libc::S_IFLNK)
        .map(|e| (e.ino, e.size))
        .collect();
    let mut du = Command::new("du");
    let du = du.args(["--inodes", "-s"]).arg(f.root());
    let counted = succeeds(du);
    let counted: usize = counted.split_whitespace().next().unwrap().parse().unwrap();
    let all: BTreeSet<_> = tree.values().map(|e| e.ino).collect();
    assert_eq!(counted, all.len(), "du --inodes");
    let copies = Scratch::disk();
    let by_cp = copies.path().join("cp");
    succeeds(Command::new("cp").arg("-a").arg(f.root()).arg(&by_cp));
    let by_tar = copies.dir("tar");
    let mut tar = Command::new("sh");
    let pipe = "tar -C \"$1\" -c . | tar -C \"$2\" -xp";
    let tar = tar.args(["-c", pipe, "sh"]).arg(f.root()).arg(&by_tar);
    succeeds(tar);
    let files = |tree: &Tree| -> u64 {
        let files = tree.values().filter(|e| e.kind() == libc::S_IFREG);
        files
            .map(|e| (e.ino, e.size))
            .collect::<BTreeMap<_, _>>()
            .values()
            .sum()
    };
    for copy in [by_cp, by_tar] {
        let copied = tree::list(&copy);
        assert_eq!(files(&copied), files(&tree), "{}", copy.display());
        let groups = |tree: &Tree| -> Vec<_> {
            let groups = tree.iter().map(|(p, e)| (p.clone(), e.group.clone()));
            groups.collect()
        };
        assert_eq!(groups(&copied), groups(&tree), "{}", copy.display());
    }
    assert!(once.len() > 60);
}

fn check(ext4: bool, options: &'static str) {
    need_mounts!();
    let disks = need!(disks(ext4));
    let mut f = fixture(&disks, options);
    let [one, two, three] = [0, 1, 2].map(|n| numbers_in(&disks.paths[n]));
    assert!(one.intersection(&two).count() > 20, "{one:?} {two:?}");
    assert!(one.intersection(&three).count() > 20, "{one:?} {three:?}");
    let first = assert_numbers(&f);
    assert_programs(&f);
    // Everything is copied up, and one of each is moved.
    for own in ["top", "bottom", "own"] {
        f.ok(&format!(
            "write d/{own}/f0 0 changed
             chmod d/{own}/f1 600
             write {own}-link2 0 through-a-link
             chown {own}-sym 1 1
             chmod {own}-fifo 600
             chmod d/{own} 700"
        ));
    }
    assert_eq!(assert_numbers(&f), first, "after copy-up");
    assert_programs(&f);
    let before = f.tree();
    f.remount();
    assert_eq!(assert_numbers(&f), first, "after a remount");
    tree::assert_same("remounted", &before, &f.tree(), &Mask::ALL);
    f.ok("rename d/top/f0 moved-f0\nrename d/bottom d/moved\nrename bottom-link1 d/link-moved");
    let moved = assert_numbers(&f);
    for (new, old) in [
        ("moved-f0", "d/top/f0"),
        ("d/moved", "d/bottom"),
        ("d/moved/f7", "d/bottom/f7"),
        ("d/link-moved", "bottom-link1"),
    ] {
        assert_eq!(moved[new.as_bytes()], first[old.as_bytes()], "{new}");
    }
    f.remount();
    assert_eq!(assert_numbers(&f), moved, "moved and remounted");
    assert_programs(&f);
}

#[test]
fn on_ext4() {
    need!(without::has_file_handles());
    check(true, "");
}

#[test]
fn on_tmpfs() {
    need!(without::has_file_handles());
    check(false, "");
}
