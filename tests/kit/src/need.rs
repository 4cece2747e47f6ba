//! The rule for tests that cannot run: a test states its requirements in a [`need!`](crate::need),
//! and nothing else ends it early. A missing requirement is printed as `SKIPPED: …`. If `CI` or
//! `UNIONFS_REQUIRE_ALL` is set, it fails the test, unless `UNIONFS_MAY_SKIP` contains a word of
//! the reason. `tests/docs/skips.rs` checks that no test returns in another way.

use std::fmt::Display;
use std::io::Write as _;
use std::path::Path;

use rustix::process::geteuid;

/// A requirement of a test, or the reason why it is missing.
pub type Needed<T = ()> = Result<T, String>;

/// Ends the test if a requirement is missing: returns the value of a [`Needed`], or leaves the
/// function, which returns `()`, by [`skip`].
#[macro_export]
macro_rules! need {
    ($needed:expr) => {
        match $needed {
            Ok(found) => found,
            Err(reason) => return $crate::need::skip(&reason),
        }
    };
}

/// Applies [`need!`] to [`can_mount`]. From here on the test mounts in a mount namespace of its
/// own.
#[macro_export]
macro_rules! need_mounts {
    () => {
        $crate::need!($crate::need::can_mount());
        $crate::mount::own_namespace();
    };
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !matches!(value.to_str(), Some("" | "0" | "false")))
}

/// Reports that a test cannot run.
///
/// # Panics
///
/// If the test must be able to run: with `CI` or `UNIONFS_REQUIRE_ALL`, without a word of the
/// reason in `UNIONFS_MAY_SKIP` (words are separated by commas).
pub fn skip(reason: &dyn Display) {
    let reason = reason.to_string();
    let allowed = std::env::var("UNIONFS_MAY_SKIP").unwrap_or_default();
    let mut allowed = allowed.split(',').filter(|word| !word.is_empty());
    assert!(
        !(is_set("CI") || is_set("UNIONFS_REQUIRE_ALL"))
            || allowed.any(|word| reason.contains(word)),
        "cannot run, and with CI or UNIONFS_REQUIRE_ALL every test must: {reason}"
    );
    // The message bypasses the output capture of the test harness, which hides the output of tests
    // that pass. A closed stderr is ignored.
    let test = std::thread::current();
    let test = test.name().unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

/// Whether a part of a test can run. If not, this is reported as by [`skip`].
pub fn part(needed: Needed) -> bool {
    needed.as_ref().map_err(|reason| skip(reason)).is_ok()
}

/// Requires that the effective user is root.
pub fn is_root() -> Needed {
    if geteuid().is_root() {
        Ok(())
    } else {
        Err("needs root".into())
    }
}

/// Requires that `/dev/fuse` can be opened.
pub fn fuse_device() -> Needed {
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    device
        .map(drop)
        .map_err(|error| format!("cannot open /dev/fuse: {error}"))
}

/// Requires root and [`fuse_device`].
pub fn can_mount() -> Needed {
    is_root()?;
    fuse_device()
}

/// Requires these programs in `PATH`, or at their absolute paths.
pub fn has_tools<T: AsRef<Path>>(tools: &[T]) -> Needed {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &&T| std::env::split_paths(&path).any(|dir| dir.join(tool).exists());
    match tools.iter().find(|tool| !has(tool)) {
        Some(tool) => Err(format!("{} is not installed", tool.as_ref().display())),
        None => Ok(()),
    }
}

/// Requires that user namespaces can be created.
pub fn has_user_namespaces() -> Needed {
    match std::fs::read_to_string("/proc/sys/user/max_user_namespaces") {
        Ok(most) if most.trim() == "0" => Err("user namespaces are switched off".into()),
        _ => Ok(()),
    }
}

/// Requires a kernel with FUSE over io_uring.
pub fn has_uring() -> Needed {
    match crate::uring::missing() {
        Some(reason) => Err(reason),
        None => Ok(()),
    }
}
