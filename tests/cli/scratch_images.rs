//! Images without layers (`FROM scratch` with only labels), built by Docker. They mount as an empty
//! writable directory, and all other image commands work on them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use testkit::home::Home;
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};

use crate::engines::{shell, with_dockerd};

/// Returns a home with the image `empty:1` and its container `box` in Docker's store, and in
/// `empty.tar`.
fn home() -> Needed<Home> {
    can_mount()?;
    has_tools(&["dockerd"])?;
    let home = Home::new();
    home.dirs(&["mnt", "answers", "docker"]);
    with_dockerd(
        &home,
        "docker",
        "printf 'FROM scratch\\nLABEL a=b\\nCMD [\"/x\"]\\n' | DOCKER_BUILDKIT=0 docker build -q -t empty:1 -
        docker create --name box empty:1
        docker inspect -f '{{.Id}}' empty:1 > id",
    );
    // Docker itself cannot save an image without layers.
    let docker = home.text("docker");
    home.run([
        "--root",
        &docker,
        "save",
        "-q",
        "-o",
        "answers/empty.tar",
        "empty:1",
    ])
    .ok();
    Ok(home)
}

fn entries(home: &Home) -> Vec<String> {
    let entries = fs::read_dir(home.path("mnt")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn an_image_without_layers_is_an_empty_directory_that_can_be_written_to() {
    let home = need!(home());
    let docker = home.text("docker");
    let id = fs::read_to_string(home.path("answers/id")).unwrap();
    home.run(["load", "-q", "-i", "answers/empty.tar"]).ok();
    let umount = || home.run(["umount", "mnt"]).ok();
    for root in [home.text("own"), docker.clone()] {
        let run = |args: &[&str]| home.run([&["--root", &root], args].concat());
        assert_eq!(
            home.json(["--root", &root, "inspect", "--json", "empty:1"])[0]["id"],
            id.trim()
        );
        assert_eq!(
            home.json(["--root", &root, "layers", "--json", "empty:1"]),
            json!([])
        );
        run(&["history", "empty:1"]).ok();
        run(&["verify", "empty:1"]).ok_with_progress();
        for how in [&["-r"][..], &["--ephemeral"], &[]] {
            let args = [&["mount"], how, &["empty:1", "mnt"]].concat();
            let said = run(&args).ok();
            assert_eq!(entries(&home), Vec::<String>::new());
            let mode = fs::metadata(home.path("mnt")).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o755);
            let written = fs::write(home.path("mnt/new"), "new");
            assert_eq!(written.is_ok(), how != ["-r"], "{how:?}");
            assert_eq!(said.contains("changes are kept"), how.is_empty());
            umount();
        }
        run(&["catalog", "build", "empty:1"]).failed(1, &["empty:1", "no layers"]);
        run(&["export", "-q", "-o", "empty-files.tar", "empty:1"]).ok();
        assert_eq!(shell(&home, "tar -tf empty-files.tar"), "");
        run(&["save", "-q", "-o", "saved.tar", "empty:1"]).ok();
        // A read-write layer on the image.
        run(&["mount", "--name", "work", "empty:1", "mnt"]).ok();
        fs::create_dir(home.path("mnt/dir")).unwrap();
        fs::write(home.path("mnt/dir/file"), "data").unwrap();
        umount();
        home.run(["mount", "--name", "work", "mnt"]).ok();
        assert_eq!(entries(&home), ["dir"]);
        fs::remove_file(home.path("mnt/dir/file")).unwrap();
        fs::write(home.path("mnt/dir/other"), "data").unwrap();
        umount();
        assert_eq!(home.run(["diff", "work"]).ok(), "A /dir\nA /dir/other\n");
        home.run(["export", "-q", "-o", "work.tar", "work"]).ok();
        assert_eq!(shell(&home, "tar -tf work.tar"), "./\ndir/\ndir/other\n");
        home.run(["commit", "-q", "work", "made:1"]).ok();
        home.run(["verify", "made:1"]).ok_with_progress();
        home.run(["mount", "-r", "made:1", "mnt"]).ok();
        assert_eq!(entries(&home), ["dir"]);
        umount();
        home.run(["rm", "work"]).ok();
        home.run(["rmi", "made:1"]).ok();
    }
    // Docker's container has its init layer and its own layer.
    for how in [&["-r"][..], &[], &["--in-place"]] {
        let args = [
            &["--root", &docker, "mount", "--container", "box"],
            how,
            &["mnt"],
        ]
        .concat();
        home.run(args).ok();
        assert!(entries(&home).contains(&".dockerenv".to_owned()), "{how:?}");
        umount();
    }
    with_dockerd(
        &home,
        "docker",
        "docker rm box; docker rmi empty:1; docker load -i ../saved.tar; docker inspect -f '{{.Id}}' empty:1 > again",
    );
    assert_eq!(fs::read_to_string(home.path("answers/again")).unwrap(), id);
}

/// All of them share one directory as their lower.
#[test]
fn files_in_the_empty_lower_are_refused() {
    let home = need!(home());
    home.run(["load", "-q", "-i", "answers/empty.tar"]).ok();
    home.run(["mount", "-r", "empty:1", "mnt"]).ok();
    home.run(["umount", "mnt"]).ok();
    fs::write(home.path("own/rw/empty/file"), "").unwrap();
    home.run(["mount", "-r", "empty:1", "mnt"])
        .failed(1, &["rw/empty", "is to be empty"]);
}
