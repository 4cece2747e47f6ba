//! Private mounts for the layers of a mount ([`crate::layer::private`]): no `..` leads out of a
//! layer, and a lower cannot be written. Landlock alone is not enough, because it does not restrict
//! chmod(2), chown(2), setxattr(2), utimensat(2) and stat(2).

use std::io;

use rustix::io::Errno;

use super::{Mode, part};
use crate::layer::private::{self, AccessTimes};
use crate::layer::{LayerSpec, StackSpec};

const WHAT: &str = "private mounts of the layers";

/// Replaces the directories of `stack` by private mounts of them. Returns whether all were
/// replaced; if one cannot be, none is. With [`AccessTimes::Never`] the upper gets a mount without
/// access times in every mode, if that is permitted.
///
/// # Errors
/// With [`Mode::Strict`], the reason why private mounts are not possible.
pub fn enclose(mode: Mode, stack: &mut StackSpec, times: AccessTimes) -> io::Result<bool> {
    if mode == Mode::Off {
        if times == AccessTimes::Never {
            enclose_upper(stack, times).unwrap_or_else(|error| {
                tracing::debug!(%error, "the upper is in no mount without access times");
            });
        }
        return Ok(false);
    }
    let enclosed = enclose_all(stack, times);
    Ok(part(mode, WHAT, enclosed)?.is_some())
}

fn enclose_all(stack: &mut StackSpec, times: AccessTimes) -> Result<(), Errno> {
    let all = |specs: &[LayerSpec]| specs.iter().map(private::lower).collect();
    let lowers: Result<Vec<_>, _> = all(&stack.lowers);
    let (lowers, data_only) = (lowers?, all(&stack.data_only)?);
    enclose_upper(stack, times)?;
    (stack.lowers, stack.data_only) = (lowers, data_only);
    Ok(())
}

fn enclose_upper(stack: &mut StackSpec, times: AccessTimes) -> Result<(), Errno> {
    if let Some(upper) = &mut stack.upper {
        *upper = private::upper(upper, times)?;
    }
    Ok(())
}
