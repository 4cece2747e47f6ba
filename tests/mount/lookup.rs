//! Lookup: which layer answers, what hides what, and that answers do not become stale.

use testkit::fixture::Fixture;
use testkit::layers::Layer;
use testkit::need_mounts;

#[test]
fn the_top_layer_wins_and_whiteouts_hide() {
    need_mounts!();
    Fixture::standard().expect(&[
        ("read both.txt", "\"from\\x20the\\x20top\\x20layer\\x0a\""),
        ("read merged/over", "\"top\\x20over\\x0a\""),
        ("read merged/bottom", "\"merged\\x20bottom\\x0a\""),
        ("read opaque/new", "\"new\\x0a\""),
        ("read opaque/old", "ENOENT"),
        ("stat removed.txt", "ENOENT"),
        ("stat removed-dir/f", "ENOENT"),
        ("stat merged/gone", "ENOENT"),
        ("read dir-to-file", "\"now\\x20a\\x20file\\x0a\""),
        ("stat dir-to-file/f", "ENOTDIR"),
        ("read file-to-dir/in", "\"inside\\x0a\""),
        ("read deep/a/b/c/leaf", "\"leaf\\x0a\""),
        ("stat no/such", "ENOENT"),
    ]);
}

/// A directory's attributes are those of its topmost layer.
#[test]
fn a_merged_directory_has_the_attributes_of_its_top() {
    need_mounts!();
    let top = Layer::new().dir("d").mode(0o711).own(5, 6);
    let low = Layer::new().dir("d").mode(0o700).own(7, 8);
    Fixture::new(&[top, low]).expect(&[("stat d", "mode 40711 owner 5:6")]);
}

#[test]
fn a_file_between_directories_ends_the_merge() {
    need_mounts!();
    let top = Layer::new().dir("d").file("d/top", "1");
    let middle = Layer::new().file("d", "a file");
    let low = Layer::new().dir("d").file("d/low", "3");
    Fixture::new(&[top, middle, low]).expect(&[("readdir d", "top:f"), ("stat d/low", "ENOENT")]);
}

#[test]
fn negative_answers_end_when_the_name_appears() {
    need_mounts!();
    Fixture::standard().expect(&[
        ("stat x", "ENOENT"),
        ("create x 644", ""),
        ("read x", "\"\""),
        ("stat removed.txt", "ENOENT"),
        ("mkdir removed.txt 755", ""),
        ("readdir removed.txt", ""),
        ("stat y", "ENOENT"),
        ("rename x y", ""),
        ("read y", "\"\""),
        ("stat x", "ENOENT"),
        ("unlink y", ""),
        ("stat y", "ENOENT"),
        ("symlink plain.txt y", ""),
        ("readlink y", "plain.txt"),
        ("stat merged/l", "ENOENT"),
        ("link both.txt merged/l", ""),
        ("read merged/l", "\"from\\x20the\\x20top\\x20layer\\x0a\""),
    ]);
}

#[test]
fn names_are_bytes_up_to_255() {
    need_mounts!();
    let f = Fixture::standard();
    let long = "n".repeat(255);
    f.expect(&[
        (&format!("read {long}"), "\"longest\\x20name\\x0a\""),
        (&format!("stat {long}n"), "ENAMETOOLONG"),
        (&format!("create {}", "m".repeat(255) + " 644"), ""),
        (
            &format!("create {}", "m".repeat(256) + " 644"),
            "ENAMETOOLONG",
        ),
        ("read \\xff\\xfe\\x20bytes", "\"not\\x20UTF-8\\x0a\""),
        ("create \\x80\\xbf 644", ""),
        (
            "stat new\\x0aline",
            "mode 100644 owner 0:0 size 20 nlink 1 rdev 0",
        ),
    ]);
}

/// Deeper than PATH_MAX in all: reached step by step.
#[test]
fn paths_of_any_depth() {
    need_mounts!();
    use rustix::fs::{Mode, OFlags};
    let f = Fixture::standard();
    let name = "d".repeat(200);
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::open(f.root(), flags, Mode::empty()).unwrap();
    for _ in 0..40 {
        rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o755)).unwrap();
        dir = rustix::fs::openat(&dir, &name, flags, Mode::empty()).unwrap();
    }
    let create = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&dir, "leaf", create, Mode::from_raw_mode(0o600)).unwrap();
    assert_eq!(rustix::io::write(&file, b"deep").unwrap(), 4);
    let stat = rustix::fs::statat(&dir, "leaf", rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!(stat.st_size, 4);
}

#[test]
fn many_lower_layers() {
    need_mounts!();
    let layer = |n: usize| {
        Layer::new()
            .file(format!("f{n}"), format!("{n}"))
            .file("all", format!("{n}"))
            .dir("d")
            .file(format!("d/f{n}"), "")
    };
    let layers: Vec<_> = (0..60).map(layer).collect();
    let f = Fixture::new(&layers);
    f.expect(&[("read all", "\"0\""), ("read f59", "\"59\"")]);
    assert_eq!(std::fs::read_dir(f.at("d")).unwrap().count(), 60);
}
