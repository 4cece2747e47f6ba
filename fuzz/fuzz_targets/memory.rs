//! An allocator that ends the fuzzer when an input of some kilobytes takes far more.

#[global_allocator]
static MEMORY: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, 64 << 20);
