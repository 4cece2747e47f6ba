//! What users of Docker and podman type: other names of commands, several operands, wrong commands,
//! the first call on a machine.

use testkit::home::Home;
use testkit::need;
use testkit::need::can_mount;

use crate::own_store;

fn home() -> Home {
    let home = Home::new();
    own_store::fill(&home.path("own"));
    home
}

#[test]
fn an_alias_is_its_command() {
    let home = home();
    for (alias, command) in [
        (&["image", "ls"][..], &["images"][..]),
        (&["image", "inspect", "one:1"], &["inspect", "one:1"]),
        (&["image", "history", "one:1"], &["history", "one:1"]),
        (&["image", "tree"], &["layers"]),
        (&["container", "ls", "-a"], &["ps", "-a"]),
        (&["system", "df"], &["df"]),
        (&["system", "check"], &["verify", "--all"]),
        (&["system", "info"], &["info"]),
    ] {
        assert_eq!(home.run(alias).ok(), home.run(command).ok(), "{alias:?}");
    }
    // Options of the whole program may stand before an alias.
    let listed = home.run(["--insecure-policy", "image", "ls", "-q"]).ok();
    assert_eq!(listed, home.run(["images", "-q"]).ok());
    let forced = home.run(["rm", "-f", "nothing"]);
    assert_eq!(forced.code, Some(0), "{forced:?}");
    home.run(["rm", "nothing"]).failed(1, &["nothing"]);
    for (args, words) in [
        (
            ["pull", "oci:layout:x"],
            ["not in a registry", "unionfs copy oci:layout:x NAME"],
        ),
        (
            ["pull", "docker-daemon:x"],
            ["not in a registry", "unionfs copy docker-daemon:x NAME"],
        ),
    ] {
        home.run(args).failed(2, &words);
    }
    home.run(["push", "one:1", "docker-archive:x.tar"])
        .failed(2, &["`unionfs copy one:1 docker-archive:x.tar`"]);
    let named = home.run(["inspect", "--format", "{{.Id}}", "one:1"]).ok();
    let layers = home.run(["history", "-q", "docker://one:1"]).ok();
    assert!(!named.is_empty() && !layers.is_empty());
    home.run(["umount", "nothing"])
        .failed(1, &["nothing", "unionfs ps"]);
    home.run(["image", "tag", "one:1", "more:1", "more:2"]).ok();
    assert!(home.names().contains(&"more:2".to_owned()));
    home.run(["image", "rm", "more:1", "more:2"]).ok();
    assert!(!home.names().contains(&"more:2".to_owned()));
    home.run(["image", "save", "-q", "-o", "a.tar", "one:1"])
        .ok();
    home.run(["image", "load", "-q", "-i", "a.tar"]).ok();
    let help = home.run(["image"]);
    assert!(
        help.code == Some(2) && help.stderr.contains("[rmi]"),
        "{help:?}"
    );
}

#[test]
fn containers_are_mounted_by_their_alias() {
    need!(can_mount());
    let home = home();
    home.dirs(&["mnt"]);
    home.run(["mount", "--name", "web", "one:1", "mnt"]).ok();
    std::fs::write(home.path("mnt/new"), "new").unwrap();
    home.run(["unmount", "mnt"]).ok();
    home.run(["container", "mount", "--read-only", "web", "mnt"])
        .ok();
    assert!(home.path("mnt/new").exists());
    home.run(["container", "unmount", "mnt"]).ok();
    assert!(home.run(["container", "diff", "web"]).ok().contains("new"));
    home.run(["container", "rm", "web"]).ok();
}

#[test]
fn several_archives_are_loaded_and_the_first_failure_ends_it() {
    let home = home();
    home.run(["save", "-q", "-o", "one.tar", "one:1"]).ok();
    home.run(["save", "-q", "-o", "two.tar", "two:1"]).ok();
    home.run(["rmi", "-f", "one:1", "one:latest", "two:1"]).ok();
    assert_eq!(home.names(), Vec::<String>::new());
    std::fs::write(home.path("bad.tar"), "no archive").unwrap();
    let outcome = home.run(["load", "-q", "one.tar", "bad.tar", "two.tar"]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stdout.contains("Loaded image: one:1"),
        "{outcome:?}"
    );
    assert!(outcome.stderr.contains("bad.tar"), "{outcome:?}");
    assert_eq!(home.names(), ["one:1"]);
    let text = home.run(["load", "-q", "one.tar", "two.tar"]).ok();
    assert_eq!(text, "Loaded image: one:1\nLoaded image: two:1\n");
    let wrong = home.run(["load", "-i", "one.tar", "two.tar"]);
    assert!(
        wrong.code == Some(2) && wrong.stderr.contains("Usage:"),
        "{wrong:?}"
    );
}

#[test]
fn rmi_with_force_ignores_what_is_gone() {
    let home = home();
    home.run(["rmi", "absent:1"]).failed(1, &["absent:1"]);
    let outcome = home.run(["rmi", "-f", "absent:1", "two:1"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("absent:1"), "{outcome:?}");
    assert!(outcome.stdout.contains("Untagged: two:1"), "{outcome:?}");
}

#[test]
fn wrong_commands_get_a_tip_that_helps() {
    let home = Home::new();
    let text = home.run(["exec", "-it", "debian"]).stderr;
    assert!(
        text.contains("keeps no containers") && !text.contains("export"),
        "{text}"
    );
    let text = home.run(["imagse"]).stderr;
    assert!(
        text.contains("'images'") && text.contains("Usage:"),
        "{text}"
    );
    assert!(home.run(["version"]).ok().starts_with("unionfs 0."));
}

#[test]
fn a_machine_without_stores_has_no_images_and_a_next_step() {
    let home = Home::new();
    let run = |args: &[&str]| {
        let mut command = home.command(testkit::program());
        command
            .env("UNIONFS_ROOT", home.path("none"))
            .env("CONTAINERS_STORAGE_CONF", home.path("none.conf"));
        testkit::home::Outcome::from(command.args(args).output().unwrap())
    };
    let outcome = run(&["images"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stdout.starts_with("NAME"), "{outcome:?}");
    // Images of engines on this machine are found too.
    if outcome.stdout.lines().count() == 1 {
        for next in ["unionfs pull", "unionfs load", "unionfs import"] {
            assert!(outcome.stderr.contains(next), "{outcome:?}");
        }
        assert_eq!(run(&["images", "--json"]).ok(), "[]\n");
    }
}

#[test]
fn an_unknown_image_is_compared_with_those_that_exist() {
    let home = home();
    home.run(["inspect", "one:7"])
        .failed(1, &["one:1", "unionfs pull", "unionfs images"]);
    home.run(["rmi", "tow:1"]).failed(1, &["two:1"]);
    let far = home.run(["inspect", "something"]).stderr;
    assert!(!far.contains("is it"), "{far}");
}
