//! Hostile layers: no symlink, `..` or redirect in a layer leads outside of it.

use std::path::PathBuf;

use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{Scratch, Stack, subject};
use testkit::{need_mounts, tree};

/// Mounts a union over layers that may name a directory outside, which holds `secret`.
fn with_outside(make: impl FnOnce(&str) -> Vec<Layer>) -> (Fixture, PathBuf) {
    let scratch = Scratch::disk();
    let outside = scratch.dir("outside");
    std::fs::write(outside.join("secret"), "secret").unwrap();
    let layers = make(outside.to_str().unwrap());
    let stack = Stack {
        lowers: layers::write_all(&layers, scratch.path(), Form::Kernel),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    (Fixture::over(&subject(), scratch, stack), outside)
}

/// Asserts that the directory answers with an error or with less, but never with the secret.
fn assert_contained(f: &Fixture, dir: &str, outside: &std::path::Path) {
    assert!(
        std::fs::read(f.at(format!("{dir}/secret"))).is_err(),
        "{dir}/secret"
    );
    if let Ok(entries) = std::fs::read_dir(f.at(dir)) {
        let names: Vec<_> = entries.flatten().map(|e| e.file_name()).collect();
        assert!(!names.iter().any(|n| n == "secret"), "{dir}: {names:?}");
    }
    // Creating a file there, allowed or not, must not happen outside.
    let _ = std::fs::write(f.at(format!("{dir}/planted")), "x");
    let _ = std::fs::remove_file(f.at(format!("{dir}/secret")));
    let left: Vec<_> = tree::list_raw(outside).into_keys().collect();
    assert_eq!(left, [&b""[..], b"secret"]);
}

/// A directory in the upper layer, and a symlink to outside at the same place below.
#[test]
fn a_symlink_below_a_directory() {
    need_mounts!();
    let (f, outside) = with_outside(|outside| {
        vec![
            Layer::new().dir("d").file("d/top", ""),
            Layer::new().symlink("d", outside),
        ]
    });
    f.expect(&[("readdir d", "top:f")]);
    assert_contained(&f, "d", &outside);
}

/// A symlink in the middle of a path: `d` real above, `d/e` a symlink to outside below.
#[test]
fn a_symlink_in_the_middle() {
    need_mounts!();
    let (f, outside) = with_outside(|outside| {
        vec![
            Layer::new().dir("d").dir("d/e").dir("d/e/f"),
            Layer::new().dir("d").symlink("d/e", outside),
            Layer::new().symlink("d", "../outside"),
        ]
    });
    assert_contained(&f, "d/e", &outside);
    assert_contained(&f, "d/e/f", &outside);
}

#[test]
fn redirects_that_climb() {
    need_mounts!();
    let redirects = [
        "../outside",
        "/../outside",
        "/x/../../outside",
        "/link",
        "/link/",
        "..",
        ".",
        "/",
        "//outside",
        "",
    ];
    for marker in ["trusted.overlay.redirect", "user.overlay.redirect"] {
        for redirect in redirects {
            let (f, outside) = with_outside(|outside| {
                vec![
                    Layer::new().dir("d").xattr(marker, redirect),
                    Layer::new().dir("x").symlink("link", outside),
                ]
            });
            assert_contained(&f, "d", &outside);
        }
    }
}

#[test]
fn metacopy_redirects_that_climb() {
    need_mounts!();
    for redirect in ["/../outside/secret", "../outside/secret", "/link/secret"] {
        let (f, outside) = with_outside(|outside| {
            vec![
                Layer::new()
                    .file("f", "")
                    .xattr("trusted.overlay.metacopy", "")
                    .xattr("trusted.overlay.redirect", redirect),
                Layer::new().symlink("link", outside),
            ]
        });
        if let Ok(data) = std::fs::read(f.at("f")) {
            assert_ne!(data, b"secret", "{redirect}");
        }
        let _ = std::fs::write(f.at("f"), "planted");
        assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
    }
}

/// Absolute symlinks are resolved in the root of the reading process, not in the layer.
#[test]
fn copy_up_of_a_symlink_does_not_follow_it() {
    need_mounts!();
    let (f, outside) =
        with_outside(|outside| vec![Layer::new().symlink("s", format!("{outside}/secret"))]);
    f.ok("chown s 1 2\nrename s t\nlink t u\nunlink t");
    assert!(f.at("u").symlink_metadata().unwrap().is_symlink());
    let secret = outside.join("secret").metadata().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&secret), 0);
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
}
