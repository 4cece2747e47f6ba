#!/bin/bash
# containerd.sh [-n ROUNDS] [-i IMAGES] [-d DIR] [PROGRAM] : measures `unionfs mount` of one of IMAGES
# (100) images, from containerd's store and from a store in Docker's layout with the same images,
# alternately for ROUNDS (21). Prints the median of the elapsed time and of the CPU time in seconds.
# The stores are made in DIR (a temporary one). PROGRAM is target/release/unionfs by default, which is
# built first. Needs root. `just bench-containerd` runs this.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/images.sh
usage() { sed -n '2,6p' benches/containerd.sh >&2; }
rounds=21 images=100 dir=
options n:i:d: "$@"
start containerd
ci/install.sh containerd
daemon=
# The mounts of a round that failed, and the daemon.
trap '"$program" umount "$work/mnt" 2>/dev/null || true; [ -z "$daemon" ] || { kill "$daemon"; wait "$daemon" || true; }; finish' EXIT

mkdir "$work/rootfs" "$work/mnt"
echo base >"$work/rootfs/base"
names=()
for ((i = 0; i < images; i++)); do
    echo "$i" >"$work/rootfs/number"
    "$program" --store "$work/docker" import -q "$work/rootfs" "image-$i:1" >/dev/null
    names+=("image-$i:1")
done
"$program" --store "$work/docker" save -q -o "$work/images.tar" "${names[@]}"
cat >"$work/config.toml" <<END
version = 2
root = "$work/containerd"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/socket"
END
containerd --config "$work/config.toml" >"$work/log" 2>&1 &
daemon=$!
ctr=(ctr --address "$work/socket")
for ((tries = 0; tries < 100; tries++)); do
    "${ctr[@]}" version >/dev/null 2>&1 && break
    sleep 0.1
done
"${ctr[@]}" images import "$work/images.tar" >/dev/null

# once STORE : mounts an image in the middle of the list, and unmounts it.
once() {
    timed "$program" --root "$work/$1" mount --read-only "image-$((images / 2)):1" "$work/mnt"
    echo "$times" >>"$work/$1.times"
    [ "$(cat "$work/mnt/number")" = $((images / 2)) ] || { echo "$1: not the image" >&2; exit 1; }
    "$program" umount "$work/mnt"
}
contestants=(containerd docker)
alternate
report
