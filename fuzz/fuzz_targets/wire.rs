#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("wire"),
    |bytes: &[u8]| testkit::fuzz::wire::run(bytes)
);
