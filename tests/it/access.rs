//! Who may do what: every route with every kind of key, and keys that come and go while nodes run.

use std::collections::BTreeMap;

use redeemer::{
    domain::{Millis, Role},
    ids::now,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    eventually,
    input::{assert_problem, filled},
    ledger,
    node::{Node, Settings, json_body, send},
    postgres::PostgresServer,
    redis::RedisServer,
    until_some,
};

async fn start(settings: &Settings) -> Node {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
}

async fn key(node: &Node, role: &str, only: Option<&str>) -> String {
    let body = json!({"name": role, "role": role, "namespaces": only.map(|only| [only])});
    let made = node.post("/v1/keys", &body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    made.body["key"].as_str().unwrap().to_owned()
}

/// What has to be asked to revoke a key.
fn place_of(key: &str) -> String {
    format!("/v1/keys/{}", key.split('_').nth(1).unwrap())
}

/// The role that the documents give each route; none means that no key is needed.
fn documented_roles() -> BTreeMap<String, Option<Role>> {
    let api = include_str!("../../docs/api.md");
    let rows = api.lines().filter_map(|line| {
        let (route, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let role = rest.split_once(" | ")?.0;
        let is_route = route.split_once(' ').is_some_and(|(_, path)| path.starts_with('/'));
        let role = if role == "–" { None } else { Some(Role::parse(role).ok()?) };
        is_route.then(|| (route.to_owned(), role))
    });
    rows.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_takes_every_kind_of_key_as_the_documents_say() {
    let env = vec![
        ("REDEEMER_PAGE__NAMESPACES", "acme".to_owned()),
        ("REDEEMER_PAGE__TOKEN_SECRET", "x".repeat(32)),
    ];
    let node = start(&Settings { env, ..Settings::default() }).await;
    node.send(Method::PUT, "/v1/namespaces/acme", &json!({})).await;
    let mut keys = Vec::new();
    for role in Role::ALL {
        let ties =
            if role == Role::Admin { &[None][..] } else { &[None, Some("acme"), Some("other")] };
        for only in ties {
            keys.push((role, *only, key(&node, role.as_str(), *only).await));
        }
    }
    let documented = documented_roles();
    let mut tried = 0;
    for (name, path, _) in redeemer::http::endpoints() {
        let what = format!("{name} {path}");
        let needed = documented.get(&what).unwrap_or_else(|| panic!("docs/api.md lacks {what}"));
        let ask = async |key: Option<&str>| {
            let request = node.bare(name.parse().unwrap(), &filled(path, "acme"));
            let request = if let Some(key) = key { request.bearer_auth(key) } else { request };
            // The head says it all, and an answer may be without end.
            request.send().await.unwrap()
        };
        let Some(needed) = *needed else {
            // Nobody has the invite that the page is asked for, and without a form it redeems for nobody.
            let expected = match &*what {
                "GET /i/{ns}/{code}" => 404,
                "POST /i/{ns}/{code}" => 415,
                _ => 200,
            };
            assert_eq!(ask(None).await.status(), expected, "{what} needs no key");
            continue;
        };
        let (id, _) = keys[0].2.rsplit_once('_').unwrap();
        let wrong_secret = format!("{id}_{}", "a".repeat(32));
        let longer = keys[0].2.replace('_', "_a");
        for wrong in [None, Some("rdm_nonsense"), Some(&*longer), Some(&*wrong_secret)] {
            let request = node.bare(name.parse().unwrap(), &filled(path, "acme"));
            let request = if let Some(key) = wrong { request.bearer_auth(key) } else { request };
            let reply = send(request).await.unwrap();
            assert_problem(&reply, 401..402, &what);
            assert_eq!(
                (reply.code(), reply.header("www-authenticate")),
                ("unauthorized", "Bearer"),
                "{what}"
            );
        }
        for (role, only, key) in &keys {
            let covers = !path.contains("{ns}") || only.is_none_or(|only| only == "acme");
            let allowed = role.includes(needed) && covers;
            let answer = ask(Some(key)).await;
            let status = answer.status().as_u16();
            let told = format!("{what} with {role:?} of {only:?}: {status}");
            assert_eq!(status != 403, allowed, "{told}");
            assert!(status != 401 && status < 500, "{told}");
            if !allowed {
                let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
                assert_eq!(body["code"], "forbidden", "{told}");
            }
            tried += 1;
        }
    }
    assert_eq!(documented.len(), redeemer::http::endpoints().count());
    assert!(tried > 250, "{tried}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_opens_nothing_and_what_is_configured_stays() {
    let node = start(&Settings::default()).await;
    let key = key(&node, "read", None).await;
    let ask = || send(node.bare(Method::GET, "/v1/namespaces").bearer_auth(&key));
    assert_eq!(ask().await.unwrap().status, 200);
    for _ in 0..2 {
        assert_eq!(node.delete(&place_of(&key)).await.status, 204);
        assert_eq!(ask().await.unwrap().status, 401);
    }
    assert_eq!(node.delete("/v1/keys/aaaaaaaaaaaaaaab").await.code(), "key_not_found");
    let listed = node.get("/v1/keys").await;
    let id = key.split('_').nth(1).unwrap();
    assert!(!listed.text.contains(&key) && listed.text.contains(id), "{}", listed.text);
    // The same request again makes no second key, and can not show the first one's secret again.
    let again = |name: &str| {
        let request = node.request(Method::POST, "/v1/keys").header("idempotency-key", "make-1");
        send(json_body(request, &json!({"name": name, "role": "read"})))
    };
    assert_eq!(again("one").await.unwrap().status, 201);
    assert_eq!(again("one").await.unwrap().code(), "idempotency_key_reused");
}

/// Asks a node with a key until it says so. How soon that is, `auth.refresh_ms` says, which is below a second.
async fn arrives(node: &Node, key: &str, expected: u16) {
    eventually(&format!("the node says {expected}"), async || {
        let request = node.bare(Method::GET, "/v1/namespaces").bearer_auth(key);
        send(request).await.unwrap().status == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_made_or_revoked_counts_on_the_other_node() {
    let redis = RedisServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        redis_url: Some(redis.url()),
        ledger: Some(ledger::url_in(directory.path())),
        ..Settings::default()
    };
    let nodes = [start(&settings).await, start(&settings).await];
    for round in 0..3 {
        let (here, there) = (&nodes[round % 2], &nodes[1 - round % 2]);
        let key = key(here, "read", None).await;
        arrives(here, &key, 200).await;
        arrives(there, &key, 200).await;
        assert_eq!(there.delete(&place_of(&key)).await.status, 204);
        // Where it was revoked, it opens nothing from the answer on.
        let request = there.bare(Method::GET, "/v1/namespaces").bearer_auth(&key);
        assert_eq!(send(request).await.unwrap().status, 401);
        arrives(here, &key, 401).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_ledger_is_down_known_keys_go_on_and_none_is_made_or_revoked() {
    let redis = RedisServer::start().await;
    let mut postgres = tokio::task::spawn_blocking(PostgresServer::start).await.unwrap();
    let settings = Settings {
        redis_url: Some(redis.url()),
        ledger: Some(postgres.create_database("ledger")),
        ..Settings::default()
    };
    let node = start(&settings).await;
    node.invite("OPEN", "team", 10).await;
    let key = key(&node, "redeem", None).await;
    let redeem = async |user: &str| {
        let path = "/v1/namespaces/default/redemptions";
        let request = node.bare(Method::POST, path).bearer_auth(&key);
        send(json_body(request, &json!({"code": "OPEN", "user": user}))).await.unwrap()
    };
    assert_eq!(redeem("alice").await.status, 201);
    postgres.kill();
    assert_eq!(redeem("bob").await.status, 201);
    let made = node.post("/v1/keys", &json!({"name": "late", "role": "read"})).await;
    assert_eq!((made.status, made.code()), (503, "ledger_unavailable"), "{}", made.text);
    let revoked = node.delete(&place_of(&key)).await;
    assert_eq!((revoked.status, revoked.code()), (503, "ledger_unavailable"), "{}", revoked.text);
    // The node has looked for changes in vain by now, and still knows the key.
    eventually("the node has noticed", async || node.log().contains("those known stay")).await;
    assert_eq!(redeem("carol").await.status, 201);
    postgres.restart();
    eventually("the key is revoked", async || node.delete(&place_of(&key)).await.status == 204)
        .await;
    assert_eq!(redeem("dave").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_an_end_opens_until_then() {
    let node = start(&Settings::default()).await;
    let make = async |end: Value| {
        let body = json!({"name": "guest", "role": "read", "expires_at": end});
        node.post("/v1/keys", &body).await
    };
    let past = make(json!("2020-01-01T00:00:00Z")).await;
    assert_eq!((past.status, past.code()), (400, "invalid_request"), "{}", past.text);
    // A node that gets no processor for so long finds it in the past.
    let (end, made) = until_some("one is made in time", async || {
        let end = Millis::from_ms(now().as_ms() + 2000).unwrap();
        let made = make(json!(end)).await;
        (made.status == 201).then_some((end, made))
    })
    .await;
    let key = made.body["key"].as_str().unwrap();
    let ask = || send(node.bare(Method::GET, "/v1/namespaces").bearer_auth(key));
    let before = ask().await.unwrap();
    assert!(before.status == 200 || now() >= end, "{}", before.text);
    eventually("it has ended", async || ask().await.unwrap().status == 401).await;
    assert!(now() >= end);
    let listed = node.get("/v1/keys").await;
    let guest = listed.body["data"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&guest["expires_at"], &guest["revoked_at"]),
        (&made.body["expires_at"], &Value::Null)
    );
    // One without an end has null there.
    assert!(
        node.post("/v1/keys", &json!({"name": "x", "role": "read"})).await.body["expires_at"]
            .is_null()
    );
}
