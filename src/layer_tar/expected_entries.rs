//! The files that a layer's tar describes, in the order of paths. Memory is bounded for any number
//! of files: headers are sorted in a file.
//!
//! If a tar replaces a file to which another entry is a hard link, [`ExpectedTree`] reads it first:
//! it knows the name under which that file stays.

use std::fs::File;
use std::io::{self, BufRead};

use super::clean;
use super::error::{Error, Result};
use super::expected::{Node, Subject, Want, attributes_of, target_of};
use super::expected_record as record;
use super::expected_tree::ExpectedTree;
use super::external_sort::{self, ExternalSort, Sorted};
use super::header::{Entry, EntryKind};
use super::link_targets::LinkTargets;
use super::split_headers;

/// Returns the sort key of a path. The order is that of a walk: a directory's content follows it
/// directly.
pub(super) fn order(path: &[u8]) -> Vec<u8> {
    path.iter()
        .map(|&b| if b == b'/' { 0 } else { b })
        .collect()
}

/// Returns the path of such a key.
pub(super) fn path_of(key: &[u8]) -> Vec<u8> {
    key.iter().map(|&b| if b == 0 { b'/' } else { b }).collect()
}

/// Whether a key is that of a path below another.
fn is_below(key: &[u8], above: &[u8]) -> bool {
    match key.strip_prefix(above) {
        Some(rest) => rest.first() == Some(&0) || (above.is_empty() && !rest.is_empty()),
        None => false,
    }
}

/// Returns the own path of a whiteout, which engines remove before they make the whiteout. One that is
/// a directory removes no directory.
pub(super) fn removed_by(entry: &Entry, subject: &Subject) -> Option<Vec<u8>> {
    let is_marker = matches!(
        subject,
        Subject::Whiteout(_) | Subject::Opaque(_) | Subject::Note(_)
    );
    let removes = is_marker && entry.kind != EntryKind::Directory;
    clean(&entry.name).filter(|_| removes)
}

/// All entries of a tar, path by path, in the order of [`order`].
pub(super) struct ExpectedEntries<'f> {
    sorted: Sorted<'f>,
    has_opaque: bool,
    /// Whether a file to which another entry is a hard link was replaced.
    replaced: bool,
    /// The next record.
    record: Option<(Vec<u8>, Vec<u8>)>,
    /// Ancestors of the next path that stopped being directories at some entry: their keys, and the
    /// number of that entry.
    cuts: Vec<(Vec<u8>, u64)>,
    /// The same for ancestors that engines may have removed.
    maybe_cuts: Vec<(Vec<u8>, u64)>,
    current: Option<Want>,
    ahead: Option<Want>,
}

impl<'f> ExpectedEntries<'f> {
    /// Reads the headers; also from the second tar-split, which has the same content, if two passes
    /// are needed. Headers that do not fit into memory are written to `file`, and targets of hard
    /// links to `links`: both are overwritten.
    ///
    /// # Errors
    /// Those of the headers; [`Error::Limit`] for more headers than can be compared;
    /// [`Error::Write`] if the files cannot be used.
    pub(super) fn read(
        [first, second]: [impl BufRead; 2],
        file: &'f File,
        links: &'f File,
    ) -> Result<Self> {
        let mut collecting = Collecting::new(file, links);
        split_headers::each(first, |entry| collecting.add(entry))?;
        let has_links = collecting.has_links;
        let mut entries = collecting.finish()?;
        if has_links {
            while entries.current.is_some() {
                entries.advance()?;
            }
            if entries.replaced {
                let mut collecting = Collecting::new(file, links);
                collecting.tree(ExpectedTree::read(second)?)?;
                return collecting.finish();
            }
            entries.again()?;
        }
        Ok(entries)
    }

    /// Starts from the first path again.
    ///
    /// # Errors
    /// Those of reading the file.
    pub(super) fn again(&mut self) -> Result<()> {
        self.sorted.again().map_err(kept)?;
        self.record = self.sorted.next().map_err(kept)?;
        self.cuts.clear();
        self.maybe_cuts.clear();
        self.ahead = self.group()?;
        self.advance()
    }

    /// Whether some directory is opaque.
    pub(super) fn has_opaque(&self) -> bool {
        self.has_opaque
    }

    /// Moves to the next path.
    ///
    /// # Errors
    /// Those of reading the file.
    pub(super) fn advance(&mut self) -> Result<()> {
        let next = self.group()?;
        self.current = std::mem::replace(&mut self.ahead, next);
        Ok(())
    }

    /// Returns the current path; `None` at the end.
    pub(super) fn current(&self) -> Option<&Want> {
        self.current.as_ref()
    }

    /// Whether the tar has a path below that one, which is the current path, or lies between it and
    /// the previous one.
    pub(super) fn has_below(&self, path: &[u8]) -> bool {
        let mut near = self.current.iter().chain(&self.ahead);
        near.any(|want| want.is_below(path))
    }

    /// Collects all records of the next path that the tar has.
    fn group(&mut self) -> Result<Option<Want>> {
        while let Some((key, value)) = self.record.take() {
            self.cuts.retain(|(above, _)| is_below(&key, above));
            let gone = self.cuts.iter().map(|(_, cut)| *cut).max().unwrap_or(0);
            self.maybe_cuts.retain(|(above, _)| is_below(&key, above));
            let maybe_gone = self.maybe_cuts.iter().map(|(_, cut)| *cut).max();
            let mut path = OnePath::new(&key, gone);
            path.maybe_gone = maybe_gone.unwrap_or(0);
            let mut value = Some(value);
            while let Some(record) = value.take() {
                path.take(&record)?;
                match self.sorted.next().map_err(kept)? {
                    Some((next, more)) if next == key => value = Some(more),
                    next => self.record = next,
                }
            }
            self.replaced |= path.replaced;
            if path.maybe_cut > 0 {
                self.maybe_cuts.push((key.clone(), path.maybe_cut));
            }
            if path.cut > 0 {
                self.cuts.push((key, path.cut));
            }
            if path.want.is_named() || path.want.opaque || path.want.maybe_whiteout {
                return Ok(Some(path.want));
            }
        }
        Ok(None)
    }
}

/// The records of one path, in the order of the tar.
struct OnePath {
    want: Want,
    /// Earlier records than this one were removed with a directory above.
    gone: u64,
    /// Paths below whose records are earlier than this one were removed.
    cut: u64,
    /// As `gone` and `cut`, for what engines may have removed.
    maybe_gone: u64,
    maybe_cut: u64,
    /// The first hard link to the path.
    linked: Option<u64>,
    replaced: bool,
}

impl OnePath {
    fn new(key: &[u8], gone: u64) -> Self {
        let want = Want {
            path: path_of(key),
            ..Want::default()
        };
        Self {
            want,
            gone,
            cut: 0,
            maybe_gone: 0,
            maybe_cut: 0,
            linked: None,
            replaced: false,
        }
    }

    fn take(&mut self, value: &[u8]) -> Result<()> {
        let (number, record) = record::number(value)?;
        if record::is_relinked(record) {
            self.linked.get_or_insert(number);
            self.replaced |= self.gone > number;
            return record::take(&mut self.want, record);
        }
        if number < self.gone {
            return Ok(());
        }
        if record == record::MAYBE_GONE_BELOW {
            self.maybe_cut = number;
            return Ok(());
        }
        self.want.maybe_gone = number < self.maybe_gone;
        let was = self.want.node.take();
        record::take(&mut self.want, record)?;
        if !record::is_node(record) {
            self.want.node = was;
            return Ok(());
        }
        self.replaced |= self.linked.is_some();
        let was_symlink = was
            .as_ref()
            .is_some_and(|node| node.kind == EntryKind::Symlink);
        self.want.whiteout |= was.is_some_and(|node| node.is_whiteout());
        let now = self.want.node.as_ref();
        let is_directory = now.is_some_and(|node| node.kind == EntryKind::Directory);
        // A replaced symlink is different: paths placed through it are kept, because such layers
        // are not unpacked.
        if !is_directory && !was_symlink {
            self.cut = number;
            self.want.opaque = false;
        }
        Ok(())
    }
}

/// Sorts headers into the order of paths. If an entry replaces a directory, the earlier entries
/// below that path are removed.
struct Collecting<'f> {
    sorter: ExternalSort<'f>,
    links: LinkTargets<'f>,
    /// The number of records, which gives each one its number.
    count: u64,
    has_opaque: bool,
    has_links: bool,
}

impl<'f> Collecting<'f> {
    fn new(file: &'f File, links: &'f File) -> Self {
        Self {
            sorter: ExternalSort::new(file),
            links: LinkTargets::new(links),
            count: 0,
            has_opaque: false,
            has_links: false,
        }
    }

    fn finish(self) -> Result<ExpectedEntries<'f>> {
        let mut entries = ExpectedEntries {
            has_opaque: self.has_opaque,
            replaced: false,
            sorted: self.sorter.finish().map_err(kept)?,
            record: None,
            cuts: Vec::new(),
            maybe_cuts: Vec::new(),
            current: None,
            ahead: None,
        };
        entries.again()?;
        Ok(entries)
    }

    fn put(&mut self, path: &[u8], value: &[u8]) -> Result<()> {
        self.count += 1;
        let value = record::numbered(self.count, value);
        self.sorter.push(&order(path), &value).map_err(kept)
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        let subject = Subject::of(&entry)?;
        if let Some(path) = removed_by(&entry, &subject) {
            self.put(&path, record::MAYBE_GONE_BELOW)?;
        }
        match subject {
            Subject::Nothing => Ok(()),
            Subject::Opaque(path) => {
                self.has_opaque = true;
                self.put(&path, record::OPAQUE)
            }
            Subject::Whiteout(path) => self.put(&path, record::WHITEOUT),
            Subject::Note(path) => self.put(&path, record::MAYBE_WHITEOUT),
            Subject::File(path) => self.file(&path, entry),
        }
    }

    fn file(&mut self, path: &[u8], entry: Entry) -> Result<()> {
        let mut target = None;
        if entry.kind == EntryKind::HardLink {
            let to = self.links.origin(target_of(&entry)?).map_err(kept)?;
            if to == path {
                // The same link again.
                return Ok(());
            }
            self.links.add(path, &to).map_err(kept)?;
            self.has_links = true;
            self.put(&to, &record::of_relinked(&attributes_of(&entry)))?;
            target = Some(to);
        } else {
            self.links.forget(path);
        }
        self.put(path, &record::of_node(&Node::of(entry, target)?))
    }

    /// Adds the final state after all entries. A path comes before those below it.
    fn tree(&mut self, tree: ExpectedTree) -> Result<()> {
        for (path, entry) in &tree.paths {
            if let Some(node) = &entry.node {
                self.put(path, &record::of_node(node))?;
            }
            if entry.whiteout {
                self.put(path, record::WHITEOUT)?;
            }
            if entry.maybe_whiteout {
                self.put(path, record::MAYBE_WHITEOUT)?;
            }
        }
        for (path, attributes) in &tree.relinked {
            self.put(path, &record::of_relinked(attributes))?;
        }
        for path in &tree.removed {
            self.put(path, record::MAYBE_GONE_BELOW)?;
        }
        for path in &tree.opaque {
            self.has_opaque = true;
            self.put(path, record::OPAQUE)?;
        }
        Ok(())
    }
}

/// Returns the error of a scratch file.
pub(super) fn kept(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::FileTooLarge => Error::Limit {
            what: "bytes of notes about the layer's files",
            limit: external_sort::MOST,
        },
        _ => Error::Write {
            what: "notes in the directory for temporary files",
            source,
        },
    }
}
