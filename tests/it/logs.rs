//! The log: lines that programs can read, and what is in none of them.

use std::collections::BTreeMap;

use redeemer::domain::Millis;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    eventually,
    ledger::Sql,
    node::{ADMIN_KEY, Node, Settings, json_body, send},
    receiver::Receiver,
    redis::RedisServer,
};

const NAMESPACE: &str = "/v1/namespaces/default";

fn node(level: &str) -> Node {
    let env = [
        ("REDEEMER_LOG__FORMAT", "json"),
        ("REDEEMER_LOG__LEVEL", level),
        ("REDEEMER_WEBHOOKS__ALLOW_PRIVATE", "true"),
    ];
    let env = env.map(|(name, value)| (name, value.to_owned())).to_vec();
    Node::start(&Settings { env, ..Settings::default() })
}

/// All lines that there are.
fn lines(node: &Node) -> Vec<Value> {
    let log = node.log();
    log.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The line of this request, once it is there.
async fn line_of(node: &Node, request_id: &str) -> Value {
    eventually("the request has its line", async || node.log().contains(request_id)).await;
    let of_request = lines(node).into_iter().filter(|line| line["request_id"] == request_id);
    let of_request: Vec<_> = of_request.collect();
    assert_eq!(of_request.len(), 1, "{of_request:?}");
    of_request.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_has_one_line_with_its_id_and_no_path() {
    let node = node("info");
    node.invite("CODE", "team", 1).await;
    let ask = async |id: &str, user: &str| {
        let request = node.request(Method::POST, &format!("{NAMESPACE}/redemptions"));
        let request = request.header("x-request-id", id);
        send(json_body(request, &json!({"code": "CODE", "user": user}))).await.unwrap()
    };
    assert_eq!(ask("first-of-all", "alice").await.header("x-request-id"), "first-of-all");
    let line = line_of(&node, "first-of-all").await;
    assert_eq!((&line["level"], &line["message"]), (&json!("INFO"), &json!("request")));
    assert_eq!(line["route"], "/v1/namespaces/{ns}/redemptions");
    assert_eq!((&line["method"], &line["status"]), (&json!("POST"), &json!(201)));
    // Whose key it was, by its id.
    assert_eq!(line["key"], ADMIN_KEY.split('_').nth(1).unwrap());
    assert!(line["micros"].is_u64() && line["timestamp"].is_string(), "{line}");
    assert!(line.get("code").is_none(), "{line}");

    let refused = ask("second", "bob").await;
    assert_eq!(refused.body["request_id"], "second");
    assert_eq!(line_of(&node, "second").await["code"], "invite_exhausted");

    // What is no id is replaced by one.
    let odd = ask("with a space", "carol").await;
    let made = odd.header("x-request-id").to_owned();
    assert!(made.len() == 36 && odd.body["request_id"] == made, "{made}");
    line_of(&node, &made).await;

    // Of those who only look whether it is alive there would be more lines than of everybody else.
    node.get("/livez").await;
    let stranger = node.bare(Method::GET, &format!("{NAMESPACE}/members/secret-user"));
    let stranger = send(stranger.header("x-request-id", "stranger")).await.unwrap();
    assert_eq!(stranger.status, 401);
    let line = line_of(&node, "stranger").await;
    assert_eq!((&line["key"], &line["code"]), (&json!("none"), &json!("unauthorized")));
    let log = node.whole_log().await;
    assert!(!log.contains("livez") && !log.contains("secret-user"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_once_where_it_ends_and_a_state_when_it_begins() {
    let mut redis = RedisServer::start().await;
    let quick = [
        ("REDEEMER_LOG__FORMAT", "json"),
        ("REDEEMER_GATE__DEADLINE_MS", "2000"),
        ("REDEEMER_SYNC__LEASE_TTL_MS", "500"),
        ("REDEEMER_SYNC__BLOCK_MS", "100"),
    ];
    let env = quick.map(|(name, value)| (name, value.to_owned())).to_vec();
    let settings = Settings { redis_url: Some(redis.url()), env, ..Settings::default() };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    node.invite("CODE", "team", 100).await;
    let ask = async |number: u32| {
        let request = node.request(Method::POST, &format!("{NAMESPACE}/redemptions"));
        let request = request.header("x-request-id", format!("lost-{number}"));
        send(json_body(request, &json!({"code": "CODE", "user": "alice"}))).await.unwrap()
    };
    redis.kill();
    for number in 0..4 {
        let failed = ask(number).await;
        assert_eq!(failed.status, 503, "{}", failed.text);
        let line = line_of(&node, &format!("lost-{number}")).await;
        assert_eq!((&line["level"], &line["code"]), (&json!("WARN"), &failed.body["code"]));
        // The whole chain, and what the client was told is no part of it.
        assert!(line["cause"].as_str().is_some_and(|cause| cause.contains(": ")), "{line}");
    }
    eventually("the node is not ready", async || node.get("/readyz").await.status == 503).await;
    // Each leader that can not go on is followed by another one, which has nothing new to say.
    let mut sql = Sql::connect(&node.ledger_url()).await;
    let leases = "SELECT CAST(SUM(lease_token) AS BIGINT) FROM partitions";
    let before = sql.number(leases).await;
    eventually("there were others", async || sql.number(leases).await > before + 64).await;
    let mut told: BTreeMap<String, Millis> = BTreeMap::new();
    for mut line in lines(&node).into_iter().filter(|line| line["message"] != "request") {
        let at = line.as_object_mut().unwrap().remove("timestamp").unwrap();
        let at = Millis::parse(at.as_str().unwrap()).unwrap();
        let before = told.insert(line.to_string(), at);
        // As long as it lasts it is told again after a minute.
        let is_news = before.is_none_or(|before| at.as_ms() - before.as_ms() > 59_000);
        assert!(is_news || line["level"] == "INFO", "told again: {line}");
    }
    assert!(told.keys().any(|line| line.contains("the sync can not go on")), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_has_a_code_a_person_or_a_secret_in_it_even_at_level_debug() {
    let node = node("debug");
    let hook = Receiver::start().await;
    let url = format!("{}?token=secret-token", hook.url);
    let body = json!({"url": url, "event_types": ["redeemed"]});
    let webhook = node.post(&format!("{NAMESPACE}/webhooks"), &body).await;
    assert_eq!(webhook.status, 201, "{}", webhook.text);
    let body = json!({
        "code": "SECRETCODE", "group": "secret-group", "max_uses": 5, "metadata": {"a": "secret-data"},
        "email_domains": ["secret-mail.example"],
    });
    let invite = node.post(&format!("{NAMESPACE}/invites"), &body).await;
    assert_eq!(invite.status, 201, "{}", invite.text);
    let body = json!({
        "code": "SECRETCODE", "user": "secret-user", "email": "a@secret-mail.example", "ip": "203.0.113.77",
        "metadata": {"a": "secret-data"}, "durability": "ledger",
    });
    let request = node.request(Method::POST, &format!("{NAMESPACE}/redemptions"));
    let redeemed =
        send(json_body(request.header("idempotency-key", "secret-key-1"), &body)).await.unwrap();
    assert_eq!(redeemed.status, 201, "{}", redeemed.text);
    for path in
        ["members/secret-user", "invites/by-code/SECRETCODE", "redemptions?user=secret-user"]
    {
        assert_eq!(node.get(&format!("{NAMESPACE}/{path}")).await.status, 200);
    }
    // Bodies and paths that make no sense are quoted in answers alone.
    for body in [json!({"code": "secret code!", "user": "secret-user"}), json!({"secret-field": 1})]
    {
        assert_eq!(node.post(&format!("{NAMESPACE}/redemptions"), &body).await.status, 400);
    }
    assert_eq!(node.get("/v1/secret-path").await.status, 404);
    let made = node.post("/v1/keys", &json!({"name": "secret-name", "role": "redeem"})).await;
    let key = made.body["key"].as_str().unwrap().rsplit('_').next().unwrap().to_owned();
    eventually("the receiver is called", async || !hook.received().is_empty()).await;
    eventually("that is told", async || node.log().contains("\"tried\"")).await;

    let log = node.whole_log().await;
    assert!(log.contains("\"DEBUG\"") && log.contains("\"request\""));
    let told = log.lines().filter(|line| {
        let line = line.to_lowercase();
        line.contains("secret-")
            || line.contains("secretcode")
            || line.contains("secret code")
            || line.contains("203.0.113.77")
    });
    let told: Vec<_> = told.collect();
    assert!(told.is_empty(), "{told:#?}");
    let secret = webhook.body["secret"].as_str().unwrap();
    assert!(![secret, &key, ADMIN_KEY].iter().any(|secret| log.contains(secret)));
}
