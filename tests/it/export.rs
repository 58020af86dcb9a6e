//! Exports: all of it, in any size, and whole or not at all.

use std::{collections::BTreeSet, process::Output};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    eventually,
    node::{Node, Reply, Settings, command, send},
};

const BASE: &str = "/v1/namespaces/default";

async fn export(node: &Node, what: &str, accept: &str) -> Reply {
    let request = node.request(Method::GET, &format!("{BASE}/export/{what}"));
    let reply = send(request.header("accept", accept)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply
}

fn lines(reply: &Reply) -> Vec<Value> {
    reply.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A node with one invite that 2500 users have redeemed, one of whom begins with a formula.
async fn full() -> Node {
    let node = tokio::task::spawn_blocking(Node::embedded).await.unwrap();
    node.invite("RUSH", "team", 5000).await;
    let redeem = |n: usize| {
        let node = &node;
        let user = if n == 0 { "=cmd()".to_owned() } else { format!("user-{n}") };
        async move { assert_eq!(node.redeem("RUSH", &user).await.status, 201) }
    };
    let all = futures_util::stream::iter((0..2500).map(redeem));
    futures_util::StreamExt::for_each_concurrent(all, 50, |one| one).await;
    eventually("all are in the ledger", async || {
        let member = "/members?user=user-2499&limit=1";
        let invite = node.get(&format!("{BASE}/invites")).await.body["data"][0].clone();
        node.get(&format!("{BASE}{member}")).await.body["data"][0] != Value::Null
            && invite["uses"] == 2500
    })
    .await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_exported_as_the_api_shows_it() {
    let node = full().await;
    let rows = export(&node, "redemptions", "application/x-ndjson").await;
    assert_eq!(rows.header("content-type"), "application/x-ndjson");
    assert!(rows.header("x-as-of").ends_with('Z'));
    let redemptions = lines(&rows);
    let ordinals: Vec<_> = redemptions.iter().map(|row| row["use"].as_u64().unwrap()).collect();
    assert!(ordinals.iter().rev().copied().eq(1..=2500), "each once, the newest first");
    let id = redemptions[7]["id"].as_str().unwrap();
    assert_eq!(redemptions[7], node.get(&format!("{BASE}/redemptions/{id}")).await.body);
    let members = lines(&export(&node, "members", "application/x-ndjson").await);
    assert_eq!(
        members.iter().map(|row| row["user"].to_string()).collect::<BTreeSet<_>>().len(),
        2500
    );
    let invites = lines(&export(&node, "invites", "application/x-ndjson").await);
    let listed = node.get(&format!("{BASE}/invites")).await.body["data"].clone();
    assert_eq!(json!(invites), listed);

    // As CSV, exactly, or fit for a spreadsheet.
    let exact = export(&node, "members", "text/csv").await;
    assert!(exact.text.starts_with("user,group,redemption,joined_at\n=cmd(),team,"));
    assert_eq!(exact.text.lines().count(), 2501);
    let guarded = node.get(&format!("{BASE}/export/members?format=csv&spreadsheet=true")).await;
    assert!(guarded.text.starts_with("user,group,redemption,joined_at\n'=cmd(),team,"));
    for what in ["redemptions", "invites", "members"] {
        let reply = export(&node, what, "text/csv").await;
        let mut reader = csv::Reader::from_reader(reply.text.as_bytes());
        let names = reader.headers().unwrap().clone();
        let rows = lines(&export(&node, what, "application/x-ndjson").await);
        for (record, row) in reader.records().zip(rows) {
            for (name, text) in names.iter().zip(&record.unwrap()) {
                let value = &row[name];
                let same = match value {
                    Value::Null | Value::Array(_) => text.is_empty(),
                    Value::String(value) => value == text,
                    other => serde_json::from_str::<Value>(text).unwrap() == *other,
                };
                assert!(same, "{what} {name}: {value} as {text:?}");
            }
        }
    }
    // A cursor of the list goes on there, without the names of the columns.
    let page = node.get(&format!("{BASE}/redemptions?limit=1000")).await.body;
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = node.get(&format!("{BASE}/export/redemptions?format=ndjson&cursor={cursor}")).await;
    assert_eq!(lines(&rest), redemptions[1000..]);
    for bad in ["?format=xml", "?spreadsheet=yes", "?cursor=*", "?cursor=YQpiCmM", "?limit=5"] {
        let reply = node.get(&format!("{BASE}/export/redemptions{bad}")).await;
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{bad}");
    }
    let neither = node.request(Method::GET, &format!("{BASE}/export/members"));
    let neither = send(neither.header("accept", "application/json")).await.unwrap();
    assert_eq!((neither.status, neither.code()), (406, "not_acceptable"));
    let nowhere = node.get("/v1/namespaces/unheard-of/export/members").await;
    assert_eq!((nowhere.status, nowhere.code()), (404, "namespace_not_found"));
}

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
fn a_file_is_whole_or_has_another_name_and_goes_on_where_it_was_cut() {
    let node = tokio::runtime::Runtime::new().unwrap().block_on(full());
    for what in ["redemptions", "invites", "members"] {
        for output in ["csv", "json"] {
            let whole = succeed(&node, &["export", what, "--output", output]);
            let name = format!("{what}.{output}");
            let (file, part) =
                (node.directory().join(&name), node.directory().join(format!("{name}.part")));
            // Cut anywhere, also in the middle of a row, or before there is one.
            for keep in [0, 3, 70, whole.len() / 2, whole.len() - 1, whole.len()] {
                std::fs::write(&part, &whole[..keep.min(whole.len())]).unwrap();
                succeed(&node, &["export", what, "--output", output, "--file", &name]);
                assert!(std::fs::read_to_string(&file).unwrap() == whole, "{name} cut at {keep}");
                assert!(!part.exists());
            }
        }
    }
    let refused = run(&node, &["export", "members", "--file", "x.csv", "--namespace", "nowhere"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(!node.directory().join("x.csv").exists());
}
