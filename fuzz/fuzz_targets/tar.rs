#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("tar"),
    |bytes: &[u8]| testkit::fuzz::tar::run(bytes)
);
