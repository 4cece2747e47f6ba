#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("wire"),
    |bytes: &[u8]| unionfs_fuzz::wire::run(bytes)
);
