//! Dialects in both directions: an upper that one implementation wrote shows the same tree in every
//! other, and can be changed further there. The implementations are kernel overlayfs with
//! `trusted.` and `user.` markers, Debian's fuse-overlayfs, and unionfs with either kind.

use testkit::layers::{self, Form, Layer, Node};
use testkit::mount::{self, Fs, Mounted, Scratch, Stack};
use testkit::need::Needed;
use testkit::tree::{self, Mask, Tree};
use testkit::without::{self, Lack};
use testkit::{exec, need, need_mounts, script};

const TRUSTED: Fs = Fs::Kernel("index=off,redirect_dir=off,metacopy=off");
const USER: Fs = Fs::Kernel("userxattr,index=off");
const OURS: Fs = Fs::Unionfs("redirect_dir=off");
const OURS_USER: Fs = Fs::Unionfs("userxattr");

/// Whiteouts, opaque directories, names that return as another type, attributes. Nothing that one
/// of the implementations cannot do (renames of directories, hard links of lowers).
const CHANGES: &str = "
    unlink plain.txt
    unlink top.txt
    mkdir top.txt 750
    create top.txt/new 640
    unlink merged/over
    rmdir empty
    create empty 600
    rename both.txt deep/both
    rename deep/a/b/c/leaf merged/gone
    unlink opaque/new
    unlink merged/sub/b
    unlink merged/sub/t
    rmdir merged/sub
    mkdir merged/sub 700
    write merged/sub/again 0 fresh cx
    chmod acl.txt 640
    chown tagged 1000 1001
    setxattr tagged user.colour green
    write suid 0 xyz
    symlink merged link-new
    mkdir removed-dir 755
    create removed-dir/f 644
    truncate big.bin 1000
    utimens sticky 1200000000.7 1200000000.9";

/// Further changes by a second implementation.
const MORE: &str = "
    rmdir merged/none
    unlink merged/sub/again
    rmdir merged/sub
    unlink top.txt/new
    rmdir top.txt
    create plain.txt 600
    mkdir both.txt 711
    unlink removed-dir/f
    unlink deep/both";

/// Returns the standard stack without hard links, which fuse-overlayfs separates.
fn lowers() -> Vec<Layer> {
    let mut layers = layers::standard();
    for layer in &mut layers {
        layer.items.retain(|i| !matches!(i.node, Node::Link(_)));
    }
    layers
}

fn peer() -> Needed<Fs> {
    mount::fuse_overlayfs().map(Fs::Program)
}

/// Returns the tree without values that depend on the implementation: the mtimes of directories
/// changed in the test are "recent", and `security.capability` and link counts are left out.
fn listing(mounted: &Mounted) -> Tree {
    let mut tree = tree::list(mounted.path());
    for entry in tree.values_mut() {
        entry.nlink = 1;
    }
    tree
}

/// `writer` changes the tree; `reader` shows that and changes more; `writer` shows that.
fn both_ways(writer: &Fs, reader: &Fs, form: Form) {
    let what = format!("{writer:?} -> {reader:?}");
    let mask = Mask::from_now();
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: layers::write_all(&lowers(), scratch.path(), form),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let mut shown = None;
    for (fs, changes) in [(writer, CHANGES), (reader, MORE), (writer, "")] {
        let mounted = fs.mount(&stack);
        let before = listing(&mounted);
        if let Some(shown) = &shown {
            tree::assert_same(&what, shown, &before, &mask);
        }
        for (op, answer) in script::parse(changes)
            .iter()
            .zip(exec::run(mounted.path(), &script::parse(changes)))
        {
            let absent = op.to_string() == "rmdir merged/none";
            assert_eq!(answer.is_err(), absent, "{what}: {op}: {answer:?}");
        }
        shown = Some(listing(&mounted));
        mounted.unmount();
    }
}

#[test]
fn kernel_with_trusted_markers() {
    need_mounts!();
    need!(without::lists_trusted());
    need!(without::has(&[Lack::Whiteouts]));
    both_ways(&TRUSTED, &OURS, Form::Kernel);
    both_ways(&OURS, &TRUSTED, Form::Kernel);
}

#[test]
fn kernel_with_user_markers() {
    need_mounts!();
    need!(without::lists_trusted());
    need!(without::has(&[Lack::Whiteouts]));
    both_ways(&USER, &OURS_USER, Form::UserOpaque);
    both_ways(&OURS_USER, &USER, Form::UserOpaque);
}

/// Without an option: every dialect is read.
#[test]
fn user_markers_are_read_by_default() {
    need_mounts!();
    need!(without::lists_trusted());
    both_ways(&USER, &OURS_USER, Form::UserOpaque);
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: layers::write_all(&lowers(), scratch.path(), Form::UserOpaque),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let kernel = USER.mount(&stack);
    exec::run(kernel.path(), &script::parse(CHANGES));
    let shown = listing(&kernel);
    kernel.unmount();
    let union = OURS.mount(&stack);
    tree::assert_same("user markers", &shown, &listing(&union), &Mask::from_now());
}

#[test]
fn fuse_overlayfs_of_debian() {
    need_mounts!();
    need!(without::lists_trusted());
    need!(without::has(&[Lack::Whiteouts]));
    let peer = need!(peer());
    both_ways(&peer, &OURS, Form::FuseOverlayfs);
    both_ways(&OURS, &peer, Form::Kernel);
    both_ways(&OURS_USER, &peer, Form::UserOpaque);
}
