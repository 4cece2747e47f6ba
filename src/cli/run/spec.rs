//! `config.json` of a container (OCI runtime specification 1.0, config.md and config-linux.md).

use std::path::Path;

use rustix::fs::FileType;
use serde_json::{Value, json};

use super::seccomp::{self, OfOtherUsers};
use super::{Container, Network, Rights, Terminal, apt};

/// What root of a container may do, as in podman: enough to install packages and serve a port, and no
/// device nodes.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Files of the kernel that say or change something of the whole machine.
pub(super) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Files of the kernel that can only be read.
pub(super) const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Files of this machine that a container with its network needs.
pub(super) const OF_NETWORK: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Returns the configuration.
pub(super) fn of(
    container: &Container,
    rights: Rights,
    rootfs: &Path,
    others: OfOtherUsers,
    listener: Option<&Path>,
) -> Value {
    let wanted = &container.wanted;
    let held: &[&str] = if wanted.uid == 0 { &CAPABILITIES } else { &[] };
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": container.terminal == Terminal::Given,
            "user": {
                "uid": wanted.uid,
                "gid": wanted.gid,
                "additionalGids": groups(container, rights),
            },
            "args": container.settings.arguments,
            "env": container.settings.environment,
            "cwd": container.settings.directory,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": held,
                "permitted": held,
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs, "readonly": container.read_only},
        "hostname": container.hostname,
        "mounts": mounts(container, rights, rootfs),
        "linux": {
            "namespaces": namespaces(container, rights),
            "uidMappings": mapping(rights, wanted.uid, |uid, _| uid),
            "gidMappings": mapping(rights, wanted.gid, |_, gid| gid),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "resources": resources(container, rights),
            "seccomp": seccomp::filter(others, listener),
        },
    })
}

/// A plain user cannot give the command other groups.
fn groups(container: &Container, rights: Rights) -> &[u32] {
    match rights {
        Rights::Root => &container.wanted.groups,
        Rights::User { .. } => &[],
    }
}

/// The user of the container is the user of this process.
fn mapping(rights: Rights, inside: u32, outside: impl Fn(u32, u32) -> u32) -> Value {
    match rights {
        Rights::Root => json!([]),
        Rights::User { uid, gid } => {
            json!([{"containerID": inside, "hostID": outside(uid, gid), "size": 1}])
        }
    }
}

fn namespaces(container: &Container, rights: Rights) -> Vec<Value> {
    let mut kinds = vec!["mount", "pid", "ipc", "uts"];
    if container.network == Network::None {
        kinds.push("network");
    }
    if rights != Rights::Root {
        kinds.push("user");
    }
    kinds.iter().map(|kind| json!({"type": kind})).collect()
}

fn mounts(container: &Container, rights: Rights, rootfs: &Path) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let quiet = ["nosuid", "noexec", "nodev"];
    let mut terminals = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    if rights == Rights::Root {
        terminals.push("gid=5");
    }
    let shared = [&quiet[..], &["mode=1777", "size=65536k"]].concat();
    let mut all = vec![
        mount("/proc", "proc", &quiet),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount("/dev/pts", "devpts", &terminals),
        mount("/dev/shm", "tmpfs", &shared),
        mount("/dev/mqueue", "mqueue", &quiet),
    ];
    // Who does not own the network namespace may not mount a sysfs.
    let mut sys = if rights == Rights::Root || container.network == Network::None {
        mount("/sys", "sysfs", &quiet)
    } else {
        let mut bind = mount(
            "/sys",
            "bind",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev"],
        );
        bind["source"] = json!("/sys");
        bind
    };
    if let Some(options) = sys["options"].as_array_mut() {
        options.push(json!("ro"));
    }
    all.push(sys);
    let bind = |source: &Path, target: &str, options: &[&str]| json!({"destination": target, "type": "bind", "source": source, "options": options});
    if container.network == Network::Host {
        for file in OF_NETWORK {
            // The runtime would make a file that is missing, which is a change of the image.
            if Path::new(file).is_file() && is_file_in(rootfs, file) {
                let options = ["bind", "rprivate", "nosuid", "noexec", "nodev", "ro"];
                all.push(bind(Path::new(file), file, &options));
            }
        }
    }
    if container.tells_apt {
        let options = ["bind", "rprivate", "nosuid", "noexec", "nodev", "ro"];
        let source = rootfs.with_file_name(apt::FILE);
        all.push(bind(&source, apt::PLACE, &options));
    }
    for volume in &container.volumes {
        let how = if volume.read_only { "ro" } else { "rw" };
        let deep = if volume.kind == FileType::Directory {
            "rbind"
        } else {
            "bind"
        };
        all.push(bind(
            &volume.source,
            &volume.target,
            &[deep, "rprivate", how],
        ));
    }
    all
}

/// Whether the root file system has this file, without a symlink.
pub(super) fn is_file_in(rootfs: &Path, file: &str) -> bool {
    let path = rootfs.join(file.trim_start_matches('/'));
    let is_directory = path
        .parent()
        .and_then(|dir| dir.symlink_metadata().ok())
        .is_some_and(|dir| dir.is_dir());
    is_directory && path.symlink_metadata().is_ok_and(|file| file.is_file())
}

fn resources(container: &Container, rights: Rights) -> Value {
    let mut resources = json!({});
    if rights == Rights::Root && container.has_limits() {
        // Beside these, a runtime allows the devices that it makes.
        resources["devices"] = json!([{"allow": false, "access": "rwm"}]);
    }
    if let Some(limit) = container.memory {
        resources["memory"] = json!({"limit": limit});
    }
    if let Some(limit) = container.pids {
        resources["pids"] = json!({"limit": limit});
    }
    if let Some(cpus) = container.cpus {
        let period = 100_000_u32;
        let quota = (cpus * f64::from(period)) as i64;
        resources["cpu"] = json!({"period": period, "quota": quota});
    }
    resources
}
