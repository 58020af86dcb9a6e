//! Many codes at once, into gate and ledger.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{
    lab::Lab,
    rows::{Bar, Unit},
    servers::wait_until,
};

const CODES: u64 = 500_000;
const WHAT: &str = "codes made in bulk, into gate and ledger";

pub(crate) fn run(lab: &mut Lab) -> anyhow::Result<()> {
    let codes = lab.effort.count(CODES);
    let service = lab.embedded()?;
    let path = "/v1/namespaces/default/batches";
    let body = json!({"count": codes, "pattern": "BULK-####-####", "group": "team", "max_uses": 1});
    let started = Instant::now();
    let (status, made) = service.ask("POST", path, Some(&body))?;
    ensure!(status == 202, "{path} answered {status}: {made}");
    let id = made["id"].as_str().context("a batch without an id")?;
    wait_until("the batch is done", || {
        let (status, batch) = service.ask("GET", &format!("{path}/{id}"), None)?;
        ensure!(status == 200, "the batch answered {status}: {batch}");
        let state = batch["state"].as_str().unwrap_or_default();
        ensure!(state != "failed", "the batch failed: {batch}");
        Ok(state == "finished")
    })?;
    service.wait_until_synced()?;
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let rate = codes as f64 / started.elapsed().as_secs_f64();
    lab.row(WHAT, Bar::AtLeast(50_000.0), Unit::PerSecond, rate);
    Ok(())
}
