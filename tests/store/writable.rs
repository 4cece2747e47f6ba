//! Our own store, written through the library: what exists after each step, and what does not.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use testkit::need;
use testkit::need::is_root;
use unionfs::oci::{Digest, Reference};
use unionfs::store::writable::{Exclusive, Garbage, GarbageKind, LiveMounts, NoMounts};
use unionfs::store::{Error, Image, Writable};

use super::{children, discover};

/// A directory for a store, not created yet.
pub(crate) struct Own {
    _temp: tempfile::TempDir,
    pub(crate) root: PathBuf,
}

impl Own {
    pub(crate) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap().join("own");
        Self { _temp: temp, root }
    }

    pub(crate) fn open(&self) -> Writable {
        Writable::open(&self.root).unwrap()
    }

    /// Returns the names in `dir` of the store.
    pub(crate) fn names(&self, dir: &str) -> Vec<String> {
        let paths = children(&self.root.join(dir));
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        paths.iter().map(name).collect()
    }
}

/// Commits a layer that holds a file of that content; its digest is not that of a tar.
pub(crate) fn layer(store: &Exclusive<'_>, parent: Option<&Digest>, content: &str) -> Digest {
    let mut staged = store.stage_layer(parent).unwrap();
    std::fs::write(staged.diff_path().join("file"), content).unwrap();
    staged.split().write_all(b"{}\n").unwrap();
    let diff_id = Digest::of(content.as_bytes());
    staged.commit(diff_id, content.len() as u64).unwrap()
}

pub(crate) fn config(diffs: &[&str]) -> Vec<u8> {
    let diff_ids: Vec<String> = diffs
        .iter()
        .map(|content| Digest::of(content.as_bytes()).to_string())
        .collect();
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": rootfs});
    config.to_string().into_bytes()
}

/// Makes layers with these contents, base first, and an image of them.
pub(crate) fn image(store: &Exclusive<'_>, name: &str, contents: &[&str]) -> Digest {
    let mut parent = None;
    for content in contents {
        parent = Some(layer(store, parent.as_ref(), content));
    }
    let id = store.register_image(&config(contents)).unwrap();
    store.tag(&Reference::parse(name).unwrap(), &id).unwrap();
    id
}

#[test]
fn an_image_written_is_found_with_its_layers() {
    let own = Own::new();
    let store = own.open();
    let locked = store.lock().unwrap();
    let id = image(&locked, "app:1", &["base", "top"]);
    assert!(store.try_lock().unwrap().is_none());
    drop(locked);
    let found = discover(&own.root).unwrap().find("app:1").unwrap();
    assert_eq!((found.id, found.size), (id, 7));
    assert_eq!(
        std::fs::read(found.layers[1].place.path().join("file")).unwrap(),
        b"top"
    );
    let base = found.layers[0].place.path().parent().unwrap();
    let top = found.layers[1].place.path().parent().unwrap();
    let has = |dir: &Path, name: &str| dir.join(name).exists();
    assert_eq!(
        base.join("committed").metadata().unwrap().mode() & 0o777,
        0o600
    );
    assert!(!has(top, "committed") && has(top, "work") && !has(base, "work"));
    assert_eq!(own.names("image/overlay2/layerdb/tmp"), [""; 0]);
    assert_eq!(own.names("unionfs/tmp"), [""; 0]);
}

/// Live mounts, of which none is asked for while a reader has the store.
struct Watched<'w> {
    reading: &'w AtomicBool,
    asked: AtomicBool,
}

impl LiveMounts for Watched<'_> {
    fn layer(&self, _: &Path) -> Option<PathBuf> {
        None
    }

    fn image(&self, _: &Image) -> Option<PathBuf> {
        assert!(!self.reading.load(Ordering::SeqCst), "asked too early");
        self.asked.store(true, Ordering::SeqCst);
        Some("/mnt".into())
    }
}

/// A mount holds the lock for readers until it is live. Whoever removes an image waits for that, and
/// looks for mounts after that, also if all layers of the image stay for another one.
#[test]
fn an_image_that_is_mounted_meanwhile_stays() {
    let own = Own::new();
    let store = own.open();
    let locked = store.lock().unwrap();
    let layers = image(&locked, "app:1", &["base", "top"]);
    let mut same = config(&["base", "top"]);
    same.push(b'\n');
    let id = locked.register_image(&same).unwrap();
    assert_ne!(id, layers);
    for removal in ["rmi", "prune"] {
        let reading = AtomicBool::new(true);
        let reader = discover(&own.root).unwrap();
        let watched = Watched {
            reading: &reading,
            asked: AtomicBool::new(false),
        };
        std::thread::scope(|scope| {
            let remover = scope.spawn(|| {
                if removal == "rmi" {
                    let error = locked.remove_image(&id, &watched).unwrap_err();
                    assert!(matches!(error, Error::InUse { .. }), "{error}");
                } else {
                    let found = locked.garbage(&NoMounts, &[id]).unwrap();
                    let is_image = |garbage: &&Garbage| garbage.kind == GarbageKind::Image;
                    let image = found.iter().find(is_image).unwrap();
                    assert!(!locked.remove_garbage(image, &watched).unwrap());
                }
            });
            // The remover has time for a look that is too early.
            std::thread::sleep(Duration::from_millis(100));
            reading.store(false, Ordering::SeqCst);
            drop(reader);
            remover.join().unwrap();
        });
        assert!(watched.asked.load(Ordering::SeqCst), "{removal}");
        assert!(discover(&own.root).unwrap().find(&id.to_string()).is_ok());
    }
    // The layers of an image that stays are no garbage, whatever a list of garbage says.
    let found = locked.garbage(&NoMounts, &[id, layers]).unwrap();
    let layers_too = found
        .iter()
        .filter(|garbage| garbage.kind == GarbageKind::Layer);
    for garbage in layers_too {
        assert!(!locked.remove_garbage(garbage, &NoMounts).unwrap());
    }
    locked.remove_image(&id, &NoMounts).unwrap();
    assert!(discover(&own.root).unwrap().find("app:1").is_ok());
}

#[test]
fn a_layer_that_is_not_committed_leaves_nothing() {
    let own = Own::new();
    let store = own.open();
    let locked = store.lock().unwrap();
    let before = own.names("overlay2");
    drop(locked.stage_layer(None).unwrap());
    assert_eq!(own.names("overlay2"), before);
    assert_eq!(own.names("overlay2/l"), [""; 0]);
    assert_eq!(own.names("image/overlay2/layerdb/tmp"), [""; 0]);
    // The same layer once more: the first one stays.
    layer(&locked, None, "x");
    let before = own.names("overlay2");
    layer(&locked, None, "x");
    assert_eq!(own.names("overlay2"), before);
    assert_eq!(own.names("overlay2/l").len(), 1);
}

#[test]
fn what_an_image_needs_must_be_there() {
    let own = Own::new();
    let store = own.open();
    let locked = store.lock().unwrap();
    let missing = Digest::of(b"missing");
    assert!(matches!(
        locked.stage_layer(Some(&missing)),
        Err(Error::LayerMissing { .. })
    ));
    assert!(matches!(
        locked.register_image(&config(&["missing"])),
        Err(Error::LayerMissing { .. })
    ));
    assert!(matches!(
        locked.tag(&Reference::parse("a").unwrap(), &missing),
        Err(Error::ConfigMissing { .. })
    ));
    assert_eq!(own.names("image/overlay2/imagedb/content/sha256"), [""; 0]);
}

#[test]
fn a_damaged_layer_is_replaced_by_a_whole_one() {
    let own = Own::new();
    let store = own.open();
    let id = image(&store.lock().unwrap(), "app", &["base", "top"]);
    let stores = discover(&own.root).unwrap();
    let lost = stores.find("app").unwrap().layers[1]
        .place
        .path()
        .to_owned();
    std::fs::remove_dir_all(&lost).unwrap();
    assert!(stores.find("app").is_err());
    assert_eq!(image(&store.lock().unwrap(), "app", &["base", "top"]), id);
    assert_ne!(stores.find("app").unwrap().layers[1].place.path(), lost);
}

#[test]
fn only_a_store_of_ours_is_written_to() {
    let own = Own::new();
    for foreign in ["image", "overlay2", "containers", "engine-id", "etc"] {
        std::fs::create_dir_all(own.root.join(foreign)).unwrap();
        let error = Writable::open(&own.root).unwrap_err();
        assert!(matches!(error, Error::NotOurs { .. }), "{error}");
        assert_eq!(own.names(""), [foreign]);
        std::fs::remove_dir(own.root.join(foreign)).unwrap();
    }
    std::fs::create_dir(own.root.join("rw")).unwrap();
    own.open();
    // A dockerd has used the directory.
    std::fs::create_dir(own.root.join("buildkit")).unwrap();
    assert!(matches!(
        Writable::open(&own.root),
        Err(Error::NotOurs { .. })
    ));
    std::fs::remove_dir(own.root.join("buildkit")).unwrap();
    std::fs::write(own.root.join("unionfs/format"), "2").unwrap();
    assert!(matches!(
        Writable::open(&own.root),
        Err(Error::NewerStore { .. })
    ));
    std::fs::write(own.root.join("unionfs/format"), "1").unwrap();
    // A directory that is a symlink to another place.
    let l = own.root.join("overlay2/l");
    std::fs::remove_dir(&l).unwrap();
    std::os::unix::fs::symlink("/tmp", &l).unwrap();
    assert!(Writable::open(&own.root).is_err());
}

/// One more inode in each round: the disk is full at each file that is made.
#[test]
fn a_full_disk_gives_its_error_and_leaves_nothing() {
    use rustix::mount::{MountFlags, UnmountFlags, mount};
    // A tmpfs of its own.
    need!(is_root());
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().canonicalize().unwrap();
    let mut failures = 0;
    for inodes in 1..200 {
        let options = std::ffi::CString::new(format!("nr_inodes={inodes}")).unwrap();
        mount("tmpfs", &root, "tmpfs", MountFlags::empty(), &*options).unwrap();
        let outcome = write_image(&root);
        if let Err(error) = &outcome {
            failures += 1;
            let full = error.errno() == Some(rustix::io::Errno::NOSPC);
            assert!(full, "{inodes} inodes: {error}");
            assert!(error.to_string().contains("free some space"), "{error}");
            // There is room again: existing objects are whole, and unneeded ones too.
            rustix::mount::mount_remount(&root, MountFlags::empty(), c"nr_inodes=0").unwrap();
            let store = Writable::open(&root).unwrap();
            let locked = store.lock().unwrap();
            for left in locked.garbage(&NoMounts, &[]).unwrap() {
                assert_eq!(left.kind, GarbageKind::Layer, "{inodes} inodes: {left:?}");
            }
            drop(locked);
            write_image(&root).unwrap();
        }
        let listing = discover(&root).unwrap().images();
        assert_eq!((listing.images.len(), listing.problems.len()), (1, 0));
        rustix::mount::unmount(&root, UnmountFlags::DETACH).unwrap();
        if outcome.is_ok() {
            assert!(failures > 30, "{failures}");
            return;
        }
    }
    panic!("does not fit into 200 inodes");
}

/// Writes two layers, an image, a name and a named layer, by calls that may fail.
fn write_image(root: &Path) -> unionfs::store::Result<()> {
    let store = Writable::open(root)?;
    let locked = store.lock()?;
    let mut parent = None;
    for content in ["base", "top"] {
        let mut staged = locked.stage_layer(parent.as_ref())?;
        staged.split().write_all(b"{}\n").unwrap();
        let diff_id = Digest::of(content.as_bytes());
        parent = Some(staged.commit(diff_id, 0)?);
    }
    let id = locked.register_image(&config(&["base", "top"]))?;
    locked.tag(&Reference::parse("app").unwrap(), &id)?;
    match locked.create_container("work", &locked.image(&id)?) {
        Err(Error::NameTaken { .. }) => Ok(()),
        other => other.map(drop),
    }
}
