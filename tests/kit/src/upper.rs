//! Comparable listings of upper directories: an upper is listed by the meaning of its markers, so
//! that the uppers of two implementations over the same lowers can be compared.
//!
//! Two correct implementations may differ in these, so they are removed:
//! * caches and identities: `origin`, `impure`, `nlink`, `uuid`, `upper`, `protattr`;
//! * a `redirect` to the present place of the directory;
//! * the value of `redirect` (relative or absolute) and of `opaque`: only their presence is compared,
//!   and the remounts of the parity runner check the value;
//! * an opaque marker if the lowers show no directory to hide (an optimisation of both);
//! * attributes of whiteouts (kernel overlayfs links one inode for all);
//! * entries that only repeat what the union showed before the script (a copy-up
//!   without a change: kernel overlayfs does one at open for writing);
//! * link counts (the kernel's index holds further links), and which of several hard links exist: a
//!   FUSE request names an inode, not the path by which it was reached, and the index leads from the
//!   others to the copy. The trees show the links.

use super::tree::{Entry, Mask, Tree, is_private, list_raw};

const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const ORIGIN: &[u8] = b"trusted.overlay.origin";
const ESCAPED: &[u8] = b"trusted.overlay.overlay.";
const LEFT_OUT: [&[u8]; 6] = [
    b"trusted.overlay.origin",
    b"trusted.overlay.impure",
    b"trusted.overlay.nlink",
    b"trusted.overlay.uuid",
    b"trusted.overlay.upper",
    b"trusted.overlay.protattr",
];

/// Returns the normalised listing of an upper. `base` and `after` are the union's trees before and
/// after the script.
pub fn view(upper: &std::path::Path, (base, after): (&Tree, &Tree), mask: &Mask) -> Tree {
    let raw = list_raw(upper);
    let mut redirected: Vec<Vec<u8>> = Vec::new();
    let mut tree = Tree::new();
    for (path, mut entry) in raw {
        let below_redirect = redirected.iter().any(|r| path.starts_with(r));
        if !below_redirect && leads_to_itself(&path, &entry) {
            entry.xattrs.remove(REDIRECT);
        }
        if entry.xattrs.contains_key(REDIRECT) {
            redirected.push([&path[..], b"/"].concat());
        }
        let copied = entry.xattrs.contains_key(ORIGIN);
        // The upper was empty before the script, so `base` shows the lowers.
        let hides = base.get(&path).is_some_and(Entry::is_dir);
        let entry = normalise(entry, hides, below_redirect);
        let trees = [base, after];
        let linked = trees
            .iter()
            .any(|t| t.get(&path).is_some_and(|e| e.group.is_some()));
        // An unchanged copy may have been renamed with its directory since.
        let unchanged = if copied {
            base.values()
                .any(|before| repeats(&entry, Some(before), mask))
        } else {
            repeats(&entry, base.get(&path), mask)
        };
        if !linked && !unchanged {
            tree.insert(path, entry);
        }
    }
    tree
}

/// Whether a redirect leads to the default place of its lowers. It was written before a rename that
/// failed.
fn leads_to_itself(path: &[u8], entry: &Entry) -> bool {
    let Some(to) = entry.xattrs.get(REDIRECT) else {
        return false;
    };
    match to.strip_prefix(b"/") {
        Some(to) => to == path,
        None => Some(&to[..]) == path.rsplit(|b| *b == b'/').next(),
    }
}

fn normalise(mut entry: Entry, hides: bool, below_redirect: bool) -> Entry {
    entry
        .xattrs
        .retain(|name, _| !LEFT_OUT.contains(&&name[..]));
    for marker in [OPAQUE, REDIRECT] {
        if let Some(value) = entry.xattrs.get_mut(marker) {
            *value = b"present".to_vec();
        }
    }
    if !below_redirect && !entry.xattrs.contains_key(REDIRECT) && !hides {
        entry.xattrs.remove(OPAQUE);
    }
    if entry.is_whiteout() {
        entry.mode = libc::S_IFCHR;
        (entry.uid, entry.gid, entry.mtime, entry.group) = (0, 0, (0, 0), None);
        entry.xattrs.clear();
    }
    entry
}

/// Whether an entry only repeats what the union showed before.
fn repeats(entry: &Entry, before: Option<&Entry>, mask: &Mask) -> bool {
    let Some(before) = before else {
        return false;
    };
    // An escaped name is an attribute that a user set. Trees do not list it either.
    let marker = |name: &[u8]| is_private(name) && !name.starts_with(ESCAPED);
    if entry.is_whiteout() || entry.xattrs.keys().any(|n| marker(n)) {
        return false;
    }
    let mask = Mask {
        nlink: false,
        ..*mask
    };
    let strip = |e: &Entry| {
        let mut e = e.clone();
        e.group = None;
        e.xattrs.retain(|name, _| !name.starts_with(ESCAPED));
        e
    };
    mask.facts(&strip(entry)) == mask.facts(&strip(before))
}
