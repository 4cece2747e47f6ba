//! Conditions on the rows of `unionfs layers`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::images::IMAGE_KEYS;
use super::{Condition, ImageFilter, Presence};
use crate::cli::error::Usage;
use unionfs::oci::Digest;
use unionfs::store::{Image, LayerNode, Listing};

/// A condition on a layer.
#[derive(Clone, Debug)]
pub(in crate::cli) enum LayerFilter {
    /// An image that fits has it.
    Image(ImageFilter),
    /// Several images have it.
    Shared(Presence),
}

impl Condition for LayerFilter {
    const KEYS: &'static [&'static [&'static str]] = &[IMAGE_KEYS, &["shared"]];

    fn of(key: &str, value: &str) -> Option<Result<Self, String>> {
        match key {
            "shared" => Some(Presence::parse(key, value).map(Self::Shared)),
            _ => Some(ImageFilter::of(key, value)?.map(Self::Image)),
        }
    }
}

/// The layers that fit all conditions.
pub(in crate::cli) struct FittingLayers<'f> {
    filters: &'f [LayerFilter],
    /// The layers of images that fit.
    of_images: HashSet<(PathBuf, Digest)>,
}

impl<'f> FittingLayers<'f> {
    /// Looks the images of a listing up. `only`: the image whose layers are shown, if there is one.
    ///
    /// # Errors
    /// As [`ImageFilter::resolve`].
    pub(in crate::cli) fn find(
        filters: &'f [LayerFilter],
        listing: &Listing,
        only: Option<&Image>,
    ) -> Result<Self, Usage> {
        let of_images = filters.iter().filter_map(|filter| match filter {
            LayerFilter::Image(filter) => Some(filter.resolve(listing)),
            LayerFilter::Shared(_) => None,
        });
        let of_images = of_images.collect::<Result<Vec<_>, _>>()?;
        let images = listing.images.iter().chain(only);
        let fitting = images.filter(|image| of_images.iter().all(|filter| filter.fits(image)));
        let layers = fitting.flat_map(|image| {
            let layers = image.layers.iter();
            layers.map(|layer| (image.root.clone(), layer.chain_id))
        });
        Ok(Self {
            filters,
            of_images: layers.collect(),
        })
    }

    fn fits(&self, node: &LayerNode) -> bool {
        let is_shared = node.images.len() > 1;
        self.has(&node.root, node.layer.chain_id)
            && self.filters.iter().all(|filter| match filter {
                LayerFilter::Shared(wanted) => wanted.fits(is_shared),
                // They chose the images.
                LayerFilter::Image(_) => true,
            })
    }

    fn has(&self, root: &Path, chain: Digest) -> bool {
        self.of_images.contains(&(root.to_owned(), chain))
    }

    /// Keeps the nodes that fit. The depth of a node becomes the number of shown layers below it.
    pub(in crate::cli) fn retain(&self, nodes: &mut Vec<LayerNode>) {
        // For each layer below the next node: whether it is shown.
        let mut below: Vec<bool> = Vec::new();
        nodes.retain_mut(|node| {
            below.truncate(node.depth);
            let fits = self.fits(node);
            let shown = below.iter().filter(|shown| **shown).count();
            below.push(fits);
            node.depth = shown;
            fits
        });
    }
}
