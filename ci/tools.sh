#!/bin/bash
# tools.sh NAME... : installs pinned versions of programs from crates.io into target/tools. Changes
# nothing if they are installed. ci/test.sh needs pjdfstest and fsx (for tests/suites), ci/all.sh
# needs cargo-deny, ci/package.sh cargo-deb, `just bench` fuse-overlayfs.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A versions=([pjdfstest]=0.2.2 [fsx]=0.3.2 [cargo-deny]=0.20.2 [cargo-deb]=3.8.0 [fuse-overlayfs]=2.0.0)
for name in "$@"; do
    version=${versions[$name]:?"$name: no such tool"}
    have=$(target/tools/bin/"$name" --version 2>/dev/null | head -1 || true)
    case $have in "$name $version" | "$name: version $version") continue ;; esac
    # The debug profile takes half the time to build, and the programs mostly wait for the file
    # system. Building cargo-deny takes 90 seconds of CPU time. What is measured is optimised.
    profile=--debug
    [ "$name" != fuse-overlayfs ] || profile=--profile=release
    cargo install --quiet --locked $profile --force --root target/tools \
        --target-dir target/tools/build --version "$version" "$name"
done
rm -rf target/tools/build
