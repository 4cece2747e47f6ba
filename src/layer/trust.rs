//! Which markers of a layer are trusted. Anybody may set `user.*` xattrs on their own files;
//! `trusted.*` xattrs need CAP_SYS_ADMIN.
//!
//! Redirects and metacopies show a file of the lowers under another name, with the owner and mode
//! of that name. The owner of a layer could so get files shown that they may not read but the
//! server may. Kernel overlayfs follows no redirect or metacopy in `user.*` for this reason. Here
//! they are followed only where the server has no more rights than the owner of the layer.

use std::sync::OnceLock;

use rustix::thread::CapabilitySet;

use crate::sys::process::in_initial_user_namespace;

/// The rights of this process that owners of layers may lack. Determined once: dropping rights
/// later makes no layer more trustworthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rights {
    /// User ID.
    user: u32,
    /// The process may read files regardless of their permission bits.
    overrides: bool,
    /// The process has its rights only in a user namespace of its own, whose owner has them too.
    confined: bool,
}

impl Rights {
    fn of_this_process() -> Self {
        let reading = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        let user = rustix::process::geteuid();
        let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
        Self {
            user: user.as_raw(),
            overrides: user.is_root() || effective.is_ok_and(|set| set.intersects(reading)),
            confined: !in_initial_user_namespace(),
        }
    }

    fn known() -> Self {
        static RIGHTS: OnceLock<Rights> = OnceLock::new();
        *RIGHTS.get_or_init(Self::of_this_process)
    }

    fn believe(self, owner: u32) -> bool {
        // Root's layers contain nothing that root could not read.
        self.confined || !self.overrides && (owner == self.user || owner == 0)
    }
}

/// Whether redirects and metacopies in `user.*` are followed in a layer whose root directory
/// belongs to `owner`.
pub fn believes_user_markers(owner: u32) -> bool {
    Rights::known().believe(owner)
}

/// Whether a layer whose root directory belongs to `owner` is that of a user with fewer rights.
pub fn is_foreign(owner: u32) -> bool {
    let rights = Rights::known();
    !rights.confined && owner != rights.user && owner != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_more_rights_than_the_owner_believes_nothing() {
        let rights = |user, overrides, confined| Rights {
            user,
            overrides,
            confined,
        };
        for owner in [0, 1000, 1001] {
            assert!(!rights(0, true, false).believe(owner));
            assert!(!rights(1000, true, false).believe(owner));
            assert!(rights(0, true, true).believe(owner));
        }
        assert!(rights(1000, false, false).believe(1000));
        assert!(rights(1000, false, false).believe(0));
        assert!(!rights(1000, false, false).believe(1001));
    }
}
