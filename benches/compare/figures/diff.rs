//! The changes between two reports.

use std::path::Path;
use std::process::ExitCode;

use super::report::{DEFAULT, Report};

/// The factor below which a change counts as noise.
const NOISE: f64 = 1.15;

/// Prints the changes in unionfs' ratios. Fails if a row became slower.
pub(crate) fn diff(old: &Path, new: &Path) -> ExitCode {
    let (old, new) = (Report::read(old), Report::read(new));
    let mut slower = 0;
    for row in &new.rows {
        let before = old.row(&row.name).and_then(|r| r.ratio(DEFAULT));
        let (Some(before), Some(after)) = (before, row.ratio(DEFAULT)) else {
            continue;
        };
        let word = match after / before {
            change if change > NOISE => "SLOWER",
            change if change < 1.0 / NOISE => "faster",
            _ => "",
        };
        slower += i32::from(word == "SLOWER");
        println!("{:40} {before:6.2}x → {after:6.2}x  {word}", row.name);
    }
    ExitCode::from(u8::from(slower > 0))
}
