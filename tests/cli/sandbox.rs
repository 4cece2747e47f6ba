//! What a daemon may still do: seen in /proc, and by what works on its mount.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::support::{Home, can_mount};

const TRANSPORTS: [&str; 2] = ["classic", "auto"];

/// Mounts the home's layers with `options` and gives the daemon's process ID.
fn mounted(home: &Home, options: &str) -> i32 {
    let options = format!("lowerdir=lower,upperdir=upper,workdir=work,{options}");
    home.run(["-o", &options, "mnt"]).ok();
    home.daemon()
}

/// A line of /proc/PID/status.
fn status(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

/// The capabilities by number (linux/capability.h).
fn capabilities(pid: i32, set: &str) -> Vec<u32> {
    let bits = u64::from_str_radix(&status(pid, set), 16).unwrap();
    (0..64).filter(|bit| bits >> bit & 1 == 1).collect()
}

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, SYS_ADMIN, SYS_NICE, MKNOD, SETFCAP.
const KEPT: [u32; 10] = [0, 1, 2, 3, 4, 9, 21, 23, 27, 31];

#[test]
fn a_daemon_keeps_ten_capabilities() {
    if !can_mount() {
        return;
    }
    let home = Home::with_layers();
    let pid = mounted(&home, "");
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(capabilities(pid, set), KEPT, "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(capabilities(pid, set), [0; 0], "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    let mounts = home.json(["ps", "--json"]);
    let sandbox = &mounts[0]["sandbox"];
    assert_eq!(sandbox["no_new_privs"], true);
    assert_eq!(
        sandbox["capabilities"].as_array().unwrap().len(),
        KEPT.len()
    );
    assert_eq!(sandbox["seccomp"], false);
}

#[test]
fn without_a_sandbox_nothing_is_given_up() {
    if !can_mount() {
        return;
    }
    let home = Home::with_layers();
    let pid = mounted(&home, "sandbox=off");
    assert_eq!(
        capabilities(pid, "CapEff"),
        capabilities(std::process::id() as i32, "CapEff")
    );
    assert_eq!(status(pid, "NoNewPrivs"), "0");
}

/// Everything that a program does with files, in a daemon that can reach nothing but its layers.
#[test]
fn strict_leaves_what_a_mount_needs() {
    if !can_mount() {
        return;
    }
    for transport in TRANSPORTS {
        for io in ["auto", "cached"] {
            let home = Home::with_layers();
            let pid = mounted(
                &home,
                &format!("sandbox=strict,transport={transport},io={io}"),
            );
            assert_eq!(status(pid, "Seccomp"), "2");
            assert_eq!(status(pid, "NoNewPrivs"), "1");
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
            assert!(mounts.lines().count() <= 2, "{mounts}");
            let root: Vec<_> = fs::read_dir(format!("/proc/{pid}/root")).unwrap().collect();
            assert_eq!(root.len(), 1, "nothing but proc: {root:?}");

            let at = |name: &str| home.path("mnt").join(name);
            fs::write(at("new"), "new").unwrap();
            fs::set_permissions(at("file"), fs::Permissions::from_mode(0o640)).unwrap();
            fs::write(at("file"), "changed").unwrap();
            fs::create_dir(at("dir")).unwrap();
            fs::rename(at("new"), at("dir/moved")).unwrap();
            fs::hard_link(at("dir/moved"), at("link")).unwrap();
            symlink("link", at("symlink")).unwrap();
            rustix::fs::setxattr(at("link"), "user.a", b"b", rustix::fs::XattrFlags::empty())
                .unwrap();
            std::os::unix::fs::chown(at("link"), Some(1), Some(2)).unwrap();
            let program = at("program");
            fs::copy("/bin/true", &program).unwrap();
            assert!(
                std::process::Command::new(&program)
                    .status()
                    .unwrap()
                    .success()
            );
            let open = fs::File::open(at("link")).unwrap();
            fs::remove_file(at("link")).unwrap();
            fs::remove_file(at("dir/moved")).unwrap();
            assert_eq!(std::io::read_to_string(open).unwrap(), "new");
            fs::remove_dir(at("dir")).unwrap();
            fs::File::open(at("file")).unwrap().sync_all().unwrap();
            rustix::fs::sync();
            let names = fs::read_dir(at("")).unwrap().count();
            assert!(names >= 3, "{names}");
            home.run(["stats", "mnt"]).ok();
            home.run(["umount", "mnt"]).ok();
            assert_eq!(
                fs::read_to_string(home.path("upper/file")).unwrap(),
                "changed"
            );
            assert!(!home.path("upper/link").exists());
        }
    }
}
