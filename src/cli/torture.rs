//! `redeemer torture`: users rush a deployment while faults strike it, then the proof that no law was broken.

use std::{path::PathBuf, process::ExitCode, sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{
    Common,
    output::{Column, Output, complain, say},
};
use crate::{
    local_server,
    torture::{self, Counts, Options, Verdict, faults::Fault, redis::Kind},
};

/// Breaches of one law that are shown to people.
const SHOWN_MAX: usize = 10;

#[derive(Debug, Args)]
#[command(
    after_help = "It starts a redis-server and nodes of its own in a temporary directory, and stops and removes all of it at the end;
nothing that runs already is touched. Nodes and Redis are killed and paused at random while clients ask. Exit code 0:
every law held; 1: one was broken, or there is no verdict. The same seed makes the same requests and the same faults,
though not in the same order.

Examples:
  redeemer torture --minutes 5
  redeemer torture --seconds 30 --seed 42 --keep ./torture
  redeemer torture --redis cluster --minutes 10
  redeemer torture --spread 3 --seed 42
  redeemer torture --lossy --ledger postgres://localhost/empty"
)]
pub(super) struct Torture {
    /// How long faults strike, in minutes; up to one more until every kind of answer has been told
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// How long faults strike, in seconds; up to a minute more until every kind of answer has been told
    #[arg(long, conflicts_with = "minutes", value_parser = clap::value_parser!(u64).range(1..=600_000))]
    seconds: Option<u64>,
    /// What all random choices follow from; without it, one is drawn
    #[arg(long)]
    seed: Option<u64>,
    /// How many users ask at the same time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// The most uses of a code
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    uses: u64,
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    nodes: u32,
    /// Over how many partitions the namespace is spread; there are as many then, and no less than two
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    spread: u16,
    /// What kind of Redis; where replicas take over, answers of level gate may get lost
    #[arg(long, value_enum, default_value = "standalone")]
    redis: Kind,
    /// Empty Redis too, every now and then: answers of level gate may get lost, answers of level ledger must not
    #[arg(long)]
    lossy: bool,
    /// An empty database for the ledger (postgres://…) instead of a SQLite file
    #[arg(long, value_name = "URL")]
    ledger: Option<String>,
    /// A new directory for logs and data, which is kept; without it, a temporary one
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

impl Torture {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        if let Some(url) = &self.ledger {
            check_empty(common, url).await?;
        }
        let (redis_server, _version) = local_server::find(None).await?;
        let program = std::env::current_exe().context("finding this program")?;
        // Removed when it is dropped.
        let temporary = tempfile::Builder::new().prefix("redeemer-torture-").tempdir()?;
        let directory = match &self.keep {
            Some(directory) => {
                std::fs::create_dir(directory)
                    .with_context(|| format!("making {}", directory.display()))?;
                std::path::absolute(directory)?
            }
            None => temporary.path().to_owned(),
        };
        let seed = self.seed.unwrap_or_else(crate::ids::seed);
        let options = Options {
            seed,
            duration: Duration::from_secs(self.seconds.unwrap_or(self.minutes * 60)),
            clients: usize::from(self.clients),
            uses: self.uses,
            nodes: self.nodes,
            spread: self.spread,
            redis: self.redis,
            lossy: self.lossy,
            ledger: self.ledger,
            program,
            redis_server,
            history: self.keep.is_some().then(|| directory.join("history.txt")),
            log_level: if self.keep.is_some() { "info" } else { "warn" },
            directory,
            key: SecretString::from(crate::ids::token("torture", None).reveal()),
        };
        // Known before anything can go wrong.
        match common.output {
            Output::Table => say(&format!("seed {seed}")),
            Output::Json | Output::Csv => complain(&format!("seed {seed}")),
        }
        let counts = Counts::default();
        let verdict = watched(&options, &counts).await?;
        tell(common.output, &options, &counts, &verdict)?;
        temporary.close().context("removing the temporary directory")?;
        Ok(if verdict.is_proven() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Whatever is in the database is somebody's: its Redis would be shut out by nodes that never saw it.
async fn check_empty(common: &Common, url: &str) -> anyhow::Result<()> {
    // The nodes get a Redis of their own.
    let flags = [("ledger.url", url), ("redis.url", "redis://127.0.0.1")];
    let config =
        common.config(flags.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec())?;
    let ledger = crate::app::ledger(&config).await.map_err(anyhow::Error::msg)?;
    let partitions = ledger.partitions().await?;
    ledger.close().await;
    if !partitions.is_empty() {
        bail!("the database of --ledger is in use; name an empty one");
    }
    Ok(())
}

/// Runs it, with a bar that shows how it goes, until its end or a signal.
async fn watched(options: &Options, counts: &Counts) -> anyhow::Result<Verdict> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} s {wide_msg}")?;
    let bar = ProgressBar::new(options.duration.as_secs()).with_style(style);
    let show = async {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            bar.set_position(bar.elapsed().as_secs());
            bar.set_message(format!(
                "{} requests, {} granted, {} unknown, {} faults",
                counts.requests(),
                counts.granted.load(Ordering::Relaxed),
                counts.unknown.load(Ordering::Relaxed),
                counts.strikes()
            ));
        }
    };
    let interrupted = CancellationToken::new();
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        interrupted.cancel();
        std::future::pending::<()>().await;
    };
    let verdict = tokio::select! {
        verdict = torture::run(options, counts, &interrupted) => verdict,
        () = show => bail!("it never ends by itself"),
        () = stop => bail!("it never ends by itself"),
    };
    bar.finish_and_clear();
    Ok(verdict?)
}

fn tell(
    output: Output,
    options: &Options,
    counts: &Counts,
    verdict: &Verdict,
) -> anyhow::Result<()> {
    let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let faults: Map<String, Value> =
        Fault::ALL.iter().map(|fault| (fault.to_string(), json!(counts.of(*fault)))).collect();
    let laws = verdict.json();
    if output == Output::Json {
        let all = json!({
            "seed": options.seed,
            "seconds": options.duration.as_secs(),
            "spread": options.spread,
            "proven": verdict.is_proven(),
            "laws": laws,
            "requests": counts.requests(),
            "granted": load(&counts.granted),
            "replayed": load(&counts.replayed),
            "held": load(&counts.held),
            "given_back": load(&counts.given_back),
            "refused": load(&counts.refused),
            "campaign_exhausted": load(&counts.campaign_exhausted),
            "unknown": load(&counts.unknown),
            "nothing_done": load(&counts.nothing_done),
            "faults": faults,
        });
        say(&serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    if output == Output::Table {
        say(&format!(
            "{} requests: {} granted, {} of them again; {} held; {} given back; {} refused, {} of them by a campaign; {} unknown; {} times nothing was done.",
            counts.requests(),
            load(&counts.granted) + load(&counts.replayed),
            load(&counts.replayed),
            load(&counts.held),
            load(&counts.given_back),
            load(&counts.refused),
            load(&counts.campaign_exhausted),
            load(&counts.unknown),
            load(&counts.nothing_done),
        ));
        let struck: Vec<_> = faults
            .iter()
            .filter(|(_, count)| **count != 0)
            .map(|(fault, count)| format!("{fault} {count}"))
            .collect();
        say(&format!("{} faults: {}.\n", counts.strikes(), struck.join(", ")));
    }
    let columns: [Column; 4] =
        [("LAW", "law"), ("VERDICT", "verdict"), ("WHAT", "what"), ("NUMBERS", "numbers")];
    output.rows(&columns, &laws)?;
    if output == Output::Table {
        for (law, _) in &verdict.laws {
            let breaches: Vec<_> = verdict.breaches(*law).collect();
            for breach in breaches.iter().take(SHOWN_MAX) {
                say(&format!("\nlaw {}: {breach}", law.title().0));
            }
            if breaches.len() > SHOWN_MAX {
                say(&format!("… and {} more", breaches.len() - SHOWN_MAX));
            }
        }
        let whole = if verdict.is_proven() { "every law held" } else { "a law was BROKEN" };
        say(&format!("\nseed {}: {whole}.", options.seed));
    }
    Ok(())
}
