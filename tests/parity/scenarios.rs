//! The scripted scenarios: each is a test that runs its script on kernel overlayfs and
//! on unionfs, over [`layers::standard`]. The language is `common/script.rs`'s.

use crate::common::mount::{KERNEL, subject};
use crate::common::{layers, need_mounts, script};
use crate::runner::{Case, compare};

fn check(text: &str) {
    need_mounts!();
    let case = Case {
        layers: &layers::standard(),
        script: &script::parse(text),
        uppers: true,
        tmpfs: false,
    };
    let found = compare(&KERNEL, &subject(), &case);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

macro_rules! scenarios {
    ($($(#[$doc:meta])* $name:ident: $text:expr;)*) => {
        /// Name and script of each.
        pub(crate) const SCENARIOS: &[(&str, &str)] = &[$((stringify!($name), $text)),*];
        $($(#[$doc])* #[test] fn $name() { check($text) })*
    };
}

mod files;
mod names;

/// Every scenario: name and script.
pub(crate) fn all() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    names::SCENARIOS.iter().chain(files::SCENARIOS)
}
