//! The fuzz targets. Each takes bytes and panics if it finds an error in the code. The fuzzers in
//! `fuzz/fuzz_targets` and `tests/fuzz` run them.
//!
//! If random bytes would not pass a checksum, a digest or a number, the target inserts the right
//! one, so that the fuzzer reaches the code after the check.

pub mod archive;
pub mod bolt;
pub mod catalog;
pub mod metadata;
pub mod options;
pub mod registries;
pub mod tar;
pub mod tar_built;
pub mod tar_split;
pub mod thin_pool;
pub mod wire;

// The command line is not part of the library.
#[path = "../../../../src/cli/options.rs"]
#[allow(dead_code, reason = "the program uses more of it than the fuzz target")]
mod mount_options;
#[path = "../../../../src/cli/owner_options.rs"]
#[allow(dead_code, reason = "the program uses more of it than the fuzz target")]
mod owner_options;

/// A parser under test.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// The inputs that the fuzzer starts with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: [Target; 10] = [
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
    Target {
        name: "registries",
        run: registries::run,
        seeds: registries::seeds,
    },
];

/// Checks that an error is one line of bounded length, whatever it quotes.
pub fn one_line(error: &impl std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.contains(['\n', '\x1b', '\0']), "{text:?}");
    assert!(text.len() < 20_000, "{} bytes of message", text.len());
}
