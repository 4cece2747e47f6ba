//! What every fuzzer has: bounded memory and something to start with.

use std::path::PathBuf;

/// Ends the fuzzer when an input of some kilobytes takes far more.
#[global_allocator]
static MEMORY: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, 64 << 20);

/// Writes the target's seeds to the directory that `UNIONFS_SEEDS` names, if it does.
pub fn write_seeds(target: &str) {
    let Some(dir) = std::env::var_os("UNIONFS_SEEDS").map(PathBuf::from) else {
        return;
    };
    let targets = testkit::fuzz::TARGETS.iter();
    let seeds = targets
        .filter(|t| t.name == target)
        .flat_map(|t| (t.seeds)());
    for (number, seed) in seeds.enumerate() {
        if let Err(error) = std::fs::write(dir.join(format!("seed-{number:03}")), seed) {
            eprintln!("{dir:?}: {error}");
            std::process::exit(1);
        }
    }
}
