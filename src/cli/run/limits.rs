//! The limits of a container, as they are written on the command line, and the cgroup that a plain
//! user may make for them.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::Access;

use super::Container;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
/// Where cgroups are mounted.
const MOUNTED: &str = "/sys/fs/cgroup";

impl Container {
    /// Returns the controllers that the limits need.
    fn controllers(&self) -> Vec<&'static str> {
        let all = [
            ("memory", self.memory.is_some()),
            ("pids", self.pids.is_some()),
            ("cpu", self.cpus.is_some()),
        ];
        let needed = all.into_iter().filter(|(_, is_needed)| *is_needed);
        needed.map(|(name, _)| name).collect()
    }

    /// Returns the path of a cgroup with this name that a plain user's runtime can make: in the
    /// nearest cgroup above this process that was delegated to the user and has the controllers. The
    /// cgroup of this process itself cannot have children with limits, because it has a process.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn delegated_cgroup(&self, name: &str) -> anyhow::Result<PathBuf> {
        let needed = self.controllers();
        let missing = || {
            format!(
                "no cgroup (version 2) with {} was delegated to this user: run the command in \
                 systemd-run --user --scope, or leave out the limits",
                needed.join(", ")
            )
        };
        let is_unified =
            rustix::fs::statfs(MOUNTED).is_ok_and(|found| found.f_type as u64 == CGROUP2);
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = text.lines().find_map(|line| line.strip_prefix("0::"));
        let own = own.filter(|_| is_unified).with_context(missing)?;
        let mut above = Path::new(own).ancestors().skip(1);
        let found = above.find(|path| is_delegated(&in_mount(path), &needed));
        Ok(found.with_context(missing)?.join(name))
    }
}

fn in_mount(cgroup: &Path) -> PathBuf {
    Path::new(MOUNTED).join(cgroup.strip_prefix("/").unwrap_or(cgroup))
}

/// Whether this user may make cgroups in a directory and move processes there, and its children have
/// these controllers.
fn is_delegated(dir: &Path, needed: &[&str]) -> bool {
    let may_write = |path: &Path| rustix::fs::access(path, Access::WRITE_OK).is_ok();
    let given = std::fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    let has = |name: &&str| given.split_whitespace().any(|given| given == *name);
    may_write(dir) && may_write(&dir.join("cgroup.procs")) && needed.iter().all(has)
}

/// Reads a number of bytes with the units of engines (b, k, m, g: powers of 1024).
pub(super) fn memory(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let (number, unit) = match lower.char_indices().next_back() {
        Some((at, 'b')) => (&lower[..at], 1),
        Some((at, 'k')) => (&lower[..at], 1 << 10),
        Some((at, 'm')) => (&lower[..at], 1 << 20),
        Some((at, 'g')) => (&lower[..at], 1 << 30),
        _ => (lower.as_str(), 1),
    };
    let bytes = number.parse().ok().filter(|number: &i64| *number > 0);
    let bytes = bytes.and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| "give a number of bytes above 0, such as 512m or 2g".into())
}

/// Reads a number of processes.
pub(super) fn processes(text: &str) -> Result<i64, String> {
    let number = text.parse().ok().filter(|number: &i64| *number > 0);
    number.ok_or_else(|| "give a number above 0".into())
}

/// Reads a number of processors.
pub(super) fn processors(text: &str) -> Result<f64, String> {
    // The kernel gives at least a millisecond of each period, which is a tenth of a second.
    let number = text.parse().ok();
    let number = number.filter(|number: &f64| (0.01..=1_000_000.0).contains(number));
    number.ok_or_else(|| "give a number of processors, at least 0.01, such as 1.5".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        assert_eq!(memory("1000"), Ok(1000));
        assert_eq!(memory("512m"), Ok(512 << 20));
        assert_eq!(memory("2G"), Ok(2 << 30));
        assert_eq!(memory("7b"), Ok(7));
        for wrong in [
            "",
            "m",
            "0",
            "-1",
            "1t",
            "1.5g",
            "9223372036854775807k",
            "\u{e9}",
        ] {
            assert!(memory(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(processes("20"), Ok(20));
        for wrong in ["", "0", "-1", "x"] {
            assert!(processes(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(processors("0.5"), Ok(0.5));
        for wrong in ["", "0", "-1", "nan", "inf", "0.001"] {
            assert!(processors(wrong).is_err(), "{wrong:?}");
        }
    }
}
