#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("options"),
    |bytes: &[u8]| testkit::fuzz::options::run(bytes)
);
