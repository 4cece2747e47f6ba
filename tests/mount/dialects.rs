//! All forms of whiteouts and opaque directories read as the same tree.

use testkit::fixture::Fixture;
use testkit::layers::{self, FORMS, Form, Layer};
use testkit::mount::{KERNEL, subject};
use testkit::tree::{self, Mask};
use testkit::{need, need_mounts, without};

/// The reference implementation reads its own form.
#[test]
fn every_form_reads_as_the_kernels() {
    need_mounts!();
    need!(without::lists_trusted());
    let layers = layers::standard();
    let oracle = Fixture::with(&KERNEL, &layers, Form::Kernel, false).tree();
    for form in FORMS {
        let union = Fixture::with(&subject(), &layers, form, false);
        let what = format!("{form:?}");
        tree::assert_same(&what, &oracle, &union.tree(), &Mask::ALL);
    }
}

/// Names are looked up before any directory has been read.
#[test]
fn lookups_obey_every_form() {
    need_mounts!();
    for form in FORMS {
        let f = Fixture::with(&subject(), &layers::standard(), form, true);
        for path in ["removed.txt", "removed-dir", "merged/gone", "opaque/old"] {
            assert!(!f.at(path).exists(), "{form:?}: {path}");
        }
        // The markers themselves are not visible either.
        for path in [".wh.removed.txt", "merged/.wh.gone", "opaque/.wh..wh..opq"] {
            assert!(!f.at(path).exists(), "{form:?}: {path}");
        }
    }
}

#[test]
fn changes_over_every_form() {
    need_mounts!();
    for form in FORMS {
        let mut f = Fixture::with(&subject(), &layers::standard(), form, true);
        f.ok("create removed.txt 600
              mkdir removed-dir 755
              unlink merged/bottom
              rename opaque moved");
        let check = [
            ("read removed.txt", "\"\""),
            ("readdir removed-dir", ""),
            ("readdir merged", "h3:f middle:f over:f sub:d top:f"),
            ("readdir moved", "new:f"),
        ];
        f.expect(&check);
        f.remount();
        f.expect(&check);
    }
}

/// Layers of different dialects in one stack.
#[test]
fn mixed_forms() {
    need_mounts!();
    let hide = |n: usize| {
        Layer::new()
            .dir("d")
            .whiteout(format!("d/f{n}"))
            .file(format!("d/g{n}"), "")
    };
    let low = (0..FORMS.len()).fold(Layer::new().dir("d"), |l, n| l.file(format!("d/f{n}"), ""));
    let scratch = testkit::mount::Scratch::disk();
    let mut lowers = Vec::new();
    for (n, form) in FORMS.into_iter().enumerate() {
        let dir = scratch.dir(&format!("l{n}"));
        hide(n).write_as(&dir, form);
        lowers.push(dir);
    }
    let bottom = scratch.dir("bottom");
    low.write(&bottom);
    lowers.push(bottom);
    let stack = testkit::mount::Stack {
        lowers,
        upper: None,
        mnt: scratch.dir("mnt"),
    };
    let f = Fixture::over(&subject(), scratch, stack);
    f.expect(&[("readdir d", "g0:f g1:f g2:f g3:f g4:f g5:f")]);
}
