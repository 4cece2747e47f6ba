//! The one rule for tests that cannot run: a test says what it needs in a [`need!`](crate::need), and nothing
//! else ends it early. What is missing is printed as `SKIPPED: …`. Where `CI` or `UNIONFS_REQUIRE_ALL` is set
//! it fails the test, unless `UNIONFS_MAY_SKIP` has a word of the reason. `tests/docs/skips.rs` checks that no
//! test returns in another way.

use std::fmt::Display;
use std::io::Write as _;
use std::path::Path;

use rustix::process::geteuid;

/// What a test needs, or the reason why it is not there.
pub type Needed<T = ()> = Result<T, String>;

/// Ends the test unless it has what it needs: gives the value of a [`Needed`], or leaves the function, which
/// returns `()`, by [`skip`].
#[macro_export]
macro_rules! need {
    ($needed:expr) => {
        match $needed {
            Ok(found) => found,
            Err(reason) => return $crate::need::skip(&reason),
        }
    };
}

/// [`need!`] of [`can_mount`]; what the test mounts is in a mount namespace of its own from here on.
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
/// If it must be able to: with `CI` or `UNIONFS_REQUIRE_ALL`, without a word of the reason in
/// `UNIONFS_MAY_SKIP` (words are separated by commas).
pub fn skip(reason: &dyn Display) {
    let reason = reason.to_string();
    let allowed = std::env::var("UNIONFS_MAY_SKIP").unwrap_or_default();
    let mut allowed = allowed.split(',').filter(|word| !word.is_empty());
    assert!(
        !(is_set("CI") || is_set("UNIONFS_REQUIRE_ALL"))
            || allowed.any(|word| reason.contains(word)),
        "cannot run, and with CI or UNIONFS_REQUIRE_ALL every test must: {reason}"
    );
    // Past the output that the test harness holds back while a test passes. Nothing is to be done where it is closed.
    let test = std::thread::current();
    let test = test.name().unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

/// Whether a part of a test can run; if not, it is reported as by [`skip`].
pub fn part(needed: Needed) -> bool {
    needed.as_ref().map_err(|reason| skip(reason)).is_ok()
}

/// The effective user is root.
pub fn is_root() -> Needed {
    if geteuid().is_root() {
        Ok(())
    } else {
        Err("needs root".into())
    }
}

/// `/dev/fuse` can be opened.
pub fn fuse_device() -> Needed {
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    device
        .map(drop)
        .map_err(|error| format!("cannot open /dev/fuse: {error}"))
}

/// Root, and [`fuse_device`].
pub fn can_mount() -> Needed {
    is_root()?;
    fuse_device()
}

/// These programs are in `PATH`, or at their absolute paths.
pub fn has_tools<T: AsRef<Path>>(tools: &[T]) -> Needed {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &&T| std::env::split_paths(&path).any(|dir| dir.join(tool).exists());
    match tools.iter().find(|tool| !has(tool)) {
        Some(tool) => Err(format!("{} is not installed", tool.as_ref().display())),
        None => Ok(()),
    }
}

/// User namespaces can be made.
pub fn has_user_namespaces() -> Needed {
    match std::fs::read_to_string("/proc/sys/user/max_user_namespaces") {
        Ok(most) if most.trim() == "0" => Err("user namespaces are switched off".into()),
        _ => Ok(()),
    }
}

/// The kernel has FUSE over io_uring.
pub fn has_uring() -> Needed {
    match crate::uring::missing() {
        Some(reason) => Err(reason),
        None => Ok(()),
    }
}
