//! What was told at level `gate` and Redis lost before the ledger had it: the nodes that told it bring it back.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    eventually,
    ledger::{self, Sql},
    node::{Node, Reply, Settings, json_body, send, signal},
    redis::RedisServer,
    until_some,
};

const AUDIT: &str = "/v1/namespaces/default/consistency";

/// Nodes that share a Redis and a ledger, and one invite, `TOLD`.
struct Deployment {
    nodes: Vec<Node>,
    redis: RedisServer,
    sql: Sql,
    _directory: TempDir,
}

/// Where every node lives: one that gets no processor for a while must not be taken for dead.
const ALIVE_MS: u32 = 60_000;
/// Where one does not, and the others wait for it as long.
const DEAD_AFTER_MS: u32 = 4000;

impl Deployment {
    /// A node counts as alive for `ttl_ms` since it was last seen.
    async fn start(count: usize, uses: u64, ttl_ms: u32) -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let url = ledger::url_in(directory.path());
        let settings = Settings {
            redis_url: Some(redis.url()),
            ledger: Some(url.clone()),
            env: vec![
                ("REDEEMER_SYNC__LEASE_TTL_MS", ttl_ms.to_string()),
                // Whoever holds the ledger in these tests must not be taken for an error.
                ("REDEEMER_LEDGER__BUSY_TIMEOUT_MS", "60000".to_owned()),
                // One leader, so that it can be seen waiting.
                ("REDEEMER_GATE__PARTITIONS", "1".to_owned()),
            ],
        };
        let mut nodes = Vec::new();
        for _ in 0..count {
            let settings = settings.clone();
            let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
            nodes.push(node);
        }
        nodes[0].invite("TOLD", "team", uses).await;
        let mut sql = Sql::connect(&url).await;
        until_some("the ledger has the invite", async || {
            (sql.number("SELECT COUNT(*) FROM invites").await == 1).then_some(())
        })
        .await;
        // So it takes the first redemption, and that alone; then it waits for the ledger.
        eventually("the leader waits for a change", async || {
            let clients: String = redis.run(&["INFO", "clients"]).await;
            clients.lines().any(|line| line == "blocked_clients:1")
        })
        .await;
        Self { nodes, redis, sql, _directory: directory }
    }

    /// Has users redeem at this node while the ledger can not take anything, and returns what they were told.
    async fn tell(&self, node: usize, users: std::ops::Range<usize>) -> Vec<(String, Value)> {
        let mut told = Vec::new();
        for number in users {
            let user = format!("user-{number}");
            let reply = self.nodes[node].redeem("TOLD", &user).await;
            assert_eq!(reply.status, 201, "{}", reply.text);
            told.push((user, reply.body["id"].clone()));
        }
        told
    }

    /// Posts with the key `K`, until the gate answers.
    async fn post(&self, node: usize, path: &str, body: &Value) -> Reply {
        let path = format!("/v1/namespaces/default/{path}");
        until_some("the gate answers", async || {
            let request = self.nodes[node].request(reqwest::Method::POST, &path);
            let request = json_body(request.header("Idempotency-Key", "K"), body);
            let reply = send(request).await.unwrap();
            (reply.status != 503).then_some(reply)
        })
        .await
    }

    async fn redeemed(&self, node: usize, user: &str) -> Reply {
        until_some("the gate answers", async || {
            let reply = self.nodes[node].redeem("TOLD", user).await;
            (reply.status != 503).then_some(reply)
        })
        .await
    }

    async fn all_hold(&self, node: usize, told: &[(String, Value)]) {
        for (user, id) in told {
            let again = self.redeemed(node, user).await;
            assert_eq!((again.status, &again.body["id"]), (200, id), "{}", again.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_emptied_redis_had_told_comes_back_from_the_nodes() {
    let mut it = Deployment::start(2, 100, ALIVE_MS).await;
    it.sql.hold().await;
    let mut told = it.tell(0, 0..20).await;
    told.extend(it.tell(1, 20..40).await);
    it.redis.run::<()>(&["FLUSHALL"]).await;
    it.sql.let_go().await;
    it.all_hold(0, &told).await;
    let new = it.redeemed(1, "late").await;
    assert_eq!((new.status, &new.body["use"]), (201, &json!(41)), "{}", new.text);
    // What the leader had read before may have come over by itself; the rest has not.
    let applied = "SELECT COUNT(*) FROM claims WHERE outcome = 'applied'";
    assert!(it.sql.number(applied).await > 0);
    let mut counted = 0.0;
    for node in &it.nodes {
        counted += node.metric("redeemer_claims_total", &[]).await.unwrap();
    }
    assert!(counted > 0.5, "{counted}");
    let report = it.nodes[0].get(AUDIT).await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

/// Redis loses a hold and the redemption that spent it. Who confirms it again must not hear that there is nothing, but of
/// the use that is spent; whichever node is left, and whichever way it was asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_spent_reservation_that_redis_has_lost_is_answered_by_what_spent_it() {
    for (repeats, late) in [(false, false), (true, false), (false, true)] {
        let ttl_ms = if repeats || late { DEAD_AFTER_MS } else { ALIVE_MS };
        let mut it = Deployment::start(2, 100, ttl_ms).await;
        it.sql.hold().await;
        // This one alone can the leader have read already.
        it.tell(0, 0..1).await;
        let body = json!({"code": "TOLD", "user": "holder"});
        let held = it.post(1, "reservations", &body).await.body["id"].clone();
        let confirm = format!("reservations/{}/confirm", held.as_str().unwrap());
        let spent = it.post(1, &confirm, &json!({})).await;
        assert_eq!(spent.status, 201, "{}", spent.text);
        if repeats {
            // Told again by the other node, which alone is left to tell of it.
            let body = json!({"code": "TOLD", "user": "holder", "reservation": held});
            let again = it.post(0, "redemptions", &body).await;
            assert_eq!((again.status, &again.body["id"]), (200, &spent.body["id"]));
            it.nodes[1].kill();
        }
        if late {
            signal(it.nodes[1].pid(), "STOP");
        }
        it.redis.run::<()>(&["FLUSHALL"]).await;
        it.sql.let_go().await;
        assert!(it.redeemed(0, "late").await.status < 300);
        if late {
            signal(it.nodes[1].pid(), "CONT");
        }
        let node = usize::from(!repeats);
        if late {
            // It asks for the use again, by and by.
            until_some("the ledger has the redemption", async || {
                let counted = "SELECT COUNT(*) FROM redemptions WHERE user_id = 'holder'";
                (it.sql.number(counted).await == 1).then_some(())
            })
            .await;
        }
        let again = it.post(node, &confirm, &json!({})).await;
        assert_eq!((again.status, &again.body["id"]), (200, &spent.body["id"]), "{}", again.text);
    }
}

/// Its own grants are lost: that is what level `gate` does not promise. The others' are not, and nobody waits for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_not_waited_for_longer_than_it_counts_as_alive() {
    let mut it = Deployment::start(2, 100, DEAD_AFTER_MS).await;
    it.sql.hold().await;
    let kept = it.tell(0, 0..10).await;
    let lost = it.tell(1, 10..20).await;
    it.nodes[1].kill();
    it.redis.run::<()>(&["FLUSHALL"]).await;
    it.sql.let_go().await;
    it.all_hold(0, &kept).await;
    for (user, id) in lost {
        let anew = it.redeemed(0, &user).await;
        assert_eq!(anew.status, 201, "{}", anew.text);
        assert_ne!(anew.body["id"], id);
    }
    let report = it.nodes[0].get(AUDIT).await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

/// Three uses: one node told two users of theirs and was stopped; while it was away two others got a use. What it had
/// told is decided anew when it wakes up: one keeps the use, the other's loss is written down.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_claims_too_late_is_decided_by_the_gate() {
    let mut it = Deployment::start(2, 3, DEAD_AFTER_MS).await;
    it.sql.hold().await;
    // The leader must not read both of what is told now: it waits for the first, and has no time for more.
    signal(it.nodes[0].pid(), "STOP");
    let told = it.tell(1, 0..2).await;
    signal(it.nodes[1].pid(), "STOP");
    it.redis.run::<()>(&["FLUSHALL"]).await;
    signal(it.nodes[0].pid(), "CONT");
    it.sql.let_go().await;
    for user in ["quick-1", "quick-2"] {
        assert_eq!(it.redeemed(0, user).await.status, 201);
    }
    signal(it.nodes[1].pid(), "CONT");
    let lost = "SELECT COUNT(*) FROM claims WHERE outcome LIKE 'lost: %'";
    let Deployment { sql, .. } = &mut it;
    until_some("the loss is written down", async || (sql.number(lost).await == 1).then_some(()))
        .await;
    eventually("the loss is counted", async || {
        let mut counted = 0.0;
        for node in &it.nodes {
            counted += node.metric("redeemer_lost_acknowledgements_total", &[]).await.unwrap();
        }
        counted > 0.5
    })
    .await;
    let mut statuses = Vec::new();
    for (user, id) in &told {
        let again = it.redeemed(0, user).await;
        statuses.push(again.status);
        assert!(again.status != 200 || again.body["id"] == *id, "{}", again.text);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 410]);
    eventually("the audit tells of it", async || {
        let report = it.nodes[0].get(AUDIT).await;
        let broken = report.body["broken_laws"].as_array().cloned().unwrap_or_default();
        broken.len() == 1
            && broken[0].as_str().is_some_and(|text| text.contains("is lost"))
            && report.body["differences_count"] == 0
    })
    .await;
}
