//! Parity with kernel overlayfs: the same script runs on both over the same layers, and all visible
//! results are compared; see `runner`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod catalog;
mod changes;
mod deep;
mod generate;
mod oracle;
mod random;
mod refused;
mod regressions;
mod scenarios;
mod shrink;
