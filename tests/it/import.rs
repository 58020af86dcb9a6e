//! Imports: the good lines are taken over, the bad ones are told, and the same again changes nothing.

use std::process::Output;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    eventually,
    node::{Node, Reply, Settings, command, send},
};

const BASE: &str = "/v1/namespaces/default";
const NDJSON: &str = "application/x-ndjson";

async fn node() -> Node {
    // Comparing twelve thousand invites takes a while where everything else is busy too.
    let env = vec![("REDEEMER_HTTP__REQUEST_TIMEOUT_MS", "60000".to_owned())];
    let settings = Settings { env, ..Settings::default() };
    tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
}

/// What an import said: its bad lines and its summary.
async fn import(node: &Node, what: &str, media_type: &str, body: String) -> (Vec<Value>, Value) {
    let request = node.request(Method::POST, &format!("{BASE}/import/{what}"));
    let reply = send(request.header("content-type", media_type).body(body)).await.unwrap();
    assert_eq!((reply.status, reply.header("content-type")), (200, NDJSON), "{}", reply.text);
    let mut lines: Vec<Value> =
        reply.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap()["summary"].clone();
    lines.retain(|line| line["progress"].is_null());
    (lines, summary)
}

fn counts(summary: &Value) -> [u64; 4] {
    ["lines", "imported", "unchanged", "bad"].map(|name| summary[name].as_u64().unwrap())
}

async fn assert_consistent(node: &Node) {
    let report = node.get(&format!("{BASE}/consistency")).await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

fn lines(all: &[Value]) -> String {
    all.iter().fold(String::new(), |text, line| text + &line.to_string() + "\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_come_with_the_uses_that_are_spent() {
    let node = node().await;
    node.invite("HERE", "team", 5).await;
    let all = [
        json!({"code": "old-1", "group": "team", "max_uses": 10, "uses": 7, "metadata": {"a": 1}}),
        json!({"code": "OLD-2", "group": "team", "max_uses": 3, "uses": 3}),
        json!({"code": "OLD-3", "group": "other", "max_uses": null, "uses": 0, "disabled": true}),
        json!({"code": "here", "group": "team", "max_uses": 5}),
        json!({"code": "OLD-4", "group": "team", "max_uses": 2, "uses": 3}),
        json!({"code": "OLD-5", "group": "team"}),
        json!({"code": "a b", "group": "team", "max_uses": 1}),
        json!({"code": "OLD-6", "group": "team", "max_uses": 1, "nonsense": 1}),
        json!({"code": "OLD-1", "group": "team", "max_uses": 11, "uses": 7}),
        json!({"code": "OLD-7", "group": "team", "max_uses": 5, "expires_at": "2099-01-01T00:00:00Z", "user": "zoe"}),
    ];
    let body = format!("\n{}not json\n[]", lines(&all));
    let (bad, summary) = import(&node, "invites", NDJSON, body.clone()).await;
    assert_eq!(counts(&summary), [12, 4, 0, 8], "{summary} {bad:?}");
    assert_eq!((&summary["complete"], &summary["stopped"]), (&json!(true), &Value::Null));
    let mut told: Vec<_> = bad
        .iter()
        .map(|one| (one["line"].as_u64().unwrap(), one["code"].as_str().unwrap()))
        .collect();
    told.sort_unstable();
    let invalid = "invalid_request";
    assert_eq!(
        told,
        [
            (5, "code_taken"),
            (6, invalid),
            (7, invalid),
            (8, "code_malformed"),
            (9, invalid),
            (10, "code_taken"),
            (12, invalid),
            (13, invalid)
        ]
    );
    let of = |line: u64| bad.iter().find(|one| one["line"] == line).unwrap();
    assert_eq!(of(6)["errors"][0]["pointer"], "/uses");
    assert!(of(5)["invite"].is_string() && of(12)["detail"].as_str().unwrap().contains("JSON"));

    // Their uses go on where they were.
    let redeemed = node.redeem("OLD-1", "alice").await;
    assert_eq!(
        (redeemed.status, &redeemed.body["use"], &redeemed.body["remaining"]),
        (201, &json!(8), &json!(2))
    );
    assert_eq!(node.redeem("OLD-2", "bob").await.code(), "invite_exhausted");
    assert_eq!(node.redeem("OLD-3", "bob").await.code(), "invite_disabled");
    assert_eq!(node.redeem("OLD-7", "bob").await.code(), "user_not_allowed");
    let shown = node.get(&format!("{BASE}/invites/by-code/OLD-1")).await.body;
    assert_eq!((&shown["uses"], &shown["metadata"]), (&json!(8), &json!({"a": 1})));
    assert_consistent(&node).await;
    // One that has uses from elsewhere is in use, and its limit knows of them.
    let path = format!("{BASE}/invites/{}", shown["id"].as_str().unwrap());
    assert_eq!(node.delete(&path).await.code(), "invite_in_use");
    let lowered = node.send(Method::PATCH, &path, &json!({"max_uses": 7})).await;
    assert_eq!(lowered.code(), "limit_below_used");

    // The same again changes nothing, also after things have gone on.
    let (_, again) = import(&node, "invites", NDJSON, body).await;
    assert_eq!(counts(&again), [12, 0, 4, 8], "{again}");
    let shown = node.get(&format!("{BASE}/invites/by-code/OLD-1")).await.body;
    assert_eq!(shown["uses"], 8);
    assert_consistent(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_with_the_day_on_which_they_joined() {
    let node = node().await;
    node.invite("WELCOME", "team", 5).await;
    node.redeem("WELCOME", "alice").await;
    let csv = "user,group,joined_at\n\
               bob,team,2020-01-02T03:04:05Z\n\
               \"car,ol\",\"te\"\"am\",\n\
               alice,team,2020-01-01T00:00:00Z\n\
               bob,other,2021-01-01T00:00:00Z\n\
               dave\n\
               ,team,\n\
               erin,team,yesterday\r\n";
    let (bad, summary) = import(&node, "members", "text/csv", csv.to_owned()).await;
    assert_eq!(counts(&summary), [7, 2, 0, 5], "{summary} {bad:?}");
    let at: Vec<_> = bad.iter().map(|one| one["line"].as_u64().unwrap()).collect();
    assert_eq!(at.iter().sum::<u64>(), 4 + 5 + 6 + 7 + 8, "{bad:?}");
    let taken = bad.iter().find(|one| one["line"] == 5).unwrap();
    assert_eq!((&taken["code"], &taken["group"]), (&json!("already_member"), &json!("team")));
    let bob = node.get(&format!("{BASE}/members/bob/team")).await.body;
    assert_eq!(bob["joined_at"], "2020-01-02T03:04:05.000Z");
    assert_eq!(node.get(&format!("{BASE}/members/car%2Col")).await.status, 200);
    // The rule holds for them from now on.
    assert_eq!(node.redeem("WELCOME", "bob").await.code(), "already_member");
    let (_, again) = import(&node, "members", "text/csv", csv.to_owned()).await;
    assert_eq!(counts(&again), [7, 0, 2, 5], "{again}");
    assert_consistent(&node).await;
    eventually("the list shows it", async || {
        let listed = node.get(&format!("{BASE}/members?user=bob")).await.body;
        listed["data"][0]["joined_at"] == "2020-01-02T03:04:05.000Z"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_lines_go_in_and_come_out_the_same() {
    const COUNT: usize = 12_000;
    let node = node().await;
    let line = |n: usize| json!({"code": format!("BULK-{n:05}"), "group": "team", "max_uses": 9, "uses": n % 10});
    let body = lines(&(0..COUNT).map(line).collect::<Vec<_>>());
    let (bad, summary) = import(&node, "invites", NDJSON, body.clone()).await;
    assert_eq!(counts(&summary), [12_000, 12_000, 0, 0].map(|n| n), "{summary}");
    assert!(bad.is_empty());
    let out = node.get(&format!("{BASE}/export/invites?format=ndjson")).await;
    let rows: Vec<Value> =
        out.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), COUNT);
    assert!(rows.iter().enumerate().all(|(n, row)| row["uses"] == n % 10));
    let (_, again) = import(&node, "invites", NDJSON, body).await;
    assert_eq!(counts(&again), [12_000, 0, 12_000, 0]);
    assert_consistent(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_import_is_refused() {
    let settings = Settings {
        env: vec![("REDEEMER_HTTP__IMPORT_BYTES_MAX", "1024".to_owned())],
        ..Settings::default()
    };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    let ask = async |path: &str, media_type: &str| -> Reply {
        let request = node.request(Method::POST, path).header("content-type", media_type);
        send(request.body("{}\n")).await.unwrap()
    };
    let json = ask(&format!("{BASE}/import/invites"), "application/json").await;
    assert_eq!((json.status, json.code()), (415, "unsupported_media_type"));
    // With wrong columns every line would be bad.
    for (columns, why) in [("code,group,max_uses,colour", "\"colour\""), ("code,group", "max_uses")]
    {
        let path = format!("{BASE}/import/invites");
        let request = node.request(Method::POST, &path).header("content-type", "text/csv");
        let reply = send(request.body(format!("{columns}\n"))).await.unwrap();
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{}", reply.text);
        assert!(reply.body["detail"].as_str().unwrap().contains(why), "{}", reply.text);
    }
    let nowhere = ask("/v1/namespaces/unheard-of/import/members", NDJSON).await;
    assert_eq!((nowhere.status, nowhere.code()), (404, "namespace_not_found"));
    let (bad, empty) = import(&node, "members", NDJSON, String::new()).await;
    assert_eq!((bad.len(), counts(&empty)), (0, [0; 4]));
    // What came before is kept, and the summary says that it is not all.
    let line = json!({"user": "alice", "group": "team"});
    let body = format!("{line}\n{}", "x".repeat(2000));
    let (_, summary) = import(&node, "members", NDJSON, body).await;
    assert_eq!(summary["complete"], false);
    assert!(summary["stopped"].as_str().unwrap().contains("at most 1024 bytes"), "{summary}");
}

fn run(node: &Node, args: &[&str]) -> Output {
    command(node.directory(), &Settings::default())
        .env("REDEEMER_URL", &node.url)
        .args(args)
        .output()
        .unwrap()
}

/// The guide, walked: an application with invites and members of its own in SQL moves over.
#[test]
fn an_application_with_invites_and_members_of_its_own_moves_over() {
    let node = Node::embedded();
    let directory = node.directory();
    let guide = std::fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cut-over.md"),
    )
    .unwrap();
    let sql = crate::docs::blocks_of(&guide, "Export", "sql").remove(0);
    let commands = crate::docs::blocks_of(&guide, "Import", "sh").remove(0);
    // What the application has: the tables of the guide.
    let program = r#"
import csv, sqlite3, sys
db = sqlite3.connect(":memory:")
db.executescript("""
CREATE TABLE invites (id INTEGER PRIMARY KEY, code TEXT, team TEXT, max_uses INTEGER, used INTEGER, expires_at TEXT);
CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE memberships (account_id INTEGER, team TEXT, joined_at TEXT);
INSERT INTO invites VALUES (1, 'SUMMER', 'blue', 100, 40, NULL), (2, 'FULL', 'red', 5, 5, '2099-01-01T00:00:00Z');
INSERT INTO accounts VALUES (1, 'ann'), (2, 'ben'), (3, 'cid');
INSERT INTO memberships VALUES (1, 'blue', '2024-05-06T07:08:09Z'), (2, 'red', '2024-05-07T07:08:09Z');
""")
queries = [part for part in open("export.sql").read().split(";") if part.strip()]
for name, query in zip(["invites.csv", "members.csv"], queries):
    cursor = db.execute(query)
    with open(name, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column[0] for column in cursor.description])
        writer.writerows(cursor)
"#;
    std::fs::write(directory.join("export.sql"), sql).unwrap();
    let exported = std::process::Command::new("python3")
        .args(["-c", program])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    for _ in 0..2 {
        for line in commands.lines().filter(|line| line.starts_with("redeemer ")) {
            let args: Vec<_> = line.split_whitespace().skip(1).collect();
            let Output { status, stdout, stderr } = run(&node, &args);
            let said =
                String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
            assert!(status.success(), "{line}: {said}");
        }
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let redeemed = node.redeem("summer", "3").await;
        assert_eq!(
            (redeemed.status, &redeemed.body["use"]),
            (201, &json!(41)),
            "{}",
            redeemed.text
        );
        assert_eq!(node.redeem("SUMMER", "1").await.code(), "already_member");
        assert_eq!(node.redeem("FULL", "4").await.code(), "invite_exhausted");
    });
    // A bad line is told, and the exit code says that there was one.
    std::fs::write(directory.join("bad.ndjson"), "{\"user\": \"x\"}\n").unwrap();
    let bad = run(&node, &["import", "members", "bad.ndjson"]);
    assert_eq!(bad.status.code(), Some(1));
    let said = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(said.contains("line 1: invalid_request: group is needed"), "{said}");
}
