//! `redeemer rebuild`: for the cases that recovery leaves closed until a person has decided.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Common, output::say};
use crate::{
    domain::Partition,
    ledger::{PartitionRow, PartitionState},
};

/// How often it looks whether a node has done it.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(
    after_help = "What Redis has and the ledger does not have is lost for good: redemptions of the last moments, which the
ledger then does not know. A running node does the work; this command waits for it.

Example:
  redeemer rebuild --from-ledger --discard-gate --partition 6"
)]
pub(super) struct Rebuild {
    /// Take the ledger for the truth
    #[arg(long, required = true)]
    from_ledger: bool,
    /// Throw away what Redis has
    #[arg(long, required = true)]
    discard_gate: bool,
    /// Only this partition
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u16>,
}

impl Rebuild {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let config = common.config(Vec::new())?;
        let ledger = super::ledger(&config).await?;
        // Nobody should find it done long after they gave up waiting.
        let rows = ledger.partitions().await?;
        if let Some(row) = rows.iter().find(|row| self.concerns(row) && !row.lease_live) {
            bail!(
                "no node looks after partition {}; start one first (`redeemer serve`)",
                row.partition
            );
        }
        let total = ledger.request_rebuild(self.partition.map(Partition)).await?;
        if total == 0 {
            bail!("there is no such partition");
        }
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} partitions {wide_msg}")?;
        let bar = ProgressBar::new(total).with_style(style);
        loop {
            let rows = ledger.partitions().await?;
            let waiting: Vec<_> =
                rows.iter().filter(|row| self.concerns(row) && is_waiting(row)).collect();
            bar.set_position(total.saturating_sub(waiting.len() as u64));
            let Some(first) = waiting.first() else { break };
            let leader =
                if first.lease_live { "" } else { "; no node looks after it: is one running?" };
            bar.set_message(format!("partition {}{leader}", first.partition));
            tokio::time::sleep(LOOK).await;
        }
        bar.finish_and_clear();
        ledger.close().await;
        say(&format!("Rebuilt {total} partition(s) from the ledger."));
        Ok(())
    }

    fn concerns(&self, row: &PartitionRow) -> bool {
        self.partition.is_none_or(|only| row.partition == Partition(only))
    }
}

fn is_waiting(row: &PartitionRow) -> bool {
    row.rebuild_requested || row.state != PartitionState::Open
}
