//! No operation in the union changes a lower.

use std::os::unix::fs::FileExt;

use testkit::fixture::Fixture;
use testkit::layers::big_data;
use testkit::tree::{self, Mask, Tree};
use testkit::without::{self, Lack};
use testkit::{need, need_mounts};

fn lowers(f: &Fixture) -> Vec<Tree> {
    f.stack.lowers.iter().map(|l| tree::list_raw(l)).collect()
}

fn assert_unchanged(f: &Fixture, before: &[Tree]) {
    let mask = Mask {
        ino: true,
        ..Mask::ALL
    };
    for (n, (before, now)) in before.iter().zip(lowers(f)).enumerate() {
        tree::assert_same(&format!("lower {n}"), before, &now, &mask);
    }
}

#[test]
fn by_every_kind_of_operation() {
    need_mounts!();
    need!(without::has(&[Lack::RenameFlags]));
    let mut f = Fixture::standard();
    let before = lowers(&f);
    f.ok("write plain.txt 0 X
          truncate big.bin 10
          write both.txt 0 X t
          chmod suid 600
          chown merged 1 2
          utimens top.txt 1.1 2.2
          setxattr tagged user.colour red
          removexattr tagged trusted.note
          fallocate acl.txt 3 0 2
          copyrange plain.txt 0 empty.txt 0 5
          unlink h1
          link h2 h4
          write h4 0 X
          chown link-rel 3 3
          chown fifo 4 4
          rename merged moved
          unlink moved/top
          create moved/gone 644
          rename deep empty
          rename opaque sticky exchange
          mkdir removed-dir 755
          open 1 caps b
          hwrite 1 0 X
          unlink caps
          hwrite 1 0 Y
          htruncate 1 1
          hchmod 1 777");
    f.unmount();
    assert_unchanged(&f, &before);
}

/// Descriptors that are opened for reading before the copy-up, next to writes afterwards:
/// fuse-overlayfs 2.0 writes into its lower in this case.
#[test]
fn by_descriptors_opened_early() {
    need_mounts!();
    let mut f = Fixture::standard();
    let before = lowers(&f);
    let open = |write| {
        let mut options = std::fs::File::options();
        options
            .read(true)
            .write(write)
            .open(f.at("big.bin"))
            .unwrap()
    };
    let (early, first, second) = (open(false), open(true), open(true));
    let mut buf = [0; 16];
    early.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, big_data()[..16]);
    first.write_all_at(b"first", 0).unwrap();
    second.write_all_at(b"second", 100).unwrap();
    early.read_exact_at(&mut buf, 100).unwrap();
    assert_eq!(&buf[..6], b"second");
    drop((early, first, second));
    f.unmount();
    assert_unchanged(&f, &before);
}

#[test]
fn by_failing_operations() {
    need_mounts!();
    let mut f = Fixture::standard();
    let before = lowers(&f);
    let answers = f.run(
        "rename empty merged
         rmdir merged
         link merged x
         as 1000 1000
         write both.txt 0 X
         unlink plain.txt
         chmod both.txt 777",
    );
    assert!(
        answers
            .iter()
            .enumerate()
            .all(|(n, a)| a.is_err() || n == 3)
    );
    f.unmount();
    assert_unchanged(&f, &before);
    let upper = tree::list_raw(&f.upper(""));
    assert_eq!(upper.len(), 1, "the upper is empty: {:?}", upper.keys());
}
