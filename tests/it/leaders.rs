//! Leaders that die, are paused, or come into each other's way; with several nodes and one ledger.

use std::{sync::atomic::AtomicBool, time::Duration};

use redeemer::{
    domain::{Fence, Partition},
    gate::{
        close,
        rebuild::{Builder, RebuildError},
        survey,
    },
    recovery::Admission,
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    recovery::{Deployment, carry, contents},
    support::{
        eventually,
        ledger::{self, Sql},
        node::{Node, Settings, signal},
        redis::RedisServer,
        until_some,
    },
};

const AUDIT: &str = "/v1/namespaces/default/consistency";

/// Nodes that share a Redis and a ledger, and one invite, `LED`.
struct Nodes {
    all: Vec<Node>,
    redis: RedisServer,
    sql: Sql,
    settings: Settings,
    _directory: TempDir,
}

impl Nodes {
    async fn start(count: usize) -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let url = ledger::url_in(directory.path());
        let settings = Settings {
            redis_url: Some(redis.url()),
            ledger: Some(url.clone()),
            env: vec![
                ("REDEEMER_SYNC__LEASE_TTL_MS", "1000".to_owned()),
                // Comparing thirty thousand members takes a while where everything else is busy too.
                ("REDEEMER_HTTP__REQUEST_TIMEOUT_MS", "60000".to_owned()),
            ],
        };
        let mut nodes = Vec::new();
        for _ in 0..count {
            nodes.push(start(&settings).await);
        }
        nodes[0].invite("LED", "team", 1_000_000).await;
        let sql = Sql::connect(&url).await;
        Self { all: nodes, redis, sql, settings, _directory: directory }
    }

    /// The node that leads the partition of the namespace `default`, and its place among all.
    async fn leader(&mut self) -> usize {
        let Self { all: nodes, sql, .. } = self;
        until_some("somebody leads", async || {
            let owner = sql
                .texts(
                    "SELECT COALESCE(lease_owner, '') FROM partitions JOIN namespaces
                         ON namespaces.partition = partitions.partition
                     WHERE namespaces.name = 'default'",
                )
                .await;
            let pid: u32 = owner.first()?.split('-').next()?.parse().ok()?;
            nodes.iter().position(|node| node.pid() == pid)
        })
        .await
    }

    async fn grant(&self, node: usize, users: std::ops::Range<usize>) {
        for number in users {
            let user = format!("user-{number}");
            let reply = until_some("the gate answers", async || {
                let reply = self.all[node].redeem("LED", &user).await;
                (reply.status != 503).then_some(reply)
            })
            .await;
            assert_eq!(reply.status, 201, "{}", reply.text);
        }
    }

    /// Every user has one redemption in the ledger, and both sides agree.
    async fn all_is_well(&mut self, node: usize, users: i64) {
        let sql = &mut self.sql;
        eventually("the ledger has them all", async || {
            sql.number("SELECT COUNT(*) FROM redemptions").await == users
        })
        .await;
        let of_invite = "SELECT uses FROM invites WHERE code = 'LED'";
        assert_eq!(sql.number(of_invite).await, users);
        let report = self.all[node].get(AUDIT).await;
        assert_eq!(report.body["consistent"], true, "{}", report.text);
    }
}

async fn start(settings: &Settings) -> Node {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_replaced_and_nothing_is_lost() {
    let mut it = Nodes::start(2).await;
    let leader = it.leader().await;
    let other = 1 - leader;
    it.grant(leader, 0..50).await;
    it.all[leader].kill();
    it.grant(other, 50..100).await;
    it.all_is_well(other, 100).await;
    assert_eq!(it.leader().await, other);
}

/// The ledger has them, the outbox still does too: the next leader passes over what is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_between_its_commit_and_its_trim_leaves_nothing_twice() {
    let mut it = Nodes::start(1).await;
    it.redis.run::<()>(&["ACL", "SETUSER", "default", "-xtrim"]).await;
    it.grant(0, 0..20).await;
    let sql = &mut it.sql;
    eventually("some are committed", async || {
        sql.number("SELECT COUNT(*) FROM redemptions").await > 0
    })
    .await;
    it.all[0].kill();
    it.redis.run::<()>(&["ACL", "SETUSER", "default", "+xtrim"]).await;
    it.all[0] = start(&it.settings).await;
    it.grant(0, 20..25).await;
    it.all_is_well(0, 25).await;
    eventually("the outbox is empty", async || {
        let keys: Vec<String> = it.redis.run(&["KEYS", "*:outbox"]).await;
        let mut left = 0;
        for key in keys {
            left += it.redis.run::<u64>(&["XLEN", &key]).await;
        }
        left == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_paused_and_wakes_up_late_changes_nothing() {
    let mut it = Nodes::start(2).await;
    for round in 0..3 {
        let leader = it.leader().await;
        let other = 1 - leader;
        let first = round * 60;
        it.grant(leader, first..first + 10).await;
        // In the middle of a batch: it has read it, and waits for the ledger. (One that has SQLite's lock when it is
        // paused keeps it from everybody; PostgreSQL ends its transaction.)
        it.sql.hold().await;
        it.grant(leader, first + 10..first + 20).await;
        signal(it.all[leader].pid(), "STOP");
        it.sql.let_go().await;
        it.grant(other, first + 20..first + 40).await;
        let Nodes { sql, all: nodes, .. } = &mut it;
        let pid = nodes[other].pid().to_string();
        eventually("the other one leads everything", async || {
            let owners =
                sql.texts("SELECT DISTINCT COALESCE(lease_owner, '') FROM partitions").await;
            owners.iter().all(|owner| owner.starts_with(&format!("{pid}-")))
        })
        .await;
        signal(it.all[leader].pid(), "CONT");
        it.grant(leader, first + 40..first + 60).await;
        it.all_is_well(other, i64::try_from(first).unwrap() + 60).await;
    }
}

/// Enough members that the rebuild is under way for a while; whoever builds is killed then.
#[tokio::test(flavor = "multi_thread")]
async fn a_builder_killed_in_the_middle_is_replaced_by_another() {
    let mut it = Nodes::start(2).await;
    it.grant(0, 0..1).await;
    it.all_is_well(0, 1).await;
    // Members who joined another way, straight into the ledger: a rebuild loads them all.
    let insert = "INSERT INTO members SELECT 'default', 'member-' || n, 'team', partition, NULL, 0, '*', 1, 1
         FROM (WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 30000)
               SELECT n FROM numbers) AS numbers, namespaces WHERE name = 'default'";
    it.sql.execute(insert).await;
    let leader = it.leader().await;
    let metas: Vec<String> = it.redis.run(&["KEYS", "*:meta"]).await;
    let settings: Vec<String> = it.redis.run(&["KEYS", "*:default:settings"]).await;
    let tag = settings[0].split(":default").next().unwrap().to_owned();
    let meta = metas.into_iter().find(|meta| meta.starts_with(&tag)).unwrap();
    it.redis.run::<()>(&["FLUSHALL"]).await;
    eventually("somebody builds", async || {
        it.redis.run::<Option<u64>>(&["HGET", &meta, "chunk"]).await.is_some_and(|chunk| chunk > 2)
    })
    .await;
    it.all[leader].kill();
    assert!(it.redis.run::<Option<String>>(&["HGET", &meta, "builder"]).await.is_some());
    let other = 1 - leader;
    it.grant(other, 1..5).await;
    it.all_is_well(other, 5).await;
    let members = it.all[other].get("/v1/namespaces/default/members/member-30000").await;
    assert_eq!((members.status, &members.body["memberships"][0]["group"]), (200, &json!("team")));
}

/// What a partition needs to be built, as the one who is about to build it has found it.
async fn closed(it: &Deployment) -> Fence {
    let bench = &it.bench;
    let lineage = survey::run(&bench.gate, Partition(0)).await.unwrap().lineage;
    let epoch = bench.ledger.close_partition(&bench.lease, 0, "test").await.unwrap().unwrap();
    let next = Fence { deployment: bench.deployment.id.clone(), lineage, epoch };
    close::run(&bench.gate, Partition(0), &next, false).await.unwrap();
    next
}

#[tokio::test]
async fn of_two_builders_at_once_the_later_one_wins_and_the_gate_is_whole() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    carry(&it.bench).await;
    let before = contents(&it.bench).await;
    let alive = AtomicBool::new(true);
    let first_fence = closed(&it).await;
    let first = Builder::begin(&it.bench.gate, Partition(0), first_fence, "1", false, &alive);
    let mut first = first.await.unwrap();
    let second_fence = closed(&it).await;
    let second = Builder::begin(&it.bench.gate, Partition(0), second_fence, "2", false, &alive);
    let second = second.await.unwrap();
    // The first one goes on as if nothing had happened.
    let settings = it.bench.ledger.namespace(&it.namespace).await.unwrap().unwrap();
    first.namespace(&it.namespace, &settings).await.unwrap();
    let cursor = it.ledger_cursor().await;
    assert!(matches!(first.finish(cursor).await, Err(RebuildError::Moved)));
    // The second one dies; whoever comes next begins again.
    drop(second);
    assert!(matches!(it.bench.try_admit().await, Admission::Open(..)));
    it.bench.admit().await;
    assert_eq!(contents(&it.bench).await, before);
    it.assert_replayed(0..5).await;
}

#[tokio::test]
async fn a_second_failover_in_the_middle_of_a_rebuild_begins_it_again() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    carry(&it.bench).await;
    let before = contents(&it.bench).await;
    let alive = AtomicBool::new(true);
    let fence = closed(&it).await;
    let builder = Builder::begin(&it.bench.gate, Partition(0), fence, "1", false, &alive);
    let builder = builder.await.unwrap();
    it.bench.redis.run::<()>(&["DEBUG", "CHANGE-REPL-ID"]).await;
    let cursor = it.ledger_cursor().await;
    assert!(matches!(builder.finish(cursor).await, Err(RebuildError::Moved)));
    it.bench.admit().await;
    assert_eq!(contents(&it.bench).await, before);
    it.assert_replayed(0..5).await;
}

/// Leases end by the clock of the database, not by that of a node.
#[tokio::test]
async fn a_lease_from_a_clock_that_was_ahead_counts_as_run_out() {
    let directory = tempfile::tempdir().unwrap();
    let url = ledger::url_in(directory.path());
    let ledger = ledger::open(&url).await;
    ledger.deployment(1, uuid::Uuid::from_u128(1)).await.unwrap();
    let ttl = Duration::from_secs(4);
    ledger.take_leases("from the future", ttl, false).await.unwrap();
    let mut sql = Sql::connect(&url).await;
    sql.execute("UPDATE partitions SET lease_expires_at = lease_expires_at + 86400000").await;
    assert!(ledger.has_free_leases(ttl).await.unwrap());
    assert_eq!(ledger.take_leases("now", ttl, false).await.unwrap().len(), 1);
}
