#!/bin/bash
# list.sh [-n ROUNDS] [-i IMAGES] [-d DIR] [PROGRAM] : measures `unionfs images` of a store of IMAGES
# (1000) images, each with a layer of its own, for ROUNDS (21). Prints the median of the
# elapsed time and of the CPU time in seconds. The store is made in DIR (a temporary one). PROGRAM is
# target/release/unionfs by default, which is built first. `just bench-list` runs this.
set -euo pipefail
cd "$(dirname "$0")/.."
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
program=${1:-}
if [ -z "$program" ]; then
    cargo build --release --quiet --bin unionfs
    program=$PWD/target/release/unionfs
fi
work=$(mktemp -d "${dir:-${TMPDIR:-/tmp}}/bench-list.XXXXXX")
trap 'rm -rf "$work"' EXIT
export UNIONFS_STORE=$work/store
mkdir "$work/rootfs"
echo base >"$work/rootfs/base"
for ((i = 0; i < images; i++)); do
    echo "$i" >"$work/rootfs/number"
    "$program" import -q "$work/rootfs" "image-$i:1" >/dev/null
done
TIMEFORMAT='%R %U %S'
for ((round = 0; round < rounds; round++)); do
    { time "$program" --root "$UNIONFS_STORE" images >"$work/listed"; } 2>>"$work/times"
done
[ "$(wc -l <"$work/listed")" = $((images + 1)) ] || { echo "not all images are listed" >&2; exit 1; }
median() { cut -d' ' -f"$1" "$work/times" | sort -n | sed -n "$(((rounds + 1) / 2))p"; }
echo "$images images: $(median 1) s, CPU $(median 2) s user, $(median 3) s system"
