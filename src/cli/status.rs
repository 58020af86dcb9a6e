//! `redeemer status`: the checks of the service, and what the ledger says of each partition.

use std::process::ExitCode;

use secrecy::SecretString;
use serde_json::{Value, json};

use super::{
    Common,
    output::{self, Column, Output, say},
};
use crate::{app, client::Client, ledger::PartitionRow};

const CHECKS: [Column; 3] = [("CHECK", "name"), ("STATE", "state"), ("DETAIL", "detail")];
const PARTITIONS: [Column; 7] = [
    ("PARTITION", "partition"),
    ("STATE", "state"),
    ("EPOCH", "epoch"),
    ("LEDGER AT", "cursor"),
    ("SYNCED", "synced_at"),
    ("LEADER", "leader"),
    ("REASON", "reason"),
];

pub(super) async fn run(common: &Common) -> anyhow::Result<ExitCode> {
    let config = common.config(Vec::new())?;
    let service = common.service(&config);
    let readiness = Client::new(&service, SecretString::default())?.readiness().await;
    // A ledger that is not there is not made by looking at it; a service elsewhere has its ledger elsewhere.
    let partitions = if common.url.is_none() && config.ledger.place.missing_file().is_none() {
        let ledger = app::ledger(&config).await.map_err(anyhow::Error::msg)?;
        let rows = ledger.partitions().await?;
        ledger.close().await;
        rows.iter().map(partition).collect()
    } else {
        Vec::new()
    };
    let is_ready = readiness.as_ref().is_ok_and(|readiness| readiness["ready"] == true);
    let checks: Vec<Value> = match &readiness {
        Ok(readiness) => readiness["checks"].as_array().into_iter().flatten().map(check).collect(),
        Err(error) => {
            output::complain(&error.to_string());
            Vec::new()
        }
    };
    if common.output == Output::Json {
        let all = json!({"service": service, "ready": is_ready, "checks": checks, "partitions": partitions});
        say(&serde_json::to_string_pretty(&all)?);
    } else {
        if !checks.is_empty() {
            common.output.rows(&CHECKS, &checks)?;
            say("");
        }
        common.output.rows(&PARTITIONS, &partitions)?;
    }
    Ok(if is_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(check: &Value) -> Value {
    let state = if check["ok"] == true { "ok" } else { "not ok" };
    json!({"name": check["name"], "state": state, "detail": check["detail"]})
}

fn partition(row: &PartitionRow) -> Value {
    json!({
        "partition": row.partition.0,
        "state": row.state.as_str(),
        "epoch": row.epoch,
        "cursor": row.cursor.to_string(),
        "synced_at": row.synced_at,
        "leader": row.lease_owner.as_ref().filter(|_| row.lease_live),
        "reason": row.reason,
    })
}
