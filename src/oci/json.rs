//! JSON of stores, archives and registries. Errors name the file, line and column.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::text::shown;
use super::{Error, Result};

/// Parses a value. `path` is for messages.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = text.strip_suffix(&place).unwrap_or(&text);
        Error::Json {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
            // The message may quote the file, which may contain any bytes of any length.
            message: shown(message),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_file_line_and_column_on_one_line() {
        let error = parse::<Vec<u8>>(
            Path::new("/s/f.json"),
            "[1,\n \"\x1b[2J\u{2028}\"]".as_bytes(),
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("\"/s/f.json\", line 2, column"), "{text}");
        assert!(!text.contains(['\n', '\x1b', '\u{2028}']), "{text:?}");
        let deep = "[".repeat(100_000);
        assert!(parse::<serde_json::Value>(Path::new("f"), deep.as_bytes()).is_err());
    }
}
