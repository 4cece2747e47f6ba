#!/bin/bash
# coverage.sh [TEST...] : how many lines and functions the unit tests and these integration tests run (all of them by
# default; root). The report is in target/llvm-cov/html. Called by `just coverage`.
#
# Needs cargo-llvm-cov, and llvm-cov and llvm-profdata that are as new as the LLVM of rustc (`rustc -vV`): rustup's
# component llvm-tools, or any others, named by LLVM_COV and LLVM_PROFDATA.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v cargo-llvm-cov >/dev/null || {
    echo "cargo-llvm-cov is missing: cargo install --locked cargo-llvm-cov" >&2
    exit 1
}
tests=(--lib)
[ $# != 0 ] || tests+=(--tests)
for test in "$@"; do tests+=(--test "$test"); done
# Counters are in a mapped file (%c), so that those of a daemon count that is killed or inside its sandbox, where it can
# write no file. Processes of the same program share one (%m). Names are not compressed: not every llvm-profdata can read
# that.
export RUSTFLAGS="${RUSTFLAGS:-} -C llvm-args=-runtime-counter-relocation -C llvm-args=-enable-name-compression=false"
export LLVM_PROFILE_FILE_NAME="unionfs-%8m%c.profraw"
# Programs of an earlier build would be part of the report.
cargo llvm-cov clean --workspace
# Some tests fail under it: processes of other users cannot open the file, and say so on stderr.
cargo llvm-cov --no-report --ignore-run-fail test "${tests[@]}"
cargo llvm-cov report --ignore-filename-regex '/(tests|examples|benches)/|tests\.rs$' --html
cargo llvm-cov report --ignore-filename-regex '/(tests|examples|benches)/|tests\.rs$' --summary-only | sed -n '1,2p;/^TOTAL/p'
