//! Conditions on the rows of `unionfs df`.

use super::images::IMAGE_KEYS;
use super::{Condition, ImageFilter};

/// A condition on a row.
#[derive(Clone, Debug)]
pub(in crate::cli) enum DfFilter {
    /// Only images have what it asks for.
    Image(ImageFilter),
    Kind(Kind),
    /// The name or ID of a read-write layer, or the beginning of the ID.
    Name(String),
}

/// The kind of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Kind {
    Image,
    /// A read-write layer with a name.
    ReadWriteLayer,
    /// The changes of a mount without a name.
    Changes,
}

impl Condition for DfFilter {
    const KEYS: &'static [&'static [&'static str]] = &[&["kind", "name"], IMAGE_KEYS];

    fn of(key: &str, value: &str) -> Option<Result<Self, String>> {
        match key {
            "kind" | "type" => Some(Kind::parse(value).map(Self::Kind)),
            "name" => Some(Ok(Self::Name(value.to_owned()))),
            _ => Some(ImageFilter::of(key, value)?.map(Self::Image)),
        }
    }
}

impl Kind {
    fn parse(value: &str) -> Result<Self, String> {
        match value {
            "image" => Ok(Self::Image),
            "read-write layer" | "layer" => Ok(Self::ReadWriteLayer),
            "changes" => Ok(Self::Changes),
            _ => Err("kind is image, layer or changes".to_owned()),
        }
    }

    /// Returns the text of the column KIND.
    pub(in crate::cli) fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::ReadWriteLayer => "read-write layer",
            Self::Changes => "changes",
        }
    }
}

impl DfFilter {
    /// Whether a row that is no image fits. `keys`: its name, or its ID.
    pub(in crate::cli) fn fits_layer(&self, kind: Kind, key: &str) -> bool {
        match self {
            Self::Kind(wanted) => *wanted == kind,
            Self::Name(name) => match kind {
                Kind::Changes => name.len() >= 4 && key.starts_with(name.as_str()),
                Kind::Image | Kind::ReadWriteLayer => key == name,
            },
            Self::Image(_) => false,
        }
    }
}
