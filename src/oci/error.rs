//! Errors in a reference, a configuration or an instruction.

use std::path::PathBuf;

use super::chain_id::MAX_LAYERS;

/// The result of parsing a part of an image.
pub type Result<T> = std::result::Result<T, Error>;

/// The text or document does not describe an image. The message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Malformed JSON.
    #[error("{path:?}, line {line}, column {column}: {message}; restore the file")]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1 (0: before the first).
        column: usize,
        /// The error.
        message: String,
    },
    /// The text cannot be the name of an image.
    #[error("invalid image reference {text:?}: {reason}; write name[:tag][@digest] or an image ID")]
    BadReference {
        /// The text.
        text: String,
        /// The reason.
        reason: &'static str,
    },
    /// The configuration has no layers that a store could hold.
    #[error("{path:?}: rootfs type is {found:?}, not \"layers\": not an image for Linux")]
    ConfigRootfs {
        /// The configuration.
        path: PathBuf,
        /// The type in the configuration.
        found: String,
    },
    /// There are more layers than can be stacked.
    #[error("{what} has more than {MAX_LAYERS} layers: squash it")]
    TooManyLayers {
        /// The image or layer, with its digest or file.
        what: String,
    },
    /// A document is no manifest or index that can be copied.
    #[error("{reason}")]
    BadDocument {
        /// The reason.
        reason: String,
    },
    /// A `--change` is not an instruction for a configuration.
    #[error("cannot apply {text:?}: {reason}")]
    BadInstruction {
        /// The instruction, shortened.
        text: String,
        /// The reason.
        reason: &'static str,
    },
}

impl Error {
    /// Returns the message for a configuration that is not in a file, and so cannot be restored.
    pub fn without_remedy(&self) -> String {
        match self {
            Self::Json {
                line,
                column,
                message,
                ..
            } => format!("its configuration, line {line}, column {column}: {message}"),
            other => other.to_string(),
        }
    }
}
