//! apt in a container of one user.
//!
//! apt fetches as the user `_apt`, and checks that it has become that user. Where there is only one
//! user, no answer to its system calls would be true. It is therefore told, by a file of its own
//! configuration (apt.conf(5), apt-transport-http(1): `APT::Sandbox::User`), that it goes on as root.
//!
//! `APT_CONFIG` names the file, which is read before those in /etc/apt, so an image can still say
//! something else. The file is in /dev, which is no part of the image.

/// The variable that names a file of apt's configuration.
pub(super) const VARIABLE: &str = "APT_CONFIG";
/// Where the container has the file.
pub(super) const PLACE: &str = "/dev/apt.conf";
/// The file in the bundle.
pub(super) const FILE: &str = "apt.conf";
/// The program whose presence says that an image has apt.
pub(super) const PROGRAM: &str = "usr/bin/apt-get";

/// The content of the file.
pub(super) const CONTENT: &str = "\
// Written by unionfs: this container has one user, so apt cannot become another one.
APT::Sandbox::User \"root\";
";
