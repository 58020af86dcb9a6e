//! The same on a real cluster of three primaries: what each of them has to do, and how long a use takes that lies in
//! another partition.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, ensure};
use redeemer::{domain::Namespace, gate::key::Keyspace};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    lab::{CONNECTIONS, Effort, Lab, median},
    load::{Load, Pace, Report, Request, redemption_body},
    rows::{Bar, Unit},
    servers::{ADMIN_KEY, CODE, Guarded, Place, Service, cpu_seconds, directory, keys, wait_until},
};

const PRIMARIES: u16 = 3;
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

/// A namespace whose shards, as many as there are primaries, lie on one each.
fn balanced(keys: &Keyspace, word: &str) -> anyhow::Result<Namespace> {
    named(word, |namespace| {
        let mut on: Vec<_> =
            namespace.shards(PRIMARIES).map(|shard| primary_of(keys, &shard)).collect();
        on.sort_unstable();
        on.dedup();
        on.len() == usize::from(PRIMARIES)
    })
}

/// As many namespaces as there are primaries, with one each.
fn apart(keys: &Keyspace, word: &str) -> anyhow::Result<Vec<Namespace>> {
    (0..PRIMARIES)
        .map(|primary| {
            named(&format!("{word}-{primary}"), |namespace| primary_of(keys, namespace) == primary)
        })
        .collect()
}

fn named(word: &str, fits: impl Fn(&Namespace) -> bool) -> anyhow::Result<Namespace> {
    for number in 0..1000 {
        let namespace = Namespace::parse(&format!("{word}-{number}"))?;
        if fits(&namespace) {
            return Ok(namespace);
        }
    }
    anyhow::bail!("no name is distributed like that")
}

/// Where a namespace, or a shard of one, lies.
fn primary_of(keys: &Keyspace, namespace: &Namespace) -> u16 {
    let slot = keys.slot(keys.partition_of(namespace));
    (0..PRIMARIES).rev().find(|primary| slot >= slots(*primary)).unwrap_or_default()
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

    /// With as many requests under way for each primary.
    fn load(
        &self,
        namespaces: &[Namespace],
        primaries: u16,
        effort: Effort,
    ) -> anyhow::Result<Report> {
        let request = |namespace| {
            let path = format!("/v1/namespaces/{namespace}/redemptions");
            Request::new(&path, ADMIN_KEY, &redemption_body(CODE, None))
        };
        Load {
            address: self.service.address,
            requests: &namespaces.iter().map(request).collect::<anyhow::Result<Vec<_>>>()?,
            connections: CONNECTIONS * usize::from(primaries),
            pace: Pace::Closed,
            warm_up: effort.warm_up(),
            duration: effort.seconds(SECONDS),
        }
        .run()
    }

    /// Processor time of each primary, in seconds.
    fn cpu(&self) -> anyhow::Result<Vec<f64>> {
        self.primaries.iter().map(|primary| cpu_seconds(primary.child.0.id())).collect()
    }

    fn wait_until_synced(&self) -> anyhow::Result<()> {
        wait_until("the ledger has everything", || {
            for primary in &self.primaries {
                for outbox in primary.ask::<Vec<String>>(&["KEYS", "*:outbox"])? {
                    if primary.ask::<u64>(&["XLEN", &outbox])? > 0 {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        })
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
        namespaces: &[Namespace],
        primaries: u16,
        effort: Effort,
    ) -> anyhow::Result<Cost> {
        // What was asked before is not to be paid for now.
        self.wait_until_synced()?;
        let before = (self.cpu()?, self.calls()?);
        let report = self.load(namespaces, primaries, effort)?.all_granted()?;
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

    let of_linear = of_linear(&it, effort)?;
    lab.row(
        "Redis CPU per redemption on the busiest of three primaries, spread 1 over spread 3, of linear; 64 requests under way for each",
        Bar::AtLeast(0.85),
        Unit::Ratio,
        of_linear.over_one,
    );
    lab.row(
        "the same, three namespaces with a primary each over spread 3; as many requests in all",
        Bar::AtLeast(0.85),
        Unit::Ratio,
        of_linear.over_apart,
    );
    let in_a_call = [
        ("spread 1", of_linear.in_a_call[0]),
        ("three namespaces", of_linear.in_a_call[1]),
        ("spread 3", of_linear.in_a_call[2]),
    ];
    for (of, figure) in in_a_call {
        lab.row(&format!("redemptions in a call then, {of}"), Bar::None, Unit::Ratio, figure);
    }
    lab.row(
        "a use that lies in another partition, from request to answer",
        Bar::None,
        Unit::Millis,
        elsewhere(&it, effort)?,
    );
    Ok(())
}

/// How much less a redemption costs the busiest primary when its namespace is spread over three.
struct OfLinear {
    /// As a part of three times less than that of a namespace on one primary, while the others have nothing to do.
    over_one: f64,
    /// What it costs where each primary has a namespace of its own, as a part of that. All three are as busy then, and
    /// share the machine as those of the spread one do: what is missing to 1 is what the spread itself costs, as long as no
    /// use has to move.
    over_apart: f64,
    /// How many redemptions share a call: of the one, of the three, of the spread one.
    in_a_call: [f64; 3],
}

fn of_linear(it: &Spread, effort: Effort) -> anyhow::Result<OfLinear> {
    let (mut over_one, mut over_apart) = (Vec::new(), Vec::new());
    let mut in_a_call = [const { Vec::new() }; 3];
    for round in 0..effort.rounds() {
        let one = [balanced(&keys(), &format!("one-{round}"))?];
        let three = apart(&keys(), &format!("apart-{round}"))?;
        let spread = [balanced(&keys(), &format!("spread-{round}"))?];
        for namespace in one.iter().chain(&three) {
            it.make(namespace, 1, None)?;
        }
        it.make(&spread[0], PRIMARIES, None)?;
        let one = it.cost(&one, 1, effort)?;
        let three = it.cost(&three, PRIMARIES, effort)?;
        let spread = it.cost(&spread, PRIMARIES, effort)?;
        over_one.push(one.busiest / spread.busiest / f64::from(PRIMARIES));
        over_apart.push(three.busiest / spread.busiest);
        for (figures, cost) in in_a_call.iter_mut().zip([one, three, spread]) {
            figures.push(cost.in_a_call);
        }
    }
    Ok(OfLinear {
        over_one: median(over_one),
        over_apart: median(over_apart),
        in_a_call: in_a_call.map(median),
    })
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
