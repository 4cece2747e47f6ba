//! The bytes of a catalog, described in docs/CATALOG.md: a header, then tables of records of fixed
//! size, little-endian.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first bytes of every catalog.
pub const MAGIC: [u8; 8] = *b"UNIONCAT";
/// The version of the format; other versions are not read.
pub const VERSION: u32 = 4;
/// A record number that means "none".
pub const NONE: u32 = u32::MAX;

/// Defines the structs of the file, which can be read from any bytes.
macro_rules! records {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
    )*};
}

records! {
    /// The position of a table.
    pub struct Table {
        /// Offset of the first byte in the file.
        pub offset: U64,
        /// Number of records (bytes, for `strings`).
        pub count: U64,
    }

    /// The start of the file.
    pub struct Header {
        /// [`MAGIC`]
        pub magic: [u8; 8],
        /// [`VERSION`]
        pub version: U32,
        /// Length of the header, the table of layers and the notes, all of which `header_sum`
        /// covers.
        pub header_len: U32,
        /// Length of the file in bytes.
        pub file_len: U64,
        /// SHA-256 of the first `header_len` bytes, with this field zero.
        pub header_sum: [u8; 32],
        /// SHA-256 of everything after `header_len`.
        pub body_sum: [u8; 32],
        /// Chain ID of the layers (the bytes of the digest); zero if they have none.
        pub chain: [u8; 32],
        /// The [`LayerRecord`]s, top first, data-only layers last.
        pub layers: Table,
        /// The store's notes about how it found the layers; they end at `header_len`.
        pub notes: Table,
        /// The [`Record`]s; the first is the root.
        pub records: Table,
        /// The [`Dir`]s; the first is the root's.
        pub dirs: Table,
        /// Record numbers ([`U32`]): the parts of directories.
        pub parts: Table,
        /// The [`Class`]es.
        pub classes: Table,
        /// The [`Data`]s.
        pub data: Table,
        /// Names and symlink targets.
        pub strings: Table,
        /// Root of the store that contains the layers: offset in `strings`.
        pub store: U32,
        /// Length of the store's root.
        pub store_len: U32,
        /// The store's driver: offset in `strings`.
        pub driver: U32,
        /// Length of the driver.
        pub driver_len: U32,
    }

    /// Identifies a layer, and shows whether it has been replaced.
    pub struct LayerRecord {
        /// UUID of the file system; zero if it has none.
        pub uuid: [u8; 16],
        /// Inode number of the layer's root directory.
        pub ino: U64,
        /// Change time of the root directory, seconds.
        pub ctime: I64,
        /// Birth time of the root directory, seconds; zero if unknown.
        pub btime: I64,
        /// Nanoseconds of `ctime`.
        pub ctime_nsec: U32,
        /// Nanoseconds of `btime`.
        pub btime_nsec: U32,
        /// The markers that were read: bits of [`dialect_bits`] and [`trust_bits`]; [`DATA_ONLY`].
        pub flags: U32,
        /// Digest of the ID mappings of the user namespace that made the catalog, in which the
        /// owners of files are recorded.
        pub ids: U32,
    }

    /// A file or directory of a layer. The entries of a merged directory are consecutive, in the
    /// order of the bytes of their names.
    pub struct Record {
        /// Inode number in the layer.
        pub ino: U64,
        /// Size in bytes.
        pub size: U64,
        /// Last access, in nanoseconds since 1970, as are all times of a record.
        pub atime: I64,
        /// Last change of data.
        pub mtime: I64,
        /// Last change of the inode.
        pub ctime: I64,
        /// Birth time; valid with [`BORN`].
        pub btime: I64,
        /// Blocks of 512 bytes.
        pub blocks: U32,
        /// Hard links.
        pub nlink: U32,
        /// Number of the [`Class`].
        pub class: U32,
        /// Offset of the name in `strings`.
        pub name: U32,
        /// The directory of the layer that contains it: a smaller record number, or [`NONE`] for
        /// the root of a layer.
        pub parent: U32,
        /// For an entry that is a directory, the number of its [`Dir`]; for a symlink, the offset
        /// of its target in `strings`; for a metacopy, the number of its [`Data`].
        pub aux: U32,
        /// Length of a symlink's target.
        pub target_len: U16,
        /// Length of the name, at most 255.
        pub name_len: U16,
        /// Flags: see the constants.
        pub flags: U16,
        /// Must be zero.
        pub spare: U16,
    }

    /// Attributes that many files share.
    pub struct Class {
        /// Type and permissions; without a type if it is not known.
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

    /// A merged directory. Its subdirectories have higher numbers.
    pub struct Dir {
        /// Number of the first entry's record.
        pub first: U32,
        /// Number of entries.
        pub count: U32,
        /// Offset in `parts` of its directories in the layers, top first.
        pub part: U32,
        /// Number of its directories in the layers.
        pub part_count: U32,
        /// [`UNLISTED`] or 0.
        pub flags: U32,
    }

    /// The data of a metacopy, as it was when the catalog was made.
    pub struct Data {
        /// Inode number of the file.
        pub ino: U64,
        /// Size in bytes.
        pub size: U64,
        /// Last change of data.
        pub mtime: I64,
        /// Last change of the inode.
        pub ctime: I64,
        /// Number of the directory's record.
        pub dir: U32,
        /// Offset of the name in `strings`.
        pub name: U32,
        /// Length of the name.
        pub name_len: U32,
    }
}

/// The record is incomplete: the name must be looked up in the layers.
pub const LIVE: u16 = 1 << 0;
/// The birth time is known.
pub const BORN: u16 = 1 << 1;
/// A metacopy: `aux` is the number of a [`Data`].
pub const METACOPY: u16 = 1 << 2;
/// A directory that may contain whiteouts in the xattr form.
pub const XWHITEOUTS: u16 = 1 << 3;
/// The file has xattrs, or may have some.
pub const XATTRS: u16 = 1 << 4;
/// The file has `user.*` xattrs, or may have some. The following flags have the same meaning for
/// their kind.
pub const USER: u16 = 1 << 5;
/// `trusted.*`
pub const TRUSTED: u16 = 1 << 6;
/// `security.capability`
pub const CAPABILITY: u16 = 1 << 7;
/// `system.posix_acl_access`
pub const ACL: u16 = 1 << 8;
/// `system.posix_acl_default`
pub const DEFAULT_ACL: u16 = 1 << 9;
/// A directory: `aux` is the number of its [`Dir`].
pub const MERGED: u16 = 1 << 10;
/// A directory in which names that begin with `.wh.` are files, in every dialect.
pub const WH_FILES: u16 = 1 << 11;

/// Returns the flag of the kind of xattr that a name belongs to; 0 for kinds without one.
pub(super) fn xattr_flag(name: &[u8]) -> u16 {
    match name {
        b"security.capability" => CAPABILITY,
        b"system.posix_acl_access" => ACL,
        b"system.posix_acl_default" => DEFAULT_ACL,
        name if name.starts_with(b"user.") => USER,
        name if name.starts_with(b"trusted.") => TRUSTED,
        _ => 0,
    }
}

/// Flag of a [`Dir`]: its entries could not be listed and must be read from the layers.
pub const UNLISTED: u32 = 1;

/// Flag of a [`LayerRecord`]: the layer is searched through absolute redirects only.
pub const DATA_ONLY: u32 = 1 << 8;

/// Returns flags for the dialect in which a layer's markers were read.
pub fn dialect_bits(dialect: crate::layer::Dialect) -> u32 {
    u32::from(dialect.trusted)
        | u32::from(dialect.user) << 1
        | u32::from(dialect.fuse_overlayfs) << 2
        | u32::from(dialect.wh_names) << 3
}

/// Returns flags for the markers of a layer that were trusted ([`crate::layer::trust`]). The flags
/// say whether `user.*` markers were ignored although the dialect has them, and whether metacopies
/// were accepted only with their origin.
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
            size_of::<LayerRecord>(),
            size_of::<Record>(),
            size_of::<Class>(),
            size_of::<Dir>(),
            size_of::<Data>(),
        ];
        assert_eq!(sizes, [264, 56, 80, 28, 20, 44]);
    }
}
