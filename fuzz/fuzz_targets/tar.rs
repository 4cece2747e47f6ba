#![no_main]

mod memory;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| unionfs_fuzz::tar::run(bytes));
