//! Paths that lead to a mountpoint, and paths that are refused because another user controls them.

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

use testkit::need;
use testkit::need::{Needed, is_root};

use super::*;

/// Another user.
const OTHER: Option<u32> = Some(65534);

/// Creates `base/dir/m`, and `base/link` that leads to `dir`. Only root can create files of other
/// users.
fn tree() -> Needed<(tempfile::TempDir, PathBuf)> {
    is_root()?;
    if !matches!(Trust::in_first_user_namespace(), Trust::RootAndUs) {
        return Err("needs the first user namespace".into());
    }
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    std::fs::create_dir_all(base.join("dir/m")).unwrap();
    symlink("dir", base.join("link")).unwrap();
    Ok((dir, base))
}

fn refused(path: &Path) {
    match Mountpoint::open(path) {
        Err(Error::Mountpoint { source, .. }) => {
            assert_eq!(source.kind(), io::ErrorKind::PermissionDenied, "{source}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_lead_where_the_kernel_goes() {
    let (_dir, base) = need!(tree());
    let leads = |from: &str| {
        Mountpoint::open(&base.join(from))
            .unwrap()
            .path()
            .to_owned()
    };
    assert_eq!(leads("dir/m"), base.join("dir/m"));
    assert_eq!(leads("link/m"), base.join("dir/m"));
    assert_eq!(leads("link/m/.././m/."), base.join("dir/m"));
    assert_eq!(leads("link"), base.join("dir"));
    symlink(base.join("link"), base.join("absolute")).unwrap();
    assert_eq!(leads("absolute/m"), base.join("dir/m"));
    symlink("loop", base.join("loop")).unwrap();
    let error = Mountpoint::open(&base.join("loop")).unwrap_err();
    assert!(std::error::Error::source(&error).is_some(), "{error}");
    std::fs::write(base.join("file"), "").unwrap();
    for path in ["file", "file/m", "absent", "absent/m", "dir/absent"] {
        let error = Mountpoint::open(&base.join(path)).unwrap_err();
        assert!(matches!(error, Error::Mountpoint { .. }), "{path}: {error}");
    }
    assert_eq!(
        Mountpoint::open(Path::new("/")).unwrap().path(),
        Path::new("/")
    );
}

#[test]
fn what_another_user_decides_on_is_not_followed() {
    let (_dir, base) = need!(tree());
    let theirs = base.join("theirs");
    std::fs::create_dir_all(theirs.join("real/m")).unwrap();
    for path in ["", "real", "real/m"] {
        chown(theirs.join(path), OTHER, OTHER).unwrap();
    }
    assert!(Mountpoint::open(&theirs.join("real/m")).is_ok());
    // The owner of the link does not matter: the owner of the directory could have moved it there.
    symlink(base.join("dir"), theirs.join("out")).unwrap();
    refused(&theirs.join("out/m"));
    refused(&theirs.join("out"));
    refused(&theirs.join("real/../real/m"));
    // The directory `roots` belongs to root, but another user could have moved it there.
    std::fs::create_dir(theirs.join("real/m/roots")).unwrap();
    symlink(base.join("dir"), theirs.join("real/m/roots/out")).unwrap();
    refused(&theirs.join("real/m/roots/out/m"));
    // Other users can write to the directory.
    let open = base.join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    symlink("../dir", open.join("out")).unwrap();
    refused(&open.join("out/m"));
    // This is like /tmp.
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(Mountpoint::open(&open.join("out/m")).is_ok());
    symlink("../dir", open.join("planted")).unwrap();
    std::os::unix::fs::lchown(open.join("planted"), OTHER, OTHER).unwrap();
    refused(&open.join("planted/m"));
}

#[test]
fn a_directory_is_told_from_its_successor() {
    let (_dir, base) = need!(tree());
    let path = base.join("dir/m");
    let first = Mountpoint::open(&path).unwrap();
    let id = first.id().unwrap();
    assert_eq!(Mountpoint::open(&path).unwrap().id().unwrap(), id);
    std::fs::rename(&path, base.join("away")).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_ne!(Mountpoint::open(&path).unwrap().id().unwrap(), id);
    assert_eq!(
        Mountpoint::open(&base.join("away")).unwrap().id().unwrap(),
        id
    );
    assert!(!first.may_be_mount());
    assert!(Mountpoint::open(Path::new("/proc")).unwrap().may_be_mount());
}
