//! A FUSE file system with two files, whose answers a test turns into an error: what the owner of a layer
//! can make root's mount see, and what a bad disk does.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyLseek,
    Request, SessionACL,
};

/// The name of a short file.
pub const NAME: &str = "file";
/// The contents of the short file.
pub const TEXT: &[u8] = b"text of a file system in user space";
/// The name of a long file, all of whose bytes are [`BYTE`].
pub const LONG: &str = "long";
/// The size of the long file.
pub const LONG_SIZE: u64 = 256 << 10;
/// See [`LONG`].
pub const BYTE: u8 = b'l';

/// The kernel asks for everything again.
const NEVER: Duration = Duration::ZERO;
const FILE: INodeNo = INodeNo(2);
const LONG_FILE: INodeNo = INodeNo(3);

/// The file system, mounted until it is dropped.
pub struct FailingFs {
    state: Arc<State>,
    _session: BackgroundSession,
}

impl FailingFs {
    /// Mounts it on a directory, for all users.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn mount(dir: &Path) -> Self {
        let state = Arc::new(State {
            error: AtomicI32::new(0),
            bad_from: AtomicU64::new(u64::MAX),
            error_of_bad: AtomicI32::new(0),
            lies: AtomicBool::new(false),
        });
        let mut config = Config::default();
        config.acl = SessionACL::All;
        let answers = Answers(Arc::clone(&state));
        let session = fuser::spawn_mount(answers, dir, &config).unwrap();
        Self {
            state,
            _session: session,
        }
    }

    /// Lets every lookup, read and question for attributes fail with this number; 0: none.
    pub fn fails_with(&self, errno: i32) {
        self.state.error.store(errno, Ordering::SeqCst);
    }

    /// Lets reads of the long file fail with this number if they concern this offset or what is behind it.
    /// The kernel then reads page by page.
    pub fn is_bad_from(&self, offset: u64, errno: i32) {
        self.state.error_of_bad.store(errno, Ordering::SeqCst);
        self.state.bad_from.store(offset, Ordering::SeqCst);
    }

    /// Lets nothing fail any more.
    pub fn works(&self) {
        self.fails_with(0);
        self.is_bad_from(u64::MAX, 0);
    }

    /// Lets it say that data begins at 0 and ends at 1, whatever place it is asked about.
    pub fn lies_about_holes(&self) {
        self.state.lies.store(true, Ordering::SeqCst);
    }
}

struct State {
    error: AtomicI32,
    bad_from: AtomicU64,
    error_of_bad: AtomicI32,
    lies: AtomicBool,
}

struct Answers(Arc<State>);

impl Answers {
    fn error(&self) -> Option<Errno> {
        match self.0.error.load(Ordering::SeqCst) {
            0 => None,
            errno => Some(Errno::from_i32(errno)),
        }
    }
}

fn attr(ino: INodeNo) -> FileAttr {
    let (kind, size, perm, nlink) = match ino {
        FILE => (FileType::RegularFile, TEXT.len() as u64, 0o644, 1),
        LONG_FILE => (FileType::RegularFile, LONG_SIZE, 0o644, 1),
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
            None if name == LONG => reply.entry(&NEVER, &attr(LONG_FILE), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.error() {
            Some(error) if ino != INodeNo::ROOT => reply.error(error),
            _ => reply.attr(&NEVER, &attr(ino)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(error) = self.error() {
            return reply.error(error);
        }
        if ino == FILE {
            return reply.data(TEXT.get(offset as usize..).unwrap_or_default());
        }
        let bad = self.0.bad_from.load(Ordering::SeqCst);
        let end = LONG_SIZE.min(offset + u64::from(size));
        if end > bad {
            return reply.error(Errno::from_i32(self.0.error_of_bad.load(Ordering::SeqCst)));
        }
        reply.data(&vec![BYTE; end.saturating_sub(offset) as usize]);
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        if !self.0.lies.load(Ordering::SeqCst) {
            return reply.error(Errno::ENOSYS);
        }
        reply.offset(i64::from(whence == libc::SEEK_HOLE));
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
            (LONG_FILE, FileType::RegularFile, LONG),
        ];
        for (at, (ino, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if reply.add(ino, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
