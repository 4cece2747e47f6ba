#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(
    init: common::write_seeds("tar_split"),
    |bytes: &[u8]| testkit::fuzz::tar_split::run(bytes)
);
