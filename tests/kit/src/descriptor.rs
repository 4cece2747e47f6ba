//! Operations of a script on a descriptor that it keeps, except opening and closing it. This is
//! part of `script` (the language) and `exec` (the answers).

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, OFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW, XattrFlags,
};
use rustix::io::ReadWriteFlags;

use super::escape;
use super::exec::{list, open_flags, show, show_stat};
use super::map::Map;
use super::script::{Flags, P, Words, id, word};
use super::tree::xattr_list;

/// One operation on a descriptor. A second descriptor is given by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HOp {
    /// pread and pwrite.
    Read(u64, usize),
    Write(u64, Vec<u8>),
    /// read(2) and write(2) at the descriptor's position.
    Get(usize),
    Put(Vec<u8>),
    /// pwritev2 with RWF_APPEND.
    Append(Vec<u8>),
    /// Reads through a shared mapping, and checks that read(2) returns the same.
    MapRead(u64, usize),
    /// Writes into a shared mapping, syncs it by msync and unmaps it.
    MapWrite(u64, Vec<u8>),
    Stat,
    Truncate(u64),
    Chmod(u32),
    Chown(u32, u32),
    Utimens((i64, i64), (i64, i64)),
    Touch,
    Setxattr(Vec<u8>, Vec<u8>, u32),
    Getxattr(Vec<u8>),
    Listxattr,
    Removexattr(Vec<u8>),
    /// Mode bits as in `fallocate(2)`, offset, length.
    Fallocate(u32, u64, u64),
    /// Copies from this descriptor: offset, target descriptor, offset, length.
    CopyRange(u64, usize, u64, u64),
    SeekData(u64),
    SeekHole(u64),
    /// fsync or fdatasync.
    Sync(bool),
    List,
    /// Gives the file a name, through /proc/self/fd or with AT_EMPTY_PATH.
    Link(P),
    LinkEmpty(P),
    /// Opens the same file again, under another number.
    Reopen(usize, Flags),
}

/// Parses the words of a line after the descriptor's number. `name` is the first word, such as
/// `hstat`.
pub fn parse(name: &str, w: &mut Words<'_>) -> Option<HOp> {
    Some(match name {
        "hread" => HOp::Read(w.num()?, w.num()?),
        "hwrite" => HOp::Write(w.num()?, w.bytes()?),
        "hget" => HOp::Get(w.num()?),
        "hput" => HOp::Put(w.bytes()?),
        "happend" => HOp::Append(w.bytes()?),
        "hmapread" => HOp::MapRead(w.num()?, w.num()?),
        "hmapwrite" => HOp::MapWrite(w.num()?, w.bytes()?),
        "hstat" => HOp::Stat,
        "htruncate" => HOp::Truncate(w.num()?),
        "hchmod" => HOp::Chmod(w.octal()?),
        "hchown" => HOp::Chown(w.id()?, w.id()?),
        "hutimens" => HOp::Utimens(w.time()?, w.time()?),
        "htouch" => HOp::Touch,
        "hsetxattr" => HOp::Setxattr(w.bytes()?, w.bytes()?, w.xattr_flags()?),
        "hgetxattr" => HOp::Getxattr(w.bytes()?),
        "hlistxattr" => HOp::Listxattr,
        "hremovexattr" => HOp::Removexattr(w.bytes()?),
        "hfallocate" => HOp::Fallocate(w.num()?, w.num()?, w.num()?),
        "hcopyrange" => HOp::CopyRange(w.num()?, w.num()?, w.num()?, w.num()?),
        "hseekdata" => HOp::SeekData(w.num()?),
        "hseekhole" => HOp::SeekHole(w.num()?),
        "hsync" => HOp::Sync(false),
        "hdatasync" => HOp::Sync(true),
        "hlist" => HOp::List,
        "hlink" => HOp::Link(w.bytes()?),
        "hlinkempty" => HOp::LinkEmpty(w.bytes()?),
        "hreopen" => HOp::Reopen(w.num()?, w.flags()),
        _ => return None,
    })
}

/// Formats the line of an operation on descriptor `h`.
pub fn show_line(h: usize, op: &HOp, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match op {
        HOp::Read(o, len) => write!(f, "hread {h} {o} {len}"),
        HOp::Write(o, d) => write!(f, "hwrite {h} {o} {}", word(d)),
        HOp::Get(len) => write!(f, "hget {h} {len}"),
        HOp::Put(d) => write!(f, "hput {h} {}", word(d)),
        HOp::Append(d) => write!(f, "happend {h} {}", word(d)),
        HOp::MapRead(o, len) => write!(f, "hmapread {h} {o} {len}"),
        HOp::MapWrite(o, d) => write!(f, "hmapwrite {h} {o} {}", word(d)),
        HOp::Stat => write!(f, "hstat {h}"),
        HOp::Truncate(n) => write!(f, "htruncate {h} {n}"),
        HOp::Chmod(m) => write!(f, "hchmod {h} {m:o}"),
        HOp::Chown(u, g) => write!(f, "hchown {h} {} {}", id(*u), id(*g)),
        HOp::Utimens(a, m) => write!(f, "hutimens {h} {}.{} {}.{}", a.0, a.1, m.0, m.1),
        HOp::Touch => write!(f, "htouch {h}"),
        HOp::Setxattr(n, v, fl) => {
            let flags = ["-", "create", "replace"][*fl as usize];
            write!(f, "hsetxattr {h} {} {} {flags}", word(n), word(v))
        }
        HOp::Getxattr(n) => write!(f, "hgetxattr {h} {}", word(n)),
        HOp::Listxattr => write!(f, "hlistxattr {h}"),
        HOp::Removexattr(n) => write!(f, "hremovexattr {h} {}", word(n)),
        HOp::Fallocate(m, o, l) => write!(f, "hfallocate {h} {m} {o} {l}"),
        HOp::CopyRange(o, to, at, l) => write!(f, "hcopyrange {h} {o} {to} {at} {l}"),
        HOp::SeekData(o) => write!(f, "hseekdata {h} {o}"),
        HOp::SeekHole(o) => write!(f, "hseekhole {h} {o}"),
        HOp::Sync(false) => write!(f, "hsync {h}"),
        HOp::Sync(true) => write!(f, "hdatasync {h}"),
        HOp::List => write!(f, "hlist {h}"),
        HOp::Link(p) => write!(f, "hlink {h} {}", word(p)),
        HOp::LinkEmpty(p) => write!(f, "hlinkempty {h} {}", word(p)),
        HOp::Reopen(to, fl) => write!(f, "hreopen {h} {to} {}", fl.0),
    }
}

/// Runs an operation that needs only the descriptor. `at` converts a path of the script to one of
/// the system.
pub fn run(file: &File, op: &HOp, at: impl Fn(&[u8]) -> std::path::PathBuf) -> io::Result<String> {
    match op {
        HOp::Stat => Ok(show_stat(&file.metadata()?)),
        HOp::List => list(std::fs::read_dir(link_of(file))?),
        HOp::Link(p) => {
            let flags = AtFlags::SYMLINK_FOLLOW;
            done(rustix::fs::linkat(CWD, link_of(file), CWD, at(p), flags))
        }
        HOp::LinkEmpty(p) => {
            let flags = AtFlags::EMPTY_PATH;
            done(rustix::fs::linkat(file.as_fd(), c"", CWD, at(p), flags))
        }
        HOp::Truncate(_)
        | HOp::Fallocate(..)
        | HOp::SeekData(_)
        | HOp::SeekHole(_)
        | HOp::Sync(_) => run_space(file, op),
        HOp::Chmod(_)
        | HOp::Chown(..)
        | HOp::Utimens(..)
        | HOp::Touch
        | HOp::Setxattr(..)
        | HOp::Getxattr(_)
        | HOp::Listxattr
        | HOp::Removexattr(_) => run_attr(file, op),
        _ => run_data(file, op),
    }
}

/// Opens the file of a descriptor again.
pub fn reopen(file: &File, flags: &Flags) -> io::Result<File> {
    let flags = open_flags(flags) | OFlags::NONBLOCK;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    Ok(File::from(rustix::fs::open(link_of(file), flags, mode)?))
}

/// Calls copy_file_range between two descriptors.
pub fn copy((from, at): (&File, u64), (to, to_at): (&File, u64), len: u64) -> io::Result<String> {
    let (mut a, mut b) = (at, to_at);
    let len = usize::try_from(len).unwrap();
    let n = rustix::fs::copy_file_range(from, Some(&mut a), to, Some(&mut b), len)?;
    Ok(n.to_string())
}

fn link_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn done(result: rustix::io::Result<()>) -> io::Result<String> {
    Ok(result.map(|()| String::new())?)
}

fn run_data(mut file: &File, op: &HOp) -> io::Result<String> {
    match op {
        HOp::Read(offset, len) => {
            let mut buf = vec![0; *len];
            let n = file.read_at(&mut buf, *offset)?;
            Ok(show(&buf[..n]))
        }
        HOp::Write(offset, data) => Ok(file.write_at(data, *offset)?.to_string()),
        HOp::Get(len) => {
            let mut buf = vec![0; *len];
            let n = io::Read::read(&mut file, &mut buf)?;
            Ok(show(&buf[..n]))
        }
        HOp::Put(data) => Ok(io::Write::write(&mut file, data)?.to_string()),
        HOp::Append(data) => {
            let (slices, flags) = ([IoSlice::new(data)], ReadWriteFlags::APPEND);
            Ok(rustix::io::pwritev2(file, &slices, 0, flags)?.to_string())
        }
        HOp::MapRead(offset, len) => {
            let mut read = vec![0; *len];
            let n = file.read_at(&mut read, *offset)?;
            let mapped = Map::shared(file, false)?.read(*offset, n);
            let same = mapped.is_ok_and(|m| m == read[..n]);
            Ok(if same { "as read" } else { "not as read" }.into())
        }
        HOp::MapWrite(offset, data) => {
            // On the union the write would remove the capability; the kernel keeps it
            // (docs/SEMANTICS.md).
            let mut none = [0; 0];
            if rustix::fs::fgetxattr(file, c"security.capability", &mut none[..]).is_ok() {
                return Ok("has a capability".into());
            }
            // There is no memory to write to beyond the end.
            let room = file.metadata()?.len().saturating_sub(*offset);
            let data = &data[..data.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
            Map::shared(file, true)?.write(*offset, data)?;
            Ok(data.len().to_string())
        }
        other => panic!("no data operation: {other:?}"),
    }
}

fn run_space(file: &File, op: &HOp) -> io::Result<String> {
    match op {
        HOp::Truncate(len) => file.set_len(*len).map(|()| String::new()),
        HOp::Fallocate(mode, offset, len) => {
            let mode = FallocateFlags::from_bits_retain(*mode);
            done(rustix::fs::fallocate(file, mode, *offset, *len))
        }
        HOp::SeekData(offset) => Ok(rustix::fs::seek(file, SeekFrom::Data(*offset))?.to_string()),
        HOp::SeekHole(offset) => Ok(rustix::fs::seek(file, SeekFrom::Hole(*offset))?.to_string()),
        HOp::Sync(false) => done(rustix::fs::fsync(file)),
        HOp::Sync(true) => done(rustix::fs::fdatasync(file)),
        other => panic!("no operation on space: {other:?}"),
    }
}

fn run_attr(file: &File, op: &HOp) -> io::Result<String> {
    match op {
        HOp::Chmod(mode) => {
            file.set_permissions(std::fs::Permissions::from_mode(*mode))?;
            Ok(String::new())
        }
        HOp::Chown(uid, gid) => {
            let id = |id: u32| (id != u32::MAX).then_some(id);
            std::os::unix::fs::fchown(file, id(*uid), id(*gid))?;
            Ok(String::new())
        }
        HOp::Utimens(atime, mtime) => set_times(file, *atime, *mtime),
        HOp::Touch => set_times(file, (0, UTIME_NOW), (0, UTIME_NOW)),
        HOp::Setxattr(name, value, flags) => {
            let flags = XattrFlags::from_bits_retain(*flags);
            done(rustix::fs::fsetxattr(file, &name[..], value, flags))
        }
        HOp::Getxattr(name) => {
            let mut value = vec![0; 65536];
            let len = rustix::fs::fgetxattr(file, &name[..], &mut value[..])?;
            Ok(show(&value[..len]))
        }
        HOp::Listxattr => {
            let mut names = vec![0; 65536];
            let len = rustix::fs::flistxattr(file, &mut names[..])?;
            let names = xattr_list(&names[..len]);
            let names: Vec<_> = names.iter().map(|n| escape(n)).collect();
            Ok(names.join(" "))
        }
        HOp::Removexattr(name) => done(rustix::fs::fremovexattr(file, &name[..])),
        other => panic!("no attribute operation: {other:?}"),
    }
}

fn set_times(file: &File, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<String> {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(atime),
        last_modification: time(mtime),
    };
    done(rustix::fs::futimens(file, &times))
}

/// Returns the directory of a descriptor, as the root of a script's paths.
pub fn root_of(file: &File) -> std::path::PathBuf {
    Path::new(&link_of(file)).to_path_buf()
}
