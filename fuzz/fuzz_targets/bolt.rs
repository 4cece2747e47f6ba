#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("bolt"),
    |bytes: &[u8]| testkit::fuzz::bolt::run(bytes)
);
