//! One message of the kernel, parsed in place, with the types of `operations` for its fields.

use zerocopy::FromBytes;

use super::abi::{self, InHeader, op};
use crate::fuse::counters::Op;
use crate::fuse::operations::{
    self, Allocation, Context, FlagsForm, Handle, Ino, InodeFlags, Name, NewMode, Node, Offset,
    OpenFlags, SetIdBits, WriteData,
};
use crate::union::{Caching, SyncExtent, Write};

/// The caller and the inode of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The number of the request, which its reply must contain.
    pub(crate) unique: u64,
    /// The inode (or parent directory).
    pub(crate) ino: u64,
    /// The fsuid of the caller.
    pub(crate) uid: u32,
    /// The fsgid of the caller.
    pub(crate) gid: u32,
    /// The thread ID of the caller; see [`Context::pid`].
    pub(crate) pid: u32,
}

impl Header {
    /// Returns the caller.
    pub(crate) fn context(&self) -> Context {
        Context {
            uid: self.uid,
            gid: self.gid,
            pid: self.pid,
        }
    }
}

/// A request. Names may contain any byte but NUL.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request<'a> {
    Destroy,
    Lookup {
        name: &'a [u8],
    },
    Forget {
        count: u64,
    },
    BatchForget(Forgets<'a>),
    GetAttr,
    StatX {
        mask: u32,
    },
    SetAttr(abi::SetattrIn),
    ReadLink,
    SymLink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MkNod {
        name: &'a [u8],
        new: NewMode,
        /// The device number in the encoding of the kernel.
        rdev: u32,
    },
    MkDir {
        name: &'a [u8],
        new: NewMode,
    },
    TmpFile {
        new: NewMode,
        flags: OpenFlags,
    },
    Create {
        name: &'a [u8],
        new: NewMode,
        flags: OpenFlags,
    },
    Unlink {
        name: &'a [u8],
    },
    RmDir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        to: Name<'a>,
        /// `RENAME_` flags.
        flags: u32,
    },
    /// Gives the inode another name in the directory of the header.
    Link {
        node: Node,
        name: &'a [u8],
    },
    Open {
        flags: OpenFlags,
        /// Whether O_TRUNC drops the set-id bits, as for a write.
        set_id: SetIdBits,
    },
    OpenDir,
    Release {
        handle: Handle,
    },
    ReleaseDir,
    Flush,
    Read {
        offset: Offset,
        size: u32,
        /// `Direct` if the program opened the file with O_DIRECT, or has set it since.
        caching: Caching,
    },
    Write(WriteData<'a>),
    /// Asks for the flags of a file or directory.
    Flags(FlagsForm),
    /// Sets the flags of a file or directory.
    SetFlags(InodeFlags),
    /// Any other IOCTL.
    Ioctl,
    Fsync {
        extent: SyncExtent,
    },
    FsyncDir {
        extent: SyncExtent,
    },
    SyncFs,
    ReadDir {
        offset: Offset,
        size: u32,
    },
    ReadDirPlus {
        offset: Offset,
        size: u32,
    },
    StatFs,
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        /// Whether an ACL drops the set-group-ID bit of the file; `None` if the kernel does not
        /// report it.
        kill_sgid: Option<bool>,
    },
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    Fallocate(Allocation),
    Lseek {
        offset: Offset,
        whence: u32,
    },
    CopyFileRange {
        offset: Offset,
        to: Node,
        to_offset: Offset,
        length: u64,
        flags: u64,
        /// Whether it is COPY_FILE_RANGE_64, which also has another answer.
        wide: bool,
    },
    Access,
    GetLk,
    SetLk,
    Bmap,
    Poll,
    Interrupt,
    /// An operation that this version does not know.
    Unknown,
    /// A message that is too short, or lacks the NUL of its names.
    Malformed,
}

impl Request<'_> {
    /// Returns the operation for the counters. Each inode of a BATCH_FORGET is counted.
    pub(crate) fn operation(&self) -> Option<Op> {
        Some(match self {
            Self::Destroy => Op::Destroy,
            Self::Lookup { .. } => Op::Lookup,
            Self::Forget { .. } => Op::Forget,
            Self::GetAttr => Op::GetAttr,
            Self::StatX { .. } => Op::StatX,
            Self::SetAttr(_) => Op::SetAttr,
            Self::ReadLink => Op::ReadLink,
            Self::SymLink { .. } => Op::SymLink,
            Self::MkNod { .. } => Op::MkNod,
            Self::MkDir { .. } => Op::MkDir,
            Self::TmpFile { .. } => Op::TmpFile,
            Self::Create { .. } => Op::Create,
            Self::Unlink { .. } => Op::Unlink,
            Self::RmDir { .. } => Op::RmDir,
            Self::Rename { .. } => Op::Rename,
            Self::Link { .. } => Op::Link,
            Self::Open { .. } => Op::Open,
            Self::OpenDir => Op::OpenDir,
            Self::Release { .. } => Op::Release,
            Self::ReleaseDir => Op::ReleaseDir,
            Self::Flush => Op::Flush,
            Self::Read { .. } => Op::Read,
            Self::Write(_) => Op::Write,
            Self::Flags(_) | Self::SetFlags(_) | Self::Ioctl => Op::Ioctl,
            Self::Fsync { .. } => Op::Fsync,
            Self::FsyncDir { .. } => Op::FsyncDir,
            Self::SyncFs => Op::SyncFs,
            Self::ReadDir { .. } => Op::ReadDir,
            Self::ReadDirPlus { .. } => Op::ReadDirPlus,
            Self::StatFs => Op::StatFs,
            Self::SetXattr { .. } => Op::SetXattr,
            Self::GetXattr { .. } => Op::GetXattr,
            Self::ListXattr { .. } => Op::ListXattr,
            Self::RemoveXattr { .. } => Op::RemoveXattr,
            Self::Fallocate(_) => Op::Fallocate,
            Self::Lseek { .. } => Op::Lseek,
            Self::CopyFileRange { .. } => Op::CopyFileRange,
            Self::Access => Op::Access,
            Self::GetLk => Op::GetLk,
            Self::SetLk => Op::SetLk,
            Self::Bmap => Op::Bmap,
            Self::Poll => Op::Poll,
            Self::Interrupt => Op::Interrupt,
            Self::BatchForget(_) | Self::Unknown | Self::Malformed => return None,
        })
    }
}

/// The inodes of a BATCH_FORGET.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    /// Returns the inode and count of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let one = |bytes| abi::ForgetOne::read_from_bytes(bytes).ok();
        self.0
            .chunks_exact(size_of::<abi::ForgetOne>())
            .filter_map(one)
            .map(|one| (one.nodeid, one.nlookup))
    }
}

/// Splits one message into header, opcode and body. `None` if it is shorter than a header, or its
/// length differs from the one in the header, so that there is no request to answer.
pub(crate) fn split(message: &[u8]) -> Option<(Header, u32, &[u8])> {
    let (header, body) = InHeader::read_from_prefix(message).ok()?;
    if usize::try_from(header.len).ok()? != message.len() {
        return None;
    }
    let (opcode, body) = (header.opcode, without_extensions(&header, body)?);
    Some((Header::from(header), opcode, body))
}

/// Removes the extensions at the end of a message. The kernel sends them only after the handshake
/// agreed on them.
pub(super) fn without_extensions<'a>(header: &InHeader, body: &'a [u8]) -> Option<&'a [u8]> {
    let extensions = usize::from(header.total_extlen) * 8;
    body.get(..body.len().checked_sub(extensions)?)
}

impl From<InHeader> for Header {
    fn from(header: InHeader) -> Self {
        Self {
            unique: header.unique,
            ino: header.nodeid,
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
        }
    }
}

/// Whether the kernel waits for an answer to this opcode.
pub(crate) fn is_answered(opcode: u32) -> bool {
    !matches!(opcode, op::FORGET | op::BATCH_FORGET | op::NOTIFY_REPLY)
}

/// Parses the body of a message.
pub(crate) fn parse(opcode: u32, body: &[u8]) -> Request<'_> {
    parse_parts(opcode, body, &[])
}

/// Parses as [`parse`], without SETXATTR_EXT.
pub(crate) fn parse_short(opcode: u32, body: &[u8]) -> Request<'_> {
    match opcode {
        op::SETXATTR => short_setxattr(Body(body, &[])).unwrap_or(Request::Malformed),
        _ => parse(opcode, body),
    }
}

/// Parses as [`parse`] a body in two places: the struct of the operation, if it has one, then the
/// rest.
pub(super) fn parse_parts<'a>(opcode: u32, head: &'a [u8], rest: &'a [u8]) -> Request<'a> {
    fields(opcode, Body(head, rest)).unwrap_or(Request::Malformed)
}

/// The unparsed rest of the body of a message, and the part that follows it.
struct Body<'a>(&'a [u8], &'a [u8]);

impl<'a> Body<'a> {
    /// Continues with the second part if the first is used up. No value crosses the border.
    fn go_on(&mut self) {
        if self.0.is_empty() {
            self.0 = std::mem::take(&mut self.1);
        }
    }

    fn take<T: FromBytes>(&mut self) -> Option<T> {
        self.go_on();
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    /// Returns the bytes up to the next NUL.
    fn name(&mut self) -> Option<&'a [u8]> {
        self.go_on();
        let end = self.0.iter().position(|&byte| byte == 0)?;
        let (name, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.get(1..)?;
        Some(name)
    }

    /// Returns exactly `len` bytes; `None` if there are fewer.
    fn bytes(&mut self, len: u32) -> Option<&'a [u8]> {
        self.go_on();
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }
}

fn fields(opcode: u32, mut body: Body<'_>) -> Option<Request<'_>> {
    Some(match opcode {
        op::LOOKUP => Request::Lookup { name: body.name()? },
        op::GETATTR => Request::GetAttr,
        op::READ => {
            let abi::ReadIn {
                offset,
                size,
                flags,
                ..
            } = body.take()?;
            Request::Read {
                offset: Offset(offset),
                size,
                caching: OpenFlags(flags).caching(),
            }
        }
        op::WRITE => {
            let abi::WriteIn {
                offset,
                size,
                write_flags,
                flags,
                ..
            } = body.take()?;
            let (flags, pages) = (OpenFlags(flags), write_flags & abi::WRITE_CACHE != 0);
            Request::Write(WriteData {
                offset: Offset(offset),
                data: body.bytes(size)?,
                how: Write {
                    // Writes of cached pages never bypass the cache.
                    caching: if pages {
                        Caching::Cached
                    } else {
                        flags.caching()
                    },
                    append: flags.appends(),
                    pages,
                },
                set_id: SetIdBits::dropped_if(write_flags & abi::WRITE_KILL_SUIDGID != 0),
            })
        }
        op::READDIRPLUS => {
            let abi::ReadIn { offset, size, .. } = body.take()?;
            Request::ReadDirPlus {
                offset: Offset(offset),
                size,
            }
        }
        op::READDIR => {
            let abi::ReadIn { offset, size, .. } = body.take()?;
            Request::ReadDir {
                offset: Offset(offset),
                size,
            }
        }
        op::FORGET => Request::Forget {
            count: body.take()?,
        },
        op::BATCH_FORGET => batch_forget(body)?,
        op::STATX => Request::StatX {
            mask: body.take::<abi::StatxIn>()?.sx_mask,
        },
        op::SETATTR => Request::SetAttr(body.take()?),
        op::READLINK => Request::ReadLink,
        op::STATFS => Request::StatFs,
        op::OPEN => {
            let abi::OpenIn { flags, open_flags } = body.take()?;
            let set_id = SetIdBits::dropped_if(open_flags & abi::OPEN_KILL_SUIDGID != 0);
            Request::Open {
                flags: OpenFlags(flags),
                set_id,
            }
        }
        op::OPENDIR => Request::OpenDir,
        op::RELEASE => Request::Release {
            handle: Handle(body.take::<abi::ReleaseIn>()?.fh),
        },
        op::RELEASEDIR => Request::ReleaseDir,
        op::FLUSH => Request::Flush,
        op::ACCESS => Request::Access,
        op::GETLK => Request::GetLk,
        op::SETLK | op::SETLKW => Request::SetLk,
        op::BMAP => Request::Bmap,
        op::POLL => Request::Poll,
        op::INTERRUPT => Request::Interrupt,
        op::DESTROY => Request::Destroy,
        op::SYNCFS => Request::SyncFs,
        op::FSYNC => Request::Fsync {
            extent: sync_extent(body)?,
        },
        op::FSYNCDIR => Request::FsyncDir {
            extent: sync_extent(body)?,
        },
        op::SETXATTR | op::GETXATTR | op::LISTXATTR | op::REMOVEXATTR => xattr(opcode, body)?,
        op::IOCTL => ioctl::parse(body)?,
        op::FALLOCATE | op::LSEEK | op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => {
            ranges(opcode, body)?
        }
        _ => names(opcode, body)?,
    })
}

/// Parses the operations that change names.
fn names(opcode: u32, mut body: Body<'_>) -> Option<Request<'_>> {
    Some(match opcode {
        op::SYMLINK => Request::SymLink {
            name: body.name()?,
            target: body.name()?,
        },
        op::MKNOD => {
            let abi::MknodIn {
                mode, rdev, umask, ..
            } = body.take()?;
            Request::MkNod {
                name: body.name()?,
                new: NewMode { mode, umask },
                rdev,
            }
        }
        op::MKDIR => {
            let abi::MkdirIn { mode, umask } = body.take()?;
            Request::MkDir {
                name: body.name()?,
                new: NewMode { mode, umask },
            }
        }
        // The following name is a placeholder.
        op::TMPFILE => {
            let abi::CreateIn {
                flags, mode, umask, ..
            } = body.take()?;
            Request::TmpFile {
                new: NewMode { mode, umask },
                flags: OpenFlags(flags),
            }
        }
        op::CREATE => {
            let abi::CreateIn {
                flags, mode, umask, ..
            } = body.take()?;
            Request::Create {
                name: body.name()?,
                new: NewMode { mode, umask },
                flags: OpenFlags(flags),
            }
        }
        op::UNLINK => Request::Unlink { name: body.name()? },
        op::RMDIR => Request::RmDir { name: body.name()? },
        op::RENAME => {
            let new_parent = body.take()?;
            rename(body, new_parent, 0)?
        }
        op::RENAME2 => {
            let abi::Rename2In { newdir, flags, .. } = body.take()?;
            rename(body, newdir, flags)?
        }
        op::LINK => Request::Link {
            node: Node(body.take()?),
            name: body.name()?,
        },
        _ => Request::Unknown,
    })
}

fn rename(mut body: Body<'_>, new_parent: u64, flags: u32) -> Option<Request<'_>> {
    let (name, new_name) = (body.name()?, body.name()?);
    let to = Name {
        parent: Ino(new_parent),
        name: new_name,
    };
    Some(Request::Rename { name, to, flags })
}

fn batch_forget(mut body: Body<'_>) -> Option<Request<'_>> {
    let abi::BatchForgetIn { count, .. } = body.take()?;
    let size = u32::try_from(size_of::<abi::ForgetOne>()).ok()?;
    let all = body.bytes(count.checked_mul(size)?)?;
    Some(Request::BatchForget(Forgets(all)))
}

fn sync_extent(mut body: Body<'_>) -> Option<SyncExtent> {
    let abi::FsyncIn { fsync_flags, .. } = body.take()?;
    let datasync = fsync_flags & abi::FSYNC_FDATASYNC != 0;
    Some(operations::sync_extent(datasync))
}

fn xattr(opcode: u32, mut body: Body<'_>) -> Option<Request<'_>> {
    Some(match opcode {
        op::SETXATTR => {
            let set: abi::SetxattrIn = body.take()?;
            Request::SetXattr {
                name: body.name()?,
                value: body.bytes(set.size)?,
                flags: set.flags,
                kill_sgid: Some(set.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0),
            }
        }
        op::REMOVEXATTR => Request::RemoveXattr { name: body.name()? },
        _ => {
            let abi::GetxattrIn { size, .. } = body.take()?;
            match opcode {
                op::LISTXATTR => Request::ListXattr { size },
                _ => Request::GetXattr {
                    name: body.name()?,
                    size,
                },
            }
        }
    })
}

fn short_setxattr(mut body: Body<'_>) -> Option<Request<'_>> {
    let abi::ShortSetxattrIn { size, flags } = body.take()?;
    Some(Request::SetXattr {
        name: body.name()?,
        value: body.bytes(size)?,
        flags,
        kill_sgid: None,
    })
}

fn ranges(opcode: u32, mut body: Body<'_>) -> Option<Request<'_>> {
    Some(match opcode {
        op::FALLOCATE => {
            let abi::FallocateIn {
                offset,
                length,
                mode,
                ..
            } = body.take()?;
            Request::Fallocate(Allocation {
                offset: Offset(offset),
                length,
                mode,
            })
        }
        op::LSEEK => {
            let abi::LseekIn { offset, whence, .. } = body.take()?;
            Request::Lseek {
                offset: Offset(offset),
                whence,
            }
        }
        _ => {
            let range: abi::CopyFileRangeIn = body.take()?;
            Request::CopyFileRange {
                offset: Offset(range.off_in),
                to: Node(range.nodeid_out),
                to_offset: Offset(range.off_out),
                length: range.len,
                flags: range.flags,
                wide: opcode == op::COPY_FILE_RANGE_64,
            }
        }
    })
}

mod ioctl;
#[cfg(test)]
mod tests;
