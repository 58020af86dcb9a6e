//! `redeemer audit-log`

use clap::Args;

use super::{
    Common,
    invite::{query, some},
    output::Column,
};

#[derive(Debug, Args)]
#[command(
    after_help = "The newest come first. Uses that people spend are no administrative changes: `redeemer redemption list` shows them.
(`redeemer audit` is something else: it compares Redis with the ledger.)

Examples:
  redeemer audit-log --namespace acme --after 2026-11-01T00:00:00Z
  redeemer audit-log --all --action key_revoked --output json"
)]
pub(super) struct AuditLog {
    /// Of all namespaces, and what belongs to none: keys, rebuilds, dead letters
    #[arg(long)]
    all: bool,
    /// Only what this one did: the id of an API key, or cli:<name>
    #[arg(long, value_name = "ID")]
    actor: Option<String>,
    /// Only this: invite_created, key_revoked, …
    #[arg(long, value_name = "WORD")]
    action: Option<String>,
    /// From this moment on
    #[arg(long, value_name = "TIME")]
    after: Option<String>,
    /// Up to this moment
    #[arg(long, value_name = "TIME")]
    before: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

const COLUMNS: [Column; 7] = [
    ("AT", "at"),
    ("ACTOR", "actor"),
    ("NAME", "actor_name"),
    ("ACTION", "action"),
    ("NAMESPACE", "namespace"),
    ("SUBJECT", "subject"),
    ("REQUEST", "request_id"),
];

impl AuditLog {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let path = if self.all { "/v1/audit".to_owned() } else { common.path("/audit") };
        let query = query(&[
            ("actor", self.actor),
            ("action", self.action),
            ("after", self.after),
            ("before", self.before),
        ]);
        let rows = some(&common.client()?, &path, &query, self.limit).await?;
        common.output.rows(&COLUMNS, &rows)
    }
}
