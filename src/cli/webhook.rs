//! `redeemer webhook create|list|show|change|enable|disable|rotate-secret|delete|deliveries|retry`

use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    Common,
    invite::{all, query, some},
    namespace::words,
    output::Column,
};
use crate::{
    client::Client,
    domain::{DeliveryId, DeliveryState, WebhookId},
};

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer webhook create https://hooks.example.com/redeemer --event-type redeemed --event-type redemption_rolled_back
  redeemer webhook list --output csv
  redeemer webhook show 01a20967-45a7-7482-bb99-70136ac4558d
  redeemer webhook change 01a20967-45a7-7482-bb99-70136ac4558d --all-events
  redeemer webhook disable 01a20967-45a7-7482-bb99-70136ac4558d
  redeemer webhook enable 01a20967-45a7-7482-bb99-70136ac4558d
  redeemer webhook rotate-secret 01a20967-45a7-7482-bb99-70136ac4558d
  redeemer webhook deliveries 01a20967-45a7-7482-bb99-70136ac4558d --state failed
  redeemer webhook retry 01a20967-458c-743e-8cdd-822b75511292
  redeemer webhook delete 01a20967-45a7-7482-bb99-70136ac4558d")]
pub(super) enum Command {
    /// Have events sent to a URL; the secret that signs them is shown this once
    Create(Create),
    /// List webhooks
    List,
    /// Show a webhook
    Show {
        /// Its id
        webhook: WebhookId,
    },
    /// Change where events go, or which; what is left out stays
    Change(Change),
    /// Send again to one that was disabled, from where it stopped
    Enable {
        /// Its id
        webhook: WebhookId,
    },
    /// Send nothing for now
    Disable {
        /// Its id
        webhook: WebhookId,
    },
    /// Make a new secret, shown this once; the one before signs for a while too
    RotateSecret {
        /// Its id
        webhook: WebhookId,
    },
    /// Delete a webhook, and by and by its deliveries
    Delete {
        /// Its id
        webhook: WebhookId,
    },
    /// List what was sent, and what became of it, the newest event first
    Deliveries(Deliveries),
    /// Send a delivery again at once, also one that was given up
    Retry {
        /// Its id
        delivery: DeliveryId,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Where to
    #[arg(value_name = "URL")]
    to: String,
    /// Only events of this type; may be repeated
    #[arg(long, value_name = "TYPE")]
    event_type: Vec<String>,
    /// What makes a repeat recognisable
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Change {
    /// Its id
    webhook: WebhookId,
    /// Where to
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// Only events of this type; may be repeated
    #[arg(long, value_name = "TYPE")]
    event_type: Vec<String>,
    /// Events of all types
    #[arg(long, conflicts_with = "event_type")]
    all_events: bool,
}

#[derive(Debug, Args)]
pub(super) struct Deliveries {
    /// The webhook's id
    webhook: WebhookId,
    /// Only of this state
    #[arg(long, value_parser = words(DeliveryState::ALL.map(DeliveryState::as_str)))]
    state: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

const COLUMNS: [Column; 9] = [
    ("ID", "id"),
    ("STATE", "state"),
    ("URL", "url"),
    ("EVENTS", "event_types"),
    ("POSITION", "position"),
    ("FAILING SINCE", "failing_since"),
    ("REASON", "reason"),
    ("CREATED", "created_at"),
    ("SECRET", "secret"),
];

const DELIVERIES: [Column; 9] = [
    ("ID", "id"),
    ("STATE", "state"),
    ("TYPE", "type"),
    ("EVENT", "event"),
    ("ATTEMPTS", "attempts"),
    ("ATTEMPTED", "attempted_at"),
    ("NEXT", "next_attempt_at"),
    ("STATUS", "response_status"),
    ("ERROR", "error"),
];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = common.client()?;
        let place = |id: WebhookId| common.path(&format!("/webhooks/{id}"));
        match self {
            Self::Create(Create { to, event_type, idempotency_key }) => {
                let types = (!event_type.is_empty()).then_some(event_type);
                let body = json!({"url": to, "event_types": types});
                let key = idempotency_key.unwrap_or_else(|| crate::ids::unique().to_string());
                let made = client.post(&common.path("/webhooks"), &body, Some(&key)).await;
                let made = made.with_context(|| format!("with the idempotency key {key}"))?;
                common.output.one(&COLUMNS, &made)
            }
            Self::List => {
                let rows = all(&client, &common.path("/webhooks"), "").await?;
                common.output.rows(&COLUMNS[..COLUMNS.len() - 1], &rows)
            }
            Self::Show { webhook } => {
                let shown = client.ask(Method::GET, &place(webhook), None).await?;
                common.output.one(&COLUMNS[..COLUMNS.len() - 1], &shown)
            }
            Self::Change(Change { webhook, to, event_type, all_events }) => {
                let mut patch = Map::new();
                patch.extend(to.map(|url| ("url".to_owned(), json!(url))));
                if all_events || !event_type.is_empty() {
                    let types = (!all_events).then_some(event_type);
                    patch.insert("event_types".to_owned(), json!(types));
                }
                patched(&client, common, webhook, &Value::Object(patch)).await
            }
            Self::Enable { webhook } => {
                patched(&client, common, webhook, &json!({"disabled": false})).await
            }
            Self::Disable { webhook } => {
                patched(&client, common, webhook, &json!({"disabled": true})).await
            }
            Self::RotateSecret { webhook } => {
                let path = format!("{}/rotate-secret", place(webhook));
                common.output.one(&COLUMNS, &client.post(&path, &json!({}), None).await?)
            }
            Self::Delete { webhook } => {
                client.ask(Method::DELETE, &place(webhook), None).await?;
                common.output.done(&json!({"deleted": webhook}), &format!("Deleted {webhook}."))
            }
            Self::Deliveries(Deliveries { webhook, state, limit }) => {
                let path = format!("{}/deliveries", place(webhook));
                let rows = some(&client, &path, &query(&[("state", state)]), limit).await?;
                common.output.rows(&DELIVERIES, &rows)
            }
            Self::Retry { delivery } => {
                let path = common.path(&format!("/deliveries/{delivery}/retry"));
                common.output.one(&DELIVERIES, &client.post(&path, &json!({}), None).await?)
            }
        }
    }
}

/// Changes a webhook and shows it.
async fn patched(
    client: &Client,
    common: &Common,
    webhook: WebhookId,
    patch: &Value,
) -> anyhow::Result<()> {
    let path = common.path(&format!("/webhooks/{webhook}"));
    let changed = client.ask(Method::PATCH, &path, Some(patch)).await?;
    common.output.one(&COLUMNS[..COLUMNS.len() - 1], &changed)
}
