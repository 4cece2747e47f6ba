//! Layer tars: unpacks one into a layer directory with tar-split beside it, and rebuilds the same
//! bytes from both. `tar_writer` writes a tar of any tree.
//!
//! ```text
//!  tar ──tar_reader──► entries ──extractor──► files below one directory descriptor
//!        │               └──────tar_split──► tar-split lines (names, checksums, all other bytes)
//!        └─hash──► diff ID
//!  tar-split + files ──rebuild──► the same tar
//!  tar-split ──expected_entries──► headers in the order of paths ──compare──► damaged files
//! ```
//! All input is hostile: nothing is created outside of the directory, memory is bounded for every
//! stream, and [`Limits`] bounds the size of what is expanded.
//!
//! ```
//! use std::os::fd::AsFd as _;
//! use unionfs::layer::Dialect;
//! use unionfs::layer_tar::{Limits, rebuild, unpack};
//! use unionfs::oci::Digest;
//!
//! // The shortest tar: two empty blocks.
//! let tar = [0; 1024];
//! let dir = tempfile::tempdir()?;
//! let diff = std::fs::File::open(dir.path())?;
//! let mut split = Vec::new();
//! let limits = Limits::default();
//! let unpacked = unpack(&tar[..], diff.as_fd(), Dialect::ALL, &mut split, &limits)?;
//! assert_eq!((unpacked.diff_id, unpacked.entries), (Digest::of(&tar), 0));
//!
//! let mut again = Vec::new();
//! assert_eq!(rebuild(&split[..], diff.as_fd(), &mut again)?, unpacked.diff_id);
//! assert_eq!(again, tar);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checksum;
mod compare;
pub(crate) mod compression;
mod device_stand_in;
mod directory_metadata;
mod error;
mod expected;
mod expected_entries;
mod expected_record;
mod expected_tree;
mod external_sort;
mod extractor;
mod hash;
mod header;
pub(crate) mod layer_files;
mod link_targets;
mod path_set;
mod rebuild;
mod sparse;
mod spilled_list;
mod split_headers;
mod tar_reader;
pub mod tar_split;
pub mod tar_writer;
mod unpack;
mod whiteout;
#[cfg(feature = "registry")]
pub(crate) mod zstd_chunked;

pub use compare::{Compare, RootDirectory};
pub use error::{Error, Result};
pub use rebuild::{Cause, Damage, check, rebuild};
pub(crate) use rebuild::{check_from, rebuild_from};
pub use unpack::{Limits, Unpacked, unpack, write_split};

/// Returns a path within a layer, without empty, `.` and `..` components; empty for the layer's
/// root. `None` if it leads out of the layer. An absolute path starts at the root.
pub(crate) fn clean(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn paths_stay_within_the_layer() {
        let cases: [(&[u8], Option<&[u8]>); 8] = [
            (b"./a//b/", Some(b"a/b")),
            (b"/etc/x", Some(b"etc/x")),
            (b"", Some(b"")),
            (b"./", Some(b"")),
            (b"a/../b", Some(b"b")),
            (b"..", None),
            (b"a/../../b", None),
            (b"/../x", None),
        ];
        for (name, expected) in cases {
            assert_eq!(clean(name).as_deref(), expected, "{name:?}");
        }
    }
}
