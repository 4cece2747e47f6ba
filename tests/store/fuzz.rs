//! Random damage to a valid store: whatever its files contain, reading it neither panics nor hangs
//! nor returns a path outside of the root. `fuzz_podman` does the same to podman's store.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use unionfs::layer::LayerSpec;

use super::{Fixture, children, discover};

/// One change to one file.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    SetByte(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove,
    Directory,
    Symlink(String),
    /// The content of another metadata file.
    Swap(usize),
}

pub(crate) fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("../../../../etc".to_owned()),
        Just("/etc".to_owned()),
        Just("..".to_owned()),
        Just("../l".to_owned()),
        Just("\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[".to_owned()),
        "[a-z0-9./\\[\\]{}\":,-]{0,80}",
    ]
}

pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::SetByte(at, byte)),
        1 => any::<usize>().prop_map(Damage::Cut),
        2 => (any::<usize>(), hostile()).prop_map(|(at, text)| Damage::Insert(at, text.into_bytes())),
        1 => (any::<usize>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(at, b)| Damage::Insert(at, b)),
        1 => Just(Damage::Remove),
        1 => Just(Damage::Directory),
        1 => hostile().prop_map(Damage::Symlink),
        2 => any::<usize>().prop_map(Damage::Swap),
    ]
}

/// A store, its metadata files and their content.
pub(crate) struct Target {
    pub(crate) store: Fixture,
    files: Vec<PathBuf>,
    before: Vec<Original>,
}

static STORE: LazyLock<Target> = LazyLock::new(|| Target::new(Fixture::new()));

impl Target {
    pub(crate) fn new(store: Fixture) -> Self {
        let files = metadata(&store.root);
        let before = files.iter().map(|path| original(path)).collect();
        Self {
            store,
            files,
            before,
        }
    }

    /// Tells whether the store with these changes can be read or is refused.
    pub(crate) fn survives(&self, changes: &[(usize, Damage)]) -> bool {
        let Self {
            store: _,
            files,
            before,
        } = self;
        for (which, damage) in changes {
            let which = which % files.len();
            // A file that an earlier change replaced keeps its first content here.
            if files[which].symlink_metadata().is_ok_and(|m| !m.is_dir()) {
                apply(damage, files, &files[which], &before[which]);
            }
        }
        let survived = self.reads();
        for (which, _) in changes {
            let which = which % files.len();
            put(&files[which], &before[which]);
        }
        survived
    }

    /// Tells whether the store can be read or is refused, in its current state.
    pub(crate) fn reads(&self) -> bool {
        let store = &self.store;
        let ids = [store.id(0), store.id(1)];
        let read = || read_everything(&store.root, &ids, &store.sample.container);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).is_ok()
    }
}

/// Returns the store's metadata files and the links in `l/`, not the layers' own files.
fn metadata(root: &Path) -> Vec<PathBuf> {
    let mut todo = vec![root.to_owned()];
    let mut files = Vec::new();
    while let Some(dir) = todo.pop() {
        for path in children(&dir) {
            if path.symlink_metadata().unwrap().is_dir() {
                if !path.ends_with("diff") {
                    todo.push(path);
                }
            } else if path.extension().is_none_or(|e| e != "gz") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn put(path: &Path, content: &Original) {
    let _ = std::fs::remove_dir(path);
    let _ = std::fs::remove_file(path);
    match content {
        Original::File(bytes) => std::fs::write(path, bytes).unwrap(),
        Original::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
    }
}

#[derive(Clone)]
enum Original {
    File(Vec<u8>),
    Link(PathBuf),
}

fn original(path: &Path) -> Original {
    match std::fs::read_link(path) {
        Ok(target) => Original::Link(target),
        Err(_) => Original::File(std::fs::read(path).unwrap()),
    }
}

fn apply(damage: &Damage, files: &[PathBuf], path: &Path, before: &Original) {
    let mut bytes = match before {
        Original::File(bytes) => bytes.clone(),
        Original::Link(target) => target.as_os_str().as_encoded_bytes().to_vec(),
    };
    match damage {
        Damage::SetByte(at, byte) => {
            if let Some(length) = std::num::NonZeroUsize::new(bytes.len()) {
                bytes[*at % length] = *byte;
            }
        }
        Damage::Cut(at) => bytes.truncate(at % (bytes.len() + 1)),
        Damage::Insert(at, new) => {
            let at = at % (bytes.len() + 1);
            bytes.splice(at..at, new.iter().copied());
        }
        Damage::Swap(other) => {
            let other = &files[other % files.len()];
            return put(path, &original_or_empty(other));
        }
        Damage::Symlink(target) if !target.is_empty() => {
            return put(path, &Original::Link(target.into()));
        }
        Damage::Remove | Damage::Symlink(_) => return std::fs::remove_file(path).unwrap(),
        Damage::Directory => {
            std::fs::remove_file(path).unwrap();
            return std::fs::create_dir(path).unwrap();
        }
    }
    let target = || std::ffi::OsString::from(String::from_utf8_lossy(&bytes).replace('\0', "_"));
    match before {
        Original::Link(_) if !bytes.is_empty() => put(path, &Original::Link(target().into())),
        _ => put(path, &Original::File(bytes)),
    }
}

fn original_or_empty(path: &Path) -> Original {
    if path.is_dir() || path.symlink_metadata().is_err() {
        Original::File(Vec::new())
    } else {
        original(path)
    }
}

fn check_stack(root: &Path, stack: &[LayerSpec]) {
    for layer in stack {
        check_path(root, layer.path());
    }
}

/// Asserts that the path is a directory inside the root, without symlinks on the way.
fn check_path(root: &Path, path: &Path) {
    assert_eq!(path.canonicalize().unwrap(), path);
    assert!(path.starts_with(root) && path.is_dir(), "{path:?}");
}

fn read_everything(root: &Path, ids: &[&str], container: &str) {
    let Ok(stores) = discover(root) else { return };
    let one_line = |text: String| assert!(!text.contains(['\n', '\x1b', '\0']), "{text:?}");
    let listing = stores.images();
    for problem in &listing.problems {
        one_line(problem.to_string());
    }
    for text in [
        "sample:1",
        "sample:2",
        "sample",
        ids[0],
        ids[1],
        &ids[0][..10],
    ] {
        match stores.find(text) {
            Ok(image) => {
                check_stack(root, &image.stack().unwrap_or_default());
                let rows = image.history();
                assert!(rows.len() >= image.layers.len());
                assert!(serde_json::to_string(&image).is_ok());
            }
            Err(error) => one_line(error.to_string()),
        }
    }
    for text in ["sample", container, &container[..6]] {
        match stores.container(text) {
            Ok(found) => {
                check_stack(root, &found.stack().lowers);
                check_path(root, found.upper.work.path());
                check_path(root, found.upper.layer.path());
            }
            Err(error) => one_line(error.to_string()),
        }
    }
    for problem in stores.verify(None, &mut |_| {}).unwrap().problems {
        one_line(problem.what);
    }
    let tree = stores.layers(None);
    assert!(tree.nodes.len() <= 4);
}

/// Each directory of the store in turn is moved outside and replaced by a symlink to its new place.
#[test]
fn no_symlink_in_place_of_a_directory_leads_outside() {
    let store = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    let moved = outside.path().join("moved");
    let mut todo = children(&store.root);
    let mut count = 0;
    while let Some(dir) = todo.pop() {
        if !dir.is_dir() {
            continue;
        }
        if !dir.ends_with("diff") {
            todo.extend(children(&dir));
        }
        // Both are below the directory for temporary files, on one file system.
        std::fs::rename(&dir, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &dir).unwrap();
        let ids = [store.id(0), store.id(1)];
        read_everything(&store.root, &ids, &store.sample.container);
        std::fs::remove_file(&dir).unwrap();
        std::fs::rename(&moved, &dir).unwrap();
        count += 1;
    }
    assert!(count > 40, "{count}");
    assert_eq!(store.stores().unwrap().images().images.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_makes_reading_panic_or_leave_the_root(
        changes in prop::collection::vec((any::<usize>(), damage()), 1..4)
    ) {
        prop_assert!(STORE.survives(&changes));
    }
}
