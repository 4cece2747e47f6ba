#!/bin/bash
# coverage.sh [TEST...] : measures how many lines and functions the unit tests and these integration tests run (by
# default all of them, which needs root). The report is in target/llvm-cov/html. `just coverage` runs this script.
#
# Needs cargo-llvm-cov, and an llvm-cov and llvm-profdata as new as the LLVM of rustc (`rustc -vV`): those of rustup's
# component llvm-tools, or others that LLVM_COV and LLVM_PROFDATA name.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v cargo-llvm-cov >/dev/null || {
    echo "cargo-llvm-cov is missing: cargo install --locked cargo-llvm-cov" >&2
    exit 1
}
tests=(--lib)
[ $# != 0 ] || tests+=(--tests)
for test in "$@"; do tests+=(--test "$test"); done
# Counters are in a mapped file (%c). They therefore include those of a daemon that is killed, or that is in its sandbox
# and can write no file. Processes of the same program share a file (%m). Names are not compressed, because not every
# llvm-profdata can read compressed names.
export RUSTFLAGS="${RUSTFLAGS:-} -C llvm-args=-runtime-counter-relocation -C llvm-args=-enable-name-compression=false"
export LLVM_PROFILE_FILE_NAME="unionfs-%8m%c.profraw"
# Otherwise programs of an earlier build would be part of the report.
cargo llvm-cov clean --workspace
# Some tests fail with coverage: processes of other users cannot open the file, and print an error to stderr.
cargo llvm-cov --no-report --ignore-run-fail test "${tests[@]}"
cargo llvm-cov report --ignore-filename-regex '/(tests|examples|benches)/|tests\.rs$' --html
cargo llvm-cov report --ignore-filename-regex '/(tests|examples|benches)/|tests\.rs$' --summary-only | sed -n '1,2p;/^TOTAL/p'
