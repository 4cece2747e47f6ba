#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("metadata"),
    |bytes: &[u8]| unionfs_fuzz::metadata::run(bytes)
);
