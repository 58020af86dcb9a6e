//! `redeemer dead-letters list|replay|drop`

use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{
    Common,
    output::{Column, Output, say},
};
use crate::{
    domain::Position,
    ledger::DeadLetter,
    sync::dead_letters::{self, Replayed},
};

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  redeemer dead-letters list
  redeemer dead-letters replay
  redeemer dead-letters drop 6/3-17")]
pub(super) enum Command {
    /// Show the changes that the ledger could not take, with the reason
    List,
    /// Try all of them again, once what stood in their way has been mended
    #[command(
        after_help = "What newer changes have overtaken stays as these have left it. Exit code 0: nothing is left; 1: some still can not
be applied."
    )]
    Replay,
    /// Give one up: the ledger goes on without it
    Drop {
        /// Its position, as `list` shows it
        position: Position,
    },
}

const COLUMNS: [Column; 4] =
    [("POSITION", "position"), ("AT", "at"), ("REASON", "reason"), ("ENTRY", "entry")];

impl Command {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let config = common.config(Vec::new())?;
        let ledger = super::ledger(&config).await?;
        let letters = ledger.unhandled_dead_letters().await?;
        let code = match self {
            Self::List => {
                common.output.rows(&COLUMNS, &letters.iter().map(view).collect::<Vec<_>>())?;
                ExitCode::SUCCESS
            }
            Self::Replay => {
                let (mut left, mut rows) = (0, Vec::new());
                let bar = ProgressBar::new(letters.len() as u64);
                for letter in &letters {
                    let outcome =
                        match dead_letters::replay(&ledger, letter, &super::by_hand()).await? {
                            Replayed::Applied => "applied".to_owned(),
                            Replayed::Refused(reason) => {
                                left += 1;
                                format!("still not possible: {reason}")
                            }
                        };
                    rows.push(json!({"position": position(letter), "outcome": outcome}));
                    bar.inc(1);
                }
                bar.finish_and_clear();
                common.output.rows(&[("POSITION", "position"), ("OUTCOME", "outcome")], &rows)?;
                if common.output == Output::Table {
                    say(&format!("{} of {} applied.", letters.len() - left, letters.len()));
                }
                if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Self::Drop { position: wanted } => {
                let Some(letter) = letters.iter().find(|letter| position(letter) == wanted) else {
                    bail!(
                        "there is no dead letter at {wanted}; `redeemer dead-letters list` shows them"
                    );
                };
                ledger.settle_dead_letter(letter, None, &super::by_hand()).await?;
                let sentence = format!("The ledger goes on without {wanted}.");
                common.output.done(&json!({"dropped": wanted}), &sentence)?;
                ExitCode::SUCCESS
            }
        };
        ledger.close().await;
        Ok(code)
    }
}

fn position(letter: &DeadLetter) -> Position {
    Position { partition: letter.partition, cursor: letter.cursor }
}

fn view(letter: &DeadLetter) -> Value {
    json!({
        "position": position(letter),
        "at": letter.at,
        "reason": letter.reason,
        "entry": letter.entry,
    })
}
