# podman_users.sh PROGRAM USER [idmap]: containers of podman and buildah in user namespaces, with PROGRAM as
# the mount program. USER is root or user: root's engine, or a plain user's. Prints for each way to
# ask the owners that the container saw, and those that another container sees in the committed
# image. With `idmap`, also those of a volume that the kernel maps (allow_idmap). Runs in mount and PID
# namespaces of its own, in a directory of its own.
set -eu
program=$1 who=$2 idmap=${3-} id=23456
[ "$(id -u)" != 0 ] || mount --make-rshared /
if [ "$who" = user ] && [ "$(id -u)" = 0 ]; then
    mkdir -p home/run
    { cat /etc/passwd; echo "unionfs-test:x:$id:$id::$PWD/home:/bin/sh"; } > passwd
    { cat /etc/group; echo "unionfs-test:x:$id:"; } > group
    echo unionfs-test:300000:65536 > subuid
    mknod -m 666 fuse-node c 10 229
    for file in passwd group subuid; do mount --bind $file /etc/$file; done
    mount --bind subuid /etc/subgid
    mount --bind fuse-node /dev/fuse
    cp "$program" home/program
    cp "$0" home/script
    chown -R $id:$id home
    chmod 700 home/run
    chmod 711 .
    cd home
    exec setpriv --reuid=$id --regid=$id --clear-groups --inh-caps=-all \
        env -i PATH="$PATH" HOME="$PWD" XDG_RUNTIME_DIR="$PWD/run" sh script "$PWD/program" user
fi
if [ "$who" = root ]; then
    export HOME="$PWD"
    echo containers:400000:1000000 > subuid
    mount --bind subuid /etc/subuid
    mount --bind subuid /etc/subgid
    maps="--uidmap=0:200000:65536,--gidmap=0:200000:65536 --userns=auto:size=2048"
    build="--userns-uid-map=0:200000:65536 --userns-gid-map=0:200000:65536"
    isolation="--isolation chroot --network host"
else
    maps="--userns=keep-id --userns=nomap --userns=auto:size=2048
        --uidmap=0:1:60000,--gidmap=0:1:60000"
    build="--userns-uid-map=0:1:60000 --userns-gid-map=0:1:60000"
    isolation="--isolation rootless --runtime crun --network none"
fi
mkdir -p rootfs/bin rootfs/etc rootfs/dev rootfs/proc rootfs/sys rootfs/data rootfs/tmp rootfs/run
cp -L "$(command -v busybox)" rootfs/bin/busybox
for tool in sh cat ls rm mv mkdir chmod chown stat touch id ln; do ln rootfs/bin/busybox rootfs/bin/$tool; done
echo 'root:x:0:0:root:/:/bin/sh' > rootfs/etc/passwd
echo old > rootfs/data/root; echo old > rootfs/data/gone; mkdir rootfs/data/dir; echo x > rootfs/data/dir/x
chmod 1777 rootfs/data
tar --owner=0 --group=0 -C rootfs -cf plain.tar .
echo owned > rootfs/data/owned
tar --owner=7 --group=8 -C rootfs -cf one.tar ./data/owned
tar -Af plain.tar one.tar
common="--root $PWD/store --runroot $PWD/run1 --storage-driver overlay"
engine() { podman $common --tmpdir "$PWD/tmp1" --runtime crun --cgroup-manager cgroupfs --events-backend none \
    --storage-opt "overlay.mount_program=$program" "$@"; }
limits="--network none --cgroups disabled --ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
engine import --quiet plain.tar base:1 > /dev/null
for map in $maps; do
    options=$(echo "$map" | tr , ' ')
    echo "== $map"
    engine run --name work $limits $options base:1 sh -ec '
        while read -r _ at type _; do [ "$at" != / ] || echo $type; done < /proc/self/mounts
        cd /data; id -u; stat -c "%n %u:%g %a" root owned dir dir/x
        echo new > new; mkdir made; touch made/file; ln -s new link; stat -c "%n %u:%g" new made link
        if [ $(id -u) = 0 ]; then
            rm gone; echo more >> root; chown 5:6 new; chmod 4755 new; mv dir/x made/moved
            chown -h 9:9 link; stat -c "%n %u:%g %a" new link root made/moved
        fi'
    engine commit --quiet work image:2 > /dev/null
    engine rm work > /dev/null
    engine run --rm $limits image:2 sh -ec 'cd /data; stat -c "%n %u:%g %a" * made/*' |
        sed 's/^\(link .*\) .*/\1/'
    engine rmi image:2 > /dev/null
done
echo "== buildah"
builder() { buildah $common --storage-opt "overlay.mount_program=$program" "$@"; }
builder from --name built $build base:1 > /dev/null
builder run $isolation built sh -ec 'cd /data; stat -c "%n %u:%g %a" root owned dir; echo new > new; chown 5:6 new owned; rm gone
    stat -c "%n %u:%g" new owned'
builder commit --quiet built image:3 > /dev/null
builder rm built > /dev/null
engine run --rm $limits image:3 sh -ec 'cd /data; stat -c "%n %u:%g %a" *'
if [ "$idmap" = idmap ]; then
    echo "== volume"
    mkdir lower upper empty union
    echo old > lower/old
    chown 5:6 lower/old
    "$program" -o lowerdir=lower,upperdir=upper,workdir=empty,allow_idmap union
    engine run --rm $limits --uidmap=0:200000:65536 --gidmap=0:200000:65536 -v "$PWD/union:/v:idmap" base:1 sh -ec '
        cd /v; echo new > new; touch mine; chown 3:4 new; chmod 600 old; stat -c "%n %u:%g" old new mine'
    stat -c "%n %u:%g" upper/old upper/new upper/mine
    umount union
fi
