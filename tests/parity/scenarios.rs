//! The scripted scenarios: each is a test that runs its script on kernel overlayfs and on unionfs,
//! over [`layers::standard`]. `common/script.rs` defines the language.

fn check(text: &str) {
    need_mounts!();
    let case = Case {
        layers: &layers::standard(),
        script: &script::parse(text),
        uppers: true,
        tmpfs: false,
        made: None,
    };
    let found = compare(&KERNEL, &subject(), &case);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// After a remount with `userxattr`, kernel overlayfs shows the hard links of symlinks and special
/// files, which carry no `user.*` attribute, as separate files; unionfs does not.
const KERNEL_SPLITS_LINKS: &str = "link_lower_files";

/// With `userxattr` the kernel refuses to move merged directories (EXDEV), and so does unionfs.
#[test]
fn user_markers() {
    need_mounts!();
    let kernel = Fs::Kernel("userxattr,index=on");
    let union = Fs::Unionfs("userxattr,dialect=overlay");
    for (name, text) in all().filter(|(name, _)| *name != KERNEL_SPLITS_LINKS) {
        let case = Case {
            layers: &layers::standard(),
            script: &script::parse(text),
            uppers: false,
            tmpfs: false,
            made: None,
        };
        let found = compare(&kernel, &union, &case);
        assert!(found.is_empty(), "{name}\n{}", found.join("\n"));
    }
}

macro_rules! scenarios {
    ($($(#[$doc:meta])* $name:ident: $text:expr;)*) => {
        /// The name and the script of each scenario.
        pub(crate) const SCENARIOS: &[(&str, &str)] = &[$((stringify!($name), $text)),*];
        $($(#[$doc])* #[test] fn $name() { check($text) })*
    };
}

mod files;
mod names;

use testkit::mount::{Fs, KERNEL, subject};
use testkit::runner::{Case, compare};
use testkit::{layers, need_mounts, script};

/// Returns every scenario: name and script.
pub(crate) fn all() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    names::SCENARIOS.iter().chain(files::SCENARIOS)
}
