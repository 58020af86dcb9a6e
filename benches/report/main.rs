//! `make bench`: what the program does on this machine, against what it has to do.
//!
//! Everything is measured from outside, on servers of its own: the program as a child, redis-server, PostgreSQL, and
//! baselines that a user can read ([`baselines`]). Bars are ratios within one run wherever they can be: machines differ,
//! and what else runs on them. Nothing here fails because a figure is low; it is a report.

mod baselines;
mod chart;
mod lab;
mod load;
mod output;
mod rows;
mod servers;
mod throughput;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use self::{
    lab::{Effort, Lab},
    output::say,
};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Redemptions a second against the baselines, and their cost
    Throughput,
}

impl Section {
    fn run(self, lab: &mut Lab) {
        match self {
            Self::Throughput => lab.section("throughput", throughput::run),
        }
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "report",
    about = "What redeemer does on this machine, against what it has to do",
    after_help = "Examples:
  make bench
  cargo bench --bench report -- --quick
  cargo bench --bench report -- --only throughput --only latency
  cargo bench --bench report -- --write docs/benchmarks.md --json bench.json"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Run this section and no other; may be given several times
    #[arg(long, value_name = "SECTION")]
    only: Vec<Section>,
    /// A tenth of the data and less time; the figures are rough
    #[arg(long)]
    quick: bool,
    /// Next to no data and time, to see whether everything still runs; fails if a figure is missing
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Write the report to this file, and its charts beside it
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Write every figure to this file, for programs
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one of the baselines
    #[command(hide = true)]
    Serve(baselines::Serve),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(Command::Serve(serve)) = cli.command {
        return serve.run();
    }
    let effort = match (cli.smoke, cli.quick) {
        (true, _) => Effort::Smoke,
        (false, true) => Effort::Quick,
        (false, false) => Effort::Full,
    };
    let mut lab = Lab::new(effort);
    for section in Section::value_variants() {
        if cli.only.is_empty() || cli.only.contains(section) {
            section.run(&mut lab);
        }
    }
    say(&lab.rows.table());
    Ok(())
}
