//! What the sections share: how much to do, servers that several of them use, and what came out so far.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    baselines::Baseline,
    chart::Series,
    load::{Load, Pace, Report},
    output::tell,
    rows::{Bar, Row, Rows, Unit},
    servers::{Place, PostgresServer, RedisWork, Service, redemption},
};

/// Connections of a closed loop.
pub(crate) const CONNECTIONS: usize = 64;
/// Connections of an open loop: enough for whatever is under way at once below the most that a server can do.
pub(crate) const CONNECTIONS_OPEN: usize = 512;

/// How much to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    Full,
    /// A tenth of the data, and less of the time.
    Quick,
    /// Next to nothing: whether everything still runs.
    Smoke,
}

impl Effort {
    /// How long one measurement takes.
    pub(crate) fn seconds(self, full: f64) -> Duration {
        Duration::from_secs_f64(match self {
            Self::Full => full,
            Self::Quick => full / 2.0,
            Self::Smoke => 0.15,
        })
    }

    pub(crate) fn warm_up(self) -> Duration {
        Duration::from_millis(if self == Self::Smoke { 50 } else { 500 })
    }

    /// How often what is compared takes turns.
    pub(crate) fn rounds(self) -> usize {
        match self {
            Self::Full => 3,
            Self::Quick | Self::Smoke => 1,
        }
    }

    pub(crate) fn count(self, full: u64) -> u64 {
        match self {
            Self::Full => full,
            Self::Quick => full / 10,
            Self::Smoke => (full / 1000).clamp(100, 2000),
        }
    }
}

/// What a durability level costs: the most that the embedded default does at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Gate,
    Ledger,
}

impl Level {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Ledger => "ledger",
        }
    }

    /// What a request asks for.
    pub(crate) fn durability(self) -> Option<&'static str> {
        match self {
            Self::Gate => None,
            Self::Ledger => Some("ledger"),
        }
    }
}

/// See the module.
pub(crate) struct Lab {
    pub(crate) effort: Effort,
    pub(crate) rows: Rows,
    pub(crate) series: Vec<(&'static str, Series)>,
    pub(crate) took: Vec<(&'static str, Duration)>,
    section: &'static str,
    embedded: Option<Service>,
    postgres: Option<PostgresServer>,
    databases: usize,
    maxima: BTreeMap<Level, f64>,
}

impl Lab {
    pub(crate) fn new(effort: Effort) -> Self {
        Self {
            effort,
            rows: Rows::default(),
            series: Vec::new(),
            took: Vec::new(),
            section: "",
            embedded: None,
            postgres: None,
            databases: 0,
            maxima: BTreeMap::new(),
        }
    }

    /// Runs a section. One that fails has a row that says so, and the others go on.
    pub(crate) fn section(&mut self, name: &'static str, run: fn(&mut Self) -> anyhow::Result<()>) {
        tell(&format!("{name} …"));
        self.section = name;
        let started = Instant::now();
        if let Err(error) = run(self) {
            tell(&format!("  {name} failed: {error:#}"));
            self.failed("everything after this", Bar::None, Unit::Count, &format!("{error:#}"));
        }
        let took = started.elapsed();
        tell(&format!("  {name} took {:.1} s", took.as_secs_f64()));
        self.took.push((name, took));
    }

    fn push(&mut self, what: &str, bar: Bar, unit: Unit, figure: Result<f64, String>) {
        let row = Row { section: self.section, what: what.to_owned(), bar, unit, figure };
        tell(&format!("  {}", row.line()));
        self.rows.0.push(row);
    }

    pub(crate) fn row(&mut self, what: &str, bar: Bar, unit: Unit, figure: f64) {
        self.push(what, bar, unit, Ok(figure));
    }

    /// A row of what could not be measured, and why.
    pub(crate) fn failed(&mut self, what: &str, bar: Bar, unit: Unit, why: &str) {
        self.push(what, bar, unit, Err(why.to_owned()));
    }

    /// The embedded default: its own Redis, which writes before it answers, SQLite, and the default limits.
    /// Started once.
    pub(crate) fn embedded(&mut self) -> anyhow::Result<&Service> {
        if self.embedded.is_none() {
            self.embedded = Some(Service::start(Place::new(None, None)?)?);
        }
        self.embedded.as_ref().ok_or_else(|| anyhow::anyhow!("it was just started"))
    }

    /// Ends the embedded default, so that its data take no more room.
    pub(crate) fn end_embedded(&mut self) {
        self.embedded = None;
    }

    /// PostgreSQL, started once.
    pub(crate) fn postgres(&mut self) -> anyhow::Result<&PostgresServer> {
        if self.postgres.is_none() {
            self.postgres = Some(PostgresServer::start()?);
        }
        self.postgres.as_ref().ok_or_else(|| anyhow::anyhow!("it was just started"))
    }

    /// A new database in it.
    pub(crate) fn database(&mut self) -> anyhow::Result<String> {
        self.databases += 1;
        let name = format!("ledger_{}", self.databases);
        self.postgres()?.database(&name)
    }

    /// The most that the embedded default does at a level; measured unless it is known.
    pub(crate) fn maximum(&mut self, level: Level) -> anyhow::Result<f64> {
        if let Some(rate) = self.maxima.get(&level) {
            return Ok(*rate);
        }
        let effort = self.effort;
        let rate = closed(self.embedded()?, effort, 3.0, level)?.report.rate;
        self.set_maximum(level, rate);
        Ok(rate)
    }

    pub(crate) fn set_maximum(&mut self, level: Level, rate: f64) {
        self.maxima.insert(level, rate);
    }
}

/// A closed loop against a service, with what it cost.
pub(crate) struct Measured {
    pub(crate) report: Report,
    /// Of Redis, over the whole run.
    pub(crate) redis: RedisWork,
    /// Processor time of the service, in seconds.
    pub(crate) node_cpu: f64,
    /// Changes that the ledger did not have when the run ended.
    pub(crate) backlog: f64,
}

impl Measured {
    /// Something of the whole run, for each redemption.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub(crate) fn each(&self, sum: f64) -> f64 {
        sum / self.report.granted() as f64
    }
}

/// Redeems as fast as the service can, over [`CONNECTIONS`]. All must be granted. Waits until the ledger has everything.
pub(crate) fn closed(
    service: &Service,
    effort: Effort,
    seconds: f64,
    level: Level,
) -> anyhow::Result<Measured> {
    closed_over(service, effort, seconds, level, CONNECTIONS)
}

/// The same over so many connections.
pub(crate) fn closed_over(
    service: &Service,
    effort: Effort,
    seconds: f64,
    level: Level,
    connections: usize,
) -> anyhow::Result<Measured> {
    let (redis, cpu) = (service.redis(), service.cpu()?);
    let before = redis.work()?;
    let report = Load {
        address: service.address,
        requests: &[redemption(level.durability())?],
        connections,
        pace: Pace::Closed,
        warm_up: effort.warm_up(),
        duration: effort.seconds(seconds),
    }
    .run()?
    .all_granted()?;
    let (after, node_cpu) = (redis.work()?, service.cpu()? - cpu);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let backlog = service.backlog()? as f64;
    service.wait_until_synced()?;
    let redis = after - before;
    Ok(Measured { report, redis, node_cpu, backlog })
}

/// Redeems at a rate, whatever comes back.
pub(crate) fn open(
    service: &Service,
    effort: Effort,
    seconds: f64,
    level: Level,
    rate: f64,
    connections: usize,
) -> anyhow::Result<Report> {
    Load {
        address: service.address,
        requests: &[redemption(level.durability())?],
        connections,
        pace: Pace::Open(rate),
        warm_up: effort.warm_up(),
        duration: effort.seconds(seconds),
    }
    .run()
}

/// A closed loop against a baseline.
pub(crate) fn closed_baseline(
    baseline: &Baseline,
    code: &str,
    effort: Effort,
    seconds: f64,
) -> anyhow::Result<Report> {
    Load {
        address: baseline.address(),
        requests: &[Baseline::request(code)?],
        connections: CONNECTIONS,
        pace: Pace::Closed,
        warm_up: effort.warm_up(),
        duration: effort.seconds(seconds),
    }
    .run()?
    .all_granted()
}

/// The one in the middle.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
