//! Packs trees as tars: the layer that an upper contains (`unionfs commit`), and the whole tree as
//! one flat tar (`unionfs export`).
//!
//! Entries are in the order of the walk: a directory before its content, names in the order of
//! their bytes, so that the same tree gives the same tar.

use std::collections::HashMap;
use std::io::Write;

use rustix::io::Errno;

use super::compare::{Xattr, same_file, xattrs};
use super::paths::{Node, Visit};
use super::walk::{Scope, Step};
use super::{Error, Result, Tree, absolute, read_error};
use crate::layer::markers::{WH_OPAQUE, WH_PREFIX, is_marker_xattr};
use crate::layer_tar::tar_writer::{Content, Item, TarWriter};
use crate::union::{Attr, Caching, FileKind, Ino};

/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;
/// Values of `whence` for lseek(2).
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
/// Prefixes of xattrs that have a meaning on this host only.
const HOST_XATTRS: [&[u8]; 2] = [b"security.selinux", b"security.evm"];

impl Tree {
    /// Writes the layer tar of the upper, with its whole content. Whiteouts are `.wh.NAME` and
    /// `.wh..wh..opq` (OCI image specification, layer.md). Renamed directories, and files of which
    /// the upper has only the metadata, have all their content. A hard link from a renamed
    /// directory to a file of the image outside of it becomes a copy. Sockets are left out, because
    /// tars do not support them.
    ///
    /// # Errors
    /// [`Error::WhName`] for a name that would be a whiteout; else [`Error::Read`],
    /// [`Error::Layer`] and [`Error::Write`].
    pub fn pack_layer(&self, out: impl Write) -> Result<()> {
        let mut sink = Sink::new(self, out, Form::Layer);
        self.walk(Scope::Layer, &mut |step| sink.layer_step(step))?;
        sink.finish()
    }

    /// Writes the whole tree as a flat tar, without sockets.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Write`].
    pub fn pack_all(&self, out: impl Write) -> Result<()> {
        let mut sink = Sink::new(self, out, Form::Flat);
        self.walk(Scope::All, &mut |step| match step.after {
            Some(attr) => sink.entry(step.path, attr),
            None => Ok(()),
        })?;
        sink.finish()
    }

    /// Writes a file of this tree, with everything below it, as a flat tar without sockets. `name`
    /// is its name in the tar; it is empty for the root of the tar.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Write`].
    pub fn pack_below(&self, node: Node<'_>, name: &[u8], out: impl Write) -> Result<()> {
        let mut sink = Sink::new(self, out, Form::Flat);
        for visit in node.walk() {
            if let Visit::Entry(path, node) = visit? {
                let below = !name.is_empty() && !path.is_empty();
                let path = [name, if below { b"/" } else { b"" }, &path].concat();
                sink.entry(&path, node.attr())?;
            }
        }
        sink.finish()
    }
}

/// Writes the tar of a tree without layers, which contains only the end marker.
///
/// # Errors
/// [`Error::Write`].
pub fn pack_nothing(mut out: impl Write) -> Result<()> {
    let written = out.write_all(&[0; END]).and_then(|()| out.flush());
    written.map_err(|source| Error::Write {
        path: absolute(b""),
        source,
    })
}

/// The number of zero bytes that end a tar: two blocks (POSIX, pax).
const END: usize = 1024;

/// The form of a tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A layer: `.wh.` names have a meaning.
    Layer,
    /// A tree that no other layer is below.
    Flat,
}

pub(super) struct Sink<'t, W> {
    tree: &'t Tree,
    out: TarWriter<W>,
    form: Form,
    /// The names under which files with several names were packed.
    names: HashMap<Ino, Vec<u8>>,
    /// Directories on the current path that are not packed yet.
    skipped: Vec<(Vec<u8>, Attr)>,
    buffer: Vec<u8>,
}

impl<'t, W: Write> Sink<'t, W> {
    fn new(tree: &'t Tree, out: W, form: Form) -> Self {
        Self {
            tree,
            out: TarWriter::new(out),
            form,
            names: HashMap::new(),
            skipped: Vec::new(),
            buffer: vec![0; CHUNK],
        }
    }

    /// Begins the tar of a layer.
    pub(super) fn of_layer(tree: &'t Tree, out: W) -> Self {
        Self::new(tree, out, Form::Layer)
    }

    /// Packs a whiteout.
    pub(super) fn deleted(&mut self, path: &[u8]) -> Result<()> {
        self.come_to(path);
        self.whiteout(path, WH_PREFIX)
    }

    /// Packs a file, after the directories that it is in.
    pub(super) fn file(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        self.come_to(path);
        self.parents()?;
        self.entry(path, attr)
    }

    /// Packs a directory if something in it is packed.
    pub(super) fn unchanged_directory(&mut self, path: &[u8], attr: &Attr) {
        self.come_to(path);
        self.skipped.push((path.to_vec(), *attr));
    }

    /// Forgets pending directories that the path is not in.
    fn come_to(&mut self, path: &[u8]) {
        let inside = |dir: &[u8]| path.starts_with(&[dir, b"/"].concat());
        while self.skipped.pop_if(|(dir, _)| !inside(dir)).is_some() {}
    }

    fn layer_step(&mut self, step: &Step<'_>) -> Result<()> {
        self.come_to(step.path);
        let Some(after) = step.after else {
            return self.whiteout(step.path, WH_PREFIX);
        };
        let linked = || after.nlink > 1 && step.before.is_none_or(|b| !same_file(b, after));
        // The lowers have no such name: everything was created in the upper, or renamed by it.
        if step.in_upper || step.before.is_none() || linked() {
            self.parents()?;
            self.entry(step.path, after)?;
        } else if after.kind == FileKind::Directory {
            self.skipped.push((step.path.to_vec(), *after));
        }
        if step.opaque {
            let path = [step.path, b"/", WH_OPAQUE].concat();
            let entry = self.out.entry(&Item::empty(&path));
            entry.map_err(|source| write_error(&path, source))
        } else {
            Ok(())
        }
    }

    /// Packs the pending directories: a tar has a directory before its content.
    fn parents(&mut self) -> Result<()> {
        for (path, attr) in std::mem::take(&mut self.skipped) {
            self.entry(&path, &attr)?;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8], prefix: &[u8]) -> Result<()> {
        self.parents()?;
        let slash = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let (dir, name) = path.split_at(slash);
        let whiteout = [dir, prefix, name].concat();
        let entry = self.out.entry(&Item::empty(&whiteout));
        entry.map_err(|source| write_error(path, source))
    }

    fn entry(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        if self.form == Form::Layer && name.starts_with(WH_PREFIX) {
            return Err(Error::WhName {
                path: absolute(path),
            });
        }
        let after = &self.tree.after;
        let fail = read_error(path);
        let first = if attr.nlink > 1 && attr.kind != FileKind::Directory {
            self.names.get(&attr.ino).cloned()
        } else {
            None
        };
        let target = match attr.kind {
            FileKind::Symlink => after.readlink(attr.ino).map_err(&fail)?,
            _ => Vec::new(),
        };
        let content = match (&first, attr.kind) {
            (_, FileKind::Socket) => return Ok(()),
            (Some(first), _) => Content::HardLink(first),
            (None, FileKind::Regular) => Content::Regular(attr.size),
            (None, FileKind::Directory) => Content::Directory,
            (None, FileKind::Symlink) => Content::Symlink(&target),
            (None, FileKind::Fifo) => Content::Fifo,
            (None, kind) => Content::Device(kind, attr.rdev.0, attr.rdev.1),
        };
        let xattrs = match first {
            Some(_) => Vec::new(),
            None => kept(xattrs(after, attr.ino).map_err(&fail)?),
        };
        let item = Item {
            path,
            content,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime,
            xattrs: &xattrs,
        };
        let entry = self.out.entry(&item);
        entry.map_err(|source| write_error(path, source))?;
        if first.is_some() {
            return Ok(());
        }
        if attr.nlink > 1 && attr.kind != FileKind::Directory {
            self.names.insert(attr.ino, path.to_vec());
        }
        match attr.kind {
            FileKind::Regular => self.data(path, attr),
            _ => Ok(()),
        }
    }

    /// Packs the data of a file, with the length in its header: a file that is written meanwhile is
    /// truncated or filled with zeros, as by other tar programs. Holes are not read.
    fn data(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        let (ino, size) = (attr.ino, attr.size);
        let after = &self.tree.after;
        let mut offset = 0;
        while offset < size {
            let data = match after.lseek(ino, offset, SEEK_DATA) {
                Err(e) if e.errno() == Errno::NXIO.raw_os_error() => size,
                // The file system does not report holes.
                Err(_) => offset,
                Ok(data) => data.clamp(offset, size),
            };
            self.zeros(path, data - offset)?;
            if data == size {
                break;
            }
            let hole = after.lseek(ino, data, SEEK_HOLE);
            let hole = hole.unwrap_or(size).clamp(data + 1, size);
            offset = self.copy(path, ino, data..hole)?;
            if offset < hole {
                return self.zeros(path, size - offset);
            }
        }
        Ok(())
    }

    /// Copies a range of data and returns where it ended, which is early if the file was truncated.
    fn copy(&mut self, path: &[u8], ino: Ino, stretch: std::ops::Range<u64>) -> Result<u64> {
        let mut offset = stretch.start;
        while offset < stretch.end {
            let left = usize::try_from(stretch.end - offset).unwrap_or(usize::MAX);
            let buffer = &mut self.buffer[..left.min(CHUNK)];
            let read = self.tree.after.read(ino, offset, buffer, Caching::Cached);
            let read = read.map_err(read_error(path))?;
            if read == 0 {
                break;
            }
            let written = self.out.data(&buffer[..read]);
            written.map_err(|source| write_error(path, source))?;
            offset += read as u64;
        }
        Ok(offset)
    }

    fn zeros(&mut self, path: &[u8], mut count: u64) -> Result<()> {
        static ZEROS: [u8; 32 << 10] = [0; 32 << 10];
        while count > 0 {
            let some = usize::try_from(count)
                .unwrap_or(usize::MAX)
                .min(ZEROS.len());
            let written = self.out.data(&ZEROS[..some]);
            written.map_err(|source| write_error(path, source))?;
            count -= some as u64;
        }
        Ok(())
    }

    /// Writes the end of the tar.
    pub(super) fn finish(self) -> Result<()> {
        let end = self.out.finish();
        end.map(drop).map_err(|source| write_error(b"", source))
    }
}

fn write_error(path: &[u8], source: std::io::Error) -> Error {
    let path = absolute(path);
    Error::Write { path, source }
}

/// Returns the xattrs that belong in a tar. A name with `=` cannot be written as a pax record.
fn kept(mut xattrs: Vec<Xattr>) -> Vec<Xattr> {
    let is_host = |name: &[u8]| HOST_XATTRS.iter().any(|prefix| name.starts_with(prefix));
    xattrs.retain(|(name, _)| !name.contains(&b'=') && !is_marker_xattr(name) && !is_host(name));
    xattrs
}
