//! Forgetting a person: nothing has the name any more, and everything else is as it was.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    eventually,
    ledger::Sql,
    node::{Node, json_body, send, signal},
    redis::keys_and_values,
};

const NS: &str = "/v1/namespaces/default";
/// Found nowhere by chance, and full of what SQL and Redis would take for something else.
const USER: &str = "zoë % _ in team*";

async fn node() -> Node {
    tokio::task::spawn_blocking(Node::embedded).await.unwrap()
}

async fn post(node: &Node, path: &str, key: &str, body: Value) -> Value {
    let request = node.request(Method::POST, &format!("{NS}{path}")).header("idempotency-key", key);
    let reply = send(json_body(request, &body)).await.unwrap();
    assert!(reply.status < 300, "{}", reply.text);
    reply.body
}

fn user_path() -> String {
    format!("{NS}/users/zo%C3%AB%20%25%20_%20in%20team*")
}

/// All that the tables hold, as text.
async fn everything(sql: &mut Sql) -> String {
    let mut all = Vec::new();
    for (table, columns) in [
        ("redemptions", "user_id || '|' || request || '|' || COALESCE(metadata, '')"),
        ("members", "user_id"),
        ("reservations", "user_id"),
        ("invites", "COALESCE(user_id, '')"),
        ("audit_log", "subject || '|' || COALESCE(user_id, '')"),
        ("claims", "user_id"),
        ("dead_letters", "entry"),
    ] {
        for row in sql.texts(&format!("SELECT {columns} AS row FROM {table}")).await {
            all.push(format!("{table}: {row}"));
        }
    }
    all.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_forgotten_everywhere_and_every_count_holds() {
    let node = node().await;
    node.invite("ONE", "team", 5).await;
    node.invite("TWO", "others", 5).await;
    let bound = json!({"code": "MINE", "group": "team", "max_uses": 1, "user": USER});
    let bound = node.post(&format!("{NS}/invites"), &bound).await;
    assert_eq!(bound.status, 201, "{}", bound.text);
    post(&node, "/reservations", "hold", json!({"code": "TWO", "user": USER})).await;
    let about = json!({"name": USER});
    let first = json!({"code": "ONE", "user": USER, "metadata": about});
    let redeemed = post(&node, "/redemptions", &format!("key-of-{}", "zoe"), first.clone()).await;
    let member = format!("{NS}/members/zo%C3%AB%20%25%20_%20in%20team*");
    assert_eq!(node.delete(&format!("{member}/team")).await.status, 204);
    assert_eq!(node.send(Method::PUT, &format!("{member}/team"), &json!({})).await.status, 201);
    // Whose name begins in the same way stays who it is.
    let other = "zoë % _ in team* in team";
    post(&node, "/redemptions", "other", json!({"code": "TWO", "user": other})).await;

    let erased = node.delete(&user_path()).await;
    assert_eq!(erased.status, 200, "{}", erased.text);
    let alias = erased.body["alias"].as_str().unwrap();
    assert!(alias.starts_with("erased-"), "{alias}");

    // At the moment of the answer, in SQL and in Redis.
    let mut sql = Sql::connect(&node.ledger_url()).await;
    let rows = everything(&mut sql).await;
    let names = |text: &str| text.replace(other, "").contains("zoë");
    assert!(!names(&rows) && !rows.contains("key-of-zoe"), "{rows}");
    assert!(rows.contains(other) && rows.contains(alias), "{rows}");
    eventually("the outbox is trimmed", async || {
        !names(&keys_and_values(&node.directory().join("redis/redis.sock")).await)
    })
    .await;

    // What there was still is, under the other name.
    let id = redeemed["id"].as_str().unwrap();
    let shown = node.get(&format!("{NS}/redemptions/{id}")).await;
    assert_eq!((&shown.body["user"], &shown.body["use"]), (&json!(alias), &json!(1)));
    assert!(shown.body["metadata"].is_null(), "{}", shown.text);
    assert_eq!(node.get(&format!("{NS}/members/{alias}/team")).await.status, 200);
    assert_eq!(node.get(&member).await.status, 404);
    let invite = node.get(&format!("{NS}/invites/by-code/ONE")).await;
    assert_eq!(invite.body["uses"], 1);
    let mine = node.get(bound.header("location")).await;
    assert_eq!(mine.body["user"], alias);
    let two = node.get(&format!("{NS}/invites/by-code/TWO")).await;
    assert_eq!([&two.body["held"], &two.body["uses"]], [&json!(0), &json!(1)]);
    let report = node.get(&format!("{NS}/consistency")).await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);

    // A redemption of that person can still be taken back; nobody is left to forget; the id is a new person's.
    let rollback = format!("{NS}/redemptions/{id}/rollback");
    assert_eq!(node.post(&rollback, &json!({"reason": "test"})).await.status, 200);
    let again = node.delete(&user_path()).await;
    assert_eq!((again.status, again.code()), (404, "user_not_found"), "{}", again.text);
    let request = node.request(Method::POST, &format!("{NS}/redemptions"));
    let request = request.header("idempotency-key", "key-of-zoe");
    let anew = send(json_body(request, &first)).await.unwrap();
    assert_eq!((anew.status, &anew.body["use"]), (201, &json!(2)), "{}", anew.text);
    let report = node.get(&format!("{NS}/consistency")).await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_stays_forgotten_when_redis_is_lost() {
    let directory = tempfile::Builder::new().prefix("rdm-erase-").tempdir().unwrap();
    let path = directory.path().to_owned();
    let start = async |path: std::path::PathBuf| {
        tokio::task::spawn_blocking(move || {
            Node::start_at(&path, &crate::support::node::Settings::default())
        })
        .await
        .unwrap()
    };
    let mut node = start(path.clone()).await;
    node.invite("ONE", "team", 5).await;
    post(&node, "/redemptions", "key", json!({"code": "ONE", "user": USER})).await;
    let alias = node.delete(&user_path()).await.body["alias"].as_str().unwrap().to_owned();
    let pid = std::fs::read_to_string(path.join("redis/redis.pid")).unwrap();
    node.kill();
    signal(pid.trim().parse().unwrap(), "KILL");
    std::fs::remove_dir_all(path.join("redis")).unwrap();
    drop(node);
    let node = start(path).await;
    assert_eq!(node.get(&format!("{NS}/members/{alias}/team")).await.status, 200);
    assert_eq!(node.delete(&user_path()).await.code(), "user_not_found");
    let report = node.get(&format!("{NS}/consistency")).await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_forgotten_while_a_dead_letter_may_bring_the_name_back() {
    let node = node().await;
    node.invite("ONE", "team", 5).await;
    post(&node, "/redemptions", "key", json!({"code": "ONE", "user": USER})).await;
    let mut sql = Sql::connect(&node.ledger_url()).await;
    sql.execute(
        "INSERT INTO dead_letters (partition, epoch, seq, entry, reason, at) VALUES (6, 1, 999999, '{}', 'test', 0)",
    )
    .await;
    let waits = node.delete(&user_path()).await;
    assert_eq!((waits.status, waits.code()), (409, "dead_letters_wait"), "{}", waits.text);
    sql.execute("DELETE FROM dead_letters").await;
    assert_eq!(node.delete(&user_path()).await.status, 200);
}
