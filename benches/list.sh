#!/bin/bash
# list.sh [-n ROUNDS] [-i IMAGES] [-d DIR] [PROGRAM] : measures `unionfs images` of a store of IMAGES
# (1000) images, each with a layer of its own, for ROUNDS (21). Prints the median of the
# elapsed time and of the CPU time in seconds. The store is made in DIR (a temporary one). PROGRAM is
# target/release/unionfs by default, which is built first. `just bench-list` runs this.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/images.sh
rounds=21 images=1000 dir=
while getopts n:i:d: option; do
    case $option in
    n) rounds=$OPTARG ;;
    i) images=$OPTARG ;;
    d) dir=$OPTARG ;;
    *) sed -n '2,5p' benches/list.sh >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
start list "$dir" "${1:-}"
export UNIONFS_STORE=$work/store
mkdir "$work/rootfs"
echo base >"$work/rootfs/base"
for ((i = 0; i < images; i++)); do
    echo "$i" >"$work/rootfs/number"
    "$program" import -q "$work/rootfs" "image-$i:1" >/dev/null
done
for ((round = 0; round < rounds; round++)); do
    { time "$program" --root "$UNIONFS_STORE" images >"$work/listed"; } 2>>"$work/list.times"
done
[ "$(wc -l <"$work/listed")" = $((images + 1)) ] || { echo "not all images are listed" >&2; exit 1; }
echo "$images images: $(median 1 list) s, CPU $(median 2 list) s user, $(median 3 list) s system"
