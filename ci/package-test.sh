#!/bin/bash
# package-test.sh : builds the package (ci/package.sh), installs it in a new Debian tree, and uses it
# there: mount(8), fstab, remount, a plain user, manual pages, completions. Needs root, /dev/fuse and
# Debian's mirror. ci/all.sh runs it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "package-test.sh: needs root" >&2; exit 1; }

# All mounts are in a mount namespace of their own and end with it.
if [ -z "${PACKAGE_TEST_INSIDE:-}" ]; then
    ci/install.sh debootstrap busybox-static
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # The package is tried here, and not its speed: without optimisation it is built in a fraction of the time.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=0 \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=256 ci/package.sh "$work/out"
    cargo build --quiet --example sample-store
    PACKAGE_TEST_INSIDE=1 unshare --mount --propagation private "$0" "$work"
    exit
fi

work=$1
tree=$work/tree
fail() {
    echo "package-test.sh: $*" >&2
    exit 1
}
# Runs a command in the tree.
inside() {
    chroot "$tree" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
}
# Runs a command as the plain user of the tree.
plain() {
    chroot --userspec=1000:1000 "$tree" env -i PATH=/usr/bin:/bin HOME=/home/user LANG=C.UTF-8 "$@"
}

echo "== the program without a C library"
mkdir -p "$work/bare/bin"
cp "$work/out/unionfs" "$work/bare/bin/"
chroot "$work/bare" /bin/unionfs --version >/dev/null || fail "the program is not static"

echo "== a new Debian tree"
debootstrap --variant=minbase --include=fuse3,uidmap,mount bookworm "$tree" http://deb.debian.org/debian \
    >"$work/debootstrap.log" 2>&1 || { tail -5 "$work/debootstrap.log" >&2; fail "debootstrap failed"; }
# The files that a minimal Debian leaves out are in the package all the same.
rm -f "$tree/etc/dpkg/dpkg.cfg.d/"*
# fusermount3 reads it; the installer of a machine makes it.
[ -e "$tree/etc/mtab" ] || ln -s ../proc/self/mounts "$tree/etc/mtab"
mount -t proc proc "$tree/proc"
# Devices as udev makes them: /dev/fuse is for all users, which it is not on every machine without udev.
mount -t tmpfs -o mode=755 tmpfs "$tree/dev"
mknod -m 666 "$tree/dev/fuse" c 10 229
mknod -m 666 "$tree/dev/null" c 1 3
mknod -m 666 "$tree/dev/zero" c 1 5
mknod -m 444 "$tree/dev/urandom" c 1 9
ln -s /proc/self/fd "$tree/dev/fd"
cp "$work/out/unionfs.deb" "$tree/root/"
inside dpkg --install /root/unionfs.deb >/dev/null || fail "dpkg refuses the package"
for file in usr/bin/unionfs usr/share/man/man1/unionfs.1.gz usr/share/man/man1/unionfs-mount.1.gz usr/share/man/man5/unionfs.5.gz \
    usr/share/bash-completion/completions/unionfs usr/share/zsh/vendor-completions/_unionfs \
    usr/share/fish/vendor_completions.d/unionfs.fish usr/lib/systemd/system/unionfs@.service usr/lib/tmpfiles.d/unionfs.conf \
    usr/share/doc/unionfs/copyright usr/share/doc/unionfs/examples/podman/storage.conf; do
    [ -s "$tree/$file" ] || fail "the package lacks /$file"
done
[ "$(readlink "$tree/usr/sbin/mount.unionfs")" = ../bin/unionfs ] || fail "mount.unionfs leads elsewhere"
# The switch is there, and off.
grep -q '^#options fuse enable_uring=1$' "$tree/etc/modprobe.d/unionfs-fuse-uring.conf" \
    || fail "the switch of io_uring is not there, or is on"
inside dpkg --status unionfs | grep -q '^Conflicts: unionfs-fuse$' || fail "no conflict with unionfs-fuse"

echo "== mount(8) and fstab"
"${CARGO_TARGET_DIR:-target}/debug/examples/sample-store" "$tree/var/lib/docker" >/dev/null
inside mkdir /mnt/a /mnt/b /lower /upper /work
echo text >"$tree/lower/file"
inside mount -t unionfs sample:1 /mnt/a -o name=kept
inside touch /mnt/a/new
inside mount -o remount,ro /mnt/a
inside touch /mnt/a/refused 2>/dev/null && fail "remount,ro changed nothing"
inside mount -o remount,rw /mnt/a
inside rm /mnt/a/new
inside umount /mnt/a
cat >"$tree/etc/fstab" <<EOF
sample:2 /mnt/a unionfs ro,nofail,x-systemd.automount 0 0
none /mnt/b unionfs lowerdir=/lower,upperdir=/upper,workdir=/work 0 0
EOF
inside mount -a
inside ls /mnt/a/etc >/dev/null
inside rm /mnt/b/file
[ "$(inside stat -c %F /upper/file)" = "character special file" ] || fail "no whiteout in the upper"
inside unionfs ps --json | grep -q '"sample:2"' || fail "ps does not show the mount"
inside umount /mnt/a /mnt/b
code=0
inside mount -t unionfs absent:1 /mnt/a 2>/dev/null || code=$?
[ $code = 32 ] || fail "an absent image gives exit code $code, not 32"

echo "== a plain user"
inside useradd --create-home user
# fusermount3 mounts for a plain user.
plain sh -c 'cd && mkdir l u w m && echo text > l/file && unionfs -o lowerdir=l,upperdir=u,workdir=w m' \
    || fail "a plain user cannot mount"
plain sh -c 'cd && rm m/file && touch m/new && ! [ -e m/file ] && unionfs umount m && [ -f u/new ]' \
    || fail "a plain user cannot change the mount"

echo "== removal"
inside dpkg --purge unionfs >/dev/null 2>&1 || fail "the package cannot be removed"
[ ! -e "$tree/usr/bin/unionfs" ] && [ ! -e "$tree/usr/sbin/mount.unionfs" ] || fail "files are left"
echo "the package works"
