//! The content of the sample images: every kind of entry that a layer can have.

use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::io::Errno;

use super::builder::{StoreBuilder, whiteout};

/// The sample store that was made.
pub struct Sample {
    /// The names and IDs of the images.
    pub images: Vec<(String, String)>,
    /// The container's ID.
    pub container: String,
    /// The container's name.
    pub container_name: String,
}

/// Fills `root` with the sample store; it must be empty or not exist.
pub fn make(root: &Path) -> io::Result<Sample> {
    let mut store = StoreBuilder::new(root)?;
    let base = store.layer(None, base)?;
    let changes = store.layer(Some(&base), changes)?;
    let links = store.layer(Some(&changes), links)?;
    let second = store.layer(Some(&changes), second)?;
    let one = store.image(&["sample:1", "sample:latest"], &[&base, &changes, &links])?;
    let two = store.image(&["sample:2"], &[&base, &changes, &second])?;
    let container = store.container("sample", &links, |diff| {
        write(diff, "srv/from-the-container", "kept\n")
    })?;
    store.finish()?;
    Ok(Sample {
        images: vec![("sample:1".into(), one), ("sample:2".into(), two)],
        container,
        container_name: "sample".into(),
    })
}

fn write(diff: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = diff.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, text)
}

fn mode(diff: &Path, name: &str, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(diff.join(name), std::fs::Permissions::from_mode(mode))
}

fn base(diff: &Path) -> io::Result<()> {
    write(diff, "etc/os-release", "NAME=sample\nVERSION_ID=0\n")?;
    write(diff, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
    write(
        diff,
        "bin/hello",
        "#!/bin/sh\necho hello from the sample image\n",
    )?;
    mode(diff, "bin/hello", 0o755)?;
    for page in ["README", "COPYING", "changelog"] {
        write(
            diff,
            &format!("usr/share/doc/sample/{page}"),
            &format!("{page}\n").repeat(50),
        )?;
    }
    for name in ["keep", "delete", "replace"] {
        write(
            diff,
            &format!("data/{name}"),
            &format!("{name}, base layer\n"),
        )?;
    }
    write(diff, "data/opaque/hidden", "must not be seen\n")?;
    write(diff, "data/merged/base", "base layer\n")?;
    write(diff, "data/gone/in", "must not be seen\n")?;
    for dir in ["tmp", "srv", "root", "proc", "dev"] {
        std::fs::create_dir_all(diff.join(dir))?;
    }
    mode(diff, "tmp", 0o1777)?;
    mode(diff, "root", 0o700)?;
    let big: String = (0..12_000).map(|n| format!("{n}\n")).collect();
    write(diff, "data/big", &big)
}

fn changes(diff: &Path) -> io::Result<()> {
    write(diff, "etc/os-release", "NAME=sample\nVERSION_ID=1\n")?;
    write(diff, "data/replace", "second layer\n")?;
    write(diff, "data/merged/added", "second layer\n")?;
    write(diff, "data/opaque/shown", "second layer\n")?;
    opaque(&diff.join("data/opaque"))?;
    whiteout(&diff.join("data/delete"))?;
    whiteout(&diff.join("data/gone"))
}

fn links(diff: &Path) -> io::Result<()> {
    write(diff, "data/links/one", "three names\n")?;
    std::fs::hard_link(diff.join("data/links/one"), diff.join("data/links/two"))?;
    std::fs::create_dir(diff.join("data/links/deeper"))?;
    std::fs::hard_link(
        diff.join("data/links/one"),
        diff.join("data/links/deeper/three"),
    )?;
    symlink("../keep", diff.join("data/links/relative"))?;
    symlink("/data/keep", diff.join("data/links/absolute"))?;
    symlink("nowhere", diff.join("data/links/dangling"))?;
    rustix::fs::mknodat(
        CWD,
        diff.join("data/fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )?;
    write(diff, "data/attributes", "has a user xattr\n")?;
    let path = diff.join("data/attributes");
    // On a file system without user xattrs the sample has none.
    match rustix::fs::setxattr(&path, "user.sample", b"value", XattrFlags::empty()) {
        Ok(()) | Err(Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn second(diff: &Path) -> io::Result<()> {
    write(diff, "etc/os-release", "NAME=sample\nVERSION_ID=2\n")?;
    write(diff, "srv/index.html", "<h1>sample 2</h1>\n")?;
    // These have other types than below: a directory replaces a file, and a file a directory.
    write(diff, "data/keep/file", "was a file, is a directory\n")?;
    opaque(&diff.join("data/keep"))?;
    write(diff, "data/merged", "was a directory, is a file\n")?;
    write(diff, "usr/share/doc/sample/NEWS", "version 2\n")
}

/// Marks a directory opaque in the form that dockerd of this user would use.
fn opaque(dir: &Path) -> io::Result<()> {
    let set = |name| rustix::fs::setxattr(dir, name, b"y", XattrFlags::empty());
    match set("trusted.overlay.opaque") {
        Err(Errno::PERM) => Ok(set("user.overlay.opaque")?),
        other => Ok(other?),
    }
}
