# ci/dockerd.sh : functions for a private dockerd (own mount and network namespace, own cgroup, no
# network). make-docker-store.sh and with-dockerd.sh source this file. It defines
#
#   start_dockerd DATA-ROOT LOG [DRIVER]   starts dockerd with the storage driver (overlay2) and waits
#                                  until it answers; DOCKER_HOST names its socket, $run is a
#                                  directory for files
#   stop_dockerd                   stops dockerd; also runs when the script ends
#
# Only one dockerd runs on a machine at a time; a second script waits. Needs root and docker.io (Debian).

run=$(mktemp -d /tmp/ud.XXXXXX)    # short: Unix sockets live here
cgroup=unionfs-test-$$
daemon=
export DOCKER_HOST=unix://$run/sock DOCKER_CONFIG=$run/client
unset DOCKER_CONTEXT

start_dockerd() {
    exec 9> /tmp/unionfs-dockerd.lock
    flock 9
    echo "{\"deprecated-key-path\": \"$run/key.json\"}" > "$run/daemon.json"
    unshare --mount --net --propagation private sh -c '
        # A copy of what others have mounted meanwhile would keep their servers and uppers busy.
        sed -n "s#^[^ ]* \(/tmp/[^ ]*\) \(fuse\.\|overlay \).*#\1#p" /proc/self/mounts | xargs -r umount -l
        mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
        exec "$@"' sh \
        dockerd --config-file "$run/daemon.json" --data-root "$1" --exec-root "$run/x" --pidfile "$run/pid" \
        --host "$DOCKER_HOST" --group "$(id -gn)" --storage-driver "${3:-overlay2}" --shutdown-timeout 5 \
        --cgroup-parent "/$cgroup" --exec-opt native.cgroupdriver=cgroupfs \
        --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --userland-proxy=false \
        > "$2" 2>&1 < /dev/null 9>&- &
    daemon=$!
    for _ in $(seq 300); do
        if timeout 60 docker version > /dev/null 2>&1; then return; fi
        kill -0 "$daemon" 2> /dev/null || break
        sleep 0.1
    done
    tail -5 "$2" >&2
    echo "$0: dockerd does not start" >&2
    exit 1
}

stop_dockerd() {
    [ -n "$daemon" ] || return 0
    kill -TERM "$daemon" 2> /dev/null || true
    for _ in $(seq 200); do kill -0 "$daemon" 2> /dev/null || break; sleep 0.1; done
    if kill -0 "$daemon" 2> /dev/null; then
        echo "$0: dockerd does not stop, killing it" >&2
        kill -KILL "$daemon" || true
        [ ! -s "$run/x/containerd/containerd.pid" ] || kill -KILL "$(cat "$run/x/containerd/containerd.pid")" || true
    fi
    wait "$daemon" 2> /dev/null || true
    daemon=
    exec 9>&-
}

cleanup() {
    status=$?
    stop_dockerd
    find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2> /dev/null || true
    rm -rf "$run"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM
