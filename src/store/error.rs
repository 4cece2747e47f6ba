//! Errors of stores: one kind per cause. Each message is one line that names the file or digest and
//! says what to do.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::oci::Digest;
use crate::sys::remedy::{is_full, remedy};

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed store operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action} {path:?}: {source}{}", remedy(*source))]
    Io {
        /// The action, as a verb: "read", "list".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The errno.
        source: Errno,
    },
    /// Root was given a path that another user can redirect.
    #[error("cannot open {path:?}: {source}")]
    Foreign {
        /// The path.
        path: PathBuf,
        /// The error, which names the component that is not safe.
        source: std::io::Error,
    },
    /// A run root of podman belongs to another user than the store.
    #[error(
        "{path:?} belongs to user {found}, the store to user {owner}: its records of containers are not used; give \
         the store's own run root with --runroot"
    )]
    ForeignRunRoot {
        /// The run root.
        path: PathBuf,
        /// The owner of the run root.
        found: u32,
        /// The owner of the store.
        owner: u32,
    },
    /// A storage.conf cannot be read.
    #[error(
        "{path:?} is not a storage.conf: {reason}; podman's stores are looked for in the default places"
    )]
    StorageConf {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// Root would write to a store that another user could change meanwhile.
    #[error("root writes to no store that another user may change: {path:?} {why}; {remedy}")]
    NotSafe {
        /// The store, or a directory of it.
        path: PathBuf,
        /// The owner of the directory, or the users who may write to it.
        why: String,
        /// The remedy.
        remedy: String,
    },
    /// A metadata file is larger than any real one.
    #[error("{path:?} is larger than {limit} bytes: not a metadata file of an image store")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The size limit of such a file, in bytes.
        limit: u64,
    },
    /// A symlink is where the store has a plain file or directory.
    #[error("{path:?} is or passes through a symlink: a store's files never do; restore the store")]
    Symlink {
        /// The file.
        path: PathBuf,
    },
    /// A metadata file is a directory, a FIFO or a device.
    #[error("{path:?} is not a regular file: restore the store")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The content of a file is malformed.
    #[error("{path:?} holds {found}, not {expected}: restore the store")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The content, quoted and shortened.
        found: String,
        /// The expected content.
        expected: &'static str,
    },
    /// `--root` or `$UNIONFS_ROOT` names something that is not a store.
    #[error(
        "{path:?} is not an image store: it has no image/<driver>/ with repositories.json or imagedb, no <driver>-images/images.json and no io.containerd.metadata.v1.bolt/meta.db; give the data root of Docker, podman or containerd"
    )]
    NotAStore {
        /// The directory.
        path: PathBuf,
    },
    /// The store's driver is not supported.
    #[error("{path:?}: storage driver {driver:?} is not supported; supported are {}", super::drivers::NAMES.join(", "))]
    UnknownDriver {
        /// The store's root.
        path: PathBuf,
        /// The driver's name.
        driver: String,
    },
    /// No store was found.
    #[error("no image store found (looked in {}); give one with --root DIR", list(.searched))]
    NoStore {
        /// The places that were searched.
        searched: Vec<PathBuf>,
    },
    /// Neither HOME nor XDG_DATA_HOME is set.
    #[error("cannot tell where this user's store is: HOME is not set; set UNIONFS_ROOT")]
    NoHome,
    /// The part of an image's name that names a store names none.
    #[error(
        "{name:?} does not name an image of podman's: {fault}; write containers-storage:[DRIVER@ROOT+RUNROOT]NAME"
    )]
    StoreName {
        /// The name as the user gave it.
        name: String,
        /// The fault.
        fault: &'static str,
    },
    /// There is no such image.
    #[error("no image {name:?} in {}{}; `unionfs images` lists all images, `unionfs pull` downloads one", list(.searched), like(.near))]
    UnknownImage {
        /// The name as the user gave it.
        name: String,
        /// The roots of the stores that were searched.
        searched: Vec<PathBuf>,
        /// Names of images that are like it.
        near: Vec<String>,
    },
    /// An ID prefix fits several images.
    #[error("image ID {prefix:?} is ambiguous; candidates: {}", .candidates.join(", "))]
    AmbiguousImage {
        /// The prefix as the user gave it.
        prefix: String,
        /// The ID and names of each image that fits.
        candidates: Vec<String>,
    },
    /// The user asked for an image by name in a store without names.
    #[error("cannot look up {name:?}: {path:?} is missing; use the image ID or restore the file")]
    NoRepositories {
        /// The name as the user gave it.
        name: String,
        /// The missing file.
        path: PathBuf,
    },
    /// repositories.json names an image that does not exist.
    #[error("image {id}: its configuration {path:?} is missing; load or pull the image again")]
    ConfigMissing {
        /// The image.
        id: Digest,
        /// The missing file.
        path: PathBuf,
    },
    /// The SHA-256 of the configuration is not its name.
    #[error(
        "{path:?} is damaged: its SHA-256 is {actual}, not its name; load or pull the image again"
    )]
    ConfigHash {
        /// The configuration.
        path: PathBuf,
        /// The SHA-256 of its bytes.
        actual: Digest,
    },
    /// A file of containerd's metadata cannot be read.
    #[error("{path:?}: {fault}; check the store with containerd's own tools")]
    Bolt {
        /// The file.
        path: PathBuf,
        /// The fault, and the page where it is.
        fault: String,
    },
    /// A layer of the image has no directory: in containerd's store, or of the driver devicemapper.
    #[error("image {image:?} in {root:?} is not unpacked: {remedy}")]
    NotUnpacked {
        /// The image's name.
        image: String,
        /// The store's root.
        root: PathBuf,
        /// The remedy.
        remedy: &'static str,
    },
    /// The content of a thin pool or of one of its devices cannot be read.
    #[error("{path:?}: {fault}; {remedy}")]
    Pool {
        /// The file or device, or the record of the thin device.
        path: PathBuf,
        /// The fault.
        fault: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// The layer of a container is on a thin device.
    #[error(
        "{path:?}: containers of the driver devicemapper cannot be read, only images; make an image of it first (docker commit)"
    )]
    OnDevice {
        /// The record of the device.
        path: PathBuf,
    },
    /// A layer is missing from the store.
    #[error("layer {chain}: {path:?} is missing; load or pull the image again")]
    LayerMissing {
        /// The layer's chain ID.
        chain: Digest,
        /// The missing file or directory.
        path: PathBuf,
    },
    /// A layer's record contradicts its chain.
    #[error(
        "{path:?} holds {found}, but the chain of layers needs {expected}; load or pull the image again"
    )]
    ChainMismatch {
        /// The file.
        path: PathBuf,
        /// The content, quoted and shortened.
        found: String,
        /// The expected content.
        expected: String,
    },
    /// A layer is its own ancestor.
    #[error("{path:?} makes layer {chain} its own ancestor; load or pull the image again")]
    Cycle {
        /// The layer that was reached twice.
        chain: Digest,
        /// The parent file that leads to it.
        path: PathBuf,
    },
    /// A cache-id, mount-id or init-id is not one plain path component.
    #[error(
        "{path:?} holds {found}, which is not one plain path component; load or pull the image again"
    )]
    BadCacheId {
        /// The file.
        path: PathBuf,
        /// The content, quoted and shortened.
        found: String,
    },
    /// The directory of a layer's files is missing.
    #[error("{path:?} is missing, so the layer cannot be used; load or pull the image again")]
    LayerDirMissing {
        /// The directory.
        path: PathBuf,
    },
    /// The path of a layer's directory is not a directory.
    #[error("layer {path:?} is not a directory; load or pull the image again")]
    LayerNotDirectory {
        /// The file.
        path: PathBuf,
    },
    /// `l/<short>` does not point to its layer.
    #[error("{path:?} points to {found}, not to {expected:?}; restore the link")]
    BadLink {
        /// The link.
        path: PathBuf,
        /// The link's target, quoted and shortened.
        found: String,
        /// The expected target.
        expected: String,
    },
    /// A store does not promise that the files of a layer stay as they are.
    #[error("{path:?} {reason}: its files may change")]
    NotComplete {
        /// The layer's directory.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// There is no such container.
    #[error("no container or read-write layer {name:?} in {}; give its name, its full ID or a unique prefix (unionfs ps -a lists read-write layers, the engine its containers)", list(.searched))]
    UnknownContainer {
        /// The name as the user gave it.
        name: String,
        /// The roots of the stores that were searched.
        searched: Vec<PathBuf>,
    },
    /// An ID prefix fits several containers.
    #[error("container ID {prefix:?} is ambiguous; candidates: {}", .candidates.join(", "))]
    AmbiguousContainer {
        /// The prefix as the user gave it.
        prefix: String,
        /// The IDs that fit.
        candidates: Vec<String>,
    },
    /// The writable layer of a container is mounted or in use.
    #[error("container {id} is running: stop it first, or mount it read-only")]
    ContainerRunning {
        /// The container's full ID.
        id: String,
    },
    /// A text is not a valid name of a read-write layer.
    #[error(
        "{name:?} is not a name for a read-write layer: use up to 128 letters, digits, and _.- after the first"
    )]
    BadName {
        /// The text.
        name: String,
    },
    /// There is no such read-write layer.
    #[error(
        "no read-write layer {name:?} in {root:?}; `unionfs ps -a` lists all read-write layers"
    )]
    UnknownNamed {
        /// The name as the user gave it.
        name: String,
        /// The store.
        root: PathBuf,
    },
    /// It is not recorded what the changes of a mount without a name were made to.
    #[error(
        "it is not recorded which image the changes in {path:?} belong to: mount the image with \
         --upper {path:?} and --work beside it"
    )]
    UnknownOrigin {
        /// The directory of the changes.
        path: PathBuf,
    },
    /// Another read-write layer has the name.
    #[error(
        "a read-write layer {name:?} exists already: mount it (unionfs mount --name {name} MOUNTPOINT) or remove it (unionfs rm {name})"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// An object cannot be removed, because it is needed.
    #[error("{what} is in use: {by}")]
    InUse {
        /// The object.
        what: String,
        /// What needs the object, and the remedy.
        by: String,
    },
    /// A root is not our own store, so this program does not write to it.
    #[error(
        "{path:?} is not a store of ours (it has {found:?}): nothing is written there; set UNIONFS_ROOT to a new or empty directory"
    )]
    NotOurs {
        /// The root.
        path: PathBuf,
        /// An entry that our own stores do not have.
        found: String,
    },
    /// A later version made the store.
    #[error(
        "{path:?} holds {found}: the store is of another version; use the unionfs that made it"
    )]
    NewerStore {
        /// The file with the version.
        path: PathBuf,
        /// The content, quoted and shortened.
        found: String,
    },
    /// A reference, configuration or instruction is malformed.
    #[error(transparent)]
    Oci(#[from] crate::oci::Error),
    /// A layer's tar, or data from which it is rebuilt, is damaged.
    #[error(transparent)]
    Tar(#[from] crate::layer_tar::Error),
    /// A signal ended the operation.
    #[error(transparent)]
    Interrupted(#[from] crate::sys::interrupt::Interrupted),
    /// The dataset of a layer of the driver zfs is not mounted.
    #[error(
        "{path:?} is not mounted: mount the dataset of the layer there (mount -t zfs POOL/…/CACHEID {path:?}), with those of the layers below"
    )]
    NotMounted {
        /// The mountpoint that the layer needs.
        path: PathBuf,
    },
    /// The directory that is the lower of images without layers contains files.
    #[error(
        "{path:?} is to be empty, as the layers of an image without layers are; remove what is in it"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A layer of podman's is an image of composefs.
    #[error(
        "{path:?}: the layer is an image of composefs, which unionfs does not read; copy the image with skopeo to a store without use_composefs, or pull it with unionfs"
    )]
    Composefs {
        /// The file that the layer has instead of a directory.
        path: PathBuf,
    },
    /// A container's layer, of the drivers aufs and vfs, cannot be an upper.
    #[error(
        "{path:?} cannot be written in place: its driver keeps no overlay or no record of who uses it; leave --in-place out"
    )]
    NotAnUpper {
        /// The container's layer.
        path: PathBuf,
    },
    /// A container's layer, of the driver vfs, does not show what was changed.
    #[error("{path:?} is a copy of the whole tree: its driver does not record changes; use export")]
    WholeTree {
        /// The container's layer.
        path: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: Errno) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the disk or quota had no space for the data.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full(*source),
            Self::Tar(error) => error.is_full(),
            _ => false,
        }
    }

    pub(crate) fn opening(path: &Path, source: std::io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(errno) => Self::io("open", path, errno),
            None => Self::Foreign {
                path: path.to_owned(),
                source,
            },
        }
    }

    /// Returns the errno of the system call that failed, if one did.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// Says which names are like the name that was not found.
fn like(near: &[String]) -> String {
    match near {
        [] => String::new(),
        near => format!(" (is it {}?)", near.join(" or ")),
    }
}

fn list(paths: &[PathBuf]) -> String {
    if paths.is_empty() {
        return "any store".to_owned();
    }
    let shown: Vec<String> = paths.iter().map(|p| format!("{p:?}")).collect();
    shown.join(", ")
}
