//! Inodes with several names, sorted in a file.

use std::collections::HashMap;
use std::fs::File;

use crate::layer_tar::error::{Error, Result};
use crate::layer_tar::expected_entries::kept;
use crate::layer_tar::external_sort::ExternalSort;

/// The limit of reported inodes that stand for several files of the tar.
const MAX_TWICE: usize = 10_000;

/// The inodes of files that have several names here and entries of their own in the tar.
pub(super) struct Linked<'f> {
    file: &'f File,
    sorter: ExternalSort<'f>,
    failed: Option<Error>,
}

impl<'f> Linked<'f> {
    pub(super) fn new(file: &'f File) -> Self {
        Self {
            file,
            sorter: ExternalSort::new(file),
            failed: None,
        }
    }

    /// Adds an inode. [`Self::check`] returns the error.
    pub(super) fn add(&mut self, inode: u64) {
        if let Err(error) = self.sorter.push(&inode.to_be_bytes(), b"") {
            self.failed = Some(kept(error));
        }
    }

    /// # Errors
    /// The error of adding an inode.
    pub(super) fn check(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Returns the inodes that were added more than once; only some of them if they are many.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn twice(&mut self) -> Result<HashMap<u64, Option<Vec<u8>>>> {
        let all = std::mem::replace(&mut self.sorter, ExternalSort::new(self.file));
        let mut all = all.finish().map_err(kept)?;
        let mut twice = HashMap::new();
        let mut last = None;
        while let Some((inode, _)) = all.next().map_err(kept)? {
            if last.as_ref() == Some(&inode)
                && twice.len() < MAX_TWICE
                && let Ok(inode) = inode.as_slice().try_into()
            {
                twice.insert(u64::from_be_bytes(inode), None);
            }
            last = Some(inode);
        }
        Ok(twice)
    }
}

/// Sizes of files with several names.
pub(super) struct Sizes<'f>(ExternalSort<'f>);

impl<'f> Sizes<'f> {
    pub(super) fn new(file: &'f File) -> Self {
        Self(ExternalSort::new(file))
    }

    /// # Errors
    /// Those of the file.
    pub(super) fn add(&mut self, inode: u64, size: u64) -> Result<()> {
        let added = self.0.push(&inode.to_be_bytes(), &size.to_be_bytes());
        added.map_err(kept)
    }

    /// Returns the sum, in which each inode counts once.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn sum(self) -> Result<u64> {
        let mut all = self.0.finish().map_err(kept)?;
        let (mut sum, mut last) = (0u64, None);
        while let Some((inode, size)) = all.next().map_err(kept)? {
            if last.as_ref() != Some(&inode)
                && let Ok(size) = size.as_slice().try_into()
            {
                sum = sum.saturating_add(u64::from_be_bytes(size));
            }
            last = Some(inode);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_inode_counts_once() {
        let file = tempfile::tempfile().unwrap();
        let mut sizes = Sizes::new(&file);
        for n in 0..1_000_000 {
            sizes.add(n % 7, 10).unwrap();
        }
        assert_eq!(sizes.sum().unwrap(), 70);
    }

    #[test]
    fn those_that_came_twice_are_found() {
        let file = tempfile::tempfile().unwrap();
        let mut linked = Linked::new(&file);
        for n in [5, 7, 300, 5, 300, 9, 5] {
            linked.add(n);
        }
        let mut twice: Vec<u64> = linked.twice().unwrap().into_keys().collect();
        twice.sort_unstable();
        assert_eq!(twice, [5, 300]);
        assert!(linked.twice().unwrap().is_empty());
    }
}
