//! The decoys: objects beside the layers that must be neither changed nor shown. They are files
//! with set-id bits, a secret of root, a FIFO, symlinks, and a directory that no other user may
//! enter.

use std::path::{Path, PathBuf};

use testkit::layers::Layer;
use testkit::tree::{self, Mask, Tree};

/// The content of root's file outside of the layers. Nobody may read it through a mount.
pub(crate) const OUTSIDE: &str = "the-secret-beside-the-layers";
/// The content of root's file inside of a layer. Nobody but root may read it.
pub(crate) const INSIDE: &str = "the-secret-inside";
/// A name in root's directory beside the layers.
pub(crate) const HIDDEN: &str = "hidden-name";

/// Paths of the decoys, as targets of attacks. [`HIDDEN`] is not among them: the creator of a
/// symlink may read its text again.
pub(crate) const TARGETS: [&str; 8] = [
    "secret",
    "suid",
    "sgid",
    "fifo",
    "to-secret",
    "dir",
    "dir/known",
    "victim",
];

pub(crate) struct Decoys {
    root: PathBuf,
    before: Tree,
}

impl Decoys {
    /// Makes the decoys in a new directory.
    pub(crate) fn plant(root: PathBuf, program: &[u8]) -> Self {
        Layer::new()
            .file("secret", OUTSIDE)
            .mode(0o600)
            .file("suid", program)
            .mode(0o4755)
            .file("sgid", program)
            .mode(0o2755)
            .own(0, 2000)
            .fifo("fifo")
            .symlink("to-secret", "secret")
            .symlink("up", "..")
            .char_dev("null", 1, 3)
            .dir("dir")
            .mode(0o700)
            .file(format!("dir/{HIDDEN}"), OUTSIDE)
            .file("dir/known", OUTSIDE)
            .file("victim", "victim\n")
            .xattr("user.x", "mine")
            .write(&root);
        let before = tree::list_raw(&root);
        Self { root, before }
    }

    /// Returns the changes of the decoys, if there are any.
    pub(crate) fn changes(&self) -> Vec<String> {
        let mask = Mask {
            ino: true,
            ..Mask::ALL
        };
        let now = tree::list_raw(&self.root);
        let found = tree::diff(&self.before, &now, &mask);
        found.into_iter().map(|l| format!("decoys: {l}")).collect()
    }
}

/// Tells whether an answer shows a secret; `privileged` is true for root of the machine.
pub(crate) fn leaks(answer: &str, privileged: bool) -> bool {
    answer.contains(OUTSIDE) || answer.contains(HIDDEN) || !privileged && answer.contains(INSIDE)
}

/// Returns the files whose content is the secret, by the SHA-256 in their trees.
pub(crate) fn copies_of_the_secret(tree: &Tree, scratch: &Path) -> Vec<String> {
    let secret = tree::hash(&scratch.join("decoys/secret")).unwrap();
    let is_copy = |(_, e): &(&Vec<u8>, &tree::Entry)| e.content == secret;
    let copies = tree.iter().filter(is_copy);
    copies
        .map(|(path, _)| format!("/{} has the secret", testkit::escape(path)))
        .collect()
}
