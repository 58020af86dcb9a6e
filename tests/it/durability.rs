//! What an answer of level `ledger` promises: SQL has it, whatever becomes of Redis.

use serde_json::json;

use crate::support::{
    eventually, lasting_port,
    ledger::{self, Sql},
    node::{Node, Reply, Settings, command, json_body, send, signal},
    redis::RedisServer,
    until_some,
};

const REDEMPTIONS: &str = "/v1/namespaces/default/redemptions";
/// For a reply that does come: a replica that gets no processor for a while is no fault.
const PATIENT_MS: u32 = 9000;

async fn start(settings: Settings) -> Node {
    tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
}

async fn redeem(node: &Node, user: &str, level: &str) -> Reply {
    let request = node.request(reqwest::Method::POST, REDEMPTIONS).header("idempotency-key", user);
    let body = json!({"code": "DURABLE", "user": user, "durability": level});
    send(json_body(request, &body)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_survives_the_loss_of_redis_data_and_all() {
    let directory = tempfile::Builder::new().prefix("rdm-lost-").tempdir().unwrap();
    let path = directory.path().to_owned();
    let at = path.clone();
    let mut node = tokio::task::spawn_blocking(move || Node::start_at(&at, &Settings::default()))
        .await
        .unwrap();
    node.invite("DURABLE", "team", 100).await;
    let mut ledger = Sql::connect(&node.ledger_url()).await;
    let mut told = Vec::new();
    for number in 0..10 {
        let reply = redeem(&node, &format!("user-{number}"), "ledger").await;
        assert_eq!(
            (reply.status, &reply.body["durability"]),
            (201, &json!("ledger")),
            "{}",
            reply.text
        );
        // At the moment of the answer it is there.
        let id = reply.body["id"].as_str().unwrap();
        let rows =
            ledger.number(&format!("SELECT COUNT(*) FROM redemptions WHERE id = '{id}'")).await;
        assert_eq!(rows, 1);
        told.push(reply);
    }
    // Node and Redis die, and what Redis had is gone.
    let pid = std::fs::read_to_string(path.join("redis/redis.pid")).unwrap();
    node.kill();
    signal(pid.trim().parse().unwrap(), "KILL");
    std::fs::remove_dir_all(path.join("redis")).unwrap();
    drop(node);
    let node = tokio::task::spawn_blocking(move || Node::start_at(&path, &Settings::default()))
        .await
        .unwrap();
    for (number, first) in told.iter().enumerate() {
        let again = redeem(&node, &format!("user-{number}"), "ledger").await;
        assert_eq!(
            (again.status, &again.body["id"], &again.body["replayed"]),
            (200, &first.body["id"], &json!(true))
        );
    }
    assert_eq!(redeem(&node, "late", "gate").await.body["use"], 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leads_wakes_those_who_wait_on_every_node() {
    let redis = RedisServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        redis_url: Some(redis.url()),
        ledger: Some(ledger::url_in(directory.path())),
        ..Settings::default()
    };
    // The first one leads every partition.
    let nodes = [start(settings.clone()).await, start(settings).await];
    nodes[0].invite("DURABLE", "team", 1000).await;
    for number in 0..20 {
        let reply = redeem(&nodes[number % 2], &format!("user-{number}"), "ledger").await;
        assert_eq!(
            (reply.status, &reply.body["durability"]),
            (201, &json!("ledger")),
            "{}",
            reply.text
        );
    }
    // Many at once share the commits.
    let many = (20..200).map(|number| {
        let node = &nodes[number % 2];
        async move { redeem(node, &format!("user-{number}"), "ledger").await.status }
    });
    let statuses = futures_util::future::join_all(many).await;
    assert!(statuses.iter().all(|status| *status == 201), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_sets_the_least_that_its_answers_promise() {
    let node = start(Settings::default()).await;
    node.invite("DURABLE", "team", 100).await;
    assert_eq!(redeem(&node, "alice", "gate").await.body["durability"], "gate");
    let changed = node
        .send(reqwest::Method::PATCH, "/v1/namespaces/default", &json!({"durability": "ledger"}))
        .await;
    assert_eq!(
        (changed.status, &changed.body["durability"]),
        (200, &json!("ledger")),
        "{}",
        changed.text
    );
    assert_eq!(
        redeem(&node, "bob", "gate").await.body["durability"],
        "ledger",
        "a request can not ask for less"
    );
    assert_eq!(
        redeem(&node, "alice", "gate").await.body["durability"],
        "ledger",
        "replays wait too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_ledger_can_not_write_the_outcome_is_unknown_and_the_same_key_gets_it_later() {
    let node = start(Settings::default()).await;
    node.invite("DURABLE", "team", 100).await;
    assert_eq!(redeem(&node, "alice", "ledger").await.status, 201);
    let mut writer = Sql::connect(&node.ledger_url()).await;
    writer.hold().await;
    let unknown = redeem(&node, "bob", "ledger").await;
    assert_eq!(
        (unknown.status, unknown.code(), &unknown.body["reached"]),
        (503, "outcome_unknown", &json!("gate")),
        "{}",
        unknown.text
    );
    // The gate goes on.
    assert_eq!(redeem(&node, "carol", "gate").await.status, 201);
    writer.let_go().await;
    let known = until_some("the ledger has it", async || {
        let again = redeem(&node, "bob", "ledger").await;
        (again.status != 503).then_some(again)
    })
    .await;
    assert_eq!(
        (known.status, &known.body["use"], &known.body["replayed"]),
        (200, &json!(2), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ledger_can_not_take_is_no_success() {
    let node = start(Settings::default()).await;
    let invite = node.invite("DURABLE", "team", 100).await;
    assert_eq!(redeem(&node, "alice", "ledger").await.status, 201);
    // Something stands where the next use belongs.
    let mut writer = Sql::connect(&node.ledger_url()).await;
    let statement = format!(
        "INSERT INTO redemptions (id, namespace, partition, invite, code, grp, user_id, request, ordinal, remaining,
         redeemed_at, exclusive_key, metadata, epoch, seq) SELECT '019ab000-0000-7000-8000-000000000000', namespace, partition, invite, code, grp,
             'nobody', 'nothing', 2, remaining, redeemed_at, NULL, metadata, epoch, 1000000
         FROM redemptions WHERE invite = '{invite}'"
    );
    writer.execute(&statement).await;
    let told = redeem(&node, "bob", "ledger").await;
    assert_eq!(
        (told.status, told.code(), &told.body["reached"]),
        (503, "outcome_unknown", &json!("gate")),
        "{}",
        told.text
    );
    assert_eq!(writer.number("SELECT COUNT(*) FROM dead_letters").await, 1);
    eventually("the others go on", async || redeem(&node, "carol", "ledger").await.status == 201)
        .await;
}

/// A node whose level `replicated` waits for one replica, half as long as for a reply; the primary, and that replica.
async fn replicated(reply_timeout_ms: u32) -> (Node, RedisServer, RedisServer) {
    let port = lasting_port().to_string();
    let primary =
        RedisServer::start_with(&["--port", &port, "--repl-diskless-sync-delay", "0"]).await;
    let replica = RedisServer::start_with(&["--replicaof", &format!("127.0.0.1 {port}")]).await;
    eventually("the replica follows", async || {
        primary.run::<String>(&["INFO", "replication"]).await.contains("state=online")
    })
    .await;
    let settings = Settings {
        redis_url: Some(primary.url()),
        env: vec![
            ("REDEEMER_GATE__REPLICAS", "1".to_owned()),
            ("REDEEMER_REDIS__REPLY_TIMEOUT_MS", reply_timeout_ms.to_string()),
        ],
        ..Settings::default()
    };
    let node = start(settings).await;
    node.invite("DURABLE", "team", 1000).await;
    (node, primary, replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_as_replicated_is_in_the_replica() {
    let (node, _primary, replica) = replicated(PATIENT_MS).await;
    let rush = (0..100).map(|number| {
        let node = &node;
        async move { redeem(node, &format!("user-{number}"), "replicated").await }
    });
    for reply in futures_util::future::join_all(rush).await {
        let told = (reply.status, &reply.body["durability"]);
        assert_eq!(told, (201, &json!("replicated")), "{}", reply.text);
    }
    let keys: Vec<String> = replica.run(&["KEYS", "*:default:invite:DURABLE"]).await;
    assert_eq!(replica.run::<u64>(&["HGET", &keys[0], "uses"]).await, 100);
}

/// The gate goes on without it; who asked for a replica is told the truth, and the same key gets the level later.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_replica_the_level_is_not_reached_until_it_is_back() {
    let (node, _primary, replica) = replicated(1000).await;
    let alice = until_some("the replica has it", async || {
        let reply = redeem(&node, "alice", "replicated").await;
        (reply.status != 503).then_some(reply)
    });
    assert_eq!(alice.await.body["durability"], "replicated");
    replica.signal("STOP");
    for _ in 0..2 {
        // The first is a grant; the second writes nothing, and must not be taken for acknowledged for that.
        let unknown = redeem(&node, "bob", "replicated").await;
        assert_eq!(
            (unknown.status, unknown.code(), &unknown.body["reached"]),
            (503, "outcome_unknown", &json!("gate")),
            "{}",
            unknown.text
        );
    }
    // On another connection, which has written nothing at all.
    assert_eq!(redeem(&node, "carol", "gate").await.status, 201);
    let same = redeem(&node, "carol", "replicated").await;
    assert_eq!((same.status, &same.body["reached"]), (503, &json!("gate")), "{}", same.text);
    assert_eq!(redeem(&node, "bob", "ledger").await.body["durability"], "ledger");
    replica.signal("CONT");
    let known = until_some("the replica has it", async || {
        let again = redeem(&node, "bob", "replicated").await;
        (again.status != 503).then_some(again)
    })
    .await;
    assert_eq!(
        (known.status, &known.body["durability"], &known.body["use"]),
        (200, &json!("replicated"), &json!(2))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_may_promise_replicas_only_where_they_are_waited_for() {
    let node = start(Settings::default()).await;
    let told = node
        .send(
            reqwest::Method::PATCH,
            "/v1/namespaces/default",
            &json!({"durability": "replicated"}),
        )
        .await;
    assert_eq!((told.status, told.code()), (400, "durability_unavailable"), "{}", told.text);
    let (node, _primary, _replica) = replicated(PATIENT_MS).await;
    let told = node
        .send(
            reqwest::Method::PATCH,
            "/v1/namespaces/default",
            &json!({"durability": "replicated"}),
        )
        .await;
    assert_eq!((told.status, &told.body["durability"]), (200, &json!("replicated")));
    assert_eq!(node.redeem("DURABLE", "alice").await.body["durability"], "replicated");
}

/// The change is late, and its end is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_dead_letter_brings_nobody_back_who_has_left_since() {
    let node = start(Settings::default()).await;
    let invite = node.invite("DURABLE", "team", 100).await;
    assert_eq!(redeem(&node, "alice", "ledger").await.status, 201);
    let mut sql = Sql::connect(&node.ledger_url()).await;
    let in_the_way = "019ab000-0000-7000-8000-000000000000";
    sql.execute(&format!(
        "INSERT INTO redemptions (id, namespace, partition, invite, code, grp, user_id, request, ordinal, remaining,
         redeemed_at, exclusive_key, metadata, epoch, seq) SELECT '{in_the_way}', namespace, partition, invite, code, grp, 'nobody', 'nothing', 2,
             remaining, redeemed_at, NULL, metadata, epoch, 1000000 FROM redemptions WHERE invite = '{invite}'"
    ))
    .await;
    assert_eq!(redeem(&node, "bob", "ledger").await.code(), "outcome_unknown");
    let left = node.delete("/v1/namespaces/default/members/bob/team").await;
    assert!([200, 204].contains(&left.status), "{} {}", left.status, left.text);
    assert_eq!(redeem(&node, "carol", "ledger").await.status, 201);
    sql.execute(&format!("DELETE FROM redemptions WHERE id = '{in_the_way}'")).await;
    let (done, told) = run(&node, &["dead-letters", "replay"]);
    assert!(done && told.contains("1 of 1 applied"), "{told}");
    assert_eq!(sql.number("SELECT COUNT(*) FROM members WHERE user_id = 'bob'").await, 0);
    assert_eq!(sql.number("SELECT COUNT(*) FROM redemptions WHERE user_id = 'bob'").await, 1);
    let (clean, audited) = run(&node, &["audit"]);
    assert!(clean, "{audited}");
}

/// Runs a command of the program against this node's ledger; returns whether it succeeded, and what it printed.
fn run(node: &Node, arguments: &[&str]) -> (bool, String) {
    run_with(node, &Settings::default(), arguments)
}

fn run_with(node: &Node, settings: &Settings, arguments: &[&str]) -> (bool, String) {
    let output = command(node.directory(), settings)
        .args(arguments)
        .env("REDEEMER_LEDGER__URL", node.ledger_url())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_listed_and_replayed_when_what_stood_in_its_way_is_gone() {
    let node = start(Settings::default()).await;
    let invite = node.invite("DURABLE", "team", 100).await;
    assert_eq!(redeem(&node, "alice", "ledger").await.status, 201);
    let mut sql = Sql::connect(&node.ledger_url()).await;
    let in_the_way = "019ab000-0000-7000-8000-000000000000";
    sql.execute(&format!(
        "INSERT INTO redemptions (id, namespace, partition, invite, code, grp, user_id, request, ordinal, remaining,
         redeemed_at, exclusive_key, metadata, epoch, seq) SELECT '{in_the_way}', namespace, partition, invite, code, grp, 'nobody', 'nothing', 2,
             remaining, redeemed_at, NULL, metadata, epoch, 1000000 FROM redemptions WHERE invite = '{invite}'"
    ))
    .await;
    let bob = redeem(&node, "bob", "ledger").await;
    assert_eq!(bob.code(), "outcome_unknown", "{}", bob.text);
    // What comes later has the newer word on the invite's uses.
    assert_eq!(redeem(&node, "carol", "ledger").await.status, 201);
    let (_, listed) = run(&node, &["dead-letters", "list"]);
    assert!(listed.contains("bob") && listed.contains("ordinal"), "{listed}");
    let (clean, audited) = run(&node, &["audit"]);
    assert!(!clean && audited.contains("the ledger could not take a change"), "{audited}");
    // Only Redis and the letter know of bob.
    let (repaired, told) = run(&node, &["audit", "--repair"]);
    assert!(!repaired && told.contains("redeemer dead-letters"), "{told}");
    let (done, told) = run(&node, &["dead-letters", "replay"]);
    assert!(!done && told.contains("still not possible"), "{told}");

    sql.execute(&format!("DELETE FROM redemptions WHERE id = '{in_the_way}'")).await;
    let (done, told) = run(&node, &["dead-letters", "replay"]);
    assert!(done && told.contains("1 of 1 applied"), "{told}");
    let by_hand = sql.texts("SELECT action FROM deeds WHERE actor LIKE 'cli:%'").await;
    assert_eq!(by_hand, ["dead_letter_replayed"]);
    let again = redeem(&node, "bob", "ledger").await;
    assert_eq!((again.status, &again.body["use"]), (200, &json!(2)), "{}", again.text);
    assert_eq!(sql.number("SELECT uses FROM invites").await, 3);
    let (clean, audited) = run(&node, &["audit"]);
    assert!(clean, "{audited}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_nobody_can_mend_is_dropped_by_an_operators_word() {
    let redis = RedisServer::start().await;
    let settings = Settings { redis_url: Some(redis.url()), ..Settings::default() };
    let node = start(settings.clone()).await;
    let run = |arguments: &[&str]| run_with(&node, &settings, arguments);
    node.invite("DURABLE", "team", 100).await;
    assert_eq!(redeem(&node, "alice", "ledger").await.status, 201);
    let invites: Vec<String> = redis.run(&["KEYS", "*:default:invite:DURABLE"]).await;
    let stem = invites[0].split(":default").next().unwrap();
    let (meta, outbox) = (format!("{stem}:meta"), format!("{stem}:outbox"));
    let place = redis.append_to_outbox(&meta, &outbox, "1", "non\0sense").await;
    assert_eq!(redeem(&node, "bob", "ledger").await.status, 201);
    let (_, listed) = run(&["dead-letters", "list", "--output", "json"]);
    let listed: serde_json::Value =
        serde_json::from_str(&listed).unwrap_or_else(|error| panic!("{error}: {listed}"));
    let position = listed[0]["position"].as_str().unwrap();
    assert!(position.ends_with(&place), "{listed}");
    let (done, told) = run(&["dead-letters", "drop", "6/1-999"]);
    assert!(!done && told.contains("there is no dead letter"), "{told}");
    assert!(run(&["dead-letters", "drop", position]).0);
    let (done, told) = run(&["dead-letters", "replay"]);
    assert!(done && told.contains("0 of 0 applied"), "{told}");
}
