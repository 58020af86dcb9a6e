//! The only place that prints: tables for people, JSON and CSV for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
    Csv,
}

/// A column: its title, and the field that it shows.
pub(super) type Column = (&'static str, &'static str);

impl Output {
    /// Prints rows: some columns of them for people, all of them as JSON.
    pub(super) fn rows(self, columns: &[Column], rows: &[Value]) -> anyhow::Result<()> {
        let cells =
            |row: &Value| columns.iter().map(|(_, field)| text(&row[*field])).collect::<Vec<_>>();
        match self {
            Self::Json => say(&serde_json::to_string_pretty(rows)?),
            Self::Csv => {
                let mut writer = csv::Writer::from_writer(Vec::new());
                writer.write_record(columns.iter().map(|(_, field)| *field))?;
                for row in rows {
                    writer.write_record(cells(row))?;
                }
                say(String::from_utf8(writer.into_inner()?)?.trim_end());
            }
            Self::Table => {
                let mut table = Table::new();
                table.load_style(comfy_table::presets::NOTHING);
                table.set_content_arrangement(ContentArrangement::Disabled);
                table.set_header(columns.iter().map(|(title, _)| *title));
                table.add_rows(rows.iter().map(cells));
                say(&table.trim_fmt());
            }
        }
        Ok(())
    }

    /// Prints one thing: field by field for people, whole as JSON.
    pub(super) fn one(self, columns: &[Column], thing: &Value) -> anyhow::Result<()> {
        match self {
            Self::Json => say(&serde_json::to_string_pretty(thing)?),
            Self::Csv => self.rows(columns, std::slice::from_ref(thing))?,
            Self::Table => {
                let width = columns.iter().map(|(title, _)| title.len()).max().unwrap_or_default();
                for (title, field) in columns {
                    say(&format!("{title:width$}  {}", text(&thing[*field])));
                }
            }
        }
        Ok(())
    }
}

impl Output {
    /// Prints what was done: a sentence for people, the same in fields for programs.
    pub(super) fn done(self, what: &Value, sentence: &str) -> anyhow::Result<()> {
        match (self, what) {
            (Self::Table, _) => say(sentence),
            (Self::Csv, Value::Object(fields)) => {
                let mut writer = csv::Writer::from_writer(Vec::new());
                writer.write_record(fields.keys())?;
                writer.write_record(fields.values().map(text))?;
                say(String::from_utf8(writer.into_inner()?)?.trim_end());
            }
            (Self::Csv | Self::Json, _) => say(&serde_json::to_string_pretty(what)?),
        }
        Ok(())
    }
}

/// A value in a cell.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Prints a line to standard output. A reader that has gone away has seen enough.
pub(super) fn say(line: &str) {
    let written = writeln!(io::stdout().lock(), "{line}");
    if written.is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        std::process::exit(1);
    }
}

/// Prints bytes as they are; says whether there is still somebody who reads.
pub(super) fn pass_on(bytes: &[u8]) -> io::Result<()> {
    io::stdout().lock().write_all(bytes)
}

/// Prints what went wrong to standard error, which has nowhere else to complain to.
pub(super) fn complain(message: &str) {
    drop(writeln!(io::stderr().lock(), "redeemer: {message}"));
}
