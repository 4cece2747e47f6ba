//! Giving up capabilities (capabilities(7)) and `no_new_privs`, for the calling thread and what
//! it starts later. What is given up here cannot be taken back.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Keeps those of `wanted` that are effective now, and no other, in every set. Returns what is
/// kept. The bounding set stays as it is where CAP_SETPCAP is missing: with `no_new_privs` it
/// gives nothing.
///
/// # Errors
/// Those of prctl(2) and capset(2).
pub fn keep_only(wanted: CapabilitySet) -> Result<CapabilitySet, Errno> {
    let have = capabilities(None)?;
    let keep = have.effective & wanted;
    if have.effective.contains(CapabilitySet::SETPCAP) {
        for bit in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            if keep.contains(one) {
                continue;
            }
            match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                // Behind the last one that this kernel knows.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error),
            }
        }
    }
    match clear_ambient_capability_set() {
        // Before Linux 4.3 there is none.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)?;
    Ok(keep)
}

/// No program started from now on gains a right by being set-id or having file capabilities.
///
/// # Errors
/// EINVAL before Linux 3.5.
pub fn set_no_new_privs() -> Result<(), Errno> {
    rustix::thread::set_no_new_privs(true)
}
