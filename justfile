# Recipes for developers; `just` lists them.

default:
    @just --list

# everything that must hold before a commit
check: fmt clippy test deny

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --all-targets -- -D warnings

test *ARGS:
    ./ci/test.sh {{ARGS}}

# licences, sources and duplicate crates
deny:
    ci/tools.sh cargo-deny
    target/tools/bin/cargo-deny check licenses bans sources

# known vulnerabilities of crates (needs github.com)
advisories:
    ci/tools.sh cargo-deny
    target/tools/bin/cargo-deny check advisories

# each test in a process of its own (needs cargo-nextest)
nextest *ARGS:
    cargo nextest run --profile ci {{ARGS}}

# how much of the code the tests run (see docs/DEVELOPMENT.md for what it needs)
coverage *ARGS:
    ci/coverage.sh {{ARGS}}

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# unionfs beside kernel overlayfs, fuse-overlayfs 2.0 and an ordinary directory (root); --quick, --help
bench *ARGS:
    ci/install.sh fio git python3 xfsprogs e2fsprogs mmdebstrap fuse-overlayfs
    ci/tools.sh fuse-overlayfs
    cargo bench --bench compare -- --peer target/tools/bin/fuse-overlayfs {{ARGS}}

# what got slower or faster between two reports (target/bench/report.json)
bench-diff OLD NEW:
    cargo bench --bench compare -- --diff {{OLD}} {{NEW}}

# the messages of untar, cp, git, dpkg, npm and rm, beside those that Linux forces (root)
messages *ARGS:
    ci/install.sh git python3 strace
    command -v npm >/dev/null || ci/install.sh npm
    cargo build --release
    benches/messages.py "${CARGO_TARGET_DIR:-target}/release/unionfs" {{ARGS}}

# how long `unionfs load` takes, beside skopeo with tar and podman (root)
bench-load *ARGS:
    benches/load/run.sh {{ARGS}}

# how long `unionfs push` takes, beside podman (root)
bench-push *ARGS:
    benches/push/run.sh {{ARGS}}

# how long `unionfs pull` takes, beside skopeo with tar and podman (root)
bench-pull *ARGS:
    benches/pull/run.sh {{ARGS}}

# how long mounts of 1, 128 and 500 layers take, beside kernel overlayfs (root)
bench-mount *ARGS:
    ci/install.sh python3
    cargo build --release
    benches/mount.py "${CARGO_TARGET_DIR:-target}/release/unionfs" {{ARGS}}

# `unionfs images` of a store of 100 and of 1,000 images, `unionfs ls` and `cat` without a mount
bench-list *ARGS:
    benches/list.sh {{ARGS}}

# how long a mount takes from containerd's store of 100 images, beside Docker's layout (root)
bench-containerd *ARGS:
    benches/containerd.sh {{ARGS}}

# the parts of the core and of the store by themselves (criterion)
bench-parts *ARGS:
    cargo bench --bench union --bench store {{ARGS}}

# shell completions and man pages, into target/
generate:
    cargo run --quiet -- man target/man
    cargo run --quiet -- completions bash > target/unionfs.bash

# record docs/session.svg, the terminal session of the README (root)
session:
    cargo build --quiet --bin unionfs --example sample-store
    ci/session.py target/debug/unionfs target/debug/examples/sample-store

# record docs/guide/screens.md, what commands show on a terminal (root, tmux)
screens:
    cargo build --bin unionfs --example sample-store
    ci/screens.py target/debug/unionfs target/debug/examples/sample-store

# compare N random cases of each kind with kernel overlayfs (see tests/parity/random.rs)
parity N="1000":
    UNIONFS_PARITY_CASES={{N}} cargo test --test parity -- random:: deep::

# attack live mounts with N random cases of each kind (root; see tests/attack)
attack N="1000":
    UNIONFS_ATTACK_CASES={{N}} cargo test --test attack -- --nocapture

# the union under the model checker shuttle: N orders of the threads for each test and scheduler
model N="1000":
    UNIONFS_MODEL_ORDERS={{N}} cargo test --test model --no-default-features --features model

# all mount tests, once for each system call or feature that a host can lack (root; see ci/without.sh)
without *NAMES:
    ci/without.sh {{NAMES}}

# N fsx operations in each of two ways with each I/O policy (see tests/suites/fsx.rs)
fsx N="300000":
    ci/tools.sh fsx
    UNIONFS_FSX_OPERATIONS={{N}} cargo test --test suites -- fsx::
    UNIONFS_FSX_OPERATIONS={{N}} UNIONFS_TEST_IO=cached cargo test --test suites -- fsx::

# search a parser for inputs that break it (tar, tar_split, metadata, archive, catalog, wire, options)
fuzz TARGET SECONDS="600":
    ci/fuzz.sh {{TARGET}} {{SECONDS}}

# where an operation's time goes: a table and flame graphs in target/profile (root; see docs/PROFILE.md)
profile *OPTIONS:
    ci/install.sh linux-perf python3 git e2fsprogs
    command -v inferno-flamegraph >/dev/null || cargo install --locked inferno
    RUSTFLAGS="-C force-frame-pointers=yes" cargo build --profile profiling --target-dir target/profile
    benches/profile.py target/profile/profiling/unionfs target/profile/report {{OPTIONS}}
