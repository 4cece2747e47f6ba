//! statx(2), and the part of its answer that fstatat(2) and /proc give where the kernel (before
//! Linux 4.11) or a filter of system calls does not have it: no times of birth and no attributes
//! (immutable, append-only, root of a mount).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::missing::says_missing;

/// The flags of statx(2) that say how much a server is asked. fstatat(2) has known them since
/// Linux 4.11.
const SYNC: AtFlags = AtFlags::STATX_DONT_SYNC.union(AtFlags::STATX_FORCE_SYNC);

/// Calls statx(2). `stx_mask` says what the answer has. The number of the mount (`STATX_MNT_ID`,
/// Linux 5.8) is read from /proc if the kernel does not tell it.
///
/// # Errors
/// Those of statx(2) but ENOSYS.
pub fn statx(
    dir: impl AsFd,
    name: impl Arg + Copy,
    flags: AtFlags,
    mask: StatxFlags,
) -> Result<Statx, Errno> {
    let dir = dir.as_fd();
    let mut answer = match rustix::fs::statx(dir, name, flags, mask) {
        Err(error) if is_missing(error) => of_stat(&statat(dir, name, flags)?),
        other => other?,
    };
    let number = StatxFlags::MNT_ID;
    if mask.contains(number) && answer.stx_mask & number.bits() == 0 {
        let told = if name.as_cow_c_str()?.is_empty() {
            mount_in_proc(dir)
        } else {
            let mut how = OFlags::PATH | OFlags::CLOEXEC;
            how.set(OFlags::NOFOLLOW, flags.contains(AtFlags::SYMLINK_NOFOLLOW));
            rustix::fs::openat(dir, name, how, Mode::empty()).and_then(mount_in_proc)
        };
        if let Ok(told) = told {
            answer.stx_mnt_id = told;
            answer.stx_mask |= number.bits();
        }
    }
    Ok(answer)
}

/// Whether this error of statx(2) says that there is no such call.
pub fn is_missing(error: Errno) -> bool {
    static FILTERED: OnceLock<bool> = OnceLock::new();
    says_missing(error, &FILTERED, || {
        rustix::fs::statx(CWD, c"/", AtFlags::empty(), StatxFlags::empty())
    })
}

fn statat(dir: BorrowedFd<'_>, name: impl Arg + Copy, flags: AtFlags) -> Result<Stat, Errno> {
    match rustix::fs::statat(dir, name, flags) {
        // Before Linux 4.11.
        Err(Errno::INVAL) if flags.intersects(SYNC) => {
            rustix::fs::statat(dir, name, flags.difference(SYNC))
        }
        other => other,
    }
}

/// Returns the number of the mount of an open file, as in mountinfo.
///
/// # Errors
/// Those of reading /proc, before Linux 5.8.
pub fn mount_id(file: impl AsFd) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(file.as_fd(), c"", flags, StatxFlags::MNT_ID) {
        Ok(st) if st.stx_mask & StatxFlags::MNT_ID.bits() != 0 => Ok(st.stx_mnt_id),
        _ => mount_in_proc(file),
    }
}

/// `STATX_MNT_ID_UNIQUE` of linux/stat.h.
pub const UNIQUE_MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Returns the number of the mount of an open file that no other mount gets before the machine starts
/// again. `None` before Linux 6.8, and where statx(2) fails.
pub fn unique_mount_id(file: impl AsFd) -> Option<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let answer = rustix::fs::statx(file.as_fd(), c"", flags, UNIQUE_MOUNT).ok()?;
    (answer.stx_mask & UNIQUE_MOUNT.bits() != 0).then_some(answer.stx_mnt_id)
}

/// Whether a mount begins in this directory. The root directory of this process counts as no such
/// place before Linux 5.8.
///
/// # Errors
/// Those of statx(2), of opening `..`, and of [`mount_id`].
pub fn begins_mount(dir: impl AsFd) -> Result<bool, Errno> {
    let dir = dir.as_fd();
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let answer = statx(dir, c"", flags, StatxFlags::empty())?;
    let begins = StatxAttributes::MOUNT_ROOT;
    if answer.stx_attributes_mask.contains(begins) {
        return Ok(answer.stx_attributes.contains(begins));
    }
    let above = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = rustix::fs::openat(dir, c"..", above, Mode::empty())?;
    Ok(mount_id(dir)? != mount_id(above)?)
}

/// As [`mount_id`], without access to the mount.
fn mount_in_proc(file: impl AsFd) -> Result<u64, Errno> {
    let path = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or(Errno::OPNOTSUPP)
}

fn of_stat(stat: &Stat) -> Statx {
    // SAFETY: the structure consists of numbers, for which all bits may be zero.
    let mut answer: Statx = unsafe { std::mem::zeroed() };
    answer.stx_mask = StatxFlags::BASIC_STATS.bits();
    answer.stx_blksize = stat.st_blksize as u32;
    answer.stx_nlink = stat.st_nlink as u32;
    answer.stx_uid = stat.st_uid;
    answer.stx_gid = stat.st_gid;
    answer.stx_mode = stat.st_mode as u16;
    answer.stx_ino = stat.st_ino;
    answer.stx_size = stat.st_size as u64;
    answer.stx_blocks = stat.st_blocks as u64;
    answer.stx_atime.tv_sec = stat.st_atime;
    answer.stx_atime.tv_nsec = stat.st_atime_nsec as u32;
    answer.stx_mtime.tv_sec = stat.st_mtime;
    answer.stx_mtime.tv_nsec = stat.st_mtime_nsec as u32;
    answer.stx_ctime.tv_sec = stat.st_ctime;
    answer.stx_ctime.tv_nsec = stat.st_ctime_nsec as u32;
    answer.stx_rdev_major = rustix::fs::major(stat.st_rdev);
    answer.stx_rdev_minor = rustix::fs::minor(stat.st_rdev);
    answer.stx_dev_major = rustix::fs::major(stat.st_dev);
    answer.stx_dev_minor = rustix::fs::minor(stat.st_dev);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fstatat_gives_the_basic_part() {
        let basic = StatxFlags::BASIC_STATS;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        for path in ["/", "/dev/null", "/proc/self/exe", "/etc/passwd", "/tmp"] {
            let Ok(whole) = rustix::fs::statx(CWD, path, flags, basic) else {
                return testkit::need::skip(&"the kernel has no statx");
            };
            let part = of_stat(&rustix::fs::stat(path).unwrap());
            let part = if path == "/proc/self/exe" {
                of_stat(&rustix::fs::lstat(path).unwrap())
            } else {
                part
            };
            let fields = |st: &Statx| {
                let numbers = (
                    st.stx_nlink,
                    st.stx_uid,
                    st.stx_gid,
                    st.stx_mode,
                    st.stx_ino,
                );
                let sizes = (st.stx_size, st.stx_blocks, st.stx_blksize);
                let devices = (
                    st.stx_rdev_major,
                    st.stx_rdev_minor,
                    st.stx_dev_major,
                    st.stx_dev_minor,
                );
                let times = (
                    st.stx_mtime.tv_sec,
                    st.stx_mtime.tv_nsec,
                    st.stx_ctime.tv_nsec,
                );
                (numbers, sizes, devices, times)
            };
            // Others may use /tmp meanwhile.
            if path != "/tmp" {
                assert_eq!(fields(&part), fields(&whole), "{path}");
            }
            assert!(part.stx_attributes_mask.is_empty());
        }
    }

    #[test]
    fn proc_tells_the_mount_as_statx_does() {
        for path in ["/", "/proc", "/dev"] {
            let file =
                rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            assert_eq!(mount_in_proc(&file), mount_id(&file), "{path}");
        }
    }
}
