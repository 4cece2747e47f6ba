//! Tests of the runner itself: kernel overlayfs must equal kernel overlayfs, and known differences
//! must be reported.

use testkit::layers::{self, Layer};
use testkit::mount::{Fs, KERNEL};
use testkit::runner::{Case, compare};
use testkit::{need_mounts, script};

use crate::scenarios;

fn differences(left: &Fs, right: &Fs, layers: &[Layer], text: &str) -> Vec<String> {
    let case = Case {
        layers,
        script: &script::parse(text),
        uppers: true,
        tmpfs: true,
        made: None,
    };
    compare(left, right, &case)
}

#[test]
fn kernel_equals_kernel_in_every_scenario() {
    need_mounts!();
    let layers = layers::standard();
    for (name, text) in scenarios::all() {
        let found = differences(&KERNEL, &KERNEL, &layers, text);
        assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
    }
}

/// Without redirects the kernel answers EXDEV where the reference renames.
#[test]
fn a_different_answer_is_reported() {
    need_mounts!();
    let other = Fs::Kernel("index=on,redirect_dir=off,metacopy=off");
    let text = "rename merged moved";
    let found = differences(&KERNEL, &other, &layers::standard(), text);
    let all = found.join("\n");
    assert!(all.contains("EXDEV"), "no EXDEV in:\n{all}");
    assert!(all.contains("/moved: only left"), "no tree in:\n{all}");
}

/// Without the index the kernel breaks hard links on copy-up.
#[test]
fn a_broken_hard_link_is_reported() {
    need_mounts!();
    let other = Fs::Kernel("index=off,redirect_dir=on,metacopy=off");
    let text = "write h1 0 changed";
    let found = differences(&KERNEL, &other, &layers::standard(), text);
    let all = found.join("\n");
    assert!(all.contains("/h2: content"), "no content in:\n{all}");
    assert!(all.contains("link group"), "no link group in:\n{all}");
}

/// With metacopy the upper lacks the data, though the union shows the same.
#[test]
fn a_different_upper_is_reported() {
    need_mounts!();
    let other = Fs::Kernel("index=on,redirect_dir=on,metacopy=on");
    let text = "chmod big.bin 600";
    let found = differences(&KERNEL, &other, &layers::standard(), text);
    let all = found.join("\n");
    assert!(all.contains("uppers:"), "no upper in:\n{all}");
    assert!(all.contains("metacopy"), "no metacopy marker in:\n{all}");
}
