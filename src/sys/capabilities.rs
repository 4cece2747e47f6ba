//! This module gives up capabilities (capabilities(7)) and sets `no_new_privs`, for the calling
//! thread and the threads and processes that it starts later. Nothing that is given up can be taken
//! back.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Keeps the capabilities of `wanted` that are effective now, in every set, and drops all others.
/// Returns the kept ones. Without CAP_SETPCAP the bounding set stays as it is. Under `no_new_privs`
/// it has no effect.
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
                // The number is greater than the last one that this kernel knows.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error),
            }
        }
    }
    match clear_ambient_capability_set() {
        // Linux before 4.3 has no ambient set.
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

/// Sets `no_new_privs`: programs that are started from now on gain no rights from set-id bits or
/// file capabilities.
///
/// # Errors
/// EINVAL before Linux 3.5.
pub fn set_no_new_privs() -> Result<(), Errno> {
    rustix::thread::set_no_new_privs(true)
}
