//! A union over directories in a scratch place, and short forms of the most frequent calls.

use std::path::{Path, PathBuf};

use unionfs::layer::{Dialect, LayerSpec, OpenDir, StackSpec, UpperSpec};
use unionfs::union::{Caller, EntryRef, Ino, Options, Result, Union};

/// Returns the caller of every operation: the user who runs the test, so that no privilege is
/// needed.
pub(crate) fn caller() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

/// A union and its directories.
pub(crate) struct World {
    pub(crate) union: Union,
    _dir: tempfile::TempDir,
}

fn layer(path: PathBuf) -> LayerSpec {
    LayerSpec::open(path, Dialect::ALL).unwrap()
}

impl World {
    /// Makes the union. `fill` writes the lowers: it gets the number and the directory of each, 0
    /// for the top.
    pub(crate) fn new(lowers: usize, mut fill: impl FnMut(usize, &Path)) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-core.")
            .tempdir()
            .unwrap();
        let make = |name: String| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let paths: Vec<_> = (0..lowers).map(|n| make(format!("l{n}"))).collect();
        for (n, path) in paths.iter().enumerate() {
            fill(n, path);
        }
        let stack = StackSpec {
            lowers: paths.into_iter().map(layer).collect(),
            data_only: Vec::new(),
            upper: Some(UpperSpec {
                layer: layer(make("upper".into())),
                work: OpenDir::open(make("work".into())).unwrap(),
            }),
        };
        let options = Options {
            volatile: true,
            ..Options::default()
        };
        let union = Union::new(&stack, options).unwrap();
        Self { union, _dir: dir }
    }

    /// Returns the number of inodes in the table.
    pub(crate) fn inodes(&self) -> u64 {
        self.union.counters().inodes
    }

    /// Looks a path up from the root and gives the counts of its parents back; returns the held
    /// entry.
    pub(crate) fn resolve(&self, path: &[&str]) -> Result<Option<Held<'_>>> {
        let mut here = None;
        for name in path {
            let parent = here.as_ref().map_or(unionfs::union::ROOT_INO, Held::ino);
            match self.union.lookup(parent, name.as_bytes())? {
                // The parent's count may go back only now.
                Some(entry) => here = Some(Held(entry)),
                None => return Ok(None),
            }
        }
        Ok(here)
    }

    /// Returns the names of a directory without the dots, sorted.
    pub(crate) fn names(&self, dir: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let before = names.len();
            let mut room = 7;
            self.union.readdir(dir, offset, &mut |item| {
                if room == 0 {
                    return false;
                }
                room -= 1;
                offset = item.offset;
                names.push(item.name.to_vec());
                true
            })?;
            if names.len() == before {
                break;
            }
        }
        names.retain(|n| n != b"." && n != b"..");
        names.sort();
        Ok(names)
    }
}

/// A counted entry whose count goes back when dropped.
pub(crate) struct Held<'u>(pub(crate) EntryRef<'u>);

impl Held<'_> {
    pub(crate) fn ino(&self) -> Ino {
        self.0.attr().ino
    }
}
