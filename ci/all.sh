#!/bin/bash
# all.sh : formatting, lints, the tests of the README, the documentation. Called by .ci/run.
# A test that cannot run here fails instead of being skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
export UNIONFS_REQUIRE_ALL=1

step() {
    echo "== $*"
    "$@"
}
step cargo fmt --all --check
step cargo clippy --quiet --all-targets -- -D warnings
step ./ci/test.sh
RUSTDOCFLAGS="-D warnings" step cargo doc --quiet --no-deps
if command -v cargo-deny >/dev/null; then
    step cargo deny --log-level error check licenses bans sources
fi
