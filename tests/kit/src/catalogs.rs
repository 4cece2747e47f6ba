//! Stacks with a catalog, and walks over a union.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use unionfs::catalog::{self, Label, format, view};
use unionfs::layer::{Dialect, LayerSpec, StackSpec};
use unionfs::union::{Caching, Caller, FileKind, Ino, Options, ROOT_INO, Union};
use zerocopy::{FromBytes, IntoBytes};

pub const ROOT: Caller = Caller { uid: 0, gid: 0 };

pub fn stack(lowers: &[PathBuf]) -> StackSpec {
    let spec = |path: &PathBuf| LayerSpec::open(path, Dialect::ALL).unwrap();
    StackSpec {
        lowers: lowers.iter().map(spec).collect(),
        data_only: Vec::new(),
        upper: None,
    }
}

pub fn build(stack: &StackSpec, path: &Path) {
    catalog::build(stack, &Label::default(), path, &mut |_| true).unwrap();
}

pub fn observe(stack: &StackSpec, catalog: &Path) -> Union {
    let options = Options {
        names: Some(catalog::CatalogFile::source(catalog)),
        ..Options::default()
    };
    Union::observe_with(stack, options).unwrap()
}

/// Corrects the checksums in the header of a changed catalog.
pub fn seal(bytes: &mut [u8]) {
    let Ok((mut header, _)) = format::Header::read_from_prefix(bytes) else {
        return;
    };
    let size = size_of::<format::Header>();
    header.file_len = (bytes.len() as u64).into();
    let end = header.header_len.get() as usize;
    let layers = bytes.get(size..end).unwrap_or_default().to_vec();
    header.header_sum = view::header_sum(header, &layers);
    bytes[..size].copy_from_slice(header.as_bytes());
}

/// Looks a path up. Returns its number, which stays counted, and its size; `None` if it is absent.
pub fn find(union: &Union, path: &str) -> Option<(Ino, u64)> {
    let mut here = (ROOT_INO, 0);
    for name in path.split('/') {
        let entry = union.lookup(here.0, name.as_bytes()).unwrap()?;
        let size = entry.attr().size;
        here = (entry.surrender(), size);
    }
    Some(here)
}

pub fn read(union: &Union, ino: Ino, size: u64) -> Result<Vec<u8>, i32> {
    let mut data = vec![0; size as usize];
    let read = union.read(ino, 0, &mut data, Caching::Cached);
    read.map(|n| data[..n].to_vec()).map_err(|e| e.errno())
}

/// Reads everything from a union, for at most `limit` names. Returns the data of its files.
pub fn walk(union: &Union, mut limit: usize) -> BTreeMap<Vec<u8>, Result<Vec<u8>, i32>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(Vec::new(), ROOT_INO)];
    while let Some((path, dir)) = todo.pop() {
        let mut names = Vec::new();
        // A damaged catalog may make a directory unreadable, but may have no other effect.
        let _ = union.readdirplus(dir, 0, &mut |item| {
            names.push(item.name.to_vec());
            names.len() < limit
        });
        names.retain(|name| name != b"." && name != b"..");
        for name in names {
            if limit == 0 {
                return found;
            }
            limit -= 1;
            let Ok(Some(entry)) = union.lookup(dir, &name) else {
                continue;
            };
            let attr = *entry.attr();
            let ino = entry.surrender();
            let _ = union.getattr(ino);
            let _ = union.listxattr(ino, &|| true);
            let _ = union.getxattr(ino, b"user.colour");
            let full = [&path[..], b"/", &name].concat();
            match attr.kind {
                FileKind::Directory => todo.push((full, ino)),
                FileKind::Symlink => drop(union.readlink(ino)),
                FileKind::Regular => {
                    found.insert(full, read(union, ino, attr.size.min(1 << 20)));
                }
                _ => {}
            }
        }
    }
    found
}
