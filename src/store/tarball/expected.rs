//! What a layer's tar says its files are, read from tar-split alone. Called by `compare`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufRead, Read};

use super::clean;
use super::error::{Result, TarError};
use super::header::{Entry, Kind};
use super::scan::Scan;
use super::split::{Line, Reader};
use super::unpack::Limits;
use crate::layer::at::is_valid_name;
use crate::layer::markers::{WH_AUFS_PREFIX, WH_OPAQUE, WH_PREFIX};
use crate::layer::types::Time;

/// Bytes of memory for what a tar has, at most: ten million files, more than any layer.
const MAX_KEPT: usize = 3 << 30;
/// Of these for each file, besides its names and xattrs.
const NODE: usize = 200;

/// Attributes that a header gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) perm: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
}

/// A file that a tar has.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
    /// Bytes of a regular file, holes included.
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    /// A symlink's target, or the cleaned path that a hard link is to.
    pub(super) link: Box<[u8]>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a path is to be. Without a node: a whiteout.
#[derive(Debug, Default)]
pub(super) struct Want {
    pub(super) node: Option<Node>,
    /// A whiteout of it is in the tar too.
    pub(super) whiteout: bool,
}

/// Everything that a tar has, by its cleaned paths.
#[derive(Debug, Default)]
pub(super) struct Expected {
    pub(super) paths: BTreeMap<Vec<u8>, Want>,
    /// Directories that are opaque.
    pub(super) opaque: BTreeSet<Vec<u8>>,
    /// Attributes of the last hard link to a file, by that file's path: Docker sets those,
    /// we keep the file's own.
    pub(super) relinked: HashMap<Vec<u8>, Attributes>,
}

impl Expected {
    /// Reads the headers; the content of files is passed over.
    pub(super) fn read(split: impl BufRead) -> Result<Self> {
        let limits = Limits {
            bytes: u64::MAX,
            ..Limits::default()
        };
        let headers = Headers {
            lines: Reader::new(split),
            segment: io::Cursor::default(),
            zeros: 0,
        };
        let mut scan = Scan::headers(headers, &limits);
        let mut expected = Self::default();
        let mut kept = 0usize;
        while let Some(entry) = scan.next()? {
            scan.raw().clear();
            scan.skip(Headers::skip)?;
            let xattrs = entry.xattrs.iter();
            let xattrs = xattrs.map(|(name, value)| name.len() + value.len());
            let names = entry.name.len() + entry.link.len();
            kept = kept.saturating_add(NODE + names + xattrs.sum::<usize>());
            if kept > MAX_KEPT {
                return Err(TarError::Limit {
                    what: "bytes of headers",
                    limit: MAX_KEPT as u64,
                });
            }
            expected.add(entry);
        }
        Ok(expected)
    }

    fn add(&mut self, entry: Entry) {
        let Some(path) = clean(&entry.name).filter(|_| entry.kind != Kind::Global) else {
            return;
        };
        let slash = path.iter().rposition(|&b| b == b'/');
        let (parent, last) = match slash {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], &path[..]),
        };
        // Notes of AUFS, which nobody unpacks.
        let note = |part: &[u8]| part.starts_with(WH_AUFS_PREFIX);
        if parent.split(|&b| b == b'/').any(note) || (note(last) && last != WH_OPAQUE) {
            return;
        }
        if last == WH_OPAQUE {
            self.opaque.insert(parent.to_vec());
            return;
        }
        if let Some(hidden) = last
            .strip_prefix(WH_PREFIX)
            .filter(|name| is_valid_name(name))
        {
            let path = match parent {
                b"" => hidden.to_vec(),
                parent => [parent, hidden].join(&b'/'),
            };
            self.paths.entry(path).or_default().whiteout = true;
            return;
        }
        let node = self.node(&path, entry);
        self.paths.entry(path).or_default().node = Some(node);
    }

    fn node(&mut self, path: &[u8], entry: Entry) -> Node {
        let attributes = Attributes {
            perm: entry.perm,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
        };
        let link = match entry.kind {
            Kind::HardLink => {
                let target = self.origin(clean(&entry.link).unwrap_or_default());
                if target != path {
                    self.relinked.insert(target.clone(), attributes);
                }
                target
            }
            _ => entry.link,
        };
        Node {
            kind: entry.kind,
            attributes,
            size: entry.sparse.map_or(entry.stored, |map| map.size),
            device: entry.device,
            link: link.into_boxed_slice(),
            xattrs: entry.xattrs,
        }
    }

    /// The file that a hard link to `path` is to.
    fn origin(&self, path: Vec<u8>) -> Vec<u8> {
        match self.paths.get(&path).and_then(|want| want.node.as_ref()) {
            Some(node) if node.kind == Kind::HardLink => node.link.to_vec(),
            _ => path,
        }
    }

    /// Whether something is below that path.
    pub(super) fn has_below(&self, path: &[u8]) -> bool {
        let start = [path, b"/"].concat();
        let next = self.paths.range(start.clone()..).next();
        path.is_empty() || next.is_some_and(|(next, _)| next.starts_with(&start))
    }
}

/// The tar that tar-split makes, with zeros instead of the content of files.
struct Headers<R> {
    lines: Reader<R>,
    segment: io::Cursor<Vec<u8>>,
    zeros: u64,
}

impl<R: BufRead> Headers<R> {
    /// Goes on to the next line, when the current one is used up; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        while self.zeros == 0 && self.segment.position() >= self.segment.get_ref().len() as u64 {
            match self.lines.next_line() {
                Ok(None) => return Ok(false),
                Ok(Some(Line::Segment(bytes))) => self.segment = io::Cursor::new(bytes),
                Ok(Some(Line::File { size, .. })) => self.zeros = size,
                Err(error) => return Err(invalid(error)),
            }
        }
        Ok(true)
    }

    /// Passes over at most so many bytes of the current line, whatever its length; 0 at the
    /// end.
    fn skip(&mut self, most: u64) -> io::Result<u64> {
        if !self.fill()? {
            return Ok(0);
        }
        if self.zeros > 0 {
            let count = most.min(self.zeros);
            self.zeros -= count;
            return Ok(count);
        }
        let at = self.segment.position();
        let count = most.min(self.segment.get_ref().len() as u64 - at);
        self.segment.set_position(at + count);
        Ok(count)
    }
}

impl<R: BufRead> Read for Headers<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || !self.fill()? {
            return Ok(0);
        }
        if self.zeros == 0 {
            return self.segment.read(buf);
        }
        let zeros = usize::try_from(self.zeros).unwrap_or(usize::MAX);
        let count = buf.len().min(zeros);
        buf[..count].fill(0);
        self.zeros -= count as u64;
        Ok(count)
    }
}

fn invalid(error: TarError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
