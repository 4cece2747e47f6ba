//! `unionfs ls`, `cat` and `cp` without a mount: they agree with a mount of the same tree, paths
//! stay inside of the image, and copies follow no symlink of the destination.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::home::Home;
use testkit::need;
use testkit::need::{can_mount, has_tools};
use testkit::tree::{self, Mask};

/// Makes the image `app:1` of a directory with files of all types, and `app:2` with a layer that
/// hides and changes some of them. The changes are also in the layer `work`, which stays.
fn home() -> Home {
    let home = Home::new();
    home.dirs(&["mnt", "in/etc", "in/srv/deep", "in/dev", "in/gone"]);
    let script = r"
        echo old > in/etc/conf; echo motd > in/etc/motd; ln in/etc/motd in/srv/motd
        ln -s /etc/motd in/link; ln -s ../../../../../etc in/srv/deep/etc; ln -s loop in/loop
        ln -s /etc/hostname in/hostname; ln -s /srv/. in/dirlink
        mkfifo in/fifo; touch in/.hidden; mknod in/srv/null c 1 3
        cp /bin/true in/suid; chown 1000:1001 in/suid; chmod 4755 in/suid
        printf 'a\0b' > in/srv/binary; truncate -s 100000 in/srv/sparse
        touch in/gone/a in/gone/b; setfattr -n user.note -v here in/etc/conf
        chmod 1777 in/srv; touch -d @1000000000 in/etc/motd in/etc
        unionfs import -q in app:1
        unionfs mount --name work app:1 mnt
        echo new > mnt/etc/conf; rm mnt/etc/motd; mv mnt/srv/deep mnt/srv/moved || true
        rm -r mnt/gone; mkdir mnt/gone; echo c > mnt/gone/c
        chown 5:6 mnt/srv/binary
        unionfs umount mnt
        unionfs commit -q work app:2";
    home.run_script(script).ok_with_progress();
    home
}

/// Returns the rows of `ls -R --json`, by their paths.
fn listed(home: &Home, name: &str) -> Vec<Value> {
    let rows = home.json(["ls", "-Ra", "--json", name]);
    rows.as_array().unwrap().clone()
}

#[test]
fn what_is_listed_printed_and_copied_is_what_a_mount_shows() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    for (name, mount) in [
        ("app:1", &["mount", "-r", "app:1", "mnt"][..]),
        ("app:2", &["mount", "-r", "app:2", "mnt"]),
        ("work", &["mount", "--name", "work", "mnt"]),
    ] {
        home.run(mount).ok();
        let mounted = tree::list(&home.path("mnt"));
        let rows = listed(&home, name);
        assert_eq!(rows.len() + 1, mounted.len(), "{name}: {rows:#?}");
        for row in &rows {
            let path = row["path"].as_str().unwrap();
            let meta = home
                .path("mnt")
                .join(&path[1..])
                .symlink_metadata()
                .unwrap();
            let shown = (
                u64::from_str_radix(row["mode"].as_str().unwrap(), 8).unwrap(),
                row["uid"].as_u64().unwrap(),
                row["gid"].as_u64().unwrap(),
                row["size"].as_u64().unwrap(),
                row["nlink"].as_u64().unwrap(),
            );
            let there = (
                u64::from(meta.mode() & 0o7777),
                meta.uid().into(),
                meta.gid().into(),
                meta.len(),
                meta.nlink(),
            );
            assert_eq!(shown, there, "{name} {path}");
            assert_eq!(row["mtime"], meta.mtime(), "{name} {path}");
            if meta.is_file() {
                let printed = home
                    .command(testkit::program())
                    .args(["cat", name, path])
                    .output();
                let there = std::fs::read(home.path("mnt").join(&path[1..])).unwrap();
                assert_eq!(printed.unwrap().stdout, there, "{name} {path}");
            }
        }
        let out = home.text("out");
        home.run(["cp", "-a", &format!("{name}:/."), &out]).ok();
        // A link count includes names that only other layers have.
        let mask = Mask {
            nlink: false,
            ..Mask::ALL
        };
        let mut copied = tree::list(Path::new(&out));
        let mut mounted = mounted;
        // The destination itself is a new directory; directories count links of another kind.
        copied.remove(&b""[..]);
        mounted.remove(&b""[..]);
        tree::assert_same(name, &mounted, &copied, &mask);
        home.run(["umount", "mnt"]).ok();
        std::fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn paths_stay_inside_of_the_image() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    // Links to absolute paths and out of the root lead to files of the image.
    assert_eq!(home.run(["cat", "app:1:/link"]).ok(), "motd\n");
    assert_eq!(
        home.run(["cat", "app:1", "/srv/deep/etc/conf"]).ok(),
        "old\n"
    );
    assert_eq!(
        home.run(["cat", "app:1", "../../etc/../etc/conf"]).ok(),
        "old\n"
    );
    assert_eq!(home.run(["ls", "app:1", "/dirlink/deep"]).ok(), "etc\n");
    home.run(["cat", "app:1", "/hostname"])
        .failed(1, &["app:1", "/hostname", "no such file"]);
    home.run(["cat", "app:1:/loop"])
        .failed(1, &["symbolic links"]);
    home.run(["cat", "app:1:/etc/conf/x"])
        .failed(1, &["not a directory"]);
    home.run(["cat", "app:1:/fifo"])
        .failed(1, &["it is a fifo, not a file"]);
    home.run(["cat", "app:1"]).failed(2, &["a path is missing"]);
    home.run(["ls", "none:1"]).failed(1, &["none:1"]);
    home.run(["cp", "in", "out"]).failed(2, &["NAME:/PATH"]);
    // What can be listed is listed, and the failure is told.
    let outcome = home.run(["ls", "app:1", "/nope", "/etc/conf"]);
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(1), "/etc/conf\n")
    );
    let long = home.run(["ls", "-l", "app:1:/link"]).ok();
    assert!(long.starts_with("lrwxrwxrwx 1 0 0 9 "), "{long}");
    assert!(long.ends_with(" /link -> /etc/motd\n"), "{long}");
    let long = home.run(["ls", "-l", "app:1", "/etc"]).ok();
    assert!(
        long.contains("-rw-r--r-- 2 0 0 5 2001-09-09 01:46 motd\n"),
        "{long}"
    );
}

#[test]
fn a_layer_is_named_by_its_digests() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    let layers = home.json(["layers", "--json", "app:2"]);
    let top = &layers.as_array().unwrap()[1];
    let digest = |key: &str| top[key].as_str().unwrap().to_owned();
    let names = |name: &str| home.run(["ls", name, "/etc"]).ok();
    assert_eq!(names(&digest("chain_id")), names("app:2"));
    // The layer alone has no file of the image below.
    let alone = &digest("diff_id")[7..19];
    assert_eq!(names(alone), "conf\n");
    assert_eq!(home.run(["ls", alone]).ok(), "etc\ngone\nsrv\n");
    home.run(["ls", "fffffffffff"]).failed(1, &["fffffffffff"]);
}

/// A destination in which another user has put symlinks in place of the names of the copy.
#[test]
fn a_copy_follows_no_symlink_of_the_destination() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    home.dirs(&["out", "elsewhere"]);
    std::fs::write(home.path("precious"), "precious").unwrap();
    symlink("../elsewhere", home.path("out/etc")).unwrap();
    home.run(["cp", "app:1:/etc", "out"])
        .failed(1, &["/etc", "symlink in place"]);
    assert_eq!(
        std::fs::read_dir(home.path("elsewhere")).unwrap().count(),
        0
    );
    symlink("../precious", home.path("out/conf")).unwrap();
    home.run(["cp", "app:1:/etc/conf", "out"]).ok();
    assert_eq!(std::fs::read(home.path("precious")).unwrap(), b"precious");
    assert_eq!(std::fs::read(home.path("out/conf")).unwrap(), b"old\n");
    assert!(!home.path("out/conf").is_symlink());
    // The same where the link is the destination itself, also one that leads nowhere.
    for (link, to) in [("name", "precious"), ("nowhere", "nothing")] {
        symlink(to, home.path(link)).unwrap();
        home.run(["cp", "app:1:/etc/conf", link]).ok();
        assert_eq!(std::fs::read(home.path(link)).unwrap(), b"old\n");
    }
    assert_eq!(std::fs::read(home.path("precious")).unwrap(), b"precious");
    assert!(!home.path("nothing").exists());
    // Nothing unfinished stays.
    let left = home.run_script("find . -name '.unionfs-*'").ok();
    assert_eq!(left, "");
}

#[test]
fn copies_have_the_names_and_rights_that_docker_cp_gives_them_or_fewer() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    home.dirs(&["out"]);
    // Into a directory, to a name, and only the content.
    home.run(["cp", "app:1:/etc", "out"]).ok();
    home.run(["cp", "app:1:/etc/", "new"]).ok();
    home.run(["cp", "app:1:/etc/.", "out"]).ok();
    for path in ["out/etc/conf", "new/conf", "out/conf"] {
        assert_eq!(std::fs::read(home.path(path)).unwrap(), b"old\n", "{path}");
    }
    home.run(["cp", "app:1:/etc", "out/conf"])
        .failed(1, &["out/conf", "not a directory"]);
    home.run(["cp", "app:1:/suid", "none/"])
        .failed(1, &["none/", "does not exist"]);
    home.run(["cp", "app:1:/suid", "none/suid"])
        .failed(1, &["none/suid"]);
    // A symlink is copied, or with -L what it leads to.
    home.run(["cp", "app:1:/link", "out"]).ok();
    assert_eq!(
        std::fs::read_link(home.path("out/link")).unwrap(),
        Path::new("/etc/motd")
    );
    home.run(["cp", "-L", "app:1:/link", "out"]).ok();
    assert_eq!(std::fs::read(home.path("out/link")).unwrap(), b"motd\n");
    // `import` drops no set-id bit, which without the owner would be the caller's.
    let rights = |path: &str| {
        let meta = home.path(path).symlink_metadata().unwrap();
        (meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777)
    };
    home.run(["cp", "app:1:/suid", "out"]).ok();
    assert_eq!(rights("out/suid"), (0, 0, 0o755));
    home.run(["cp", "-a", "app:1:/suid", "out"]).ok();
    assert_eq!(rights("out/suid"), (1000, 1001, 0o4755));
    let outcome = home.run(["cp", "app:1:/srv", "out"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(
        outcome.stderr.contains("1 sockets and device nodes"),
        "{outcome:?}"
    );
    assert!(!home.path("out/srv/null").exists());
    assert_eq!(rights("out/srv").2, 0o1777);
    let note = home
        .run_script("getfattr --only-values -n user.note out/etc/conf")
        .ok();
    assert_eq!(note, "here");
    // Names of one file stay names of one file.
    home.run(["cp", "app:1:/", "all"]).ok_with_progress();
    let ino = |path: &str| home.path(path).metadata().unwrap().ino();
    assert_eq!(ino("all/etc/motd"), ino("all/srv/motd"));
}

#[test]
fn a_tar_has_the_names_that_docker_cp_gives() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    let names = |source: &str| {
        let mut command = home.command(testkit::program());
        let tar = command.args(["cp", source, "-"]).output().unwrap();
        assert!(tar.status.success(), "{tar:?}");
        std::fs::write(home.path("x.tar"), tar.stdout).unwrap();
        let listed = Command::new("tar")
            .arg("-tf")
            .arg(home.path("x.tar"))
            .output()
            .unwrap();
        String::from_utf8(listed.stdout).unwrap()
    };
    assert_eq!(names("app:1:/etc"), "etc/\netc/conf\netc/motd\n");
    assert_eq!(names("app:1:/etc/."), "./\nconf\nmotd\n");
    assert_eq!(names("app:1:/etc/conf"), "conf\n");
    assert_eq!(names("app:2:/gone"), "gone/\ngone/c\n");
}

/// Where root copies, a symlink of another user decides nothing.
#[test]
fn a_directory_of_another_user_is_refused_where_it_leads_elsewhere() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    home.dirs(&["theirs", "elsewhere"]);
    symlink(home.path("elsewhere"), home.path("theirs/link")).unwrap();
    std::os::unix::fs::chown(home.path("theirs"), Some(1000), Some(1000)).unwrap();
    std::os::unix::fs::lchown(home.path("theirs/link"), Some(1000), Some(1000)).unwrap();
    home.run(["cp", "app:1:/etc/conf", "theirs/link"])
        .failed(1, &["theirs/link"]);
    home.run(["cp", "app:1:/etc/conf", "theirs/link/x"])
        .failed(1, &["theirs/link"]);
    assert_eq!(
        std::fs::read_dir(home.path("elsewhere")).unwrap().count(),
        0
    );
}
