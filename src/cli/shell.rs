//! `redeemer completions` and `redeemer man`: what shells and `man` know of the command line, made from it.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man;

use super::output::{pass_on, say};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  redeemer completions bash > ~/.local/share/bash-completion/completions/redeemer
  redeemer completions zsh > \"${fpath[1]}/_redeemer\"
  redeemer completions fish > ~/.config/fish/completions/redeemer.fish")]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, mut command: clap::Command) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "redeemer", &mut script);
        Ok(pass_on(&script)?)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  redeemer man | man -l -
  redeemer man --dir ~/.local/share/man/man1")]
pub(super) struct ManPages {
    /// Write the pages of all commands into this directory, instead of the first to standard output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ManPages {
    pub(super) fn run(&self, command: clap::Command) -> anyhow::Result<()> {
        let Some(dir) = &self.dir else {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            return Ok(pass_on(&page)?);
        };
        let cannot = || format!("{} can not be written", dir.display());
        std::fs::create_dir_all(dir).with_context(cannot)?;
        clap_mangen::generate_to(command, dir).with_context(cannot)?;
        say(&format!("The pages are in {}; `man redeemer` begins with the first.", dir.display()));
        Ok(())
    }
}
