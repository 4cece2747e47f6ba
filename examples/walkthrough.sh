#!/bin/bash
# walkthrough.sh : shows unionfs from the build to a changed image. Builds it, makes a sample store
# in Docker's layout (no engine, no network beyond the package registries), mounts an image
# of it, reads and changes files, and unmounts. Only the build stays.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
    echo "cargo is missing: install Rust 1.88 or newer (rustup.rs)" >&2
    exit 1
}
ci/install.sh fuse3

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

# The development profile is built in a minute, and shared with the tests.
say "Build"
run cargo build --quiet --bin unionfs --example sample-store
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
PATH=$target/debug:$PATH

scratch=$(mktemp -d)
export UNIONFS_ROOT=$scratch/store
mnt=$scratch/mnt
mkdir "$mnt"
cleanup() {
    unionfs umount "$mnt" 2>/dev/null || true
    rm -rf "$scratch"
}
trap cleanup EXIT

say "A store with sample images"
run "$target/debug/examples/sample-store" "$UNIONFS_ROOT"
run unionfs images
run unionfs layers

say "Mount one: writable, and live when the command returns"
run unionfs mount sample:2 "$mnt"
run ls -l "$mnt"
run cat "$mnt/etc/os-release"

say "Change it; the image itself stays as it is"
run rm -r "$mnt/usr/share/doc"
run cp -a ci "$mnt/srv/"
run ls "$mnt/usr/share" "$mnt/srv"

say "What is mounted, and what it cost"
run unionfs ps
run unionfs stats "$mnt"

say "Unmount; the changes are kept in an upper directory"
run unionfs umount "$mnt"
run find "$UNIONFS_ROOT/rw" -mindepth 2 -path '*/diff*'

say "Done"
