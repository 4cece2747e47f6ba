//! The part of Go's templates that `--format` understands:
//!
//! ```text
//! {{.Field}}  {{.Field.Inner}}  {{json .}}  {{json .Field}}  \t  \n
//! ```
//!
//! There are no loops and no conditions, so a template runs once over each row. Its length is
//! bounded. Values are shown as Go shows them: `[a b]`, `map[k:v]`, `<no value>`.

use std::fmt::Write as _;

use serde_json::Value;

use super::output::{escaped, one_line};

/// The maximum length of a template.
const LONGEST: usize = 1 << 16;

/// The value of a field that does not exist, as in Go.
const NO_VALUE: &str = "<no value>";

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A field, by its names from the outside to the inside; none: the whole row.
    Field {
        path: Vec<String>,
        form: Form,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Json,
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// A message for a part that this subset does not have.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("a template has at most {LONGEST} bytes"));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                parts.push(Part::Text(unescaped(before)));
            }
            let (action, after) = after
                .split_once("}}")
                .ok_or_else(|| "a template has {{ without }}".to_owned())?;
            parts.push(part(action.trim())?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(unescaped(rest)));
        }
        Ok(Self(parts))
    }

    /// Returns the first names of all fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Field { path, .. } => path.first().map(String::as_str),
            Part::Text(_) => None,
        })
    }

    /// Returns the text of one row. Control characters of values are replaced.
    pub(super) fn render(&self, row: &Value) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Field { path, form } => {
                    let found = path.iter().try_fold(row, |value, name| value.get(name));
                    text.push_str(&shown(found, *form));
                }
            }
        }
        text
    }

    /// Returns the cells of one row of a table: the parts between tabs.
    pub(super) fn cells(&self, row: &Value) -> Vec<String> {
        // A value with a tab has none any more.
        self.render(row).split('\t').map(str::to_owned).collect()
    }

    /// Returns the names of the fields in each column of a table.
    pub(super) fn columns(&self) -> Vec<Vec<&str>> {
        let mut columns = vec![Vec::new()];
        for part in &self.0 {
            match part {
                Part::Text(text) => {
                    let tabs = text.matches('\t').count();
                    columns.extend(std::iter::repeat_n(Vec::new(), tabs));
                }
                Part::Field { path, .. } => {
                    let name = path.last().map(String::as_str);
                    if let Some(column) = columns.last_mut() {
                        column.extend(name);
                    }
                }
            }
        }
        columns
    }

    /// Returns the heads of a table: the text with a head for each field.
    pub(super) fn heads(&self, head: impl Fn(&str) -> String) -> Vec<String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Field { path, .. } => {
                    text.push_str(&head(path.last().map_or("", String::as_str)));
                }
            }
        }
        text.split('\t').map(str::to_owned).collect()
    }
}

fn part(action: &str) -> Result<Part, String> {
    let (form, field) = match action.split_once(char::is_whitespace) {
        Some(("json", field)) => (Form::Json, field.trim()),
        _ => (Form::Plain, action),
    };
    let unknown = || {
        format!(
            "{{{{{}}}}} is not supported: use {{{{.FIELD}}}}, {{{{json .}}}} or {{{{json .FIELD}}}}",
            one_line(action)
        )
    };
    let names = field.strip_prefix('.').ok_or_else(unknown)?;
    if names.is_empty() && form == Form::Json {
        let path = Vec::new();
        return Ok(Part::Field { path, form });
    }
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))
    };
    let path: Vec<String> = names.split('.').map(str::to_owned).collect();
    if path.iter().all(|name| is_name(name)) {
        Ok(Part::Field { path, form })
    } else {
        Err(unknown())
    }
}

/// Replaces `\t` and `\n`, which a shell leaves in quotes.
fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn shown(value: Option<&Value>, form: Form) -> String {
    match (value, form) {
        (value, Form::Json) => {
            let text = serde_json::to_string(&value).unwrap_or_default();
            escaped(&text)
        }
        (None, Form::Plain) => NO_VALUE.to_owned(),
        (Some(value), Form::Plain) => {
            let mut text = String::new();
            write_plain(value, &mut text);
            one_line(&text)
        }
    }
}

/// Values of JSON are nested at most 128 deep.
fn write_plain(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str(NO_VALUE),
        Value::String(string) => text.push_str(string),
        Value::Bool(_) | Value::Number(_) => {
            // Writing to a String cannot fail.
            let _ = write!(text, "{value}");
        }
        Value::Array(values) => {
            text.push('[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    text.push(' ');
                }
                write_plain(value, text);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            text.push_str("map[");
            for (at, (name, value)) in fields.iter().enumerate() {
                if at > 0 {
                    text.push(' ');
                }
                text.push_str(name);
                text.push(':');
                write_plain(value, text);
            }
            text.push(']');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(template: &str) -> String {
        let row = json!({
            "Name": "app:1", "Count": 3, "Evil": "a\u{1b}[2J\tb\nc",
            "Config": {"Env": ["A=1", "B=2"], "Labels": {"k": "v"}, "Off": false, "No": null},
        });
        Template::parse(template).unwrap().render(&row)
    }

    #[test]
    fn fields_and_json() {
        assert_eq!(render("{{.Name}} {{ .Count }}"), "app:1 3");
        assert_eq!(render(r"{{.Name}}\t{{.Count}}\n"), "app:1\t3\n");
        assert_eq!(render("{{.Config.Env}}"), "[A=1 B=2]");
        assert_eq!(
            render("{{.Config.Labels}} {{.Config.Off}}"),
            "map[k:v] false"
        );
        assert_eq!(render("{{json .Config.Env}}"), r#"["A=1","B=2"]"#);
        assert_eq!(
            render("{{.Config.Name}}{{.Config.No}}"),
            "<no value><no value>"
        );
        assert_eq!(render("{{json .Missing}}"), "null");
        assert!(render("{{json .}}").contains(r#""Count":3"#));
        assert_eq!(render("plain }} text"), "plain }} text");
        assert_eq!(render(""), "");
    }

    #[test]
    fn values_cannot_forge_lines_cells_or_colours() {
        let text = render("{{.Evil}}|{{json .Evil}}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }

    #[test]
    fn the_rest_of_go_is_refused() {
        for text in [
            "{{.Name",
            "{{range .Names}}",
            "{{end}}",
            "{{.}}",
            "{{json}}",
            "{{json .A .B}}",
            "{{.A | upper}}",
            "{{..}}",
            "{{}}",
            "{{{{",
            "{{\"x\"}}",
            "{{.A.}}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
        assert!(Template::parse(&"x".repeat(LONGEST + 1)).is_err());
        let long = "{{.A}}".repeat(LONGEST / 6);
        assert!(Template::parse(&long).is_ok());
    }

    #[test]
    fn cells_and_heads() {
        let template = Template::parse(r"{{.Name}}:\t{{.Count}}").unwrap();
        let head = |name: &str| name.to_uppercase();
        assert_eq!(template.heads(head), ["NAME:", "COUNT"]);
        let row = json!({"Name": "a\tb", "Count": 1});
        assert_eq!(template.cells(&row), ["a\u{fffd}b:", "1"]);
    }
}
