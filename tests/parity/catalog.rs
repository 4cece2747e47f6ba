//! Unions with a catalog and without, over the same layers, through the interface that a transport
//! uses: every answer must be the same, inode numbers included.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::strategy::{Strategy, ValueTree};
use testkit::layers::{self, FORMS, Form, Layer, Node};
use testkit::mount::{Fs, Scratch};
use testkit::need_mounts;
use testkit::runner::{Case, compare, make_layer};
use unionfs::catalog;
use unionfs::layer::{Dialect, LayerSpec, StackSpec};
use unionfs::union::{Attr, Caching, FileKind, Options, ROOT_INO, Time, Union};

use crate::deep::{Mode, OFF, ON, PLAIN};
use crate::generate;
use crate::random::{assert_none, cases, fresh, runner};

/// All attributes of a name in a union.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    /// Number and type in the listing.
    listed: (u64, FileKind),
    /// The answer of a lookup, or its errno.
    attr: Result<Option<Attr>, i32>,
    xattrs: BTreeMap<Vec<u8>, Result<Vec<u8>, i32>>,
    /// Link target or data, or the errno.
    content: Result<Vec<u8>, i32>,
}

/// Names of xattrs that a file may have, and some that no file has.
const ASKED: [&str; 8] = [
    "user.x",
    "trusted.t",
    "security.capability",
    "system.posix_acl_access",
    "system.posix_acl_default",
    "trusted.overlay.opaque",
    "user.overlay.redirect",
    "nonsense",
];

/// Returns the attributes without the access time of a symlink: every read of the symlink changes
/// it.
fn shown(mut attr: Attr) -> Attr {
    if attr.kind == FileKind::Symlink {
        attr.atime = Time::default();
    }
    attr
}

fn facts(union: &Union, dir: u64, name: &[u8], listed: (u64, FileKind)) -> (Facts, Option<u64>) {
    let mut facts = Facts {
        listed,
        attr: Ok(None),
        xattrs: BTreeMap::new(),
        content: Ok(Vec::new()),
    };
    let entry = match union.lookup(dir, name) {
        Ok(Some(entry)) => entry,
        Ok(None) => return (facts, None),
        Err(e) => {
            facts.attr = Err(e.errno());
            return (facts, None);
        }
    };
    let attr = *entry.attr();
    assert_eq!(union.getattr(attr.ino).unwrap(), attr);
    facts.attr = Ok(Some(shown(attr)));
    let list = union.listxattr(attr.ino, &|| true).unwrap();
    let listed = list.split(|b| *b == 0).filter(|n| !n.is_empty());
    // Twice: the second answer may come from a cache.
    for _ in 0..2 {
        for name in listed.clone().chain(ASKED.map(str::as_bytes)) {
            let value = union.getxattr(attr.ino, name).map_err(|e| e.errno());
            let known = facts.xattrs.insert(name.to_vec(), value.clone());
            assert!(known.is_none_or(|known| known == value));
        }
    }
    facts.content = match attr.kind {
        FileKind::Symlink => union.readlink(attr.ino),
        FileKind::Regular => {
            let mut data = vec![0; attr.size as usize + 1];
            let read = union.read(attr.ino, 0, &mut data, Caching::Cached);
            read.map(|n| data[..n].to_vec())
        }
        _ => Ok(Vec::new()),
    }
    .map_err(|e| e.errno());
    let is_dir = attr.kind == FileKind::Directory;
    // The tree is small, so the entry is never given back.
    (facts, is_dir.then(|| entry.surrender()))
}

/// Returns a whole union by path, including lookups of names that do not exist.
fn tree(union: &Union) -> BTreeMap<Vec<u8>, Facts> {
    let mut tree = BTreeMap::new();
    let mut todo = vec![(Vec::new(), ROOT_INO)];
    while let Some((path, dir)) = todo.pop() {
        let mut names = Vec::new();
        let mut plus = Vec::new();
        let listed = union.readdir(dir, 0, &mut |item| {
            names.push((item.name.to_vec(), (item.ino, item.kind)));
            true
        });
        listed.unwrap();
        let mut sink = |item: unionfs::union::DirItem<'_, '_>| {
            plus.push((item.name.to_vec(), item.entry.map(|e| *e.attr())));
            true
        };
        union.readdirplus(dir, 0, &mut sink).unwrap();
        names.retain(|(name, _)| name != b"." && name != b"..");
        plus.retain(|(name, _)| name != b"." && name != b"..");
        for (name, listed) in names {
            let (facts, below) = facts(union, dir, &name, listed);
            if let Some((_, Some(attr))) = plus.iter().find(|(n, _)| *n == name) {
                assert_eq!(facts.attr, Ok(Some(shown(*attr))));
            }
            let full = [&path[..], b"/", &name].concat();
            todo.extend(below.map(|ino| (full.clone(), ino)));
            assert!(tree.insert(full, facts).is_none(), "listed twice");
        }
        for absent in [&b"absent"[..], b".wh.a", b"a\xff", &[b'L'; 256]] {
            let found = union.lookup(dir, absent);
            let full = [&path[..], b"/", absent].concat();
            if let Err(e) = found {
                let (attr, listed) = (Err(e.errno()), (0, FileKind::Regular));
                let (xattrs, content) = (BTreeMap::new(), Ok(Vec::new()));
                let facts = Facts {
                    listed,
                    attr,
                    xattrs,
                    content,
                };
                tree.insert(full, facts);
            }
        }
    }
    tree
}

fn stack(lowers: &[PathBuf], dialect: Dialect) -> StackSpec {
    let spec = |path: &PathBuf| LayerSpec::open(path, dialect).unwrap();
    // An empty path: the following lowers are data-only.
    let mut parts = lowers.split(|path| path.as_os_str().is_empty());
    StackSpec {
        lowers: parts.next().unwrap_or_default().iter().map(spec).collect(),
        data_only: parts.flatten().map(spec).collect(),
        upper: None,
    }
}

/// Builds a catalog and compares; returns the number of names for which the union must still read
/// the layers.
fn check(stack: &StackSpec, scratch: &Path) -> u64 {
    let path = scratch.join("catalogs/one");
    let label = catalog::Label::default();
    let built = catalog::build(stack, &label, &path, &mut |_| true).unwrap();
    let options = Options {
        names: Some(catalog::CatalogFile::source(&path)),
        ..Options::default()
    };
    let with = Union::observe_with(stack, options).unwrap();
    assert!(with.is_catalogued());
    let without = Union::observe(stack).unwrap();
    let (a, b) = (tree(&without), tree(&with));
    for (path, facts) in &a {
        let shown = String::from_utf8_lossy(path);
        assert_eq!(b.get(path), Some(facts), "{shown}: right without a catalog");
    }
    assert_eq!(a.len(), b.len());
    assert!(with.is_catalogued(), "nothing was wrong with it");
    let differences = catalog::compare(stack, &path, 10, &mut |_| ()).unwrap();
    assert_eq!(differences.unwrap(), []);
    if stack.lowers.len() > 1 {
        check_below_top(stack, scratch, &a);
    }
    built.live
}

/// Builds a catalog of all layers but the topmost one, and compares with the tree without a catalog.
/// Returns whether the catalog was used: a topmost layer that leads elsewhere has none below it.
fn check_below_top(stack: &StackSpec, scratch: &Path, without: &BTreeMap<Vec<u8>, Facts>) -> bool {
    let below = StackSpec {
        lowers: stack.lowers[1..].to_vec(),
        ..stack.clone()
    };
    let path = scratch.join("catalogs/below");
    let label = catalog::Label::default();
    catalog::build(&below, &label, &path, &mut |_| true).unwrap();
    let options = Options {
        names: Some(catalog::CatalogFile::source(&path)),
        ..Options::default()
    };
    let with = Union::observe_with(stack, options).unwrap();
    let used = with.is_catalogued();
    let shown = tree(&with);
    for (path, facts) in without {
        let name = String::from_utf8_lossy(path);
        assert_eq!(shown.get(path), Some(facts), "{name}: below the top layer");
    }
    assert_eq!(without.len(), shown.len());
    assert_eq!(with.is_catalogued(), used, "nothing was wrong with it");
    used
}

#[test]
fn every_kind_of_entry_in_every_dialect() {
    need_mounts!();
    for form in FORMS {
        let scratch = Scratch::disk();
        let lowers = layers::write_all(&layers::standard(), scratch.path(), form);
        assert_eq!(
            check(&stack(&lowers, Dialect::ALL), scratch.path()),
            0,
            "{form:?}"
        );
    }
}

/// Times that nanoseconds in 64 bits cannot represent, and a name whose lookup gives an error.
#[test]
fn what_a_record_cannot_say_is_asked_of_the_layers() {
    need_mounts!();
    let scratch = Scratch::tmpfs();
    let top = Layer::new()
        .file("early", "")
        .mtime(-20_000_000_000, 5)
        .file("late", "x")
        .mtime(20_000_000_000, 0)
        .file("broken", "")
        .xattr("trusted.overlay.metacopy", "")
        .dir("dir")
        .mtime(20_000_000_000, 0)
        .file("dir/in", "in");
    let lowers = layers::write_all(&[top], scratch.path(), Form::Kernel);
    assert_eq!(check(&stack(&lowers, Dialect::KERNEL), scratch.path()), 4);
}

/// A layer above a catalog: each kind of name over each kind.
#[test]
fn a_layer_above_a_catalog() {
    need_mounts!();
    let own = Layer::new()
        .file("new", "n")
        .symlink("link", "new")
        .dir("merged")
        .dir("merged/deep")
        .file("merged/deep/file", "top")
        .dir("merged/added")
        .file("over", "a file over a directory")
        .dir("directory")
        .file("directory/in", "a directory over a file")
        .whiteout("gone")
        .dir("opaque")
        .opaque()
        .file("opaque/only", "o");
    let below = Layer::new()
        .dir("merged")
        .file("merged/below", "b")
        .dir("merged/deep")
        .file("merged/deep/file", "hidden")
        .file("merged/deep/other", "o")
        .dir("merged/deep/er")
        .file("merged/deep/er/still", "s")
        .dir("over")
        .file("over/lost", "")
        .file("directory", "hidden")
        .file("gone", "g")
        .dir("opaque")
        .file("opaque/hidden", "h")
        .file("link", "hidden");
    let bottom = Layer::new()
        .dir("merged")
        .dir("merged/deep")
        .file("merged/deep/bottom", "b")
        .dir("pure")
        .file("pure/file", "p");
    for form in FORMS {
        let scratch = Scratch::disk();
        let layers = [own.clone(), below.clone(), bottom.clone()];
        let lowers = layers::write_all(&layers, scratch.path(), form);
        // They would hide the directory itself, the one above, and nothing.
        for name in [".wh..", ".wh...", ".wh."] {
            std::fs::write(lowers[0].join(name), "").unwrap();
        }
        let stack = stack(&lowers, Dialect::ALL);
        let without = tree(&Union::observe(&stack).unwrap());
        assert!(
            check_below_top(&stack, scratch.path(), &without),
            "{form:?}"
        );
    }
}

/// A redirect, a metacopy, and more names than are read: the catalog below is not used.
#[test]
fn layers_above_that_are_unfit() {
    need_mounts!();
    let below = Layer::new()
        .dir("old")
        .file("old/file", "f")
        .file("data", "d");
    let redirect = Layer::new()
        .dir("new")
        .xattr("trusted.overlay.redirect", "/old");
    let metacopy = Layer::new()
        .file("data", "")
        .xattr("trusted.overlay.metacopy", "");
    let many = (0..1100).fold(Layer::new(), |layer, n| layer.file(format!("f{n}"), ""));
    let mut deep = Layer::new();
    let mut path = "d".to_owned();
    for _ in 0..40 {
        deep = deep.dir(&path);
        path += "/d";
    }
    for top in [redirect, metacopy, many, deep] {
        let scratch = Scratch::disk();
        let lowers = layers::write_all(&[top, below.clone()], scratch.path(), Form::Kernel);
        let stack = stack(&lowers, Dialect::KERNEL);
        let without = tree(&Union::observe(&stack).unwrap());
        assert!(!check_below_top(&stack, scratch.path(), &without));
    }
}

/// A metacopy with its data in a data-only layer, below directories that are not visible.
#[test]
fn data_only_layers() {
    need_mounts!();
    let scratch = Scratch::disk();
    let top = Layer::new()
        .file("file", "")
        .xattr("trusted.overlay.metacopy", "")
        .xattr("trusted.overlay.redirect", "/a/b/data");
    let data = Layer::new().dir("a").dir("a/b").file("a/b/data", "it");
    let mut lowers = layers::write_all(&[top, Layer::new(), data], scratch.path(), Form::Kernel);
    lowers.insert(2, PathBuf::new());
    assert_eq!(check(&stack(&lowers, Dialect::KERNEL), scratch.path()), 0);
}

fn hunt(links: bool, maker: &Fs, seed: u64) {
    let strategy = generate::plan();
    let mut runner = runner(seed);
    let mut checked = 0;
    for _ in 0..cases().div_ceil(2) {
        let plan = strategy.new_tree(&mut runner).unwrap().current();
        let scratch = Scratch::tmpfs();
        let mut written = plan.layers.clone();
        if !links {
            let is_link = |i: &layers::Item| matches!(i.node, Node::Link(_));
            written
                .iter_mut()
                .for_each(|l| l.items.retain(|i| !is_link(i)));
        }
        let mut lowers = layers::write_all(&written, scratch.path(), Form::Kernel);
        for (n, script) in plan.made.iter().enumerate() {
            match make_layer(maker, &scratch, n, &lowers, script) {
                Ok(made) => lowers.insert(0, made),
                Err(_) => break,
            }
        }
        check(&stack(&lowers, Dialect::KERNEL), scratch.path());
        checked += 1;
    }
    assert!(checked > 0);
}

#[test]
fn random_stacks_with_redirects_and_metacopies() {
    need_mounts!();
    hunt(true, &ON.maker, 4);
    hunt(true, &ON.maker, fresh());
}

#[test]
fn random_stacks_made_without() {
    need_mounts!();
    hunt(true, &PLAIN.maker, fresh());
    hunt(false, &OFF.maker, fresh());
}

/// Compares a unionfs mount with a catalog and one without: the same answers to a random script,
/// the same tree and upper after it, and the same after each mounts the other's upper.
fn with_and_without(mode: &Mode, seed: u64) -> Option<String> {
    with_or_without(mode, Fs::Catalogued, seed)
}

/// As [`with_and_without`], with this kind of catalog.
fn with_or_without(mode: &Mode, with: fn(&'static str) -> Fs, seed: u64) -> Option<String> {
    let strategy = generate::plan();
    let mut runner = runner(seed);
    for _ in 0..cases().div_ceil(3) {
        let plan = strategy.new_tree(&mut runner).unwrap().current();
        let case = Case {
            layers: &plan.layers,
            script: &plan.script,
            uppers: true,
            tmpfs: true,
            made: Some((&mode.maker, &plan.made)),
        };
        let Fs::Unionfs(options) = mode.union else {
            panic!("the mode of another program");
        };
        let found = compare(&with(options), &mode.union, &case);
        if !found.is_empty() {
            return Some(format!("UNIONFS_PARITY_SEED={seed}\n{}", found.join("\n")));
        }
    }
    None
}

#[test]
fn random_scripts_with_redirects_and_metacopies() {
    need_mounts!();
    assert_none(with_and_without(&ON, 11));
    assert_none(with_and_without(&ON, fresh()));
}

#[test]
fn random_scripts_without_redirects() {
    need_mounts!();
    assert_none(with_and_without(&OFF, fresh()));
}

#[test]
fn random_scripts_on_a_layer_above_a_catalog() {
    need_mounts!();
    assert_none(with_or_without(&OFF, Fs::CataloguedBelow, 11));
    for mode in [&ON, &OFF] {
        assert_none(with_or_without(mode, Fs::CataloguedBelow, fresh()));
    }
}

/// Compares with the kernel, over metacopies, redirects and links that the kernel itself made.
#[test]
fn random_scripts_as_on_the_kernel() {
    need_mounts!();
    let mode = Mode {
        union: Fs::Catalogued("redirect_dir=on"),
        ..ON
    };
    assert_none(crate::deep::hunt(&mode, true, fresh()));
}
