#!/bin/bash
# ci/with-dockerd.sh DATA-ROOT COMMAND...: runs COMMAND with a private dockerd (own mount and
# network namespace, own cgroup, no network) on DATA-ROOT, driver overlay2, and stops it
# again. Called by tests/store, which let it look at stores that unionfs wrote.
#
# Needs root and docker.io (Debian). The exit code is COMMAND's.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 DATA-ROOT COMMAND..." >&2; exit 2; }
root=$(realpath "$1")
shift
run=$(mktemp -d /tmp/uwd.XXXXXX)    # short: Unix sockets live here
cgroup=unionfs-test-$$
daemon=

cleanup() {
    status=$?
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2> /dev/null || true
        for _ in $(seq 200); do kill -0 "$daemon" 2> /dev/null || break; sleep 0.1; done
        if kill -0 "$daemon" 2> /dev/null; then
            echo "$0: dockerd does not stop, killing it" >&2
            kill -KILL "$daemon" || true
            [ ! -s "$run/x/containerd/containerd.pid" ] || kill -KILL "$(cat "$run/x/containerd/containerd.pid")" || true
        fi
        wait "$daemon" 2> /dev/null || true
    fi
    find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2> /dev/null || true
    rm -rf "$run"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

export DOCKER_HOST=unix://$run/sock DOCKER_CONFIG=$run/client
unset DOCKER_CONTEXT
echo "{\"deprecated-key-path\": \"$run/key.json\"}" > "$run/daemon.json"
unshare --mount --net --propagation private sh -c '
    # A copy of what others have mounted meanwhile would keep their servers and uppers busy.
    sed -n "s#^[^ ]* \(/tmp/[^ ]*\) \(fuse\.\|overlay \).*#\1#p" /proc/self/mounts | xargs -r umount -l
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
    exec "$@"' sh \
    dockerd --config-file "$run/daemon.json" --data-root "$root" --exec-root "$run/x" --pidfile "$run/pid" \
    --host "$DOCKER_HOST" --group "$(id -gn)" --storage-driver overlay2 --shutdown-timeout 5 \
    --cgroup-parent "/$cgroup" --exec-opt native.cgroupdriver=cgroupfs \
    --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --userland-proxy=false \
    > "$run/log" 2>&1 < /dev/null &
daemon=$!
for _ in $(seq 300); do
    if docker version > /dev/null 2>&1; then
        timeout 300 "$@"
        exit
    fi
    kill -0 "$daemon" 2> /dev/null || break
    sleep 0.1
done
tail -5 "$run/log" >&2
echo "$0: dockerd does not start" >&2
exit 1
