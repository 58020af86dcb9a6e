//! `redeemer campaign put|list|show`

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::{Common, invite::all, output::Column};
use crate::client::encoded;

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer campaign put spring --max-uses 5000
  redeemer codes generate --count 10000 --pattern 'SPRING-####-####' --group team --max-uses 1 --campaign spring
  redeemer campaign show spring
  redeemer campaign list --output csv")]
pub(super) enum Command {
    /// Make a campaign, or change its limit
    Put(Put),
    /// List campaigns, as far as the ledger is
    List,
    /// Show a campaign as the gate has it
    Show {
        /// What it is called
        campaign: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Put {
    /// What it is called
    campaign: String,
    /// How many may redeem its invites, all together
    #[arg(long, value_name = "N", required_unless_present = "unlimited")]
    max_uses: Option<u64>,
    /// Any number may redeem them
    #[arg(long, conflicts_with = "max_uses")]
    unlimited: bool,
}

const COLUMNS: [Column; 5] = [
    ("NAME", "name"),
    ("USES", "uses"),
    ("HELD", "held"),
    ("MAX", "max_uses"),
    ("REMAINING", "remaining"),
];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = common.client()?;
        let place = |name: &str| common.path(&format!("/campaigns/{}", encoded(name)));
        match self {
            Self::Put(Put { campaign, max_uses, .. }) => {
                let body = json!({"max_uses": max_uses});
                let put = client.ask(Method::PUT, &place(&campaign), Some(&body)).await?;
                common.output.one(&COLUMNS, &put)
            }
            Self::List => {
                let rows = all(&client, &common.path("/campaigns"), "").await?;
                common.output.rows(&COLUMNS, &rows)
            }
            Self::Show { campaign } => {
                let shown = client.ask(Method::GET, &place(&campaign), None).await?;
                common.output.one(&COLUMNS, &shown)
            }
        }
    }
}
