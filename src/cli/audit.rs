//! `redeemer audit`

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{
    Common,
    output::{Column, Output, say},
};
use crate::{
    app,
    audit::{self, Difference, Mend, Report},
    recovery,
    sync::progress::{self, Progress},
};

#[derive(Debug, Args)]
#[command(
    after_help = "It reads Redis and the ledger themselves, also while nodes are running. Exit code 0: everything agrees; 1: it
does not, or could not be looked at. (`redeemer audit-log` is something else: it shows who changed what.)

Examples:
  redeemer audit --output json
  redeemer audit --repair --partition 6"
)]
pub(super) struct Audit {
    /// Make every key that differs hold what the ledger says, also while nodes run
    #[arg(long)]
    repair: bool,
    /// Only this partition
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u16>,
}

impl Audit {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let config = common.config(Vec::new())?;
        let ledger = super::ledger(&config).await?;
        let gate = app::gate(&config)?;
        let deployment = ledger.deployment(config.gate.partitions, crate::ids::unique()).await?;
        recovery::refresh_fences(&gate, &ledger, &deployment).await?;
        let progress = Progress::new(deployment.partitions);
        let partitions: Vec<_> = gate
            .keys()
            .partitions()
            .filter(|one| self.partition.is_none_or(|only| one.0 == only))
            .collect();
        if partitions.is_empty() {
            bail!("there is no such partition");
        }
        let mend = if self.repair { Mend::Yes } else { Mend::No };
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} partitions, {msg}")?;
        let bar = ProgressBar::new(partitions.len() as u64).with_style(style);
        let mut reports = Vec::new();
        for partition in partitions {
            // What other processes commit is looked up meanwhile.
            let report = tokio::select! {
                report = audit::run(&gate, &ledger, &progress, partition, mend) => report,
                () = progress::look(progress.clone(), ledger.clone()) => bail!("it never ends by itself"),
            };
            let report = report.with_context(|| format!("comparing partition {partition}"))?;
            if !report.repaired.is_empty() {
                let what = format!("partition {partition}, {} keys", report.repaired.len());
                ledger.record_deed(&super::by_hand(), "keys_repaired", &what).await?;
            }
            bar.set_message(format!("{} keys", report.compared));
            bar.inc(1);
            reports.push((partition, report));
        }
        bar.finish_and_clear();
        ledger.close().await;
        let is_clean = reports.iter().all(|(_, report)| report.is_clean());
        if common.output == Output::Json {
            let all: Vec<Value> =
                reports.iter().map(|(partition, report)| view(partition.0, report)).collect();
            say(&serde_json::to_string_pretty(&json!({"clean": is_clean, "partitions": all}))?);
        } else if common.output == Output::Csv {
            let rows: Vec<_> = reports.iter().map(|(one, report)| count(one.0, report)).collect();
            common.output.rows(&COUNTS, &rows)?;
        } else {
            for (partition, report) in &reports {
                tell(partition.0, report);
            }
            let compared: u64 = reports.iter().map(|(_, report)| report.compared).sum();
            let skipped: usize = reports.iter().map(|(_, report)| report.busy.len()).sum();
            let verdict = match (is_clean, skipped) {
                (false, _) => "they do NOT agree".to_owned(),
                (true, 0) => "everything agrees".to_owned(),
                (true, _) => {
                    format!("what stood still agrees; {skipped} keys never did, look again")
                }
            };
            say(&format!("{compared} keys of Redis compared with the ledger: {verdict}."));
        }
        Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn view(partition: u16, report: &Report) -> Value {
    json!({
        "partition": partition,
        "compared": report.compared,
        "differences": report.differences,
        "broken": report.broken,
        "busy": report.busy,
        "repaired": report.repaired,
    })
}

const COUNTS: [Column; 6] = [
    ("PARTITION", "partition"),
    ("COMPARED", "compared"),
    ("DIFFERENCES", "differences"),
    ("BROKEN LAWS", "broken"),
    ("BUSY", "busy"),
    ("REPAIRED", "repaired"),
];

/// How many of each.
fn count(partition: u16, report: &Report) -> Value {
    json!({
        "partition": partition,
        "compared": report.compared,
        "differences": report.differences.len(),
        "broken": report.broken.len(),
        "busy": report.busy.len(),
        "repaired": report.repaired.len(),
    })
}

fn tell(partition: u16, report: &Report) {
    for breach in &report.broken {
        say(&format!("partition {partition}: {}", breach.what));
    }
    for Difference { key, gate, ledger } in &report.differences {
        say(key);
        say(&format!("  Redis   {}", json!(gate)));
        say(&format!("  ledger  {}", json!(ledger)));
    }
    for key in &report.repaired {
        say(&format!("{key} differed and holds now what the ledger says"));
    }
    for key in &report.busy {
        say(&format!("{key} changed each time it was looked at; it was not compared"));
    }
}
