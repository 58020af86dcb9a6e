//! `make bench`: what the program does on this machine, against what it has to do.
//!
//! Everything is measured from outside, on servers of its own: the program as a child, redis-server, PostgreSQL, and
//! baselines that a user can read ([`baselines`]). Bars are ratios within one run wherever they can be: machines differ,
//! and what else runs on them. Nothing here fails because a figure is low; it is a report.

mod baselines;
mod bulk;
mod chart;
mod document;
mod fill;
mod growth;
mod lab;
mod latency;
mod load;
mod output;
mod overload;
mod rows;
mod servers;
mod spread;
mod start;
mod sync;
mod throughput;

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand, ValueEnum};

use self::{
    document::Machine,
    lab::{Effort, Lab},
    output::say,
};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What can be measured by itself, in the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Redemptions a second against the baselines, and what they cost
    Throughput,
    /// How long people wait at a given rate, and how far behind the ledger is
    Latency,
    /// Twice as many requests as can be served
    Overload,
    /// Codes made in bulk
    Bulk,
    /// Memory per redemption
    Memory,
    /// Redemptions with ten million in
    Growth,
    /// A backlog of a million changes, and a Redis that was emptied
    Sync,
    /// From Redis to ready
    Start,
    /// One namespace over several partitions
    Spread,
}

impl Section {
    fn run(self, lab: &mut Lab) {
        let (name, run): (_, fn(&mut Lab) -> anyhow::Result<()>) = match self {
            Self::Throughput => ("throughput", throughput::run),
            Self::Latency => ("latency", latency::run),
            Self::Overload => ("overload", overload::run),
            Self::Bulk => ("bulk", bulk::run),
            Self::Memory => ("memory", growth::memory),
            Self::Growth => ("growth", growth::run),
            Self::Sync => ("sync", sync::run),
            Self::Start => ("start", start::run),
            Self::Spread => ("spread", spread::run),
        };
        lab.section(name, run);
    }

    /// Whether it needs the embedded default that several of them share, with what it holds.
    fn shares(self) -> bool {
        matches!(self, Self::Throughput | Self::Latency | Self::Overload | Self::Bulk)
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
    /// Next to no data and time, to see whether everything still runs
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Write the report to this file, and its charts beside it
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Write every figure to this file, for programs
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    _cargo: Cargo,
}

/// What Cargo says to every benchmark and test, and means nothing here.
#[derive(Debug, clap::Args)]
struct Cargo {
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one of the baselines
    #[command(hide = true)]
    Serve(baselines::Serve),
    /// Ask a server for five seconds over 64 connections, and say how much it answered: to compare with other loads
    #[command(hide = true)]
    Load { address: SocketAddr },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Serve(serve)) => return serve.run(),
        Some(Command::Load { address }) => return ask(address),
        None => {}
    }
    let effort = match (cli.smoke, cli.quick) {
        (true, _) => Effort::Smoke,
        (false, true) => Effort::Quick,
        (false, false) => Effort::Full,
    };
    let began = Instant::now();
    let machine = Machine::look();
    let mut lab = Lab::new(effort);
    for section in Section::value_variants() {
        if cli.only.is_empty() || cli.only.contains(section) {
            if !section.shares() {
                lab.end_embedded();
            }
            section.run(&mut lab);
        }
    }
    let (met, bars) = lab.rows.met();
    if effort != Effort::Smoke {
        say(&lab.rows.table());
    }
    say(&format!("{met} of {bars} bars are met; took {:.0} s", began.elapsed().as_secs_f64()));
    if let Some(path) = &cli.json {
        std::fs::write(path, document::json(&lab, &machine))?;
    }
    if let Some(path) = &cli.write {
        document::write(path, &lab, &machine)?;
    }
    anyhow::ensure!(!lab.rows.has_failed(), "not everything could be measured");
    Ok(())
}

fn ask(address: SocketAddr) -> anyhow::Result<()> {
    let report = load::Load {
        address,
        requests: &[baselines::Baseline::request(servers::CODE)?],
        connections: lab::CONNECTIONS,
        pace: load::Pace::Closed,
        warm_up: Duration::from_millis(500),
        duration: Duration::from_secs(5),
    }
    .run()?;
    let p99 = report.latency_ms(0.99);
    say(&format!("{:.0} a second, p99 {p99:.2} ms, {:?}", report.rate, report.statuses));
    Ok(())
}
