#!/bin/bash
# run.sh [-n ROUNDS] [-s MIB] [-l LAYERS] [-d DIR] [PROGRAM] : measures `unionfs load` of an image (made
# by make-image.py, by default 600 MiB in 8 layers). Compares it with `skopeo copy` of the same archive to
# a directory plus `tar -x` of its layers, and with `podman load`. Each of them ends with a sync.
# They run alternately for ROUNDS (5), in DIR (a temporary one). Prints medians of the elapsed time
# and of the CPU time, which depends less on other load, in seconds. PROGRAM is
# target/release/unionfs by default, which is built first. Needs root.
# `just bench-load` runs this.
set -euo pipefail
cd "$(dirname "$0")/../.."
. benches/images.sh
usage() { sed -n '2,8p' benches/load/run.sh >&2; }
layers=8
prepare load "skopeo podman python3 jq" "$@"

unionfs() {
    "$program" --store "$work/out" load -q -i "$image"
}
skopeo_load() {
    skopeo_untar "docker-archive:$image"
}
podman_load() {
    podman --root "$work/out" --runroot "$work/run" --storage-driver overlay load -q -i "$image"
}

# once CONTESTANT : runs it, and records its times.
once() {
    cat "$image" >/dev/null
    sync
    timed synced "$1"
    echo "$times" >>"$work/$1.times"
    rm -rf "$work/out" "$work/run"
}

contestants=(unionfs skopeo_load podman_load)
alternate
report
