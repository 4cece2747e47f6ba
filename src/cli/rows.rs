//! The rows that commands list, and the options that decide how: `--quiet`, `--no-trunc`, `--format`.
//!
//! A row has named fields. The default table shows some of them; a template of `--format` can show
//! each. Values are texts for people: `--json` of a command prints its own report.

use serde_json::{Map, Value};

use super::error::Usage;
use super::go_template::Template;
use super::output::{Cut, Table, escaped, one_line, print, print_bytes};

/// The options.
#[derive(Debug, clap::Args)]
pub(super) struct RowArgs {
    /// Print only the key of each row: an ID, or what names the row
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Print whole IDs and texts
    #[arg(long)]
    pub(super) no_trunc: bool,
    /// Print each row by a template: table, json, 'table TEMPLATE' or 'TEMPLATE', where TEMPLATE has
    /// {{.FIELD}} or {{json .}}
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse, conflicts_with_all = ["quiet", "json"])]
    format: Option<Format>,
}

impl RowArgs {
    /// Whether only rows are printed, without totals.
    pub(super) fn only_rows(&self) -> bool {
        self.quiet || self.format.is_some()
    }
}

/// The value of `--format`.
#[derive(Clone, Debug)]
pub(super) enum Format {
    /// `table`: as without the option.
    Default,
    /// `json`: an object of all fields in a line for each row.
    Json,
    /// `table TEMPLATE`.
    Table(Template),
    /// `TEMPLATE`.
    Lines(Template),
}

impl Format {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "table" => Ok(Self::Default),
            "json" => Ok(Self::Json),
            _ => match text.strip_prefix("table ") {
                Some(template) => Template::parse(template.trim_start()).map(Self::Table),
                None => Template::parse(text).map(Self::Lines),
            },
        }
    }
}

/// A field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// Its name in templates.
    pub(super) name: &'static str,
    /// Its head in tables.
    head: &'static str,
    /// How it may be shortened on a narrow terminal.
    cut: Cut,
}

pub(super) const fn field(name: &'static str, head: &'static str, cut: Cut) -> Field {
    Field { name, head, cut }
}

/// The rows of a command.
pub(super) struct Rows {
    /// All fields.
    fields: &'static [Field],
    /// The fields of the default table.
    shown: Vec<&'static str>,
    /// The field for `--quiet`.
    key: &'static str,
    /// The fields that a narrow terminal does not get, the first one to go first.
    dispensable: &'static [&'static str],
    rows: Vec<Value>,
}

impl Rows {
    pub(super) fn new(
        fields: &'static [Field],
        shown: impl Into<Vec<&'static str>>,
        key: &'static str,
    ) -> Self {
        Self {
            fields,
            shown: shown.into(),
            key,
            dispensable: &[],
            rows: Vec::new(),
        }
    }

    /// Permits to leave these columns out on a narrow terminal, in this order.
    pub(super) fn may_leave_out(&mut self, names: &'static [&'static str]) {
        self.dispensable = names;
    }

    /// Adds a row, with the values of all fields in their order.
    pub(super) fn row(&mut self, values: impl IntoIterator<Item = String>) {
        let values = values.into_iter().map(Value::String);
        let names = self.fields.iter().map(|field| field.name.to_owned());
        self.rows
            .push(Value::Object(names.zip(values).collect::<Map<_, _>>()));
    }

    /// Prints the rows as the options say.
    ///
    /// # Errors
    /// [`Usage`] for a template with a field that rows do not have.
    pub(super) fn print(&self, args: &RowArgs) -> anyhow::Result<()> {
        match &args.format {
            _ if args.quiet => print(&self.keys()),
            None | Some(Format::Default) => print(&self.table(args)),
            Some(Format::Json) => {
                let lines = self.rows.iter().map(|row| escaped(&row.to_string()) + "\n");
                print_bytes(lines.collect::<String>().as_bytes())
            }
            Some(Format::Lines(template)) => {
                self.check(template)?;
                let lines = self.rows.iter().map(|row| template.render(row) + "\n");
                print_bytes(lines.collect::<String>().as_bytes())
            }
            Some(Format::Table(template)) => {
                self.check(template)?;
                let head = |name: &str| self.head(name).to_owned();
                let heads = template.heads(head);
                let mut table = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
                for (at, names) in template.columns().iter().enumerate() {
                    let fields = names.iter().filter_map(|name| self.find(name));
                    let cut = fields.map(|field| field.cut).find(|cut| *cut != Cut::No);
                    table.may_cut(at, cut.filter(|_| !args.no_trunc).unwrap_or(Cut::No));
                }
                for row in &self.rows {
                    table.row(template.cells(row));
                }
                print(&table.render())
            }
        }
    }

    /// Returns the default table.
    pub(super) fn table(&self, args: &RowArgs) -> String {
        let heads: Vec<&str> = self.shown.iter().map(|name| self.head(name)).collect();
        let mut table = Table::new(&heads);
        if !args.no_trunc {
            for (at, name) in self.shown.iter().enumerate() {
                table.may_cut(at, self.find(name).map_or(Cut::No, |field| field.cut));
            }
            let place = |name: &&str| self.shown.iter().position(|shown| shown == name);
            table.may_leave_out(self.dispensable.iter().filter_map(place));
        }
        for row in &self.rows {
            table.row(self.shown.iter().map(|name| text_of(row, name)));
        }
        table.render()
    }

    /// Each key once: an image with two names has two rows.
    fn keys(&self) -> String {
        let mut keys: Vec<String> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for row in &self.rows {
            let key = one_line(&text_of(row, self.key));
            if seen.insert(key.clone()) {
                keys.push(key + "\n");
            }
        }
        keys.concat()
    }

    fn find(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    fn head(&self, name: &str) -> &'static str {
        self.find(name).map_or("", |field| field.head)
    }

    fn check(&self, template: &Template) -> anyhow::Result<()> {
        for name in template.fields() {
            if self.find(name).is_none() {
                let known: Vec<String> = (self.fields.iter())
                    .map(|field| format!(".{}", field.name))
                    .collect();
                let name = one_line(name);
                let text = format!("rows have no field .{name}; they have {}", known.join(" "));
                return Err(Usage(text).into());
            }
        }
        Ok(())
    }
}

fn text_of(row: &Value, name: &str) -> String {
    let value = row.get(name).and_then(Value::as_str);
    value.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        assert!(matches!(Format::parse("table"), Ok(Format::Default)));
        assert!(matches!(Format::parse("json"), Ok(Format::Json)));
        let table = Format::parse("table {{.ID}}");
        assert!(matches!(table, Ok(Format::Table(_))), "{table:?}");
        assert!(matches!(Format::parse("{{.ID}}"), Ok(Format::Lines(_))));
        assert!(Format::parse("{{if .ID}}").is_err());
    }

    #[test]
    fn keys_are_shown_once() {
        const FIELDS: [Field; 2] = [field("A", "A", Cut::No), field("B", "B", Cut::No)];
        let mut rows = Rows::new(&FIELDS, ["A"], "B");
        rows.row(["x".into(), "k".into()]);
        rows.row(["y".into(), "k".into()]);
        rows.row(["z".into(), "l\n".into()]);
        assert_eq!(rows.keys(), "k\nl\u{fffd}\n");
    }
}
