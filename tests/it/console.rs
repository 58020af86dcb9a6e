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
