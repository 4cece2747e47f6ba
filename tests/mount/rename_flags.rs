//! An upper on a file system whose rename has no flags (NFS refuses them with EINVAL): everything but
//! an exchange works as on others.

use testkit::fixture::Fixture;
use testkit::strace::Trace;
use testkit::tree::{self, Entry, Mask};
use testkit::{need, need::has_tools, need_mounts};

/// Operations that stage something, or move whiteouts and directories.
const OPERATIONS: &str = "\
create new 644
write new 0 text
rename new moved
rename moved both.txt
unlink both.txt
create both.txt 600
mkdir made 755
rename made made2
rename made2 made3
rmdir made3
unlink plain.txt
mkdir plain.txt 755
create plain.txt/in 644
rename merged merged2
mkdir merged 755
rename merged2 merged
rename deep deep2
mkdir empty2 755
rename empty2 empty
rename opaque opaque2
rename opaque2 opaque
symlink target both.link
link plain.txt/in plain.txt/in2
rename plain.txt/in plain.txt/in2
chmod top.txt 600
rename top.txt removed.txt
unlink removed.txt
mkdir removed.txt 700
rmdir removed.txt
rename no x
rename empty merged
mkdir merged 755
create one 644
create other 600";

fn refusing(error: &str) {
    need_mounts!();
    need!(has_tools(&["strace"]));
    let mask = Mask::from_now();
    let mut usual = Fixture::standard();
    let mut without = Fixture::standard();
    let inject = format!("inject=renameat2:error={error}");
    let trace = Trace::of(&without, &["-e", "trace=renameat2", "-e", &inject]);
    for line in OPERATIONS.lines() {
        assert_eq!(without.run(line), usual.run(line), "{line}");
    }
    // A program that exchanges names relies on one step.
    without.expect(&[("rename one other exchange", "EINVAL")]);
    let calls = trace.end();
    assert!(
        calls.iter().any(|line| line.contains("INJECTED")),
        "{calls:?}"
    );
    tree::assert_same("the union", &usual.tree(), &without.tree(), &mask);
    usual.remount();
    without.remount();
    tree::assert_same("the union later", &usual.tree(), &without.tree(), &mask);
    // Origins are handles of other files, and shared whiteouts may be linked differently.
    let kinds = |f: &Fixture| -> Vec<_> {
        let upper = tree::list_raw(&f.upper(""));
        let kind =
            |(path, entry): (&Vec<u8>, &Entry)| (path.clone(), entry.kind(), entry.is_whiteout());
        upper.iter().map(kind).collect()
    };
    assert_eq!(kinds(&without), kinds(&usual));
}

#[test]
fn refused_as_nfs_does() {
    refusing("EINVAL");
}

#[test]
fn of_a_kernel_without_them() {
    refusing("ENOSYS");
}
