//! Whom a layer's markers are believed from. Anybody may set `user.*` attributes on a file of
//! their own, `trusted.*` ones need CAP_SYS_ADMIN.
//!
//! A redirect and a metacopy make the union show under one name, with its owner and mode, what is
//! somewhere else in the lowers. Whoever may write a layer could so get files shown that they may
//! not read, wherever we have the right to read them and they have not. Kernel overlayfs follows
//! none of `user.*` for this reason; nor do we, but where we have no more rights than the owner of
//! the layer.

use std::sync::OnceLock;

use rustix::thread::CapabilitySet;

use crate::sys::process::in_initial_user_namespace;

/// What this process may do that owners of layers may not. It never changes: what is dropped
/// later makes nobody else's layer more believable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rights {
    /// User ID.
    user: u32,
    /// Reads what permission bits forbid, whosever it is.
    overrides: bool,
    /// Only in a user namespace of its own: whoever made that has all the rights in it.
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
        // root's layers say nothing that root could not.
        self.confined || !self.overrides && (owner == self.user || owner == 0)
    }
}

/// Whether redirects and metacopies in `user.*` are followed in a layer whose root directory
/// belongs to `owner`.
pub fn believes_user_markers(owner: u32) -> bool {
    Rights::known().believe(owner)
}

/// Whether a layer whose root directory belongs to `owner` is that of somebody with less rights.
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
