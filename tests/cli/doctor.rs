//! `unionfs doctor` tells what mounts get: the same as mounts that are then made.

use serde_json::Value;
use testkit::home::Home;
use testkit::need;
use testkit::need::can_mount;

#[test]
fn what_it_says_is_what_mounts_get_and_nothing_stays() {
    need!(can_mount());
    let home = Home::with_layers();
    let names = || home.run_script("find . | sort").ok();
    let before = names();
    let report = home.json(["doctor", "--json"]);
    assert_eq!(names(), before);
    assert_eq!(home.mounts(), Vec::<String>::new());
    let trial = |kind: &str| -> Value {
        let mounts = report["mounts"].as_array().unwrap();
        mounts
            .iter()
            .find(|mount| mount["kind"] == kind)
            .unwrap()
            .clone()
    };
    for (kind, options) in [
        ("writable", "lowerdir=lower,upperdir=upper,workdir=work"),
        ("read-only", "lowerdir=lower,ro"),
    ] {
        home.run(["-o", options, "mnt"]).ok();
        let record = home.json(["ps", "--json"])[0].clone();
        home.run(["umount", "mnt"]).ok();
        let trial = trial(kind);
        assert_eq!(trial["works"], true);
        for key in ["io", "transport", "sandbox"] {
            assert_eq!(trial[key], record[key], "{kind} {key}");
        }
    }
    let fact = |key: &str| {
        let facts = report["facts"].as_array().unwrap();
        facts.iter().find(|fact| fact["key"] == key).unwrap()["good"].clone()
    };
    assert_eq!(fact("fuse"), true);
    let passes = trial("writable")["io"] == "passthrough";
    assert!(!passes || fact("passthrough") == true, "{report:#}");
    let rings = trial("writable")["transport"] == "uring";
    assert!(!rings || fact("io_uring") == true, "{report:#}");
    let text = home.run(["doctor"]).ok();
    assert!(text.lines().count() <= 24 + 8, "one screen: {text}");
    for word in ["/dev/fuse", "writable", "read-only", "Landlock"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn a_mount_that_fails_is_told_with_its_reason() {
    need!(can_mount());
    let home = Home::new();
    // The process has no /dev/fuse.
    let outcome = home.run_script(
        "unshare -m sh -c 'mount --bind /dev/null /dev/fuse && exec unionfs doctor --json'",
    );
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(
        outcome.stderr.contains("a writable mount fails"),
        "{outcome:?}"
    );
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["mounts"][0]["works"], false);
    assert!(report["mounts"][0]["error"].is_string());
}
