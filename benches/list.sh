#!/bin/bash
# list.sh [-n ROUNDS] [-i "IMAGES..."] [-d DIR] [PROGRAM] : measures `unionfs images` of a store of 100 and
# of 1000 images (IMAGES, ascending), each with a layer of its own, and `unionfs ls` and `unionfs cat` of an
# image with 2000 files in 20 directories, with and without a catalog, each for ROUNDS (21). Prints the
# medians of the elapsed time and of the CPU time in seconds. The store is made in DIR (a temporary one).
# PROGRAM is target/release/unionfs by default, which is built first. `just bench-list` runs this.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/images.sh
usage() { sed -n '2,6p' benches/list.sh >&2; }
rounds=21 images="100 1000" dir=
options n:i:d: "$@"
start list
export UNIONFS_STORE=$work/store

# measure NAME ARGUMENTS... : runs the program for all rounds, and prints the medians.
measure() {
    local name=$1 round
    shift
    : >"$work/$name.times"
    for ((round = 0; round < rounds; round++)); do
        timed "$program" --root "$UNIONFS_STORE" "$@"
        echo "$times" >>"$work/$name.times"
    done
    echo "$name: $(median 1 "$name") s, CPU $(median 2 "$name") s user, $(median 3 "$name") s system"
}

mkdir "$work/rootfs"
echo base >"$work/rootfs/base"
made=0
for count in $images; do
    for ((; made < count; made++)); do
        echo "$made" >"$work/rootfs/number"
        "$program" import -q "$work/rootfs" "image-$made:1" >/dev/null
    done
    measure "images of $count images" images
    [ "$(wc -l <"$work/output")" = $((count + 1)) ] || { echo "not all images are listed" >&2; exit 1; }
done
for ((number = 0; number < 2000; number++)); do
    mkdir -p "$work/files/dir-$((number % 20))"
    echo "$number" >"$work/files/dir-$((number % 20))/file-$number"
done
"$program" import -q "$work/files" files:1 >/dev/null
for catalog in "without a catalog" "with a catalog"; do
    measure "ls $catalog" ls -l files:1 /dir-7
    [ "$(wc -l <"$work/output")" -ge 100 ] || { echo "not all files are listed" >&2; exit 1; }
    measure "cat $catalog" cat files:1 /dir-7/file-1007
    [ "$(cat "$work/output")" = 1007 ] || { echo "the file is another one" >&2; exit 1; }
    "$program" catalog build files:1 >/dev/null 2>&1
done
