#!/bin/bash
# without.sh [NAMES...] : runs all tests of tests/mount once for each thing that a host can lack (all names of
# tests/kit/src/without.rs by default), as root. Logs are in target/without. CI does not run it: it takes minutes for
# each name. CI runs a few operations without each of them (tests/mount/hosts.rs).
set -uo pipefail
cd "$(dirname "$0")/.."
mapfile -t names < <(grep -oP '^    \("\K[^"]+(?=", Lack::)' tests/kit/src/without.rs)
[ $# = 0 ] || names=("$@")
logs=target/without
mkdir -p $logs
cargo build --quiet --bins || exit
cargo test --quiet --test mount --no-run || exit
failed=()
for name in "${names[@]}"; do
    start=$SECONDS
    # Root's mounts open files by default; without no-open it is the other policy that changes.
    case $name in
    no-open) io=(UNIONFS_TEST_IO=cached) ;;
    *) io=() ;;
    esac
    env "${io[@]}" UNIONFS_TEST_WITHOUT="$name" nice -n 15 cargo test --no-fail-fast --test mount >"$logs/$name.log" 2>&1 ||
        failed+=("$name")
    echo "$name: $(grep -a '^test result' "$logs/$name.log"), $((SECONDS - start)) s"
done
[ ${#failed[@]} = 0 ] || {
    echo "failed without: ${failed[*]}; see $logs" >&2
    exit 1
}
