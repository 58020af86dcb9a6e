//! `redeemer healthcheck`: for containers, which often have no curl.

use std::process::ExitCode;

use secrecy::SecretString;
use serde_json::json;

use super::{Common, output};
use crate::client::Client;

pub(super) async fn run(common: &Common) -> anyhow::Result<ExitCode> {
    let config = common.config(Vec::new())?;
    // Readiness needs no key.
    let client = Client::new(&common.service(&config), SecretString::default())?;
    let readiness = client.readiness().await?;
    if readiness["ready"] == true {
        common.output.done(&json!({"ready": true}), "ready")?;
        return Ok(ExitCode::SUCCESS);
    }
    output::complain("not ready; `redeemer status` says why");
    Ok(ExitCode::FAILURE)
}
