//! Names and values in two columns, as `inspect` prints them about an image, wherever it is. Texts of
//! an image cannot forge a line.

use serde_json::Value;

use super::output::{one_line, terminal_width, wrapped};

/// The lines so far.
#[derive(Default)]
pub(super) struct Facts(String);

impl Facts {
    /// Adds a line; on a terminal that is too narrow, several.
    pub(super) fn add(&mut self, key: &str, value: &str) {
        let key = format!("{}:", one_line(key));
        let head = format!("{key:<14}");
        self.0 += &wrapped(&head, &one_line(value), terminal_width());
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
