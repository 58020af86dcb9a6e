//! `Idempotency-Key` on every `POST`: a repeat does nothing more and is told the same, another request with that key is
//! refused.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::node::{Node, Reply, Settings, json_body, send};

const BASE: &str = "/v1/namespaces/default";

/// Those that a repeat does again, whatever the key: they change nothing that counts, and say so.
const AGAIN: [&str; 5] = [
    "/validations",
    "/webhooks/{id}/rotate-secret",
    "/deliveries/{id}/retry",
    // Each line is known when it comes again.
    "/import/invites",
    "/import/members",
];

async fn node() -> Node {
    let env = vec![("REDEEMER_WEBHOOKS__ALLOW_PRIVATE", "true".to_owned())];
    let settings = Settings { env, ..Settings::default() };
    tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
}

async fn post(node: &Node, path: &str, key: &str, body: &Value) -> Reply {
    let request = node.request(Method::POST, path).header("idempotency-key", key);
    let reply = send(json_body(request, body)).await.unwrap();
    assert_eq!(reply.header("idempotency-key"), key, "{path}");
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_any_post_does_nothing_more() {
    let node = node().await;
    node.invite("WELCOME", "team", 9).await;
    node.invite("OTHER", "team", 9).await;
    let reserved = post(
        &node,
        &format!("{BASE}/reservations"),
        "hold",
        &json!({"code": "WELCOME", "user": "bob"}),
    )
    .await;
    let reservation = reserved.body["id"].as_str().unwrap().to_owned();
    let redeemed = node.redeem("WELCOME", "carol").await;
    let redemption = redeemed.body["id"].as_str().unwrap().to_owned();
    let invite = json!({
        "group": "team", "max_uses": 5, "starts_at": "2026-01-01T00:00:00Z", "expires_at": "2100-01-01T00:00:00Z",
        "user": "dora", "email_domains": ["example.com"], "metadata": {"a": 1},
    });
    let with = |field: &str, value: Value| {
        let mut changed = invite.clone();
        changed[field] = value;
        changed
    };
    let batch = json!({"count": 3, "pattern": "B-########", "group": "team", "max_uses": 1});
    let webhook = json!({"url": "http://127.0.0.1:9/hook"});
    // What is asked, how, and requests that are not the same.
    let cases: Vec<(&str, String, Value, Vec<Value>)> = vec![
        (
            "/redemptions",
            format!("{BASE}/redemptions"),
            json!({"code": "WELCOME", "user": "alice"}),
            vec![json!({"code": "OTHER", "user": "alice"})],
        ),
        (
            "/reservations",
            format!("{BASE}/reservations"),
            json!({"code": "WELCOME", "user": "eve"}),
            vec![],
        ),
        (
            "/reservations/{id}/confirm",
            format!("{BASE}/reservations/{reservation}/confirm"),
            json!({}),
            vec![],
        ),
        (
            "/redemptions/{id}/rollback",
            format!("{BASE}/redemptions/{redemption}/rollback"),
            json!({"reason": "a mistake"}),
            vec![],
        ),
        (
            "/invites",
            format!("{BASE}/invites"),
            invite.clone(),
            vec![
                with("group", json!("other")),
                with("max_uses", json!(null)),
                with("max_uses_per_user", json!(1)),
                with("starts_at", json!(null)),
                with("expires_at", json!("2101-01-01T00:00:00Z")),
                with("user", json!(null)),
                with("email_domains", json!([])),
                with("metadata", json!({"a": 2})),
                with("code", json!("MINE")),
            ],
        ),
        (
            "/batches",
            format!("{BASE}/batches"),
            batch.clone(),
            vec![json!({"count": 4, "pattern": "B-########", "group": "team", "max_uses": 1})],
        ),
        (
            "/webhooks",
            format!("{BASE}/webhooks"),
            webhook,
            vec![json!({"url": "http://127.0.0.1:9/other"})],
        ),
    ];
    for (what, path, body, others) in &cases {
        let first = post(&node, path, "same", body).await;
        assert!((200..300).contains(&first.status), "{what}: {}", first.text);
        let again = post(&node, path, "same", body).await;
        assert!((200..300).contains(&again.status), "{what}: {}", again.text);
        assert_eq!(first.body["id"], again.body["id"], "{what}");
        assert!(first.body["id"].is_string(), "{what}: {}", first.text);
        for other in others {
            let refused = post(&node, path, "same", other).await;
            assert_eq!(
                (refused.status, refused.code()),
                (422, "idempotency_key_reused"),
                "{what} {other}: {}",
                refused.text
            );
        }
        // Another's key is another key.
        if others.len() > 1 {
            let other = post(&node, path, "another", body).await;
            assert_ne!(first.body["id"], other.body["id"], "{what}");
        }
    }
    // The secret of a key is shown once, so its repeat can not be told the same.
    let key = json!({"name": "web", "role": "read"});
    let first = post(&node, "/v1/keys", "same", &key).await;
    let again = post(&node, "/v1/keys", "same", &key).await;
    assert_eq!((first.status, again.code()), (201, "idempotency_key_reused"));
    assert_eq!(again.body["key"], first.body["id"]);

    let mut told: BTreeSet<_> = cases.iter().map(|(what, ..)| *what).chain(AGAIN).collect();
    told.insert("/v1/keys");
    for (method, path, _) in redeemer::http::endpoints() {
        let what = path.strip_prefix("/v1/namespaces/{ns}").unwrap_or(path);
        // A token names the request: see the tests of the page.
        let is_named = what == "/i/{ns}/{code}";
        let is_told = method != "POST" || told.contains(what) || is_named;
        assert!(is_told, "what does a repeat of {what} do?");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_was_changed_is_still_told_to_a_repeat() {
    let node = node().await;
    let path = format!("{BASE}/invites");
    let body = json!({"code": "CHANGED", "group": "team", "max_uses": 5});
    let made = post(&node, &path, "same", &body).await;
    let own = format!("{path}/{}", made.body["id"].as_str().unwrap());
    assert_eq!(node.send(Method::PATCH, &own, &json!({"max_uses": 6})).await.status, 200);
    let again = post(&node, &path, "same", &body).await;
    assert_eq!((again.status, &again.body["max_uses"]), (201, &json!(6)), "{}", again.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_has_no_revision() {
    let node = node().await;
    for (path, body) in [
        ("/v1/namespaces/new", json!({})),
        ("/v1/namespaces/default/campaigns/new", json!({"max_uses": 1})),
    ] {
        let request = node.request(Method::PUT, path).header("if-match", "\"1\"");
        let refused = send(json_body(request, &body)).await.unwrap();
        assert_eq!((refused.status, refused.code()), (412, "precondition_failed"), "{path}");
        assert_eq!(node.get(path).await.status, 404, "{path}");
    }
}
