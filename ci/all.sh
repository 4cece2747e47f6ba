#!/bin/bash
# all.sh : checks formatting and lints, runs all tests, builds and tries the package, builds the
# documentation, checks the crates. The last line has the seconds of each part.
# .ci/run runs it. A test that cannot run on the machine fails instead of being skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
. ci/parts.sh
trap print_parts EXIT
export UNIONFS_REQUIRE_ALL=1
# What compiles once needs no records for the next time.
export CARGO_INCREMENTAL=0

part "format"
cargo fmt --all --check
part
# Installed first: two installations at a time would wait for each other.
ci/install.sh debootstrap busybox-static dpkg-dev
UNIONFS_BESIDE=$PWD/ci/checks.sh ci/test.sh
