//! `unionfs diff`, `commit` and `export` on a named layer: they show, commit and write the tree
//! that was mounted.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testkit::home::Home;
use testkit::need::{can_mount, has_tools};
use testkit::store::{listing, sample};
use testkit::tree::xattr;
use testkit::{need, need_mounts};
use unionfs::layer_tar::{Limits, unpack};
use unionfs::oci::Reference;
use unionfs::store::discovery::Environment;
use unionfs::store::{Stores, Writable};

/// Returns a layer tar of a few directories and files.
fn base_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, data: Option<&str>| {
        let mut header = tar::Header::new_ustar();
        let (kind, mode) = match data {
            Some(_) => (tar::EntryType::Regular, 0o644),
            None => (tar::EntryType::Directory, 0o755),
        };
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(data.unwrap_or_default().len() as u64);
        let data = data.unwrap_or_default().as_bytes();
        tar.append_data(&mut header, name, data).unwrap();
    };
    add("etc", None);
    add("etc/conf", Some("old"));
    add("etc/gone", Some("gone"));
    add("srv", None);
    add("srv/a", Some("a"));
    add("srv/sub", None);
    add("srv/sub/b", Some("b"));
    add("keep", Some("keep"));
    let mut link = tar::Header::new_ustar();
    link.set_entry_type(tar::EntryType::Link);
    link.set_size(0);
    tar.append_link(&mut link, "kept-too", "keep").unwrap();
    tar.into_inner().unwrap()
}

/// Returns a home with `base:1` in its own store, mounted with a layer named `work`.
fn home() -> Home {
    let home = Home::new();
    home.dirs(&["mnt"]);
    let store = Writable::open(&home.path("own")).unwrap();
    let store = store.lock().unwrap();
    let mut staged = store.stage_layer(None).unwrap();
    let dialect = staged.dialect();
    let (diff, split) = staged.parts();
    let limits = Limits::default();
    let unpacked = unpack(&base_tar()[..], diff, dialect, split, &limits).unwrap();
    staged.commit(unpacked.diff_id, unpacked.size).unwrap();
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2020-01-01T00:00:00Z",
        "config": {"Cmd": ["old"], "Env": ["PATH=/bin"]},
        "history": [{"created_by": "base"}],
        "rootfs": {"type": "layers", "diff_ids": [unpacked.diff_id]},
    });
    let id = store.register_image(config.to_string().as_bytes()).unwrap();
    store
        .tag(&Reference::parse("base:1").unwrap(), &id)
        .unwrap();
    drop(store);
    home.run(["mount", "--name", "work", "base:1", "mnt"]).ok();
    home
}

/// Makes one change of every kind.
fn change(mnt: &Path) {
    let write = |name: &str, text: &str| std::fs::write(mnt.join(name), text).unwrap();
    write("etc/conf", "new");
    std::fs::remove_file(mnt.join("etc/gone")).unwrap();
    std::fs::remove_dir_all(mnt.join("srv/sub")).unwrap();
    std::fs::create_dir(mnt.join("srv/sub")).unwrap();
    write("srv/sub/c", "c");
    std::fs::rename(mnt.join("srv"), mnt.join("moved")).unwrap();
    write("kept-too", "changed under one of its names");
    std::fs::create_dir(mnt.join("new")).unwrap();
    write("new/file", "x");
    std::fs::hard_link(mnt.join("new/file"), mnt.join("new/link")).unwrap();
    symlink("file", mnt.join("new/symlink")).unwrap();
    let long = "n".repeat(250);
    write(&format!("new/{long}"), "long");
    std::fs::write(mnt.join("new").join(OsStr::from_bytes(b"\xff\n")), "bytes").unwrap();
    let sparse = std::fs::File::create(mnt.join("new/sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"data", 2 << 20).unwrap();
    let mode = std::fs::Permissions::from_mode(0o4750);
    std::fs::set_permissions(mnt.join("new/file"), mode).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(mnt.join("new/file"), "user.note", b"a\0b", flags).unwrap();
    let (cwd, mode) = (rustix::fs::CWD, rustix::fs::Mode::from_raw_mode(0o600));
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(cwd, mnt.join(name), kind, mode, device).unwrap();
    };
    node("new/fifo", rustix::fs::FileType::Fifo, 0);
    let null = rustix::fs::makedev(1, 3);
    node("new/null", rustix::fs::FileType::CharacterDevice, null);
}

const CHANGES: &str = "\
C /etc
C /etc/conf
D /etc/gone
C /keep
C /kept-too
A /moved
A /moved/a
A /moved/sub
A /moved/sub/c
A /new
A /new/fifo
A /new/file
A /new/link
A /new/NNN
A /new/null
A /new/sparse
A /new/symlink
A /new/\\xff\\x0a
D /srv
";

/// An image has the IDs of its layers, whatever a mount shows.
#[test]
fn a_commit_has_the_owners_of_the_layers() {
    need!(can_mount());
    let home = home();
    home.run(["umount", "mnt"]).ok();
    let mapped = "uidmapping=0:100000:65536,gidmapping=0:200000:65536";
    home.run(["mount", "--name", "mapped", "-o", mapped, "base:1", "mnt"])
        .ok();
    let owner = |name: &str| {
        let meta = std::fs::symlink_metadata(home.path("mnt").join(name)).unwrap();
        (meta.uid(), meta.gid())
    };
    let before = owner("etc/conf");
    std::fs::write(home.path("mnt/mine"), "").unwrap();
    std::os::unix::fs::chown(home.path("mnt/mine"), Some(100_033), Some(200_044)).unwrap();
    assert_eq!(owner("mine"), (100_033, 200_044));
    assert_eq!(home.run(["diff", "mapped"]).ok(), "A /mine\n");
    home.run(["commit", "-q", "mapped", "owned:1"]).ok();
    home.run(["umount", "mnt"]).ok();
    home.run(["mount", "--read-only", "owned:1", "mnt"]).ok();
    assert_eq!(owner("mine"), (33, 44));
    assert_eq!(
        before,
        (100_000 + owner("etc/conf").0, 200_000 + owner("etc/conf").1)
    );
}

#[test]
fn a_commit_mounts_as_what_was_committed() {
    need!(can_mount());
    let home = home();
    let mnt = home.path("mnt");
    assert_eq!(home.run(["diff", "work"]).ok(), "");
    change(&mnt);
    let expected = CHANGES.replace("NNN", &"n".repeat(250));
    assert_eq!(home.run(["diff", "work"]).ok(), expected);
    let rows = home.json(["diff", "--json", "work"]);
    assert_eq!(rows[0], json!({"kind": "C", "path": "/etc"}));
    assert_eq!(rows.as_array().unwrap().len(), expected.lines().count());

    let truth = listing::of_dir(&mnt);
    let id = home.run([
        "commit",
        "--quiet",
        "work",
        "made:1",
        "-m",
        "why",
        "--author",
        "me",
        "-c",
        "CMD [\"run\"]",
        "--change",
        "ENV A=$PATH:/x",
    ]);
    let id = id.ok().trim().to_owned();
    assert_eq!(listing::of_dir(&mnt), truth, "the layer is as it was");
    home.run(["umount", "mnt"]).ok();
    home.run(["mount", "--read-only", "made:1", "mnt"]).ok();
    listing::assert_same("commit", &listing::of_dir(&mnt), &truth);
    home.run(["umount", "mnt"]).ok();

    let image = home.json(["inspect", "--json", "made:1"])[0].clone();
    assert_eq!(image["id"], json!(id));
    assert_eq!(
        image["config"],
        json!({"Cmd": ["run"], "Env": ["PATH=/bin", "A=/bin:/x"]})
    );
    assert_eq!(image["author"], "me");
    let base = home.json(["inspect", "--json", "base:1"])[0].clone();
    assert_eq!(image["parent"], base["id"]);
    assert_eq!(
        image["layers"][0]["chain_id"],
        base["layers"][0]["chain_id"]
    );
    let steps = image["history"].as_array().unwrap();
    assert_eq!(steps[0]["created_by"], "base");
    assert_eq!(
        (&steps[1]["comment"], &steps[1]["author"]),
        (&json!("why"), &json!("me"))
    );
    assert_eq!(steps[1]["created_by"], "unionfs commit work");
    // The new layer agrees with its tar-split and its diff ID.
    let verified = home.run(["verify", "--all"]).ok();
    assert!(verified.ends_with("no damage\n"), "{verified}");

    // The same changes give the same layer.
    let again: Value = serde_json::from_str(&{
        home.run(["commit", "-q", "work", "again"]).ok();
        home.run(["inspect", "--json", "again"]).ok()
    })
    .unwrap();
    assert_eq!(
        again[0]["layers"][1]["diff_id"],
        image["layers"][1]["diff_id"]
    );
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
}

/// A layer tar has the data of metacopies, and none of their markers.
#[test]
fn metacopies_are_committed_with_their_data() {
    need_mounts!();
    let home = home();
    let mnt = home.path("mnt");
    home.run(["umount", "mnt"]).ok();
    home.run([
        "mount",
        "--name",
        "meta",
        "-o",
        "metacopy=on",
        "base:1",
        "mnt",
    ])
    .ok();
    std::os::unix::fs::chown(mnt.join("etc/conf"), Some(5), Some(5)).unwrap();
    std::fs::rename(mnt.join("srv/a"), mnt.join("moved")).unwrap();
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(mnt.join("keep"), mode).unwrap();
    let marked = |name: &str| {
        let diffs = std::fs::read_dir(home.path("own/overlay2")).unwrap();
        let paths = diffs.map(|dir| dir.unwrap().path().join("diff").join(name));
        let is_marked = |path: &std::path::PathBuf| xattr(path, MARKER).is_ok();
        paths.filter(is_marked).count()
    };
    for name in ["etc/conf", "moved", "keep"] {
        assert_eq!(marked(name), 1, "{name} is a metacopy in the named layer");
    }
    let changed = "C /etc\nC /etc/conf\nC /keep\nC /kept-too\nA /moved\nC /srv\nD /srv/a\n";
    assert_eq!(home.run(["diff", "meta"]).ok(), changed);
    assert_eq!(home.run(["cat", "meta", "/moved"]).ok(), "a");
    let truth = listing::of_dir(&mnt);
    home.run(["commit", "-q", "meta", "made:1"]).ok();
    home.run(["export", "-q", "meta", "-o", "meta.tar"]).ok();
    home.run(["umount", "mnt"]).ok();
    home.run(["export", "-q", "made:1", "-o", "made.tar"]).ok();
    let tar = |name: &str| std::fs::read(home.path(name)).unwrap();
    assert!(tar("meta.tar") == tar("made.tar"));
    home.run(["mount", "--read-only", "made:1", "mnt"]).ok();
    listing::assert_same("commit", &listing::of_dir(&mnt), &truth);
    assert_eq!(std::fs::read_to_string(mnt.join("moved")).unwrap(), "a");
    assert_eq!(marked("moved"), 1, "only in the named layer");
    let verified = home.run(["verify", "--all"]).ok();
    assert!(verified.ends_with("no damage\n"), "{verified}");
}

const MARKER: &[u8] = b"trusted.overlay.metacopy";

#[test]
fn an_export_is_the_mounted_tree() {
    need!(can_mount());
    need!(has_tools(&["tar"]));
    let home = home();
    let mnt = home.path("mnt");
    change(&mnt);
    let truth = listing::of_dir(&mnt);
    let untar = |tar: &str, dir: &str| {
        home.dirs(&[dir]);
        let mut command = Command::new("tar");
        command.args(["--xattrs", "--xattrs-include=*", "--same-owner", "-pxf"]);
        command.arg(home.path(tar)).arg("-C").arg(home.path(dir));
        let done = command.output().unwrap();
        assert!(done.status.success(), "{done:?}");
        listing::of_dir(&home.path(dir))
    };
    assert_eq!(
        home.run(["export", "-q", "work", "-o", "live.tar"]).ok(),
        ""
    );
    listing::assert_same("live", &untar("live.tar", "live"), &truth);
    home.run(["umount", "mnt"]).ok();
    home.run(["commit", "-q", "work", "made:1"]).ok();
    let piped = home
        .command(testkit::program())
        .args(["export", "-q", "made:1"])
        .output();
    let piped = piped.unwrap();
    assert!(
        piped.status.success() && piped.stderr.is_empty(),
        "{piped:?}"
    );
    std::fs::write(home.path("image.tar"), &piped.stdout).unwrap();
    listing::assert_same("image", &untar("image.tar", "image"), &truth);
    let same = std::fs::read(home.path("live.tar")).unwrap() == piped.stdout;
    assert!(same, "the same tree gives the same tar");
}

#[test]
fn what_cannot_be_committed_is_refused_and_leaves_nothing() {
    need!(can_mount());
    let home = home();
    home.run(["diff", "nobody"]).failed(1, &["nobody"]);
    home.run(["export", "-q", "nobody"]).failed(1, &["nobody"]);
    home.run(["export", "-q", "work", "-o", "no/where.tar"])
        .failed(1, &["no/where.tar"]);
    home.run(["commit", "-q", "work", "UPPER"])
        .failed(1, &["UPPER"]);
    home.run(["commit", "-q", "work", "made:1", "-c", "RUN x"])
        .failed(1, &["RUN x", "CMD"]);
    let digest = format!("x@sha256:{}", "0".repeat(64));
    home.run(["commit", "-q", "work", &digest])
        .failed(2, &["digest"]);
    std::fs::write(home.path("mnt/.wh.odd"), "").unwrap();
    home.run(["commit", "-q", "work", "made:1"])
        .failed(1, &["/.wh.odd", "rename"]);
    assert_eq!(home.json(["images", "--json"]).as_array().unwrap().len(), 1);
    home.run(["umount", "mnt"]).ok();
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
    let count = std::fs::read_dir(home.path("own/overlay2"))
        .unwrap()
        .count();
    assert_eq!(count, 3, "l, the base and the named layer");
}

/// The image is in Docker's store: the commit copies its layers into our store.
#[test]
fn a_layer_on_an_image_of_another_store_is_committed_with_those_below() {
    need!(can_mount());
    let home = Home::new();
    home.dirs(&["mnt"]);
    sample::make(&home.path("docker")).unwrap();
    let (docker, mnt) = (home.text("docker"), home.path("mnt"));
    let image = home.json(["--root", &docker, "inspect", "--json", "sample:1"])[0].clone();
    // As if the store had been discovered at Docker's default place.
    let theirs = Stores::discover(Some(&home.path("docker")), &Environment::default());
    let theirs = theirs.unwrap().find("sample:1").unwrap();
    let store = Writable::open(&home.path("own")).unwrap();
    store
        .lock()
        .unwrap()
        .create_container("work", &theirs)
        .unwrap();
    home.run(["mount", "--name", "work", "mnt"]).ok();
    std::fs::write(mnt.join("srv/new"), "new").unwrap();
    assert_eq!(home.run(["diff", "work"]).ok(), "C /srv\nA /srv/new\n");
    let truth = listing::of_dir(&mnt);
    home.run(["commit", "-q", "work", "made:1"]).ok();
    home.run(["umount", "mnt"]).ok();
    let made = home.json(["inspect", "--json", "made:1"])[0].clone();
    let layers = |image: &Value| {
        let layers = image["layers"].as_array().unwrap().iter();
        layers
            .map(|layer| layer["chain_id"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(layers(&made)[..3], layers(&image)[..]);
    assert_eq!(made["config"], image["config"]);
    std::fs::remove_dir_all(home.path("docker")).unwrap();
    home.run(["mount", "-r", "made:1", "mnt"]).ok();
    listing::assert_same("commit", &listing::of_dir(&mnt), &truth);
    assert!(home.run(["verify", "made:1"]).ok().ends_with("no damage\n"));
}
