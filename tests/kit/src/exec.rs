//! Runs a script on a directory tree. Credentials and umask belong to the thread that runs it, so
//! that several scripts can run at the same time.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec,
    Timestamps, UTIME_NOW, XattrFlags,
};
use rustix::thread::UnshareFlags;

use super::descriptor::{self, HOp};
use super::map;
use super::script::{Flags, Op};
use super::tree::{at, xattr, xattr_names};
use super::{errno_name, escape};

/// The answer of an operation: a value as text, or the name of the errno.
pub type Answer = Result<String, String>;

/// Runs `script` below `root` and returns an answer for each operation.
pub fn run(root: &Path, script: &[Op]) -> Vec<Answer> {
    map::memory();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // The thread shares the umask with other threads before this call.
            #[expect(
                deprecated,
                reason = "the safe form; CLONE_FS cannot invalidate memory"
            )]
            rustix::thread::unshare(UnshareFlags::FS).unwrap();
            rustix::process::umask(Mode::from_raw_mode(0o022));
            let mut runner = Runner::new(root);
            script.iter().map(|op| runner.step(op)).collect()
        });
        worker.join().unwrap()
    })
}

/// The directory in which the paths of a script begin, and the descriptors that the script keeps.
pub struct Runner {
    root: PathBuf,
    handles: HashMap<usize, File>,
}

/// Converts a result to an answer.
pub fn answer(result: io::Result<String>) -> Answer {
    result.map_err(|e| errno_name(e.raw_os_error().unwrap_or(0)))
}

/// Returns the bits of `open(2)` for the letters of a flags word.
pub fn open_flags(flags: &Flags) -> OFlags {
    let mut bits = OFlags::CLOEXEC;
    if flags.0 == "-" {
        return bits;
    }
    for letter in flags.0.chars() {
        bits |= match letter {
            'r' => OFlags::RDONLY,
            'w' => OFlags::WRONLY,
            'b' => OFlags::RDWR,
            'a' => OFlags::APPEND,
            't' => OFlags::TRUNC,
            'c' => OFlags::CREATE,
            'x' => OFlags::EXCL,
            'd' => OFlags::DIRECTORY,
            'n' => OFlags::NOFOLLOW,
            'p' => OFlags::TMPFILE,
            'y' => OFlags::DSYNC,
            other => panic!("no open flag {other}"),
        };
    }
    bits
}

fn done(result: rustix::io::Result<()>) -> io::Result<String> {
    Ok(result.map(|()| String::new())?)
}

/// Returns short contents unchanged, and length and SHA-256 of long ones.
pub fn show(data: &[u8]) -> String {
    use sha2::Digest;
    if data.len() <= 80 {
        return format!("\"{}\"", escape(data));
    }
    let hash = sha2::Sha256::digest(data);
    format!("{} bytes, {:02x?}", data.len(), &hash[..8])
}

/// Returns the result of stat, without the fields that may differ.
pub fn show_stat(meta: &std::fs::Metadata) -> String {
    let mut text = format!("mode {:o} owner {}:{}", meta.mode(), meta.uid(), meta.gid());
    if !meta.is_dir() {
        text += &format!(
            " size {} nlink {} rdev {}",
            meta.size(),
            meta.nlink(),
            meta.rdev()
        );
    }
    text
}

/// Returns the letter of `find -type` for a d_type.
fn letter(kind: std::fs::FileType) -> char {
    let table = [
        (kind.is_file(), 'f'),
        (kind.is_dir(), 'd'),
        (kind.is_symlink(), 'l'),
        (kind.is_fifo(), 'p'),
        (kind.is_char_device(), 'c'),
        (kind.is_block_device(), 'b'),
        (kind.is_socket(), 's'),
    ];
    table.iter().find(|t| t.0).map_or('?', |t| t.1)
}

/// Returns the names and types in a directory, sorted.
pub fn list(entries: std::fs::ReadDir) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let kind = letter(entry.file_type()?);
        names.push(format!("{}:{kind}", escape(entry.file_name().as_bytes())));
    }
    names.sort();
    Ok(names.join(" "))
}

fn become_user(uid: u32, gid: u32) -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    let (root_uid, root_gid) = (Uid::ROOT, Gid::ROOT);
    // The saved ID stays 0, so that the thread can become root again.
    rustix::thread::set_thread_res_uid(None, root_uid, None)?;
    rustix::thread::set_thread_res_gid(root_gid, root_gid, root_gid)?;
    rustix::thread::set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, root_uid)
}

fn time((sec, nsec): (i64, i64)) -> Timespec {
    Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    }
}

impl Runner {
    /// Creates a runner without descriptors.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            handles: HashMap::new(),
        }
    }

    /// Runs one operation.
    pub fn step(&mut self, op: &Op) -> Answer {
        answer(self.run(op))
    }

    /// Converts a path of the script to one of the system.
    pub fn at(&self, path: &[u8]) -> PathBuf {
        at(&self.root, path)
    }

    fn open(&self, path: &[u8], flags: OFlags, mode: u32) -> io::Result<File> {
        // A random script opens FIFOs too, which have no process at their other end.
        let flags = flags | OFlags::NONBLOCK;
        let fd = rustix::fs::open(self.at(path), flags, Mode::from_raw_mode(mode))?;
        Ok(File::from(fd))
    }

    /// Returns a kept descriptor; EBADF if there is none.
    pub fn handle(&self, handle: usize) -> io::Result<&File> {
        let missing = || io::Error::from_raw_os_error(libc::EBADF);
        self.handles.get(&handle).ok_or_else(missing)
    }

    fn run(&mut self, op: &Op) -> io::Result<String> {
        match op {
            Op::As(uid, gid) => done(become_user(*uid, *gid)),
            Op::Umask(mask) => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                done(Ok(()))
            }
            Op::Open(..) | Op::Held(..) | Op::In(..) | Op::Close(..) => self.run_handle(op),
            Op::Mkdir(..)
            | Op::Rmdir(..)
            | Op::Unlink(..)
            | Op::Rename(..)
            | Op::Link(..)
            | Op::Symlink(..)
            | Op::Mknod(..)
            | Op::Create(..) => self.run_namespace(op),
            Op::Readdir(..) | Op::Stat(..) | Op::Readlink(..) | Op::Access(..) => {
                self.run_query(op)
            }
            Op::Read(..)
            | Op::Write(..)
            | Op::Truncate(..)
            | Op::Fallocate(..)
            | Op::CopyRange(..)
            | Op::SeekData(..)
            | Op::SeekHole(..) => self.run_data(op),
            _ => self.run_attr(op),
        }
    }

    fn run_namespace(&self, op: &Op) -> io::Result<String> {
        done(match op {
            Op::Create(p, mode, flags) => {
                let flags = OFlags::CREATE | OFlags::WRONLY | open_flags(flags);
                self.open(p, flags, *mode)?;
                Ok(())
            }
            Op::Mkdir(p, mode) => rustix::fs::mkdir(self.at(p), Mode::from_raw_mode(*mode)),
            Op::Rmdir(p) => rustix::fs::rmdir(self.at(p)),
            Op::Unlink(p) => rustix::fs::unlink(self.at(p)),
            Op::Rename(a, b, flags) => {
                let flags = RenameFlags::from_bits_retain(*flags);
                rustix::fs::renameat_with(CWD, self.at(a), CWD, self.at(b), flags)
            }
            Op::Link(a, b) => {
                rustix::fs::linkat(CWD, self.at(a), CWD, self.at(b), AtFlags::empty())
            }
            Op::Symlink(target, p) => rustix::fs::symlink(OsStr::from_bytes(target), self.at(p)),
            Op::Mknod(p, mode, major, minor) => {
                let kind = FileType::from_raw_mode(*mode);
                let dev = rustix::fs::makedev(*major, *minor);
                let perm = Mode::from_raw_mode(mode & 0o7777);
                rustix::fs::mknodat(CWD, self.at(p), kind, perm, dev)
            }
            other => panic!("no namespace operation: {other}"),
        })
    }

    fn run_query(&self, op: &Op) -> io::Result<String> {
        match op {
            Op::Readdir(p) => list(std::fs::read_dir(self.at(p))?),
            Op::Stat(p) => Ok(show_stat(&std::fs::symlink_metadata(self.at(p))?)),
            Op::Readlink(p) => {
                let target = std::fs::read_link(self.at(p))?;
                Ok(escape(target.as_os_str().as_bytes()))
            }
            Op::Access(p, mode) => {
                let access = Access::from_bits_retain(*mode);
                done(rustix::fs::access(self.at(p), access))
            }
            other => panic!("no query: {other}"),
        }
    }

    fn run_data(&self, op: &Op) -> io::Result<String> {
        match op {
            Op::Read(p) => {
                let mut file = self.open(p, OFlags::RDONLY | OFlags::CLOEXEC, 0)?;
                let mut data = Vec::new();
                io::Read::read_to_end(&mut file, &mut data)?;
                Ok(show(&data))
            }
            Op::Write(p, offset, data, flags) => {
                let file = self.open(p, OFlags::WRONLY | open_flags(flags), 0o644)?;
                Ok(file.write_at(data, *offset)?.to_string())
            }
            Op::Truncate(p, len) => {
                let file = self.open(p, OFlags::WRONLY | OFlags::CLOEXEC, 0)?;
                file.set_len(*len).map(|()| String::new())
            }
            Op::Fallocate(p, mode, offset, len) => {
                let file = self.open(p, OFlags::RDWR | OFlags::CLOEXEC, 0)?;
                let mode = FallocateFlags::from_bits_retain(*mode);
                done(rustix::fs::fallocate(&file, mode, *offset, *len))
            }
            Op::CopyRange(from, from_offset, to, to_offset, len) => {
                let src = self.open(from, OFlags::RDONLY | OFlags::CLOEXEC, 0)?;
                let dst = self.open(to, OFlags::WRONLY | OFlags::CLOEXEC, 0)?;
                let (mut a, mut b) = (*from_offset, *to_offset);
                let len = usize::try_from(*len).unwrap();
                let n = rustix::fs::copy_file_range(&src, Some(&mut a), &dst, Some(&mut b), len)?;
                Ok(n.to_string())
            }
            Op::SeekData(p, offset) | Op::SeekHole(p, offset) => {
                let file = self.open(p, OFlags::RDONLY | OFlags::CLOEXEC, 0)?;
                let whence = match op {
                    Op::SeekData(..) => SeekFrom::Data(*offset),
                    _ => SeekFrom::Hole(*offset),
                };
                Ok(rustix::fs::seek(&file, whence)?.to_string())
            }
            other => panic!("no data operation: {other}"),
        }
    }

    fn run_attr(&self, op: &Op) -> io::Result<String> {
        match op {
            Op::Chmod(p, mode) => {
                std::fs::set_permissions(self.at(p), std::fs::Permissions::from_mode(*mode))?;
                Ok(String::new())
            }
            Op::Chown(p, uid, gid) => {
                let id = |id: u32| (id != u32::MAX).then_some(id);
                std::os::unix::fs::lchown(self.at(p), id(*uid), id(*gid))?;
                Ok(String::new())
            }
            Op::Utimens(p, atime, mtime) => self.utimens(p, time(*atime), time(*mtime)),
            Op::Touch(p) => self.utimens(p, time((0, UTIME_NOW)), time((0, UTIME_NOW))),
            Op::Setxattr(p, name, value, flags) => {
                let flags = XattrFlags::from_bits_retain(*flags);
                done(rustix::fs::lsetxattr(self.at(p), &name[..], value, flags))
            }
            Op::Getxattr(p, name) => Ok(show(&xattr(&self.at(p), name)?)),
            Op::Listxattr(p) => {
                let names = xattr_names(&self.at(p))?;
                let names: Vec<_> = names.iter().map(|n| escape(n)).collect();
                Ok(names.join(" "))
            }
            Op::Removexattr(p, name) => done(rustix::fs::lremovexattr(self.at(p), &name[..])),
            other => panic!("no attribute operation: {other}"),
        }
    }

    fn utimens(&self, path: &[u8], atime: Timespec, mtime: Timespec) -> io::Result<String> {
        let times = Timestamps {
            last_access: atime,
            last_modification: mtime,
        };
        let path = self.at(path);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        done(rustix::fs::utimensat(CWD, path, &times, flags))
    }

    fn run_handle(&mut self, op: &Op) -> io::Result<String> {
        match op {
            Op::Open(handle, p, flags, mode) => {
                let file = self.open(p, open_flags(flags), *mode)?;
                self.handles.insert(*handle, file);
                Ok(String::new())
            }
            Op::Held(handle, HOp::Reopen(to, flags)) => {
                let file = descriptor::reopen(self.handle(*handle)?, flags)?;
                self.handles.insert(*to, file);
                Ok(String::new())
            }
            Op::Held(handle, HOp::CopyRange(offset, to, to_offset, len)) => {
                let (from, to) = (self.handle(*handle)?, self.handle(*to)?);
                descriptor::copy((from, *offset), (to, *to_offset), *len)
            }
            Op::Held(handle, op) => descriptor::run(self.handle(*handle)?, op, |p| self.at(p)),
            Op::In(handle, op) => {
                let dir = descriptor::root_of(self.handle(*handle)?);
                let root = std::mem::replace(&mut self.root, dir);
                let answer = self.run(op);
                self.root = root;
                answer
            }
            Op::Close(handle) => {
                let missing = || io::Error::from_raw_os_error(libc::EBADF);
                self.handles.remove(handle).ok_or_else(missing)?;
                Ok(String::new())
            }
            other => panic!("no handle operation: {other}"),
        }
    }
}
