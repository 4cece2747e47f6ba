//! The aim of each row of the report: the maximum, as a ratio to kernel overlayfs.

/// The maximum ratios. The first entry whose text is a prefix of the row's name applies; [`OTHERS`]
/// for the other rows.
const AIMS: &[(&str, f64)] = &[
    ("warm walk", 1.2),
    ("warm open+read+close", 1.2),
    ("20000 stat", 1.2),
    ("20000 negative lookups", 1.2),
    ("20000 open+close", 1.5),
    ("cold walk after mount, 128 layers", 0.5),
    ("cold walk after mount", 1.0),
    ("fio ", 1.1),
    ("rm -rf", 2.5),
    ("copy-up", 1.0),
    ("chroot: gcc", 1.3),
    ("chroot: apt", 1.3),
    ("chroot: pip", 1.3),
    ("chroot: npm", 1.3),
    ("chroot: 20 starts of python", 1.3),
];
/// The maximum ratio of every other workload.
const OTHERS: f64 = 3.0;

/// Returns the maximum of the row `name`.
pub(crate) fn at_most(name: &str) -> f64 {
    let fits = |(start, _): &&(&str, f64)| name.starts_with(start);
    AIMS.iter().find(fits).map_or(OTHERS, |(_, ratio)| *ratio)
}

/// Whether `ratio`, as printed, is within the aim.
pub(crate) fn is_kept(name: &str, ratio: f64) -> bool {
    (ratio * 100.0).round() <= at_most(name) * 100.0
}
