//! Completion of command lines: the words that the scripts get, and what cannot get into them.

use std::process::Command;

use rustix::fs::FlockOperation;
use testkit::home::Home;
use testkit::need::{can_mount, has_tools};
use testkit::{need, program};

use crate::own_store;

/// Returns the words for the last of these, as the script of bash asks for them.
fn words(home: &Home, line: &[&str]) -> Vec<String> {
    let mut command = home.command(program());
    command
        .env("UNIONFS_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (line.len() - 1).to_string())
        .env("CONTAINERS_STORAGE_CONF", home.path("none.conf"));
    let output = command.arg("--").args(line).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.split('\u{b}').filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

#[test]
fn names_are_completed() {
    let home = Home::new();
    own_store::fill(&home.path("own"));
    let own = home.text("own");
    let complete = |line: &[&str]| words(&home, &[&["unionfs", "--root", &own], line].concat());
    assert_eq!(complete(&["inspect", "one"]), ["one:1", "one:latest"]);
    assert_eq!(complete(&["inspect", "one:1", "tw"]), ["two:1"]);
    assert_eq!(complete(&["image", "rm", "two:"]), ["two:1"]);
    assert_eq!(complete(&["mount", "tw"]), ["two:1"]);
    for command in ["ls", "cat", "cp", "squash", "run", "bundle", "diff"] {
        assert_eq!(complete(&[command, "tw"]), ["two:1"], "{command}");
    }
    assert_eq!(complete(&["diff", "one:1", "tw"]), ["two:1"]);
    assert_eq!(complete(&["images", "--form"]), ["--format"]);
    assert!(words(&home, &["unionfs", "im"]).contains(&"image".to_owned()));
    let none = words(&home, &["unionfs", "--root", "/none", "inspect", "one"]);
    assert_eq!(none, Vec::<String>::new());
}

#[test]
fn layers_and_mountpoints_are_completed() {
    need!(can_mount());
    let home = Home::new();
    own_store::fill(&home.path("own"));
    home.dirs(&["mnt", "m $(touch evil)"]);
    home.run(["mount", "--name", "web", "one:1", "mnt"]).ok();
    home.run(["mount", "-r", "one:1", "m $(touch evil)"]).ok();
    assert_eq!(words(&home, &["unionfs", "rm", "w"]), ["web"]);
    assert_eq!(words(&home, &["unionfs", "mount", "--name", "w"]), ["web"]);
    assert_eq!(words(&home, &["unionfs", "diff", "we"]), ["web"]);
    // A shell would run the name of the other mountpoint.
    let below = home.text("");
    assert_eq!(
        words(&home, &["unionfs", "umount", &below]),
        [home.text("mnt")]
    );
    home.run(["umount", "mnt"]).ok();
    home.run(["umount", "m $(touch evil)"]).ok();
}

/// A process that removes an image makes readers wait. The shell must not wait with them.
#[test]
fn a_store_that_does_not_answer_gives_no_words() {
    let home = Home::new();
    own_store::fill(&home.path("own"));
    let lock = std::fs::File::open(home.path("own/unionfs/removing")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    let own = home.text("own");
    let line = ["unionfs", "--root", &own, "inspect", "one"];
    assert_eq!(words(&home, &line), Vec::<String>::new());
    drop(lock);
    assert_eq!(words(&home, &line), ["one:1", "one:latest"]);
}

#[test]
fn bash_completes_names_with_colons() {
    need!(has_tools(&["bash"]));
    let home = Home::new();
    own_store::fill(&home.path("own"));
    let own = home.text("own");
    let script = home.run(["completions", "bash"]).ok();
    std::fs::write(home.path("script"), script).unwrap();
    let complete = |words: &str, current: &str| {
        let text = format!(
            "source ./script; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _unionfs_complete unionfs '{current}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let dir = std::path::Path::new(program()).parent().unwrap();
        let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
        let mut bash: Command = home.command("bash");
        let output = bash.env("PATH", path).args(["-c", &text]).output().unwrap();
        assert!(output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let line = format!("unionfs --root {own} inspect");
    assert_eq!(
        complete(&format!("{line} one"), "one"),
        "one:1\none:latest\n"
    );
    // bash splits at the colon and replaces only what follows it.
    assert_eq!(complete(&format!("{line} one :"), ""), "1\nlatest\n");
    assert_eq!(complete(&format!("{line} one : l"), "l"), "latest\n");
    assert_eq!(complete(&format!("{line} one:1 two : 1"), "1"), "1\n");
}

#[test]
fn every_shell_gets_a_script() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = home.run(["completions", shell]).ok();
        assert!(script.contains("UNIONFS_COMPLETE"), "{script}");
        if need::part(has_tools(&[shell])) {
            std::fs::write(home.path("script"), script).unwrap();
            let flag = if shell == "fish" {
                "--no-execute"
            } else {
                "-n"
            };
            let output = home.command(shell).args([flag, "script"]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    }
}
