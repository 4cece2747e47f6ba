//! What a report says: from `report.json` to pages and pictures, without measuring anything.
//! `tests/docs/figures.rs` compiles this folder too, and compares the published files with what it
//! makes of the published report.
//!
//! ```text
//! report   the data: medians, spread, ratios, means      diff    two reports
//! page     docs/BENCHMARKS.md                            advice  docs/guide/which-options.md
//! quoted   figures within other pages                    plot    SVG
//! aims     the maximum of each row                       publish all of them in their places
//! ```
//! Invariant: the same report gives the same bytes.

pub(crate) mod advice;
pub(crate) mod aims;
pub(crate) mod diff;
pub(crate) mod page;
pub(crate) mod plot;
pub(crate) mod publish;
pub(crate) mod quoted;
pub(crate) mod report;
