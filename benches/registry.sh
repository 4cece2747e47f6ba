# Sourced by push/run.sh and pull/run.sh after images.sh: a registry of the measurement, with its files
# in $work/registry. `serve` starts it, `stop_serving` ends it, $registry_port is its port, and `finish`
# ends it too.
registry=

# configure_registry : sets registry_port and writes the configuration.
configure_registry() {
    registry_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$work/registry.yml" <<END
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: "$work/registry"}}
http: {addr: "127.0.0.1:$registry_port", secret: bench}
END
}

serve() {
    docker-registry serve "$work/registry.yml" >/dev/null 2>&1 &
    registry=$!
    until python3 -c "import socket; socket.create_connection(('127.0.0.1', $registry_port))" 2>/dev/null; do
        sleep 0.05
    done
}

stop_serving() {
    [ -n "$registry" ] || return 0
    kill "$registry"
    wait "$registry" || true
    registry=
}

finish() {
    stop_serving
    umount "$work/podman/overlay" 2>/dev/null || true
    rm -rf "$work"
}
