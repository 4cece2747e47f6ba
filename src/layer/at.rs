//! A file of a layer, named by a directory descriptor and one name: all system calls that the union
//! makes on layers are here.
//!
//! A name is a single component, and a symlink is never followed, so no call leaves the directory.
//! An empty name is the file of the descriptor itself.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags,
    Timestamps, Uid,
};
use rustix::io::Errno;

use super::fds::with_spare;
use super::markers::Protection;
use super::recorded::{self, Form, Records};
use super::types::{FileKind, Time};
use crate::sys::openat2::openat2;
use crate::sys::stat::statx;
use crate::sys::{chmodat, xattrat};

/// The attributes of a file of a layer, from statx(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device number (`makedev` form); only compared.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// File type.
    pub kind: FileKind,
    /// Permission bits, `mode & 0o7777`.
    pub perm: u32,
    /// Protection by inode flags.
    pub protection: Protection,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: (u32, u32),
    /// Size in bytes.
    pub size: u64,
    /// Number of 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of data.
    pub mtime: Time,
    /// Last change of status.
    pub ctime: Time,
    /// Birth time.
    pub btime: Option<Time>,
}

impl Stat {
    /// Whether this is character device 0:0, a whiteout in every dialect.
    pub fn is_chardev_whiteout(&self) -> bool {
        self.kind == FileKind::CharDevice && self.rdev == (0, 0)
    }

    /// Returns device and inode number, which identify the file.
    pub fn id(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// Whether `other` is this file, or a file of the same type that has the same owner and
    /// permissions, so that reading it instead reveals nothing. Some file systems change inode
    /// numbers, so more cannot be required of a lower file.
    pub fn is_or_resembles(&self, other: &Self) -> bool {
        let access = |stat: &Self| (stat.kind, stat.perm, stat.uid, stat.gid);
        self.kind == other.kind && self.id() == other.id() || access(self) == access(other)
    }
}

/// A file: directory descriptor and name.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The directory, or with an empty name the file itself.
    pub dir: BorrowedFd<'a>,
    /// One path component, or empty.
    pub name: &'a [u8],
    /// How owner, mode and type are recorded beside the file; `None`: they are real.
    recorded: Option<Form>,
    /// Whether the descriptor is that of the file, and was not opened with O_PATH.
    is_opened: bool,
}

/// The longest name on Linux file systems is 255 bytes; longer ones give ENAMETOOLONG before a path
/// is built.
const NAME_MAX: usize = 255;

impl<'a> At<'a> {
    /// The file `name` in `dir`.
    pub fn new(dir: BorrowedFd<'a>, name: &'a [u8]) -> Self {
        Self {
            dir,
            name,
            recorded: None,
            is_opened: false,
        }
    }

    /// The file of the descriptor.
    pub fn fd(fd: BorrowedFd<'a>) -> Self {
        Self::new(fd, b"")
    }

    /// The file of a descriptor that was opened for reading or writing. System calls that refuse O_PATH
    /// descriptors need no path for it.
    pub fn opened(fd: BorrowedFd<'a>) -> Self {
        Self {
            is_opened: true,
            ..Self::fd(fd)
        }
    }

    /// The same file in a layer with these records.
    #[must_use]
    pub fn recorded_as(self, records: Records) -> Self {
        let recorded = match records {
            Records::Kept(form) => Some(form),
            Records::Ignored | Records::Learnt | Records::Made(_) => None,
        };
        Self { recorded, ..self }
    }

    /// Another file of the same layer.
    #[must_use]
    pub fn recorded_like(self, other: Self) -> Self {
        let recorded = other.recorded;
        Self { recorded, ..self }
    }

    /// Whether owner and mode are recorded beside the file.
    pub fn has_records(&self) -> bool {
        self.recorded.is_some()
    }

    fn flags(&self) -> AtFlags {
        if self.name.is_empty() {
            AtFlags::EMPTY_PATH
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        }
    }

    /// Calls `f` with `/proc/self/fd/N[/name]`, for system calls that only take paths. With an
    /// empty name the path must be followed, else its last component must not be.
    fn with_proc_path<T>(&self, f: impl FnOnce(&CStr) -> Result<T, Errno>) -> Result<T, Errno> {
        use std::io::Write;
        if self.name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let mut buf = [0u8; 24 + NAME_MAX + 2];
        let mut rest = &mut buf[..];
        let total = rest.len();
        let written = write!(rest, "/proc/self/fd/{}", self.dir.as_raw_fd())
            .and_then(|()| {
                if self.name.is_empty() {
                    Ok(())
                } else {
                    rest.write_all(b"/")
                }
            })
            .and_then(|()| rest.write_all(self.name))
            .and_then(|()| rest.write_all(b"\0"));
        if written.is_err() {
            return Err(Errno::NAMETOOLONG);
        }
        let used = total - rest.len();
        f(CStr::from_bytes_with_nul(&buf[..used]).map_err(|_| Errno::INVAL)?)
    }

    /// Calls `f` with the name, for the calls in `xattrat`; returns `None` where these cannot be
    /// used.
    fn with_name<T>(&self, f: impl FnOnce(&CStr) -> Result<T, Errno>) -> Option<Result<T, Errno>> {
        // They refuse O_PATH descriptors themselves.
        if self.name.is_empty() || self.name.len() > NAME_MAX || !xattrat::is_available() {
            return None;
        }
        Some(self.with_c_name(f))
    }

    /// Calls `f` with the name, for system calls that rustix lacks.
    fn with_c_name<T>(&self, f: impl FnOnce(&CStr) -> Result<T, Errno>) -> Result<T, Errno> {
        if self.name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let mut buf = [0u8; NAME_MAX + 1];
        buf[..self.name.len()].copy_from_slice(self.name);
        let name = buf.get(..=self.name.len()).unwrap_or_default();
        f(CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?)
    }

    /// Returns the attributes.
    ///
    /// # Errors
    /// ENOENT when there is no such name; else those of statx(2).
    pub fn stat(&self) -> Result<Stat, Errno> {
        let real = self.real_stat()?;
        match self.recorded {
            None => Ok(real),
            Some(form) => self.with_record(form, real),
        }
    }

    /// Returns the attributes of the file itself, whatever is recorded beside it.
    ///
    /// # Errors
    /// As [`Self::stat`].
    pub fn real_stat(&self) -> Result<Stat, Errno> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let x = statx(self.dir, self.name, self.flags(), mask)?;
        let time = |t: fs::StatxTimestamp| Time {
            sec: t.tv_sec,
            nsec: t.tv_nsec,
        };
        Ok(Stat {
            dev: u64::from(x.stx_dev_major) << 32 | u64::from(x.stx_dev_minor),
            ino: x.stx_ino,
            kind: FileKind::from_mode(u32::from(x.stx_mode)).ok_or(Errno::IO)?,
            perm: u32::from(x.stx_mode) & 0o7777,
            protection: protection(x.stx_attributes.bits()),
            nlink: x.stx_nlink,
            uid: x.stx_uid,
            gid: x.stx_gid,
            rdev: (x.stx_rdev_major, x.stx_rdev_minor),
            size: x.stx_size,
            blocks: x.stx_blocks,
            blksize: x.stx_blksize,
            atime: time(x.stx_atime),
            mtime: time(x.stx_mtime),
            ctime: time(x.stx_ctime),
            btime: (x.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(x.stx_btime)),
        })
    }

    /// As [`Self::stat`], but returns `None` for an absent name. A name that is too long for this
    /// file system is absent too, as in overlayfs.
    ///
    /// # Errors
    /// Those of statx(2), but for ENOENT and ENAMETOOLONG.
    pub fn stat_opt(&self) -> Result<Option<Stat>, Errno> {
        match self.stat() {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens the file without following a symlink; the descriptor is close-on-exec.
    ///
    /// # Errors
    /// Those of openat(2).
    pub fn open(&self, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        if self.name.is_empty() {
            return self.with_proc_path(|p| with_spare(|| fs::open(p, flags, Mode::empty())));
        }
        let (flags, mode) = (flags | OFlags::NOFOLLOW, Mode::from_raw_mode(mode));
        with_spare(|| fs::openat(self.dir, self.name, flags, mode))
    }

    /// Opens the file with O_PATH, which has no effect on a FIFO or device. The descriptor can be
    /// examined and then used through [`Self::fd`]: nobody can replace its file.
    ///
    /// # Errors
    /// ENOENT; EXDEV for a mountpoint.
    pub fn hold(&self) -> Result<OwnedFd, Errno> {
        self.hold_as(OFlags::empty())
    }

    /// As [`Self::hold`], for a directory.
    ///
    /// # Errors
    /// As [`Self::hold`]; ENOTDIR for anything else.
    pub fn hold_dir(&self) -> Result<OwnedFd, Errno> {
        self.hold_as(OFlags::DIRECTORY)
    }

    fn hold_as(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH;
        with_spare(|| openat2(self.dir, self.name, flags, Mode::empty(), within))
    }

    /// Opens a directory with O_PATH.
    ///
    /// # Errors
    /// ENOTDIR for anything else, ENOENT.
    pub fn open_dir_path(&self) -> Result<OwnedFd, Errno> {
        self.open(OFlags::PATH | OFlags::DIRECTORY, 0)
    }

    /// Opens a file for reading, without changing its access time where that is allowed (EPERM: it
    /// is another user's). Does not wait for a FIFO.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_quietly(&self) -> Result<OwnedFd, Errno> {
        match self.open(OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK, 0) {
            Err(Errno::PERM) => self.open(OFlags::RDONLY | OFlags::NONBLOCK, 0),
            other => other,
        }
    }

    /// Returns the target of a symlink.
    ///
    /// # Errors
    /// Those of readlinkat(2): EINVAL for what is not a symlink.
    pub fn readlink(&self) -> Result<Vec<u8>, Errno> {
        Ok(fs::readlinkat(self.dir, self.name, Vec::new())?.into_bytes())
    }

    /// Returns the value of an xattr; `None` when it is absent or the file system has no xattrs.
    ///
    /// # Errors
    /// Those of getxattr(2), but for ENODATA and EOPNOTSUPP.
    pub fn xattr(&self, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
        match self.xattr_raw(name) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns the value of an xattr.
    ///
    /// # Errors
    /// Those of the file system, such as ENODATA and EOPNOTSUPP.
    pub fn xattr_raw(&self, name: &CStr) -> Result<Vec<u8>, Errno> {
        if self.is_opened {
            return grow(|buf: &mut [u8]| fs::fgetxattr(self.dir, name, buf));
        }
        let quick =
            self.with_name(|file| grow(|buf: &mut [u8]| xattrat::get(self.dir, file, name, buf)));
        if let Some(value) = quick {
            return value;
        }
        self.with_proc_path(|path| {
            let get = |buf: &mut [u8]| {
                if self.name.is_empty() {
                    fs::getxattr(path, name, buf)
                } else {
                    fs::lgetxattr(path, name, buf)
                }
            };
            grow(get)
        })
    }

    /// Returns the names of all xattrs, each followed by NUL; empty where there are none.
    ///
    /// # Errors
    /// Those of listxattr(2), but for EOPNOTSUPP.
    pub fn list_xattrs(&self) -> Result<Vec<u8>, Errno> {
        Ok(self.list_xattrs_opt()?.unwrap_or_default())
    }

    /// As [`Self::list_xattrs`]; `None` if the file system has no xattrs.
    ///
    /// # Errors
    /// As [`Self::list_xattrs`].
    pub fn list_xattrs_opt(&self) -> Result<Option<Vec<u8>>, Errno> {
        let quick =
            self.with_name(|file| grow(|buf: &mut [u8]| xattrat::list(self.dir, file, buf)));
        let list = quick.unwrap_or_else(|| self.list_by_path());
        match list {
            Err(Errno::OPNOTSUPP) => Ok(None),
            other => other.map(Some),
        }
    }

    fn list_by_path(&self) -> Result<Vec<u8>, Errno> {
        if self.is_opened {
            return grow(|buf: &mut [u8]| fs::flistxattr(self.dir, buf));
        }
        self.with_proc_path(|path| {
            let list = |buf: &mut [u8]| {
                if self.name.is_empty() {
                    fs::listxattr(path, buf)
                } else {
                    fs::llistxattr(path, buf)
                }
            };
            grow(list)
        })
    }

    /// Sets an xattr.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn set_xattr(&self, name: &CStr, value: &[u8], flags: fs::XattrFlags) -> Result<(), Errno> {
        if self.is_opened {
            return fs::fsetxattr(self.dir, name, value, flags);
        }
        let quick = self.with_name(|file| xattrat::set(self.dir, file, name, value, flags.bits()));
        if let Some(done) = quick {
            return done;
        }
        self.with_proc_path(|path| {
            if self.name.is_empty() {
                fs::setxattr(path, name, value, flags)
            } else {
                fs::lsetxattr(path, name, value, flags)
            }
        })
    }

    /// Removes an xattr.
    ///
    /// # Errors
    /// ENODATA when it is absent.
    pub fn remove_xattr(&self, name: &CStr) -> Result<(), Errno> {
        if self.is_opened {
            return fs::fremovexattr(self.dir, name);
        }
        self.with_proc_path(|path| {
            if self.name.is_empty() {
                fs::removexattr(path, name)
            } else {
                fs::lremovexattr(path, name)
            }
        })
    }

    /// Changes the permission bits.
    ///
    /// # Errors
    /// EOPNOTSUPP for a symlink, which is not followed.
    pub fn chmod(&self, perm: u32) -> Result<(), Errno> {
        match self.recorded {
            None => self.chmod_really(perm),
            Some(form) => self.record_perm(form, perm),
        }
    }

    pub(super) fn chmod_really(&self, perm: u32) -> Result<(), Errno> {
        match self.with_c_name(|name| chmodat::chmod(self.dir, name, perm)) {
            Err(Errno::NOSYS) => self.chmod_by_path(perm),
            other => other,
        }
    }

    /// As [`Self::chmod`], where the kernel has no call for it: opens the file first, so that
    /// replacing the name has no effect.
    fn chmod_by_path(&self, perm: u32) -> Result<(), Errno> {
        if self.is_opened {
            return fs::fchmod(self.dir, Mode::from_raw_mode(perm & 0o7777));
        }
        if !self.name.is_empty() {
            let held = self.open(OFlags::PATH, 0)?;
            return At::fd(held.as_fd()).chmod_by_path(perm);
        }
        if self.real_stat()?.kind == FileKind::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        self.with_proc_path(|path| fs::chmod(path, Mode::from_raw_mode(perm & 0o7777)))
    }

    /// Changes owner and group; `None` leaves one unchanged.
    ///
    /// # Errors
    /// Those of fchownat(2).
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        match self.recorded {
            None => self.chown_really(uid, gid),
            Some(form) => self.record_owner(form, uid, gid),
        }
    }

    pub(super) fn chown_really(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let uid = uid.map(Uid::from_raw);
        let gid = gid.map(Gid::from_raw);
        fs::chownat(self.dir, self.name, uid, gid, self.flags())
    }

    /// Sets access and modification time.
    ///
    /// # Errors
    /// Those of utimensat(2).
    pub fn set_times(&self, times: &Timestamps) -> Result<(), Errno> {
        if self.is_opened {
            fs::futimens(self.dir, times)
        } else if self.name.is_empty() {
            self.with_proc_path(|p| fs::utimensat(CWD, p, times, AtFlags::empty()))
        } else {
            fs::utimensat(self.dir, self.name, times, AtFlags::SYMLINK_NOFOLLOW)
        }
    }

    /// Creates a file, FIFO, socket or device node.
    ///
    /// # Errors
    /// EEXIST when the name is taken.
    pub fn mknod(&self, kind: FileKind, perm: u32, rdev: (u32, u32)) -> Result<(), Errno> {
        match self.recorded {
            None => self.mknod_really(kind, perm, rdev),
            Some(form) => self.record_node(form, kind, perm, rdev),
        }
    }

    pub(super) fn mknod_really(
        &self,
        kind: FileKind,
        perm: u32,
        rdev: (u32, u32),
    ) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(perm & 0o7777);
        let dev = fs::makedev(rdev.0, rdev.1);
        let file_type = match kind {
            FileKind::Regular => FileType::RegularFile,
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
            FileKind::CharDevice => FileType::CharacterDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::Directory | FileKind::Symlink => return Err(Errno::INVAL),
        };
        fs::mknodat(self.dir, self.name, file_type, mode, dev)
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// Those of mkdirat(2).
    pub fn mkdir(&self, perm: u32) -> Result<(), Errno> {
        let make = |perm| fs::mkdirat(self.dir, self.name, Mode::from_raw_mode(perm & 0o7777));
        match self.recorded {
            None => make(perm),
            Some(form) => {
                make(recorded::real_perm(perm))?;
                self.record_new(form, perm)
            }
        }
    }

    /// Creates a symlink.
    ///
    /// # Errors
    /// Those of symlinkat(2).
    pub fn symlink(&self, target: &[u8]) -> Result<(), Errno> {
        fs::symlinkat(target, self.dir, self.name)
    }

    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    /// Those of unlinkat(2).
    pub fn unlink(&self) -> Result<(), Errno> {
        fs::unlinkat(self.dir, self.name, AtFlags::empty())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of unlinkat(2): ENOTEMPTY for a directory that has entries.
    pub fn rmdir(&self) -> Result<(), Errno> {
        fs::unlinkat(self.dir, self.name, AtFlags::REMOVEDIR)
    }

    /// Creates a further name for the file. With an empty name (an unnamed file) the link goes
    /// through /proc, which needs no capability.
    ///
    /// # Errors
    /// EEXIST when the name is taken.
    pub fn link_to(&self, to: At<'_>) -> Result<(), Errno> {
        if self.name.is_empty() {
            return self.with_proc_path(|path| {
                fs::linkat(CWD, path, to.dir, to.name, AtFlags::SYMLINK_FOLLOW)
            });
        }
        fs::linkat(self.dir, self.name, to.dir, to.name, AtFlags::empty())
    }

    /// Renames the file with the flags of renameat2(2). NFS and some others support no flags:
    /// RENAME_NOREPLACE is then done in two steps, which only other processes that change the
    /// directory can tell apart.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub fn rename_to(&self, to: At<'_>, flags: fs::RenameFlags) -> Result<(), Errno> {
        if flags.is_empty() {
            return fs::renameat(self.dir, self.name, to.dir, to.name);
        }
        match fs::renameat_with(self.dir, self.name, to.dir, to.name, flags) {
            Err(Errno::INVAL | Errno::NOSYS) if flags == fs::RenameFlags::NOREPLACE => {
                self.rename_if_absent(to)
            }
            other => other,
        }
    }

    fn rename_if_absent(&self, to: At<'_>) -> Result<(), Errno> {
        // A link never replaces a file.
        match self.link_to(to) {
            Ok(()) => return self.unlink(),
            Err(Errno::EXIST) => return Err(Errno::EXIST),
            // A directory, or a file system without hard links.
            Err(_) => {}
        }
        match to.real_stat() {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => fs::renameat(self.dir, self.name, to.dir, to.name),
            Err(error) => Err(error),
        }
    }
}

/// From `stx_attributes`.
fn protection(attributes: u64) -> Protection {
    let bits = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
    match attributes & bits.bits() {
        0 => Protection::NONE,
        some => {
            let has = |flag: StatxAttributes| u32::from(some & flag.bits() != 0);
            let (immutable, append) = (StatxAttributes::IMMUTABLE, StatxAttributes::APPEND);
            Protection::of(has(immutable) | has(append) << 1, 1, 2)
        }
    }
}

/// Calls a `getxattr`-like function with a growing buffer.
fn grow(get: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; 256];
    match get(&mut small) {
        Ok(n) => return Ok(small[..n].to_vec()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    // XATTR_SIZE_MAX and XATTR_LIST_MAX are 64 KiB.
    let mut big = vec![0u8; 65536];
    let n = get(&mut big)?;
    big.truncate(n);
    Ok(big)
}

/// Timestamps from two of ours.
pub fn timestamps(atime: Time, mtime: Time) -> Timestamps {
    let spec = |t: Time| fs::Timespec {
        tv_sec: t.sec,
        tv_nsec: i64::from(t.nsec),
    };
    Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    }
}

/// Whether `name` can name a directory entry: one component, not `.` or `..`.
pub fn is_valid_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|&b| b == b'/' || b == 0)
}
