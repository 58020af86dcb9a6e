//! `redeemer rebuild`: for the cases that recovery leaves closed until a person has decided.

use std::time::Duration;

use anyhow::bail;
use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressStyle};

use serde_json::json;

use super::Common;
use crate::{
    domain::Partition,
    ledger::{PartitionRow, PartitionState, Rebuild as From},
    recovery::UNDER_WAY,
};

/// How often it looks whether a node has done it.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("truth").required(true).args(["from_ledger", "from_gate"])),
    after_help = "For partitions that stay closed until a person has decided (`redeemer status` says why). A running node does
the work; this command waits for it.

--from-ledger --discard-gate: what Redis has and the ledger does not have is lost for good, redemptions of the last
moments, which the ledger then does not know.
--from-gate: for a ledger that is empty or was restored from an older copy. What Redis has is written into it. Of the
metadata of redemptions and the log of administrative changes, Redis has only what is still in its outbox.

Examples:
  redeemer rebuild --from-ledger --discard-gate --partition 6
  redeemer rebuild --from-gate"
)]
pub(super) struct Rebuild {
    /// Take the ledger for the truth
    #[arg(long, requires = "discard_gate")]
    from_ledger: bool,
    /// Throw away what Redis has
    #[arg(long, requires = "from_ledger")]
    discard_gate: bool,
    /// Take Redis for the truth
    #[arg(long)]
    from_gate: bool,
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
        let from = if self.from_gate { From::FromGate } else { From::FromLedger };
        let total =
            ledger.request_rebuild(self.partition.map(Partition), from, &super::by_hand()).await?;
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
            if first.requested.is_none()
                && let Some(reason) = first.reason.as_deref().filter(|reason| *reason != UNDER_WAY)
            {
                bail!("partition {} stays closed: {reason}", first.partition);
            }
            let leader =
                if first.lease_live { "" } else { "; no node looks after it: is one running?" };
            bar.set_message(format!("partition {}{leader}", first.partition));
            tokio::time::sleep(LOOK).await;
        }
        bar.finish_and_clear();
        // One that was refused may have opened by itself since.
        let not_taken = ledger.partitions().await?.into_iter().find(|row| {
            let before = rows.iter().find(|before| before.partition == row.partition);
            self.from_gate
                && self.concerns(row)
                && before.is_some_and(|before| row.whole_from <= before.epoch)
        });
        ledger.close().await;
        if let Some(row) = not_taken {
            bail!(
                "partition {} was not taken from Redis; the log of its node says why",
                row.partition
            );
        }
        let (what, from) =
            if self.from_gate { ("the ledger", "Redis") } else { ("Redis", "the ledger") };
        let sentence = format!("Rebuilt {total} partition(s) of {what} from {from}.");
        common.output.done(&json!({"rebuilt": what, "from": from, "partitions": total}), &sentence)
    }

    fn concerns(&self, row: &PartitionRow) -> bool {
        self.partition.is_none_or(|only| row.partition == Partition(only))
    }
}

fn is_waiting(row: &PartitionRow) -> bool {
    row.requested.is_some() || row.state != PartitionState::Open
}
