//! `redeemer inspect --code C --user U`

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::{
    Common,
    output::{Output, say},
};
use crate::{
    app,
    config::Config,
    domain::{Code, CodeCase, UserId},
    gate::{
        Gate,
        inspect::{DryRun, Inspect as Look, Shown, in_shell, word_in_shell},
    },
    local_server,
};

#[derive(Debug, Args)]
#[command(after_help = "It reads Redis itself, and needs no running service.

Examples:
  redeemer inspect --code WELCOME
  redeemer inspect --user alice
  redeemer inspect --code WELCOME --user alice")]
pub(super) struct Inspect {
    /// A code
    #[arg(long, value_parser = parse_code, required_unless_present = "user")]
    code: Option<Code>,
    /// A user
    #[arg(long, value_parser = parse_user)]
    user: Option<UserId>,
}

fn parse_code(text: &str) -> Result<Code, String> {
    Code::parse(text, CodeCase::Sensitive).map_err(|error| error.0)
}

fn parse_user(text: &str) -> Result<UserId, String> {
    UserId::parse(text).map_err(|error| error.0)
}

impl Inspect {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let config = common.config(Vec::new())?;
        let gate: Gate = app::gate(&config)?;
        let mut look =
            Look { namespace: common.namespace.clone(), code: self.code, user: self.user };
        // The first call finds out whether there is a Redis at all.
        look.begin(&gate).await.with_context(|| {
            format!(
                "no Redis where `{}` looks; is this the configuration (redeemer.toml, REDEEMER_…, --config) that the \
                 service runs with?",
                client(&config)
            )
        })?;
        let shown = look.run(&gate).await?;
        let dry_run = look.dry_run(&gate).await?;
        if common.output != Output::Table {
            let shown: Vec<_> = shown
                .iter()
                .map(|shown| json!({"command": shown.command, "reply": value(&shown.reply)}))
                .collect();
            let dry_run = dry_run.map(|DryRun { keys, args }| json!({"keys": keys, "args": args}));
            say(&serde_json::to_string_pretty(&json!({"commands": shown, "dry_run": dry_run}))?);
            return Ok(());
        }
        let client = client(&config);
        for Shown { command, reply } in &shown {
            say(&format!("{client} {}", in_shell(command)));
            if reply.is_empty() {
                say("  (nothing)");
            }
            for line in reply {
                say(&format!("  {}", line.join("  ")));
            }
            say("");
        }
        if let Some(DryRun { keys, args }) = &dry_run {
            say(
                "Whether it would be granted now (from a checkout; spends nothing but the guessing budget):",
            );
            say(&format!("{client} --eval lua/redeem.lua {} , {}", in_shell(keys), in_shell(args)));
        }
        Ok(())
    }
}

/// A reply as JSON: an object for a hash.
fn value(reply: &[Vec<String>]) -> Value {
    match reply {
        [only] if only.len() == 1 => json!(only[0]),
        pairs => pairs
            .iter()
            .filter_map(|pair| Some((pair.first()?.clone(), json!(pair.get(1)?))))
            .collect(),
    }
}

/// The command that opens this Redis in a terminal.
fn client(config: &Config) -> String {
    match &config.redis.place {
        None => format!(
            "redis-cli -s {}",
            word_in_shell(&local_server::socket_in(&config.data_dir).display().to_string())
        ),
        Some(place) => place.topology.redis_cli(),
    }
}
