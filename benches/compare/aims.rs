//! What each row of the report is measured against: the most it may take, as a ratio to kernel
//! overlayfs.

/// The first whose beginning fits the row's name holds; [`OTHERS`] for the rest.
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
/// No workload is to take longer than that.
const OTHERS: f64 = 3.0;

/// The most that the row `name` may take.
pub(crate) fn at_most(name: &str) -> f64 {
    let fits = |(start, _): &&(&str, f64)| name.starts_with(start);
    AIMS.iter().find(fits).map_or(OTHERS, |(_, ratio)| *ratio)
}

/// Whether `ratio`, as it is printed, is within it.
pub(crate) fn is_kept(name: &str, ratio: f64) -> bool {
    (ratio * 100.0).round() <= at_most(name) * 100.0
}
