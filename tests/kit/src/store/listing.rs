//! Directory trees as listings that can be compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use unionfs::oci::Digest;

/// From the path below the root, as bytes, to the entry.
pub type Listing = BTreeMap<Vec<u8>, Entry>;

/// All properties of an entry that a union of layers must show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions.
    pub mode: u32,
    pub owner: (u64, u64),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// The size of a regular file. The digest shows the content.
    pub size: u64,
    pub content: Option<Digest>,
    pub device: Option<(u32, u32)>,
    pub target: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// All names of the inode, if it has several.
    pub names: BTreeSet<Vec<u8>>,
}

const PRIVATE: [&[u8]; 3] = [
    b"trusted.overlay.",
    b"user.overlay.",
    b"user.fuseoverlayfs.",
];

/// Lists a directory, with the root as the empty path.
pub fn of_dir(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut inodes: HashMap<u64, BTreeSet<Vec<u8>>> = HashMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(name) = todo.pop() {
        let path = root.join(std::ffi::OsStr::from_bytes(&name));
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path).unwrap() {
                let below = Path::new(std::ffi::OsStr::from_bytes(&name));
                let below = below.join(entry.unwrap().file_name());
                todo.push(below.into_os_string().as_bytes().to_vec());
            }
        } else {
            inodes.entry(meta.ino()).or_default().insert(name.clone());
        }
        listing.insert(name, entry_of(&path, &meta));
    }
    for names in inodes.into_values().filter(|names| names.len() > 1) {
        for name in &names {
            listing.get_mut(name).unwrap().names = names.clone();
        }
    }
    listing
}

fn entry_of(path: &Path, meta: &std::fs::Metadata) -> Entry {
    let device = meta.rdev();
    let has_device = matches!(meta.mode() & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
    Entry {
        mode: meta.mode(),
        owner: (meta.uid().into(), meta.gid().into()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        size: if meta.is_file() { meta.len() } else { 0 },
        content: meta
            .is_file()
            .then(|| Digest::of(&std::fs::read(path).unwrap())),
        device: has_device.then(|| (rustix::fs::major(device), rustix::fs::minor(device))),
        target: meta.is_symlink().then(|| {
            std::fs::read_link(path)
                .unwrap()
                .into_os_string()
                .as_bytes()
                .to_vec()
        }),
        xattrs: xattrs(path),
        names: BTreeSet::new(),
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names.truncate(length);
    names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !PRIVATE.iter().any(|p| name.starts_with(p)))
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// Fails with the first differences, by path.
#[track_caller]
pub fn assert_same(what: &str, found: &Listing, expected: &Listing) {
    let paths: BTreeSet<&Vec<u8>> = found.keys().chain(expected.keys()).collect();
    let differ = |path: &&&Vec<u8>| found.get(**path) != expected.get(**path);
    let bad: Vec<_> = paths.iter().filter(differ).collect();
    let first: Vec<String> = bad
        .iter()
        .take(5)
        .map(|path| {
            let (found, expected) = (found.get(**path), expected.get(**path));
            format!(
                "{}\n  found    {found:?}\n  expected {expected:?}",
                path.escape_ascii()
            )
        })
        .collect();
    assert!(
        bad.is_empty(),
        "{what}: {} differences\n{}",
        bad.len(),
        first.join("\n")
    );
    assert!(found.len() > 1, "{what}: nothing to compare");
}
