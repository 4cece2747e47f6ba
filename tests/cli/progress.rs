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

/// Returns the events of `--progress=json`.
fn events(outcome: &Outcome) -> Vec<serde_json::Value> {
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let lines = outcome.stderr.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn progress_is_shown_as_asked_for() {
    need!(can_mount());
    need!(has_tools(&["script"]));
    let home = home();
    for (at, &(args, expected)) in COMMANDS[..5].iter().enumerate() {
        let how = |how: &str| home.run([args, &[how][..]].concat());
        let events = events(&how("--progress=json"));
        let states: Vec<&str> = events
            .iter()
            .map(|event| event["state"].as_str().unwrap())
            .collect();
        assert!(
            states.last() == Some(&"done") && states.len() > 1,
            "{events:?}"
        );
        assert!(
            events.last().unwrap()["bytes"].as_u64() > Some(0),
            "{events:?}"
        );
        assert_eq!(how("--progress=quiet").stderr, "");
        let plain = how("--progress=plain");
        assert!(plain.stderr.contains(expected), "{plain:?}");
        // What is no terminal cannot be redrawn.
        assert!(!how("--progress=tty").stderr.contains('\r'));
        // On a terminal, plain stays plain.
        let command = format!(
            "{} {} --progress=plain > out{at}",
            program(),
            args.join(" ")
        );
        let mut script = home.command("script");
        let outcome = script.args(["-qec", &command, "/dev/null"]).output();
        let outcome = Outcome::from(outcome.unwrap());
        assert!(
            !outcome.stdout.replace("\r\n", "").contains('\r'),
            "{outcome:?}"
        );
    }
    // Beside the JSON of a result there is progress only if it is asked for.
    let outcome = home.run(["load", "-i", "flat.tar", "--json", "--progress=json"]);
    assert_eq!(events(&outcome).last().unwrap()["state"], "exists");
    let wrong = home.run(["save", "one:1", "-q", "--progress=plain"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
}

/// What prints a result, or files, shows progress only on a terminal or where it is asked for.
#[test]
fn verify_catalog_and_cp_show_progress_where_it_is_asked_for() {
    need!(has_tools(&["script"]));
    let home = Home::new();
    home.dirs(&["rootfs/etc"]);
    std::fs::write(home.path("rootfs/etc/file"), vec![7; 300_000]).unwrap();
    home.run(["import", "-q", "rootfs", "flat:1"]).ok();
    let commands: [(&[&str], &str, &str); 5] = [
        (&["verify", "flat:1"], ": verified, 30", "bytes"),
        (&["verify", "--all"], ": verified, 30", "bytes"),
        (
            &["catalog", "build", "flat:1"],
            "flat:1: built, 2 names",
            "names",
        ),
        (
            &["catalog", "verify", "flat:1"],
            "flat:1: compared, 2 names",
            "names",
        ),
        (
            &["cp", "flat:1:/etc", "."],
            "flat:1:/etc: copied, 300kB",
            "bytes",
        ),
    ];
    for (args, expected, unit) in commands {
        let how = |how: &str| home.run([args, &[how][..]].concat());
        home.run(args).ok();
        how("--progress=quiet").ok();
        how("-q").ok();
        let plain = how("--progress=plain");
        assert!(plain.stderr.contains(expected), "{plain:?}");
        assert_eq!(plain.stderr.lines().count(), 1, "{plain:?}");
        let events = events(&how("--progress=json"));
        let last = events.last().unwrap();
        assert_eq!(last["state"], "done", "{events:?}");
        assert!(last[unit].as_u64() >= Some(2), "{events:?}");
        // On a terminal a line is redrawn, and goes.
        let command = format!("{} {} > out", program(), args.join(" "));
        let mut script = home.command("script");
        let outcome = script.args(["-qec", &command, "/dev/null"]).output();
        let outcome = Outcome::from(outcome.unwrap());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(!outcome.stdout.contains(expected), "{outcome:?}");
    }
    let tar = home.run(["cp", "--progress=plain", "flat:1:/etc/file", "-"]);
    assert!(tar.stderr.contains("copied, 30"), "{tar:?}");
    // A damaged layer is not said to be verified.
    let layer = home.json(["layers", "flat:1", "--json"])[0]["path"].clone();
    let file = std::path::Path::new(layer.as_str().unwrap()).join("etc/file");
    std::fs::write(file, "damage").unwrap();
    let outcome = home.run(["verify", "--progress=plain", "flat:1"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains(": failed\n"), "{outcome:?}");
}
