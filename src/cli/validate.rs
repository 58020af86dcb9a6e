//! `redeemer validate CODE`

use std::process::ExitCode;

use clap::Args;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{Common, output::Column};

#[derive(Debug, Args)]
#[command(
    after_help = "It spends nothing but, where there is no such code, the guessing budget. Exit code 0: allowed; 1: not.

Example:
  redeemer validate WELCOME --user alice"
)]
pub(super) struct Validate {
    /// What the person typed
    code: String,
    /// Your id for the person
    #[arg(long)]
    user: Option<String>,
    /// The person's address
    #[arg(long)]
    ip: Option<String>,
    /// The person's e-mail address; only its domain is looked at, and it is not kept
    #[arg(long)]
    email: Option<String>,
}

const COLUMNS: [Column; 3] = [("ALLOWED", "allowed"), ("WHY NOT", "code"), ("DETAIL", "detail")];

impl Validate {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let mut body = Map::from_iter([("code".to_owned(), json!(self.code))]);
        let optional = [("user", self.user), ("ip", self.ip), ("email", self.email)];
        body.extend(
            optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))),
        );
        let (client, path) = (common.client()?, common.path("/validations"));
        let told = client.ask(Method::POST, &path, Some(&Value::Object(body))).await?;
        common.output.one(&COLUMNS, &told)?;
        let allowed = told["allowed"] == true;
        Ok(if allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
