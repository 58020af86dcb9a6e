//! `redeemer stats`: how requests ended over time, what is left, and how far the ledger is.

use std::process::ExitCode;

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Common,
    output::{Column, Output, say},
};
use crate::client::encoded;

#[derive(Debug, Args)]
pub(super) struct Stats {
    /// From when on, such as 2026-12-24T00:00:00Z; without it, 60 steps
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Until when; without it, now
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// How long a step is: minute, hour or day
    #[arg(long, default_value = "minute")]
    step: String,
}

const OUTCOMES: [Column; 3] = [("AT", "at"), ("OUTCOME", "outcome"), ("COUNT", "count")];
const INVITES: [Column; 8] = [
    ("ACTIVE", "active"),
    ("SCHEDULED", "scheduled"),
    ("EXHAUSTED", "exhausted"),
    ("EXPIRED", "expired"),
    ("DISABLED", "disabled"),
    ("USES", "uses"),
    ("REMAINING", "remaining"),
    ("UNLIMITED", "unlimited"),
];
const SYNC: [Column; 3] =
    [("LEDGER AS OF", "as_of"), ("LEDGER AT", "position"), ("BEHIND", "behind")];

impl Stats {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let mut path = common.path(&format!("/stats?step={}", encoded(&self.step)));
        for (name, time) in [("from", &self.from), ("to", &self.to)] {
            if let Some(time) = time {
                path = format!("{path}&{name}={}", encoded(time));
            }
        }
        let stats = common.client()?.ask(Method::GET, &path, None).await?;
        if common.output == Output::Json {
            say(&serde_json::to_string_pretty(&stats)?);
            return Ok(ExitCode::SUCCESS);
        }
        let rows = |at: &Value, outcomes: &Value| -> Vec<Value> {
            let row = |(outcome, count)| json!({"at": at, "outcome": outcome, "count": count});
            outcomes.as_object().into_iter().flatten().map(row).collect()
        };
        let steps = stats["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut all: Vec<_> =
            steps.iter().flat_map(|step| rows(&step["at"], &step["outcomes"])).collect();
        if common.output == Output::Csv {
            common.output.rows(&OUTCOMES, &all)?;
            return Ok(ExitCode::SUCCESS);
        }
        all.extend(rows(&json!("all"), &stats["totals"]));
        common.output.rows(&OUTCOMES, &all)?;
        say("");
        common.output.rows(&INVITES, &[stats["invites"].clone()])?;
        say("");
        common.output.rows(&SYNC, &[stats["sync"].clone()])?;
        Ok(ExitCode::SUCCESS)
    }
}
