#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("metadata"),
    |bytes: &[u8]| testkit::fuzz::metadata::run(bytes)
);
