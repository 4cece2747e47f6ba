#!/bin/bash
# package.sh [DIRECTORY] : builds the static program and the Debian package, and puts them into
# DIRECTORY (default: target/package/out). Prints their names.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/package/out}
mkdir -p "$out"
out=$(realpath "$out")
ci/install.sh gcc libc6-dev dpkg-dev >&2
ci/tools.sh cargo-deb >&2
target_dir=${CARGO_TARGET_DIR:-target}
host=$(rustc --print host-tuple)
[[ $host = *-linux-gnu ]] || { echo "package.sh: no rule for $host: build on Linux with glibc" >&2; exit 1; }

# Static: the program runs on any Linux of this architecture, whatever C library it has.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --quiet --bin unionfs --target "$host"
program=$target_dir/$host/release/unionfs

# What the program makes of itself.
made=target/package
rm -rf $made/man $made/completions
mkdir -p $made/completions
"$program" man $made/man
"$program" completions bash > $made/completions/unionfs
"$program" completions zsh > $made/completions/_unionfs
"$program" completions fish > $made/completions/unionfs.fish
ln -sf ../bin/unionfs $made/mount.unionfs

cp "$program" "$out/unionfs"
target/tools/bin/cargo-deb --quiet --no-build --no-strip --target "$host" --output "$out/unionfs.deb" >&2
printf '%s\n' "$out/unionfs" "$out/unionfs.deb"
