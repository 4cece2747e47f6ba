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

# licences, sources and duplicate crates (advisories need the network: `cargo deny check`)
deny:
    cargo deny check licenses bans sources

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

bench *ARGS:
    cargo bench {{ARGS}}

# shell completions and man pages, into target/
generate:
    cargo run --quiet -- man target/man
    cargo run --quiet -- completions bash > target/unionfs.bash

# compare N random cases of each kind with kernel overlayfs (see tests/parity/random.rs)
parity N="1000":
    UNIONFS_PARITY_CASES={{N}} cargo test --test parity -- random:: deep::
