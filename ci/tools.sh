#!/bin/bash
# tools.sh NAME... : installs programs that tests and checks call, pinned, from crates.io into
# target/tools. Called by ci/test.sh (pjdfstest and fsx, for tests/suites) and ci/all.sh
# (cargo-deny). Changes nothing when they are there.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A versions=([pjdfstest]=0.2.2 [fsx]=0.3.2 [cargo-deny]=0.20.2)
for name in "$@"; do
    version=${versions[$name]:?"$name: no such tool"}
    have=$(target/tools/bin/"$name" --version 2>/dev/null || true)
    [ "$have" = "$name $version" ] && continue
    # Unoptimised: built in half the time, and the file system is what they wait for. cargo-deny
    # takes 90 seconds of CPU time.
    cargo install --quiet --locked --debug --force --root target/tools \
        --target-dir target/tools/build --version "$version" "$name"
done
rm -rf target/tools/build
