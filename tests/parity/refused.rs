//! Uppers on file systems that refuse device 0:0, and xattrs too: the fallback forms of whiteouts
//! and opaque directories hide the same names as those of kernel overlayfs, live and after
//! remounts. Random cases as in `random.rs`, without objects that such an upper cannot hold.

use proptest::collection::vec;
use proptest::prelude::*;
use testkit::base::Refusing;
use testkit::mount::Fs;
use testkit::need_mounts;
use testkit::runner::{Case, compare_on};
use testkit::script::Op;

use crate::random::{assert_none, failure, fresh, layer, prune, runner, script};

/// Redirects and links to lower files need xattrs.
const KERNEL: Fs = Fs::Kernel("index=off,redirect_dir=off,metacopy=off,xino=auto");
const UNION: Fs = Fs::Unionfs("redirect_dir=off");

fn storable(op: &Op) -> bool {
    !matches!(op, Op::Setxattr(..) | Op::Removexattr(..) | Op::Link(..))
}

fn hunt(refusing: Refusing, seed: u64) -> Option<String> {
    let layers = vec(layer(), 1..4).prop_map(prune);
    let script = script().prop_map(|ops| ops.into_iter().filter(storable).collect::<Vec<_>>());
    let result = runner(seed).run(&(layers, script), |(layers, script)| {
        let case = Case {
            layers: &layers,
            script: &script,
            uppers: false,
            tmpfs: true,
            made: None,
        };
        let found = compare_on(&KERNEL, &UNION, &case, Some(refusing));
        if found.is_empty() {
            Ok(())
        } else {
            Err(TestCaseError::fail(found.join("\n")))
        }
    });
    failure(result, seed)
}

const SEED: u64 = 20_260_229;

#[test]
fn fixed_seed_without_devices() {
    need_mounts!();
    assert_none(hunt(Refusing::Devices, SEED));
}

#[test]
fn fixed_seed_without_devices_and_xattrs() {
    need_mounts!();
    assert_none(hunt(Refusing::DevicesAndXattrs, SEED));
}

#[test]
fn fresh_seed_without_devices() {
    need_mounts!();
    assert_none(hunt(Refusing::Devices, fresh()));
}

#[test]
fn fresh_seed_without_devices_and_xattrs() {
    need_mounts!();
    assert_none(hunt(Refusing::DevicesAndXattrs, fresh()));
}
