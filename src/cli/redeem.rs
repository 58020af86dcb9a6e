//! `redeemer redeem CODE --user U`

use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};

use super::{Common, invite::parse_json, namespace::words, output::Column};
use crate::domain::{Durability, ReservationId};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  redeemer redeem WELCOME --user alice
  redeemer redeem WELCOME --user alice --idempotency-key signup-4711     repeat it as often as you like")]
pub(super) struct Redeem {
    /// What the person typed
    code: String,
    /// Your id for the person
    #[arg(long)]
    user: String,
    /// The person's address
    #[arg(long)]
    ip: Option<String>,
    /// The person's e-mail address; only its domain is looked at, and it is not kept
    #[arg(long)]
    email: Option<String>,
    /// What makes a repeat recognisable
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// The user's reservation that is to be spent, and nothing else
    #[arg(long, value_name = "ID")]
    reservation: Option<ReservationId>,
    /// What the answer is to promise, if more than the namespace asks for
    #[arg(long, value_name = "LEVEL", value_parser = words(Durability::ALL.map(Durability::as_str)))]
    durability: Option<String>,
    /// A JSON object of your own
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    metadata: Option<Value>,
}

pub(super) const COLUMNS: [Column; 9] = [
    ("ID", "id"),
    ("USER", "user"),
    ("GROUP", "group"),
    ("CODE", "code"),
    ("USE", "use"),
    ("REMAINING", "remaining"),
    ("AT", "redeemed_at"),
    ("REPLAYED", "replayed"),
    ("DURABILITY", "durability"),
];

impl Redeem {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = common.client()?;
        let mut body = Map::from_iter([
            ("code".to_owned(), json!(self.code)),
            ("user".to_owned(), json!(self.user)),
        ]);
        let optional = [
            ("ip", self.ip.map(Value::from)),
            ("email", self.email.map(Value::from)),
            ("reservation", self.reservation.map(|id| json!(id))),
            ("metadata", self.metadata),
            ("durability", self.durability.map(Value::from)),
        ];
        body.extend(
            optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))),
        );
        // Made here if need be: whoever gets no answer must be able to name it.
        let key = self.idempotency_key.unwrap_or_else(|| crate::ids::unique().to_string());
        let redeemed = client.redeem(&common.namespace, &Value::Object(body), Some(&key)).await;
        let redemption = redeemed.with_context(|| format!("with the idempotency key {key}"))?;
        common.output.one(&COLUMNS, &redemption)
    }
}
