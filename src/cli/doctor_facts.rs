//! The facts about this system that `unionfs doctor` shows. Each one is read from the kernel or from
//! a file of the system; nothing is changed.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, Mode, OFlags};
use serde::Serialize;

use super::doctor::read;
use unionfs::fuse;

/// A fact about the system.
#[derive(Debug, Serialize)]
pub(super) struct Fact {
    /// The name in JSON.
    pub(super) key: &'static str,
    /// The name for people.
    #[serde(skip)]
    pub(super) name: &'static str,
    pub(super) good: bool,
    pub(super) detail: String,
    /// What to do if it is not good, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

impl Fact {
    fn new(key: &'static str, name: &'static str, good: bool, detail: impl Into<String>) -> Self {
        Self {
            key,
            name,
            good,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn or(mut self, remedy: &str) -> Self {
        if !self.good {
            self.remedy = Some(remedy.to_owned());
        }
        self
    }
}

/// Returns all facts in the order of the output.
pub(super) fn all() -> Vec<Fact> {
    vec![
        device(),
        fusermount(),
        user_allow_other(),
        passthrough(),
        rings(),
        user_namespaces(),
        subordinate_ids(),
        overlay(),
        landlock(),
        seccomp(),
    ]
}

fn device() -> Fact {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = rustix::fs::open("/dev/fuse", flags, Mode::empty());
    let detail = match &opened {
        Ok(_) => "can be opened".to_owned(),
        Err(errno) => errno.to_string(),
    };
    Fact::new("fuse", "/dev/fuse", opened.is_ok(), detail)
        .or("load the module (modprobe fuse); in a container, pass the device (--device /dev/fuse)")
}

fn fusermount() -> Fact {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&dirs).chain([PathBuf::from("/usr/bin")]);
    let found = dirs
        .map(|dir| dir.join("fusermount3"))
        .find(|file| rustix::fs::access(file, Access::EXEC_OK).is_ok());
    let detail = match &found {
        Some(path) => path.display().to_string(),
        None => "not found; only plain users need it".to_owned(),
    };
    Fact::new("fusermount3", "fusermount3", found.is_some(), detail)
        .or("install the package fuse3, for mounts of plain users")
}

fn user_allow_other() -> Fact {
    let config = read("/etc/fuse.conf");
    let allowed = config.lines().any(|line| line.trim() == "user_allow_other");
    let detail = if allowed {
        "plain users may share their mounts"
    } else {
        "mounts of a plain user are for that user only"
    };
    Fact::new("user_allow_other", "user_allow_other", allowed, detail).or(
        "add the line user_allow_other to /etc/fuse.conf, if plain users are to use -o allow_other",
    )
}

/// The version of the running kernel: major, minor.
fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || {
        numbers
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    (next(), next())
}

/// The bit of CAP_SYS_ADMIN.
const SYS_ADMIN: u64 = 1 << 21;

fn is_admin() -> bool {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.unwrap_or(0) & SYS_ADMIN != 0
}

/// Whether this process is in the first user namespace, which has all IDs.
fn is_first_namespace() -> bool {
    let map = read("/proc/self/uid_map");
    let words: Vec<&str> = map.split_whitespace().collect();
    words == ["0", "0", "4294967295"]
}

fn passthrough() -> Fact {
    let (key, name) = ("passthrough", "passthrough");
    if kernel() < (6, 9) {
        return Fact::new(key, name, false, "Linux before 6.9")
            .or("use Linux 6.9 or newer: data of files then goes to the upper without the server");
    }
    let may = is_admin() && is_first_namespace();
    let detail = if may {
        "data of files goes to the upper without the server"
    } else {
        "it needs CAP_SYS_ADMIN in the first user namespace"
    };
    Fact::new(key, name, may, detail)
        .or("mount as root: data is then written several times as fast")
}

fn rings() -> Fact {
    let (key, name) = ("io_uring", "io_uring");
    if kernel() < (6, 14) {
        return Fact::new(key, name, false, "Linux before 6.14")
            .or("use Linux 6.14 or newer: requests are then served over io_uring");
    }
    let forbidden = read("/proc/sys/kernel/io_uring_disabled");
    match forbidden.trim() {
        "2" => {
            return Fact::new(key, name, false, "forbidden by kernel.io_uring_disabled=2")
                .or("sysctl kernel.io_uring_disabled=0");
        }
        "1" if !is_admin() => {
            return Fact::new(
                key,
                name,
                false,
                "only for root (kernel.io_uring_disabled=1)",
            )
            .or("sysctl kernel.io_uring_disabled=0");
        }
        _ => {}
    }
    let offered = fuse::offers_rings();
    let detail = if offered {
        "requests are served over io_uring"
    } else {
        "switched off in the kernel's FUSE"
    };
    Fact::new(key, name, offered, detail)
        .or("echo Y > /sys/module/fuse/parameters/enable_uring (as root, for mounts from then on)")
}

fn user_namespaces() -> Fact {
    let most = read("/proc/sys/user/max_user_namespaces");
    let debian = read("/proc/sys/kernel/unprivileged_userns_clone");
    let apparmor = read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    let (good, detail) = if most.trim() == "0" {
        (false, "user.max_user_namespaces is 0")
    } else if most.is_empty() || !Path::new("/proc/self/ns/user").exists() {
        (false, "the kernel has none")
    } else if debian.trim() == "0" {
        (false, "only for root (kernel.unprivileged_userns_clone=0)")
    } else if apparmor.trim() == "1" {
        (
            false,
            "restricted by AppArmor (kernel.apparmor_restrict_unprivileged_userns=1)",
        )
    } else {
        (true, "plain users may make them")
    };
    Fact::new("user_namespaces", "user namespaces", good, detail).or(
        "allow them by sysctl, for the sandbox of mounts of plain users and for rootless engines",
    )
}

fn subordinate_ids() -> Fact {
    let dirs = [Path::new("/usr/bin"), Path::new("/bin")];
    let has = |tool: &str| dirs.iter().any(|dir| dir.join(tool).exists());
    let uid = rustix::process::getuid().as_raw().to_string();
    let user = std::env::var("USER").unwrap_or_default();
    let listed = |file: &str| {
        read(file).lines().any(|line| {
            let owner = line.split(':').next().unwrap_or_default();
            owner == uid || !user.is_empty() && owner == user
        })
    };
    let tools = has("newuidmap") && has("newgidmap");
    let ids = listed("/etc/subuid") && listed("/etc/subgid");
    let detail = match (tools, ids) {
        (true, true) => "newuidmap, newgidmap, /etc/subuid and /etc/subgid",
        (true, false) => {
            "newuidmap and newgidmap, but no IDs of this user in /etc/subuid and subgid"
        }
        (false, _) => "newuidmap and newgidmap are not installed",
    };
    // Root has all IDs.
    let good = tools && (ids || rustix::process::geteuid().is_root());
    Fact::new("idmap_tools", "newuidmap, subuid", good, detail)
        .or("install uidmap, and add the user by usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, for files of several owners without root")
}

fn overlay() -> Fact {
    let systems = read("/proc/filesystems");
    let has = systems
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"));
    let detail = if has {
        "kernel overlayfs is there; unionfs does not need it"
    } else {
        "no kernel overlayfs; unionfs does not need it"
    };
    Fact::new("overlay", "overlay", has, detail)
}

fn landlock() -> Fact {
    let modules = read("/sys/kernel/security/lsm");
    let has = modules.trim().split(',').any(|module| module == "landlock");
    let (good, detail) = match (has, modules.is_empty()) {
        (true, _) => (true, "servers and commands can open only what they need"),
        // Then the trial tells.
        (false, true) => (true, "not known: /sys/kernel/security is not mounted"),
        (false, false) => (false, "not among the security modules of the kernel"),
    };
    Fact::new("landlock", "Landlock", good, detail)
        .or("start the kernel with lsm=landlock,… for the sandbox of servers and commands")
}

/// Notes that a mount of this process has Landlock, which the list of security modules may not show.
pub(super) fn landlock_is_in_force(facts: &mut [Fact], version: u64) {
    for fact in facts.iter_mut().filter(|fact| fact.key == "landlock") {
        fact.good = true;
        fact.remedy = None;
        fact.detail = format!("version {version}: servers and commands open only what they need");
    }
}

fn seccomp() -> Fact {
    let has = !read("/proc/sys/kernel/seccomp/actions_avail").is_empty();
    let detail = if has {
        "system calls of servers and commands are filtered"
    } else {
        "the kernel filters no system calls"
    };
    Fact::new("seccomp", "seccomp", has, detail)
        .or("use a kernel with CONFIG_SECCOMP_FILTER, for the sandbox of servers and commands")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_has_a_name_and_advice_only_if_it_is_not_good() {
        let facts = all();
        let mut keys: Vec<&str> = facts.iter().map(|fact| fact.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), facts.len());
        for fact in &facts {
            assert!(!fact.detail.is_empty() && fact.name.len() < 18, "{fact:?}");
            assert!(!fact.good || fact.remedy.is_none(), "{fact:?}");
        }
        assert!(kernel() > (4, 0));
    }
}
