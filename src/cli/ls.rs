//! `unionfs ls` lists files of an image, container or layer without a mount.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::archive_names;
use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::diff::{base64_if_binary, escape};
use super::named_tree::{self, Opening};
use super::output::{print_bytes, print_json, size};
use unionfs::changes::{self, LastLink, Node, Tree, Visit};
use unionfs::union::{Attr, FileKind, Time};

/// List files of an image, container or layer, without a mount
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Examples:
  unionfs ls myapp:2 /etc
  unionfs ls -l myapp:2:/etc/os-release
  unionfs ls -R --json web /srv | jq -r '.[] | select(.size > 1000000).path'

NAME is a named layer, a container, an image, or a layer of an image by its digest: a chain ID (as
unionfs layers prints) means the files of the layer and of all below it, a diff ID those of the layer
alone. Symlinks on the path are followed within the image.

Owners are numbers, since the names are those of the image and not of this system. Times are UTC.
Control characters, backslashes and bytes that are not UTF-8 are printed as \\xNN."
)]
pub(super) struct Args {
    /// The image, container or layer, and paths in it [default path: /]
    #[arg(value_name = "NAME[:/PATH] [PATH]", required = true, add = candidates::trees())]
    operands: Vec<OsString>,
    /// Show type, mode, links, owner, size and time of each file
    #[arg(long, short = 'l')]
    long: bool,
    /// Include names that begin with a dot
    #[arg(long, short = 'a', short_alias = 'A')]
    all: bool,
    /// List directories themselves, not their content
    #[arg(long, short = 'd')]
    directory: bool,
    /// List everything below
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Show sizes in kB, MB and so on
    #[arg(long, short = 'h')]
    human: bool,
    /// One name on a line, as always
    #[arg(short = '1', hide = true)]
    one: bool,
    /// Print JSON: an array of files with their attributes
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Serialize)]
struct Row {
    /// The absolute path in the tree.
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    /// The permissions, in octal digits.
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    /// In seconds since 1970.
    mtime: i64,
    nlink: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
}

/// A file of the output.
struct Listed {
    /// The name to print.
    shown: Vec<u8>,
    path: Vec<u8>,
    attr: Attr,
    target: Option<Vec<u8>>,
}

/// A part of the output: single files, or the content of one directory.
struct Group {
    head: Option<Vec<u8>>,
    files: Vec<Listed>,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let (name, mut paths) = named_tree::operands(&args.operands)?;
    if paths.is_empty() {
        paths.push(b"/".to_vec());
    }
    let resolved = archive_names::resolve(&name, &args.sandbox, root)?;
    let trees = Opening::prepare("ls", &args.sandbox, root, &[&*resolved])?.enter()?;
    let tree = trees.open_with_files(&resolved)?;
    let mut failed = None;
    let mut singles = Group {
        head: None,
        files: Vec::new(),
    };
    let mut groups = Vec::new();
    for path in &paths {
        let listed = list(args, &tree, path, &mut singles, &mut groups);
        if let Err(error) = listed.with_context(|| format!("cannot list {name}")) {
            failed = report(failed, error);
        }
    }
    groups.sort_by(|a, b| a.head.cmp(&b.head));
    if !singles.files.is_empty() {
        groups.insert(0, singles);
    }
    if args.json {
        let files = groups.iter().flat_map(|group| &group.files);
        print_json(&files.map(row).collect::<Vec<_>>())?;
    } else {
        let headed = paths.len() > 1 || args.recursive;
        print_bytes(text(args, &groups, headed).as_bytes())?;
    }
    failed.map_or(Ok(()), Err)
}

/// Keeps the last failure, and reports the one before.
pub(super) fn report(before: Option<anyhow::Error>, error: anyhow::Error) -> Option<anyhow::Error> {
    if let Some(before) = before {
        super::warn(super::error::line(&before));
    }
    Some(error)
}

fn list(
    args: &Args,
    tree: &Tree,
    path: &[u8],
    singles: &mut Group,
    groups: &mut Vec<Group>,
) -> changes::Result<()> {
    // A link is listed itself where its attributes are asked for, as by ls.
    let last = if args.long || args.directory {
        LastLink::Keep
    } else {
        LastLink::Follow
    };
    let node = tree.find(path, last)?;
    if node.attr().kind != FileKind::Directory || args.directory {
        singles.files.push(listed(path.to_vec(), &node)?);
        return Ok(());
    }
    let mut walk = node.walk();
    let mut open: Vec<Group> = Vec::new();
    while let Some(visit) = walk.next().transpose()? {
        let node = match visit {
            Visit::Left(_) => {
                groups.extend(open.pop());
                continue;
            }
            Visit::Entry(_, node) => node,
        };
        let name = node.path().rsplit(|byte| *byte == b'/').next();
        let name = name.unwrap_or_default().to_vec();
        let is_dir = node.attr().kind == FileKind::Directory;
        let hidden = !open.is_empty() && name.starts_with(b".") && !args.all;
        if let Some(parent) = open.last_mut().filter(|_| !hidden) {
            parent.files.push(listed(name, &node)?);
        }
        let enters = open.is_empty() || args.recursive && !hidden;
        if is_dir && !enters {
            walk.skip_content();
        }
        if is_dir {
            open.push(Group {
                head: Some([b"/", node.path()].concat()),
                files: Vec::new(),
            });
        }
        if is_dir && !enters {
            // Nothing of it is shown: its end takes it away.
            walk.next().transpose()?;
            open.pop();
        }
    }
    Ok(())
}

fn listed(shown: Vec<u8>, node: &Node<'_>) -> changes::Result<Listed> {
    let target = match node.attr().kind {
        FileKind::Symlink => Some(node.target()?),
        _ => None,
    };
    Ok(Listed {
        shown,
        path: [b"/", node.path()].concat(),
        attr: *node.attr(),
        target,
    })
}

fn row(file: &Listed) -> Row {
    let attr = &file.attr;
    let is_device = matches!(attr.kind, FileKind::BlockDevice | FileKind::CharDevice);
    let target = file.target.as_deref();
    Row {
        path: String::from_utf8_lossy(&file.path).into_owned(),
        path_base64: base64_if_binary(&file.path),
        kind: kind_name(attr.kind),
        mode: format!("{:04o}", attr.perm),
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        mtime: attr.mtime.sec,
        nlink: attr.nlink,
        target: target.map(|target| String::from_utf8_lossy(target).into_owned()),
        device: is_device.then(|| format!("{}:{}", attr.rdev.0, attr.rdev.1)),
    }
}

/// Returns the name of a type in JSON.
pub(super) fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::BlockDevice => "block device",
        FileKind::CharDevice => "character device",
    }
}

fn text(args: &Args, groups: &[Group], headed: bool) -> String {
    let mut text = String::new();
    for (at, group) in groups.iter().enumerate() {
        if let Some(head) = group.head.as_ref().filter(|_| headed) {
            if at > 0 {
                text.push('\n');
            }
            escape(head, &mut text);
            text.push_str(":\n");
        }
        let cells: Vec<[String; 5]> = if args.long {
            group.files.iter().map(|file| cells(args, file)).collect()
        } else {
            Vec::new()
        };
        let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths = [1, 2, 3, 4].map(width);
        for (at, file) in group.files.iter().enumerate() {
            if let Some([mode, links, uid, gid, bytes]) = cells.get(at) {
                let [links_w, uid_w, gid_w, bytes_w] = widths;
                let time = date(file.attr.mtime);
                text += &format!(
                    "{mode} {links:>links_w$} {uid:>uid_w$} {gid:>gid_w$} {bytes:>bytes_w$} {time} "
                );
            }
            escape(&file.shown, &mut text);
            if let Some(target) = file.target.as_ref().filter(|_| args.long) {
                text.push_str(" -> ");
                escape(target, &mut text);
            }
            text.push('\n');
        }
    }
    text
}

/// Mode, links, owner, group, and size or device number.
fn cells(args: &Args, file: &Listed) -> [String; 5] {
    let attr = &file.attr;
    let bytes = match attr.kind {
        FileKind::BlockDevice | FileKind::CharDevice => {
            format!("{}, {}", attr.rdev.0, attr.rdev.1)
        }
        _ if args.human => size(attr.size),
        _ => attr.size.to_string(),
    };
    [
        mode_text(attr.kind, attr.perm),
        attr.nlink.to_string(),
        attr.uid.to_string(),
        attr.gid.to_string(),
        bytes,
    ]
}

/// Formats type and mode as ls(1) does.
pub(super) fn mode_text(kind: FileKind, perm: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::BlockDevice => 'b',
        FileKind::CharDevice => 'c',
    });
    for (shift, special, with, without) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = perm >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (perm & special != 0, bits & 1 != 0) {
            (true, true) => with,
            (true, false) => without,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Formats a time as `2026-01-31 23:59`, in UTC. A layer may have any time.
pub(super) fn date(time: Time) -> String {
    let minutes = time.sec.div_euclid(60);
    let (days, minute) = (minutes.div_euclid(24 * 60), minutes.rem_euclid(24 * 60));
    // Years begin in March, in eras of 400 years (Hinnant, "chrono-compatible low-level date
    // algorithms").
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = year + era * 400 + next;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}",
        minute / 60,
        minute % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are from date(1) and ls(1).
    #[test]
    fn lines_look_as_those_of_ls() {
        let at = |sec| date(Time { sec, nsec: 0 });
        assert_eq!(at(0), "1970-01-01 00:00");
        assert_eq!(at(951_827_696), "2000-02-29 12:34");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00");
        assert_eq!(at(-1), "1969-12-31 23:59");
        // A layer may have such times.
        date(Time {
            sec: i64::MAX,
            nsec: 0,
        });
        date(Time {
            sec: i64::MIN,
            nsec: 0,
        });
        assert_eq!(mode_text(FileKind::Regular, 0o4755), "-rwsr-xr-x");
        assert_eq!(mode_text(FileKind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(mode_text(FileKind::CharDevice, 0o2640), "crw-r-S---");
    }
}
