//! `redeemer config check|show`

use clap::Subcommand;
use serde_json::json;

use super::Common;

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer config check
  REDEEMER_REDIS__URL=redis://127.0.0.1:6379 redeemer config show --output csv")]
pub(super) enum Command {
    /// Say everything that is wrong with the configuration, at once
    Check,
    /// Show every setting with where its value came from; secrets are masked
    Show,
}

impl Command {
    pub(super) fn run(self, common: &Common) -> anyhow::Result<()> {
        let config = common.config(Vec::new())?;
        match self {
            Self::Check => {
                common.output.done(&json!({"sound": true}), "The configuration is sound.")?;
            }
            Self::Show => {
                let row = |setting: &crate::config::Setting| json!({"key": setting.key, "value": setting.value, "origin": setting.origin.to_string()});
                let rows: Vec<_> = config.settings.iter().map(row).collect();
                common
                    .output
                    .rows(&[("SETTING", "key"), ("VALUE", "value"), ("FROM", "origin")], &rows)?;
            }
        }
        Ok(())
    }
}
