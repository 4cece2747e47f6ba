//! The locks, concurrent maps, atomics and thread-locals of the union and its layers. With the
//! feature `model` they are those of the model checker shuttle, which decides at each of them which
//! thread continues. `union/model_tests.rs` runs the union in this way.

/// Only the ranks of locks are kept by thread.
#[cfg(all(not(feature = "model"), debug_assertions))]
pub(crate) use std::thread_local;
#[cfg(not(feature = "model"))]
pub(crate) use {dashmap, parking_lot, std::sync::atomic};

/// A concurrent map whose keys no attacker chooses.
#[cfg(not(feature = "model"))]
pub(crate) type FastMap<K, V> = dashmap::DashMap<K, V, foldhash::fast::RandomState>;
#[cfg(feature = "model")]
pub(crate) type FastMap<K, V> = dashmap::DashMap<K, V>;

#[cfg(feature = "model")]
pub(crate) use {
    shuttle::sync::atomic, shuttle::thread_local, shuttle_dashmap as dashmap,
    shuttle_parking_lot as parking_lot,
};
