//! The output while layers and trees are read and written: a line each on stderr if that is no
//! terminal, a bar on a terminal, nothing with `--quiet` and `--json`.

use testkit::home::{Home, Outcome};
use testkit::need::{can_mount, has_tools};
use testkit::{need, program};

use crate::own_store;

/// Returns a home with images, a named layer on `one:1`, a root file system and an archive.
fn home() -> Home {
    let home = Home::new();
    home.dirs(&["mnt", "rootfs"]);
    own_store::fill(&home.path("own"));
    std::fs::write(home.path("rootfs/file"), vec![7; 300_000]).unwrap();
    home.run(["mount", "--name", "work", "one:1", "mnt"]).ok();
    std::fs::write(home.path("mnt/new"), vec![8; 200_000]).unwrap();
    home.run(["umount", "mnt"]).ok();
    home.run(["export", "-q", "one:1", "-o", "rootfs.tar"]).ok();
    home.run(["import", "-q", "rootfs.tar", "flat:1"]).ok();
    home.run(["save", "-q", "-o", "flat.tar", "flat:1"]).ok();
    home.run(["rmi", "flat:1"]).ok();
    home
}

/// Each command and the expected text of its lines.
const COMMANDS: [(&[&str], &str); 6] = [
    (&["commit", "work", "made:1"], ": committed, 20"),
    (&["import", "rootfs", "made:2"], "\"rootfs\": imported, 30"),
    (
        &["import", "rootfs.tar", "made:3"],
        "\"rootfs.tar\": imported, ",
    ),
    (&["export", "work", "-o", "out.tar"], "work: exported, 20"),
    (&["save", "one:1", "-o", "saved.tar"], ": saved, "),
    (&["load", "-i", "flat.tar"], ": exists"),
];

#[test]
fn each_step_is_a_line() {
    need!(can_mount());
    let home = home();
    let outcome = home.run(["load", "-i", "flat.tar"]);
    assert!(outcome.stderr.contains(": loaded, "), "{outcome:?}");
    for (args, expected) in COMMANDS {
        let outcome = home.run(args);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(
            outcome.stderr.contains(expected),
            "{args:?}: no {expected:?} in {outcome:?}"
        );
        assert!(outcome.stderr.lines().count() <= 3, "{outcome:?}");
        assert!(!outcome.stderr.contains('\r'), "{outcome:?}");
        home.run([args, &["--quiet"]].concat()).ok();
    }
    // With JSON output there is nothing else.
    for args in [
        &["commit", "work", "made:1", "--json"][..],
        &["import", "rootfs", "made:2", "--json"],
        &["load", "-i", "flat.tar", "--json"],
    ] {
        home.json(args);
    }
}

#[test]
fn a_terminal_gets_a_bar() {
    need!(can_mount());
    need!(has_tools(&["script"]));
    let home = home();
    for (args, _) in &COMMANDS[..5] {
        let command = format!("{} {} > out", program(), args.join(" "));
        let outcome = home
            .command("script")
            .args(["-qec", &command, "/dev/null"])
            .output();
        let outcome = Outcome::from(outcome.unwrap());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        // The bar is redrawn in place.
        let bar = outcome.stdout.contains('\r') && outcome.stdout.contains("B/s");
        assert!(bar, "{args:?}: {outcome:?}");
    }
}
