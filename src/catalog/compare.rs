//! Compares a catalog with the layers that it describes, name by name (`unionfs catalog verify`).

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;

use std::sync::Arc;

use rustix::io::Errno;

use super::build::{names, open_layers, parts_without, xattr_flags};
use super::{Mounted, Unusable, format};
use crate::layer::StackSpec;
use crate::layer::at::{At, Stat};
use crate::layer::types::Time;
use crate::lowers::{Layers, LowerDirs, LowerFile, LowerLookup, Lowers as _, OpenError, Visible};
use crate::progress::Progress;

/// A difference between a catalog and its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path in the union, without a leading slash.
    pub path: Vec<u8>,
    /// The property that differs.
    pub what: &'static str,
}

/// Returns up to `limit` names for which the catalog differs from the layers. Access times are not
/// compared. `step` is called for each directory with the number of its names.
///
/// # Errors
/// Those of reading the layers. A catalog that is not used at all is no error here.
pub fn compare(
    stack: &StackSpec,
    path: &Path,
    limit: usize,
    step: &mut dyn FnMut(Progress<'_, ()>),
) -> Result<Result<Vec<Difference>, Unusable>, OpenError> {
    let layers = open_layers(stack)?;
    let catalog = match Mounted::open(path, &layers) {
        Ok(catalog) => catalog,
        Err(unusable) => return Ok(Err(unusable)),
    };
    let mut comparison = Comparison {
        layers: &layers,
        catalog: &catalog,
        found: Vec::new(),
    };
    let mut todo = vec![(Vec::new(), layers.root(), catalog.root())];
    while let Some((path, truth, said)) = todo.pop() {
        if comparison.found.len() >= limit {
            break;
        }
        let count = comparison.directory(&path, &truth, &said, &mut todo);
        step(Progress::Advance { item: (), count });
    }
    comparison.found.truncate(limit);
    Ok(Ok(comparison.found))
}

struct Comparison<'l> {
    layers: &'l Arc<Layers>,
    catalog: &'l Mounted,
    found: Vec<Difference>,
}

type Todo = Vec<(Vec<u8>, LowerDirs, LowerDirs)>;

impl Comparison<'_> {
    fn differ(&mut self, path: Vec<u8>, what: &'static str) {
        self.found.push(Difference { path, what });
    }

    /// Compares the names of a directory, and returns their number.
    fn directory(
        &mut self,
        path: &[u8],
        truth: &LowerDirs,
        said: &LowerDirs,
        todo: &mut Todo,
    ) -> u64 {
        let by_name = |names: Vec<Visible>| -> BTreeMap<_, _> {
            names.into_iter().map(|v| (v.name.clone(), v)).collect()
        };
        // The catalog has no entries either for a directory that cannot be read.
        let Ok(names_of_layers) = names(truth) else {
            return 0;
        };
        let Ok(known) = names(said) else {
            self.differ(path.to_vec(), "the catalog cannot be read");
            return 0;
        };
        let (names, mut known) = (by_name(names_of_layers), by_name(known));
        let count = names.len() as u64;
        for (name, visible) in names {
            let path = if path.is_empty() {
                name.to_vec()
            } else {
                [path, b"/", &name].concat()
            };
            let Some(other) = known.remove(&name) else {
                self.differ(path, "the catalog does not have it");
                continue;
            };
            if (visible.ino, visible.kind) != (other.ino, other.kind) {
                self.differ(path.clone(), "type or inode number");
            }
            let below = truth.lookup(&name, None, parts_without(&visible));
            let said = said.lookup(&name, None, 0);
            self.entry(path, below, said, todo);
        }
        for name in known.into_keys() {
            let path = [path, b"/", &name].concat();
            self.differ(path, "only the catalog has it");
        }
        count
    }

    fn entry(
        &mut self,
        path: Vec<u8>,
        truth: Result<LowerLookup, Errno>,
        said: Result<LowerLookup, Errno>,
        todo: &mut Todo,
    ) {
        match (truth, said) {
            (Ok(LowerLookup::Absent), Ok(LowerLookup::Absent)) | (Err(_), Err(_)) => {}
            (Ok(LowerLookup::File(a)), Ok(LowerLookup::File(b))) => {
                if !same(&a.stat, &b.stat) {
                    self.differ(path, "attributes");
                } else if !self.same_place(&a, &b) {
                    self.differ(path, "where it is, or its data or xattrs");
                }
            }
            (Ok(LowerLookup::Dirs(a)), Ok(LowerLookup::Dirs(b))) => {
                match (a.all(), b.all()) {
                    (Ok(x), Ok(y)) if x.len() == y.len() => {
                        if !x.iter().zip(y).all(|(a, b)| same_dir(a, b)) {
                            self.differ(path.clone(), "attributes");
                        }
                    }
                    _ => self.differ(path.clone(), "the layers it is in"),
                }
                todo.push((path, a, b));
            }
            _ => self.differ(path, "what it is"),
        }
    }

    /// Whether the file in the catalog is that of the layers, with the same data and xattrs.
    fn same_place(&self, truth: &LowerFile, said: &LowerFile) -> bool {
        let at = |file: &LowerFile| {
            let (dir, name) = file.data_place();
            (dir.index, dir.stat.ino, name.to_vec())
        };
        if at(truth) != at(said) {
            return false;
        }
        let Some(id) = said.id else {
            return true;
        };
        let (dir, name) = truth.data_place();
        let Ok(fd) = self.layers.fd(dir) else {
            return false;
        };
        let data = At::new(fd.as_fd(), name).stat();
        let Ok(top) = self.layers.fd(&truth.dir) else {
            return false;
        };
        let flags = xattr_flags(At::new(top.as_fd(), &truth.name));
        data.is_ok_and(|data| self.catalog.record_is(id, &data, flags))
    }
}

fn same_dir(a: &crate::layer::lower::LowerDir, b: &crate::layer::lower::LowerDir) -> bool {
    a.index == b.index
        && same(&a.stat, &b.stat)
        && a.has_xwhiteouts() == b.has_xwhiteouts()
        && a.has_wh_files() == b.has_wh_files()
}

/// Whether two stats are equal except for the access time.
fn same(a: &Stat, b: &Stat) -> bool {
    let without = |stat: &Stat| Stat {
        atime: Time::default(),
        ..*stat
    };
    without(a) == without(b)
}

/// The flags of a record that describe its xattrs.
pub(crate) const XATTR_FLAGS: u16 = format::XATTRS
    | format::USER
    | format::TRUSTED
    | format::CAPABILITY
    | format::ACL
    | format::DEFAULT_ACL;
