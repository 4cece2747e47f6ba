#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("thin_pool"),
    |bytes: &[u8]| testkit::fuzz::thin_pool::run(bytes)
);
