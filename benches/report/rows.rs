//! What was measured, against the bar that it has to reach.

use comfy_table::{ContentArrangement, Table};
use serde_json::{Value, json};

/// What a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
    /// Told, and not judged.
    None,
}

/// How a figure is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// So many times as much as something else.
    Ratio,
    PerSecond,
    Micros,
    Millis,
    Seconds,
    Bytes,
    /// Of all, from 0 to 1.
    Share,
    Count,
}

impl Unit {
    fn write(self, figure: f64) -> String {
        let digits = |figure: f64| match figure.abs() {
            0.0 => "0".to_owned(),
            size if size >= 100.0 => thousands(figure),
            size if size >= 10.0 => format!("{figure:.1}"),
            size if size >= 0.1 => format!("{figure:.2}"),
            _ => format!("{figure:.4}"),
        };
        match self {
            Self::Ratio | Self::Count => digits(figure),
            Self::PerSecond => format!("{}/s", digits(figure)),
            Self::Micros => format!("{} µs", digits(figure)),
            Self::Millis => format!("{} ms", digits(figure)),
            Self::Seconds => format!("{} s", digits(figure)),
            Self::Bytes => format!("{} bytes", digits(figure)),
            Self::Share => format!("{:.1} %", figure * 100.0),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ratio => "ratio",
            Self::PerSecond => "per second",
            Self::Micros => "microseconds",
            Self::Millis => "milliseconds",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Share => "share",
            Self::Count => "count",
        }
    }
}

fn thousands(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", &*digits), |digits| ("-", digits));
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    format!("{sign}{}", groups.join(","))
}

/// A line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) section: &'static str,
    pub(crate) what: String,
    pub(crate) bar: Bar,
    pub(crate) unit: Unit,
    /// Or why it could not be measured.
    pub(crate) figure: Result<f64, String>,
}

impl Row {
    /// Whether the bar is reached; nothing where there is none, or no figure.
    pub(crate) fn is_met(&self) -> Option<bool> {
        let figure = *self.figure.as_ref().ok()?;
        match self.bar {
            Bar::AtLeast(bar) => Some(figure >= bar),
            Bar::AtMost(bar) => Some(figure <= bar),
            Bar::None => None,
        }
    }

    fn bar_text(&self) -> String {
        match self.bar {
            Bar::AtLeast(bar) => format!("≥ {}", self.unit.write(bar)),
            Bar::AtMost(bar) => format!("≤ {}", self.unit.write(bar)),
            Bar::None => String::new(),
        }
    }

    fn cells(&self) -> [String; 4] {
        let met = match self.is_met() {
            Some(true) => "met",
            Some(false) => "NOT met",
            None => "",
        };
        let figure = match &self.figure {
            Ok(figure) => self.unit.write(*figure),
            Err(why) => format!("failed: {why}"),
        };
        [self.what.clone(), self.bar_text(), figure, met.to_owned()]
    }

    /// On one line.
    pub(crate) fn line(&self) -> String {
        let [what, bar, figure, met] = self.cells();
        let bar = if bar.is_empty() { bar } else { format!(" ({bar}) ") };
        format!("{what}: {figure}{bar}{met}")
    }

    fn json(&self) -> Value {
        let bar = match self.bar {
            Bar::AtLeast(bar) => json!({"at_least": bar}),
            Bar::AtMost(bar) => json!({"at_most": bar}),
            Bar::None => Value::Null,
        };
        json!({
            "section": self.section,
            "what": self.what,
            "unit": self.unit.word(),
            "bar": bar,
            "figure": self.figure.as_ref().ok(),
            "missing": self.figure.is_err().then(|| self.cells()[2].clone()),
            "met": self.is_met(),
        })
    }
}

/// All rows, in the order of their sections.
#[derive(Debug, Default)]
pub(crate) struct Rows(pub(crate) Vec<Row>);

const TITLES: [&str; 4] = ["what", "bar", "figure", ""];

impl Rows {
    /// Whether something did not go as it should.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.iter().any(|row| row.figure.is_err())
    }

    /// Bars that are reached, and all that were measured.
    pub(crate) fn met(&self) -> (usize, usize) {
        let met: Vec<_> = self.0.iter().filter_map(Row::is_met).collect();
        (met.iter().filter(|met| **met).count(), met.len())
    }

    /// For a terminal.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(TITLES);
        table.add_rows(self.0.iter().map(Row::cells));
        table.trim_fmt()
    }

    /// Those of a section, for a document.
    pub(crate) fn markdown(&self, section: &str) -> String {
        let line = |cells: [String; 4]| {
            format!("| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
        };
        let head = [line(TITLES.map(ToOwned::to_owned)), "|---|---|---|---|".to_owned()];
        let rows = self.0.iter().filter(|row| row.section == section).map(|row| line(row.cells()));
        head.into_iter().chain(rows).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn json(&self) -> Value {
        self.0.iter().map(Row::json).collect()
    }
}
