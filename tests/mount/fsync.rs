//! fsync, fdatasync, syncfs and the fsync of directories answer, and the synced data is in the
//! upper.

use std::fs::File;
use std::io::Write;

use testkit::fixture::Fixture;
use testkit::mount::Fs;
use testkit::{layers, need_mounts};

fn write_and_sync(f: &Fixture) {
    let mut file = File::create(f.at("merged/new")).unwrap();
    file.write_all(b"durable").unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    let dir = File::open(f.at("merged")).unwrap();
    rustix::fs::fsync(&dir).unwrap();
    rustix::fs::syncfs(&dir).unwrap();
    // The file is still open in the union; the data must already be in the upper.
    assert_eq!(std::fs::read(f.upper("merged/new")).unwrap(), b"durable");
    let lower = File::open(f.at("plain.txt")).unwrap();
    rustix::fs::fsync(&lower).unwrap();
}

#[test]
fn synced_data_is_in_the_upper() {
    need_mounts!();
    write_and_sync(&Fixture::standard());
}

#[test]
fn volatile_answers_too() {
    need_mounts!();
    let fs = Fs::Unionfs("volatile");
    write_and_sync(&Fixture::with(
        &fs,
        &layers::standard(),
        layers::Form::Kernel,
        true,
    ));
}
