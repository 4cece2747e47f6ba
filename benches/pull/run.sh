#!/bin/bash
# run.sh [-n ROUNDS] [-s MIB] [-l LAYERS] [-d DIR] [PROGRAM] : measures `unionfs pull` of an image (made
# by ../load/make-image.py, by default 600 MiB in 8 layers) from a registry on this machine. Compares
# it with `skopeo copy` to a directory plus `tar -x` of its layers, and with `podman pull`. Each of them
# ends with a sync. They run alternately for ROUNDS (5), in DIR (a temporary one). Prints medians of
# the elapsed time and the CPU time in seconds. PROGRAM is target/release/unionfs by default, which is
# built first. Needs root. `just bench-pull` runs this.
set -euo pipefail
cd "$(dirname "$0")/../.."
. benches/images.sh
. benches/registry.sh
usage() { sed -n '2,7p' benches/pull/run.sh >&2; }
layers=8
prepare pull "skopeo podman python3 jq docker-registry" "$@"

configure_registry
from=127.0.0.1:$registry_port/bench:1
serve
"$program" --root "$work/own" --store "$work/own" load -q -i "$image" >/dev/null
"$program" --root "$work/own" --store "$work/own" push -q bench-load:1 "$from" >/dev/null
rm -rf "$work/own" "$image"

unionfs() {
    "$program" --root "$work/out" --store "$work/out" pull -q "$from"
}
skopeo_pull() {
    skopeo_untar "docker://$from"
}
podman_pull() {
    podman --root "$work/podman" --runroot "$work/run" --storage-driver overlay pull -q --tls-verify=false "$from"
}

# once CONTESTANT : runs it, and records its times.
once() {
    sync
    timed synced "$1"
    echo "$times" >>"$work/$1.times"
    umount "$work/podman/overlay" 2>/dev/null || true
    rm -rf "$work/out" "$work/podman" "$work/run"
}

contestants=(unionfs skopeo_pull podman_pull)
alternate
report
