#!/bin/bash
# ci/with-dockerd.sh DATA-ROOT COMMAND...: runs COMMAND with a private dockerd on DATA-ROOT
# (see dockerd.sh) and the driver $STORAGE_DRIVER (overlay2), and stops dockerd again. Tests run it to check stores and
# archives that unionfs wrote.
#
# Needs root and docker.io (Debian). Exits with the exit code of COMMAND.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 DATA-ROOT COMMAND..." >&2; exit 2; }
root=$(realpath "$1")
shift
. "$(dirname "$0")/dockerd.sh"
start_dockerd "$root" "$run/log" "${STORAGE_DRIVER:-overlay2}"
timeout 300 "$@" 9>&-
