//! The console's files, and what the API has because the console needs it. What it does in a browser:
//! `tests/console/run`.

use std::{collections::BTreeSet, fs, path::Path};

use redeemer::domain::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    eventually,
    node::{Node, send},
};

/// What a file names in single or double quotes.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split(['"', '\'']).skip(1).step_by(2).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_needs_nothing_from_anywhere_else() {
    let node = Node::embedded();
    let page = send(node.bare(Method::GET, "/console")).await.unwrap();
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(!page.text.contains("//"), "the page names another server: {}", page.text);
    // Nothing in the page itself that its policy would have to allow.
    for inline in ["<script>", "<style", "style=", " on"] {
        assert!(!page.text.contains(inline), "{inline}: {}", page.text);
    }
    // Every file that a file of the page names, from the page on.
    let mut open: Vec<String> = quoted(&page.text)
        .into_iter()
        .filter(|text| text.starts_with("/console/"))
        .map(str::to_owned)
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(path) = open.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let file = send(node.bare(Method::GET, &path)).await.unwrap();
        assert_eq!(file.status, 200, "{path}");
        let kind = match path.rsplit('.').next().unwrap() {
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => "text/javascript; charset=utf-8",
        };
        for (header, value) in [
            ("content-type", kind),
            ("cache-control", "no-cache"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            (
                "content-security-policy",
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                 frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            ),
        ] {
            assert_eq!(file.header(header), value, "{path}");
        }
        let known = node.bare(Method::GET, &path).header("if-none-match", file.header("etag"));
        let again = send(known).await.unwrap();
        assert_eq!((again.status, again.text.as_str()), (304, ""), "{path}");
        let (directory, _) = path.rsplit_once('/').unwrap();
        for name in quoted(&file.text).into_iter().filter_map(|text| text.strip_prefix("./")) {
            open.push(format!("{directory}/{name}"));
        }
    }
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("console");
    let files = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    for module in files.filter(|path| path.extension().is_some_and(|kind| kind == "js")) {
        let path = format!("/console/{}", module.file_name().unwrap().display());
        assert!(seen.contains(&path), "nothing loads {path}");
    }
    for missing in [
        "/console/",
        "/console/..%2fCargo.toml",
        "/console/nothing.js",
        "/console/vendor/README.md",
    ] {
        assert_eq!(node.get(missing).await.code(), "route_not_found", "{missing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_told_what_it_may_do() {
    let node = Node::embedded();
    for role in Role::ALL {
        let only = if role == Role::Admin { Value::Null } else { json!(["default"]) };
        let body = json!({"name": "mine", "role": role.as_str(), "namespaces": only});
        let mut made = node.post("/v1/keys", &body).await.body;
        let key = made.as_object_mut().unwrap().remove("key").unwrap();
        let request = node.bare(Method::GET, "/v1/keys/self").bearer_auth(key.as_str().unwrap());
        let own = send(request).await.unwrap();
        if role == Role::Redeem {
            assert_eq!((own.status, own.code()), (403, "forbidden"));
        } else {
            assert_eq!((own.status, own.body), (200, made));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_has_each_partition_with_its_leader_and_what_the_ledger_lacks() {
    let node = Node::embedded();
    node.invite("OPEN", "team", 10).await;
    eventually("the ledger has it all", async || {
        let status = node.get("/v1/status").await.body;
        let partitions = status["partitions"].as_array().unwrap().clone();
        partitions.len() == 16
            && partitions.iter().enumerate().all(|(number, partition)| {
                partition["partition"] == number
                    && partition["state"] == "open"
                    && partition["reason"].is_null()
                    && partition["leader"] == status["node"]
                    && partition["outbox_entries"] == 0
                    && partition["outbox_age_ms"].is_null()
            })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_limited_is_told_by_policy_until_the_person_is_forgotten() {
    let node = Node::embedded();
    node.invite("OPEN", "team", 10).await;
    node.invite("OTHER", "team", 10).await;
    let limits = json!({"rate_user": "1/3600", "rate_guess": "1/3600"});
    node.send(Method::PATCH, "/v1/namespaces/default", &limits).await;
    let ask = async |path: &str, body: Value| {
        node.post(&format!("/v1/namespaces/default/{path}"), &body).await
    };
    assert_eq!(ask("redemptions", json!({"code": "OPEN", "user": "alice"})).await.status, 201);
    for path in ["redemptions", "reservations"] {
        let refused = ask(path, json!({"code": "OTHER", "user": "alice"})).await;
        assert_eq!(refused.code(), "rate_limited", "{path}");
    }
    for _ in 0..2 {
        ask("validations", json!({"code": "NOBODY", "ip": "2001:db8:1:2:3:4:5:6"})).await;
    }
    let limited = async || node.get("/v1/namespaces/default/rate-limited").await.body;
    let found = limited().await;
    let of = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        (text("policy"), text("kind"), text("subject"), row["refused"].as_u64().unwrap())
    };
    let rows: BTreeSet<_> = found["data"].as_array().unwrap().iter().map(of).collect();
    let expected = [("user", "user", "alice", 2), ("guess", "ip", "2001:db8:1:2::/64", 1)];
    let expected = expected.map(|(policy, kind, subject, refused)| {
        (policy.to_owned(), kind.to_owned(), subject.to_owned(), refused)
    });
    assert_eq!(rows, BTreeSet::from(expected), "{found}");
    // The last first, and it is free later than it was refused.
    assert_eq!(found["data"][0]["policy"], "guess");
    for row in found["data"].as_array().unwrap() {
        assert!(row["free_at"].as_str() > row["last_at"].as_str(), "{row}");
        assert!(row["first_at"].as_str() <= row["last_at"].as_str(), "{row}");
    }
    // Another namespace has none of it.
    node.send(Method::PUT, "/v1/namespaces/acme", &json!({})).await;
    let other = node.get("/v1/namespaces/acme/rate-limited").await.body;
    assert_eq!(other["data"], json!([]));
    eventually("alice is forgotten", async || {
        // 404 where that had no answer in time, and has happened since.
        let status = node.delete("/v1/namespaces/default/users/alice").await.status;
        [200, 404].contains(&status)
    })
    .await;
    assert!(!limited().await.to_string().contains("alice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_an_invite_show_what_redis_holds_of_it() {
    let node = Node::embedded();
    let body = json!({"code": "OPEN", "group": "team", "max_uses": 1});
    let invite = node.post("/v1/namespaces/default/invites", &body).await.body;
    let commands = async |id: &Value| {
        let id = id.as_str().unwrap();
        let path = format!("/v1/namespaces/default/invites/{id}/commands");
        let found = node.get(&path).await.body["commands"].as_array().unwrap().clone();
        found.into_iter().map(|command| command.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let found = commands(&invite["id"]).await;
    assert_eq!(found.last().unwrap(), "redeemer inspect --namespace default --code OPEN");
    let own = found.iter().find(|command| command.contains(":invite:OPEN")).unwrap();
    let shown = std::process::Command::new("sh").args(["-c", own]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(invite["id"].as_str().unwrap()), "{own}: {shown}");
    // Once another invite has its code, it lies elsewhere.
    node.redeem("OPEN", "alice").await;
    let next = node.post("/v1/namespaces/default/invites", &body).await;
    assert_eq!(next.status, 201, "{}", next.text);
    let found = commands(&invite["id"]).await;
    let own = found.iter().find(|command| command.contains(":retired:")).unwrap();
    let shown = std::process::Command::new("sh").args(["-c", own]).output().unwrap();
    assert!(String::from_utf8(shown.stdout).unwrap().contains("OPEN"), "{own}");
    assert_eq!(node.get("/v1/namespaces/default/invites/nothing/commands").await.status, 404);
}
