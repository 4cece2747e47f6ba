//! The bytes of a catalog, as docs/CATALOG.md has them: a header, then tables of records of
//! fixed size, little-endian throughout. Called by `view`, which reads, and `write`.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first bytes of every catalog.
pub const MAGIC: [u8; 8] = *b"UNIONCAT";
/// The version of the format; others are not read.
pub const VERSION: u32 = 3;
/// Stands for "none" where a record is named.
pub const NONE: u32 = u32::MAX;

/// Derives what a record of the file needs.
macro_rules! records {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
    )*};
}

records! {
    /// Where a table is.
    pub struct Table {
        /// First byte, from the start of the file.
        pub offset: U64,
        /// Records in it (bytes, of `strings`).
        pub count: U64,
    }

    /// The start of the file.
    pub struct Header {
        /// [`MAGIC`]
        pub magic: [u8; 8],
        /// [`VERSION`]
        pub version: U32,
        /// Bytes of the header, the table of layers and the notes, which `header_sum` covers.
        pub header_len: U32,
        /// Bytes of the file.
        pub file_len: U64,
        /// SHA-256 of the first `header_len` bytes with zeros in this place.
        pub header_sum: [u8; 32],
        /// SHA-256 of everything behind `header_len`.
        pub body_sum: [u8; 32],
        /// Chain ID of the layers (the digest's bytes); zeros where they have none.
        pub chain: [u8; 32],
        /// [`Layer`]s, top first, data-only ones last.
        pub layers: Table,
        /// Bytes in which a store notes how it found the layers; they end at `header_len`.
        pub notes: Table,
        /// [`Record`]s; the first is the root.
        pub records: Table,
        /// [`Dir`]s; the first is the root's.
        pub dirs: Table,
        /// [`U32`] record numbers, the parts of directories.
        pub parts: Table,
        /// [`Class`]es.
        pub classes: Table,
        /// [`Data`]
        pub data: Table,
        /// Names and symlink targets.
        pub strings: Table,
        /// The root of the store the layers are in, in `strings`.
        pub store: U32,
        /// Its length.
        pub store_len: U32,
        /// The store's driver, in `strings`.
        pub driver: U32,
        /// Its length.
        pub driver_len: U32,
    }

    /// What tells a layer from another, and whether it has been replaced.
    pub struct Layer {
        /// UUID of the file system; zeros where it has none.
        pub uuid: [u8; 16],
        /// Inode number of the layer's root directory.
        pub ino: U64,
        /// Its change time, seconds.
        pub ctime: I64,
        /// Its birth, seconds; zero where unknown.
        pub btime: I64,
        /// Nanoseconds of `ctime`.
        pub ctime_nsec: U32,
        /// Nanoseconds of `btime`.
        pub btime_nsec: U32,
        /// Which markers were read: bits of [`dialect_bits`] and [`trust_bits`]; [`DATA_ONLY`].
        pub flags: U32,
        /// A digest of how the maker's user namespace maps IDs: owners are as he saw them.
        pub ids: U32,
    }

    /// A file or directory of a layer. Those with a name in a merged directory stand
    /// together, in the order of their names' bytes.
    pub struct Record {
        /// Inode number in its layer.
        pub ino: U64,
        /// Bytes.
        pub size: U64,
        /// Last access, nanoseconds since 1970, as all times here.
        pub atime: I64,
        /// Last change of data.
        pub mtime: I64,
        /// Last change of the inode.
        pub ctime: I64,
        /// Birth, where [`BORN`] is set.
        pub btime: I64,
        /// Blocks of 512 bytes.
        pub blocks: U32,
        /// Hard links.
        pub nlink: U32,
        /// Number of its [`Class`].
        pub class: U32,
        /// Where its name starts in `strings`.
        pub name: U32,
        /// The directory it is in, in its layer: number of a record before this one;
        /// [`NONE`] for the root of a layer.
        pub parent: U32,
        /// Of a directory with a name in a merged one: number of its [`Dir`]. Of a symlink:
        /// where its target starts in `strings`. Of a metacopy: number of its [`Data`].
        pub aux: U32,
        /// Length of a symlink's target.
        pub target_len: U16,
        /// Length of the name; at most 255.
        pub name_len: U16,
        /// Flags, below.
        pub flags: U16,
        /// Zero.
        pub spare: U16,
    }

    /// What many files have in common.
    pub struct Class {
        /// Type and permissions; without a type for one that is not known.
        pub mode: U32,
        /// Owner.
        pub uid: U32,
        /// Group.
        pub gid: U32,
        /// Preferred I/O size.
        pub blksize: U32,
        /// Major number of a device node.
        pub major: U32,
        /// Minor number.
        pub minor: U32,
        /// Number of the layer.
        pub layer: U32,
    }

    /// A merged directory. Directories in it have higher numbers.
    pub struct Dir {
        /// Its first entry's record.
        pub first: U32,
        /// How many entries it has.
        pub count: U32,
        /// First of its directories in the layers, in `parts`, top first.
        pub part: U32,
        /// How many.
        pub part_count: U32,
        /// [`UNLISTED`], or 0.
        pub flags: U32,
    }

    /// Where the data of a metacopy is, and what it was when the catalog was made.
    pub struct Data {
        /// Inode number.
        pub ino: U64,
        /// Bytes.
        pub size: U64,
        /// Last change of data.
        pub mtime: I64,
        /// Last change of the inode.
        pub ctime: I64,
        /// The record of its directory.
        pub dir: U32,
        /// Its name, in `strings`.
        pub name: U32,
        /// The name's length.
        pub name_len: U32,
    }
}

/// The layers must be asked: the catalog cannot say it all.
pub const LIVE: u16 = 1 << 0;
/// `btime` is known.
pub const BORN: u16 = 1 << 1;
/// A file whose data is elsewhere: `aux` names a [`Data`].
pub const METACOPY: u16 = 1 << 2;
/// A directory that may hold whiteouts in the xattr form.
pub const XWHITEOUTS: u16 = 1 << 3;
/// It has xattrs of some kind, or that could not be told.
pub const XATTRS: u16 = 1 << 4;
/// It has `user.*`, or that could not be told; so with the others.
pub const USER: u16 = 1 << 5;
/// `trusted.*`
pub const TRUSTED: u16 = 1 << 6;
/// `security.capability`
pub const CAPABILITY: u16 = 1 << 7;
/// `system.posix_acl_access`
pub const ACL: u16 = 1 << 8;
/// `system.posix_acl_default`
pub const DEFAULT_ACL: u16 = 1 << 9;
/// A directory whose [`Dir`] is in `aux`.
pub const MERGED: u16 = 1 << 10;

/// Of a [`Dir`]: its entries could not be listed, the layers must be asked.
pub const UNLISTED: u32 = 1;

/// Of a [`Layer`]: searched through absolute redirects only.
pub const DATA_ONLY: u32 = 1 << 8;

/// The flags that say how a layer's markers are read.
pub fn dialect_bits(dialect: crate::layer::Dialect) -> u32 {
    u32::from(dialect.trusted)
        | u32::from(dialect.user) << 1
        | u32::from(dialect.fuse_overlayfs) << 2
        | u32::from(dialect.wh_names) << 3
}

/// The flags that say whom a layer's markers were believed from ([`crate::layer::trust`]): not
/// those of users, where there can be any; and metacopies only with their origin.
pub fn trust_bits(layer: &crate::layer::lower::Layer) -> u32 {
    let of_users = layer.dialect.user || layer.dialect.fuse_overlayfs;
    u32::from(of_users && !layer.believes_user) << 4 | u32::from(layer.is_foreign) << 5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_sizes_of_the_document() {
        let sizes = [
            size_of::<Header>(),
            size_of::<Layer>(),
            size_of::<Record>(),
            size_of::<Class>(),
            size_of::<Dir>(),
            size_of::<Data>(),
        ];
        assert_eq!(sizes, [264, 56, 80, 28, 20, 44]);
    }
}
