#!/bin/bash
# checks.sh : all checks that are no tests: lints, the documentation of the code, the crates, the package. ci/all.sh
# has them run beside the tests, so what it prints comes at once, at its end.
set -euo pipefail
cd "$(dirname "$0")/.."
. ci/parts.sh
log=$(mktemp)
exec 3>&1 >"$log" 2>&1
trap 'cat "$log" >&3; rm "$log"' EXIT

part "clippy (beside)"
cargo clippy --quiet --all-targets -- -D warnings
# Each part compiles without the parts above it, so it does not use them.
part "clippy of each part (beside)"
for features in "" fuse fuser store registry; do
    cargo clippy --quiet --lib --no-default-features --features "$features" -- -D warnings
done
part "doc (beside)"
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps
# Advisories are checked only where github.com can be reached (`just advisories`, .github/workflows/advisories.yml).
part "crates (beside)"
ci/tools.sh cargo-deny
target/tools/bin/cargo-deny --log-level error check licenses bans sources
echo "== NOT RUN: advisories (cargo deny check advisories): the database is on github.com; run just advisories"
# A static program and a Debian package, installed and used in a new Debian tree.
part "package (beside)"
ci/package-test.sh
part
