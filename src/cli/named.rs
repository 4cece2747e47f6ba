//! The read-write layer of `unionfs mount --name`: found again or made. Called by `mount`.

use anyhow::bail;

use super::catalog;
use super::fresh::Fresh;
use crate::catalog::Label;
use crate::layer::StackSpec;
use crate::store::writable::Exclusive;
use crate::store::{Digest, Image, Named, Stores};

/// A named layer to be mounted.
pub(super) struct Layer {
    pub(super) stack: StackSpec,
    /// The image, for people.
    pub(super) label: String,
    /// Its ID.
    pub(super) image: Digest,
    /// Whose layers they are.
    pub(super) chain: Option<Label>,
    /// Takes it away again if it cannot be mounted, when it was made for this mount.
    pub(super) fresh: Option<Fresh>,
}

/// The layer of that name; on `image`, where one is given, else it must exist.
///
/// `locked` is our own store, in which the layer is, and `stores` where images are.
pub(super) fn find_or_make(
    locked: &Exclusive<'_>,
    stores: &Stores,
    name: &str,
    image: Option<&str>,
) -> anyhow::Result<Layer> {
    let store = locked.writable().store();
    let existing = store.named(name)?;
    let image = image.map(|image| stores.find(image)).transpose()?;
    let made = existing.is_none();
    let named = match (existing, image) {
        (Some(named), image) => {
            check(&named, image.as_ref())?;
            named
        }
        (None, Some(image)) => locked.create_container(name, &image)?,
        (None, None) => bail!(
            "no read-write layer {name:?} in {:?}: name an image to make it \
             (unionfs mount --name {name} IMAGE MOUNTPOINT), or see unionfs ps -a",
            store.root()
        ),
    };
    let container = store.load_named(&named)?;
    let chain = catalog::label_below(store.root(), &container);
    let stack = container.stack(true)?;
    Ok(Layer {
        stack,
        label: named.image_name,
        image: named.image,
        chain,
        // Last: dropping it would wait for the lock that the caller has.
        fresh: made.then(|| Fresh::named(store.root(), name)),
    })
}

/// A name stands for one layer on one image.
fn check(named: &Named, image: Option<&Image>) -> anyhow::Result<()> {
    if let Some(image) = image
        && image.id != named.image
    {
        bail!(
            "read-write layer {0:?} is on {1} ({2}), not on {3} ({4}): use another name, or \
             unionfs rm {0}",
            named.name,
            named.image_name,
            named.image.short(),
            image.label(),
            image.id.short()
        );
    }
    Ok(())
}
