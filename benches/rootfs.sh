#!/bin/bash
# rootfs.sh DIR : makes a Debian root file system with a C compiler, git, Python and Node.js in DIR,
# from this host's package sources. Needs root. `cargo bench --bench compare` runs this.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
dir=$1
[ ! -e "$dir" ] || { echo "$dir exists" >&2; exit 1; }
command -v mmdebstrap >/dev/null || "$(dirname "$0")/../ci/install.sh" mmdebstrap
. /etc/os-release
# Only the distribution's own sources: the packages of others replace some of them and conflict with
# the rest (the nodejs of NodeSource with npm). Without any, mmdebstrap takes deb.debian.org.
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/{"$ID",system}.sources; do
    [ ! -s "$file" ] || sources+=("$file")
done
# It has another name until it is complete.
rm -rf "$dir.part"
mkdir -p "$(dirname "$dir")"
log=$dir.log
mmdebstrap --verbose --variant=minbase --include=gcc,libc6-dev,make,git,python3-minimal,libpython3-stdlib,python3-pip,nodejs,npm \
    "$VERSION_CODENAME" "$dir.part" "${sources[@]}" >"$log" 2>&1 || { tail -n 30 "$log" >&2; exit 1; }
mv "$dir.part" "$dir"
rm "$log"
