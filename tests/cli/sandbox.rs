//! The rights that a daemon keeps, read from /proc and tested on its mount.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use testkit::home::Home;
use testkit::need::{can_mount, has_tools};
use testkit::{need, program};

const TRANSPORTS: [&str; 3] = ["classic", "auto", "fuser"];

/// Mounts the home's layers with `options` and returns the daemon's process ID.
fn mounted(home: &Home, options: &str) -> i32 {
    let options = format!("lowerdir=lower,upperdir=upper,workdir=work,{options}");
    home.run(["-o", &options, "mnt"]).ok();
    home.daemon()
}

/// Returns a line of /proc/PID/status.
fn status(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

/// Returns the capabilities by number (linux/capability.h).
fn capabilities(pid: i32, set: &str) -> Vec<u32> {
    let bits = u64::from_str_radix(&status(pid, set), 16).unwrap();
    (0..64).filter(|bit| bits >> bit & 1 == 1).collect()
}

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, SYS_ADMIN, SYS_NICE, MKNOD, SETFCAP.
const KEPT: [u32; 10] = [0, 1, 2, 3, 4, 9, 21, 23, 27, 31];

#[test]
fn a_daemon_keeps_ten_capabilities() {
    need!(can_mount());
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
    for part in ["mount_namespace", "private_layers", "seccomp"] {
        assert_eq!(sandbox[part], true, "{part}");
    }
    assert!(
        sandbox["landlock"].as_u64().is_some_and(|abi| abi > 1),
        "{sandbox}"
    );
    let shown = home.run(["stats", "mnt"]).ok();
    for part in ["mount namespace", "private layers", "landlock", "seccomp"] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
}

/// Returns the mounts in which a daemon has descriptors of a directory, by the numbers of
/// mountinfo.
fn mounts_of(pid: i32, dir: &std::path::Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let wanted = fs::metadata(dir).unwrap();
    let mut found = Vec::new();
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let fd = fd.unwrap();
        let Ok(held) = fs::metadata(fd.path()) else {
            continue;
        };
        if (held.dev(), held.ino()) == (wanted.dev(), wanted.ino()) {
            let file = format!("/proc/{pid}/fdinfo/{}", fd.file_name().display());
            let info = fs::read_to_string(file).unwrap();
            let line = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
            found.push(line.unwrap().trim().to_owned());
        }
    }
    found
}

/// No descriptor of a daemon is in a mount of the machine, from which `..` would lead further.
#[test]
fn layers_are_in_mounts_of_their_own() {
    need!(can_mount());
    for options in ["", "noatime", "io=passthrough", "io=cached,sandbox=strict"] {
        let home = Home::with_layers();
        let pid = mounted(&home, options);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let known = |id: &String| table.lines().any(|line| line.split(' ').next() == Some(id));
        for name in ["lower", "upper", "work"] {
            let mounts = mounts_of(pid, &home.path(name));
            assert!(!mounts.is_empty(), "{options}: {name}");
            assert!(!mounts.iter().any(known), "{options}: {name} in {mounts:?}");
        }
        // Rename, link and copy-up go from one directory to the other.
        fs::write(home.path("mnt/file"), "changed").unwrap();
        fs::hard_link(home.path("mnt/file"), home.path("mnt/link")).unwrap();
        assert_eq!(
            fs::read_to_string(home.path("upper/link")).unwrap(),
            "changed"
        );
        assert_eq!(
            fs::read_to_string(home.path("lower/file")).unwrap(),
            "lower\n"
        );
    }
}

/// Upper and work directory are far from each other, and one is below a symlink.
#[test]
fn upper_and_work_are_found_wherever_they_are() {
    need!(can_mount());
    let home = Home::with_layers();
    home.dirs(&["a/b/upper", "c/d/work"]);
    symlink("c/d", home.path("link")).unwrap();
    let options = "lowerdir=lower,upperdir=a/b/upper,workdir=link/work";
    home.run(["-o", options, "mnt"]).ok();
    let mounts = home.json(["ps", "--json"]);
    assert_eq!(mounts[0]["sandbox"]["private_layers"], true, "{mounts}");
    fs::rename(home.path("mnt/file"), home.path("mnt/moved")).unwrap();
    assert_eq!(
        fs::read_to_string(home.path("a/b/upper/moved")).unwrap(),
        "lower\n"
    );
}

/// A daemon with CAP_SYS_ADMIN in a user namespace of its own is confined as well.
#[test]
fn the_owner_of_a_user_namespace_has_all_parts() {
    need!(can_mount());
    need!(has_tools(&["unshare"]));
    let home = Home::with_layers();
    let script = "\"$0\" -o lowerdir=lower,upperdir=upper,workdir=work,sandbox=strict mnt
        echo changed >mnt/file; \"$0\" ps --json; \"$0\" umount mnt";
    let mut command = home.command("unshare");
    command.args(["-Urm", "sh", "-e", "-c", script, program()]);
    let shown = testkit::home::Outcome::from(command.output().unwrap()).ok();
    let mounts: serde_json::Value = serde_json::from_str(&shown).unwrap();
    for part in ["mount_namespace", "private_layers", "seccomp"] {
        assert_eq!(mounts[0]["sandbox"][part], true, "{part}");
    }
    assert_eq!(
        fs::read_to_string(home.path("upper/file")).unwrap(),
        "changed\n"
    );
}

#[test]
fn without_a_sandbox_nothing_is_given_up() {
    need!(can_mount());
    let home = Home::with_layers();
    let pid = mounted(&home, "sandbox=off");
    assert_eq!(
        capabilities(pid, "CapEff"),
        capabilities(std::process::id() as i32, "CapEff")
    );
    assert_eq!(status(pid, "NoNewPrivs"), "0");
}

/// All file operations of programs work with a daemon that can reach only its layers.
#[test]
fn the_cage_leaves_what_a_mount_needs() {
    need!(can_mount());
    for transport in TRANSPORTS {
        for io in ["auto", "cached"] {
            let home = Home::with_layers();
            let pid = mounted(&home, &format!("transport={transport},io={io}"));
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

/// The daemon works in a root directory that is not a mount, and no part of it leads outside.
#[test]
fn a_daemon_in_a_chroot_has_the_whole_sandbox() {
    need!(can_mount());
    need!(has_tools(&["mount", "umount", "chroot", "mknod", "sh"]));
    let home = Home::new();
    home.dirs(&[
        "jail/proc",
        "jail/usr",
        "jail/dev",
        "jail/lower",
        "jail/mnt",
        "jail/run",
    ]);
    let script = "cd jail; for dir in lib lib64; do test -e /$dir && ln -s usr/$dir $dir; done
        mount --rbind /usr usr && mount -t proc none proc && cp $(command -v unionfs) .
        mknod dev/fuse c 10 229; mknod dev/null c 1 3; chmod 666 dev/null; echo text >lower/file
        cd ..; UNIONFS_RUNTIME_DIR=/run chroot jail ./unionfs -o lowerdir=/lower,sandbox=strict /mnt
        cat jail/mnt/file; UNIONFS_RUNTIME_DIR=/run chroot jail ./unionfs umount /mnt";
    let outcome = home.run_script(script);
    let undone =
        home.run_script("umount -l jail/mnt 2>/dev/null || true; umount -l jail/usr jail/proc");
    assert_eq!(outcome.ok(), "text\n");
    undone.ok();
}
