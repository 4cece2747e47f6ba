//! `unionfs doctor` shows what this system offers, and what mounts of this user get.
//!
//! The answers about mounts are not derived from the other facts: two small unions are mounted in a
//! temporary directory, by this program as a user would start it, and their records are read.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;

use super::doctor_facts::{self, Fact};
use super::output::{Table, one_line, print, print_json, terminal_width, wrapped};
use super::{environment, version::VERSION};

/// Show what this system offers to mounts, and what to change for more
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs doctor
  unionfs doctor --json | jq '.mounts[] | {kind, io, transport}'

Two small directories are mounted and unmounted again, once writable and once read-only, in the own
store if it exists and else in the directory for temporary files.

Exit codes: 0 both mounts work, 1 one of them fails, 2 wrong usage. What could be faster or safer is no
failure.")]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    kernel: String,
    user: String,
    facts: Vec<Fact>,
    mounts: Vec<Trial>,
    advice: Vec<String>,
}

/// The result of a mount.
#[derive(Default, Serialize)]
struct Trial {
    kind: &'static str,
    works: bool,
    /// The path of file data.
    #[serde(skip_serializing_if = "Option::is_none")]
    io: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<String>,
    /// The parts of the sandbox of its server.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut facts = doctor_facts::all();
    let mounts = trials().context("cannot try a mount")?;
    let sandboxes = mounts.iter().filter_map(|mount| mount.sandbox.as_ref());
    let landlock = sandboxes.filter_map(|sandbox| sandbox["landlock"].as_u64());
    if let Some(version) = landlock.max() {
        doctor_facts::landlock_is_in_force(&mut facts, version);
    }
    let advice = advice(&facts, &mounts);
    let uid = rustix::process::geteuid();
    let report = Report {
        version: VERSION,
        kernel: rustix::system::uname().release().to_string_lossy().into(),
        user: if uid.is_root() {
            "root".to_owned()
        } else {
            format!("user {}", uid.as_raw())
        },
        facts,
        mounts,
        advice,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&text(&report, terminal_width()))?;
    }
    match report.mounts.iter().find(|mount| !mount.works) {
        None => Ok(()),
        Some(mount) => anyhow::bail!(
            "a {} mount fails: {}",
            mount.kind,
            mount.error.as_deref().unwrap_or("it does not answer")
        ),
    }
}

/// Mounts in a new directory, which is removed.
fn trials() -> anyhow::Result<Vec<Trial>> {
    let own = environment().own_root().ok().filter(|own| own.is_dir());
    let base = own.unwrap_or_else(std::env::temp_dir);
    let made = tempfile::Builder::new()
        .prefix(".doctor-")
        .tempdir_in(&base);
    let dir = match made {
        Ok(dir) => dir,
        // The own store may belong to another user.
        Err(_) => tempfile::tempdir()?,
    };
    let place = dir.path().canonicalize()?;
    for name in ["run", "lower", "upper", "work", "mnt"] {
        std::fs::create_dir(place.join(name))?;
    }
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(place.join("run"), std::fs::Permissions::from_mode(0o700))?;
    let writable = "lowerdir=lower,upperdir=upper,workdir=work";
    let trials = vec![
        trial(&place, "writable", writable)?,
        trial(&place, "read-only", "lowerdir=lower,ro")?,
    ];
    Ok(trials)
}

fn trial(place: &Path, kind: &'static str, options: &str) -> anyhow::Result<Trial> {
    let run = |args: &[&str]| {
        Command::new("/proc/self/exe")
            .args(args)
            .current_dir(place)
            .env("UNIONFS_RUNTIME_DIR", place.join("run"))
            .stdin(Stdio::null())
            .output()
            .context("cannot start unionfs")
    };
    let mounted = run(&["-o", options, "mnt"])?;
    if !mounted.status.success() {
        let message = String::from_utf8_lossy(&mounted.stderr);
        let message = message.trim().trim_start_matches("unionfs: ");
        return Ok(Trial {
            kind,
            error: Some(one_line(message)),
            ..Trial::default()
        });
    }
    let listed = run(&["ps", "--json"])?;
    let records: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
    let ended = run(&["umount", "mnt"])?;
    if !ended.status.success() {
        run(&["umount", "--lazy", "mnt"])?;
    }
    let text = |key: &str| records[0][key].as_str().map(str::to_owned);
    Ok(Trial {
        kind,
        works: ended.status.success(),
        io: text("io"),
        transport: text("transport"),
        sandbox: records[0].get("sandbox").cloned(),
        error: (!ended.status.success())
            .then(|| one_line(String::from_utf8_lossy(&ended.stderr).trim())),
    })
}

fn advice(facts: &[Fact], mounts: &[Trial]) -> Vec<String> {
    let mut advice: Vec<String> = Vec::new();
    for fact in facts.iter().filter(|fact| !fact.good) {
        if let Some(remedy) = &fact.remedy {
            advice.push(format!("{}: {remedy}", fact.name));
        }
    }
    let cached = |mount: &&Trial| mount.kind == "writable" && mount.io.as_deref() == Some("cached");
    let passes = facts
        .iter()
        .any(|fact| fact.key == "passthrough" && fact.good);
    if passes && mounts.iter().any(|mount| cached(&mount)) {
        let text = "data is not passed through: the upper must be on a file system that is not \
            stacked (no overlay, no FUSE), such as ext4, xfs or btrfs";
        advice.push(text.to_owned());
    }
    advice
}

/// Returns the report for people, in lines of at most `width` columns.
fn text(report: &Report, width: Option<usize>) -> String {
    let mut text = format!(
        "unionfs {} on Linux {}, as {}\n\n",
        report.version,
        one_line(&report.kernel),
        report.user
    );
    for fact in &report.facts {
        let mark = if fact.good { "yes" } else { "no" };
        let head = format!("{:<19}{mark:<5}", fact.name);
        text += &wrapped(&head, &one_line(&fact.detail), width);
    }
    let mut table = Table::new(&["MOUNT", "WORKS", "IO", "TRANSPORT"]);
    let shown = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for mount in &report.mounts {
        let works = if mount.works { "yes" } else { "no" };
        table.row([
            mount.kind.to_owned(),
            works.to_owned(),
            shown(&mount.io),
            shown(&mount.transport),
        ]);
    }
    text.push('\n');
    text += &table.render();
    text.push('\n');
    for (kinds, sandbox) in sandboxes(&report.mounts) {
        let head = format!("sandbox ({kinds}): ");
        text += &wrapped(&head, &sandbox, width);
    }
    if report.advice.is_empty() {
        text += "\nNothing to change.\n";
    } else {
        text += "\nFor more:\n";
        for line in &report.advice {
            text += &wrapped("- ", &one_line(line), width);
        }
    }
    text
}

/// Returns each sandbox once, with the kinds of mounts that have it.
fn sandboxes(mounts: &[Trial]) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for mount in mounts.iter().filter(|mount| mount.works) {
        let text = mount.sandbox.as_ref().map(sandbox_text);
        let text = text.unwrap_or_else(|| "none".to_owned());
        match found.iter_mut().find(|(_, known)| *known == text) {
            Some((kinds, _)) => *kinds = format!("{kinds}, {}", mount.kind),
            None => found.push((mount.kind.to_owned(), text)),
        }
    }
    found
}

/// Names the parts of a sandbox, without the capabilities.
fn sandbox_text(parts: &Value) -> String {
    let has = |key: &str| parts[key] == true;
    let mut names = Vec::new();
    for (key, name) in [
        ("mount_namespace", "mount namespace"),
        ("private_layers", "private layers"),
        ("seccomp", "seccomp"),
        ("no_new_privs", "no_new_privs"),
    ] {
        if has(key) {
            names.push(name.to_owned());
        }
    }
    if let Some(version) = parts["landlock"].as_u64() {
        names.push(format!("Landlock {version}"));
    }
    names.join(", ")
}

/// Returns a file of the system as text; empty if it cannot be read.
pub(super) fn read(path: impl Into<PathBuf>) -> String {
    std::fs::read_to_string(path.into()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest report: of everything something is missing, and both sandboxes differ.
    #[test]
    fn the_report_fits_a_terminal() {
        let mut facts = doctor_facts::all();
        for fact in &mut facts {
            fact.good = false;
        }
        let parts = |landlock: u64| {
            serde_json::json!({"mount_namespace": true, "private_layers": true, "seccomp": true,
                "no_new_privs": true, "landlock": landlock})
        };
        let trial = |kind, version| Trial {
            kind,
            works: true,
            io: Some("cached".to_owned()),
            transport: Some("classic".to_owned()),
            sandbox: Some(parts(version)),
            error: None,
        };
        let mounts = vec![trial("writable", 6), trial("read-only", 7)];
        let advice = advice(&facts, &mounts);
        let report = Report {
            version: VERSION,
            kernel: "6.18.44-some-long-name".to_owned(),
            user: "user 1000".to_owned(),
            facts,
            mounts,
            advice,
        };
        for (width, height) in [(80, 48), (100, 40)] {
            let text = text(&report, Some(width));
            assert!(text.lines().count() <= height, "{width}: {text}");
            for line in text.lines() {
                // A path is not broken.
                let words = line.split_whitespace().count();
                assert!(
                    line.chars().count() <= width || words <= 2,
                    "{width}: {line}"
                );
            }
        }
    }
}
