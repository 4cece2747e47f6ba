//! Layer tars written by GNU tar, with sparse files in each of its forms.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::tarball::Site;

/// Runs GNU tar in `dir`.
fn gnu_tar(dir: &Path, options: &[&str]) -> Vec<u8> {
    let out = Command::new("tar")
        .current_dir(dir)
        .args(options)
        .args(["-cf", "-", "."])
        .output();
    let out = out.unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    out.stdout
}

#[test]
fn sparse_files_in_every_form_are_kept_and_checked() {
    let source = tempfile::tempdir().unwrap();
    let file = File::create(source.path().join("sparse")).unwrap();
    for at in 0..30u64 {
        let bytes = vec![at as u8 + 1; 4096];
        file.write_all_at(&bytes, at * 100_000).unwrap();
    }
    file.set_len(10 << 20).unwrap();
    fs::write(source.path().join("plain"), "plain").unwrap();
    let expected = fs::read(source.path().join("sparse")).unwrap();
    for options in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let tar = gnu_tar(source.path(), &[&["--sparse"], options].concat());
        assert!(tar.len() < 1 << 20, "GNU tar made no sparse tar");
        let site = Site::new();
        let (done, split) = site.round(&tar);
        assert_eq!(done.size, (10 << 20) + 5, "{options:?}");
        assert!(
            fs::read(site.path("sparse")).unwrap() == expected,
            "{options:?}"
        );
        assert!(site.stat("sparse").blocks() * 512 < 4 << 20);
        // Its tar is complete without the file; the file is still checked.
        let file = File::options()
            .write(true)
            .open(site.path("sparse"))
            .unwrap();
        file.write_all_at(b"x", 50_000).unwrap();
        let (_, damage) = site.damage(&split);
        assert_eq!(damage.len(), 1, "{options:?}");
        assert_eq!(damage[0].path, b"./sparse");
    }
}

/// Long names, large files, names that are not ASCII.
#[test]
fn a_tar_of_gnu_tar_in_every_format() {
    let source = tempfile::tempdir().unwrap();
    let long = source.path().join("a".repeat(120)).join("b".repeat(120));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("c".repeat(200)), "deep").unwrap();
    fs::write(source.path().join("é"), vec![7; 700_000]).unwrap();
    fs::set_permissions(source.path().join("é"), PermissionsExt::from_mode(0o600)).unwrap();
    let inner = Path::new(&"a".repeat(120))
        .join("b".repeat(120))
        .join("c".repeat(200));
    for format in ["gnu", "posix", "oldgnu"] {
        let tar = gnu_tar(source.path(), &[&format!("--format={format}")]);
        let site = Site::new();
        let (done, _) = site.round(&tar);
        assert_eq!(done.size, 700_004);
        assert_eq!(fs::read(site.path(&inner)).unwrap(), b"deep", "{format}");
        let (ours, theirs) = (
            site.stat("é"),
            fs::metadata(source.path().join("é")).unwrap(),
        );
        assert_eq!((ours.mode(), ours.mtime()), (theirs.mode(), theirs.mtime()));
    }
}
