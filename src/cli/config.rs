//! `redeemer config check|show`

use clap::Subcommand;
use serde_json::json;

use super::{Common, output::say};

#[derive(Debug, Subcommand)]
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
            Self::Check => say("The configuration is sound."),
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
