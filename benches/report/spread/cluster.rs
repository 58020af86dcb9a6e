//! The same on a real cluster of three primaries: what each of them has to do, and how long a use takes that lies in
//! another partition.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, ensure};
use redeemer::{
    domain::{Namespace, Partition},
    gate::key::Keyspace,
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    lab::{CONNECTIONS, Effort, Lab, median},
    load::{Load, Pace, Report, Request, redemption_body},
    rows::{Bar, Unit},
    servers::{ADMIN_KEY, CODE, Guarded, Place, Service, cpu_seconds, directory, keys, wait_until},
};

const PRIMARIES: u16 = 3;
/// Redemptions a second for each primary, where it is to have as much to do with one as with three: three times that the
/// service has to manage on this machine.
const RATE: f64 = 3000.0;
/// How long each takes, in seconds.
const SECONDS: f64 = 4.0;
/// How often a single use is asked for that lies elsewhere.
const TRIES: u64 = 40;

/// One primary.
struct Primary {
    port: u16,
    child: Guarded,
    _directory: TempDir,
}

impl Primary {
    fn start() -> anyhow::Result<Self> {
        let directory = directory("cluster")?;
        // Held until the server takes them.
        let [port, bus] = [free_port()?, free_port()?];
        let child: Child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--cluster-port", &bus.to_string()])
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
            .args(["--cluster-enabled", "yes", "--hash-max-listpack-value", "256"])
            .args(["--auto-aof-rewrite-min-size", "256mb"])
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting redis-server")?;
        let primary = Self { port, child: Guarded(child), _directory: directory };
        wait_until("redis-server answers", || Ok(primary.ask::<String>(&["PING"]).is_ok()))?;
        Ok(primary)
    }

    fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> anyhow::Result<T> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        Ok(command.query(&mut client.get_connection()?)?)
    }

    fn bus(&self) -> anyhow::Result<String> {
        let myself: String = self.ask(&["CLUSTER", "NODES"])?;
        let bus = myself.split('@').nth(1).and_then(|rest| rest.split([' ', ',']).next());
        Ok(bus.context("a server that does not know itself")?.to_owned())
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Three primaries, each with a third of the slots.
fn cluster() -> anyhow::Result<Vec<Primary>> {
    let primaries = (0..PRIMARIES).map(|_| Primary::start()).collect::<Result<Vec<_>, _>>()?;
    for (number, primary) in (0..).zip(&primaries) {
        let [first, last] = [slots(number), slots(number + 1) - 1].map(|slot| slot.to_string());
        primary.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])?;
        primary.ask::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()])?;
    }
    let first = &primaries[0];
    for other in &primaries[1..] {
        let (port, bus) = (other.port.to_string(), other.bus()?);
        first.ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
    }
    wait_until("the cluster is whole", || {
        let mut whole = true;
        for primary in &primaries {
            let info: String = primary.ask(&["CLUSTER", "INFO"])?;
            whole &= info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3");
        }
        Ok(whole)
    })?;
    Ok(primaries)
}

/// The first slot of a primary.
fn slots(primary: u16) -> u16 {
    u16::try_from(u32::from(primary) * 16_384 / u32::from(PRIMARIES)).unwrap_or(16_384)
}

/// A namespace whose shards lie on three primaries.
fn balanced(keys: &Keyspace, word: &str) -> anyhow::Result<Namespace> {
    let primary = |partition: Partition| {
        (0..PRIMARIES).rev().find(|number| keys.slot(partition) >= slots(*number))
    };
    for number in 0..1000 {
        let namespace = Namespace::parse(&format!("{word}-{number}"))?;
        let mut on: Vec<_> =
            namespace.shards(PRIMARIES).map(|shard| primary(keys.partition_of(&shard))).collect();
        on.sort_unstable();
        on.dedup();
        if on.len() == usize::from(PRIMARIES) {
            return Ok(namespace);
        }
    }
    anyhow::bail!("no name spreads over all primaries")
}

/// A service on a cluster.
struct Spread {
    service: Service,
    primaries: Vec<Primary>,
}

impl Spread {
    fn make(
        &self,
        namespace: &Namespace,
        spread: u16,
        max_uses: Option<u64>,
    ) -> anyhow::Result<()> {
        let path = format!("/v1/namespaces/{namespace}");
        let (status, body) = self.service.ask("PUT", &path, Some(&json!({"spread": spread})))?;
        ensure!(status == 201, "the namespace was not made: {status} {body}");
        let invite = json!({"code": CODE, "group": "team", "max_uses": max_uses});
        let (status, body) = self.service.ask("POST", &format!("{path}/invites"), Some(&invite))?;
        ensure!(status == 201, "the invite was not made: {status} {body}");
        Ok(())
    }

    /// What one more primary is for is more people: three times as many for a namespace that is spread over three.
    fn load(
        &self,
        namespace: &Namespace,
        spread: u16,
        pace: Pace,
        effort: Effort,
    ) -> anyhow::Result<Report> {
        let path = format!("/v1/namespaces/{namespace}/redemptions");
        Load {
            address: self.service.address,
            request: &Request::new(&path, ADMIN_KEY, &redemption_body(CODE, None))?,
            connections: CONNECTIONS * usize::from(spread),
            pace,
            warm_up: effort.warm_up(),
            duration: effort.seconds(SECONDS),
        }
        .run()
    }

    /// Processor time of each primary, in seconds.
    fn cpu(&self) -> anyhow::Result<Vec<f64>> {
        self.primaries.iter().map(|primary| cpu_seconds(primary.child.0.id())).collect()
    }

    /// How many calls of scripts there were.
    fn calls(&self) -> anyhow::Result<f64> {
        let mut calls = 0.0;
        for primary in &self.primaries {
            let stats: String = primary.ask(&["INFO", "commandstats"])?;
            let of_scripts =
                stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
            let count = of_scripts.and_then(|rest| rest.split(',').next()).unwrap_or("0");
            calls += count.parse::<f64>()?;
        }
        Ok(calls)
    }

    fn cost(
        &self,
        namespace: &Namespace,
        spread: u16,
        pace: Pace,
        effort: Effort,
    ) -> anyhow::Result<Cost> {
        let before = (self.cpu()?, self.calls()?);
        let report = self.load(namespace, spread, pace, effort)?.all_granted()?;
        let after = (self.cpu()?, self.calls()?);
        let spent = after.0.iter().zip(before.0).map(|(after, before)| after - before);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let granted = report.granted() as f64;
        Ok(Cost {
            busiest: spent.fold(0.0, f64::max) / granted,
            in_a_call: granted / (after.1 - before.1),
        })
    }
}

/// What a redemption costs.
struct Cost {
    /// Processor time of the busiest primary for it, in seconds.
    busiest: f64,
    /// How many share a call.
    in_a_call: f64,
}

pub(super) fn run(lab: &mut Lab) -> anyhow::Result<()> {
    let effort = lab.effort;
    let primaries = cluster()?;
    let mut place = Place::new(None, Some(lab.database()?))?.without_limits();
    let url = format!("redis-cluster://127.0.0.1:{}", primaries[0].port);
    place.settings.push(("REDEEMER_REDIS__URL", url));
    let it = Spread { service: Service::start(place)?, primaries };

    let (closed, paced) = (|_| Pace::Closed, |spread| Pace::Open(RATE * f64::from(spread)));
    let [of_linear, one, three] = of_linear(&it, effort, "closed", closed)?;
    lab.row(
        "Redis CPU per redemption on the busiest of three primaries, spread 1 over spread 3, of linear; 64 requests under way for each",
        Bar::AtLeast(0.85),
        Unit::Ratio,
        of_linear,
    );
    lab.row("redemptions in a call then, spread 1", Bar::None, Unit::Ratio, one);
    lab.row("redemptions in a call then, spread 3", Bar::None, Unit::Ratio, three);
    let [of_linear, one, three] = self::of_linear(&it, effort, "paced", paced)?;
    lab.row(
        "the same CPU with 3,000 redemptions a second for each primary",
        Bar::None,
        Unit::Ratio,
        of_linear,
    );
    lab.row("redemptions in a call then, spread 1", Bar::None, Unit::Ratio, one);
    lab.row("redemptions in a call then, spread 3", Bar::None, Unit::Ratio, three);

    lab.row(
        "a use that lies in another partition, from request to answer",
        Bar::None,
        Unit::Millis,
        elsewhere(&it, effort)?,
    );
    Ok(())
}

/// How much less a redemption costs the busiest primary when its namespace is spread over three, as a part of three times
/// less; and how many share a call, in one and in three.
fn of_linear(
    it: &Spread,
    effort: Effort,
    word: &str,
    pace: impl Fn(u16) -> Pace,
) -> anyhow::Result<[f64; 3]> {
    let (mut ratios, mut of_one, mut of_three) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..effort.rounds() {
        let (one, three) = (
            balanced(&keys(), &format!("{word}-one-{round}"))?,
            balanced(&keys(), &format!("{word}-three-{round}"))?,
        );
        it.make(&one, 1, None)?;
        it.make(&three, PRIMARIES, None)?;
        let one = it.cost(&one, 1, pace(1), effort)?;
        let three = it.cost(&three, PRIMARIES, pace(PRIMARIES), effort)?;
        ratios.push(one.busiest / three.busiest / f64::from(PRIMARIES));
        of_one.push(one.in_a_call);
        of_three.push(three.in_a_call);
    }
    Ok([ratios, of_one, of_three].map(median))
}

/// How long it takes to get the only use of an invite, which is at the home.
fn elsewhere(it: &Spread, effort: Effort) -> anyhow::Result<f64> {
    let namespace = balanced(&keys(), "elsewhere")?;
    it.make(&namespace, PRIMARIES, Some(1))?;
    let path = format!("/v1/namespaces/{namespace}");
    let mut took = Vec::new();
    for number in 0..effort.count(TRIES).max(1) {
        let code = format!("LAST-{number}");
        let invite = json!({"code": code, "group": code, "max_uses": 1});
        let (status, body) = it.service.ask("POST", &format!("{path}/invites"), Some(&invite))?;
        ensure!(status == 201, "the invite was not made: {status} {body}");
        let redemption = json!({"code": code, "user": format!("user-{number}")});
        let begun = Instant::now();
        let (status, body) =
            it.service.ask("POST", &format!("{path}/redemptions"), Some(&redemption))?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(status == 201, "the last use was not found: {status} {body}");
    }
    Ok(median(took))
}
