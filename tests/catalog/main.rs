//! Catalogs that must be refused, and the savings of a valid one, tested through the union core and
//! through mounts. tests/parity shows that unions with and without a catalog are equal.

#![allow(clippy::unwrap_used, clippy::panic)]

mod counters;
mod hostile;
mod killed;
mod stale;
