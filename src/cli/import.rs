//! `redeemer import invites|members FILE`

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{
    Common,
    output::{Column, Output, complain, pass_on},
};

#[derive(Debug, Args)]
pub(super) struct Import {
    /// What
    #[arg(value_enum)]
    what: What,
    /// A file of lines: CSV if its name ends in .csv, else NDJSON
    file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    /// code, group, max_uses, uses, starts_at, expires_at, disabled, user, email_domains, metadata, max_uses_per_user
    Invites,
    /// user, group, joined_at
    Members,
}

const COLUMNS: [Column; 6] = [
    ("LINES", "lines"),
    ("IMPORTED", "imported"),
    ("UNCHANGED", "unchanged"),
    ("BAD", "bad"),
    ("COMPLETE", "complete"),
    ("STOPPED", "stopped"),
];

impl Import {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let client = common.client()?;
        let what = match self.what {
            What::Invites => "invites",
            What::Members => "members",
        };
        let is_csv = self.file.extension().is_some_and(|extension| extension == "csv");
        let media_type = if is_csv { "text/csv" } else { "application/x-ndjson" };
        let cannot = || format!("{} can not be read", self.file.display());
        let file = tokio::fs::File::open(&self.file).await.with_context(cannot)?;
        let style = ProgressStyle::with_template("{spinner} {pos} lines {per_sec} {wide_msg}")?;
        let bar = ProgressBar::no_length().with_style(style);
        bar.set_message(self.file.display().to_string());
        let (mut summary, mut unread) = (Value::Null, Vec::new());
        let path = common.path(&format!("/import/{what}"));
        let take = |bytes: &[u8]| -> anyhow::Result<()> {
            unread.extend_from_slice(bytes);
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=end).collect();
                let told: Value = serde_json::from_slice(&line)?;
                if let Some(lines) = told["progress"]["lines"].as_u64() {
                    bar.set_position(lines);
                } else if told["summary"].is_object() {
                    summary = told["summary"].clone();
                } else if common.output == Output::Json {
                    bar.suspend(|| pass_on(&line))?;
                } else {
                    bar.suspend(|| complain(&sentence(&told)));
                }
            }
            Ok(())
        };
        client.upload(&path, media_type, file, take).await?;
        bar.finish_and_clear();
        if summary.is_null() {
            anyhow::bail!(
                "the answer was cut; send the file again, what was imported stays as it is"
            );
        }
        common.output.one(&COLUMNS, &summary)?;
        let is_good = summary["complete"] == true && summary["bad"] == 0;
        Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What is wrong with a line, for people.
fn sentence(told: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let errors = told["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let errors: Vec<_> = errors
        .iter()
        .map(|error| {
            let field = text(&error["pointer"]);
            format!("{} {}", field.trim_start_matches('/'), text(&error["detail"]))
        })
        .collect();
    let detail = if errors.is_empty() { text(&told["detail"]) } else { errors.join("; ") };
    format!("line {}: {}: {detail}", told["line"], text(&told["code"]))
}
