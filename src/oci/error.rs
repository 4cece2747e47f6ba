//! What can be wrong with a reference, a configuration or an instruction.

use std::path::PathBuf;

use super::chain_id::MAX_LAYERS;

/// Result of reading something of an image.
pub type Result<T> = std::result::Result<T, Error>;

/// A text or document that does not describe an image. The message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Malformed JSON.
    #[error("{path:?}, line {line}, column {column}: {message}; restore the file")]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1 (0: before the first).
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A text that no image can be called.
    #[error("invalid image reference {text:?}: {reason}; write name[:tag][@digest] or an image ID")]
    BadReference {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configuration describes no layers that a store could hold.
    #[error("{path:?}: rootfs type is {found:?}, not \"layers\": not an image for Linux")]
    ConfigRootfs {
        /// The configuration.
        path: PathBuf,
        /// The type it states.
        found: String,
    },
    /// More layers than can be stacked.
    #[error("{what} has more than {MAX_LAYERS} layers: squash it")]
    TooManyLayers {
        /// The image or layer, with its digest or file.
        what: String,
    },
    /// A `--change` that is not an instruction for a configuration.
    #[error("cannot apply {text:?}: {reason}")]
    BadInstruction {
        /// The instruction, shortened.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Error {
    /// Returns the message for a configuration that is in no file, so that nobody could restore it.
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
