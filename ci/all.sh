#!/bin/bash
# all.sh : checks formatting and lints, runs all tests, builds and tries the package, builds the
# documentation, checks the crates.
# .ci/run runs it. A test that cannot run on the machine fails instead of being skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
export UNIONFS_REQUIRE_ALL=1

# Prints how long the work has taken so far, in seconds.
step() {
    echo "== $SECONDS s: $*"
    "$@"
}
step cargo fmt --all --check
step cargo clippy --quiet --all-targets -- -D warnings
# Each part compiles without the parts above it, so it does not use them.
for features in "" fuse fuser store registry; do
    step cargo clippy --quiet --lib --no-default-features --features "$features" -- -D warnings
done
step ./ci/test.sh
# A static program and a Debian package, installed and used in a new Debian tree.
step ci/package-test.sh
RUSTDOCFLAGS="-D warnings" step cargo doc --quiet --no-deps
# Advisories are checked only where github.com can be reached (`just advisories`, .github/workflows/advisories.yml).
step ci/tools.sh cargo-deny
step target/tools/bin/cargo-deny --log-level error check licenses bans sources
echo "== NOT RUN: advisories (cargo deny check advisories): the database is on github.com; run just advisories"
echo "== $SECONDS s: done"
