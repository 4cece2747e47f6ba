#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("archive"),
    |bytes: &[u8]| testkit::fuzz::archive::run(bytes)
);
