//! Third-party test suites and tools on the mount: pjdfstest (POSIX answers), fsx (data under
//! random operations), package managers and databases. Each compares with kernel overlayfs on the
//! same disk or with its own model. `ci/test.sh` installs the programs.

#![allow(clippy::unwrap_used, clippy::panic)]

mod exerciser;
mod fsx;
mod pjdfstest;
mod real_tools;

mod support;
