//! The fuzz targets: each takes bytes and panics when something is wrong that must not be. Run
//! by the fuzzers in `fuzz/fuzz_targets`, and by `tests/fuzz`.
//!
//! Where random bytes would not get past a checksum, a digest or a number, the target puts the
//! right one there, so that the fuzzer gets inside.

pub mod archive;
pub mod bolt;
pub mod catalog;
pub mod metadata;
pub mod options;
pub mod tar;
pub mod tar_built;
pub mod tar_split;
pub mod thin_pool;
pub mod wire;

// The command line is no part of the library.
#[path = "../../../../src/cli/options.rs"]
#[allow(dead_code, reason = "the program uses more of it than the fuzz target")]
mod mount_options;

/// A parser under test.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// What it starts with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: [Target; 9] = [
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
    Target {
        name: "bolt",
        run: bolt::run,
        seeds: bolt::seeds,
    },
    Target {
        name: "thin_pool",
        run: thin_pool::run,
        seeds: thin_pool::seeds,
    },
];

/// An error is one line of bounded length, whatever it quotes.
pub fn one_line(error: &impl std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.contains(['\n', '\x1b', '\0']), "{text:?}");
    assert!(text.len() < 20_000, "{} bytes of message", text.len());
}
