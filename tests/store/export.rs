//! The output of `docker export` as a listing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use testkit::store::listing::{Entry, Listing};
use unionfs::oci::Digest;

/// Lists the output of `docker export`. It has no entry for the root, whole seconds as times, and
/// of the xattrs only capabilities.
pub(crate) fn of_export(tar: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut links = Vec::new();
    let file = File::open(tar).unwrap();
    for entry in tar::Archive::new(file).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path_bytes().into_owned();
        let name = name.strip_suffix(b"/").unwrap_or(&name).to_vec();
        let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
        let header = entry.header().clone();
        let kind = match header.entry_type() {
            tar::EntryType::Link => {
                links.push((name, target.unwrap()));
                continue;
            }
            tar::EntryType::Regular => libc::S_IFREG,
            tar::EntryType::Directory => libc::S_IFDIR,
            tar::EntryType::Symlink => libc::S_IFLNK,
            tar::EntryType::Fifo => libc::S_IFIFO,
            tar::EntryType::Char => libc::S_IFCHR,
            tar::EntryType::Block => libc::S_IFBLK,
            other => panic!("{other:?}"),
        };
        let mut out = Entry {
            mode: kind | header.mode().unwrap(),
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            mtime: (i64::try_from(header.mtime().unwrap()).unwrap(), 0),
            target: target.filter(|_| kind == libc::S_IFLNK),
            ..Entry::default()
        };
        if matches!(kind, libc::S_IFCHR | libc::S_IFBLK) {
            let major = header.device_major().unwrap().unwrap();
            out.device = Some((major, header.device_minor().unwrap().unwrap()));
        }
        for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
            let extension = extension.unwrap();
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                let value = extension.value_bytes().to_vec();
                out.xattrs.insert(name.to_vec(), value);
            }
        }
        if kind == libc::S_IFREG {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            out.size = bytes.len() as u64;
            out.content = Some(Digest::of(&bytes));
        }
        listing.insert(name, out);
    }
    let mut groups: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for (name, target) in links {
        let group = groups
            .entry(target.clone())
            .or_insert_with(|| [target].into());
        group.insert(name);
    }
    for (first, names) in groups {
        let mut entry = listing[&first].clone();
        entry.names.clone_from(&names);
        listing.extend(names.into_iter().map(|name| (name, entry.clone())));
    }
    listing
}

/// Returns the part of a directory's listing that `docker export` keeps.
pub(crate) fn as_exported(mut listing: Listing) -> Listing {
    listing.remove(&b""[..]);
    for entry in listing.values_mut() {
        entry.mtime.1 = 0;
        entry
            .xattrs
            .retain(|name, _| name == b"security.capability");
    }
    listing
}
