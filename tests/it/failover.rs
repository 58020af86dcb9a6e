//! Sentinels with a primary and its replicas, and a cluster: failovers there and back, primaries that wake up late or
//! are cut off, slots that move. On both, the same must hold.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use redeemer::{
    domain::{Namespace, Partition},
    gate::key::Keyspace,
    torture::redis::{Kind, Redis, Setup},
};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    effort, eventually, ledger,
    node::{Node, Reply, Settings, json_body, send},
    until_some,
};

const CODE: &str = "FAILOVER";
/// Those who ask at the same time.
const CLIENTS: usize = 8;

/// Redis of a kind with nodes that share it.
struct Deployment {
    redis: Redis,
    nodes: Vec<Node>,
    keys: Keyspace,
    partition: Partition,
    settings: Settings,
    _directory: TempDir,
}

impl Deployment {
    async fn start(kind: Kind, nodes: usize) -> Self {
        Self::start_with(kind, nodes, Duration::from_secs(1)).await
    }

    /// With leases of this length.
    async fn start_with(kind: Kind, nodes: usize, lease_ttl: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let setup = Setup::new(&PathBuf::from("redis-server"), directory.path());
        let mut redis = Redis::start(kind, &setup).unwrap();
        redis.wait().await.unwrap();
        let env = [
            ("REDEEMER_GATE__PARTITIONS", "1"),
            ("REDEEMER_GATE__REPLICAS", "1"),
            ("REDEEMER_SYNC__LEASE_TTL_MS", &lease_ttl.as_millis().to_string()),
            ("REDEEMER_SYNC__BLOCK_MS", "100"),
            ("REDEEMER_RATE_LIMIT__ENABLED", "false"),
        ];
        let settings = Settings {
            redis_url: Some(redis.url(false, "")),
            ledger: Some(ledger::url_in(directory.path())),
            env: env.map(|(name, value)| (name, value.to_owned())).to_vec(),
        };
        let keys = Keyspace::new("rdm", 1);
        let partition = keys.partition_of(&Namespace::default_namespace());
        let mut it =
            Self { redis, nodes: Vec::new(), keys, partition, settings, _directory: directory };
        for _ in 0..nodes {
            let node = it.node(it.settings.clone()).await;
            it.nodes.push(node);
        }
        it
    }

    async fn node(&self, settings: Settings) -> Node {
        tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
    }

    /// The server that has the namespace `default`.
    async fn primary(&self) -> usize {
        until_some("somebody is the primary", async || {
            self.redis.primary(&self.keys, self.partition).await
        })
        .await
    }

    /// Waits until another server has the namespace, by everybody's word.
    async fn until_replaced(&self, old: usize) {
        let place = self.redis.servers[old].place();
        until_some("a replica takes over", async || {
            let primary = self.redis.primary(&self.keys, self.partition).await;
            primary.filter(|primary| *primary != old)
        })
        .await;
        let others = self.redis.servers.iter().enumerate().filter(|(number, _)| *number != old);
        for (_, other) in others.filter(|_| self.redis.sentinels.is_empty()) {
            eventually("the others know it", async || {
                let nodes: String = other.run(&["CLUSTER", "NODES"]).await.unwrap();
                // Eight words, and the slots that it has.
                let of_old = nodes.lines().find(|line| line.contains(&place));
                of_old.is_some_and(|line| line.split(' ').count() == 8)
            })
            .await;
        }
    }

    /// Waits until this server takes part again: it follows another one and has all that that one has, or it is the
    /// primary once more. (Those who watch take a primary that has to wait for its turn on a busy machine for dead.)
    async fn until_takes_part(&self, number: usize) {
        eventually("the old primary takes part again", async || {
            let server = &self.redis.servers[number];
            let info: String = server.run(&["INFO", "replication"]).await.unwrap_or_default();
            info.contains("role:slave") && info.contains("master_link_status:up")
                || self.redis.primary(&self.keys, self.partition).await == Some(number)
        })
        .await;
    }

    /// Has all replicas miss what this primary writes from now on, until they are continued; returns them.
    async fn deafen(&self, primary: usize) -> Vec<usize> {
        let mut replicas = Vec::new();
        for (number, server) in self.redis.servers.iter().enumerate() {
            let info: String = server.run(&["INFO", "replication"]).await.unwrap();
            if info.contains("role:slave") {
                server.signal(Signal::STOP).unwrap();
                replicas.push(number);
            }
        }
        // What is sent to them gets lost on the way.
        let primary = &self.redis.servers[primary];
        primary.run::<i64>(&["CLIENT", "KILL", "TYPE", "replica"]).await.unwrap();
        replicas
    }

    /// A user's redemption, asked for with one key until there is an answer that is not 503.
    async fn redeemed(&self, node: usize, user: &str, level: &str) -> Reply {
        until_some("there is an answer", async || {
            let reply = redeem(&self.nodes[node], user, level).await?;
            (reply.status != 503).then_some(reply)
        })
        .await
    }

    /// Gate and ledger hold the same, and of this code so many uses are spent.
    async fn assert_spent(&self, node: usize, invite: &str, spent: usize) {
        let node = &self.nodes[node];
        let report = until_some("both sides can be compared", async || {
            let report = node.get("/v1/namespaces/default/consistency").await;
            let compared = report.body["not_compared"].as_array().is_some_and(Vec::is_empty);
            (report.status == 200 && compared).then_some(report)
        })
        .await;
        assert_eq!(report.body["consistent"], true, "{}", report.text);
        let invite = node.get(&format!("/v1/namespaces/default/invites/{invite}")).await;
        assert_eq!(invite.body["uses"], spent, "{}", invite.text);
    }
}

/// Asks once; nothing when no answer came. Whatever else the answer is, it is one that a client can go by.
async fn redeem(node: &Node, user: &str, level: &str) -> Option<Reply> {
    let request = node
        .request(Method::POST, "/v1/namespaces/default/redemptions")
        .header("idempotency-key", user);
    let body = json!({"code": CODE, "user": user, "durability": level});
    let reply = send(json_body(request, &body)).await.ok()?;
    let known = [200, 201, 409, 410].contains(&reply.status);
    let unknown = ["fenced", "outcome_unknown", "gate_unavailable", "overloaded"];
    assert!(known || unknown.contains(&reply.code()), "{}", reply.text);
    Some(reply)
}

/// Users who come one after the other to each of several clients, each of whom asks until there is an answer.
struct Rush {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Vec<(String, Reply)>>>,
}

impl Rush {
    /// Clients of a node.
    fn start(urls: &[&Node], clients: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |number: usize| {
            let request = urls[number % urls.len()]
                .request(Method::POST, "/v1/namespaces/default/redemptions");
            let (stop, done) = (stop.clone(), done.clone());
            tokio::spawn(async move {
                let mut told = Vec::new();
                for turn in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let user = format!("user-{number}-{turn}");
                    let body = json!({"code": CODE, "user": user});
                    let reply = loop {
                        let request = request.try_clone().unwrap().header("idempotency-key", &user);
                        let reply = send(json_body(request, &body)).await.unwrap();
                        if reply.status != 503 {
                            break reply;
                        }
                    };
                    done.fetch_add(1, Ordering::SeqCst);
                    told.push((user, reply));
                }
                told
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, done, clients }
    }

    /// Waits until so many more have their answer.
    async fn until_more(&self, count: usize) {
        let now = self.done.load(Ordering::SeqCst);
        eventually("more have their answer", async || {
            self.done.load(Ordering::SeqCst) >= now + count
        })
        .await;
    }

    /// Ends it; returns what everybody was told.
    async fn end(self) -> BTreeMap<String, Reply> {
        self.stop.store(true, Ordering::SeqCst);
        let told = join_all(self.clients).await;
        told.into_iter().flat_map(Result::unwrap).collect()
    }
}

/// Everybody got one use, each another one, and a repeat says the same.
async fn assert_exact(it: &Deployment, invite: &str, told: &BTreeMap<String, Reply>) {
    let mut ids = BTreeMap::new();
    for (user, reply) in told {
        assert!([200, 201].contains(&reply.status), "{user}: {}", reply.text);
        ids.insert(reply.body["id"].to_string(), user);
    }
    assert_eq!(ids.len(), told.len());
    for (user, first) in told.iter().take(20) {
        let again = it.redeemed(0, user, "ledger").await;
        assert_eq!((again.status, &again.body["id"]), (200, &first.body["id"]), "{}", again.text);
    }
    it.assert_spent(0, invite, told.len()).await;
}

/// There and back, under load: everybody gets a use, nobody two, and nobody an error that is none.
async fn there_and_back(kind: Kind) {
    let mut it = Deployment::start(kind, 2).await;
    let invite = it.nodes[0].invite(CODE, "team", 1_000_000).await;
    let rush = Rush::start(&it.nodes.iter().collect::<Vec<_>>(), CLIENTS);
    rush.until_more(50).await;
    let (mut replaced, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..2 * effort() {
        let old = it.primary().await;
        it.redis.servers[old].kill().await.unwrap();
        let since = Instant::now();
        it.until_replaced(old).await;
        replaced.push(since.elapsed().as_millis());
        // More than can have been on their way.
        rush.until_more(2 * CLIENTS).await;
        answered.push(since.elapsed().as_millis());
        it.redis.servers[old].start_again().await.unwrap();
        it.until_takes_part(old).await;
        rush.until_more(50).await;
    }
    it.nodes[0].until_metric("redeemer_gate_moves_total", &[], |moves| moves > 0.5).await;
    // What docs/which-redis.md has: when everybody knew the new primary, and when people were served again.
    eprintln!("{kind:?}: replaced after {replaced:?} ms, people served after {answered:?} ms");
    assert_exact(&it, &invite, &rush.end().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_fail_over_and_back_under_load_and_nothing_is_lost() {
    there_and_back(Kind::Sentinel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_fails_over_and_back_under_load_and_nothing_is_lost() {
    there_and_back(Kind::Cluster).await;
}

/// A primary that stood still while a replica took over wakes up with requests that it never answered.
async fn wakes_up_late(kind: Kind) {
    let it = Deployment::start(kind, 2).await;
    let invite = it.nodes[0].invite(CODE, "team", 1_000_000).await;
    let rush = Rush::start(&it.nodes.iter().collect::<Vec<_>>(), CLIENTS);
    rush.until_more(50).await;
    let old = it.primary().await;
    it.redis.servers[old].signal(Signal::STOP).unwrap();
    it.until_replaced(old).await;
    rush.until_more(50).await;
    it.redis.servers[old].signal(Signal::CONT).unwrap();
    it.until_takes_part(old).await;
    rush.until_more(50).await;
    assert_exact(&it, &invite, &rush.end().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_of_sentinels_that_wakes_up_late_changes_nothing() {
    wakes_up_late(Kind::Sentinel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_of_a_cluster_that_wakes_up_late_changes_nothing() {
    wakes_up_late(Kind::Cluster).await;
}

/// The replicas miss ten grants that somebody was told of, and one of them takes over. The nodes know of them.
async fn missed_writes(kind: Kind) {
    let mut it = Deployment::start(kind, 1).await;
    let invite = it.nodes[0].invite(CODE, "team", 15).await;
    for number in 0..5 {
        let reply = it.redeemed(0, &format!("early-{number}"), "replicated").await;
        // Again, where the replica was too slow at first.
        assert!([200, 201].contains(&reply.status), "{}", reply.text);
        assert_eq!(reply.body["durability"], "replicated");
    }
    let old = it.primary().await;
    let replicas = it.deafen(old).await;
    let mut told = Vec::new();
    for number in 0..10 {
        let reply = redeem(&it.nodes[0], &format!("missed-{number}"), "gate").await.unwrap();
        assert_eq!(reply.status, 201, "{}", reply.text);
        told.push(reply);
    }
    let late = redeem(&it.nodes[0], "missed-0", "replicated").await.unwrap();
    assert_eq!((late.code(), &late.body["reached"]), ("outcome_unknown", &json!("gate")));
    it.redis.servers[old].kill().await.unwrap();
    for number in replicas {
        it.redis.servers[number].signal(Signal::CONT).unwrap();
    }
    it.until_replaced(old).await;
    for (number, first) in told.iter().enumerate() {
        let again = it.redeemed(0, &format!("missed-{number}"), "ledger").await;
        assert_eq!((again.status, &again.body["id"]), (200, &first.body["id"]), "{}", again.text);
    }
    let refused = it.redeemed(0, "one-too-many", "gate").await;
    assert_eq!(refused.code(), "invite_exhausted", "{}", refused.text);
    it.assert_spent(0, &invite, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failover_of_sentinels_lost_the_nodes_bring_back() {
    missed_writes(Kind::Sentinel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failover_of_a_cluster_lost_the_nodes_bring_back() {
    missed_writes(Kind::Cluster).await;
}

/// A node that sees the old primary alone goes on asking it after a replica has taken over. What it told somebody stands,
/// the other side has what is left, and then the old primary serves nobody.
async fn cut_off(kind: Kind) {
    // The first node leads all the while: to the other one all is well, and it would let nobody else lead.
    let mut it = Deployment::start_with(kind, 1, Duration::from_mins(1)).await;
    let old = it.primary().await;
    let lonely = Settings { redis_url: Some(only(&it, kind, old).await), ..it.settings.clone() };
    let node = it.node(lonely).await;
    it.nodes.push(node);
    let invite = it.nodes[0].invite(CODE, "team", 10).await;
    let mut granted = Vec::new();
    for number in 0..4 {
        let reply = it.redeemed(number % 2, &format!("early-{number}"), "ledger").await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        granted.push(reply);
    }
    isolate(&it, kind, old).await;
    it.until_replaced(old).await;
    for number in 0..8 {
        granted.extend(redeem(&it.nodes[1], &format!("left-{number}"), "gate").await);
        granted.push(it.redeemed(0, &format!("right-{number}"), "ledger").await);
    }
    granted.retain(|reply| reply.status == 201);
    eventually("the old primary serves nobody", async || {
        redeem(&it.nodes[1], "late", "gate").await.is_some_and(|reply| reply.status == 503)
    })
    .await;
    let report = it.nodes[0].get("/v1/namespaces/default/redemptions?limit=100").await;
    let rows = report.body["data"].as_array().unwrap();
    assert_eq!(rows.len(), 10, "{}", report.text);
    for reply in granted {
        let stands = rows.iter().any(|row| row["id"] == reply.body["id"]);
        assert!(stands, "{} is not among {}", reply.text, report.text);
    }
    it.assert_spent(0, &invite, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_sentinels_do_not_see_any_more_is_left_by_everybody() {
    cut_off(Kind::Sentinel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_its_cluster_does_not_see_any_more_is_left_by_everybody() {
    cut_off(Kind::Cluster).await;
}

/// The URL with which a node sees this server alone, and goes on seeing it.
async fn only(it: &Deployment, kind: Kind, server: usize) -> String {
    let server = &it.redis.servers[server];
    if kind == Kind::Cluster {
        return format!("redis-cluster://{}", server.place());
    }
    let user = ["ACL", "SETUSER", "lonely", "on", ">hush", "~*", "&*", "+@all"];
    server.run::<()>(&user).await.unwrap();
    format!("redis://lonely:hush@{}", server.place())
}

/// Has the others take the primary for lost while it goes on serving whoever sees it alone.
async fn isolate(it: &Deployment, kind: Kind, old: usize) {
    let server = &it.redis.servers[old];
    if kind == Kind::Sentinel {
        // It answers nobody else: neither the sentinels nor the replicas.
        let mut connection = server.connect().await.unwrap();
        let mut off = redis::pipe();
        off.cmd("ACL").arg("SETUSER").arg("default").arg("off");
        off.cmd("CLIENT").arg("KILL").arg("USER").arg("default");
        let _: (String, i64) = off.query_async(&mut connection).await.unwrap();
        return;
    }
    let id: String = server.run(&["CLUSTER", "MYID"]).await.unwrap();
    let nodes: String = server.run(&["CLUSTER", "NODES"]).await.unwrap();
    let replica = nodes.lines().find(|line| line.contains("slave") && line.contains(&id)).unwrap();
    let replica = it.redis.servers.iter().find(|server| replica.contains(&server.place())).unwrap();
    // It knows nobody any more, and so it hears from nobody that it was replaced.
    for line in nodes.lines().filter(|line| !line.contains("myself")) {
        let other = line.split(' ').next().unwrap();
        server.run::<()>(&["CLUSTER", "FORGET", other]).await.unwrap();
    }
    replica.run::<()>(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await.unwrap();
}

/// Sixteen partitions have the cores of all three primaries.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_spread_over_the_primaries_of_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new(&PathBuf::from("redis-server"), directory.path());
    let mut redis = Redis::start(Kind::Cluster, &setup).unwrap();
    redis.wait().await.unwrap();
    let settings = Settings { redis_url: Some(redis.url(false, "")), ..Settings::default() };
    let _node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    eventually("every partition is open on its primary", async || {
        let mut open = Vec::new();
        for server in &redis.servers[..3] {
            let metas: Vec<String> = server.run(&["KEYS", "rdm:*:meta"]).await.unwrap();
            open.push(metas.len());
        }
        assert!(open.iter().all(|partitions| *partitions <= 6), "{open:?}");
        open.iter().sum::<usize>() == 16
    })
    .await;
}

/// A slot goes round the primaries of a cluster with everything in it, while users redeem.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_moves_under_load_and_everybody_gets_an_answer() {
    let it = Deployment::start(Kind::Cluster, 2).await;
    let invite = it.nodes[0].invite(CODE, "team", 1_000_000).await;
    let rush = Rush::start(&it.nodes.iter().collect::<Vec<_>>(), CLIENTS);
    rush.until_more(50).await;
    for turn in 0..3 * effort() as usize {
        it.redis.move_partition(&it.keys, it.partition, turn).await.unwrap();
        rush.until_more(50).await;
    }
    assert_exact(&it, &invite, &rush.end().await).await;
}

/// What the replicas have when their primary dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replicas {
    /// All but what is on its way.
    Follow,
    /// Nothing of what was told last.
    HaveMissedSome,
}

/// What a failover loses of what was told, by level, when the node that told it dies at the same moment: then nobody
/// brings it back.
async fn losses(kind: Kind, replicas: Replicas) {
    for level in ["gate", "replicated", "ledger"] {
        let (mut acknowledged, mut lost) = (0, 0);
        for _ in 0..effort() {
            let mut it = Deployment::start(kind, 1).await;
            it.nodes[0].invite(CODE, "team", 1_000_000).await;
            let told = Arc::new(std::sync::Mutex::new(BTreeMap::new()));
            let until_told = async |count: usize| {
                eventually("many were told", async || told.lock().unwrap().len() > count).await;
            };
            let url = it.nodes[0].request(Method::POST, "/v1/namespaces/default/redemptions");
            let clients = (0..16).map(|client| {
                let (request, told) = (url.try_clone().unwrap(), told.clone());
                tokio::spawn(async move {
                    for turn in 0.. {
                        let user = format!("user-{client}-{turn}");
                        let body = json!({"code": CODE, "user": user, "durability": level});
                        let request = request.try_clone().unwrap().header("idempotency-key", &user);
                        let Ok(reply) = send(json_body(request, &body)).await else { return };
                        if reply.status == 201 {
                            told.lock().unwrap().insert(user, reply.body["id"].clone());
                        }
                    }
                })
            });
            let clients: Vec<_> = clients.collect();
            until_told(300).await;
            let old = it.primary().await;
            let stopped =
                if replicas == Replicas::Follow { Vec::new() } else { it.deafen(old).await };
            // Without replicas nobody is told anything at that level.
            if !stopped.is_empty() && level != "replicated" {
                let now = told.lock().unwrap().len();
                until_told(now + 300).await;
            }
            let killed = it.redis.servers[old].signal(Signal::KILL);
            it.nodes[0].kill();
            killed.unwrap();
            join_all(clients).await;
            for number in stopped {
                it.redis.servers[number].signal(Signal::CONT).unwrap();
            }
            it.until_replaced(old).await;
            let node = it.node(it.settings.clone()).await;
            it.nodes[0] = node;
            let told = std::mem::take(&mut *told.lock().unwrap());
            acknowledged += told.len();
            for (user, id) in told {
                let again = it.redeemed(0, &user, "gate").await;
                lost += usize::from(again.body["id"] != id);
            }
        }
        let whose = if replicas == Replicas::Follow { "follow" } else { "have missed some" };
        eprintln!("{kind:?}, replicas {whose}, {level}: {acknowledged} acknowledged, {lost} lost");
        assert!(level == "gate" || lost == 0, "{level}: {lost} of {acknowledged}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_sentinels_that_takes_the_node_along_loses_nothing_above_level_gate() {
    losses(Kind::Sentinel, Replicas::Follow).await;
    losses(Kind::Sentinel, Replicas::HaveMissedSome).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_a_cluster_that_takes_the_node_along_loses_nothing_above_level_gate() {
    losses(Kind::Cluster, Replicas::Follow).await;
    losses(Kind::Cluster, Replicas::HaveMissedSome).await;
}
