//! A FUSE file system with one file, whose answers a test turns into an error: what the owner of a layer
//! can make root's mount see.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, Request,
    SessionACL,
};

/// The name of its file.
pub const NAME: &str = "file";
/// The contents of the file.
pub const TEXT: &[u8] = b"text of a file system in user space";

/// The kernel asks for everything again.
const NEVER: Duration = Duration::ZERO;
const FILE: INodeNo = INodeNo(2);

/// The file system, mounted until it is dropped.
pub struct FailingFs {
    error: Arc<AtomicI32>,
    _session: BackgroundSession,
}

impl FailingFs {
    /// Mounts it on a directory, for all users.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn mount(dir: &Path) -> Self {
        let error = Arc::new(AtomicI32::new(0));
        let mut config = Config::default();
        config.acl = SessionACL::All;
        let answers = Answers(Arc::clone(&error));
        let session = fuser::spawn_mount(answers, dir, &config).unwrap();
        Self {
            error,
            _session: session,
        }
    }

    /// Lets every lookup, read and question for attributes fail with this number; 0: none.
    pub fn fails_with(&self, errno: i32) {
        self.error.store(errno, Ordering::SeqCst);
    }
}

struct Answers(Arc<AtomicI32>);

impl Answers {
    fn error(&self) -> Option<Errno> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            errno => Some(Errno::from_i32(errno)),
        }
    }
}

fn attr(ino: INodeNo) -> FileAttr {
    let (kind, size, perm, nlink) = match ino {
        FILE => (FileType::RegularFile, TEXT.len() as u64, 0o644, 1),
        _ => (FileType::Directory, 0, 0o755, 2),
    };
    FileAttr {
        ino,
        size,
        blocks: 8,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Answers {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.error() {
            Some(error) => reply.error(error),
            None if name == NAME => reply.entry(&NEVER, &attr(FILE), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.error() {
            Some(error) if ino == FILE => reply.error(error),
            _ => reply.attr(&NEVER, &attr(ino)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let rest = TEXT.get(offset as usize..).unwrap_or_default();
        match self.error() {
            Some(error) => reply.error(error),
            None => reply.data(rest),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (ino, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, NAME),
        ];
        for (at, (ino, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if reply.add(ino, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
