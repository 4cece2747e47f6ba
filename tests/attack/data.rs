//! All ways to change the content of a file. Each may have to drop set-id bits and capabilities.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};
use rustix::io::ReadWriteFlags;
use testkit::map::Map;

use crate::act::filled_pipe;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Write,
    WriteBeyond,
    Append,
    AppendOnce,
    OpenTruncate,
    Truncate,
    Extend,
    Direct,
    DirectAppend,
    Splice,
    Sendfile,
    CopyRange,
    Allocate,
    Punch,
    Zero,
    Map,
    Nothing,
    Vectors,
}

pub(crate) const WAYS: [Way; 18] = [
    Way::Write,
    Way::WriteBeyond,
    Way::Append,
    Way::AppendOnce,
    Way::OpenTruncate,
    Way::Truncate,
    Way::Extend,
    Way::Direct,
    Way::DirectAppend,
    Way::Splice,
    Way::Sendfile,
    Way::CopyRange,
    Way::Allocate,
    Way::Punch,
    Way::Zero,
    Way::Map,
    Way::Nothing,
    Way::Vectors,
];

/// An offset beyond the end of the program in the file. The program still works after a write
/// there.
const BEYOND: u64 = 1 << 17;

/// A buffer with the alignment that O_DIRECT needs.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// Changes a file in one way; `source` is a file of the same mount.
pub(crate) fn change(way: Way, path: &Path, source: &Path) -> io::Result<String> {
    let open = |flags: OFlags| -> io::Result<File> {
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
    };
    let write = OFlags::WRONLY;
    let counted = |n: usize| Ok(n.to_string());
    let allocate = |mode| {
        rustix::fs::fallocate(open(OFlags::RDWR)?, mode, BEYOND, 8192)?;
        Ok(String::new())
    };
    match way {
        Way::Write => counted(open(write)?.write_at(b"x", 0)?),
        Way::WriteBeyond => counted(open(write)?.write_at(b"x", BEYOND)?),
        Way::Append => counted(open(write | OFlags::APPEND)?.write(b"x")?),
        Way::AppendOnce => {
            let (slices, flags) = ([IoSlice::new(b"x")], ReadWriteFlags::APPEND);
            counted(rustix::io::pwritev2(open(write)?, &slices, 0, flags)?)
        }
        Way::OpenTruncate => open(write | OFlags::TRUNC).map(|_| String::new()),
        Way::Truncate => open(write)?.set_len(1).map(|()| String::new()),
        Way::Extend => open(write)?.set_len(BEYOND).map(|()| String::new()),
        Way::Direct => {
            let page = Box::new(Page([b'd'; 4096]));
            counted(open(write | OFlags::DIRECT)?.write_at(&page.0, BEYOND)?)
        }
        Way::DirectAppend => {
            let mut file = open(write | OFlags::DIRECT | OFlags::APPEND)?;
            file.set_len(BEYOND)?;
            let page = Box::new(Page([b'd'; 4096]));
            counted(file.write(&page.0)?)
        }
        Way::Splice => {
            let (file, pipe, mut at) = (open(write)?, filled_pipe(b"xyz")?, BEYOND);
            let flags = rustix::pipe::SpliceFlags::empty();
            counted(rustix::pipe::splice(
                &pipe,
                None,
                &file,
                Some(&mut at),
                3,
                flags,
            )?)
        }
        Way::Sendfile => {
            let from = File::from(rustix::fs::memfd_create("source", MemfdFlags::CLOEXEC)?);
            from.write_at(b"xyz", 0)?;
            let to = open(write)?;
            counted(rustix::fs::sendfile(&to, &from, None, 3)?)
        }
        Way::CopyRange => {
            let (from, to) = (File::open(source)?, open(write)?);
            let (mut a, mut b) = (0, BEYOND);
            counted(rustix::fs::copy_file_range(
                &from,
                Some(&mut a),
                &to,
                Some(&mut b),
                3,
            )?)
        }
        Way::Allocate => allocate(FallocateFlags::empty()),
        Way::Punch => allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
        Way::Zero => allocate(FallocateFlags::KEEP_SIZE),
        Way::Map => mapped(&open(OFlags::RDWR)?),
        Way::Nothing => counted(open(write)?.write_at(b"", 0)?),
        Way::Vectors => {
            let slices = [IoSlice::new(b"x"), IoSlice::new(b"yz")];
            counted(rustix::io::pwritev(open(write)?, &slices, BEYOND)?)
        }
    }
}

fn mapped(file: &File) -> io::Result<String> {
    // Whether the call drops the bits would depend on the policy (docs/SEMANTICS.md, "Extended
    // attributes").
    let mut none = [0; 0];
    if rustix::fs::fgetxattr(file, c"security.capability", &mut none[..]).is_ok() {
        return Ok("has a capability".into());
    }
    if file.metadata()?.len() == 0 {
        return Ok("empty".into());
    }
    Map::shared(file, true)?.write(0, b"m")?;
    Ok(String::new())
}
