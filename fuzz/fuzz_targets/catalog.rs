#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("catalog"),
    |bytes: &[u8]| testkit::fuzz::catalog::run(bytes)
);
