//! Commands that list, and the help of all commands, on terminals of 80 and of 100 columns and in a pipe: no
//! line is wider than the terminal, no cell is broken into two lines, and a pipe gets no escapes.

use std::fs::File;
use std::io::Read as _;

use rustix::termios::{Winsize, tcsetwinsize};
use testkit::home::Home;
use testkit::need::can_mount;
use testkit::store::sample;
use testkit::{need, program};
use unicode_width::UnicodeWidthStr as _;
use unionfs::sys::terminal;

/// Runs the program on a terminal; returns what it wrote there, without carriage returns.
fn on_terminal(home: &Home, columns: u16, args: &[&str]) -> String {
    let mut command = home.command(program());
    command.args(args).env("TERM", "xterm-256color");
    command.env_remove("NO_COLOR").env_remove("COLUMNS");
    let end = terminal::give(&mut command).unwrap();
    let size = Winsize {
        ws_row: 50,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&end, size).unwrap();
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut end = File::from(end);
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    // EIO: the program has ended.
    while let Ok(got) = end.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..got]);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}");
    let text = String::from_utf8(bytes).unwrap();
    text.replace('\r', "")
}

/// Returns a text without sequences of escapes that set colours.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (colour, rest) = part.split_once('m').unwrap();
        let is_colour = |c: char| c.is_ascii_digit() || c == ';';
        assert!(colour.chars().all(is_colour), "{part:?}");
        plain += rest;
    }
    plain
}

#[track_caller]
fn fits(text: &str, columns: u16, args: &[&str]) {
    for line in text.lines() {
        let width = line.trim_end().width();
        assert!(
            width <= usize::from(columns),
            "{args:?}: {width} of {columns} columns: {line}"
        );
    }
}

/// The place of a mount.
const DEEP: &str = "a-long-directory/another/another/another/another/another/another/another/mnt";

/// Returns a home with images of long and short names, a mount, layers that are not mounted, and catalogs.
fn home() -> Home {
    let home = Home::new();
    sample::make(&home.path("docker")).unwrap();
    let docker = home.text("docker");
    for name in ["sample:1", "sample:2"] {
        home.run(["--root", &docker, "copy", "-q", name, name]).ok();
    }
    let long = format!("registry.example.org/{}app:2", "team/".repeat(12));
    home.run(["tag", "sample:2", &long]).ok();
    home.run(["catalog", "build", "sample:2"])
        .ok_with_progress();
    home.dirs(&[DEEP, "other", "third"]);
    home.run(["mount", "--name", "web", &long, DEEP]).ok();
    std::fs::write(
        home.path(DEEP)
            .join("etc/changed-with-a-name-of-some-length"),
        "x",
    )
    .unwrap();
    home.run(["mount", "--name", "idle", "sample:1", "other"])
        .ok();
    home.run(["umount", "other"]).ok();
    home.run(["mount", "sample:1", "third"]).ok();
    home.run(["umount", "third"]).ok();
    home
}

/// Tables: a row is one line, on a terminal as in a pipe.
const TABLES: [&[&str]; 16] = [
    &["images"],
    &["images", "-a", "--digests"],
    &[
        "images",
        "--format",
        r"table {{.Name}}\t{{.Size}}\t{{.Root}}",
    ],
    &["ps"],
    &["ps", "-a"],
    &["df"],
    &["df", "--format", "table"],
    &["layers"],
    &["layers", "sample:2"],
    &["history", "sample:2"],
    &["diff", "sample:1", "sample:2"],
    &["diff", "web"],
    &["catalog", "ls"],
    &["prune", "-n"],
    &["info"],
    &["verify", "--all", "-q"],
];

#[test]
fn every_list_fits_terminals_and_is_whole_in_a_pipe() {
    need!(can_mount());
    let home = home();
    for args in TABLES {
        let piped = home.run(args).ok();
        assert!(!piped.contains('\x1b') && !piped.contains('…'), "{piped}");
        for columns in [80, 100] {
            let shown = on_terminal(&home, columns, args);
            assert!(!shown.contains('\x1b'), "tables have no colours: {shown:?}");
            fits(&shown, columns, args);
            let rows = |text: &str| text.lines().filter(|line| !line.contains('`')).count();
            if args[0] != "prune" {
                assert_eq!(rows(&shown), rows(&piped), "{shown}");
            }
        }
    }
    // What has no rows of cells, but is for people too.
    for args in [
        &["doctor"][..],
        &["ls", "-l", "sample:2", "/etc"],
        &["ls", "sample:2"],
        &["stats", DEEP],
    ] {
        let piped = home.run(args).ok();
        assert!(!piped.contains('\x1b'), "{piped}");
        for columns in [80, 100] {
            fits(&on_terminal(&home, columns, args), columns, args);
        }
    }
    // Digests and paths stay whole.
    for columns in [80, 100] {
        let args = ["inspect", "sample:2"];
        let shown = on_terminal(&home, columns, &args);
        let narrow = usize::from(columns) - "Architecture: ".len();
        let broken = |line: &&str| line.split_whitespace().all(|word| word.len() <= narrow);
        let lines: Vec<&str> = shown.lines().filter(broken).collect();
        assert!(!lines.is_empty());
        fits(&lines.join("\n"), columns, &args);
    }
}

#[test]
fn help_fits_terminals() {
    let home = Home::new();
    let all = home.run(["--help"]).ok();
    let (_, commands) = all.split_once("Commands:\n").unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| {
        let is_name = line.starts_with("  ") && !line.starts_with("   ");
        line.split_whitespace().next().filter(|_| is_name)
    });
    let names: Vec<&str> = names.collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        let args = match name {
            "help" => ["--help", "-h"],
            name => [name, "--help"],
        };
        let args = &args[..if name == "help" { 1 } else { 2 }];
        for columns in [80, 100] {
            let shown = without_colours(&on_terminal(&home, columns, args));
            fits(&shown, columns, args);
        }
        let piped = home.run(args).ok();
        assert!(!piped.contains('\x1b'), "{piped}");
    }
}
