#!/bin/bash
# ci/make-docker-store.sh OUTDIR [DRIVER]: makes a real Docker store for tests, with the storage
# driver overlay2 or DRIVER (overlay and vfs work everywhere).
#
# Starts a private dockerd (see dockerd.sh), builds images with every kind of entry and change,
# makes containers, and stops dockerd again. tests/store runs this script and keeps the result in
# target/.
#
#   OUTDIR/docker/                 dockerd's data root
#   OUTDIR/facts/images.json       `docker inspect` of all images
#   OUTDIR/facts/containers.json   `docker inspect` of all containers
#   OUTDIR/facts/history/IMAGE     `docker history`, a JSON line per step
#   OUTDIR/facts/diff/CONTAINER    `docker diff`
#   OUTDIR/truth/CONTAINER.tar     `docker export`; of-IMAGE is a fresh container of IMAGE
#   OUTDIR/log/                    the output of dockerd and of the builds
#   OUTDIR/complete                exists if all steps succeeded
#
# Needs root and the packages docker.io busybox-static libcap2-bin attr (Debian). Takes about a minute.
set -euo pipefail

[ $# = 1 ] || [ $# = 2 ] || { echo "usage: $0 OUTDIR [DRIVER]" >&2; exit 2; }
driver=${2:-overlay2}
[ "$(id -u)" = 0 ] || { echo "$0: must be root to run dockerd" >&2; exit 2; }
for tool in dockerd docker containerd runc busybox setcap setfattr unshare; do
    command -v $tool > /dev/null || { echo "$0: $tool is missing; apt-get install docker.io busybox-static libcap2-bin attr" >&2; exit 2; }
done
mkdir -p "$1"
out=$(realpath "$1")
[ -z "$(ls -A "$out")" ] || { echo "$0: $out is not empty" >&2; exit 2; }
mkdir -p "$out"/{docker,facts/{history,diff},truth,log}

. "$(dirname "$0")/dockerd.sh"

# ------------------------------------------------------------------ the base image
root=$run/root
mkdir -p "$root"/{bin,etc,tmp,proc,sys,dev,root,data,steps}
chmod 1777 "$root/tmp"
chmod 700 "$root/root"
cp -L "$(command -v busybox)" "$root/bin/busybox"
for applet in sh ls cat cp mv rm rmdir mkdir ln chmod chown touch mknod mkfifo dd seq printf true sleep; do
    ln -s busybox "$root/bin/$applet"
done
echo 'NAME=base' > "$root/etc/os-release"
echo 'root:x:0:0:root:/root:/bin/sh' > "$root/etc/passwd"
(
    cd "$root/data"
    for name in keep change append truncate chmod chown touch delete to-dir to-link move; do
        echo "base $name" > $name
    done
    mkdir -p deleted/b opaque/sub merged emptied dir-to-file dir-to-link moved/in/ner links special modes owners times many
    echo 1 > deleted/a; echo 2 > deleted/b/c
    for name in old1 old2 sub/old3; do echo "$name" > opaque/$name; done
    echo base > merged/base; touch emptied/{1,2,3}; echo in > dir-to-file/in; echo in > dir-to-link/in
    echo deep > moved/in/ner/file
    echo hard > links/a; ln links/a links/b; ln links/a links/c
    ln -s ../keep links/relative; ln -s /data/keep links/absolute; ln -s nowhere links/dangling
    ln -s loop links/loop; ln -s "$(printf 'x%.0s' $(seq 900))" links/long
    mkfifo special/fifo; mknod special/null c 1 3; mknod special/loop0 b 7 0; mknod special/gone c 1 5
    echo s > modes/suid; chmod 4755 modes/suid; echo s > modes/sgid; chmod 2711 modes/sgid
    echo n > modes/none; chmod 0 modes/none; mkdir modes/sticky modes/sgid-dir; chmod 1777 modes/sticky; chmod 2775 modes/sgid-dir
    for id in 1000 65534 2000000000; do echo $id > owners/$id; chown $id:$id owners/$id; done
    echo e > times/epoch; touch -d @0 times/epoch
    echo n > times/nanoseconds; touch -d '2020-01-02 03:04:05.123456789' times/nanoseconds
    echo f > times/future; touch -d 2100-01-01 times/future
    cp -L "$root/bin/busybox" capable; setcap cap_net_raw+ep capable
    echo x > attributed; setfattr -n user.note -v value attributed
    seq 300000 > big; truncate -s 3M sparse; echo end >> sparse; : > empty
    for i in $(seq 500); do echo $i > many/$i; done
    deep=nested
    for i in $(seq 10); do deep=$deep/$(printf "$((i % 10))%.0s" $(seq 120)); done
    mkdir -p $deep; echo deep > $deep/file
    mkdir names; cd names
    for name in "$(printf 'n%.0s' $(seq 255))" $'\377\376not-utf8' $'new\nline' ' space ' 'back\slash' 'a:b,c=d' \
        $'\303\251' $'e\314\201' '...' '-dash' '.wh' 'wh.x' CASE case; do
        printf '%s' "$name" > "./$name"
    done
)

# Each layer is made by one shell script, which runs in the image.
step() { cat > "$root/steps/$1"; }
step add << 'STEP'
set -e; cd /data; mkdir -p added/deeper added/empty; echo new > added/file; echo new > added/deeper/file; echo added > merged/added
STEP
step change << 'STEP'
set -e; cd /data; echo changed > change; echo more >> append; : > truncate; chmod 600 chmod; chown 12:34 chown
touch -d '2001-02-03 04:05:06' touch; chmod 711 merged; printf X | dd of=big bs=1 seek=1000000 conv=notrunc 2> /dev/null
printf Y | dd of=sparse bs=1 seek=5000 conv=notrunc 2> /dev/null; echo NAME=app > /etc/os-release; chown -h 7:8 links/absolute
STEP
step delete << 'STEP'
set -e; cd /data; rm delete special/gone links/dangling links/b emptied/1 emptied/2 emptied/3 many/1*; rm -r deleted
STEP
step opaque << 'STEP'
set -e; cd /data; rm -r opaque; mkdir -p opaque/sub; echo new > opaque/new; echo replaced > opaque/old1; echo y > opaque/sub/y
STEP
step types << 'STEP'
set -e; cd /data; rm to-dir to-link special/fifo; rm -r dir-to-file dir-to-link
mkdir to-dir; echo in > to-dir/in; ln -s keep to-link; echo file > dir-to-file; ln -s merged dir-to-link; echo file > special/fifo
STEP
step again << 'STEP'
set -e; cd /data; echo back > delete; mkdir deleted; echo back > deleted/a; mv moved moved2; mv move move2; mv added/deeper added/deeper2
rm -r opaque/sub; mkdir opaque/sub; echo z > opaque/sub/z
STEP
step links << 'STEP'
set -e; cd /data; ln keep added/keep; echo more >> links/a; ln links/c links/d; echo n > added/h1; ln added/h1 added/h2
mkdir added/d; ln added/h1 added/d/h3; mkfifo -m 640 special/fifo2; mknod special/zero c 1 5; chmod 755 modes/suid; chmod 3777 modes/sgid-dir
STEP
step second << 'STEP'
set -e; cd /data; rm -r added many; mkdir many; echo only > many/only; rm names/CASE; rm -r opaque; echo file > opaque
STEP
step container << 'STEP'
set -e; cd /data; echo rw > new; echo rw >> keep; rm change; rm -r merged; mkdir merged; echo rw > merged/rw; chmod 640 append
ln new new2; mkfifo fifo; mv times times2; rm -r /steps; echo x > /tmp/x; rm many/2*
STEP
tar -C "$root" --xattrs --xattrs-include='*' --numeric-owner --sort=name -cf "$run/base.tar" .

context=$run/context
mkdir -p "$context/tree/sub" "$run/added"
echo copied > "$context/tree/file"; echo copied > "$context/tree/sub/file"; ln -s file "$context/tree/link"; echo over > "$context/keep"
echo a > "$run/added/a"; ln "$run/added/a" "$run/added/b"; cp -L "$root/bin/busybox" "$run/added/capable"
chown -R 321:321 "$run/added"; setcap cap_chown+ep "$run/added/capable"
tar -C "$run/added" --xattrs --xattrs-include='*' --numeric-owner -czf "$context/added.tar.gz" .
{
    echo FROM base:1
    for name in add change delete opaque types again links; do echo "RUN sh /steps/$name"; done
    echo 'COPY tree /data/copied/'; echo 'ADD added.tar.gz /data/untarred/'
    echo 'ENV KEY=value'; echo 'WORKDIR /work/dir'; echo 'CMD ["/bin/sh"]'
} > "$context/Dockerfile.app"
printf 'FROM app:1\nRUN sh /steps/second\nCOPY --chown=5:6 keep /data/keep\nLABEL v=2\n' > "$context/Dockerfile.app2"
printf 'FROM scratch\nCOPY tree /\n' > "$context/Dockerfile.scratch"
{
    echo FROM base:1
    for i in $(seq 40); do
        seq "$i" > "$context/layer$i"
        echo "COPY layer$i /deep/$((i % 7))/shared"
    done
} > "$context/Dockerfile.deep"

# ------------------------------------------------------------------ dockerd
export DOCKER_BUILDKIT=0
start_dockerd "$out/docker" "$out/log/dockerd" "$driver"
d() { timeout 300 docker "$@" 9>&-; }

build() {
    d build --network none --no-cache --rm -f "$context/Dockerfile.$1" "${@:2}" "$context" > "$out/log/build-$1" 2>&1 \
        || { tail -5 "$out/log/build-$1" >&2; exit 1; }
}
d import --change 'CMD ["/bin/sh"]' "$run/base.tar" base:1 > /dev/null
d tag base:1 base:latest
build app -t app:1
d tag app:1 registry.example:5000/team/app:v1
build app2 -t app:2
build scratch -t scratch:1
build deep -t deep:1
build scratch                        # again, without a name
start() { d run --network none --name "$@" > /dev/null; }
start changed app:1 sh /steps/container
start deepest deep:1 sh -c 'echo rw >> /deep/3/shared; rm /data/keep'
start dot-wh base:1 sh -c 'echo no-whiteout > /data/.wh.keep; mkdir /data/.wh..wh..opq'
start stopped -d app:2 sleep 1000
d kill stopped > /dev/null
d wait stopped > /dev/null
d commit changed committed:1 > /dev/null
for image in base:1 app:1 app:2 deep:1 committed:1; do
    d create --name "of-${image/:/-}" --network none $image sh > /dev/null
done
d create --name of-scratch-1 --network none scratch:1 /file > /dev/null

for image in base:1 app:1 app:2 deep:1 committed:1 scratch:1; do
    d history --no-trunc --human=false --format '{{json .}}' $image > "$out/facts/history/$image"
done
# The substitutions are not quoted, so that each ID is a word.
d inspect $(d images -a -q --no-trunc | sort -u) > "$out/facts/images.json"
d inspect $(d ps -a -q --no-trunc) > "$out/facts/containers.json"
for name in $(d ps -a --format '{{.Names}}'); do
    d export -o "$out/truth/$name.tar" "$name"
    d diff "$name" > "$out/facts/diff/$name"
done
stop_dockerd
touch "$out/complete"
