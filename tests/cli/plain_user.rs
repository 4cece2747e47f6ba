//! A plain user's own store, below `$XDG_DATA_HOME`: images are loaded, mounted, changed,
//! committed, saved, checked and removed without root. Operations that need root are refused with a
//! message.

use std::path::Path;

use testkit::home::{Home, Outcome};
use testkit::need::{Needed, can_mount, has_tools};
use testkit::{need, program};

pub(super) const USER: u32 = 65534;

/// Returns a root file system of several owners, with modes that deny reading to the user who loads
/// it.
fn rootfs(with_device: bool) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, mode, data: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(2000);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        tar.append_data(&mut header, name, data.as_bytes()).unwrap();
    };
    add("etc/", tar::EntryType::Directory, 0o555, "");
    add("etc/conf", tar::EntryType::Regular, 0o644, "conf");
    add("etc/shadow", tar::EntryType::Regular, 0, "shadow");
    add("closed/", tar::EntryType::Directory, 0, "");
    add("closed/file", tar::EntryType::Regular, 0o600, "file");
    add("gone", tar::EntryType::Regular, 0o644, "gone");
    if with_device {
        add("dev-null", tar::EntryType::Char, 0o666, "");
    }
    tar.into_inner().unwrap()
}

/// A script for a mount namespace where all users may open /dev/fuse, as is usual.
const SCRIPT: &str = r#"
    mount -t tmpfs none dev && mknod dev/fuse c 10 229 && chmod 666 dev/fuse
    mount --bind dev/fuse /dev/fuse
    exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all sh -e -c "$0"
"#;

/// Runs a script as the user, in a home that the user owns.
pub(super) fn as_user(home: &Home, script: &str) -> Outcome {
    let mut command = home.command("unshare");
    command.args(["-m", "sh", "-e", "-c", SCRIPT, script]);
    command
        .env_remove("UNIONFS_ROOT")
        .env("XDG_DATA_HOME", home.path("data"));
    command.env("HOME", home.path("data"));
    command.output().unwrap().into()
}

pub(super) fn home() -> Needed<Home> {
    let tools = ["setpriv", "unshare", "mount", "fusermount3"];
    can_mount()?;
    has_tools(&tools)?;
    let home = Home::new();
    home.dirs(&["dev", "data", "mnt", "out"]);
    std::fs::remove_dir(home.path("own")).unwrap();
    // The user must be able to reach the program, wherever it was built.
    std::fs::copy(program(), home.path("unionfs")).unwrap();
    for name in ["run", "data", "mnt", "out"] {
        std::os::unix::fs::chown(home.path(name), Some(USER), Some(USER)).unwrap();
    }
    Ok(home)
}

/// Makes an archive of the image `app:1`, by root in a store of its own.
fn archive(home: &Home, to: &str, with_device: bool) {
    std::fs::write(home.path("rootfs.tar"), rootfs(with_device)).unwrap();
    let root = home.text("roots");
    let run = |args: &[&str]| home.run([&["--store", &root, "--root", &root], args].concat());
    run(&["import", "-q", "rootfs.tar", "app:1"]).ok();
    run(&["save", "-q", "-o", to, "app:1"]).ok();
    std::fs::remove_dir_all(home.path("roots")).unwrap();
}

/// A plain user gets all parts of the sandbox that need no mounts.
#[test]
fn the_daemon_of_a_plain_user_is_caged() {
    let home = need!(home());
    let script = "mkdir data/lower data/upper data/work
        ./unionfs -o lowerdir=data/lower,upperdir=data/upper,workdir=data/work mnt
        echo new >mnt/file; mkdir mnt/dir; mv mnt/file mnt/dir/; mv mnt/dir mnt/moved
        cat mnt/moved/file >out/read; ./unionfs ps --json; ./unionfs umount mnt";
    let mounts: serde_json::Value = serde_json::from_str(&as_user(&home, script).ok()).unwrap();
    let sandbox = &mounts[0]["sandbox"];
    for part in ["no_new_privs", "seccomp"] {
        assert_eq!(sandbox[part], true, "{sandbox}");
    }
    assert!(
        sandbox["landlock"].as_u64().is_some_and(|abi| abi > 1),
        "{sandbox}"
    );
    for part in ["mount_namespace", "private_layers"] {
        assert_eq!(sandbox[part], false, "{sandbox}");
    }
    assert_eq!(
        sandbox["capabilities"].as_array().map(Vec::len),
        Some(0),
        "{sandbox}"
    );
    assert_eq!(
        std::fs::read_to_string(home.path("out/read")).unwrap(),
        "new\n"
    );
}

#[test]
fn an_image_goes_all_the_way_without_root() {
    let home = need!(home());
    archive(&home, "app.tar", false);
    let text = as_user(
        &home,
        r"
        ./unionfs load -q -i app.tar
        test -d data/unionfs/overlay2
        ./unionfs verify --all | sed 's/, [^,]* hashed//'
        ./unionfs save -q -o out/again.tar app:1
        ./unionfs mount --name work app:1 mnt
        cat mnt/etc/conf mnt/closed/file
        echo new > mnt/new
        rm mnt/gone
        ./unionfs umount mnt
        ./unionfs diff work
        ./unionfs commit -q work app:2 > out/id
        ./unionfs verify --all | sed 's/, [^,]* hashed//'
        ./unionfs mount -r app:2 mnt
        test ! -e mnt/gone
        cat mnt/new
        ./unionfs rmi app:2 2>&1 | grep -o 'is in use' || true
        ./unionfs umount mnt
        ./unionfs save -q -o out/two.tar app:2
        ./unionfs rm work
        ./unionfs rmi app:1 | head -1
        ./unionfs rmi app:2 | head -1
        ./unionfs prune
        ./unionfs images --json
        ls data/unionfs/overlay2
        ",
    )
    .ok();
    let expected = "Loaded image: app:1\n\
        1 image, 1 layer: no damage\n\
        conffile\
        D /gone\nA /new\n\
        2 images, 2 layers: no damage\n\
        new\nis in use\nwork\nUntagged: app:1\nUntagged: app:2\n0B reclaimed\n[]\nl\n";
    assert_eq!(text, expected);
    // Owners and modes are kept: they are in tar-split, though not on the disk.
    let read = |name: &str| std::fs::read(home.path(name)).unwrap();
    assert!(
        read("app.tar") == read("out/again.tar"),
        "another archive came out"
    );
    // Root gets the owners and modes back.
    home.run(["load", "-q", "-i", "out/two.tar"]).ok();
    home.run(["mount", "-r", "app:2", "mnt"]).ok();
    let owner = |name: &str| {
        use std::os::unix::fs::MetadataExt as _;
        let meta = home.path("mnt").join(name).symlink_metadata().unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(owner("etc/shadow"), (1000, 2000, 0));
    assert_eq!(owner("new"), (USER, USER, 0o644));
    home.run(["umount", "mnt"]).ok();
}

/// The mount shows owners, modes and devices of the image, which are recorded beside the files. Its
/// user may do everything in it, and what he does to owners and modes gets into the next image.
#[test]
fn a_mount_shows_and_keeps_the_owners_of_the_image() {
    let home = need!(home());
    archive(&home, "dev.tar", true);
    as_user(&home, "./unionfs load -q -i dev.tar").ok_with_progress();
    let shown = as_user(
        &home,
        r"
        list() { (cd mnt; stat -c '%n %A %u:%g %t,%T' etc etc/shadow closed closed/file dev-null $*); }
        ./unionfs mount -r app:1 mnt; list; cat mnt/closed/file; ./unionfs umount mnt; echo
        ./unionfs mount --name work app:1 mnt
        echo new > mnt/closed/new; chown 5:6 mnt/closed/new; chmod 4711 mnt/closed/new
        chown 7:8 mnt/etc; chmod 600 mnt/etc/shadow; rm mnt/gone
        list closed/new
        ./unionfs umount mnt
        ./unionfs diff work
        ./unionfs commit -q work app:2 > out/id
        ./unionfs save -q -o out/two.tar app:2
        ./unionfs mount -r app:2 mnt; list closed/new; ./unionfs umount mnt
        ./unionfs mount -r -o owners=mine app:2 mnt; stat -c %u mnt/etc mnt/dev-null
        ./unionfs umount mnt
        ./unionfs verify --all | sed 's/, [^,]* hashed//'
        ",
    )
    .ok();
    let changed = "etc dr-xr-xr-x 7:8 0,0\netc/shadow -rw------- 1000:2000 0,0\n\
        closed d--------- 1000:2000 0,0\nclosed/file -rw------- 1000:2000 0,0\n\
        dev-null crw-rw-rw- 1000:2000 1,3\nclosed/new -rws--x--x 5:6 0,0\n";
    let expected = format!(
        "etc dr-xr-xr-x 1000:2000 0,0\netc/shadow ---------- 1000:2000 0,0\n\
        closed d--------- 1000:2000 0,0\nclosed/file -rw------- 1000:2000 0,0\n\
        dev-null crw-rw-rw- 1000:2000 1,3\nfile\n{changed}\
        C /closed\nA /closed/new\nC /etc\nC /etc/shadow\nD /gone\n{changed}\
        {USER}\n{USER}\n2 images, 2 layers: no damage\n"
    );
    assert_eq!(shown, expected);
    // Root has the same image.
    home.run(["load", "-q", "-i", "out/two.tar"]).ok();
    home.run(["mount", "-r", "app:2", "mnt"]).ok();
    let owner = |name: &str| {
        use std::os::unix::fs::MetadataExt as _;
        let meta = home.path("mnt").join(name).symlink_metadata().unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(owner("closed/new"), (5, 6, 0o4711));
    assert_eq!(owner("etc"), (7, 8, 0o555));
    home.run(["umount", "mnt"]).ok();
}

/// Type and numbers of a device are kept beside an empty file: the saved tar is the same.
#[test]
fn device_nodes_are_kept_beside_a_file() {
    let home = need!(home());
    archive(&home, "dev.tar", true);
    for command in ["load -q -i dev.tar", "import -q rootfs.tar app:1"] {
        let outcome = as_user(&home, &format!("./unionfs {command}"));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(
            outcome
                .stderr
                .contains("1 device node is kept as an empty file"),
            "{outcome:?}"
        );
        let text = as_user(
            &home,
            r"
            ./unionfs verify --all | sed 's/, [^,]* hashed//'
            ./unionfs save -q -o out/again.tar app:1
            getfattr --only-values -n user.containers.override_stat data/unionfs/overlay2/*/diff/dev-null
            ",
        );
        assert_eq!(
            text.stdout,
            "1 image, 1 layer: no damage\n1000:2000:0666:char-1-3"
        );
        if command.starts_with("load") {
            let read = |name: &str| std::fs::read(home.path(name)).unwrap();
            assert!(read("dev.tar") == read("out/again.tar"));
        }
        // Root gets the device back.
        home.run(["load", "-q", "-i", "out/again.tar"]).ok();
        home.run(["mount", "-r", "app:1", "mnt"]).ok();
        let device = home.path("mnt/dev-null").symlink_metadata().unwrap();
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(device.mode(), libc::S_IFCHR | 0o666);
        assert_eq!(device.rdev(), rustix::fs::makedev(1, 3));
        home.run(["umount", "mnt"]).ok();
        // Other device numbers are damage.
        let changed = as_user(
            &home,
            r"
            setfattr -n user.containers.override_stat -v 1000:2000:0666:char-1-5 data/unionfs/overlay2/*/diff/dev-null
            ./unionfs verify --all || true
            ./unionfs rmi app:1
            ",
        );
        assert!(
            changed.stdout.contains("is a file, not a character device"),
            "{changed:?}"
        );
    }
}

/// A user cannot change a store of another user: each command that would do so fails and changes
/// nothing.
#[test]
fn another_users_store_is_not_written_to() {
    let home = need!(home());
    archive(&home, "app.tar", false);
    home.run(["load", "-q", "-i", "app.tar"]).ok();
    let root = home.text("own");
    let before = std::fs::read(home.path("own/image/overlay2/repositories.json")).unwrap();
    for command in [
        "load -q -i app.tar",
        "rmi app:1",
        "prune",
        "tag app:1 mine:1",
    ] {
        let outcome = as_user(&home, &format!("./unionfs --store {root} {command}"));
        assert_eq!(outcome.code, Some(1), "{command}: {outcome:?}");
        assert!(
            outcome.stderr.contains("run as the store's owner"),
            "{command}: {outcome:?}"
        );
    }
    let after = std::fs::read(home.path("own/image/overlay2/repositories.json")).unwrap();
    assert_eq!(before, after);
    assert!(Path::new(&root).join("overlay2").is_dir());
}
