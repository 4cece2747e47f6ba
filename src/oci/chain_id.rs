//! Chain IDs name stacks of layers. They are computed from the diff IDs of the layers, and never
//! read from a file.
//!
//! The first layer's chain ID is its diff ID; that of layer n is the SHA-256 of
//! `"<chain ID of layer n-1> <diff ID of layer n>"` over the textual digests
//! (OCI image specification, config.md, "Layer ChainID").

use super::digest::Digest;

/// The maximum number of layers of an image: the limit of kernel overlayfs (OVL_MAX_STACK).
pub const MAX_LAYERS: usize = 500;

/// Returns the chain ID of a layer on top of `parent`.
pub fn next(parent: Option<&Digest>, diff: &Digest) -> Digest {
    match parent {
        None => *diff,
        Some(parent) => Digest::of(format!("{parent} {diff}").as_bytes()),
    }
}

/// Returns the chain IDs of layers, which are given base first.
pub fn chain_ids(diffs: &[Digest]) -> Vec<Digest> {
    let mut parent = None;
    diffs
        .iter()
        .map(|diff| *parent.insert(next(parent.as_ref(), diff)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are from sha256sum(1).
    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(chain_ids(&[]), []);
        let chain = chain_ids(&[a, b]);
        assert_eq!(chain[0], a);
        let text = format!("{a} {b}");
        assert_eq!(text.len(), 71 + 1 + 71);
        assert_eq!(
            chain[1].hex(),
            "51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676"
        );
    }
}
