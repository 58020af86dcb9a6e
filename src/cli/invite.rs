//! `redeemer invite create|list|show|change|disable|enable|delete`

use anyhow::Context as _;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{Common, namespace::words, output::Column};
use crate::{
    client::{Client, encoded},
    domain::{InviteId, InviteState},
};

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer invite create WELCOME --group team --max-uses 100
  redeemer invite create --group team --unlimited --expires-at 2027-01-01T00:00:00Z
  redeemer invite list --state active --output csv
  redeemer invite show WELCOME
  redeemer invite change WELCOME --max-uses 200 --expires-at none
  redeemer invite disable WELCOME
  redeemer invite enable 01a20967-458c-743e-8cdd-822b75511292
  redeemer invite delete 01a20967-458c-743e-8cdd-822b75511292")]
pub(super) enum Command {
    /// Make an invite
    Create(Create),
    /// List invites, as far as the ledger is
    List(List),
    /// Show an invite as the gate has it
    Show {
        /// Its code or its id
        invite: String,
    },
    /// Change an invite, also one that has ended; what is left out stays
    Change(Change),
    /// Switch an invite off; its code becomes free
    Disable {
        /// Its code or its id
        invite: String,
    },
    /// Switch an invite on again, unless a new one has its code
    Enable {
        /// Its code or its id
        invite: String,
    },
    /// Delete an invite that nobody has redeemed
    Delete {
        /// Its code or its id
        invite: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Change {
    /// Its code or its id
    invite: String,
    /// How many may redeem, those who have done so included
    #[arg(long, value_name = "N")]
    max_uses: Option<u64>,
    /// Any number may redeem
    #[arg(long, conflicts_with = "max_uses")]
    unlimited: bool,
    /// How many of these one user may spend, or none for any number
    #[arg(long, value_name = "N", value_parser = number_or_none)]
    max_uses_per_user: Option<Value>,
    /// From when on, or none
    #[arg(long, value_name = "TIME")]
    starts_at: Option<String>,
    /// Until when, or none
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// The only user who may redeem, or none for anybody
    #[arg(long)]
    user: Option<String>,
    /// The e-mail domains whose users may redeem, instead of those of before; none for all
    #[arg(long, value_name = "DOMAIN")]
    email_domain: Vec<String>,
    /// A JSON object of your own, or null
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    metadata: Option<Value>,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// What people type; made up when it is left out
    code: Option<String>,
    /// What a redemption lets the user into
    #[arg(long)]
    group: String,
    /// How many may redeem
    #[arg(long, value_name = "N", required_unless_present = "unlimited")]
    max_uses: Option<u64>,
    /// Any number may redeem
    #[arg(long, conflicts_with = "max_uses")]
    unlimited: bool,
    /// How many of these one user may spend
    #[arg(long, value_name = "N")]
    max_uses_per_user: Option<u64>,
    /// The campaign whose limit it shares with others
    #[arg(long, value_name = "NAME")]
    campaign: Option<String>,
    /// From when on, such as 2026-12-24T00:00:00Z
    #[arg(long, value_name = "TIME")]
    starts_at: Option<String>,
    /// Until when
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// The only user who may redeem
    #[arg(long)]
    user: Option<String>,
    /// An e-mail domain whose users may redeem; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    email_domain: Vec<String>,
    /// A JSON object of your own
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    metadata: Option<Value>,
    /// What makes a repeat recognisable
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only of this state
    #[arg(long, value_parser = words(InviteState::ALL.map(InviteState::as_str)))]
    state: Option<String>,
    #[arg(long, help = "Only invites into this group")]
    group: Option<String>,
    /// Only codes that begin so
    #[arg(long)]
    prefix: Option<String>,
    /// Only those that were made in bulk with this id
    #[arg(long, value_name = "ID")]
    batch: Option<String>,
}

const COLUMNS: [Column; 14] = [
    ("CODE", "code"),
    ("STATE", "state"),
    ("GROUP", "group"),
    ("USES", "uses"),
    ("HELD", "held"),
    ("MAX", "max_uses"),
    ("REMAINING", "remaining"),
    ("STARTS", "starts_at"),
    ("EXPIRES", "expires_at"),
    ("CAMPAIGN", "campaign"),
    ("USER", "user"),
    ("DOMAINS", "email_domains"),
    ("METADATA", "metadata"),
    ("ID", "id"),
];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = common.client()?;
        match self {
            Self::Create(create) => {
                let key = create.idempotency_key.clone();
                let key = key.unwrap_or_else(|| crate::ids::unique().to_string());
                let path = common.path("/invites");
                let made = client.post(&path, &create.body(), Some(&key)).await;
                let made = made.with_context(|| format!("with the idempotency key {key}"))?;
                common.output.one(&COLUMNS, &made)
            }
            Self::List(list) => {
                let query = query(&[
                    ("state", list.state),
                    ("group", list.group),
                    ("prefix", list.prefix),
                    ("batch", list.batch),
                ]);
                let rows = all(&client, &common.path("/invites"), &query).await?;
                common.output.rows(&COLUMNS, &rows)
            }
            Self::Show { invite } => {
                common.output.one(&COLUMNS, &find(&client, common, &invite).await?)
            }
            Self::Change(change) => {
                let (invite, patch) = change.patch();
                patched(&client, common, &invite, &patch).await
            }
            Self::Disable { invite } => {
                patched(&client, common, &invite, &json!({"disabled": true})).await
            }
            Self::Enable { invite } => {
                patched(&client, common, &invite, &json!({"disabled": false})).await
            }
            Self::Delete { invite } => {
                let path = place(&client, common, &invite).await?;
                client.ask(Method::DELETE, &path, None).await?;
                common.output.done(&json!({"deleted": invite}), &format!("Deleted {invite}."))
            }
        }
    }
}

impl Change {
    /// Which invite, and what is to change.
    fn patch(self) -> (String, Value) {
        let mut patch = Map::new();
        let limit = self.max_uses.map(Value::from).or(self.unlimited.then_some(Value::Null));
        patch.extend(limit.map(|limit| ("max_uses".to_owned(), limit)));
        let per_user = self.max_uses_per_user;
        patch.extend(per_user.map(|limit| ("max_uses_per_user".to_owned(), limit)));
        let or_none = |text: String| if text == "none" { Value::Null } else { json!(text) };
        let optional =
            [("starts_at", self.starts_at), ("expires_at", self.expires_at), ("user", self.user)];
        patch.extend(
            optional
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), or_none(value?)))),
        );
        if self.email_domain == ["none"] {
            patch.insert("email_domains".to_owned(), Value::Null);
        } else if !self.email_domain.is_empty() {
            patch.insert("email_domains".to_owned(), json!(self.email_domain));
        }
        patch.extend(self.metadata.map(|metadata| ("metadata".to_owned(), metadata)));
        (self.invite, Value::Object(patch))
    }
}

/// Changes an invite and shows it.
async fn patched(
    client: &Client,
    common: &Common,
    invite: &str,
    patch: &Value,
) -> anyhow::Result<()> {
    let path = place(client, common, invite).await?;
    common.output.one(&COLUMNS, &client.ask(Method::PATCH, &path, Some(patch)).await?)
}

/// The path of the invite with this id, else of the one with this code.
async fn place(client: &Client, common: &Common, invite: &str) -> anyhow::Result<String> {
    let found = find(client, common, invite).await?;
    Ok(common.path(&format!("/invites/{}", found["id"].as_str().unwrap_or_default())))
}

impl Create {
    fn body(self) -> Value {
        let mut body = Map::new();
        body.insert("group".to_owned(), json!(self.group));
        body.insert("max_uses".to_owned(), json!(self.max_uses));
        body.insert("max_uses_per_user".to_owned(), json!(self.max_uses_per_user));
        let optional = [
            ("code", self.code),
            ("campaign", self.campaign),
            ("starts_at", self.starts_at),
            ("expires_at", self.expires_at),
            ("user", self.user),
        ];
        body.extend(
            optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))),
        );
        if !self.email_domain.is_empty() {
            body.insert("email_domains".to_owned(), json!(self.email_domain));
        }
        if let Some(metadata) = self.metadata {
            body.insert("metadata".to_owned(), metadata);
        }
        Value::Object(body)
    }
}

/// The invite with this id, else the one with this code.
async fn find(client: &Client, common: &Common, invite: &str) -> anyhow::Result<Value> {
    let path = match invite.parse::<InviteId>() {
        Ok(id) => common.path(&format!("/invites/{id}")),
        Err(_) => common.path(&format!("/invites/by-code/{}", encoded(invite))),
    };
    Ok(client.ask(Method::GET, &path, None).await?)
}

/// The given parameters as a query string.
pub(super) fn query(parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters
        .iter()
        .filter_map(|(name, value)| Some(format!("&{name}={}", encoded(value.as_ref()?))));
    given.collect()
}

/// All rows of a list, page by page.
pub(super) async fn all(client: &Client, path: &str, query: &str) -> anyhow::Result<Vec<Value>> {
    some(client, path, query, usize::MAX).await
}

/// So many rows of a list at most, page by page.
pub(super) async fn some(
    client: &Client,
    path: &str,
    query: &str,
    count: usize,
) -> anyhow::Result<Vec<Value>> {
    let mut rows = Vec::new();
    let mut cursor = String::new();
    // Only where somebody sees it, and only from the second page on.
    let progress = ProgressBar::new_spinner();
    while rows.len() < count {
        let limit = (count - rows.len()).min(1000);
        let page =
            client.ask(Method::GET, &format!("{path}?limit={limit}{query}{cursor}"), None).await?;
        rows.extend(page["data"].as_array().cloned().unwrap_or_default());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
        progress.set_message(format!("{} rows", rows.len()));
        progress.tick();
    }
    progress.finish_and_clear();
    Ok(rows)
}

fn number_or_none(text: &str) -> Result<Value, String> {
    if text == "none" {
        return Ok(Value::Null);
    }
    text.parse::<u64>().map(Value::from).map_err(|_| "neither a number nor none".to_owned())
}

pub(super) fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))
}
