//! `redeemer reservation create|show|confirm|release`

use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{Common, invite::parse_json, output::Column};
use crate::domain::ReservationId;

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer reservation create WELCOME --user alice --ttl-seconds 900
  redeemer reservation show 0e2e2fe2-5dd6-8c5d-a8ce-1d3b1f6a1b0e
  redeemer reservation confirm 0e2e2fe2-5dd6-8c5d-a8ce-1d3b1f6a1b0e
  redeemer reservation release 0e2e2fe2-5dd6-8c5d-a8ce-1d3b1f6a1b0e")]
pub(super) enum Command {
    /// Hold one use of a code for a user
    Create(Create),
    /// Show what a reservation is now
    Show {
        /// Its id
        reservation: ReservationId,
    },
    /// Spend the use that is held
    Confirm(Confirm),
    /// Give the use back
    Release {
        /// Its id
        reservation: ReservationId,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// What the person typed
    code: String,
    /// Your id for the person
    #[arg(long)]
    user: String,
    /// For how long, up to a day; ten minutes without it
    #[arg(long, value_name = "SECONDS")]
    ttl_seconds: Option<u64>,
    /// The person's address
    #[arg(long)]
    ip: Option<String>,
    /// The person's e-mail address; only its domain is looked at, and it is not kept
    #[arg(long)]
    email: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Confirm {
    /// Its id
    reservation: ReservationId,
    /// A JSON object of your own
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    metadata: Option<Value>,
    /// What makes a repeat recognisable
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

const COLUMNS: [Column; 6] = [
    ("ID", "id"),
    ("USER", "user"),
    ("CODE", "code"),
    ("STATE", "state"),
    ("EXPIRES", "expires_at"),
    ("REDEMPTION", "redemption"),
];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = common.client()?;
        let place = |id: ReservationId| common.path(&format!("/reservations/{id}"));
        match self {
            Self::Create(create) => {
                let mut body = Map::from_iter([
                    ("code".to_owned(), json!(create.code)),
                    ("user".to_owned(), json!(create.user)),
                ]);
                let optional = [
                    ("ttl_seconds", create.ttl_seconds.map(Value::from)),
                    ("ip", create.ip.map(Value::from)),
                    ("email", create.email.map(Value::from)),
                ];
                body.extend(
                    optional
                        .into_iter()
                        .filter_map(|(name, value)| Some((name.to_owned(), value?))),
                );
                let path = common.path("/reservations");
                let held = client.post(&path, &Value::Object(body), None).await?;
                common.output.one(&COLUMNS, &held)
            }
            Self::Show { reservation } => {
                let shown = client.ask(Method::GET, &place(reservation), None).await?;
                common.output.one(&COLUMNS, &shown)
            }
            Self::Confirm(Confirm { reservation, metadata, idempotency_key }) => {
                let key = idempotency_key.unwrap_or_else(|| crate::ids::unique().to_string());
                let body =
                    metadata.map_or_else(|| json!({}), |metadata| json!({"metadata": metadata}));
                let path = format!("{}/confirm", place(reservation));
                let redemption = client.post(&path, &body, Some(&key)).await;
                let redemption =
                    redemption.with_context(|| format!("with the idempotency key {key}"))?;
                common.output.one(&super::redeem::COLUMNS, &redemption)
            }
            Self::Release { reservation } => {
                client.ask(Method::DELETE, &place(reservation), None).await?;
                let sentence = format!("Reservation {reservation} holds nothing any more.");
                common.output.done(&json!({"released": reservation}), &sentence)
            }
        }
    }
}
