#!/bin/bash
# test.sh [CARGO-TEST-ARGUMENTS...] : installs the packages that the tests need and runs all tests.
# The README names this command, and CI runs it. Some tests need root. Without root they are
# skipped and print a message. If CI or UNIONFS_REQUIRE_ALL is set, a skipped test is a
# failure.
set -euo pipefail
cd "$(dirname "$0")/.."

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
# The shells whose completions are checked, and what the examples of the documentation call.
packages+=(zsh fish jq zstd man-db)
# A registry and its certificate (tests/registry).
packages+=(docker-registry openssl)
if [ "$(id -u)" = 0 ] || [ -n "${UNIONFS_REQUIRE_ALL:-}" ]; then
    ci/install.sh "${packages[@]}"
else
    ci/install.sh "${packages[@]}" || echo "going on without them" >&2
fi
# These suites need root, because they mount.
[ "$(id -u)" != 0 ] || ci/tools.sh pjdfstest fsx
pass() {
    echo "== tests, after $SECONDS s: $1"
}
pass "all"
cargo test --quiet --no-fail-fast "$@"
# With arguments, only the tests that they name run.
[ $# = 0 ] || exit 0
# The union under a model checker, which replaces our locks by its own.
pass "the union under a model checker"
cargo test --quiet --test model --no-default-features --features model
if [ "$(id -u)" != 0 ]; then
    echo "not run once more with io=cached, over fuser and over io_uring: needs root"
    exit 0
fi
# Root's mounts use io=passthrough by default. The tests that data can influence run once more with
# io=cached, which mounts of plain users have.
data=(attr copy_file_range create differences fallocate fsync hardlinks link lseek open_unlinked)
data+=(read_only read_write rename set_id data programs times fsx:: exerciser::)
pass "io=cached"
UNIONFS_TEST_IO=cached cargo test --quiet --test mount --test traps --test suites -- "${data[@]}"
# The tests of messages and of the trait of operations run over the crate `fuser`. It has neither times
# of birth nor unnamed files. The tests of these are left out, and one test that takes long.
fuser=(acl:: attr:: copy_file_range:: create:: differences:: fallocate:: forget:: fsync:: handles::)
fuser+=(hardlinks:: inode_numbers:: ioctls:: link:: lookup:: lseek:: mkdir:: mknod:: non_root::)
fuser+=(open_unlinked:: read_only:: read_write:: readdir:: rename:: rmdir:: set_id:: statfs:: unlink::)
fuser+=(creation_modes:: times:: renames:: listing:: programs:: pjdfstest:: faults::of_data of_set_id_bits)
pass "over the crate fuser"
UNIONFS_TEST_TRANSPORT=fuser cargo test --quiet --test mount --test traps --test suites --test crash -- \
    "${fuser[@]}" --skip birth --skip unnamed_files --skip names_that_stay
# The tests of the transport run once more over io_uring, which the fixture of each mount switches on.
switch=/sys/module/fuse/parameters/enable_uring
if [ ! -e $switch ]; then
    echo "not run over io_uring: this kernel has none for FUSE (no $switch)"
    exit 0
fi
before=$(cat $switch)
# A test that is killed during a mount leaves io_uring switched on.
trap 'echo "$before" >$switch' EXIT
export UNIONFS_TEST_TRANSPORT=uring
pass "over io_uring"
cargo test --quiet --test mount --test traps --test crash
cargo test --quiet --test parity -- scenarios regressions
cargo test --quiet --test suites -- fsx exerciser
