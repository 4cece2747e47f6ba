//! Layers in mounts of their own, as kernel overlayfs has them: `..` of a layer's root leads
//! nowhere, a lower cannot be written whatever the server is made to do, and no device in a layer
//! can be opened.
//!
//! Upper and work directory are in one mount, since rename(2) and link(2) do not go from one to
//! another: that of the directory nearest to both that has both below it.

use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::at::At;
use super::dir::{OpenDir, Private, path_of};
use super::{LayerSpec, UpperSpec};
use crate::sys::mounts::{self, Like};

/// So often upper and work directory are looked for again when somebody renames what is above.
const ATTEMPTS: usize = 4;

/// A lower in a mount of its own, with what is mounted below it.
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

/// An upper and its work directory in a mount of their own; with `no_atime` one without access
/// times, where that is permitted.
///
/// # Errors
/// See [`mounts::private`]; EXDEV when they are in different mounts, ESTALE when their place
/// changes all the time.
pub fn upper(spec: &UpperSpec, no_atime: bool) -> Result<UpperSpec, Errno> {
    let mut last = Errno::STALE;
    for _ in 0..ATTEMPTS {
        match upper_once(spec, no_atime) {
            Err(error @ (Errno::STALE | Errno::NOENT)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

fn upper_once(spec: &UpperSpec, no_atime: bool) -> Result<UpperSpec, Errno> {
    let (upper, work) = (&spec.layer.dir, &spec.work);
    let place = |dir: &OpenDir| path_of(dir.as_fd()).ok_or(Errno::STALE);
    let (above, upper_below, work_below) = apart(&place(upper)?, &place(work)?);
    // By the descriptor: nobody can lead it elsewhere, and whether it was right is seen below.
    let way = match above {
        0 => PathBuf::from("."),
        steps => std::iter::repeat_n(Component::ParentDir, steps).collect(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let same_mount = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let common = rustix::fs::openat2(upper, way, flags, Mode::empty(), same_mount)?;
    let like = Like {
        read_only: false,
        no_atime,
        recursive: false,
    };
    let mount = mount(&common, like)?;
    let within = |dir: &OpenDir, below: &Path| {
        let resolve = same_mount | ResolveFlags::BENEATH;
        let held = rustix::fs::openat2(&mount.tree, below, flags, Mode::empty(), resolve)?;
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

/// How many steps up from `upper` the directory is that has both below it, and where they are
/// there.
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
        // In a user namespace the access times of mounts from outside may not be changed.
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
