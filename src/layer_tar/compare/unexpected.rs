//! Finds files in a layer's directory that its tar does not have, and sums up the sizes.

use std::fs::File;
use std::os::fd::AsFd as _;

use rustix::fs::{Dir, OFlags};

use super::Run;
use super::linked::Sizes;
use crate::layer::at::{At, Stat, is_valid_name};
use crate::layer::markers::{WH_OPAQUE, WH_PREFIX};
use crate::layer::types::FileKind;
use crate::layer_tar::error::Error;
use crate::layer_tar::expected::Want;
use crate::layer_tar::expected_entries::{ExpectedEntries, kept, order, path_of};
use crate::layer_tar::external_sort::ExternalSort;
use crate::layer_tar::extractor::open_in;
use crate::layer_tar::spilled_list::SpilledList;

/// The meaning of a name; the number is its code in the file.
#[derive(Clone, Copy, PartialEq)]
enum What {
    Directory = 0,
    Other = 1,
    /// `.wh.X`, at the path of X.
    Whiteout = 2,
    /// `.wh..wh..opq`, at the path of its directory.
    Opaque = 3,
}

/// Sorts all names of the directory by path, in files, and compares them with the tar. Returns the
/// bytes of everything but directories, each inode once.
///
/// # Errors
/// Fails for directories that cannot be listed, and those of the files.
pub(super) fn find(
    run: &mut Run<'_, '_>,
    expected: &mut ExpectedEntries<'_>,
    [names, inodes, directories]: [&File; 3],
) -> Result<u64, Error> {
    let mut walk = Walk {
        sorter: ExternalSort::new(names),
        wh_names: run.compare.dialect.wh_names,
        pending: SpilledList::new(directories),
        sum: 0,
        linked: Sizes::new(inodes),
    };
    walk.all(run)?;
    let sum = walk.sum.saturating_add(walk.linked.sum()?);
    let mut there = walk.sorter.finish().map_err(kept)?;
    while let Some((key, note)) = there.next().map_err(kept)? {
        while let Some(want) = expected.current()
            && order(&want.path) < key
        {
            expected.advance()?;
        }
        let path = path_of(&key);
        let (what, inode) = read(&note);
        let want = expected.current().filter(|want| want.path == path);
        let has = |what: fn(&Want) -> bool| want.is_some_and(what);
        let is_expected = match what {
            // Directories are also made on the way to a path through a symlink.
            What::Directory => {
                want.is_some() || expected.has_below(&path) || !run.elsewhere.is_empty()
            }
            What::Other => has(|want| want.is_named() || want.maybe_whiteout),
            What::Whiteout => has(|want| want.whiteout),
            What::Opaque => has(|want| want.opaque),
        };
        if !is_expected && run.elsewhere.binary_search(&inode).is_err() {
            run.damage(&shown(path, what), "is not in the layer's tar".to_owned());
        }
    }
    Ok(sum)
}

/// Returns the path that the file really has.
fn shown(path: Vec<u8>, what: What) -> Vec<u8> {
    let (above, name) = match what {
        What::Directory | What::Other => return path,
        What::Opaque => (path, WH_OPAQUE.to_vec()),
        What::Whiteout => {
            let slash = path.iter().rposition(|&b| b == b'/');
            let start = slash.map_or(0, |slash| slash + 1);
            let name = [WH_PREFIX, path.get(start..).unwrap_or_default()].concat();
            let above = path.get(..start.saturating_sub(1)).unwrap_or_default();
            (above.to_vec(), name)
        }
    };
    join(&above, &name)
}

fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    match above {
        b"" => name.to_vec(),
        above => [above, name].join(&b'/'),
    }
}

fn note(what: What, inode: u64) -> [u8; 9] {
    let mut note = [what as u8; 9];
    if let Some(number) = note.get_mut(1..) {
        number.copy_from_slice(&inode.to_ne_bytes());
    }
    note
}

fn read(note: &[u8]) -> (What, u64) {
    let what = match note.first() {
        Some(0) => What::Directory,
        Some(2) => What::Whiteout,
        Some(3) => What::Opaque,
        _ => What::Other,
    };
    let number = note.get(1..).and_then(|number| number.try_into().ok());
    (what, number.map_or(0, u64::from_ne_bytes))
}

struct Walk<'f> {
    sorter: ExternalSort<'f>,
    wh_names: bool,
    /// Directories that are not listed yet.
    pending: SpilledList<'f>,
    /// The bytes of files with one name.
    sum: u64,
    linked: Sizes<'f>,
}

impl Walk<'_> {
    fn all(&mut self, run: &Run<'_, '_>) -> Result<(), Error> {
        self.pending.push(b"").map_err(kept)?;
        while let Some(path) = self.pending.pop().map_err(kept)? {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let failed = |errno| Error::place(&path, "list the directory", errno);
            let dir = open_in(run.compare.diff, &path, flags).map_err(failed)?;
            let mut list = Dir::read_from(&dir).map_err(failed)?;
            while let Some(entry) = list.read() {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().to_bytes();
                if is_valid_name(name) {
                    let stat = At::new(dir.as_fd(), name).stat();
                    self.name(&path, name, &stat.map_err(failed)?)?;
                }
            }
        }
        Ok(())
    }

    fn name(&mut self, above: &[u8], name: &[u8], stat: &Stat) -> Result<(), Error> {
        let mut path = join(above, name);
        let mut what = What::Other;
        // A whiteout device hides exactly its own name, even if that is `.wh.x`.
        let wh_names = self.wh_names && !stat.is_chardev_whiteout();
        if stat.kind == FileKind::Directory {
            self.pending.push(&path).map_err(kept)?;
            what = What::Directory;
        } else if wh_names && name == WH_OPAQUE {
            path = above.to_vec();
            what = What::Opaque;
        } else if wh_names
            && let Some(hidden) = name.strip_prefix(WH_PREFIX)
            && is_valid_name(hidden)
        {
            path = join(above, hidden);
            what = What::Whiteout;
        }
        match (what, stat.nlink) {
            (What::Directory, _) => {}
            (_, 1) => self.sum = self.sum.saturating_add(stat.size),
            _ => self.linked.add(stat.ino, stat.size)?,
        }
        let noted = self.sorter.push(&order(&path), &note(what, stat.ino));
        noted.map_err(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_shown_where_they_are() {
        let of = |path: &[u8], what| shown(path.to_vec(), what);
        assert_eq!(of(b"a/b", What::Other), b"a/b");
        assert_eq!(of(b"a/b", What::Whiteout), b"a/.wh.b");
        assert_eq!(of(b"b", What::Whiteout), b".wh.b");
        assert_eq!(of(b"a", What::Opaque), b"a/.wh..wh..opq");
        assert_eq!(of(b"", What::Opaque), b".wh..wh..opq");
    }
}
