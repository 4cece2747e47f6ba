#!/bin/bash
# rootfs.sh DIR : makes a Debian root file system with a C compiler, git and Python in DIR, from
# this host's package sources. Needs root. `cargo bench --bench compare` runs this.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
dir=$1
[ ! -e "$dir" ] || { echo "$dir exists" >&2; exit 1; }
command -v mmdebstrap >/dev/null || "$(dirname "$0")/../ci/install.sh" mmdebstrap
. /etc/os-release
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
    [ ! -s "$file" ] || sources+=("$file")
done
# It has another name until it is complete.
rm -rf "$dir.part"
mmdebstrap --quiet --variant=minbase --include=gcc,libc6-dev,make,git,python3-minimal,libpython3-stdlib,python3-pip,nodejs,npm \
    "$VERSION_CODENAME" "$dir.part" "${sources[@]}" >&2
mv "$dir.part" "$dir"
