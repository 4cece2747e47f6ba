#!/bin/bash
# test.sh [CARGO-TEST-ARGUMENTS...] : installs the packages that the tests need and runs all tests.
# The README names this command, and CI runs it. Some tests need root. Without root they are
# skipped and print a message. If CI or UNIONFS_REQUIRE_ALL is set, a skipped test is a
# failure.
#
# UNIONFS_BESIDE names a command that uses the CPU time that tests leave (ci/all.sh). It starts when nothing is left
# to compile for the tests, and ends before the tests that nothing may disturb.
set -euo pipefail
cd "$(dirname "$0")/.."
. ci/parts.sh

# Root's tests get an ext4 of their own in memory, in $TMPDIR. A sync of a store or an upper then waits neither for the
# disk nor for what others have written to it. It ends with this mount namespace.
room_mib=8192
if [ -z "${UNIONFS_TEST_ROOM:-}" ] && [ "$(id -u)" = 0 ] \
    && [ "$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)" -gt $((2 * room_mib)) ]; then
    # Its name is short: paths of Unix sockets are below it.
    room=$(mktemp -d /tmp/ut.XXXXXX)
    trap print_parts EXIT
    code=0
    UNIONFS_TEST_ROOM=$room unshare --mount --propagation private ci/test.sh "$@" || code=$?
    rmdir "$room"
    exit $code
fi

command -v cargo >/dev/null || {
    echo "cargo is missing: install Rust 1.88 or newer (rustup.rs)" >&2
    exit 1
}
[ -z "${CI:-}${UNIONFS_REQUIRE_ALL:-}" ] || export CI=true UNIONFS_REQUIRE_ALL=1
# Tests that may be skipped nevertheless, as words of the printed reason: tests for which the kernel is too old, those of
# npm (too large to install for one test), and a test that needs another address than loopback.
export UNIONFS_MAY_SKIP="the kernel has no,npm,no network but loopback"
# fusermount3; dockerd and the tools that make its images; fio for shared mappings; strace to
# kill commands between two system calls and to observe syncs; the programs whose uppers we read
# and that read ours; skopeo, umoci and podman (rootless: uidmap), which write podman's store;
# crun, runc and bubblewrap, which start the containers of `unionfs run`;
# the tools that tests/suites runs on the mount.
packages=(fuse3 docker.io containerd busybox-static libcap2-bin attr fio strace fuse-overlayfs buildah)
# Skopeo and podman also load our archives, and write archives that we load.
packages+=(skopeo umoci podman crun runc bubblewrap uidmap git python3-pip rpm sqlite3 e2fsprogs xfsprogs btrfs-progs rsync acl fuse2fs)
# Thin pools of Docker's driver devicemapper (tests/cli/devicemapper.rs).
packages+=(thin-provisioning-tools)
# Lowers that cannot be written (tests/cli/unwritable_lowers.rs).
packages+=(squashfs-tools erofs-utils)
# The shells whose completions are checked, and what the examples of the documentation call.
packages+=(zsh fish jq zstd man-db)
# A registry and its certificate (tests/registry).
packages+=(docker-registry openssl)
install() {
    if [ "$(id -u)" = 0 ] || [ -n "${UNIONFS_REQUIRE_ALL:-}" ]; then
        ci/install.sh "${packages[@]}"
    else
        ci/install.sh "${packages[@]}" || echo "going on without them" >&2
    fi
}
# These suites need root, because they mount.
tools() {
    [ "$(id -u)" != 0 ] || ci/tools.sh pjdfstest fsx
}
make_room() {
    [ -n "${UNIONFS_TEST_ROOM:-}" ] || return 0
    local image
    image=$(mktemp /dev/shm/unionfs-test.XXXXXX)
    truncate -s ${room_mib}M "$image"
    mkfs.ext4 -q -m 0 "$image"
    # `discard`: removed files take no memory.
    mount -o loop,discard "$image" "$UNIONFS_TEST_ROOM"
    rm "$image"
    chmod 1777 "$UNIONFS_TEST_ROOM"
    export TMPDIR=$UNIONFS_TEST_ROOM
}
# With arguments, only the tests that they name run.
if [ $# != 0 ]; then
    install
    tools
    make_room
    cargo test --quiet --no-fail-fast "$@"
    exit
fi

# Compiles the tests that these arguments of cargo select. The array `programs` gets the path of each by its name;
# `unionfs` are the unit tests.
declare -A programs
compile() {
    local log path name
    log=$(mktemp)
    cargo --color never test --no-run "$@" 2>"$log" || { cat "$log" >&2; return 1; }
    while read -r path; do
        name=$(basename "$path")
        name=${name%-*}
        [ "$path" = "${path#/}" ] && path=./$path
        # The unit tests of the library and those of the program have the same name.
        programs[${name//_/-}]+=" $path"
    done < <(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$log")
    rm "$log"
}
# A test that is killed during a mount leaves io_uring switched on.
switch=/sys/module/fuse/parameters/enable_uring
before=$(cat $switch 2>/dev/null || true)
beside=
at_end() {
    print_parts
    [ -z "$beside" ] || kill -- "-$beside" 2>/dev/null || true
    [ -z "$before" ] || [ "$(id -u)" != 0 ] || echo "$before" >$switch
}
trap at_end EXIT
failed=()
# Runs the tests NAME, with further arguments for them.
tests() {
    local name=$1 path
    shift
    [ -n "${programs[$name]:-}" ] || { echo "test.sh: no tests are called $name" >&2; exit 1; }
    for path in ${programs[$name]}; do
        "$path" --quiet "$@" || failed+=("$name")
    done
}
stop_if_failed() {
    [ ${#failed[@]} = 0 ] || { echo "test.sh: failed: ${failed[*]}" >&2; exit 1; }
}

# A compiler is needed to link; the other packages come while the tests are compiled.
ci/install.sh
install &
installation=$!
part "compile tests"
compile
part "packages and tools"
wait $installation
tools
make_room
# Doc tests are compiled when they run.
part "doc tests"
cargo test --quiet --doc
compile --test model --no-default-features --features model
part "unit tests"
tests unionfs
if [ -n "${UNIONFS_BESIDE:-}" ]; then
    # Only CPUs that have nothing else to do work for it. Its mount namespace has no mount of a test: a server would
    # not end before that copy of its mount. It enters other roots, where the directory of TMPDIR is not.
    set -m
    env -u TMPDIR unshare --mount --propagation private chrt --idle 0 "$UNIONFS_BESIDE" &
    beside=$!
    set +m
fi
for name in cli mount store parity traps registry crash suites store-mounted attack sandbox catalog core fuzz docs; do
    part "$name"
    tests $name
done
# The union under a model checker, which replaces our locks by its own.
part "model checker"
tests model
stop_if_failed

if [ "$(id -u)" != 0 ]; then
    echo "not run once more with io=cached, over fuser and over io_uring: needs root"
else
    # Root's mounts use io=passthrough by default. The tests that data can influence run once more with
    # io=cached, which mounts of plain users have.
    data=(attr copy_file_range create differences fallocate fsync hardlinks link lseek open_unlinked)
    data+=(read_only read_write rename set_id data programs times fsx:: exerciser::)
    # These name the policy of each of their mounts, so they would only repeat themselves.
    data+=(--skip io_policies:: --skip set_id_namespaces:: --skip leases:: --skip syscalls::)
    export UNIONFS_TEST_IO=cached
    part "io=cached"
    for name in mount traps suites; do tests $name "${data[@]}"; done
    unset UNIONFS_TEST_IO
    # The tests of messages and of the trait of operations run over the crate `fuser`. It has neither times
    # of birth nor unnamed files. The tests of these are left out, and one test that takes long.
    fuser=(acl:: attr:: copy_file_range:: create:: differences:: fallocate:: forget:: fsync:: handles::)
    fuser+=(hardlinks:: inode_numbers:: ioctls:: link:: lookup:: lseek:: mkdir:: mknod::)
    fuser+=(open_unlinked:: read_only:: read_write:: readdir:: rename:: rmdir:: set_id:: statfs:: unlink::)
    fuser+=(creation_modes:: times:: renames:: listing:: programs:: pjdfstest:: faults::of_data of_set_id_bits)
    fuser+=(--skip birth --skip unnamed_files --skip names_that_stay)
    export UNIONFS_TEST_TRANSPORT=fuser
    part "fuser"
    for name in mount traps suites crash; do tests $name "${fuser[@]}"; done
    # The tests of the transport run once more over io_uring, which the fixture of each mount switches on.
    if [ ! -e $switch ]; then
        echo "not run over io_uring: this kernel has none for FUSE (no $switch)"
    else
        export UNIONFS_TEST_TRANSPORT=uring
        # These name the transport of each of their mounts, or other programs mount for them. They would only repeat
        # themselves.
        uring=(uring fuser leases syscalls descriptors podman buildah non_root upper_on_fuse_overlayfs)
        # These test how the union reads layers and writes uppers, below the transport, which does not know of either.
        uring+=(peers dialects whiteout_forms wh_files believed recorded swapped several_file_systems)
        uring+=(upper_file_systems lower_unchanged markers)
        uring=("${uring[@]/%/::}" over_io_uring over_fuser fall_as_in_the_kernel)
        # An error of a system call takes the same way through the transport, whichever change it stops.
        crash=(frozen:: killed:: shut_down:: full_ unreadable:: faults::of_data faults::of_a_copy_up)
        part "io_uring"
        for name in mount traps; do tests $name "${uring[@]/#/--skip=}"; done
        tests crash "${crash[@]}"
        tests parity scenarios regressions
        tests suites fsx exerciser
    fi
    unset UNIONFS_TEST_TRANSPORT
fi
if [ -n "$beside" ]; then
    part "wait for $(basename "$UNIONFS_BESIDE")"
    wait "$beside"
    beside=
fi
part "scheduling"
tests scheduling
part
stop_if_failed
