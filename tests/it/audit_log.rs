//! Who changed what: every administrative change has its line, and no line is without its change.

use std::collections::BTreeSet;

use redeemer::{
    domain::{Cursor, Namespace},
    ledger::{AuditFilter, AuditPlace},
};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    eventually,
    ledger::{self, Sql},
    node::{ADMIN_KEY, Node, Reply, Settings, command, json_body, send},
    redis::RedisServer,
};

const ACME: &str = "/v1/namespaces/acme";

/// A node with a ledger that the test can see.
struct Service {
    node: Node,
    url: String,
    redis: RedisServer,
    _directory: TempDir,
}

impl Service {
    async fn start() -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let url = ledger::url_in(directory.path());
        let settings = Settings {
            redis_url: Some(redis.url()),
            ledger: Some(url.clone()),
            ..Settings::default()
        };
        let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
        // Nothing of the beginning comes between two looks at the log.
        node.until_ledger_has_default().await;
        Self { node, url, redis, _directory: directory }
    }

    /// With a key of the role manage.
    async fn as_manager(&self, key: &str, method: Method, path: &str, body: &Value) -> Reply {
        let request = self.node.bare(method, &format!("{ACME}{path}")).bearer_auth(key);
        let reply = send(json_body(request, body)).await.unwrap();
        assert!(reply.status < 300, "{path}: {}", reply.text);
        reply
    }

    /// All lines of a log, page by page.
    async fn lines(&self, path: &str, limit: u32) -> Vec<Value> {
        let mut lines = Vec::new();
        let mut next = format!("{path}{}limit={limit}", if path.contains('?') { '&' } else { '?' });
        loop {
            let page = self.node.get(&next).await;
            assert_eq!(page.status, 200, "{}", page.text);
            lines.extend(page.body["data"].as_array().unwrap().clone());
            let link = page.header("link");
            if link.is_empty() {
                return lines;
            }
            next = String::from(link.trim_start_matches('<').split('>').next().unwrap());
        }
    }
}

fn actions(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["action"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_administrative_change_has_its_line() {
    let service = Service::start().await;
    let node = &service.node;
    assert_eq!(node.send(Method::PUT, ACME, &json!({})).await.status, 201);
    let made = node
        .post("/v1/keys", &json!({"name": "the boss", "role": "manage", "namespaces": ["acme"]}))
        .await;
    let (id, key) = (made.body["id"].as_str().unwrap(), made.body["key"].as_str().unwrap());
    let ask =
        async |method, path: &str, body: Value| service.as_manager(key, method, path, &body).await;
    ask(Method::PATCH, "", json!({"rate_user": "5/60"})).await;
    let invite = json!({"code": "WELCOME", "group": "team", "max_uses": 5});
    let invite = ask(Method::POST, "/invites", invite).await;
    let path = format!("/invites/{}", invite.body["id"].as_str().unwrap());
    ask(Method::PATCH, &path, json!({"max_uses": 6})).await;
    ask(Method::DELETE, &path, json!({})).await;
    ask(Method::PUT, "/members/alice/team", json!({})).await;
    ask(Method::DELETE, "/members/alice/team", json!({})).await;
    ask(Method::PUT, "/campaigns/spring", json!({"max_uses": 9})).await;
    ask(Method::POST, "/invites", json!({"code": "MINE", "group": "team", "max_uses": 5})).await;
    let mine = json!({"code": "MINE", "user": "bob"});
    let held = ask(Method::POST, "/reservations", mine.clone()).await;
    let held = held.body["id"].as_str().unwrap();
    ask(Method::DELETE, &format!("/reservations/{held}"), json!({})).await;
    let redeemed = ask(Method::POST, "/redemptions", mine).await;
    let path = format!("/redemptions/{}/rollback", redeemed.body["id"].as_str().unwrap());
    ask(Method::POST, &path, json!({"reason": "a test"})).await;
    let batch = json!({"count": 3, "pattern": "B-######", "group": "team", "max_uses": 1});
    let ordered = ask(Method::POST, "/batches", batch).await;
    eventually("the batch is made", async || {
        let path = format!("{ACME}/batches/{}", ordered.body["id"].as_str().unwrap());
        node.get(&path).await.body["state"] == "finished"
    })
    .await;
    assert_eq!(node.delete(ACME).await.status, 204);
    let revoked = node.delete(&format!("/v1/keys/{id}")).await;
    assert_eq!(revoked.status, 204);

    let own = format!("{ACME}/audit");
    eventually("the last of them is in the ledger", async || {
        actions(&service.lines(&own, 100).await).contains(&"namespace_archived")
    })
    .await;
    let lines = service.lines(&own, 100).await;
    let mut sorted = actions(&lines);
    // Two clocks: Redis times what the gate has changed, the ledger the rest.
    sorted.retain(|action| *action != "batch_ordered");
    assert_eq!(
        sorted,
        [
            "namespace_archived",
            "invites_created",
            "redemption_rolled_back",
            "invite_created",
            "campaign_put",
            "left",
            "joined",
            "invite_deleted",
            "invite_changed",
            "invite_created",
            "namespace_put",
            "namespace_put",
        ]
    );
    let of = |action: &str| lines.iter().find(|line| line["action"] == action).unwrap();
    let joined = of("joined");
    assert_eq!(
        (&joined["actor"], &joined["actor_name"], &joined["subject"], &joined["namespace"]),
        (&json!(id), &json!("the boss"), &json!("alice in team"), &json!("acme"))
    );
    assert_eq!(of("batch_ordered")["request_id"], ordered.header("x-request-id"));
    let archived = of("namespace_archived");
    assert_eq!(archived["actor"], ADMIN_KEY.split('_').nth(1).unwrap());
    assert_eq!(archived["actor_name"], "configured");

    // What belongs to no namespace is in the log of all alone.
    let all = service.lines("/v1/audit", 100).await;
    let keys = service.lines("/v1/audit?action=key_revoked", 100).await;
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0]["request_id"], revoked.header("x-request-id"));
    assert_eq!(keys[0]["subject"], format!("{id} (manage of acme: the boss)"));
    assert!(actions(&all).contains(&"key_created") && !sorted.contains(&"key_created"));
    // Every line once, whatever the pages.
    assert_eq!(service.lines("/v1/audit", 2).await, all);
    assert_eq!(service.lines("/v1/audit", 1).await, all);
    assert_eq!(service.lines(&own, 3).await, lines);
    let ids: BTreeSet<_> = all.iter().map(|line| line["id"].to_string()).collect();
    assert_eq!(ids.len(), all.len());

    let joined_at = joined["at"].as_str().unwrap();
    let earlier = lines.iter().filter(|line| line["at"].as_str().unwrap() < joined_at).count();
    for (narrow, expected) in [
        (format!("actor={id}"), 11),
        // What users do is only listed for those who ask for it.
        ("action=reserved".to_owned(), 1),
        ("action=reservation_released".to_owned(), 1),
        ("actor=nobody".to_owned(), 0),
        ("action=namespace_put".to_owned(), 2),
        ("after=2099-01-01T00:00:00Z".to_owned(), 0),
        ("before=2099-01-01T00:00:00Z".to_owned(), lines.len()),
        (format!("before={joined_at}"), earlier),
        (format!("after={joined_at}"), lines.len() - earlier),
    ] {
        let found = service.lines(&format!("{own}?{narrow}"), 100).await;
        assert_eq!(found.len(), expected, "{narrow}");
    }
    for bad in ["actor=", "action=%00", "after=yesterday", "cursor=x", "who=me"] {
        let reply = node.get(&format!("{own}?{bad}")).await;
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{bad}");
    }
    let documented = include_str!("../../docs/api.md");
    for action in actions(&all) {
        assert!(documented.contains(&format!("`{action}`")), "docs/api.md lacks {action}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_and_a_refusal_leave_no_line() {
    let service = Service::start().await;
    let node = &service.node;
    let post = async |path: &str, body: Value| {
        let request = node.request(Method::POST, path).header("idempotency-key", "once");
        send(json_body(request, &body)).await.unwrap()
    };
    let key = json!({"name": "web", "role": "read"});
    let made = post("/v1/keys", key.clone()).await;
    assert_eq!(post("/v1/keys", key).await.status, 422);
    let path = format!("/v1/keys/{}", made.body["id"].as_str().unwrap());
    for _ in 0..2 {
        assert_eq!(node.delete(&path).await.status, 204);
    }
    assert_eq!(node.delete("/v1/keys/aaaaaaaaaaaaaaab").await.status, 404);
    let batch = json!({"count": 1, "pattern": "B-######", "group": "team", "max_uses": 1});
    for _ in 0..2 {
        let ordered = post("/v1/namespaces/default/batches", batch.clone()).await;
        assert_eq!(ordered.status, 202, "{}", ordered.text);
    }
    let mut other = batch;
    other["count"] = json!(2);
    assert_eq!(post("/v1/namespaces/default/batches", other).await.status, 422);
    for action in ["key_created", "key_revoked", "batch_ordered"] {
        let lines = service.lines(&format!("/v1/audit?action={action}"), 100).await;
        assert_eq!(lines.len(), 1, "{action}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_made_or_revoked_without_its_line() {
    let service = Service::start().await;
    let node = &service.node;
    let made = node.post("/v1/keys", &json!({"name": "web", "role": "read"})).await;
    let path = format!("/v1/keys/{}", made.body["id"].as_str().unwrap());
    let before = node.get("/v1/keys").await.body["data"].clone();
    let mut sql = Sql::connect(&service.url).await;
    sql.execute("ALTER TABLE deeds RENAME TO elsewhere").await;
    let refused = node.post("/v1/keys", &json!({"name": "late", "role": "read"})).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert_eq!(node.delete(&path).await.status, 503);
    sql.execute("ALTER TABLE elsewhere RENAME TO deeds").await;
    assert_eq!(node.get("/v1/keys").await.body["data"], before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_does_by_hand_is_written_down_too() {
    let service = Service::start().await;
    let settings = Settings {
        ledger: Some(service.url.clone()),
        redis_url: Some(service.redis.url()),
        ..Settings::default()
    };
    let by_hand = |args: &[&str]| {
        let mut command = command(service.node.directory(), &settings);
        let output = command.env("USER", "olivia").args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    service.node.invite("WELCOME", "team", 5).await;
    eventually("the ledger has it", async || {
        actions(&service.lines("/v1/audit", 100).await).contains(&"invite_created")
    })
    .await;
    let keys: Vec<String> = service.redis.run(&["KEYS", "*:invite:WELCOME"]).await;
    service.redis.run::<i64>(&["HSET", &keys[0], "max_uses", "7"]).await;
    by_hand(&["audit", "--repair"]);
    by_hand(&["rebuild", "--from-ledger", "--discard-gate", "--partition", "3"]);
    by_hand(&["key", "reset-admin"]);
    let lines = service.lines("/v1/audit?actor=cli:olivia", 100).await;
    let told: Vec<_> = lines.iter().map(|line| (&line["action"], &line["subject"])).collect();
    assert_eq!(actions(&lines), ["key_created", "rebuild_ordered", "keys_repaired"], "{told:?}");
    assert_eq!(lines[1]["subject"], "partition 3, from_ledger");
    assert!(lines[2]["subject"].as_str().unwrap().ends_with(", 1 keys"), "{told:?}");
    // And it is shown on the command line.
    let shown = by_hand(&[
        "audit-log",
        "--all",
        "--action",
        "rebuild_ordered",
        "--output",
        "csv",
        "--url",
        &service.node.url,
    ]);
    let mut shown = shown.lines();
    assert_eq!(shown.next(), Some("at,actor,actor_name,action,namespace,subject,request_id"));
    assert!(
        shown
            .next()
            .unwrap()
            .contains(",cli:olivia,,rebuild_ordered,,\"partition 3, from_ledger\",")
    );
    assert_eq!(shown.next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_one_moment_are_paged_without_a_hole() {
    let directory = tempfile::tempdir().unwrap();
    let url = ledger::url_in(directory.path());
    let ledger = ledger::open(&url).await;
    let mut sql = Sql::connect(&url).await;
    for number in 1..=4 {
        let at = if number < 4 { 1000 } else { 2000 };
        for partition in [0, 1] {
            sql.execute(&format!("INSERT INTO audit_log (partition, epoch, seq, at, actor, action, namespace, subject) VALUES ({partition}, {}, {number}, {at}, 'a', 'joined', 'acme', 'x')", 3 - partition)).await;
        }
        sql.execute(&format!("INSERT INTO deeds (at, actor, action, namespace, subject) VALUES ({at}, 'a', 'batch_ordered', 'acme', 'x')")).await;
    }
    let filter = AuditFilter {
        namespace: Some(Namespace::parse("acme").unwrap()),
        ..AuditFilter::default()
    };
    let whole = ledger.audit_log(&filter, None, 100).await.unwrap();
    assert_eq!((whole.rows.len(), whole.next), (12, None));
    assert!(matches!(whole.rows[0].place, AuditPlace::Deed(_)));
    let AuditPlace::Change(position) = whole.rows[1].place else { panic!("{whole:?}") };
    assert_eq!((position.partition.0, position.cursor), (1, Cursor { epoch: 2, seq: 4 }));
    for limit in 1..=5 {
        let (mut rows, mut from) = (Vec::new(), None);
        loop {
            let page = ledger.audit_log(&filter, from, limit).await.unwrap();
            rows.extend(page.rows);
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        assert_eq!(rows, whole.rows, "{limit} at a time");
    }
}
