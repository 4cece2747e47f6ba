//! The union core: overlay semantics over a layer stack, without any FUSE type.
//! Called by the transports ([`crate::fuse`]) and by the core tests.

pub mod error;
pub mod types;

pub use error::{Error, Result};
pub use types::*;

use crate::layer::StackSpec;

/// Options of a union that are not part of its layers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Skip every fsync: a crash of the machine may lose or damage the upper
    /// (option `volatile`). Default: false.
    pub volatile: bool,
    /// Whether merged directories may be renamed by writing `overlay.redirect`:
    /// `None` picks what kernel overlayfs can read back (on with trusted markers,
    /// off with user markers, where rename then answers EXDEV). Option `redirect_dir=on|off`.
    pub redirect_dir: Option<bool>,
    /// Upper bound of names in the lookup cache.
    pub lookup_cache: usize,
    /// Upper bound of cached descriptors.
    pub fd_cache: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            volatile: false,
            redirect_dir: None,
            lookup_cache: 65536,
            fd_cache: 4096,
        }
    }
}

/// The union of a layer stack.
pub struct Union {}

/// An entry whose lookup has been counted for the kernel. Dropping it gives the
/// count back; [`EntryRef::surrender`] hands it to the kernel, which returns it by
/// [`Union::forget`].
pub struct EntryRef<'u> {
    union: &'u Union,
    attr: Attr,
    generation: u64,
}

impl EntryRef<'_> {
    /// The attributes of the entry.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }
    /// Distinguishes reuses of an inode number.
    pub fn generation(&self) -> u64 {
        self.generation
    }
    /// The kernel has been told: the lookup stays counted until it forgets.
    pub fn surrender(self) -> Ino {
        let _ = self.union;
        self.attr.ino
    }
}

/// One directory entry, offered to the sink of [`Union::readdir`].
pub struct DirItem<'a, 'u> {
    /// Opaque position after this entry: pass it to `readdir` to go on behind it.
    pub offset: u64,
    /// The name, raw bytes.
    pub name: &'a [u8],
    /// Inode number (d_ino).
    pub ino: Ino,
    /// File type (d_type).
    pub kind: FileKind,
    /// With `plus`: the counted lookup; never for `.` and `..`. Taken by the sink when accepted.
    pub entry: Option<EntryRef<'u>>,
}

fn nosys<T>() -> Result<T> {
    Err(rustix::io::Errno::NOSYS.into())
}

/// All operations: by inode number and name bytes; errors carry the errno of `overlayfs`.
impl Union {
    /// Opens the layers, takes the lock on upper and work, cleans the work directory.
    pub fn new(_stack: &StackSpec, _options: Options) -> Result<Self> {
        nosys()
    }
    /// `Ok(None)`: there is no such name (a negative answer that may be cached).
    pub fn lookup(&self, _parent: Ino, _name: &[u8]) -> Result<Option<EntryRef<'_>>> {
        nosys()
    }
    /// Gives back `count` lookups of `ino`.
    pub fn forget(&self, _ino: Ino, _count: u64) {}
    /// Attributes.
    pub fn getattr(&self, _ino: Ino) -> Result<Attr> {
        nosys()
    }
    /// Changes attributes (copy-up).
    pub fn setattr(&self, _caller: &Caller, _ino: Ino, _set: &SetAttr) -> Result<Attr> {
        nosys()
    }
    /// Target of a symlink.
    pub fn readlink(&self, _ino: Ino) -> Result<Vec<u8>> {
        nosys()
    }
    /// `mode` carries S_IFMT and permission bits, before the umask.
    pub fn mknod(
        &self,
        _caller: &Caller,
        _parent: Ino,
        _name: &[u8],
        _mode: u32,
        _umask: u32,
        _rdev: (u32, u32),
    ) -> Result<EntryRef<'_>> {
        nosys()
    }
    /// `mode`: permission bits before the umask.
    pub fn mkdir(
        &self,
        _caller: &Caller,
        _parent: Ino,
        _name: &[u8],
        _mode: u32,
        _umask: u32,
    ) -> Result<EntryRef<'_>> {
        nosys()
    }
    /// Symlink.
    pub fn symlink(
        &self,
        _caller: &Caller,
        _parent: Ino,
        _name: &[u8],
        _target: &[u8],
    ) -> Result<EntryRef<'_>> {
        nosys()
    }
    /// Hard link.
    pub fn link(&self, _ino: Ino, _parent: Ino, _name: &[u8]) -> Result<EntryRef<'_>> {
        nosys()
    }
    /// An unnamed file in `parent` (O_TMPFILE); `link` can name it later.
    pub fn tmpfile(
        &self,
        _caller: &Caller,
        _parent: Ino,
        _mode: u32,
        _umask: u32,
    ) -> Result<EntryRef<'_>> {
        nosys()
    }
    /// Unlink.
    pub fn unlink(&self, _parent: Ino, _name: &[u8]) -> Result<()> {
        nosys()
    }
    /// Rmdir.
    pub fn rmdir(&self, _parent: Ino, _name: &[u8]) -> Result<()> {
        nosys()
    }
    /// Rename.
    pub fn rename(
        &self,
        _parent: Ino,
        _name: &[u8],
        _new_parent: Ino,
        _new_name: &[u8],
        _flags: RenameFlags,
    ) -> Result<()> {
        nosys()
    }
    /// Reads at `offset` into `buf`; the number of bytes read, short only at the end of the file.
    pub fn read(&self, _ino: Ino, _offset: u64, _buf: &mut [u8]) -> Result<usize> {
        nosys()
    }
    /// Writes all of `data` (copy-up). `kill_suid`: clear set-id bits as an unprivileged write does.
    pub fn write(&self, _ino: Ino, _offset: u64, _data: &[u8], _kill_suid: bool) -> Result<usize> {
        nosys()
    }
    /// fsync / fdatasync of a file.
    pub fn fsync(&self, _ino: Ino, _datasync: bool) -> Result<()> {
        nosys()
    }
    /// fsync of a directory.
    pub fn fsyncdir(&self, _ino: Ino, _datasync: bool) -> Result<()> {
        nosys()
    }
    /// fallocate(2), `mode` as there.
    pub fn fallocate(
        &self,
        _caller: &Caller,
        _ino: Ino,
        _mode: u32,
        _offset: u64,
        _len: u64,
    ) -> Result<()> {
        nosys()
    }
    /// copy_file_range(2).
    pub fn copy_file_range(
        &self,
        _caller: &Caller,
        _src: (Ino, u64),
        _dst: (Ino, u64),
        _len: u64,
    ) -> Result<usize> {
        nosys()
    }
    /// SEEK_DATA (3) and SEEK_HOLE (4).
    pub fn lseek(&self, _ino: Ino, _offset: u64, _whence: u32) -> Result<u64> {
        nosys()
    }
    /// Value of an extended attribute; ENODATA when absent.
    pub fn getxattr(&self, _ino: Ino, _name: &[u8]) -> Result<Vec<u8>> {
        nosys()
    }
    /// Names, each followed by NUL.
    pub fn listxattr(&self, _ino: Ino) -> Result<Vec<u8>> {
        nosys()
    }
    /// Sets an extended attribute (copy-up).
    pub fn setxattr(
        &self,
        _caller: &Caller,
        _ino: Ino,
        _name: &[u8],
        _value: &[u8],
        _flags: XattrFlags,
    ) -> Result<()> {
        nosys()
    }
    /// Removes an extended attribute (copy-up).
    pub fn removexattr(&self, _caller: &Caller, _ino: Ino, _name: &[u8]) -> Result<()> {
        nosys()
    }
    /// File system statistics of the upper (or the top lower).
    pub fn statfs(&self) -> Result<StatFs> {
        nosys()
    }
    /// Offers entries behind `offset` (0: from the start) to `sink` until it answers false
    /// (the entry did not fit and was not taken).
    pub fn readdir<'u>(
        &'u self,
        _ino: Ino,
        _offset: u64,
        _plus: bool,
        _sink: &mut dyn FnMut(DirItem<'_, 'u>) -> bool,
    ) -> Result<()> {
        nosys()
    }
    /// Whether a modification of `ino` would first copy it up: slow, not for a request thread.
    pub fn needs_copy_up(&self, _ino: Ino) -> bool {
        false
    }
    /// Like [`Union::needs_copy_up`], for a name: whether renaming it would first copy it up.
    pub fn needs_copy_up_name(&self, _parent: Ino, _name: &[u8]) -> bool {
        false
    }
    /// Counters.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
    /// Whether POSIX ACLs are to be enabled on the mount.
    pub fn has_acl(&self) -> bool {
        true
    }
    /// Whether there is an upper.
    pub fn is_writable(&self) -> bool {
        false
    }
}
