#!/bin/bash
# fuzz.sh TARGET [SECONDS] : searches for inputs that break one parser, by default for ten minutes.
# Targets: tar tar_split metadata archive catalog wire options bolt thin_pool registries. Needs a nightly compiler and
# cargo-fuzz. Findings are written to fuzz/artifacts/TARGET, the corpus to fuzz/corpus/TARGET.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?usage: fuzz.sh TARGET [SECONDS]}
seconds=${2:-600}

command -v cargo-fuzz >/dev/null || {
    echo "cargo-fuzz is missing: cargo install cargo-fuzz (and rustup toolchain install nightly)" >&2
    exit 1
}
# /dev/shm is a tmpfs, on which a sync costs no time.
TMPDIR=$(mktemp -d /dev/shm/unionfs-fuzz.XXXXXX)
trap 'rm -rf "$TMPDIR"' EXIT
mkdir -p "fuzz/corpus/$target"
export TMPDIR UNIONFS_SEEDS=$PWD/fuzz/corpus/$target
# No sanitizer is used, because unsafe code is in src/sys only. Overflow checks and debug assertions are on.
cargo +nightly fuzz run --sanitizer none "$target" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=1024 \
    -dict=fuzz/words.dict -print_final_stats=1
