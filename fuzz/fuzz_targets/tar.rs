#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("tar"),
    |bytes: &[u8]| unionfs_fuzz::tar::run(bytes)
);
