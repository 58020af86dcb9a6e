//! `redeemer backup` and `redeemer restore`

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{
    Common,
    output::{self, Column, Output, say},
};
use crate::{
    app,
    backup::{self, Manifest},
    config::{Config, LedgerPlace},
    local_server::DataDir,
};

const COLUMNS: [Column; 7] = [
    ("DIRECTORY", "directory"),
    ("COMPLETE", "complete"),
    ("NAMESPACES", "namespaces"),
    ("INVITES", "invites"),
    ("REDEMPTIONS", "redemptions"),
    ("MEMBERS", "members"),
    ("BYTES", "bytes"),
];

#[derive(Debug, Args)]
#[command(
    after_help = "It may run while the service does, and then has everything that was granted before it began; users go on
redeeming meanwhile. It is for a ledger in SQLite; one in PostgreSQL is backed up by pg_dump. DIR gets ledger.sqlite and,
last of all, backup.json: a directory without that is no backup.

API keys are in it as digests. The file of the admin key is not: copy data/admin.key yourself, or let the first start
after a restore make a new one; `redeemer key reset-admin` also revokes those of before.

Examples:
  redeemer backup backups/monday
  redeemer restore backups/monday"
)]
pub(super) struct Backup {
    /// Where to; made if it is missing, and must be empty
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Backup {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let config = common.config(Vec::new())?;
        sqlite(&config, "pg_dump --format=custom --file=ledger.dump \"$REDEEMER_LEDGER__URL\"")?;
        let ledger = super::ledger(&config).await?;
        let gate = app::gate(&config)?;
        let deployment = ledger.deployment(config.gate.partitions, crate::ids::unique()).await?;
        backup::prepare(&self.directory)?;
        let bar = spinner("waiting until the ledger has what Redis has");
        let doubts = backup::come_as_far(&gate, &ledger, &deployment).await?;
        bar.set_message("copying the ledger");
        let manifest = backup::take(&ledger, &self.directory, doubts).await;
        bar.finish_and_clear();
        ledger.close().await;
        let manifest = manifest.with_context(|| format!("backing up {}", config.ledger.place))?;
        for doubt in &manifest.doubts {
            output::complain(doubt);
        }
        common.output.one(&COLUMNS, &view(&manifest, &self.directory)?)
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "The service must be stopped, and there must be no ledger where it is to be: a new data.dir, or one from which
ledger.sqlite, ledger.sqlite-wal and ledger.sqlite-shm were moved away. The next `redeemer serve` builds Redis from it.

If a Redis is still there that is newer than the backup, its partitions stay closed until a person has decided:
`redeemer rebuild --from-gate` writes what Redis has into the ledger, `redeemer rebuild --from-ledger --discard-gate`
goes back to what the backup has.

Example:
  redeemer restore backups/monday"
)]
pub(super) struct Restore {
    /// What `redeemer backup` has made
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Restore {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let config = common.config(Vec::new())?;
        let restore = "pg_restore --dbname=\"$REDEEMER_LEDGER__URL\" ledger.dump";
        let file = sqlite(&config, restore)?;
        // A service that runs there must not find another ledger in its place.
        let _data_dir = DataDir::lock(&config.data_dir)?;
        let bar = spinner("checking and copying the ledger");
        let manifest = backup::restore(&self.directory, &file).await;
        bar.finish_and_clear();
        let manifest = manifest?;
        let ledger = super::ledger(&config).await?;
        let from = self.directory.display().to_string();
        ledger.record_deed(&super::by_hand(), "ledger_restored", &from).await?;
        ledger.close().await;
        if common.output != Output::Table {
            return common.output.one(&COLUMNS, &view(&manifest, &self.directory)?);
        }
        say(&format!(
            "Restored {} redemptions of {} invites, as of {}, to {}.",
            manifest.contents.redemptions,
            manifest.contents.invites,
            manifest.at,
            file.display()
        ));
        say(
            "Now run `redeemer serve`. It builds Redis from the ledger; `redeemer audit` then proves that both agree.",
        );
        if config.auth.admin_key.is_none() && !config.admin_key_file().exists() {
            say(&format!(
                "{} is not there, and no backup has it; the first start makes a new one if there is none. \
                 `redeemer key reset-admin` also revokes those of before.",
                config.admin_key_file().display()
            ));
        }
        Ok(())
    }
}

/// The file of a ledger in SQLite; for one in PostgreSQL, says what to run instead.
fn sqlite(config: &Config, instead: &str) -> anyhow::Result<PathBuf> {
    match &config.ledger.place {
        LedgerPlace::Sqlite(path) => Ok(path.clone()),
        LedgerPlace::Postgres(_) => bail!(
            "this ledger is in PostgreSQL, whose own tools do that, also while the service runs:\n  {instead}"
        ),
    }
}

fn spinner(message: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn view(manifest: &Manifest, directory: &Path) -> anyhow::Result<Value> {
    let mut view = json!({"directory": directory});
    if let (Some(view), Value::Object(fields)) =
        (view.as_object_mut(), serde_json::to_value(manifest)?)
    {
        view.extend(fields);
    }
    Ok(view)
}
