#!/bin/sh
# Pull, run, compare, commit and push an image without an engine: as a plain user, with a registry on
# this machine. It needs docker-registry, and crun, runc or bwrap.
#
# Usage: engineless.sh ARCHIVE    an archive of an image with a shell, as `unionfs save` writes it
set -eu
archive=$1
unionfs=${UNIONFS:-unionfs}
dir=$(mktemp -d)
registry=
end() {
    [ -z "$registry" ] || kill "$registry"
    rm -rf "$dir"
}
trap end EXIT

# A registry, with the image in it.
port=${PORT:-$((20000 + $$ % 20000))}
cat > "$dir/registry.yml" <<E
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: "$dir/registry"}}
http: {addr: "127.0.0.1:$port", secret: example}
E
docker-registry serve "$dir/registry.yml" > "$dir/log" 2>&1 &
registry=$!
name=127.0.0.1:$port/example
"$unionfs" load -q -i "$archive" > "$dir/loaded"
loaded=$(sed -n 's/^Loaded image: //p' "$dir/loaded" | head -n 1)
for _ in 1 2 3 4 5 6 7 8 9 10; do
    "$unionfs" push -q "$loaded" "$name:1" > "$dir/pushed" 2>&1 && break
    sleep 0.3
done

# Pull, and run a command. Its changes are kept in the layer `example`.
"$unionfs" pull -q "$name:1"
"$unionfs" run --name example "$name:1" sh -c 'echo changed > /changed'
echo "changes:"
"$unionfs" diff example

# Make an image of the changes, and push it.
"$unionfs" commit -q example "$name:2"
"$unionfs" push -q "$name:2"
"$unionfs" rm example
"$unionfs" rmi "$name:2" > "$dir/removed"

# Everybody can pull it.
"$unionfs" pull -q "$name:2"
"$unionfs" run "$name:2" sh -c 'test "$(cat /changed)" = changed'
echo "the image came back with the change"
