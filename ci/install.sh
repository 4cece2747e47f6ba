#!/bin/bash
# install.sh PACKAGE... : installs the Debian packages that are missing. Changes nothing if all are
# installed. ci/test.sh, examples/walkthrough.sh and the benchmarks run it.
set -euo pipefail

# Rust needs cc to link.
command -v cc >/dev/null || set -- gcc libc6-dev "$@"
missing=()
for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed \
        || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}; not a Debian system: install them with your package manager" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "missing: ${missing[*]}; install them first: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# The package lists may be absent (in a container) or stale. They are refreshed only if the first try fails.
# policy-rc.d prevents the start of services of the packages (dockerd): the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 || {
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}
