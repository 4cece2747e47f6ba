#!/bin/bash
# run.sh [-n ROUNDS] [-s MIB] [-l LAYERS] [-d DIR] [PROGRAM] : measures `unionfs push` to a registry
# that has no part of the image (made by ../load/make-image.py, by default 600 MiB in 8 layers).
# Compares it with `podman push`, each with gzip and with zstd. They run alternately for ROUNDS (5), in
# DIR (a temporary one). Prints medians of the elapsed time and the CPU time in seconds, and of the
# bytes that the registry has afterwards. PROGRAM is target/release/unionfs by default, which is built
# first. Needs root. `just bench-push` runs this.
set -euo pipefail
cd "$(dirname "$0")/../.."
. benches/images.sh
. benches/registry.sh
usage() { sed -n '2,7p' benches/push/run.sh >&2; }
layers=8
prepare push "podman python3 docker-registry" "$@"

# It looks only there, and writes there.
ours=("$program" --root "$work/own" --store "$work/own")
theirs=(podman --root "$work/podman" --runroot "$work/run" --storage-driver overlay)
"${ours[@]}" load -q -i "$image" >/dev/null
"${theirs[@]}" load -q -i "$image" >/dev/null
rm "$image"

configure_registry
to=127.0.0.1:$registry_port/bench:1
unionfs_gzip() { "${ours[@]}" push -q bench-load:1 "$to"; }
unionfs_zstd() { "${ours[@]}" push -q --compression zstd bench-load:1 "$to"; }
podman_gzip() { "${theirs[@]}" push -q --tls-verify=false bench-load:1 "$to"; }
podman_zstd() { "${theirs[@]}" push -q --tls-verify=false --compression-format zstd bench-load:1 "$to"; }

# once CONTESTANT : runs it with an empty registry, and records its times.
once() {
    serve
    sync
    timed "$1"
    stop_serving
    echo "$times $(du -sb "$work/registry" | cut -f1)" >>"$work/$1.times"
    rm -rf "$work/registry"
}

contestants=(unionfs_gzip podman_gzip unionfs_zstd podman_zstd)
alternate
report bytes
