//! Names and values in two columns, as `inspect` prints them about an image, wherever it is. Texts of
//! an image cannot forge a line.

use std::fmt::Write as _;

use serde_json::Value;

use super::output::one_line;

/// The lines so far.
#[derive(Default)]
pub(super) struct Facts(String);

impl Facts {
    /// Adds a line.
    pub(super) fn add(&mut self, key: &str, value: &str) {
        let key = one_line(key);
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{:<14}{}", format!("{key}:"), one_line(value));
    }

    /// Adds a line for each value that an image states.
    pub(super) fn add_stated(&mut self, facts: &[(&str, &Option<String>)]) {
        for (key, value) in facts {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                self.add(key, value);
            }
        }
    }

    /// Adds the settings for containers. Empty ones are left out; `--json` has them.
    pub(super) fn add_settings(&mut self, run: Option<&Value>) {
        let run = run.and_then(Value::as_object);
        for (key, value) in run.into_iter().flatten() {
            let empty = value.is_null()
                || value == false
                || value.as_str() == Some("")
                || value.as_array().is_some_and(Vec::is_empty);
            if !empty {
                self.add(key, &value.to_string());
            }
        }
    }

    /// Returns the lines.
    pub(super) fn into_text(self) -> String {
        self.0
    }
}
