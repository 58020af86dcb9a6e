//! `redeemer redemption list|show|rollback`

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::{
    Common,
    invite::{query, some},
    namespace::words,
    output::Column,
};
use crate::domain::{InviteId, Position, RedemptionId};

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer redemption list --user alice
  redeemer redemption list --code SPRING --after 2026-11-01T00:00:00Z --output csv
  redeemer redemption list --order asc --after-position 6/1-3 --limit 1000 --output json
  redeemer redemption show 01a20967-45a7-7482-bb99-70136ac4558d
  redeemer redemption rollback 01a20967-45a7-7482-bb99-70136ac4558d --reason 'payment failed'")]
pub(super) enum Command {
    /// List redemptions, as far as the ledger is
    List(List),
    /// Show a redemption, also one that the ledger does not have yet
    Show {
        /// Its id
        redemption: RedemptionId,
    },
    /// Take a redemption back: its use is free again, and the membership that it made ends
    Rollback {
        /// Its id
        redemption: RedemptionId,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only of this code
    #[arg(long)]
    code: Option<String>,
    /// Only of this invite
    #[arg(long, value_name = "ID")]
    invite: Option<InviteId>,
    /// Only of this user
    #[arg(long)]
    user: Option<String>,
    #[arg(long, help = "Only into this group")]
    group: Option<String>,
    /// From this moment on
    #[arg(long, value_name = "TIME")]
    after: Option<String>,
    /// Up to this moment
    #[arg(long, value_name = "TIME")]
    before: Option<String>,
    /// The newest first (desc), or the oldest
    #[arg(long, value_name = "ORDER", value_parser = words(["desc", "asc"]))]
    order: Option<String>,
    /// Only what comes after this place
    #[arg(long, value_name = "POSITION")]
    after_position: Option<Position>,
    /// How many at most; all without it
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

const COLUMNS: [Column; 11] = [
    ("ID", "id"),
    ("USER", "user"),
    ("GROUP", "group"),
    ("CODE", "code"),
    ("USE", "use"),
    ("REMAINING", "remaining"),
    ("AT", "redeemed_at"),
    ("DURABILITY", "durability"),
    ("POSITION", "position"),
    ("ROLLED BACK", "rolled_back_at"),
    ("METADATA", "metadata"),
];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = common.client()?;
        match self {
            Self::List(list) => {
                let query = query(&[
                    ("code", list.code),
                    ("invite", list.invite.map(|id| id.to_string())),
                    ("user", list.user),
                    ("group", list.group),
                    ("after", list.after),
                    ("before", list.before),
                    ("order", list.order),
                    ("after_position", list.after_position.map(|place| place.to_string())),
                ]);
                let limit = list.limit.unwrap_or(usize::MAX);
                let rows = some(&client, &common.path("/redemptions"), &query, limit).await?;
                common.output.rows(&COLUMNS, &rows)
            }
            Self::Show { redemption } => {
                let path = common.path(&format!("/redemptions/{redemption}"));
                common.output.one(&COLUMNS, &client.ask(Method::GET, &path, None).await?)
            }
            Self::Rollback { redemption, reason } => {
                let path = common.path(&format!("/redemptions/{redemption}/rollback"));
                let undone = client.post(&path, &json!({"reason": reason}), None).await?;
                common.output.one(&COLUMNS, &undone)
            }
        }
    }
}
