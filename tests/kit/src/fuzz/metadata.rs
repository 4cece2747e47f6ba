//! The small files of a store, storage.conf, and names of images with a store. The first byte
//! chooses: a parser gets the bytes directly, or a file of a small store (Docker's, podman's) gets
//! them as its content before the whole store is read.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use unionfs::store::discovery::Environment;
use unionfs::store::{Error, Stores, fuzzing};

use super::one_line;
use crate::store::fixture::{Fixture, children};
use crate::store::layouts::Layout;

/// A parser of bytes, which returns its errors.
type Parser = fn(&[u8]) -> Vec<Error>;

const PARSERS: [Parser; 6] = [
    fuzzing::repositories,
    fuzzing::config,
    fuzzing::named,
    fuzzing::digest,
    fuzzing::storage_conf,
    fuzzing::image_name,
];

/// Files of Docker's store.
const DOCKER: [&str; 11] = [
    "image/overlay2/repositories.json",
    "image/overlay2/layerdb/sha256/*/cache-id",
    "image/overlay2/layerdb/sha256/*/diff",
    "image/overlay2/layerdb/sha256/*/parent",
    "image/overlay2/layerdb/sha256/*/size",
    "image/overlay2/layerdb/mounts/*/mount-id",
    "image/overlay2/layerdb/mounts/*/init-id",
    "image/overlay2/layerdb/mounts/*/parent",
    "containers/*/config.v2.json",
    "overlay2/*/link",
    "overlay2/*/lower",
];

/// Files of podman's store, and of its run root, which is in a directory of the store here.
const PODMAN: [&str; 10] = [
    "overlay-images/images.json",
    "overlay-layers/layers.json",
    "overlay-layers/volatile-layers.json",
    "overlay-containers/containers.json",
    "overlay-containers/volatile-containers.json",
    "run/overlay-layers/volatile-layers.json",
    "run/overlay-containers/volatile-containers.json",
    "overlay/*/link",
    "overlay/*/lower",
    "overlay/.has-mount-program",
];

thread_local! {
    static STORES: RefCell<[Store; 2]> = RefCell::new([
        Store::new(Fixture::new(), &DOCKER),
        Store::new(Layout::podman("overlay").store, &PODMAN),
    ]);
}

/// A store, and those of its files that are changed.
struct Store {
    store: Fixture,
    names: [String; 5],
    files: Vec<PathBuf>,
    before: Vec<Option<Vec<u8>>>,
}

pub fn run(bytes: &[u8]) {
    let Some((&which, bytes)) = bytes.split_first() else {
        return;
    };
    let which = usize::from(which) % (PARSERS.len() + DOCKER.len() + PODMAN.len());
    if let Some(parse) = PARSERS.get(which) {
        return parse(bytes).iter().for_each(one_line);
    }
    let which = which - PARSERS.len();
    STORES.with_borrow(|[docker, podman]| match which.checked_sub(DOCKER.len()) {
        None => docker.read_with(which, bytes),
        Some(which) => podman.read_with(which, bytes),
    });
}

impl Store {
    fn new(store: Fixture, patterns: &[&str]) -> Self {
        for dir in ["run/overlay-layers", "run/overlay-containers"] {
            fs::create_dir_all(store.root.join(dir)).unwrap();
        }
        let files: Vec<PathBuf> = patterns
            .iter()
            .map(|pattern| file(&store, pattern))
            .collect();
        let (id, other) = (store.id(0).to_owned(), store.id(1).to_owned());
        let container = store.sample.container.clone();
        Self {
            before: files.iter().map(|path| fs::read(path).ok()).collect(),
            files,
            names: [
                "sample:1".into(),
                "sample:2".into(),
                other,
                id[..10].into(),
                container,
            ],
            store,
        }
    }

    fn read_with(&self, which: usize, content: &[u8]) {
        fs::write(&self.files[which], content).unwrap();
        self.read();
        match &self.before[which] {
            Some(before) => fs::write(&self.files[which], before).unwrap(),
            None => fs::remove_file(&self.files[which]).unwrap(),
        }
    }

    fn read(&self) {
        let root = &self.store.root;
        let inside = |path: &Path| {
            assert!(path.starts_with(root) && path.is_dir(), "{path:?}");
            assert_eq!(path.canonicalize().unwrap(), path);
        };
        let mut environment = Environment::default();
        environment.run_root = Some(root.join("run"));
        let stores = match Stores::discover(Some(root), &environment) {
            Ok(stores) => stores,
            Err(error) => return one_line(&error),
        };
        for problem in stores.images().problems {
            one_line(&problem);
        }
        for name in &self.names {
            match stores.find(name) {
                Err(error) => one_line(&error),
                Ok(image) => {
                    let stack = image.stack().unwrap_or_default();
                    stack.iter().for_each(|layer| inside(layer.path()));
                    assert!(image.history().len() >= image.layers.len());
                }
            }
        }
        // Docker's, podman's, and one that only a seed has.
        for name in ["sample", "web", "volatile"] {
            read_container(&stores, name, &inside);
        }
    }
}

fn read_container(stores: &Stores, name: &str, inside: &dyn Fn(&Path)) {
    match stores.container(name) {
        Err(error) => one_line(&error),
        Ok(container) => {
            let stack = container.stack();
            stack.lowers.iter().for_each(|layer| inside(layer.path()));
            inside(container.upper.work.path());
            inside(container.upper.layer.path());
        }
    }
}

/// Returns the last file that matches the pattern; among layers, that of a layer with a parent. The
/// file need not exist.
fn file(store: &Fixture, pattern: &str) -> PathBuf {
    let Some((dir, name)) = pattern.split_once("/*/") else {
        return store.root.join(pattern);
    };
    let dirs = children(&store.root.join(dir));
    let has = |dir: &&PathBuf| dir.join("parent").exists() || dir.join("lower").exists();
    let dir = dirs.iter().rfind(has).or(dirs.last());
    dir.unwrap_or_else(|| panic!("{pattern}")).join(name)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut add = |which: usize, bytes: &[u8]| {
        seeds.push([&[which as u8][..], bytes].concat());
    };
    STORES.with_borrow(|stores| {
        let before = stores.iter().flat_map(|store| &store.before);
        for (which, before) in (PARSERS.len()..).zip(before) {
            add(which, before.as_deref().unwrap_or(b"{}"));
        }
        let [docker, _] = stores;
        add(0, &fs::read(&docker.files[0]).unwrap());
        let config = docker
            .store
            .root
            .join("image/overlay2/imagedb/content/sha256");
        add(1, &fs::read(config.join(docker.store.id(0))).unwrap());
        add(3, &docker.before[2].clone().unwrap_or_default());
        // Layers and a container that are also in a volatile list.
        let [_, podman] = stores;
        let first = PARSERS.len() + DOCKER.len();
        let [layers, containers] = [1, 3].map(|which| podman.before[which].clone().unwrap());
        let renamed = String::from_utf8(containers)
            .unwrap()
            .replace("web", "volatile");
        for (which, bytes) in [
            (2, layers.as_slice()),
            (5, &layers),
            (4, renamed.as_bytes()),
            (6, renamed.as_bytes()),
        ] {
            add(first + which, bytes);
        }
    });
    let hex = "0123456789abcdef".repeat(4);
    let named = format!(
        r#"{{"id":"{hex}","mount_id":"a","image":"sha256:{hex}","image_name":"b","created":1,"source":{{"root":"/r","driver":"overlay"}}}}"#
    );
    add(2, named.as_bytes());
    let conf = "[storage]\ndriver = 'overlay'\ngraphroot = '/g'\nrunroot = '$HOME/r'\nimagestore = '/i'\n\
        rootless_storage_path = '$HOME/${UID}'\ntransient_store = true\n\
        [storage.options]\nadditionalimagestores = ['/a', 'relative', '$NONE']\n";
    add(4, conf.as_bytes());
    add(4, b"[storage]\nrunroot = '/r'\n");
    for name in [
        "containers-storage:[overlay@/g+/r:overlay.imagestore=/a,x=y]localhost/app:1",
        "containers-storage:[/g]app@0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "docker-daemon:app:1",
    ] {
        add(5, name.as_bytes());
    }
    seeds
}
