//! openat2(2), and a walk that does the same where the kernel (before Linux 5.6) or a filter of
//! system calls does not have it.
//!
//! The walk gives the kernel one name at a time and follows symlinks itself, so the kernel follows
//! none, not even those of /proc. For `..` it opens the parent of the directory that it is in, and
//! requires that this is the directory that it came from. A directory that is renamed meanwhile
//! therefore leads no further out than with openat2(2), which answers EAGAIN as the walk does.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;

use super::missing::says_missing;
use super::stat::mount_id;

/// The limit of the kernel (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// The longest path, with its NUL, in bytes (PATH_MAX).
const PATH_MAX: usize = 4096;

/// The flags of openat2(2) that the walk knows. The kernel adds `NO_MAGICLINKS` by itself to
/// `NO_SYMLINKS`; the walk follows no magic link at all.
const KNOWN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::IN_ROOT)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens `path` as openat2(2) does.
///
/// # Errors
/// Those of openat2(2), but ENOSYS only for flags that the walk does not know. Where the kernel does
/// not have the call, EXDEV also if /proc does not tell in which mount a file is.
pub fn openat2(
    dir: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat2(dir.as_fd(), path, flags, mode, resolve) {
        Err(error) if is_missing(error) && KNOWN.contains(resolve) => {
            let path = path.as_cow_c_str()?;
            walk(dir.as_fd(), path.to_bytes(), flags, mode, resolve)
        }
        other => other,
    }
}

/// Whether this error of openat2(2) says that there is no such call.
pub(super) fn is_missing(error: Errno) -> bool {
    static FILTERED: OnceLock<bool> = OnceLock::new();
    says_missing(error, &FILTERED, || {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(CWD, c"/", flags, Mode::empty(), ResolveFlags::empty())
    })
}

/// Returns the number of the mount of a file.
///
/// # Errors
/// EXDEV if nothing tells it; those of a shortage, which may pass.
fn mount_of(file: &OwnedFd) -> Result<u64, Errno> {
    mount_id(file).map_err(|error| match error {
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => error,
        _ => Errno::XDEV,
    })
}

/// Opens `path` name by name.
fn walk(
    dir: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    if path.is_empty() {
        return Err(Errno::NOENT);
    }
    if path.len() >= PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let scoped = ResolveFlags::BENEATH | ResolveFlags::IN_ROOT;
    let begin = match path.first() {
        Some(b'/') if !resolve.intersects(scoped) => {
            rustix::fs::open(c"/", DIRECTORY, Mode::empty())?
        }
        _ => rustix::fs::openat(dir, c".", DIRECTORY, Mode::empty())?,
    };
    let mut walk = Walk {
        start: dir,
        dir: begin,
        above: Vec::new(),
        todo: VecDeque::new(),
        links: 0,
        resolve,
        mount: None,
        must_be_dir: false,
    };
    if resolve.contains(ResolveFlags::NO_XDEV) {
        walk.mount = Some(mount_of(&walk.dir)?);
    }
    walk.add(path)?;
    loop {
        let Some(name) = walk.todo.pop_front() else {
            return walk.finish(b".", flags, mode)?.ok_or(Errno::LOOP);
        };
        if name == b".." {
            walk.up()?;
        } else if walk.todo.is_empty() {
            if let Some(found) = walk.finish(&name, flags, mode)? {
                return Ok(found);
            }
        } else {
            walk.down(&name)?;
        }
    }
}

const ANYTHING: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = ANYTHING.union(OFlags::DIRECTORY);

/// The state of a walk.
struct Walk<'d> {
    /// The directory in which the path begins.
    start: BorrowedFd<'d>,
    /// The directory that was reached.
    dir: OwnedFd,
    /// The device and inode numbers of the directories above it, from where the walk began.
    above: Vec<(u64, u64)>,
    /// The names that are left.
    todo: VecDeque<Vec<u8>>,
    links: usize,
    resolve: ResolveFlags,
    /// The mount that the walk may not leave.
    mount: Option<u64>,
    /// Whether the path ends in a slash.
    must_be_dir: bool,
}

impl Walk<'_> {
    /// Puts the names of a path before those that are left. An absolute path begins at the root.
    fn add(&mut self, path: &[u8]) -> Result<(), Errno> {
        if path.starts_with(b"/") {
            if self.resolve.contains(ResolveFlags::BENEATH) {
                return Err(Errno::XDEV);
            }
            let root = if self.resolve.contains(ResolveFlags::IN_ROOT) {
                rustix::fs::openat(self.start, c".", DIRECTORY, Mode::empty())?
            } else {
                rustix::fs::open(c"/", DIRECTORY, Mode::empty())?
            };
            self.enter(root)?;
            self.above.clear();
        }
        if self.todo.is_empty() {
            self.must_be_dir |= path.ends_with(b"/") || path.ends_with(b"/.");
        }
        let names = path.split(|&b| b == b'/');
        for name in names.filter(|name| !matches!(*name, b"" | b".")).rev() {
            self.todo.push_front(name.to_vec());
        }
        Ok(())
    }

    fn is_scoped(&self) -> bool {
        let scoped = ResolveFlags::BENEATH | ResolveFlags::IN_ROOT;
        self.resolve.intersects(scoped)
    }

    /// Goes to the parent directory.
    fn up(&mut self) -> Result<(), Errno> {
        let came_from = self.above.pop();
        if came_from.is_none() && self.is_scoped() {
            if self.resolve.contains(ResolveFlags::BENEATH) {
                return Err(Errno::XDEV);
            }
            return Ok(());
        }
        let parent = rustix::fs::openat(&self.dir, c"..", DIRECTORY, Mode::empty())?;
        // The directory may have been moved meanwhile, out of the start too.
        if came_from.is_some_and(|known| stat(&parent).map(|st| id(&st)) != Ok(known)) {
            return Err(Errno::AGAIN);
        }
        self.enter(parent)
    }

    /// Goes to a directory, or to where a symlink leads.
    fn down(&mut self, name: &[u8]) -> Result<(), Errno> {
        // O_DIRECTORY mounts file systems that wait for it (autofs).
        let found = match rustix::fs::openat(&self.dir, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                rustix::fs::openat(&self.dir, name, ANYTHING, Mode::empty())?
            }
            other => other?,
        };
        match kind(&found)? {
            FileType::Symlink => self.follow(&found),
            FileType::Directory => {
                self.above.push(id(&stat(&self.dir)?));
                self.enter(found)
            }
            _ => Err(Errno::NOTDIR),
        }
    }

    fn enter(&mut self, dir: OwnedFd) -> Result<(), Errno> {
        self.require_mount(&dir)?;
        self.dir = dir;
        Ok(())
    }

    fn require_mount(&self, file: &OwnedFd) -> Result<(), Errno> {
        match self.mount {
            Some(mount) if mount_of(file)? != mount => Err(Errno::XDEV),
            _ => Ok(()),
        }
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<(), Errno> {
        self.require_mount(link)?;
        self.links += 1;
        if self.resolve.contains(ResolveFlags::NO_SYMLINKS) || self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(link, c"", Vec::new())?;
        self.add(target.to_bytes())
    }

    /// Opens the last name. `None`: it is a symlink, whose target is what is left.
    fn finish(&mut self, name: &[u8], flags: OFlags, mode: Mode) -> Result<Option<OwnedFd>, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        let follows = !flags.contains(OFlags::NOFOLLOW) || self.must_be_dir;
        if self.must_be_dir && flags.contains(OFlags::CREATE) {
            return Err(Errno::ISDIR);
        }
        let flags = if self.must_be_dir {
            flags | OFlags::NOFOLLOW | OFlags::DIRECTORY
        } else {
            flags | OFlags::NOFOLLOW
        };
        // An open may have an effect on what is mounted on the name.
        let held = match self.mount {
            Some(_) if !flags.contains(OFlags::PATH) => {
                match rustix::fs::openat(&self.dir, name, ANYTHING, Mode::empty()) {
                    Err(Errno::NOENT) => None,
                    other => Some(other?),
                }
            }
            _ => None,
        };
        held.map_or(Ok(()), |held| self.require_mount(&held))?;
        let opened = rustix::fs::openat(&self.dir, name, flags, mode);
        let is_link = match &opened {
            Ok(opened) => flags.contains(OFlags::PATH) && kind(opened)? == FileType::Symlink,
            Err(Errno::LOOP | Errno::NOTDIR) => true,
            Err(_) => false,
        };
        if follows && is_link {
            let found = rustix::fs::openat(&self.dir, name, ANYTHING, Mode::empty())?;
            if kind(&found)? == FileType::Symlink {
                return self.follow(&found).map(|()| None);
            }
        }
        let opened = opened?;
        self.require_mount(&opened)?;
        Ok(Some(opened))
    }
}

fn stat(file: &OwnedFd) -> Result<Stat, Errno> {
    rustix::fs::fstat(file)
}

fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn kind(file: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(stat(file)?.st_mode))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::create_dir_all(at("root/a/b/c")).unwrap();
        std::fs::create_dir(at("out")).unwrap();
        for file in ["root/f", "root/a/b/f", "out/f", "f"] {
            std::fs::write(at(file), file).unwrap();
        }
        let links = [
            ("f", "root/to-f"),
            ("a/b", "root/to-b"),
            ("../out", "root/to-out"),
            ("/out", "root/absolute"),
            ("/a/b/f", "root/a/to-bf"),
            ("../../../../../a/b", "root/a/b/far"),
            ("to-self", "root/to-self"),
            ("new", "root/dangling"),
            ("/proc/self/root", "root/magic"),
        ];
        for (target, name) in links {
            symlink(target, at(name)).unwrap();
        }
        temp
    }

    /// What was opened: its identity, and whether it is a symlink.
    type Found = Result<((u64, u64), bool), Errno>;

    fn found(opened: Result<OwnedFd, Errno>) -> Found {
        opened.map(|fd| {
            (
                id(&stat(&fd).unwrap()),
                kind(&fd).unwrap() == FileType::Symlink,
            )
        })
    }

    /// The walk gives the same answers as the kernel.
    #[test]
    fn the_walk_is_what_the_kernel_does() {
        let temp = tree();
        let root = File::open(temp.path().join("root")).unwrap();
        let none = ResolveFlags::empty();
        let kernel = rustix::fs::openat2(&root, "f", OFlags::PATH, Mode::empty(), none);
        if kernel.is_err_and(|error| error == Errno::NOSYS) {
            return testkit::need::skip(&"the kernel has no openat2");
        }
        let outside = temp.path().join("out/f");
        let absolute = temp.path().join("root/a");
        let paths = [
            "f",
            "f/",
            "f/x",
            "a",
            "a/",
            "a/.",
            ".",
            "./",
            "..",
            "../f",
            "../root/f",
            "a/..",
            "a/../f",
            "a/../../f",
            "a/b/../../f",
            "a//b///f",
            "no",
            "no/x",
            "a/no",
            "to-f",
            "to-f/",
            "to-b",
            "to-b/",
            "to-b/f",
            "to-b/..",
            "to-b/../f",
            "to-b/far",
            "to-b/far/f",
            "to-out",
            "to-out/f",
            "absolute",
            "absolute/f",
            "a/to-bf",
            "to-self",
            "to-self/x",
            "dangling",
            "/",
            "/a",
            "/a/b/f",
            "/..",
            "/../f",
            "magic",
            "magic/etc",
            "",
            "a/b/c/../../../..",
            "a/b/c/../../../../f",
            outside.to_str().unwrap(),
            absolute.to_str().unwrap(),
        ];
        let resolves = [
            ResolveFlags::BENEATH,
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
            ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
            ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
            ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        ];
        let flags = [
            OFlags::PATH,
            OFlags::PATH | OFlags::NOFOLLOW,
            OFlags::PATH | OFlags::DIRECTORY,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            OFlags::RDONLY,
            OFlags::RDONLY | OFlags::NOFOLLOW,
            OFlags::RDONLY | OFlags::DIRECTORY,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            OFlags::WRONLY | OFlags::NOFOLLOW,
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        ];
        for resolve in resolves {
            for flags in flags {
                for path in paths {
                    let case = format!("{path:?} {flags:?} {resolve:?}");
                    // The symlink of /proc is a text for the walk. Nothing makes a file by a path that
                    // ends as that of a directory. The test makes none outside of its directory.
                    let creates = flags.contains(OFlags::CREATE);
                    let scoped = ResolveFlags::BENEATH | ResolveFlags::IN_ROOT;
                    if path.starts_with("magic") && resolve.contains(ResolveFlags::IN_ROOT)
                        || creates && (path.ends_with(['/', '.']) || !resolve.intersects(scoped))
                    {
                        continue;
                    }
                    let mode =
                        Mode::from_raw_mode(0o600 * u32::from(flags.contains(OFlags::CREATE)));
                    let flags = flags | OFlags::CLOEXEC;
                    let by_kernel = rustix::fs::openat2(&root, path, flags, mode, resolve);
                    let by_kernel = without_made(temp.path(), found(by_kernel));
                    let by_walk = walk(root.as_fd(), path.as_bytes(), flags, mode, resolve);
                    let by_walk = without_made(temp.path(), found(by_walk));
                    assert_eq!(by_walk, by_kernel, "{case}");
                }
            }
        }
    }

    /// Removes the files that the open has made. Their inode numbers say nothing.
    fn without_made(temp: &Path, found: Found) -> Found {
        let mut made = false;
        for name in ["root/no", "root/a/no", "root/a/f", "root/new"] {
            made |= std::fs::remove_file(temp.join(name)).is_ok();
        }
        if made {
            found.map(|_| ((0, 0), false))
        } else {
            found
        }
    }

    /// `..` of a directory that was moved away leads out of the start: the walk gives up, as the
    /// kernel does.
    #[test]
    fn a_moved_directory_leads_nowhere() {
        let temp = tree();
        let root = File::open(temp.path().join("root")).unwrap();
        let mut walk = Walk {
            start: root.as_fd(),
            dir: root.try_clone().unwrap().into(),
            above: Vec::new(),
            todo: VecDeque::new(),
            links: 0,
            resolve: ResolveFlags::IN_ROOT,
            mount: None,
            must_be_dir: false,
        };
        walk.down(b"a").unwrap();
        walk.down(b"b").unwrap();
        std::fs::rename(temp.path().join("root/a/b"), temp.path().join("out/b")).unwrap();
        assert_eq!(walk.up(), Err(Errno::AGAIN));
    }
}
