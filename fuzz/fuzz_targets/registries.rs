#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("registries"),
    |bytes: &[u8]| testkit::fuzz::registries::run(bytes)
);
