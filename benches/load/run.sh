#!/bin/bash
# run.sh [-n ROUNDS] [-s MIB] [-d DIR] [PROGRAM] : measures `unionfs load` of an image of 8 layers
# (made by make-image.py, 600 MiB by default). Compares it with `skopeo copy` of the same archive to
# a directory plus `tar -x` of its layers, and with `podman load`. Each of them ends with a sync.
# They run alternately for ROUNDS (5), in DIR (a temporary one). Prints medians of the elapsed time
# and of the CPU time, which depends less on other load, in seconds. PROGRAM is
# target/release/unionfs by default, which is built first. Needs root.
# `just bench-load` runs this.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=5 mib=600 dir=
while getopts n:s:d: option; do
    case $option in
    n) rounds=$OPTARG ;;
    s) mib=$OPTARG ;;
    d) dir=$OPTARG ;;
    *) sed -n '2,8p' "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
program=${1:-}
if [ -z "$program" ]; then
    cargo build --release --quiet --bin unionfs
    program=$PWD/target/release/unionfs
fi
ci/install.sh skopeo podman python3 jq
work=$(mktemp -d "${dir:-${TMPDIR:-/tmp}}/bench-load.XXXXXX")
trap 'rm -rf "$work"' EXIT
image=$work/image.tar
python3 benches/load/make-image.py "$image" "$mib"

unionfs() {
    "$program" --root "$work/out" load -q -i "$image"
}
skopeo_untar() {
    skopeo copy -q "docker-archive:$image" "dir:$work/out"
    local layer at=0
    for layer in $(jq -r '.layers[].digest' "$work/out/manifest.json"); do
        mkdir "$work/out/$((at += 1))"
        tar -xf "$work/out/${layer#sha256:}" -C "$work/out/$at"
    done
}
podman_load() {
    podman --root "$work/out" --runroot "$work/run" --storage-driver overlay load -q -i "$image"
}

# once CONTESTANT : runs it, and records its times.
once() {
    cat "$image" >/dev/null
    sync
    { time { "$1" >/dev/null && sync -f "$work"; }; } 2>"$work/time"
    cat "$work/time" >&2
    tail -n 1 "$work/time" >>"$work/$1.times"
    rm -rf "$work/out" "$work/run"
}
# median COLUMN CONTESTANT : prints the median of a column of its times.
median() {
    cut -d' ' -f"$1" "$work/$2.times" | sort -n | sed -n "$(((rounds + 1) / 2))p"
}

TIMEFORMAT='%R %U %S'
contestants=(unionfs skopeo_untar podman_load)
for ((round = 0; round < rounds; round++)); do
    for ((turn = 0; turn < 3; turn++)); do
        once "${contestants[(round + turn) % 3]}"
    done
done
for contestant in "${contestants[@]}"; do
    printf '%-13s %6s s, CPU %s s user, %s s system\n' "$contestant" \
        "$(median 1 "$contestant")" "$(median 2 "$contestant")" "$(median 3 "$contestant")"
done
