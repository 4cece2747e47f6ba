//! Layer tars: into a layer directory with tar-split beside it, and back, byte for byte.
//! Called by the commands that fill a store, by `verify` and by `save`; `pack`, which
//! writes a tar of anything, by `changes`.
//!
//! ```text
//!  tar ──scan──► entries ──place──► files below one directory descriptor
//!        │           └────split──► tar-split lines (names, checksums, all other bytes)
//!        └─hash──► diff ID
//!  tar-split + files ──rebuild──► the same tar
//!  tar-split ──expected──► headers ──compare──► files that are not as they were
//! ```
//! Everything read here is hostile: nothing is created outside of the directory, memory
//! is bounded whatever the stream holds, and what is expanded is bounded by [`Limits`].

mod checksum;
mod compare;
mod error;
mod expected;
mod hash;
mod header;
mod late;
pub mod pack;
mod place;
mod rebuild;
mod scan;
mod seen;
mod sparse;
pub mod split;
mod unpack;
mod whiteout;

pub use compare::Compare;
pub use error::TarError;
pub use rebuild::{Damage, check, rebuild};
pub use unpack::{Limits, Unpacked, unpack};

/// A path within a layer, without empty, `.` and `..` components; empty for the layer's
/// root. `None` for one that leads out of the layer. An absolute path starts at the root.
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
