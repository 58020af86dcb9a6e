//! What goes wrong between a request and its answer: no use is lost or spent twice, and no answer is false.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::support::{
    eventually, lasting_port,
    ledger::{self, Sql},
    node::{Node, Reply, Settings},
    postgres::PostgresServer,
    proxy::{Fault, Proxy},
    redis::RedisServer,
    until_some,
};

/// A node whose Redis lies behind a proxy.
struct Proxied {
    node: Node,
    proxy: Proxy,
    redis: RedisServer,
}

impl Proxied {
    async fn start(env: &[(&'static str, &str)]) -> Self {
        let redis = RedisServer::start().await;
        let proxy = Proxy::start(redis.socket()).await;
        let env = env.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let settings = Settings { redis_url: Some(proxy.url()), env, ..Settings::default() };
        let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
        Self { node, proxy, redis }
    }

    async fn uses(&self, code: &str) -> u64 {
        let keys: Vec<String> =
            self.redis.run(&["KEYS", &format!("*:default:invite:{code}")]).await;
        self.redis.run(&["HGET", &keys[0], "uses"]).await
    }
}

/// Short enough that tests need not wait, long enough for a busy machine.
const QUICK: [(&str, &str); 2] =
    [("REDEEMER_REDIS__REPLY_TIMEOUT_MS", "200"), ("REDEEMER_GATE__DEADLINE_MS", "1000")];

#[tokio::test(flavor = "multi_thread")]
async fn when_the_reply_is_lost_the_node_asks_again_and_one_use_is_spent() {
    let patient = [
        ("REDEEMER_REDIS__REPLY_TIMEOUT_MS", "1000"),
        ("REDEEMER_GATE__DEADLINE_MS", "59000"),
        ("REDEEMER_HTTP__REQUEST_TIMEOUT_MS", "60000"),
    ];
    let it = Arc::new(Proxied::start(&patient).await);
    it.node.invite("LOST", "team", 100).await;
    it.node.redeem("LOST", "warm").await;
    for (turn, fault) in [Fault::ResetAfterForwarding, Fault::CutMidFrame, Fault::SwallowReplies]
        .into_iter()
        .enumerate()
    {
        let (user, key) = (format!("user-{turn}"), format!("key-{turn}"));
        let spent = turn as u64 + 1;
        it.proxy.set(fault);
        let asked = tokio::spawn({
            let (it, user, key) = (it.clone(), user.clone(), key.clone());
            async move { it.node.try_redeem("LOST", &user, &key).await.unwrap() }
        });
        eventually("its reply is lost", async || it.proxy.has_spoilt("granted")).await;
        assert_eq!(it.uses("LOST").await, spent + 1);
        it.proxy.set(Fault::None);
        let told = asked.await.unwrap();
        assert_eq!(
            (told.status, &told.body["replayed"]),
            (201, &json!(false)),
            "{fault:?}: {}",
            told.text
        );
        assert_eq!(told.header("idempotency-key"), key);
        let again = it.node.try_redeem("LOST", &user, &key).await.unwrap();
        assert_eq!((again.status, &again.body["id"]), (200, &told.body["id"]));
        assert_eq!(it.uses("LOST").await, spent + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_called_unknown_and_the_same_key_gets_the_truth() {
    let it = Proxied::start(&QUICK).await;
    it.node.invite("UNKNOWN", "team", 100).await;
    it.node.redeem("UNKNOWN", "warm").await;
    it.proxy.set(Fault::SwallowReplies);
    let told = it.node.try_redeem("UNKNOWN", "alice", "key-1").await.unwrap();
    assert_eq!((told.status, told.code()), (503, "outcome_unknown"), "{}", told.text);
    assert_eq!(told.header("idempotency-key"), "key-1");
    assert!(!told.header("retry-after").is_empty());
    assert_eq!(told.body["reached"], "none");
    it.proxy.set(Fault::None);
    let truth = until_some("the gate is reachable again", async || {
        let again = it.node.try_redeem("UNKNOWN", "alice", "key-1").await.unwrap();
        (again.status != 503).then_some(again)
    })
    .await;
    assert_eq!(
        (truth.status, &truth.body["replayed"], &truth.body["use"]),
        (200, &json!(true), &json!(2))
    );
    assert_eq!(it.uses("UNKNOWN").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_left_is_told_so_and_spends_nothing() {
    let it = Proxied::start(&QUICK).await;
    it.node.invite("UNSENT", "team", 100).await;
    it.node.redeem("UNSENT", "warm").await;
    it.proxy.set(Fault::Refuse);
    // What was under way when the connections broke may be unknown; what comes after is not.
    let told = until_some("the node knows that it can not reach Redis", async || {
        let reply = it.node.redeem("UNSENT", "alice").await;
        assert_eq!(reply.status, 503, "{}", reply.text);
        (reply.code() == "gate_unavailable").then_some(reply)
    })
    .await;
    assert!(!told.header("idempotency-key").is_empty());
    eventually("the node is not ready", async || it.node.get("/readyz").await.status == 503).await;
    it.proxy.set(Fault::None);
    eventually("the node is ready again", async || it.node.get("/readyz").await.status == 200)
        .await;
    eventually("alice gets in", async || {
        matches!(it.node.redeem("UNSENT", "alice").await.status, 200 | 201)
    })
    .await;
    assert_eq!(it.uses("UNSENT").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_leaving_a_late_retry_gets_the_old_answer_and_spends_nothing() {
    let node = tokio::task::spawn_blocking(Node::embedded).await.unwrap();
    let id = node.invite("LATE", "team", 5).await;
    let first = node.try_redeem("LATE", "alice", "key-1").await.unwrap();
    assert_eq!(first.status, 201);
    assert_eq!(node.delete("/v1/namespaces/default/members/alice/team").await.status, 204);
    let late = node.try_redeem("LATE", "alice", "key-1").await.unwrap();
    assert_eq!((late.status, &late.body["id"]), (200, &first.body["id"]));
    assert_eq!(node.get("/v1/namespaces/default/members/alice").await.code(), "member_not_found");
    let invite = node.get(&format!("/v1/namespaces/default/invites/{id}")).await;
    assert_eq!(invite.body["uses"], 1, "leaving keeps the use spent");
    // With a new key the user redeems anew.
    let second = node.try_redeem("LATE", "alice", "key-2").await.unwrap();
    assert_eq!((second.status, &second.body["use"]), (201, &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_is_used_again_is_a_new_invite_that_nothing_late_touches() {
    let node = tokio::task::spawn_blocking(Node::embedded).await.unwrap();
    let old = node.invite("AGAIN", "old", 1).await;
    let path = |id: &str| format!("/v1/namespaces/default/invites/{id}");
    let taken = node
        .post(
            "/v1/namespaces/default/invites",
            &json!({"code": "AGAIN", "group": "x", "max_uses": 1}),
        )
        .await;
    assert_eq!(
        (taken.status, taken.code(), &taken.body["invite"]),
        (409, "code_taken", &json!(old))
    );
    let first = node.try_redeem("AGAIN", "alice", "key-1").await.unwrap();
    assert_eq!(first.status, 201);
    let new = node.invite("AGAIN", "new", 2).await;
    assert_ne!(old, new);

    let late = node.try_redeem("AGAIN", "alice", "key-1").await.unwrap();
    assert_eq!((late.status, &late.body["invite"]), (200, &json!(old)));
    assert_eq!(node.redeem("AGAIN", "bob").await.body["invite"], json!(new));
    // The old one is found by its id and can be changed, but can not take its code back.
    assert_eq!(node.get(&path(&old)).await.body["state"], "exhausted");
    let raised = node.send(reqwest::Method::PATCH, &path(&old), &json!({"max_uses": 5})).await;
    assert_eq!((raised.status, raised.code()), (409, "code_taken"));
    let changed =
        node.send(reqwest::Method::PATCH, &path(&old), &json!({"metadata": {"a": 1}})).await;
    assert_eq!((changed.status, &changed.body["uses"]), (200, &json!(1)));
    let shown = node.get(&path(&new)).await;
    assert_eq!((&shown.body["uses"], &shown.body["metadata"]), (&json!(1), &Value::Null));
    let by_code = node.get("/v1/namespaces/default/invites/by-code/again").await;
    assert_eq!(by_code.body["id"], json!(new));
}

/// Lets users redeem, one after the other on several tasks, until it is told to stop; keeps what each was told.
struct Load {
    told: Arc<Mutex<BTreeMap<String, Reply>>>,
    stop: tokio_util::sync::CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(node: &Arc<Node>, code: &'static str) -> Self {
        let (told, stop) =
            (Arc::<Mutex<BTreeMap<_, _>>>::default(), tokio_util::sync::CancellationToken::new());
        let task = |number: usize| {
            let (node, told, stop) = (node.clone(), told.clone(), stop.clone());
            tokio::spawn(async move {
                let mut turn = 0;
                while !stop.is_cancelled() {
                    let user = format!("load-{number}-{turn}");
                    turn += 1;
                    if let Some(reply) = node.try_redeem(code, &user, &user).await {
                        told.lock().await.insert(user, reply);
                    }
                }
            })
        };
        let tasks = (0..8).map(task).collect();
        Self { told, stop, tasks }
    }

    async fn count(&self) -> usize {
        self.told.lock().await.len()
    }

    async fn stop(self) -> BTreeMap<String, Reply> {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        Arc::into_inner(self.told).unwrap().into_inner()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_flush_under_load_heals() {
    let redis = RedisServer::start().await;
    let settings = Settings { redis_url: Some(redis.url()), ..Settings::default() };
    let node = Arc::new(tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap());
    let id = node.invite("FLUSHED", "team", 1_000_000).await;
    let load = Load::start(&node, "FLUSHED");
    for turn in 1..=20 {
        eventually("more have redeemed", async || load.count().await > turn * 10).await;
        redis.run::<()>(&["SCRIPT", "FLUSH"]).await;
    }
    let told = load.stop().await;
    assert!(told.values().all(|reply| reply.status == 201), "{told:?}");
    let invite = node.get(&format!("/v1/namespaces/default/invites/{id}")).await;
    assert_eq!(invite.body["uses"], told.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_redis_serves_nobody_until_it_is_rebuilt_from_the_ledger() {
    let redis = RedisServer::start().await;
    // Nobody is to hear of an unknown outcome because a busy machine has not replied for a second.
    let env = vec![("REDEEMER_REDIS__REPLY_TIMEOUT_MS", "4000".to_owned())];
    let settings = Settings { redis_url: Some(redis.url()), env, ..Settings::default() };
    let node = Arc::new(tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap());
    let id = node.invite("EMPTIED", "team", 1_000_000).await;
    let load = Load::start(&node, "EMPTIED");
    eventually("some have redeemed", async || load.count().await > 100).await;
    let before = load.stop().await;
    assert!(before.values().all(|reply| reply.status == 201));
    let list = format!("/v1/namespaces/default/redemptions?invite={id}&limit=1000");
    eventually("the ledger has them", async || {
        node.get(&list).await.body["data"].as_array().unwrap().len() == before.len().min(1000)
    })
    .await;

    redis.run::<()>(&["FLUSHALL"]).await;
    let load = Load::start(&node, "EMPTIED");
    eventually("some have redeemed again", async || {
        load.told.lock().await.values().filter(|reply| reply.status == 201).count() > 100
    })
    .await;
    let after = load.stop().await;
    // The load asks for the same users again: whoever had a use keeps it, and gets no other.
    for (user, reply) in &after {
        match (reply.status, before.get(user)) {
            (503, _) => assert_eq!(reply.code(), "fenced", "{}", reply.text),
            (200, Some(first)) => assert_eq!(reply.body["id"], first.body["id"]),
            (201, None) => {}
            other => panic!("{user}: {other:?}: {}", reply.text),
        }
    }
    let granted = before.len() + after.values().filter(|reply| reply.status == 201).count();
    let invite = node.get(&format!("/v1/namespaces/default/invites/{id}")).await;
    assert_eq!(invite.body["uses"], granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_replica_that_missed_ten_grants_is_not_served_before_admission() {
    let port = lasting_port();
    let primary =
        RedisServer::start_with(&["--port", &port.to_string(), "--bind", "127.0.0.1"]).await;
    let replica = RedisServer::start_with(&["--replicaof", &format!("127.0.0.1 {port}")]).await;
    let proxy = Proxy::start(primary.socket()).await;
    let settings = Settings { redis_url: Some(proxy.url()), ..Settings::default() };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    let id = node.invite("FAILOVER", "team", 1000).await;
    for number in 0..5 {
        assert_eq!(node.redeem("FAILOVER", &format!("early-{number}")).await.status, 201);
    }
    let uses = async |redis: &RedisServer| {
        let keys: Vec<String> = redis.run(&["KEYS", "*:default:invite:FAILOVER"]).await;
        match keys.first() {
            Some(key) => redis.run::<u64>(&["HGET", key, "uses"]).await,
            None => 0,
        }
    };
    eventually("the replica has five grants", async || uses(&replica).await == 5).await;

    // The replica misses ten grants, and is promoted.
    replica.run::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    let mut lost = Vec::new();
    for number in 0..10 {
        let reply = node.redeem("FAILOVER", &format!("lost-{number}")).await;
        assert_eq!(reply.status, 201);
        lost.push(reply);
    }
    let list = format!("/v1/namespaces/default/redemptions?invite={id}");
    eventually("the ledger has all", async || {
        node.get(&list).await.body["data"].as_array().unwrap().len() == 15
    })
    .await;
    proxy.retarget(replica.socket());

    for (number, first) in lost.iter().enumerate() {
        let user = format!("lost-{number}");
        let again = until_some("the user gets an answer", async || {
            let reply = node.redeem("FAILOVER", &user).await;
            let known = reply.status != 503;
            assert!(
                known || ["fenced", "outcome_unknown", "gate_unavailable"].contains(&reply.code()),
                "{}",
                reply.text
            );
            known.then_some(reply)
        })
        .await;
        assert_eq!((again.status, &again.body["id"]), (200, &first.body["id"]), "{}", again.text);
    }
    assert_eq!(uses(&replica).await, 15);
    assert_eq!(node.redeem("FAILOVER", "late").await.body["use"], 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_of_the_node_every_answer_that_a_client_saw_is_in_the_ledger() {
    let directory = tempfile::Builder::new().prefix("rdm-kill-").tempdir().unwrap();
    let settings = Settings::default();
    let mut answered = BTreeMap::new();
    for round in 0..3 {
        let path = directory.path().to_owned();
        let started = settings.clone();
        let node =
            tokio::task::spawn_blocking(move || Node::start_at(&path, &started)).await.unwrap();
        if round == 0 {
            node.invite("KILLED", "team", 1_000_000).await;
        }
        let pid = node.pid();
        let node = Arc::new(node);
        let load = Load::start(&node, "KILLED");
        eventually("some have redeemed", async || load.count().await > (round + 1) * 150).await;
        crate::support::node::signal(pid, "KILL");
        for (user, reply) in load.stop().await {
            let first = round == 0 || !answered.contains_key(&user);
            assert_eq!(reply.status, if first { reply.status } else { 200 }, "{}", reply.text);
            assert!(matches!(reply.status, 200 | 201), "{}", reply.text);
            let known = answered.entry(user).or_insert_with(|| reply.body["id"].clone());
            assert_eq!(*known, reply.body["id"], "a repeat gets the first redemption");
        }
        std::mem::forget(node);
    }
    let path = directory.path().to_owned();
    let node = tokio::task::spawn_blocking(move || Node::start_at(&path, &Settings::default()))
        .await
        .unwrap();
    assert_eq!(node.stop().await, 0, "it drains and stops");
    check_ledger(&ledger::sqlite_url_in(directory.path()), &answered).await;
}

/// Every answer is there, nothing twice, and the positions have no gap within an epoch.
async fn check_ledger(url: &str, answered: &BTreeMap<String, Value>) {
    use sqlx::Row as _;
    let mut sql = Sql::connect(url).await;
    let rows = sql
        .rows("SELECT CAST(id AS TEXT) AS id, user_id, ordinal, epoch, seq FROM redemptions ORDER BY ordinal")
        .await;
    let in_ledger: BTreeMap<String, String> =
        rows.iter().map(|row| (row.get("user_id"), row.get("id"))).collect();
    assert_eq!(in_ledger.len(), rows.len(), "no user has two");
    for (user, id) in answered {
        assert_eq!(in_ledger.get(user).map(String::as_str), id.as_str(), "{user}");
    }
    let ordinals: Vec<i64> = rows.iter().map(|row| row.get("ordinal")).collect();
    assert_eq!(ordinals, (1..=i64::try_from(rows.len()).unwrap()).collect::<Vec<_>>());
    let uses = sql.number("SELECT uses FROM invites WHERE code = 'KILLED'").await;
    assert_eq!(uses, i64::try_from(rows.len()).unwrap());
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    for row in &rows {
        let (epoch, seq): (i64, i64) = (row.get("epoch"), row.get("seq"));
        if let Some(before) = last.insert(epoch, seq) {
            assert_eq!(seq, before + 1, "a gap in epoch {epoch}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_embedded_redis_is_started_again_and_nothing_is_lost() {
    let node = tokio::task::spawn_blocking(Node::embedded).await.unwrap();
    node.invite("DEAD", "team", 100).await;
    let first = node.redeem("DEAD", "alice").await;
    assert_eq!(first.status, 201);
    let pid = std::fs::read_to_string(node.directory().join("redis/redis.pid")).unwrap();
    crate::support::node::signal(pid.trim().parse().unwrap(), "KILL");
    let again = until_some("alice gets her answer", async || {
        let reply = node.redeem("DEAD", "alice").await;
        (reply.status != 503).then_some(reply)
    })
    .await;
    assert_eq!((again.status, &again.body["id"]), (200, &first.body["id"]), "{}", again.text);
    eventually("the node is ready", async || node.get("/readyz").await.status == 200).await;
    tokio::time::timeout(Duration::from_mins(1), node.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_ledger_is_down_redemptions_go_on_to_the_outboxs_limit_and_none_is_lost() {
    let env = vec![("REDEEMER_GATE__OUTBOX_MAX", "30".to_owned())];
    let settings = Settings { env, ..Settings::default() };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    node.invite("BEHIND", "team", 1000).await;
    let mut writer = Sql::connect(&node.ledger_url()).await;
    writer.hold().await;
    let mut granted = BTreeMap::new();
    let refused = loop {
        let user = format!("user-{}", granted.len());
        let reply = node.redeem("BEHIND", &user).await;
        if reply.status != 201 {
            break reply;
        }
        granted.insert(user, reply.body["id"].clone());
        assert!(granted.len() <= 30, "the limit does not hold");
    };
    assert_eq!((refused.status, refused.code()), (503, "overloaded"), "{}", refused.text);
    assert!(!refused.header("retry-after").is_empty());
    // Whoever has a use is told so all the same.
    assert_eq!(node.redeem("BEHIND", "user-0").await.status, 200);
    assert_eq!(node.get("/readyz").await.status, 200, "elsewhere it would be no better");
    writer.let_go().await;
    eventually("there is room again", async || {
        matches!(node.redeem("BEHIND", "late").await.status, 200 | 201)
    })
    .await;
    for (user, id) in granted {
        let again = node.redeem("BEHIND", &user).await;
        assert_eq!((again.status, &again.body["id"]), (200, &id));
    }
    let all = "/v1/namespaces/default/redemptions?limit=1000";
    eventually("the ledger has them all", async || {
        let uses =
            node.get("/v1/namespaces/default/invites/by-code/BEHIND").await.body["uses"].clone();
        node.get(all).await.body["data"].as_array().unwrap().len() as u64 == uses.as_u64().unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_memory_refuses_before_any_effect_and_still_lets_members_leave() {
    let redis = RedisServer::start().await;
    let settings = Settings { redis_url: Some(redis.url()), ..Settings::default() };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    let id = node.invite("FULL", "team", 100).await;
    assert_eq!(node.redeem("FULL", "alice").await.status, 201);
    redis.run::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = node.redeem("FULL", "bob").await;
    assert_eq!((refused.status, refused.code()), (503, "gate_unavailable"), "{}", refused.text);
    assert_eq!(node.get(&format!("/v1/namespaces/default/invites/{id}")).await.body["uses"], 1);
    // What frees memory goes on: leaving, and emptying the outbox.
    assert_eq!(node.delete("/v1/namespaces/default/members/alice").await.status, 204);
    let outboxes: Vec<String> = redis.run(&["KEYS", "*:outbox"]).await;
    eventually("the outboxes are empty", async || {
        let mut waiting = 0;
        for outbox in &outboxes {
            waiting += redis.run::<u64>(&["XLEN", outbox]).await;
        }
        waiting == 0
    })
    .await;
    redis.run::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let bob = node.redeem("FULL", "bob").await;
    assert_eq!((bob.status, &bob.body["use"]), (201, &json!(2)), "{}", bob.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_deployments_share_one_redis_by_their_prefixes() {
    let redis = RedisServer::start().await;
    let start = |prefix: &str| {
        let env = vec![("REDEEMER_REDIS__KEY_PREFIX", prefix.to_owned())];
        let settings = Settings { redis_url: Some(redis.url()), env, ..Settings::default() };
        tokio::task::spawn_blocking(move || Node::start(&settings))
    };
    let (one, two) = (start("one").await.unwrap(), start("two").await.unwrap());
    for node in [&one, &two] {
        node.invite("SHARED", "team", 1).await;
        assert_eq!(node.redeem("SHARED", "alice").await.status, 201);
        assert_eq!(node.redeem("SHARED", "bob").await.code(), "invite_exhausted");
    }
    let keys: Vec<String> = redis.run(&["KEYS", "*"]).await;
    assert!(
        keys.iter().all(|key| key.starts_with("one:{") || key.starts_with("two:{")),
        "{keys:?}"
    );
}

/// A node with a Redis and a PostgreSQL of its own, and one invite, `OUTAGE`.
async fn node_on_postgres() -> (Node, PostgresServer, RedisServer) {
    let redis = RedisServer::start().await;
    let postgres = tokio::task::spawn_blocking(PostgresServer::start).await.unwrap();
    let settings = Settings {
        redis_url: Some(redis.url()),
        ledger: Some(postgres.create_database("outage")),
        ..Settings::default()
    };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    node.invite("OUTAGE", "team", 1000).await;
    (node, postgres, redis)
}

/// Grants to these users; every one of them.
async fn grant_all(node: &Node, users: std::ops::Range<usize>) {
    for number in users {
        let reply = node.redeem("OUTAGE", &format!("user-{number}")).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
    }
}

async fn the_ledger_has(node: &Node, count: usize) {
    let all = "/v1/namespaces/default/redemptions?limit=1000";
    eventually("the ledger has them all", async || {
        node.get(all).await.body["data"].as_array().is_some_and(|rows| rows.len() == count)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_is_dead_redemptions_go_on_and_none_is_lost() {
    let (node, mut postgres, _redis) = node_on_postgres().await;
    grant_all(&node, 0..20).await;
    for round in 1..=3 {
        postgres.kill();
        grant_all(&node, round * 20..round * 20 + 20).await;
        let listed = node.get("/v1/namespaces/default/redemptions").await;
        assert_eq!((listed.status, listed.code()), (503, "ledger_unavailable"), "{}", listed.text);
        postgres.restart();
        the_ledger_has(&node, round * 20 + 20).await;
    }
    let report = node.get("/v1/namespaces/default/consistency").await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_gives_no_answer_redemptions_go_on_and_none_is_lost() {
    let (node, postgres, _redis) = node_on_postgres().await;
    grant_all(&node, 0..20).await;
    postgres.signal("STOP");
    grant_all(&node, 20..60).await;
    let asked = json!({"code": "OUTAGE", "user": "careful", "durability": "ledger"});
    let unknown = node.post("/v1/namespaces/default/redemptions", &asked).await;
    assert_eq!((unknown.status, unknown.code()), (503, "outcome_unknown"), "{}", unknown.text);
    postgres.signal("CONT");
    the_ledger_has(&node, 61).await;
    let known = node.post("/v1/namespaces/default/redemptions", &asked).await;
    assert_eq!(
        (known.status, &known.body["durability"]),
        (200, &json!("ledger")),
        "{}",
        known.text
    );
}

/// A node, a Redis that writes to disk every second, and one invite, `OUTAGE`.
async fn node_on_a_redis_with_a_file() -> (Node, RedisServer, Settings) {
    let redis =
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "everysec"]).await;
    let settings = Settings { redis_url: Some(redis.url()), ..Settings::default() };
    let of_node = settings.clone();
    let node = tokio::task::spawn_blocking(move || Node::start(&of_node)).await.unwrap();
    node.invite("OUTAGE", "team", 1000).await;
    (node, redis, settings)
}

/// What a user is told once the gate answers.
async fn told(node: &Node, user: &str) -> Reply {
    until_some("the gate answers", async || {
        let reply = node.redeem("OUTAGE", user).await;
        (reply.status != 503).then_some(reply)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_gives_no_answer_the_outcome_is_unknown_and_no_use_is_spent_twice() {
    let redis = RedisServer::start().await;
    let mut env = QUICK.map(|(name, value)| (name, value.to_owned())).to_vec();
    env.push(("REDEEMER_LOG__LEVEL", "error".to_owned()));
    let settings = Settings { redis_url: Some(redis.url()), env, ..Settings::default() };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    node.invite("OUTAGE", "team", 1000).await;
    grant_all(&node, 0..5).await;
    redis.signal("STOP");
    let asked = (5..25).map(|number| {
        let node = &node;
        async move {
            let (user, key) = (format!("user-{number}"), format!("key-{number}"));
            let reply = node.try_redeem("OUTAGE", &user, &key).await.unwrap();
            assert_eq!(reply.status, 503, "{}", reply.text);
            assert!(["outcome_unknown", "gate_unavailable", "overloaded"].contains(&reply.code()));
            (user, key)
        }
    });
    let unknown = futures_util::future::join_all(asked).await;
    redis.signal("CONT");
    for (user, key) in unknown {
        let known = until_some("the gate answers", async || {
            let reply = node.try_redeem("OUTAGE", &user, &key).await.unwrap();
            (reply.status != 503).then_some(reply)
        })
        .await;
        assert!([200, 201].contains(&known.status), "{}", known.text);
    }
    the_ledger_has(&node, 25).await;
    let shown = node.get("/v1/namespaces/default/invites/by-code/OUTAGE").await;
    assert_eq!(shown.body["uses"], 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_redis_of_ones_own_comes_back_with_what_it_had_answered() {
    let (node, mut redis, _settings) = node_on_a_redis_with_a_file().await;
    for round in 0..3 {
        grant_all(&node, round * 10..round * 10 + 10).await;
        redis.kill();
        redis.restart().await;
        for number in 0..round * 10 + 10 {
            let again = told(&node, &format!("user-{number}")).await;
            assert_eq!(again.status, 200, "{}", again.text);
        }
    }
    the_ledger_has(&node, 30).await;
}

/// The machine dies: node, Redis, and what of Redis's file was not synced to disk yet, the last entry torn.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_loss_of_power_nothing_is_lost_that_the_ledger_had() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = ledger::url_in(directory.path());
    let mut redis =
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let settings = Settings {
        redis_url: Some(redis.url()),
        ledger: Some(ledger.clone()),
        ..Settings::default()
    };
    let start = async || {
        let settings = settings.clone();
        tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
    };
    let mut node = start().await;
    node.invite("OUTAGE", "team", 1000).await;
    let mut sql = Sql::connect(&ledger).await;
    for lost in [0, 10] {
        let before = node.get("/v1/namespaces/default/invites/by-code/OUTAGE").await.body["uses"]
            .as_u64()
            .unwrap();
        let first = usize::try_from(before).unwrap();
        grant_all(&node, first..first + 10).await;
        the_ledger_has(&node, first + 10).await;
        let synced = std::fs::metadata(redis.append_only_file()).unwrap().len();
        grant_all(&node, first + 10..first + 20).await;
        the_ledger_has(&node, first + 20).await;
        // What the ledger does not have by now is nowhere but in that part of the file, and in the node.
        sql.hold().await;
        grant_all(&node, first + 20..first + 20 + lost).await;
        node.kill();
        redis.kill();
        sql.let_go().await;
        let file = redis.append_only_file();
        std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(synced + 7).unwrap();
        redis.restart().await;
        node = start().await;
        for number in 0..first + 20 + lost {
            let again = told(&node, &format!("user-{number}")).await;
            let is_lost = number >= first + 20;
            assert_eq!(again.status, if is_lost { 201 } else { 200 }, "{number}: {}", again.text);
        }
        the_ledger_has(&node, first + 20 + lost).await;
        let report = node.get("/v1/namespaces/default/consistency").await;
        assert_eq!(report.body["consistent"], true, "{}", report.text);
    }
}

/// Each batch takes PostgreSQL a while.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_slow_ledger_everybody_gets_what_was_asked_for() {
    let redis = RedisServer::start().await;
    let postgres = tokio::task::spawn_blocking(PostgresServer::start).await.unwrap();
    let url = postgres.create_database("slow");
    let settings = Settings {
        redis_url: Some(redis.url()),
        ledger: Some(url.clone()),
        env: vec![("REDEEMER_SYNC__LEASE_TTL_MS", "2000".to_owned())],
    };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    node.invite("OUTAGE", "team", 1000).await;
    Sql::connect(&url)
        .await
        .execute(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END';
             CREATE TRIGGER slowly AFTER INSERT ON redemptions FOR EACH STATEMENT EXECUTE FUNCTION slowly();",
        )
        .await;
    let careful = (0..20).map(|number| {
        let body =
            json!({"code": "OUTAGE", "user": format!("careful-{number}"), "durability": "ledger"});
        let node = &node;
        async move { node.post("/v1/namespaces/default/redemptions", &body).await }
    });
    let (careful, ()) =
        tokio::join!(futures_util::future::join_all(careful), grant_all(&node, 0..200));
    for reply in careful {
        assert_eq!(
            (reply.status, &reply.body["durability"]),
            (201, &json!("ledger")),
            "{}",
            reply.text
        );
    }
    the_ledger_has(&node, 220).await;
}
