//! Catalogs of directories that cannot change: all of them are on file systems that Linux cannot
//! write, such as squashfs and erofs. No user has to promise anything for them.
//!
//! Such a file system has no reliable identity of its own: squashfs has no UUID, that of erofs can
//! be chosen, and reproducible images have equal inode numbers and times. So a catalog belongs to
//! the mounts on which the directories are, by their unique numbers (`STATX_MNT_ID_UNIQUE`,
//! Linux 6.8), which no other mount gets before the machine starts again, and to the ID of this
//! start (`/proc/sys/kernel/random/boot_id`). A catalog whose mounts are gone is of no use; the next
//! one that is made removes it.
//!
//! A data-only layer may be on any file system: composefs keeps its objects on a writable one. It
//! adds nothing to the names and attributes, and each of its files is compared when it is opened.
//!
//! The notes of such a catalog are a line with the ID of the start, then one line for each layer: the
//! unique number of its mount.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};

use sha2::{Digest as _, Sha256};

use super::image_catalogs::{ImageCatalogs, MountCatalog};
use crate::catalog::{Label, format};
use crate::layer::{LayerSpec, StackSpec};
use crate::sys::mounts::unique_numbers;
use crate::sys::stat::unique_mount_id;

/// The driver in the label of such a catalog. No store has this name.
pub(super) const DRIVER: &[u8] = b"mounts";
/// The types of file systems that Linux cannot write (`f_type` of statfs(2), linux/magic.h):
/// squashfs, erofs, cramfs, romfs, iso9660.
pub(super) const UNWRITABLE: [u64; 5] = [0x7371_7368, 0xe0f5_e1e2, 0x28cd_3d45, 0x7275, 0x9660];

impl ImageCatalogs {
    /// Returns the catalog that a mount of directories uses, or makes if there is none. `None`: a
    /// lower could change, or the kernel cannot identify its mount.
    pub fn of_unwritable(&self, stack: &StackSpec) -> Option<MountCatalog> {
        let on_them = |layer: &LayerSpec| is_unwritable(layer.dir.as_fd());
        if stack.lowers.is_empty() || !stack.lowers.iter().all(on_them) {
            return None;
        }
        let catalog = self.choose_once(label(stack)?);
        if !catalog.path().exists() {
            let present = PresentMounts::now();
            self.remove_old(DRIVER, |label| present.have_all_of(label));
        }
        Some(catalog)
    }
}

/// The mounts that are there, and the ID of this start of the machine. A process in a sandbox knows
/// neither, so they are asked for before.
#[derive(Clone, Debug)]
pub struct PresentMounts {
    start: Option<String>,
    /// `None`: the kernel cannot tell.
    numbers: Option<HashSet<u64>>,
}

impl PresentMounts {
    /// Asks the kernel.
    pub fn now() -> Self {
        Self {
            start: start_of_the_machine(),
            numbers: unique_numbers().ok().map(HashSet::from_iter),
        }
    }

    /// Whether all mounts of such a catalog are still there, in this mount namespace.
    pub(super) fn have_all_of(&self, label: &Label) -> bool {
        let (Some(start), Some(numbers)) = (&self.start, &self.numbers) else {
            return true;
        };
        let Ok(notes) = std::str::from_utf8(&label.notes) else {
            return false;
        };
        let mut lines = notes.lines();
        let is_there = |line: &str| line.parse().is_ok_and(|number| numbers.contains(&number));
        lines.next() == Some(start) && lines.all(is_there)
    }
}

/// Whether nobody can change files of the file system of a directory while it is mounted.
fn is_unwritable(dir: BorrowedFd<'_>) -> bool {
    file_system(dir).is_some_and(|kind| UNWRITABLE.contains(&kind))
}

/// Returns the type of the file system of a directory (`f_type` of statfs(2)).
pub(super) fn file_system(dir: BorrowedFd<'_>) -> Option<u64> {
    // The type has another width on other architectures.
    #[allow(clippy::unnecessary_cast)]
    rustix::fs::fstatfs(dir).map(|fs| fs.f_type as u64).ok()
}

/// Returns the label of the catalog of these lowers on these mounts, in this order.
fn label(stack: &StackSpec) -> Option<Label> {
    let mut notes = start_of_the_machine()?;
    let mut identity = Sha256::new();
    identity.update(&notes);
    for (layers, flags) in [(&stack.lowers, 0), (&stack.data_only, format::DATA_ONLY)] {
        for layer in layers {
            let mount = unique_mount_id(layer.dir.as_fd())?;
            let ino = rustix::fs::fstat(layer.dir.as_fd()).ok()?.st_ino;
            let flags = flags | format::dialect_bits(layer.dialect);
            for number in [mount, ino, flags.into()] {
                identity.update(number.to_le_bytes());
            }
            write!(notes, "\n{mount}").ok()?;
        }
    }
    Some(Label {
        chain: identity.finalize().into(),
        store: Vec::new(),
        driver: DRIVER.to_vec(),
        notes: notes.into_bytes(),
    })
}

/// Returns the ID that the kernel makes when it starts (random(4)).
fn start_of_the_machine() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim_end().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Dialect;

    fn stack(path: &str) -> StackSpec {
        StackSpec {
            lowers: vec![LayerSpec::open(path, Dialect::ALL).unwrap()],
            data_only: Vec::new(),
            upper: None,
        }
    }

    #[test]
    fn a_writable_lower_has_none() {
        let own = tempfile::tempdir().unwrap();
        let catalogs = ImageCatalogs::of(own.path());
        assert!(catalogs.of_unwritable(&stack("/")).is_none());
        assert!(catalogs.of_unwritable(&stack("/proc")).is_none());
    }

    #[test]
    fn a_label_is_that_of_its_mounts_and_of_this_start() {
        let (one, other) = (label(&stack("/proc")), label(&stack("/")));
        let (Some(one), Some(other)) = (one, other) else {
            return testkit::need::skip(&"the kernel has no unique numbers of mounts (6.8)");
        };
        assert_eq!(Some(&one), label(&stack("/proc")).as_ref());
        assert_ne!(one.chain, other.chain);
        let present = PresentMounts::now();
        assert!(present.have_all_of(&one));
        let with = |from: &str, to: &str| {
            let notes = String::from_utf8(one.notes.clone()).unwrap();
            Label {
                notes: notes.replacen(from, to, 1).into_bytes(),
                ..one.clone()
            }
        };
        assert!(!present.have_all_of(&with("-", "0")), "another start");
        assert!(!present.have_all_of(&with("\n", "\n9")), "another mount");
        assert!(!present.have_all_of(&with("\n", "\nx")));
        assert!(!present.have_all_of(&Label::default()));
        let unknown = PresentMounts {
            numbers: None,
            ..present
        };
        assert!(unknown.have_all_of(&with("\n", "\n9")), "it is kept");
    }
}
