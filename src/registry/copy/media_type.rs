//! The media type of a document.

use serde::Deserialize;

/// Returns the media type of a document: its own, else that of the response or descriptor, else by its
/// content.
pub(super) fn media_type(declared: &str, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let typed: Option<Typed> = serde_json::from_slice(bytes).ok();
    let is_index = typed
        .as_ref()
        .is_some_and(|typed| typed.manifests.is_some());
    let declared = declared.split(';').next().unwrap_or_default().trim();
    match typed.and_then(|typed| typed.media_type) {
        Some(media) => media,
        None if declared.starts_with("application/vnd.") => declared.to_owned(),
        None if is_index => "application/vnd.oci.image.index.v1+json".to_owned(),
        None => "application/vnd.oci.image.manifest.v1+json".to_owned(),
    }
}
