//! The fuzz targets without a fuzzer: their seed inputs, past findings, and random damage to both.
//! `just fuzz TARGET` searches for more (`fuzz/`).

// A finding is a panic.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use testkit::fuzz::{self as targets, Target};

/// The number of damaged variants of each input.
const ROUNDS: u64 = 20;

fn target(name: &str) -> &'static Target {
    let found = targets::TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("no target {name}"))
}

/// Returns the inputs that fuzzers found and that are fixed since.
fn regressions(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions");
    match std::fs::read_dir(dir.join(name)) {
        Ok(files) => files
            .map(|file| std::fs::read(file.unwrap().path()).unwrap())
            .collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{name}: {error}"),
    }
}

/// splitmix64: the damage is the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % bound
    }
}

fn damaged(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len().max(1));
        match random.below(5) {
            0 if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => {
                let (from, to) = (random.below(other.len() + 1), random.below(other.len() + 1));
                let piece = &other[from.min(to)..from.max(to)];
                bytes.splice(
                    at.min(bytes.len())..at.min(bytes.len()),
                    piece.iter().copied(),
                );
            }
            _ => {
                let to = (at + random.below(16)).min(bytes.len());
                bytes.drain(at.min(to)..to);
            }
        }
    }
    bytes
}

fn replay(name: &str) {
    let target = target(name);
    let mut inputs = (target.seeds)();
    inputs.extend(regressions(name));
    assert!(inputs.len() > 3, "{name}: {} inputs", inputs.len());
    for input in &inputs {
        (target.run)(input);
    }
    let mut random = Random(0);
    for (number, input) in inputs.iter().enumerate() {
        let other = &inputs[(number + 1) % inputs.len()];
        for _ in 0..ROUNDS {
            let input = damaged(input, other, &mut random);
            let run = || (target.run)(&input);
            if let Err(panic) = std::panic::catch_unwind(run) {
                eprintln!("{name}: b\"{}\"", input.escape_ascii());
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn tar() {
    replay("tar");
}

#[test]
fn tar_split() {
    replay("tar_split");
}

#[test]
fn metadata() {
    replay("metadata");
}

#[test]
fn archive() {
    replay("archive");
}

#[test]
fn catalog() {
    replay("catalog");
}

#[test]
fn wire() {
    replay("wire");
}

#[test]
fn options() {
    replay("options");
}

#[test]
fn bolt() {
    replay("bolt");
}

#[test]
fn thin_pool() {
    replay("thin_pool");
}

#[test]
fn registries() {
    replay("registries");
}

/// The corpus reaches the code that makes files: a fuzzer that executes nothing finds nothing.
#[test]
fn every_target_has_a_test() {
    let tested = [
        "tar",
        "tar_split",
        "metadata",
        "archive",
        "catalog",
        "wire",
        "options",
        "bolt",
        "thin_pool",
        "registries",
    ];
    let names = targets::TARGETS.map(|target| target.name);
    assert_eq!(names, tested);
}
