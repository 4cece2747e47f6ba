//! Catalogs that must not be believed, and what believing one saves: through the union core
//! and through mounts. That unions with and without one are equal is shown in tests/parity.

#![allow(clippy::unwrap_used, clippy::panic)]

mod counters;
mod hostile;
mod killed;
mod stale;
