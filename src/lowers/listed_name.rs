//! The names of a listing. All names of a directory of a layer are in one allocation, so that a
//! long directory costs neither an allocation nor a free for each name.
//!
//! [`Names`] collects the names of a directory for a [`Gather`], whose bounds it keeps. Then each of
//! them is a [`ListedName`].

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use rustix::io::Errno;

use super::gather::{FoundIn, Gather, LayerEntry, LayerListing, offset_of};

/// A name of a listing, and a reference to the bytes that contain it. It compares as its bytes.
#[derive(Clone)]
pub struct ListedName {
    bytes: Arc<Vec<u8>>,
    span: Span,
}

/// The position of a name in a [`Block`].
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    length: u32,
}

/// The bytes of names, one after the other.
#[derive(Debug, Default)]
struct Block(Vec<u8>);

/// The names of one directory while it is read, each with what the reader knows of it.
#[derive(Debug)]
pub(crate) struct Names<T> {
    block: Block,
    names: Vec<(Span, T)>,
    hides_below: Vec<Box<[u8]>>,
    overflow: Result<(), Errno>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            block: Block::default(),
            names: Vec::new(),
            hides_below: Vec::new(),
            overflow: Ok(()),
        }
    }
}

impl<T> Names<T> {
    /// Adds a name if `gather` wants it.
    pub fn add(&mut self, gather: &mut Gather<'_>, name: &[u8], known: T) {
        if !gather.wants(name) {
            return;
        }
        match self.block.add(name) {
            Ok(span) => self.names.push((span, known)),
            Err(error) => self.overflow = Err(error),
        }
        self.bound(gather);
    }

    /// Adds a name that this directory hides in those below it, if `gather` wants it.
    pub fn hide(&mut self, gather: &mut Gather<'_>, name: &[u8]) {
        if gather.wants(name) {
            self.hides_below.push(name.into());
            self.bound(gather);
        }
    }

    fn bound(&mut self, gather: &mut Gather<'_>) {
        let (block, before) = (&self.block, self.names.len());
        let offset = |hasher: &_, (span, _): &(Span, T)| offset_of(hasher, block.name(*span));
        gather.bound(&mut self.names, offset, &mut self.hides_below);
        if self.names.len() < before {
            self.block.keep(self.names.iter_mut().map(|(span, _)| span));
        }
    }

    /// Returns the listing of the directory. `entry` makes an entry of a name.
    ///
    /// # Errors
    /// EOVERFLOW when all names together have 4 GiB; else those of `entry`.
    pub fn finish(
        self,
        found_in: FoundIn,
        mut entry: impl FnMut(ListedName, T) -> Result<LayerEntry, Errno>,
    ) -> Result<LayerListing, Errno> {
        self.overflow?;
        let name = self.block.finish();
        let mut entries = Vec::with_capacity(self.names.len());
        for (span, known) in self.names {
            entries.push(entry(name(span), known)?);
        }
        Ok(LayerListing {
            found_in,
            entries,
            hides_below: self.hides_below,
        })
    }
}

impl Span {
    fn of<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        let start = self.start as usize;
        bytes
            .get(start..start + self.length as usize)
            .unwrap_or_default()
    }
}

/// Copies names, with the bytes one after the other in their order here, so that reading them in
/// this order does not wait for memory.
pub(crate) fn in_order<'n, T>(
    items: impl ExactSizeIterator<Item = (&'n ListedName, T)>,
) -> impl Iterator<Item = (ListedName, T)> {
    let mut block = Block::default();
    let mut placed = Vec::with_capacity(items.len());
    for (name, item) in items {
        // A name that does not fit stays where it is.
        placed.push((block.add(name).map_err(|_| name.clone()), item));
    }
    let listed = block.finish();
    let name = move |place: Result<Span, _>| place.map_or_else(|name| name, &listed);
    placed
        .into_iter()
        .map(move |(place, item)| (name(place), item))
}

impl Block {
    /// Adds a name.
    ///
    /// # Errors
    /// EOVERFLOW when all names together have 4 GiB.
    fn add(&mut self, name: &[u8]) -> Result<Span, Errno> {
        let end = u32::try_from(self.0.len() + name.len()).map_err(|_| Errno::OVERFLOW)?;
        self.0.extend_from_slice(name);
        // Both are at most `end`.
        let length = name.len() as u32;
        Ok(Span {
            start: end - length,
            length,
        })
    }

    /// Returns a name that was added.
    fn name(&self, span: Span) -> &[u8] {
        span.of(&self.0)
    }

    /// Keeps only the names that `spans` leads to, which are in the order of their addition.
    fn keep<'s>(&mut self, spans: impl Iterator<Item = &'s mut Span>) {
        let mut end = 0;
        for span in spans {
            let (start, length) = (span.start as usize, span.length as usize);
            self.0.copy_within(start..start + length, end);
            span.start = end as u32;
            end += length;
        }
        self.0.truncate(end);
    }

    /// Returns a function from the position of a name to the name.
    fn finish(self) -> impl Fn(Span) -> ListedName {
        let bytes = Arc::new(self.0);
        move |span| ListedName {
            bytes: Arc::clone(&bytes),
            span,
        }
    }
}

impl From<&[u8]> for ListedName {
    fn from(name: &[u8]) -> Self {
        // The kernel's names have at most 1,024 bytes.
        let length = name.len() as u32;
        Self {
            bytes: Arc::new(name.to_vec()),
            span: Span { start: 0, length },
        }
    }
}

impl Deref for ListedName {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.span.of(&self.bytes)
    }
}

impl Borrow<[u8]> for ListedName {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for ListedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self))
    }
}

impl Hash for ListedName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialEq for ListedName {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for ListedName {}

impl PartialOrd for ListedName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ListedName {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_stay_keep_their_bytes() {
        let mut block = Block::default();
        let mut spans: Vec<_> = ["one", "", "three", "four"]
            .map(|name| block.add(name.as_bytes()).unwrap())
            .to_vec();
        spans.remove(2);
        block.keep(spans.iter_mut());
        assert_eq!(block.0, b"onefour");
        spans.push(block.add(b"five").unwrap());
        let name = block.finish();
        let names: Vec<_> = spans.into_iter().map(name).collect();
        assert_eq!(
            names,
            ["one", "", "four", "five"].map(|n| ListedName::from(n.as_bytes()))
        );
    }
}
