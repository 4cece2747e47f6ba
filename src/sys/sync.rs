//! The locks, concurrent maps, atomics and thread-locals of the union and its layers, in one place: with
//! the feature `model` they are those of the model checker shuttle, which decides at each of them which
//! thread goes on. `union/model_tests.rs` runs the union so.

#[cfg(not(feature = "model"))]
pub(crate) use {dashmap, parking_lot, std::sync::atomic, std::thread_local};

/// A concurrent map of keys that no attacker chooses.
#[cfg(not(feature = "model"))]
pub(crate) type FastMap<K, V> = dashmap::DashMap<K, V, foldhash::fast::RandomState>;
#[cfg(feature = "model")]
pub(crate) type FastMap<K, V> = dashmap::DashMap<K, V>;

#[cfg(feature = "model")]
pub(crate) use {
    shuttle::sync::atomic, shuttle::thread_local, shuttle_dashmap as dashmap,
    shuttle_parking_lot as parking_lot,
};
