//! The file systems that the layers are on.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::Layers;
use crate::layer::lower::Layer;

impl Layers {
    fn each(&self) -> impl Iterator<Item = &Layer> {
        self.all().map(|root| &*root.layer)
    }

    /// As [`super::Lowers::statfs`].
    pub(super) fn statfs(&self) -> Result<StatVfs, Errno> {
        let top = self.roots().first().ok_or(Errno::IO)?;
        rustix::fs::fstatvfs(&top.layer.root)
    }

    /// As [`super::Lowers::devices`].
    pub(super) fn devices(&self) -> Vec<u64> {
        self.each().map(|layer| layer.stat.dev).collect()
    }

    /// As [`super::Lowers::name_max`].
    pub(super) fn name_max(&self) -> usize {
        let mut asked = HashSet::new();
        let systems = self.each().filter(|layer| asked.insert(layer.stat.dev));
        systems.map(Layer::name_max).max().unwrap_or(255)
    }

    /// As [`super::Lowers::has_acl`].
    pub(super) fn has_acl(&self) -> bool {
        self.roots().iter().any(|root| root.layer.has_acl())
    }

    /// As [`super::Lowers::is_stacked`].
    pub(super) fn is_stacked(&self) -> bool {
        self.each().any(Layer::is_stacked)
    }

    /// As [`super::Lowers::places`].
    pub(super) fn places(&self) -> Vec<BorrowedFd<'_>> {
        self.each().map(|layer| layer.root.as_fd()).collect()
    }

    /// As [`super::Lowers::file_systems`].
    pub(super) fn file_systems(&self) -> Vec<(u64, BorrowedFd<'_>)> {
        let mut found: Vec<(u64, BorrowedFd<'_>)> = Vec::new();
        for root in self.roots() {
            let layer = &root.layer;
            if found.iter().all(|(dev, _)| *dev != layer.stat.dev) {
                found.push((layer.stat.dev, layer.root.as_fd()));
            }
        }
        found
    }
}
