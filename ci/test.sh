#!/bin/bash
# test.sh [CARGO-TEST-ARGUMENTS...] : installs what the tests need and runs all of them.
# The command of the README, and what CI runs. Root runs everything; a plain user runs
# what a plain user can, and the tests print what they skip (with CI or UNIONFS_REQUIRE_ALL
# set a skip is a failure).
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
    echo "cargo is missing: install Rust 1.88 or newer (rustup.rs)" >&2
    exit 1
}
[ -z "${CI:-}${UNIONFS_REQUIRE_ALL:-}" ] || export CI=true UNIONFS_REQUIRE_ALL=1
# fusermount3; dockerd and what its images are made with; fio for shared mappings; strace to
# kill commands between two system calls and to see what is synced; those whose uppers we read
# and who read ours; the tools that tests/suites runs on the mount.
packages=(fuse3 docker.io busybox-static libcap2-bin attr fio strace fuse-overlayfs buildah)
packages+=(git python3-pip rpm sqlite3)
# A registry, its certificate, and somebody else who uses it (tests/registry).
packages+=(docker-registry openssl skopeo)
if [ "$(id -u)" = 0 ] || [ -n "${UNIONFS_REQUIRE_ALL:-}" ]; then
    ci/install.sh "${packages[@]}"
else
    ci/install.sh "${packages[@]}" || echo "going on without them" >&2
fi
# Root only: nothing of these suites runs without mounts.
[ "$(id -u)" != 0 ] || ci/tools.sh
exec cargo test --quiet "$@"
