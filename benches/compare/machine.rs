//! What the measurements run on: machine, kernel, file systems, versions of all programs.

use std::collections::BTreeMap;
use std::process::Command;

use crate::disk::Disk;
use crate::subjects::{Subject, sh};

/// Returns facts by name, as far as they are known.
pub(crate) fn facts(disk: &Disk, subjects: &[Subject], quick: bool) -> BTreeMap<String, String> {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let system = |script: &str| sh(script, &[]).ok().map(|text| text.trim().to_owned());
    let tree = if quick {
        "a small made tree (--quick)".to_owned()
    } else {
        system(". /etc/os-release; echo \"a root file system of $PRETTY_NAME with gcc, git, Python and Node.js\"")
            .unwrap_or_default()
    };
    let facts = [
        ("date", system("date -u '+%F %H:%M UTC'")),
        ("kernel", system("uname -r")),
        ("kernel build", system("uname -v")),
        ("system", system(". /etc/os-release; echo \"$PRETTY_NAME\"")),
        ("CPU", field("/proc/cpuinfo", "model name")),
        ("CPUs", Some(cpus.to_string())),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("virtual machine", system("systemd-detect-virt --vm")),
        ("disk", Some(disk.describe())),
        ("tree", Some(tree)),
        (
            "each row",
            Some(
                "on a new mount with a new upper, in 4 layers unless its name says otherwise"
                    .into(),
            ),
        ),
        (
            "unionfs",
            first_line("git", &["describe", "--always", "--dirty", "--tags"]),
        ),
        ("Rust", first_line("rustc", &["--version"])),
        ("fio", first_line("fio", &["--version"])),
        ("git", first_line("git", &["--version"])),
        (
            "spinning processes",
            system("cat /proc/sys/kernel/sched_autogroup_enabled")
                .map(|on| format!("sched_autogroup_enabled={on}")),
        ),
        ("tar", first_line("tar", &["--version"])),
        ("cp", first_line("cp", &["--version"])),
        (
            "io_uring of FUSE",
            system("cat /sys/module/fuse/parameters/enable_uring").map(|on| {
                format!("enable_uring={on} before the run; Y during mounts with transport=uring")
            }),
        ),
    ];
    let known = facts
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.filter(|v| !v.is_empty())?)));
    let versions = subjects.iter().filter_map(|subject| {
        let version = subject.version()?;
        Some((subject.name.clone(), version))
    });
    known.chain(versions).collect()
}

fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}

/// Returns the value of the first line `name: value` of a file below /proc.
fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.starts_with(name))?;
    let (_, value) = line.split_once(':')?;
    Some(value.trim().to_owned())
}
