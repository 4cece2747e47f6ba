//! The changes in an upper, compared with a plain comparison of the trees before and after: the
//! list of changes; the layer tar, unpacked and mounted as a layer; the flat tar, unpacked. Kernel
//! overlayfs and unionfs write the uppers.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{Fs, KERNEL, Scratch, Stack, subject};
use testkit::script::{self, Op};
use testkit::tree::{self, Entry, Mask, Tree};
use testkit::{escape, exec, need_mounts};
use unionfs::changes::{self, ChangeKind};
use unionfs::layer::{Dialect, LayerSpec, OpenDir, StackSpec, UpperSpec};
use unionfs::layer_tar::{Limits, unpack};

use crate::{random, scenarios};

/// Copies up only the metadata if only that changes.
const METACOPY: Fs = Fs::Kernel("index=on,redirect_dir=on,metacopy=on,xino=auto");
/// The same by unionfs.
const OUR_METACOPY: Fs = Fs::Unionfs("metacopy=on");

fn spec(stack: &Stack) -> StackSpec {
    let layer = |path: &PathBuf| LayerSpec::open(path, Dialect::KERNEL).unwrap();
    let (upper, work) = stack.upper.as_ref().unwrap();
    StackSpec {
        lowers: stack.lowers.iter().map(layer).collect(),
        data_only: Vec::new(),
        upper: Some(UpperSpec {
            layer: layer(upper),
            work: OpenDir::open(work).unwrap(),
        }),
    }
}

/// Returns the changes from one tree to the other, found by comparing all entries.
fn expected(before: &Tree, after: &Tree) -> BTreeMap<Vec<u8>, char> {
    let parent = |path: &[u8]| match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => path[..slash].to_vec(),
        None => Vec::new(),
    };
    let mut found = BTreeMap::new();
    for path in before.keys().chain(after.keys()).filter(|p| !p.is_empty()) {
        let letter = match (before.get(path), after.get(path)) {
            (None, _) => 'A',
            // If its directory is gone or replaced, that is the change.
            (Some(_), None) if after.get(&parent(path)).is_some_and(Entry::is_dir) => 'D',
            (Some(before), Some(after)) if differ(before, after) => 'C',
            _ => continue,
        };
        found.insert(path.clone(), letter);
    }
    for path in found.keys().cloned().collect::<Vec<_>>() {
        let mut dir = parent(&path);
        while !dir.is_empty() {
            found.entry(dir.clone()).or_insert('C');
            dir = parent(&dir);
        }
    }
    found
}

fn differ(before: &Entry, after: &Entry) -> bool {
    let facts = |e: &Entry| (e.mode, e.uid, e.gid, e.rdev, e.xattrs.clone());
    let data = |e: &Entry| (e.size, e.mtime, e.content.clone());
    facts(before) != facts(after) || !after.is_dir() && data(before) != data(after)
}

fn listed(spec: &StackSpec) -> Result<BTreeMap<Vec<u8>, char>, String> {
    let tree = changes::Tree::open(spec).map_err(|e| e.to_string())?;
    let changes = tree.changes().map_err(|e| e.to_string())?;
    assert!(changes.is_sorted_by(|a, b| a.path < b.path));
    let row = |c: changes::Change| (c.path[1..].to_vec(), c.kind.letter());
    Ok(changes.into_iter().map(row).collect())
}

fn compare_lists(
    what: &str,
    found: &BTreeMap<Vec<u8>, char>,
    expected: &BTreeMap<Vec<u8>, char>,
) -> Vec<String> {
    let paths = found.keys().chain(expected.keys());
    let mut lines: Vec<String> = paths
        .filter(|path| found.get(*path) != expected.get(*path))
        .map(|path| {
            let (found, expected) = (found.get(path), expected.get(path));
            format!("{what}: /{}: {found:?}, must be {expected:?}", escape(path))
        })
        .collect();
    lines.dedup();
    lines
}

/// Unpacks a tar as a new layer.
fn unpacked(tar: &[u8], dir: &Path) -> Result<(), String> {
    let fd = File::open(dir).unwrap();
    let limits = Limits::default();
    unpack(tar, fd.as_fd(), Dialect::KERNEL, std::io::sink(), &limits)
        .map(drop)
        .map_err(|e| e.to_string())
}

/// Returns the tree without sockets: a tar has no sockets, and a read-only overlay has no links
/// across its layers.
fn without_sockets(mut tree: Tree) -> Tree {
    tree.retain(|_, entry| entry.kind() != libc::S_IFSOCK);
    tree
}

/// Returns all faults in the reported changes of the upper that `fs` writes.
fn check(fs: &Fs, layers: &[Layer], ops: &[Op]) -> Vec<String> {
    let scratch = Scratch::tmpfs();
    let stack = Stack {
        lowers: layers::write_all(layers, scratch.path(), Form::Kernel),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let spec = spec(&stack);
    let mounted = fs.mount(&stack);
    let before = tree::list(mounted.path());
    exec::run(mounted.path(), ops);
    let after = tree::list(mounted.path());
    rustix::fs::syncfs(File::open(mounted.path()).unwrap()).unwrap();
    let live = listed(&spec);
    mounted.unmount();

    let expected = expected(&before, &after);
    let mut lines = Vec::new();
    for (what, list) in [("mounted", live), ("unmounted", listed(&spec))] {
        match list {
            Ok(list) => lines.extend(compare_lists(what, &list, &expected)),
            Err(e) => lines.push(e),
        }
    }
    let after = without_sockets(after);
    match tars(&spec) {
        Ok((layer, flat)) => {
            lines.extend(check_layer(&stack, &scratch, &layer, &after));
            let dir = scratch.dir("flat");
            lines.extend(unpacked(&flat, &dir).err());
            let diff = tree::diff(&tree::list(&dir), &after, &mask());
            lines.extend(diff.into_iter().map(|line| format!("flat tar: {line}")));
        }
        Err(e) => lines.push(e),
    }
    lines
}

/// Link counts differ if a tar leaves a name out of a group of links.
fn mask() -> Mask {
    Mask {
        nlink: false,
        ..Mask::ALL
    }
}

fn tars(spec: &StackSpec) -> Result<(Vec<u8>, Vec<u8>), String> {
    let tree = changes::Tree::open(spec).map_err(|e| e.to_string())?;
    let (mut layer, mut again, mut flat) = (Vec::new(), Vec::new(), Vec::new());
    tree.pack_layer(&mut layer).map_err(|e| e.to_string())?;
    tree.pack_layer(&mut again).map_err(|e| e.to_string())?;
    tree.pack_all(&mut flat).map_err(|e| e.to_string())?;
    if layer == again {
        Ok((layer, flat))
    } else {
        Err("the same layer gave another tar".into())
    }
}

/// Mounts the layer tar as a layer on top of the others with the kernel, and compares.
fn check_layer(stack: &Stack, scratch: &Scratch, tar: &[u8], after: &Tree) -> Vec<String> {
    let dir = scratch.dir("layer");
    let mut lines: Vec<String> = unpacked(tar, &dir).err().into_iter().collect();
    let upper = tree::list_raw(&stack.upper.as_ref().unwrap().0);
    let redirect = &b"trusted.overlay.redirect"[..];
    let moved = upper.values().any(|e| e.xattrs.contains_key(redirect));
    let stack = Stack {
        lowers: [vec![dir], stack.lowers.clone()].concat(),
        upper: None,
        mnt: stack.mnt.clone(),
    };
    match KERNEL.try_mount(&stack) {
        Ok(mounted) => {
            let found = tree::list(mounted.path());
            let mut diff = tree::diff(&found, after, &mask());
            // An object that was moved with its directory is copied, so its links to objects that
            // were not moved are lost.
            diff.retain(|line| !moved || !line.contains(": link group: "));
            lines.extend(diff.into_iter().map(|line| format!("layer tar: {line}")));
        }
        Err(e) => lines.push(e),
    }
    lines
}

#[test]
fn every_scenario_is_told_and_packed() {
    need_mounts!();
    for fs in [KERNEL, METACOPY, OUR_METACOPY, subject()] {
        for (name, text) in scenarios::all() {
            let found = check(&fs, &layers::standard(), &script::parse(text));
            assert!(found.is_empty(), "{fs:?}: {name}:\n{}", found.join("\n"));
        }
    }
}

#[test]
fn random_uppers_are_told_and_packed() {
    need_mounts!();
    let strategy = (
        vec(random::layer(), 1..4).prop_map(random::prune),
        random::script(),
        prop::sample::select(vec![KERNEL, METACOPY, OUR_METACOPY, subject()]),
    );
    let seed = random::rand_seed();
    let result = random::runner(seed).run(&strategy, |(layers, script, fs)| {
        let found = check(&fs, &layers, &script);
        prop_assert!(found.is_empty(), "{fs:?}\n{}", found.join("\n"));
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("UNIONFS_PARITY_SEED={seed}: {e}"));
}

/// Ten changes of a large image are found without a walk through the image.
#[test]
fn a_list_costs_what_was_changed() {
    need_mounts!();
    let scratch = Scratch::tmpfs();
    let stack = Stack::writable(&scratch, vec![scratch.dir("image")]);
    for dir in 0..20 {
        let dir = scratch.dir(&format!("image/{dir}"));
        for file in 0..1000 {
            File::create(dir.join(file.to_string())).unwrap();
        }
    }
    let mounted = KERNEL.mount(&stack);
    for file in 0..10 {
        std::fs::write(mounted.path().join(format!("{file}/{file}")), "changed").unwrap();
    }
    mounted.unmount();
    let spec = spec(&stack);
    let timed = |what: &dyn Fn()| {
        let start = std::time::Instant::now();
        what();
        start.elapsed()
    };
    // Ten files and their ten directories.
    let list = timed(&|| assert_eq!(listed(&spec).unwrap().len(), 20));
    let tree = changes::Tree::open(&spec).unwrap();
    let all = timed(&|| tree.pack_all(std::io::sink()).unwrap());
    assert!(list * 20 < all, "{list:?}, and for everything {all:?}");
}

/// The test itself reports a missing change and a superfluous one.
#[test]
fn a_wrong_list_is_reported() {
    let list = |path: &str, letter| BTreeMap::from([(path.as_bytes().to_vec(), letter)]);
    let found = compare_lists("x", &list("a", 'A'), &list("b", 'D'));
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(ChangeKind::Changed.letter(), 'C');
}
