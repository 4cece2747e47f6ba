#!/bin/bash
# tools.sh : installs the test suites of others that tests/suites runs, pinned, from
# crates.io into target/tools. Called by ci/test.sh. Changes nothing when all are there.
set -euo pipefail
cd "$(dirname "$0")/.."

# NAME VERSION
while read -r name version; do
    have=$(target/tools/bin/"$name" --version 2>/dev/null || true)
    [ "$have" = "$name $version" ] && continue
    # Unoptimised: built in half the time, and the file system is what they wait for.
    cargo install --quiet --locked --debug --force --root target/tools \
        --target-dir target/tools/build --version "$version" "$name"
done <<'END'
pjdfstest 0.2.2
fsx 0.3.2
END
rm -rf target/tools/build
