//! Images in archives and layouts, given by skopeo's names to every command that takes an image.

use std::fs;
use std::process::Stdio;

use testkit::home::Home;
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};

use crate::engines::shell;

/// Returns a home with the images `one:1` and `two:1`, and both in archives and layouts that skopeo
/// wrote.
fn home() -> Needed<Home> {
    can_mount()?;
    has_tools(&["skopeo"])?;
    let home = Home::new();
    home.dirs(&["mnt", "one/etc", "two/etc"]);
    fs::write(home.path("one/etc/name"), "one").unwrap();
    fs::write(home.path("two/etc/name"), "two").unwrap();
    let maker = home.text("maker");
    for name in ["one", "two"] {
        home.run([
            "--store",
            &maker,
            "import",
            "-q",
            name,
            &format!("{name}:1"),
        ])
        .ok();
        let (archive, image) = (format!("{name}.tar"), format!("{name}:1"));
        home.run(["--root", &maker, "save", "-q", "-o", &archive, &image])
            .ok();
    }
    home.run([
        "--root", &maker, "save", "-q", "-o", "both.tar", "one:1", "two:1",
    ])
    .ok();
    shell(
        &home,
        "skopeo copy -q docker-archive:one.tar oci:layout:v1
        skopeo copy -q docker-archive:two.tar oci:layout:v2
        skopeo copy -q docker-archive:two.tar oci-archive:two-oci.tar:x
        skopeo copy -q docker-archive:one.tar dir:flat",
    );
    Ok(home)
}

/// Returns how many images our own store has, with and without a name.
fn images(home: &Home) -> usize {
    let configurations = home.path("own/image/overlay2/imagedb/content/sha256");
    fs::read_dir(configurations).map_or(0, Iterator::count)
}

#[test]
fn images_in_archives_are_mounted_by_name_and_taken_in_once() {
    let home = need!(home());
    for (name, content) in [
        ("oci:layout:v1", "one"),
        ("oci:layout:v2", "two"),
        ("oci:layout:@1", "two"),
        ("oci-archive:two-oci.tar", "two"),
        ("oci-archive:two-oci.tar:x", "two"),
        ("docker-archive:one.tar", "one"),
        ("docker-archive:both.tar:two:1", "two"),
        ("docker-archive:both.tar:@0", "one"),
        ("dir:flat", "one"),
    ] {
        let mounted = home.run(["mount", "-r", name, "mnt"]);
        assert_eq!(mounted.code, Some(0), "{name}: {mounted:?}");
        let shown = fs::read_to_string(home.path("mnt/etc/name")).unwrap();
        assert_eq!(shown, content, "{name}");
        let listed = home.json(["ps", "--json"]);
        assert_eq!(listed[0]["image"], name);
        home.run(["umount", "mnt"]).ok();
    }
    // Skopeo writes another configuration for OCI, so each of the two images has two IDs. The
    // second mount of an image takes nothing in.
    assert_eq!(images(&home), 4);
    fs::remove_dir_all(home.path("layout/blobs/sha256")).unwrap();
    home.run(["mount", "-r", "docker-archive:one.tar", "mnt"])
        .ok();
    home.run(["umount", "mnt"]).ok();
    home.run(["mount", "-r", "oci:layout:v1", "mnt"])
        .failed(1, &["layout"]);
    home.run(["prune", "--dangling"]).ok();
    assert_eq!(images(&home), 0);
}

#[test]
fn every_command_takes_them() {
    let home = need!(home());
    let name = "oci:layout:v1";
    let first = home.run(["inspect", "--json", name]);
    assert!(first.stderr.contains("without a name"), "{first:?}");
    let about: serde_json::Value = serde_json::from_str(&first.stdout).unwrap();
    let id = about[0]["id"].as_str().unwrap();
    // From now on the store has the image.
    home.run(["history", name]).ok();
    home.run(["layers", name]).ok();
    home.run(["verify", name]).ok_with_progress();
    home.run(["export", "-q", "-o", "files.tar", name]).ok();
    assert!(shell(&home, "tar -tf files.tar").contains("etc/name"));
    home.run(["save", "-q", "-o", "saved.tar", name]).ok();
    home.run(["catalog", "build", &id[7..]]).ok();
    home.run(["mount", "--name", "work", name, "mnt"]).ok();
    fs::write(home.path("mnt/new"), "new").unwrap();
    home.run(["umount", "mnt"]).ok();
    assert_eq!(home.run(["diff", "work"]).ok(), "A /new\n");
    home.run(["tag", name, "mine:1"]).ok();
    home.run(["mount", "-r", "mine:1", "mnt"]).ok();
    home.run(["umount", "mnt"]).ok();
    home.run(["push", name]).failed(2, &["give a destination"]);
}

#[test]
fn what_is_not_there_is_said() {
    let home = need!(home());
    let before = images(&home);
    for (name, code, words) in [
        ("oci:layout", 1, ["2 images", "v1"]),
        ("oci:layout:v3", 1, ["v3", "v2"]),
        ("oci:nothing:v1", 1, ["nothing", "No such file"]),
        ("oci:", 2, ["names no archive", "docker.io/library/oci:"]),
        (
            "docker-archive:layout/index.json",
            1,
            ["index.json", "cannot read"],
        ),
        ("dir:one", 1, ["one", "archive"]),
    ] {
        home.run(["mount", "-r", name, "mnt"]).failed(code, &words);
    }
    let root = home.text("maker");
    home.run(["--root", &root, "mount", "-r", "oci:layout:v1", "mnt"])
        .failed(2, &["--root", "oci:layout:v1"]);
    assert_eq!(images(&home), before);
    // The command finds the damage before the store has the image.
    shell(
        &home,
        "for blob in layout/blobs/sha256/*; do printf x >> $blob; done",
    );
    home.run(["mount", "-r", "oci:layout:v1", "mnt"])
        .failed(1, &["layout"]);
    assert_eq!(images(&home), before);
}

/// An image without a name, which `prune --dangling` of another process may remove at any moment,
/// stays from when the archive is read until the mount is recorded.
#[test]
fn an_image_of_an_archive_stays_until_it_is_mounted() {
    let home = need!(home());
    let mounted = home.run(["mount", "-r", "docker-archive:one.tar", "mnt"]);
    assert_eq!(mounted.code, Some(0), "{mounted:?}");
    home.run(["umount", "mnt"]).ok();
    let configurations = home.path("own/image/overlay2/imagedb/content/sha256");
    let mut only = fs::read_dir(&configurations).unwrap();
    let configuration = only.next().unwrap().unwrap().path();
    // Another process removes it, as prune does, with the lock that readers wait for.
    let lock = fs::File::open(home.path("own/unionfs/removing")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mount = home
        .command(testkit::program())
        .args(["mount", "-r", "docker-archive:one.tar", "mnt"])
        .spawn()
        .unwrap();
    // Long enough for a process that does not wait to find the image.
    std::thread::sleep(std::time::Duration::from_secs(1));
    fs::remove_file(configuration).unwrap();
    drop(lock);
    assert!(mount.wait_with_output().unwrap().status.success());
    assert_eq!(
        fs::read_to_string(home.path("mnt/etc/name")).unwrap(),
        "one"
    );
    home.run(["umount", "mnt"]).ok();
    // With real ones, of named layers too.
    let prune =
        "while [ -d own ] && [ ! -e stop ]; do \"$UNIONFS\" prune --dangling || touch failed; done";
    let mut pruning = home.command("sh");
    pruning.env("UNIONFS", testkit::program());
    let mut pruning = pruning
        .args(["-c", prune])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for round in 0..10 {
        let name = format!("layer{round}");
        let more = if round % 2 == 0 {
            &[][..]
        } else {
            &["--name", &name][..]
        };
        let args = [&["mount"], more, &["docker-archive:one.tar", "mnt"]].concat();
        let mounted = home.run(args);
        assert_eq!(mounted.code, Some(0), "{round}: {mounted:?}");
        assert_eq!(
            fs::read_to_string(home.path("mnt/etc/name")).unwrap(),
            "one"
        );
        home.run(["umount", "mnt"]).ok();
        if round % 2 == 1 {
            // It may say that it waits for the other process.
            assert_eq!(home.run(["rm", &name]).code, Some(0));
        }
    }
    fs::write(home.path("stop"), "").unwrap();
    assert!(pruning.wait().unwrap().success());
    assert!(!home.path("failed").exists());
}

#[test]
fn load_takes_the_names_of_skopeo() {
    let home = need!(home());
    for (name, made) in [
        ("oci:layout:v1", "layout:v1"),
        ("oci-archive:two-oci.tar:x", "two-oci:x"),
        ("docker-archive:both.tar:two:1", "two:1"),
        ("docker-archive:one.tar", "one:1"),
    ] {
        let said = home.run(["load", "-q", name]).ok();
        assert_eq!(said, format!("Loaded image: {made}\n"), "{name}");
    }
    home.run(["load", "-q", "-i", "dir:flat", "--tag", "flat:1"])
        .ok();
    // What exists by the whole text is that file.
    fs::copy(home.path("one.tar"), home.path("oci:layout:v2")).unwrap();
    let said = home.run(["load", "-q", "oci:layout:v2"]).ok();
    assert_eq!(said, "Loaded image: one:1\n");
    for (name, code, words) in [
        ("oci:absent:v1", 1, "absent"),
        ("oci:layout:v9", 1, "v9"),
        ("docker://one:1", 2, "unionfs pull one:1"),
        (
            "docker-daemon:one:1",
            2,
            "unionfs copy docker-daemon:one:1 NAME",
        ),
        ("one:1", 1, "unionfs pull one:1"),
        ("./absent.tar", 1, "No such file"),
        ("oci:", 2, "oci:PATH"),
    ] {
        home.run(["load", "-q", name]).failed(code, &[words]);
    }
}

/// A file or a directory where an image is named, and the other way round.
#[test]
fn what_is_of_another_kind_is_told() {
    let home = need!(home());
    let of = |path: &str, args: &[&str], words: &[&str]| {
        let outcome = home.run(args);
        assert_ne!(outcome.code, Some(0), "{outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
        for word in words {
            assert!(
                outcome.stderr.contains(word),
                "{path} {args:?}: {outcome:?}"
            );
        }
    };
    home.dirs(&["rootfs/etc"]);
    for (path, told) in [
        ("one.tar", "docker-archive:one.tar"),
        ("layout", "oci:layout"),
        ("./layout", "oci:./layout"),
        ("flat", "dir:flat"),
        ("rootfs", "unionfs import"),
    ] {
        for args in [
            &["inspect", path][..],
            &["mount", path, "mnt"],
            &["ls", path],
            &["save", path, "-o", "x.tar"],
            &["copy", path, "new:1"],
        ] {
            of(path, args, &[told]);
        }
    }
    for args in [
        &["run", "one.tar", "true"][..],
        &["bundle", "one.tar", "bundle"],
        &["cat", "one.tar", "/etc/name"],
        &["cp", "one.tar:/etc/name", "."],
        &["history", "one.tar"],
        &["layers", "one.tar"],
        &["verify", "one.tar"],
        &["push", "one.tar", "127.0.0.1:1/x"],
        &["diff", "one.tar", "two.tar"],
        &["squash", "one.tar", "x:1"],
        &["export", "one.tar"],
        &["commit", "one.tar", "x:1"],
        &["catalog", "build", "one.tar"],
    ] {
        of("one.tar", args, &["docker-archive:one.tar"]);
    }
    for (args, words) in [
        (&["pull", "./layout"][..], "oci:./layout"),
        (&["pull", "oci:layout"], "unionfs copy oci:layout NAME"),
        (&["tags", "oci:layout"], "unionfs inspect"),
        (&["digest", "dir:flat"], "unionfs inspect"),
        (&["delete", "oci:layout"], "not in a registry"),
        (&["copy", "oci:layout:v1", "./new"], "oci:./new"),
        (&["import", "oci:layout", "x:1"], "unionfs load"),
        (&["import", "debian:12", "x:1"], "unionfs pull debian:12"),
    ] {
        of("", args, &[words]);
    }
    // This may be meant.
    let imported = home.run(["import", "-q", "one.tar", "x:1"]);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert!(imported.stderr.contains("unionfs load"), "{imported:?}");
    assert!(
        home.run(["import", "-q", "rootfs", "x:1"])
            .stderr
            .is_empty()
    );
}
