//! The fuzz targets: each takes bytes and panics when something is wrong that must not be. Run
//! by the fuzzers in `fuzz_targets`, and by `tests/fuzz`, which includes this file.
//!
//! Where random bytes would not get past a checksum, a digest or a number, the target puts the
//! right one there, so that the fuzzer gets inside.

// A finding is a panic.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

pub mod archive;
pub mod catalog;
pub mod metadata;
pub mod options;
pub mod tar;
pub mod tar_built;
pub mod tar_split;
pub mod wire;

#[path = "../../examples/sample-store/builder.rs"]
#[allow(dead_code)]
pub(crate) mod builder;
#[path = "../../tests/catalog/support.rs"]
#[allow(dead_code)]
mod catalogs;
#[path = "../../tests/store/fixture.rs"]
#[allow(dead_code)]
mod fixture;
#[path = "../../tests/store/layouts.rs"]
#[allow(dead_code)]
mod layouts;
#[path = "../../examples/sample-store/sample.rs"]
#[allow(dead_code)]
mod sample;

use fixture::{Fixture, children};

/// A parser under test.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// What it starts with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: [Target; 7] = [
    Target {
        name: "tar",
        run: tar::run,
        seeds: tar::seeds,
    },
    Target {
        name: "tar_split",
        run: tar_split::run,
        seeds: tar_split::seeds,
    },
    Target {
        name: "metadata",
        run: metadata::run,
        seeds: metadata::seeds,
    },
    Target {
        name: "archive",
        run: archive::run,
        seeds: archive::seeds,
    },
    Target {
        name: "catalog",
        run: catalog::run,
        seeds: catalog::seeds,
    },
    Target {
        name: "wire",
        run: wire::run,
        seeds: wire::seeds,
    },
    Target {
        name: "options",
        run: options::run,
        seeds: options::seeds,
    },
];

/// An error is one line of bounded length, whatever it quotes.
pub(crate) fn one_line(error: &impl std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.contains(['\n', '\x1b', '\0']), "{text:?}");
    assert!(text.len() < 20_000, "{} bytes of message", text.len());
}
