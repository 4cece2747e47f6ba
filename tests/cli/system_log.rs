//! The messages of a daemon in the system log: the test puts a datagram socket at /dev/log in a
//! mount namespace of its own.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use testkit::home::Home;
use testkit::need::can_mount;
use testkit::{need, program};

/// Runs a shell script in a mount namespace whose /dev has a log, with the home's layers; returns
/// the logged lines.
fn logged(home: &Home, script: &str) -> Vec<String> {
    home.dirs(&["dev"]);
    for (name, major, minor) in [("null", 1, 3), ("fuse", 10, 229)] {
        let device = rustix::fs::makedev(major, minor);
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let kind = rustix::fs::FileType::CharacterDevice;
        let at = home.path("dev").join(name);
        rustix::fs::mknodat(rustix::fs::CWD, at, kind, mode, device).unwrap();
    }
    let log = UnixDatagram::bind(home.path("dev/log")).unwrap();
    log.set_nonblocking(true).unwrap();
    let script = format!("mount --bind dev /dev\n{script}");
    let shell = ["--mount", "--propagation=private", "sh", "-euc", &script];
    let done = home
        .command("unshare")
        .args(shell)
        .env("unionfs", program())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let mut lines = Vec::new();
    let mut line = [0; 4096];
    while let Ok(size) = log.recv(&mut line) {
        lines.push(String::from_utf8_lossy(&line[..size]).into_owned());
    }
    lines
}

/// A file that the owner of the upper has exchanged gives ESTALE to the process that holds it open. It is a
/// FIFO, because a regular file would be reached by the descriptor of its data.
const EXCHANGED: &str = "
    \"$unionfs\" -o lowerdir=lower,upperdir=upper,workdir=work mnt
    mkfifo mnt/new
    exec 3<> mnt/new
    rm upper/new
    mkdir upper/new
    ! chmod 600 mnt/new
    exec 3<&-
    \"$unionfs\" umount mnt
";

#[test]
fn a_failed_request_is_logged_with_operation_inode_and_process() {
    need!(can_mount());
    let home = Home::with_layers();
    let lines = logged(&home, EXCHANGED);
    let of_request = lines.iter().find(|line| line.contains("operation=SETATTR"));
    let line = of_request.unwrap_or_else(|| panic!("{lines:#?}"));
    // LOG_DAEMON and LOG_WARNING.
    assert!(line.starts_with("<28>unionfs["), "{line}");
    assert!(line.contains("]: unionfs::fuse"), "{line}");
    let field = |name: &str| -> u32 {
        let value = line.split(&format!(" {name}=")).nth(1).unwrap();
        value.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(field("inode") > 1 && field("pid") > 1, "{line}");
}

#[test]
fn a_daemon_with_a_log_file_leaves_the_systems_log_alone() {
    need!(can_mount());
    let home = Home::with_layers();
    let script = format!("export UNIONFS_LOG=warn\n{EXCHANGED}\ncat run/*.log");
    assert_eq!(logged(&home, &script), [""; 0]);
}

#[test]
fn a_system_without_a_log_mounts_all_the_same() {
    need!(can_mount());
    let home = Home::with_layers();
    let script = format!("rm /dev/log\n{EXCHANGED}");
    assert_eq!(logged(&home, &script), [""; 0]);
    let left = Command::new("findmnt").arg(home.path("mnt")).output();
    assert!(!left.unwrap().status.success());
}
