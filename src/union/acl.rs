//! POSIX ACLs: what a new file inherits from the default ACL of its parent.
//!
//! Files are created outside their parent directory and moved into it, so the kernel does not apply
//! the parent's default ACL; this module computes the same result.
//!
//! The format of the `system.posix_acl_*` xattrs is that of linux/posix_acl_xattr.h, version 2:
//! entries of (tag u16, perm u16, id u32), little-endian. The rules are those of acl(5) and of the
//! kernel's `posix_acl_create()`.

use std::ffi::CStr;

pub(crate) const ACCESS: &CStr = c"system.posix_acl_access";
pub(crate) const DEFAULT: &CStr = c"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 1;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The permissions that a new file inherits from its parent's default ACL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Inherited {
    /// The permission bits.
    pub perm: u32,
    /// The access ACL, unless the permission bits express all of it.
    pub access: Option<Vec<u8>>,
}

/// Applies a default ACL to the mode of a new file. Returns `None` when the ACL is malformed.
pub(crate) fn inherit(default: &[u8], mode: u32) -> Option<Inherited> {
    let (version, entries) = default.split_at_checked(4)?;
    if u32::from_le_bytes(version.try_into().ok()?) != VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let tag = |e: &[u8]| u16::from_le_bytes([e[0], e[1]]);
    let perm = |e: &[u8]| u32::from(u16::from_le_bytes([e[2], e[3]]));
    let has_mask = entries.chunks_exact(8).any(|e| tag(e) == MASK);
    let mut acl = default.to_vec();
    let mut bits = 0;
    for (i, entry) in entries.chunks_exact(8).enumerate() {
        let shift = match tag(entry) {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            OTHER => 0,
            _ => continue,
        };
        let left = perm(entry) & (mode >> shift) & 0o7;
        bits |= left << shift;
        acl[4 + i * 8 + 2..4 + i * 8 + 4].copy_from_slice(&(left as u16).to_le_bytes());
    }
    let plain = entries
        .chunks_exact(8)
        .all(|e| matches!(tag(e), USER_OBJ | GROUP_OBJ | OTHER));
    Some(Inherited {
        perm: mode & 0o7000 | bits,
        access: (!plain).then_some(acl),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(perm.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn minimal_acl_becomes_mode_bits() {
        let default = acl(&[(USER_OBJ, 7, !0), (GROUP_OBJ, 5, !0), (OTHER, 0, !0)]);
        let got = inherit(&default, 0o4666).unwrap();
        assert_eq!(
            got,
            Inherited {
                perm: 0o4640,
                access: None
            }
        );
    }

    #[test]
    fn mask_takes_the_group_bits() {
        let default = acl(&[
            (USER_OBJ, 7, !0),
            (2, 7, 1000),
            (GROUP_OBJ, 7, !0),
            (MASK, 7, !0),
            (OTHER, 5, !0),
        ]);
        let got = inherit(&default, 0o640).unwrap();
        assert_eq!(got.perm, 0o640);
        let access = acl(&[
            (USER_OBJ, 6, !0),
            (2, 7, 1000),
            (GROUP_OBJ, 7, !0),
            (MASK, 4, !0),
            (OTHER, 0, !0),
        ]);
        assert_eq!(got.access, Some(access));
    }

    #[test]
    fn malformed_acls_are_refused() {
        assert_eq!(inherit(&[], 0o644), None);
        assert_eq!(inherit(&[2, 0, 0, 0, 1], 0o644), None);
        assert_eq!(inherit(&[9, 0, 0, 0], 0o644), None);
    }
}
