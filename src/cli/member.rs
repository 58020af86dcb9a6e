//! `redeemer member add|remove|list|show|erase`

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Common,
    invite::{query, some},
    output::Column,
};
use crate::client::encoded;

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer member add alice team
  redeemer member list --group team --output csv
  redeemer member show alice
  redeemer member remove alice team
  redeemer member erase alice")]
pub(super) enum Command {
    /// Let a user join a group without a code, under the namespace's rule
    Add {
        /// Your id for the person
        user: String,
        /// In what
        group: String,
    },
    /// End a membership; its use stays spent, and the user may redeem again
    Remove {
        /// Your id for the person
        user: String,
        /// Which group; all of them when it is left out
        group: Option<String>,
    },
    /// List memberships, as far as the ledger is
    List(List),
    /// Forget a person: another name, which says nothing, stands in the place of the user id everywhere
    Erase {
        /// Your id for the person
        user: String,
    },
    /// Show the memberships of a user as the gate has them
    Show {
        /// Your id for the person
        user: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only of this user
    #[arg(long)]
    user: Option<String>,
    #[arg(long, help = "Only in this group")]
    group: Option<String>,
    /// How many at most; all without it
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

const COLUMNS: [Column; 4] =
    [("USER", "user"), ("GROUP", "group"), ("JOINED", "joined_at"), ("REDEMPTION", "redemption")];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = common.client()?;
        let place = |user: &str, group: Option<&str>| {
            let group = group.map(|group| format!("/{}", encoded(group))).unwrap_or_default();
            common.path(&format!("/members/{}{group}", encoded(user)))
        };
        match self {
            Self::Add { user, group } => {
                let joined = client.ask(Method::PUT, &place(&user, Some(&group)), None).await?;
                common.output.one(&COLUMNS, &joined)
            }
            Self::Remove { user, group } => {
                client.ask(Method::DELETE, &place(&user, group.as_deref()), None).await?;
                let left = group.as_deref().unwrap_or("all groups");
                let sentence = format!("{user} has left {left}.");
                common.output.done(&json!({"user": user, "left": group}), &sentence)
            }
            Self::Erase { user } => {
                let path = common.path(&format!("/users/{}", encoded(&user)));
                let erased = client.ask(Method::DELETE, &path, None).await?;
                common.output.one(&[("ALIAS", "alias")], &erased)
            }
            Self::List(List { user, group, limit }) => {
                let query = query(&[("user", user), ("group", group)]);
                let limit = limit.unwrap_or(usize::MAX);
                let rows = some(&client, &common.path("/members"), &query, limit).await?;
                common.output.rows(&COLUMNS, &rows)
            }
            Self::Show { user } => {
                let shown = client.ask(Method::GET, &place(&user, None), None).await?;
                let memberships = shown["memberships"].as_array().map(Vec::as_slice);
                let rows: &[Value] = memberships.unwrap_or_default();
                common.output.rows(&COLUMNS, rows)
            }
        }
    }
}
