//! `redeemer key create|list|revoke|reset-admin`

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use super::{
    Common,
    invite::all,
    namespace::words,
    output::{Column, complain},
};
use crate::{
    app,
    client::encoded,
    domain::{Role, Token},
};

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer key create --name web --role redeem
  redeemer key create --name acme-admin --role manage --only acme
  redeemer key create --name auditor --role read --expires-at 2027-01-01T00:00:00Z
  redeemer key list
  redeemer key revoke m3x7q2kd5w4yzabc
  redeemer key reset-admin")]
pub(super) enum Command {
    /// Make an API key; it is shown this once
    Create {
        /// What you call it
        #[arg(long)]
        name: String,
        /// What it may do
        #[arg(long, value_parser = words(Role::ALL.map(Role::as_str)))]
        role: String,
        /// A namespace that it is tied to; may be repeated
        #[arg(long, value_name = "NAMESPACE")]
        only: Vec<String>,
        /// When it ends, such as 2027-01-01T00:00:00Z; without it, when it is revoked
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
    },
    /// List API keys, without their secrets
    List,
    /// Let an API key open nothing any more
    Revoke {
        /// Its id: what stands between the underscores of the key
        id: String,
    },
    /// Revoke every admin key and make a new one in the data directory: for when the key is lost
    ResetAdmin,
}

const COLUMNS: [Column; 7] = [
    ("ID", "id"),
    ("NAME", "name"),
    ("ROLE", "role"),
    ("ONLY", "namespaces"),
    ("CREATED", "created_at"),
    ("EXPIRES", "expires_at"),
    ("REVOKED", "revoked_at"),
];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        match self {
            Self::Create { name, role, only, expires_at } => {
                let only = (!only.is_empty()).then_some(only);
                let body = json!({"name": name, "role": role, "namespaces": only, "expires_at": expires_at});
                let made = common.client()?.ask(Method::POST, "/v1/keys", Some(&body)).await?;
                common.output.one(
                    &[
                        ("KEY", "key"),
                        ("ID", "id"),
                        ("ROLE", "role"),
                        ("ONLY", "namespaces"),
                        ("EXPIRES", "expires_at"),
                    ],
                    &made,
                )
            }
            Self::List => {
                common.output.rows(&COLUMNS, &all(&common.client()?, "/v1/keys", "").await?)
            }
            Self::Revoke { id } => {
                // Whoever has the whole key at hand may give that.
                let id = Token::parse(&id).map_or(id, |token| token.id().to_owned());
                common
                    .client()?
                    .ask(Method::DELETE, &format!("/v1/keys/{}", encoded(&id)), None)
                    .await?;
                let sentence = format!("Revoked {id}. Every node refuses it within a second.");
                common.output.done(&json!({"revoked": id}), &sentence)
            }
            Self::ResetAdmin => reset_admin(common).await,
        }
    }
}

/// Works on the ledger itself, with no key: whoever may write to its file may do so.
async fn reset_admin(common: &Common) -> anyhow::Result<()> {
    let config = common.config(Vec::new())?;
    let ledger = super::ledger(&config).await?;
    let reset =
        app::reset_admin_key(&config, &ledger, &super::by_hand()).await.map_err(anyhow::Error::msg);
    ledger.close().await;
    reset?;
    if config.auth.admin_key.is_some() {
        complain("auth.admin_key is configured and goes on working on the nodes that have it");
    }
    let file = config.admin_key_file();
    let sentence = format!(
        "The new admin key is in {}. All others of the role admin are revoked.",
        file.display()
    );
    common.output.done(&json!({"admin_key_file": file}), &sentence)
}
