//! Layers in private mounts, as in kernel overlayfs: `..` of the root of a layer leads nowhere, a
//! lower cannot be written even if the server is attacked, and no device in a layer can be opened.
//!
//! Upper and work directory are in one mount, since rename(2) and link(2) do not work between
//! mounts. It is a mount of the nearest directory that contains both.

use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::at::At;
use super::dir::{OpenDir, Private, path_of};
use super::{LayerSpec, UpperSpec};
use crate::sys::mounts::{self, Like};
use crate::sys::openat2::openat2;

/// The number of searches for upper and work directory, if another process renames directories
/// above.
const ATTEMPTS: usize = 4;

/// Puts a lower into a private mount, with the mounts below it.
///
/// # Errors
/// See [`mounts::private`].
pub fn lower(spec: &LayerSpec) -> Result<LayerSpec, Errno> {
    let like = Like {
        read_only: true,
        no_atime: true,
        recursive: true,
    };
    let mount = mount(&spec.dir, like)?;
    let tree = Arc::clone(&mount);
    let open = |flags| rustix::fs::openat(&tree.tree, c".", flags, Mode::empty());
    Ok(LayerSpec {
        dir: spec.dir.moved_to(mount, open)?,
        dialect: spec.dialect,
    })
}

/// Whether reads change the access times of an upper's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessTimes {
    /// As the mount of the upper says.
    Inherited,
    /// Never, where that is permitted (`noatime`).
    Never,
}

/// Puts an upper and its work directory into a private mount.
///
/// # Errors
/// See [`mounts::private`]; EXDEV if they are in different mounts; ESTALE if their places change
/// all the time.
pub fn upper(spec: &UpperSpec, times: AccessTimes) -> Result<UpperSpec, Errno> {
    let mut last = Errno::STALE;
    for _ in 0..ATTEMPTS {
        match upper_once(spec, times) {
            Err(error @ (Errno::STALE | Errno::NOENT)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

fn upper_once(spec: &UpperSpec, times: AccessTimes) -> Result<UpperSpec, Errno> {
    let (upper, work) = (&spec.layer.dir, &spec.work);
    let place = |dir: &OpenDir| path_of(dir.as_fd()).ok_or(Errno::STALE);
    let (above, upper_below, work_below) = apart(&place(upper)?, &place(work)?);
    // The descriptor is used: no other process can redirect it. Whether it was right is checked
    // below.
    let way = match above {
        0 => PathBuf::from("."),
        steps => std::iter::repeat_n(Component::ParentDir, steps).collect(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let same_mount = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let common = openat2(upper, &way, flags, Mode::empty(), same_mount)?;
    let like = Like {
        read_only: false,
        no_atime: times == AccessTimes::Never,
        recursive: false,
    };
    let mount = mount(&common, like)?;
    let within = |dir: &OpenDir, below: &Path| {
        let resolve = same_mount | ResolveFlags::BENEATH;
        let held = openat2(&mount.tree, below, flags, Mode::empty(), resolve)?;
        let stat = |fd| At::fd(fd).stat().map(|stat| stat.id());
        if stat(held.as_fd())? != stat(dir.as_fd())? {
            return Err(Errno::STALE);
        }
        let open = |flags| rustix::fs::openat(&held, c".", flags, Mode::empty());
        dir.moved_to(Arc::clone(&mount), open)
    };
    Ok(UpperSpec {
        layer: LayerSpec {
            dir: within(upper, &upper_below)?,
            dialect: spec.layer.dialect,
        },
        work: within(work, &work_below)?,
    })
}

/// Returns the number of steps up from `upper` to the directory that contains both, and their paths
/// from there.
fn apart(upper: &Path, work: &Path) -> (usize, PathBuf, PathBuf) {
    let both = upper.components().zip(work.components());
    let common = both.take_while(|(a, b)| a == b).count();
    let below = |path: &Path| -> PathBuf {
        let rest: PathBuf = path.components().skip(common).collect();
        if rest.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            rest
        }
    };
    let steps = upper.components().count() - common;
    (steps, below(upper), below(work))
}

fn mount(dir: impl AsFd, mut like: Like) -> Result<Arc<Private>, Errno> {
    let tree = match mounts::private(&dir, like) {
        // A user namespace may not change the access times of mounts from outside.
        Err(Errno::PERM) if like.no_atime => {
            like.no_atime = false;
            mounts::private(&dir, like)?
        }
        other => other?,
    };
    Ok(Arc::new(Private { tree, like }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_directory_with_both_below_it() {
        let of = |upper: &str, work: &str| {
            let (steps, upper, work) = apart(Path::new(upper), Path::new(work));
            (
                steps,
                upper.display().to_string(),
                work.display().to_string(),
            )
        };
        let expected = |n, a: &str, b: &str| (n, a.to_owned(), b.to_owned());
        assert_eq!(of("/s/id/diff", "/s/id/work"), expected(1, "diff", "work"));
        assert_eq!(of("/a/b/u", "/c/w"), expected(3, "a/b/u", "c/w"));
        assert_eq!(of("/a/u", "/a/u/w"), expected(0, ".", "w"));
        assert_eq!(of("/a/u", "/a"), expected(1, "u", "."));
    }
}
