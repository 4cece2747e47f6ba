//! The manual pages: one for each command, with the usual sections, and no reference to a page that
//! does not exist.

use std::collections::BTreeMap;
use std::path::Path;

use testkit::home::Home;
use testkit::need;
use testkit::need::has_tools;

/// Pages of other packages that ours name.
const OTHERS: [&str; 10] = [
    "mount(8)",
    "umount(8)",
    "fusermount3(1)",
    "chroot(1)",
    "bwrap(1)",
    "systemd-nspawn(1)",
    "jq(1)",
    "rm(1)",
    "syncfs(2)",
    "fsync(2)",
];

/// Returns the pages by name, `unionfs-mount(1)`, with their text.
fn pages(dir: &Path) -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    for section in ["1", "5"] {
        let dir = dir.join(format!("man{section}"));
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(path.extension().unwrap(), section);
            let name = path.file_stem().unwrap().to_str().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            pages.insert(format!("{name}({section})"), text);
        }
    }
    pages
}

/// Returns the references in a page: `name(1)`.
fn references(page: &str) -> Vec<String> {
    let page = page
        .replace("\\-", "-")
        .replace("\\fR", " ")
        .replace("\\fB", " ");
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut all = Vec::new();
    for section in '1'..='8' {
        let mark = format!("({section})");
        for (at, _) in page.match_indices(&mark) {
            let before = &page[..at];
            let start = before.rfind(|c| !is_part(c)).map_or(0, |place| place + 1);
            if start < at {
                all.push(format!("{}{mark}", &before[start..]));
            }
        }
    }
    all
}

#[test]
fn every_command_has_a_page_with_all_sections() {
    let home = Home::new();
    assert_eq!(home.run(["man", "pages"]).ok(), "");
    let pages = pages(&home.path("pages"));
    let help = home.run(["--help"]).ok();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    // A long name has its text in the next line, which is indented further.
    let names = commands.filter(|line| !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    // The groups have other names of commands.
    let left_out = ["help", "image", "container", "system"];
    let names: Vec<&str> = names.filter(|name| !left_out.contains(name)).collect();
    assert!(names.len() > 20, "{help}");
    for name in &names {
        assert!(pages.contains_key(&format!("unionfs-{name}(1)")), "{name}");
    }
    for (name, page) in &pages {
        let sections: &[&str] = if name.ends_with("(5)") {
            &["NAME", "DESCRIPTION", "FILES", "ENVIRONMENT"]
        } else {
            &[
                "NAME",
                "SYNOPSIS",
                "DESCRIPTION",
                "EXAMPLES",
                "EXIT STATUS",
                "ENVIRONMENT",
                "FILES",
            ]
        };
        for section in sections {
            let heads = [format!(".SH {section}\n"), format!(".SH \"{section}\"\n")];
            assert!(
                heads.iter().any(|head| page.contains(head)),
                "{name}: {section}"
            );
        }
    }
    assert!(pages["unionfs-mount(1)"].contains("ephemeral"));
    assert!(pages["unionfs(5)"].contains("repositories.json"));
    assert_eq!(home.run(["man"]).ok(), pages["unionfs(1)"]);
}

#[test]
fn no_page_refers_to_one_that_does_not_exist() {
    let home = Home::new();
    home.run(["man", "pages"]).ok();
    let pages = pages(&home.path("pages"));
    let mut found = 0;
    for (name, page) in &pages {
        for reference in references(page) {
            let known = pages.contains_key(&reference) || OTHERS.contains(&&*reference);
            assert!(known, "{name} refers to {reference}");
            found += 1;
        }
    }
    assert!(found > 100, "only {found} references");
}

#[test]
fn pages_are_formatted_without_warnings() {
    need!(has_tools(&["groff"]));
    let home = Home::new();
    home.run(["man", "pages"]).ok();
    for section in ["man1", "man5"] {
        for entry in std::fs::read_dir(home.path("pages").join(section)).unwrap() {
            let path = entry.unwrap().path();
            let mut groff = home.command("groff");
            groff
                .args(["-man", "-Tutf8", "-Kutf8", "-ww", "-z"])
                .arg(&path);
            let output = groff.output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && text.is_empty(),
                "{path:?}: {text}"
            );
        }
    }
}
