//! Codes in bulk: exactly as many as were ordered, all different, whatever is killed meanwhile.

use std::{collections::BTreeSet, path::Path, process::Output};

use redeemer::domain::{
    Alphabet, BatchId, BatchOrder, CodeCase, Codes, Group, Namespace, Pattern, check,
};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::{
    eventually,
    ledger::{self, Sql},
    node::{Node, Reply, Settings, command, json_body, send},
    redis::RedisServer,
    until_some, wait_until,
};

const BATCHES: &str = "/v1/namespaces/default/batches";
const CONSISTENCY: &str = "/v1/namespaces/default/consistency";

/// Nodes that share a Redis and a ledger.
struct Deployment {
    redis: RedisServer,
    settings: Settings,
    _directory: TempDir,
}

impl Deployment {
    async fn start() -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            redis_url: Some(redis.url()),
            ledger: Some(ledger::url_in(directory.path())),
            env: vec![
                ("REDEEMER_SYNC__LEASE_TTL_MS", "1000".to_owned()),
                // Comparing thirty thousand codes takes a while where everything else is busy too.
                ("REDEEMER_HTTP__REQUEST_TIMEOUT_MS", "60000".to_owned()),
            ],
        };
        Self { redis, settings, _directory: directory }
    }

    async fn node(&self) -> Node {
        let settings = self.settings.clone();
        tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
    }

    async fn sql(&self) -> Sql {
        Sql::connect(self.settings.ledger.as_ref().unwrap()).await
    }
}

fn order(count: u64, pattern: &str) -> Value {
    json!({"count": count, "pattern": pattern, "group": "team", "max_uses": 1})
}

/// Orders codes; returns the path of the batch.
async fn place(node: &Node, namespace: &str, order: &Value) -> String {
    let placed = node.post(&format!("/v1/namespaces/{namespace}/batches"), order).await;
    assert_eq!((placed.status, &placed.body["count"]), (202, &order["count"]), "{}", placed.text);
    let path = placed.header("location").to_owned();
    assert!(path.ends_with(placed.body["id"].as_str().unwrap()), "{path}");
    path
}

/// The batch, once it has come to an end.
async fn ended(node: &Node, path: &str) -> Value {
    until_some("the batch comes to an end", async || {
        let batch = node.get(path).await.body;
        (batch["finished_at"] != Value::Null).then_some(batch)
    })
    .await
}

async fn finished(node: &Node, path: &str) -> Value {
    let batch = ended(node, path).await;
    assert_eq!((&batch["state"], &batch["done"]), (&json!("finished"), &batch["count"]), "{batch}");
    batch
}

/// The codes of a download as CSV.
async fn codes(node: &Node, path: &str) -> Vec<String> {
    let reply = send(node.request(Method::GET, &format!("{path}/codes"))).await.unwrap();
    assert_eq!(reply.header("content-type"), "text/csv; charset=utf-8");
    codes_of(&reply.text)
}

fn codes_of(csv: &str) -> Vec<String> {
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("code,id,max_uses,uses,state"));
    lines.map(|line| line.split(',').next().unwrap().to_owned()).collect()
}

/// There are exactly so many, all different, in the ledger and in Redis, and both sides agree.
async fn assert_exact(deployment: &Deployment, node: &Node, path: &str, count: usize) {
    let codes = codes(node, path).await;
    assert_eq!(codes.len(), count);
    assert_eq!(codes.iter().collect::<BTreeSet<_>>().len(), count);
    let id = path.rsplit('/').next().unwrap();
    let query = format!("SELECT COUNT(*) FROM invites WHERE batch = '{id}'");
    assert_eq!(deployment.sql().await.number(&query).await, i64::try_from(count).unwrap());
    let mut keys: Vec<String> = deployment.redis.run(&["KEYS", "*:invite:*"]).await;
    keys.retain(|key| codes.contains(&key.rsplit(':').next().unwrap().to_owned()));
    assert_eq!(keys.len(), count);
    let report = node.get(CONSISTENCY).await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_exactly_as_many_codes_as_were_ordered_and_each_is_an_invite() {
    let mut deployment = Deployment::start().await;
    // Whose lease runs out makes some codes again, and counts them again.
    deployment.settings.env.push(("REDEEMER_SYNC__LEASE_TTL_MS", "60000".to_owned()));
    let node = deployment.node().await;
    let order = json!({
        "count": 1234, "pattern": "spring-####-####", "group": "team", "max_uses": 2,
        "expires_at": "2099-01-01T00:00:00Z", "email_domains": ["example.com"], "metadata": {"a": 1},
    });
    let path = place(&node, "default", &order).await;
    let batch = finished(&node, &path).await;
    assert_eq!((&batch["pattern"], &batch["alphabet"]), (&order["pattern"], &json!("unambiguous")));
    assert!(batch.get("secret").is_none() && batch["metadata"] == order["metadata"], "{batch}");
    assert_exact(&deployment, &node, &path, 1234).await;
    node.until_metric("redeemer_batch_codes_total", &[], |n| n > 1233.5 && n < 1234.5).await;
    // Nobody needs to know any more what they followed from.
    let secrets = "SELECT COUNT(*) FROM batches WHERE secret IS NOT NULL";
    assert_eq!(deployment.sql().await.number(secrets).await, 0);

    let all = codes(&node, &path).await;
    let alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    for code in &all {
        let places: Vec<_> = code.split('-').collect();
        assert_eq!((places[0], places.len(), code.len()), ("SPRING", 3, 16), "{code}");
        assert!(places[1..].concat().chars().all(|c| alphabet.contains(c)), "{code}");
    }
    let by_code = format!("/v1/namespaces/default/invites/by-code/{}", all[700].to_lowercase());
    let invite = node.get(&by_code).await.body;
    assert_eq!((&invite["batch"], &invite["max_uses"]), (&batch["id"], &json!(2)), "{invite}");
    assert_eq!(
        (&invite["expires_at"], &invite["email_domains"], &invite["metadata"]),
        (&json!("2099-01-01T00:00:00.000Z"), &order["email_domains"], &order["metadata"])
    );
    let body = json!({"code": all[700], "user": "alice", "email": "alice@example.com"});
    let redeemed = node.post("/v1/namespaces/default/redemptions", &body).await;
    assert_eq!((redeemed.status, &redeemed.body["remaining"]), (201, &json!(1)));
    // It can be changed as any other, and keeps its batch.
    let one = format!("/v1/namespaces/default/invites/{}", invite["id"].as_str().unwrap());
    let changed = node.send(Method::PATCH, &one, &json!({"max_uses": 5})).await;
    assert_eq!((changed.status, &changed.body["batch"]), (200, &batch["id"]), "{}", changed.text);
    // The list can be narrowed to it, page by page.
    let list = format!("/v1/namespaces/default/invites?batch={}", batch["id"].as_str().unwrap());
    let first = node.get(&format!("{list}&limit=1000")).await.body;
    let next = first["next_cursor"].as_str().unwrap();
    let second = node.get(&format!("{list}&limit=1000&cursor={next}")).await.body;
    assert_eq!(first["data"].as_array().unwrap().len(), 1000);
    assert_eq!(second["data"].as_array().unwrap().len(), 234);
    let other = "/v1/namespaces/default/invites?batch=0198c3a2-7b1e-7c4d-9a55-0123456789ab";
    assert_eq!(node.get(other).await.body["data"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_are_downloaded_as_csv_or_ndjson_in_any_size() {
    let deployment = Deployment::start().await;
    let node = deployment.node().await;
    let path = place(&node, "default", &order(2500, "######-######")).await;
    finished(&node, &path).await;
    let get = async |query: &str, accept: &str| {
        let request = node.request(Method::GET, &format!("{path}/codes{query}"));
        send(request.header("accept", accept)).await.unwrap()
    };
    let csv = get("", "text/csv").await;
    let ndjson = get("", "application/x-ndjson").await;
    assert_eq!(ndjson.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> =
        ndjson.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2500);
    for (line, code) in lines.iter().zip(codes_of(&csv.text)) {
        assert_eq!((&line["code"], &line["state"]), (&json!(code), &json!("active")));
        assert_eq!((&line["max_uses"], &line["uses"]), (&json!(1), &json!(0)));
    }
    // What is asked for goes before what is accepted.
    assert_eq!(get("?format=csv", "application/x-ndjson").await.text, csv.text);
    assert_eq!(get("?format=ndjson", "*/*").await.text, ndjson.text);
    let neither = get("", "application/json").await;
    assert_eq!((neither.status, neither.code()), (406, "not_acceptable"));
    for bad in ["?format=xml", "?formats=csv"] {
        let reply = get(bad, "*/*").await;
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{bad}");
    }
    for missing in ["0198c3a2-7b1e-7c4d-9a55-0123456789ab", "nonsense"] {
        for rest in ["", "/codes"] {
            let reply = node.get(&format!("{BATCHES}/{missing}{rest}")).await;
            assert_eq!((reply.status, reply.code()), (404, "batch_not_found"), "{}", reply.text);
        }
    }
    // Another namespace's batches are not to be seen.
    node.send(Method::PUT, "/v1/namespaces/other", &json!({})).await;
    let elsewhere = node.get(&path.replace("/default/", "/other/")).await;
    assert_eq!((elsewhere.status, elsewhere.code()), (404, "batch_not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_order_makes_one_batch() {
    let deployment = Deployment::start().await;
    let node = deployment.node().await;
    let place = async |order: &Value| -> Reply {
        let request = node.request(Method::POST, BATCHES).header("idempotency-key", "order-1");
        send(json_body(request, order)).await.unwrap()
    };
    let first = place(&order(300, "########")).await;
    finished(&node, first.header("location")).await;
    let again = place(&order(300, "########")).await;
    assert_eq!((again.status, &again.body["id"]), (202, &first.body["id"]));
    let other = place(&order(301, "########")).await;
    assert_eq!((other.status, other.code()), (422, "idempotency_key_reused"));
    assert_exact(&deployment, &node, first.header("location"), 300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_guessed_or_can_not_be_made_is_refused() {
    let deployment = Deployment::start().await;
    let node = deployment.node().await;
    node.send(Method::PUT, "/v1/namespaces/checked", &json!({"code_check": true})).await;
    for (namespace, field, value, needle) in [
        ("default", "pattern", json!("SPRING-###"), "add # until there are 20000000"),
        ("default", "pattern", json!("SPRING"), "1 to 20 random characters"),
        ("default", "pattern", json!("A B ####"), "1 to 64 letters"),
        ("default", "pattern", json!(null), "is needed"),
        ("default", "alphabet", json!("runes"), "unambiguous, digits or letters"),
        ("default", "count", json!(0), "from 1 to 10000000"),
        ("default", "count", json!(10_000_001), "from 1 to 10000000"),
        ("default", "count", json!(null), "is needed"),
        ("default", "user", json!("alice"), "is not a field"),
        ("default", "expires_at", json!("2020-01-01T00:00:00Z"), "after starts_at"),
        ("checked", "pattern", json!("############"), "must end with *"),
    ] {
        let mut order = order(2000, "########*");
        order["starts_at"] = json!("2026-01-01T00:00:00Z");
        order[field] = value;
        let reply = node.post(&format!("/v1/namespaces/{namespace}/batches"), &order).await;
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{order}");
        let error = &reply.body["errors"][0];
        assert_eq!(error["pointer"], format!("/{field}"), "{}", reply.text);
        assert!(error["detail"].as_str().unwrap().contains(needle), "{}", reply.text);
    }
    let nowhere = node.post("/v1/namespaces/unheard-of/batches", &order(1, "########")).await;
    assert_eq!((nowhere.status, nowhere.code()), (404, "namespace_not_found"));
    assert_eq!(deployment.sql().await.number("SELECT COUNT(*) FROM batches").await, 0);
}

/// The batch is under way, and the ledger takes nothing more until it is let go.
async fn hold_in_the_middle(sql: &mut Sql) {
    eventually("some are made", async || sql.number("SELECT COUNT(*) FROM invites").await > 1000)
        .await;
    sql.hold().await;
}

async fn assert_under_way(sql: &mut Sql, count: i64) {
    let done = sql.number("SELECT COUNT(*) FROM invites").await;
    assert!(done < count, "it was too late: {done} are in the ledger");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_the_node_goes_on_and_makes_no_code_twice() {
    let deployment = Deployment::start().await;
    let mut node = deployment.node().await;
    let path = place(&node, "default", &order(30_000, "KILLED-####-####")).await;
    let mut sql = deployment.sql().await;
    hold_in_the_middle(&mut sql).await;
    node.kill();
    sql.let_go().await;
    assert_under_way(&mut sql, 30_000).await;
    let node = deployment.node().await;
    finished(&node, &path).await;
    assert_exact(&deployment, &node, &path, 30_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_another_node_goes_on_and_makes_no_code_twice() {
    let deployment = Deployment::start().await;
    let mut nodes = vec![deployment.node().await, deployment.node().await];
    let path = place(&nodes[0], "default", &order(30_000, "KILLED-####-####")).await;
    let mut sql = deployment.sql().await;
    hold_in_the_middle(&mut sql).await;
    // An owner's name begins with its process id.
    let owner = sql.texts("SELECT lease_owner FROM batches").await.remove(0);
    let works = |node: &Node| owner.starts_with(&format!("{}-", node.pid()));
    let worker = nodes.iter().position(works).unwrap();
    nodes.remove(worker).kill();
    sql.let_go().await;
    assert_under_way(&mut sql, 30_000).await;
    let other = nodes.remove(0);
    finished(&other, &path).await;
    let now = sql.texts("SELECT COALESCE(lease_owner, 'nobody') FROM batches").await.remove(0);
    assert_eq!(now, "nobody");
    assert_exact(&deployment, &other, &path, 30_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_loses_of_a_batch_is_made_again() {
    let deployment = Deployment::start().await;
    let node = deployment.node().await;
    let path = place(&node, "default", &order(30_000, "LOST-####-####")).await;
    let mut sql = deployment.sql().await;
    hold_in_the_middle(&mut sql).await;
    deployment.redis.run::<()>(&["FLUSHALL"]).await;
    sql.let_go().await;
    assert_under_way(&mut sql, 30_000).await;
    finished(&node, &path).await;
    assert_exact(&deployment, &node, &path, 30_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_only_makes_a_batch_wait() {
    let mut deployment = Deployment::start().await;
    deployment.settings.env.push(("REDEEMER_GATE__OUTBOX_MAX", "1".to_owned()));
    let node = deployment.node().await;
    let path = place(&node, "default", &order(2000, "########")).await;
    finished(&node, &path).await;
    assert_exact(&deployment, &node, &path, 2000).await;
}

fn order_of(namespace: &str, id: u128, count: u64, pattern: &str) -> BatchOrder {
    BatchOrder {
        id: BatchId(Uuid::from_u128(id << 64)),
        namespace: Namespace::parse(namespace).unwrap(),
        count,
        pattern: Pattern::parse(pattern).unwrap(),
        alphabet: Alphabet::Unambiguous,
        group: Group::parse("team").unwrap(),
        max_uses: Some(1),
        max_uses_per_user: None,
        campaign: None,
        starts_at: None,
        expires_at: None,
        email_domains: Vec::new(),
        metadata: None,
        actor: "test".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_that_others_have_are_left_to_them_and_the_count_is_exact() {
    let deployment = Deployment::start().await;
    let node = deployment.node().await;
    let order = order_of("default", 1, 300, "TAKEN-######");
    let codes_made = Codes {
        pattern: order.pattern.clone(),
        alphabet: order.alphabet,
        case: CodeCase::Insensitive,
        count: order.count,
        secret: [7; 16],
    };
    // What is known of the secret here, nobody can know outside.
    let mut taken = Vec::new();
    for (slot, attempt) in [(0, 0), (5, 0), (5, 1), (5, 2), (250, 0), (299, 0)] {
        let code = codes_made.code(slot, attempt).unwrap().to_string();
        node.invite(&code, "others", 1).await;
        taken.push(code);
    }
    // One of them has ended: its code is not given away all the same.
    assert_eq!(node.redeem(&taken[0], "alice").await.status, 201);
    let ledger = ledger::open(deployment.settings.ledger.as_ref().unwrap()).await;
    ledger.insert_batch(&order, [7; 16], &redeemer::ledger::By::node()).await.unwrap();
    let path = format!("{BATCHES}/{}", order.id);
    finished(&node, &path).await;
    assert_exact(&deployment, &node, &path, 300).await;
    let made = codes(&node, &path).await;
    assert!(taken.iter().all(|code| !made.contains(code)), "{taken:?}");
    for code in &taken {
        let by_code = format!("/v1/namespaces/default/invites/by-code/{code}");
        assert_eq!(node.get(&by_code).await.body["group"], "others");
    }
    let expected = codes_made.code(5, 3).unwrap().to_string();
    assert!(made.contains(&expected) && made.contains(&codes_made.code(6, 0).unwrap().to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_a_namespace_that_was_archived_fails_and_says_so() {
    let deployment = Deployment::start().await;
    let node = deployment.node().await;
    node.send(Method::PUT, "/v1/namespaces/gone", &json!({})).await;
    assert_eq!(node.delete("/v1/namespaces/gone").await.status, 204);
    let order = order_of("gone", 2, 300, "########");
    let ledger = ledger::open(deployment.settings.ledger.as_ref().unwrap()).await;
    ledger.insert_batch(&order, [7; 16], &redeemer::ledger::By::node()).await.unwrap();
    let path = format!("/v1/namespaces/gone/batches/{}", order.id);
    let batch = ended(&node, &path).await;
    assert_eq!(
        (&batch["state"], &batch["reason"], &batch["done"]),
        (&json!("failed"), &json!("the namespace was archived"), &json!(0)),
        "{batch}"
    );
    // It stands in nobody's way.
    let path = place(&node, "default", &self::order(300, "########")).await;
    finished(&node, &path).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_code_with_a_check_character_never_reaches_redis() {
    let deployment = Deployment::start().await;
    let node = deployment.node().await;
    let base = "/v1/namespaces/checked";
    let made = node.send(Method::PUT, base, &json!({"code_check": true})).await;
    assert_eq!((made.status, &made.body["code_check"]), (201, &json!(true)), "{}", made.text);
    let path = place(&node, "checked", &order(300, "GO-########*")).await;
    finished(&node, &path).await;
    let all = codes(&node, &path).await;
    assert!(all.iter().all(|code| check::fits(code)), "{all:?}");
    let redeem = async |code: &str| {
        let body = json!({"code": code, "user": "alice", "ip": "203.0.113.9"});
        node.post(&format!("{base}/redemptions"), &body).await
    };
    // Two neighbours that differ change places; or the last character becomes another one.
    let good = &all[17];
    let digit = good.chars().next_back().unwrap();
    let wrong = format!("{}{}", &good[..good.len() - 1], if digit == '7' { '8' } else { '7' });
    for path in ["redemptions", "validations"] {
        let body = json!({"code": wrong, "user": "alice"});
        let reply = node.post(&format!("{base}/{path}"), &body).await;
        assert_eq!((reply.status, reply.code()), (400, "code_malformed"), "{}", reply.text);
        let detail = reply.body["errors"][0]["detail"].as_str().unwrap();
        assert!(detail.contains("mistyped"), "{detail}");
    }
    let rates: Vec<String> = deployment.redis.run(&["KEYS", "*:rate:*"]).await;
    assert!(rates.is_empty(), "a guess was charged: {rates:?}");
    assert_eq!(redeem(good).await.status, 201);
    let shown = node.get(&format!("{base}/invites/by-code/{wrong}")).await;
    assert_eq!((shown.status, shown.code()), (400, "code_malformed"));
    // What people choose must fit too, and what is made up does.
    let invite = async |code: Value| {
        let body = json!({"code": code, "group": "team", "max_uses": 1});
        node.post(&format!("{base}/invites"), &body).await
    };
    assert_eq!(invite(json!("WELCOME")).await.code(), "code_malformed");
    let chosen = format!("WELCOME{}", check::character("WELCOME"));
    assert_eq!(invite(json!(chosen)).await.status, 201);
    let made_up = invite(json!(null)).await.body["code"].as_str().unwrap().to_owned();
    assert!(check::fits(&made_up), "{made_up}");
    // It is fixed, and what is left out stays.
    let changed = node.send(Method::PUT, base, &json!({"code_check": false})).await;
    assert_eq!(changed.body["errors"][0]["pointer"], "/code_check", "{}", changed.text);
    let patched = node.send(Method::PATCH, base, &json!({"code_check": true})).await;
    assert_eq!((patched.status, patched.code()), (400, "invalid_request"));
    assert_eq!(node.send(Method::PUT, base, &json!({})).await.body["code_check"], true);
    // Also after Redis has lost everything.
    eventually("the ledger has all", async || {
        node.get(&format!("{base}/consistency")).await.body["consistent"] == true
    })
    .await;
    deployment.redis.run::<()>(&["FLUSHALL"]).await;
    let refused = until_some("the gate is built anew", async || {
        let reply = redeem(&wrong).await;
        (reply.status < 500).then_some(reply)
    })
    .await;
    assert_eq!(refused.code(), "code_malformed");
    until_some("and answers", async || (redeem(good).await.status == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lenient_namespace_takes_codes_as_people_type_them() {
    let deployment = Deployment::start().await;
    let node = deployment.node().await;
    let base = "/v1/namespaces/lenient";
    let settings = json!({"code_case": "lenient", "code_check": true});
    let made = node.send(Method::PUT, base, &settings).await;
    assert_eq!((made.status, &made.body["code_case"]), (201, &json!("lenient")), "{}", made.text);
    let path = place(&node, "lenient", &order(300, "Lilo-####-####-*")).await;
    finished(&node, &path).await;
    let all = codes(&node, &path).await;
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 300);
    for (number, code) in all.iter().enumerate().take(20) {
        // They are handed out as the pattern says.
        assert!(code.starts_with("LILO-") && code.len() == 16, "{code}");
        let typed = match number % 4 {
            0 => code.clone(),
            1 => code.to_lowercase().replace('-', " "),
            2 => code.replace('0', "o").replace('1', "l"),
            _ => code.replace('-', "").replace('1', "I"),
        };
        let body = json!({"code": typed, "user": format!("user-{number}")});
        let reply = node.post(&format!("{base}/redemptions"), &body).await;
        assert_eq!(reply.status, 201, "{code} as {typed}: {}", reply.text);
        // One name is kept for all of them.
        let kept = code.replace('-', "").replace(['L', 'I'], "1").replace('O', "0");
        assert_eq!(reply.body["code"], kept);
        let shown =
            node.get(&format!("{base}/invites/by-code/{}", typed.replace(' ', "%20"))).await;
        assert_eq!(shown.body["uses"], 1, "{}", shown.text);
    }
    eventually("they are listed", async || {
        let listed = node.get(&format!("{base}/invites?prefix=lilo-&state=exhausted")).await.body;
        listed["data"].as_array().unwrap().len() == 20
    })
    .await;
    let refused = node.send(Method::PUT, base, &json!({"code_case": "insensitive"})).await;
    assert_eq!(refused.body["errors"][0]["pointer"], "/code_case", "{}", refused.text);
}

/// Runs the program next to a node, as somebody in its directory would.
fn run(node: &Node, args: &[&str]) -> Output {
    command(node.directory(), &Settings::default())
        .env("REDEEMER_URL", &node.url)
        .args(args)
        .output()
        .unwrap()
}

fn succeed(node: &Node, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = run(node, args);
    assert!(status.success(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn codes_are_made_shown_and_downloaded_on_the_command_line() {
    let node = Node::embedded();
    let generate = ["codes", "generate", "--count", "700", "--group", "team", "--max-uses", "1"];
    let made = succeed(
        &node,
        &[&generate[..], &["--pattern", "CLI-########", "--output", "json"]].concat(),
    );
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!((&made["state"], &made["done"]), (&json!("finished"), &json!(700)), "{made}");
    let id = made["id"].as_str().unwrap();
    let table = succeed(&node, &["codes", "show", id]);
    assert!(table.contains("STATE     finished") && table.contains("CLI-########"), "{table}");
    let csv = succeed(&node, &["codes", "download", id]);
    assert_eq!(codes_of(&csv).len(), 700);
    let ndjson = succeed(&node, &["codes", "download", id, "--output", "json"]);
    let first: Value = serde_json::from_str(ndjson.lines().next().unwrap()).unwrap();
    assert_eq!((ndjson.lines().count(), &first["code"]), (700, &json!(codes_of(&csv)[0])));
    succeed(&node, &["codes", "download", id, "--file", "codes.csv"]);
    let file = node.directory().join("codes.csv");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), csv);
    assert_private(&file);
    let listed = succeed(&node, &["invite", "list", "--batch", id, "--output", "json"]);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&listed).unwrap().len(), 700);

    // The service goes on by itself.
    let left = succeed(
        &node,
        &[&generate[..], &["--pattern", "########", "--no-wait", "--output", "json"]].concat(),
    );
    let left: Value = serde_json::from_str(&left).unwrap();
    let id = left["id"].as_str().unwrap();
    wait_until("they are made", || {
        succeed(&node, &["codes", "show", id, "--output", "csv"]).contains(",finished,")
    });
    let guessable =
        run(&node, &[&generate[..], &["--pattern", "####", "--alphabet", "digits"]].concat());
    let said = String::from_utf8(guessable.stderr).unwrap();
    assert_eq!(guessable.status.code(), Some(1));
    assert!(said.contains("pattern: makes 10000 different codes"), "{said}");
    let missing = run(&node, &["codes", "show", "0198c3a2-7b1e-7c4d-9a55-0123456789ab"]);
    assert!(String::from_utf8(missing.stderr).unwrap().contains("batch_not_found"));
}

fn assert_private(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
}
