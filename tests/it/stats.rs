//! Statistics: how requests ended on all nodes together, what is left, and how far the ledger is.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    ledger,
    node::{Node, Settings, command},
    redis::RedisServer,
    until_some,
};

const STATS: &str = "/v1/namespaces/default/stats";

/// The sums, once they are these.
async fn totals(node: &Node, expected: &Value) -> Value {
    until_some("the counts are in the ledger", async || {
        let stats = node.get(&format!("{STATS}?step=hour")).await.body;
        (stats["totals"] == *expected && stats["sync"]["behind"] == 0).then_some(stats)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_counted_on_all_nodes_and_outlive_them() {
    let redis = RedisServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        redis_url: Some(redis.url()),
        ledger: Some(ledger::url_in(directory.path())),
        env: vec![("REDEEMER_STATS__FLUSH_MS", "50".to_owned())],
    };
    let start = || {
        let settings = settings.clone();
        async move { tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap() }
    };
    let nodes = [start().await, start().await];
    let node = &nodes[0];
    nodes[0].invite("TWO", "team", 2).await;
    nodes[0].invite("MANY", "team", 10).await;
    let base = "/v1/namespaces/default";
    let free = json!({"code": "FREE", "group": "other", "max_uses": null});
    node.post(&format!("{base}/invites"), &free).await;
    let off = json!({"code": "OFF", "group": "other", "max_uses": 4});
    let off = node.post(&format!("{base}/invites"), &off).await.body["id"].clone();
    let off = format!("{base}/invites/{}", off.as_str().unwrap());
    node.send(Method::PATCH, &off, &json!({"disabled": true})).await;
    for (turn, (code, user)) in [
        ("TWO", "alice"),
        ("TWO", "bob"),
        ("TWO", "carol"),
        ("MANY", "alice"),
        ("MANY", "dave"),
        ("MANY", "dave"),
        ("NONE", "erin"),
        ("OFF", "erin"),
    ]
    .into_iter()
    .enumerate()
    {
        nodes[turn % 2].redeem(code, user).await;
    }
    // What is none of a namespace that there is, or no request at all, is not counted.
    node.post("/v1/namespaces/unheard-of/redemptions", &json!({"code": "A", "user": "a"})).await;
    node.post(&format!("{base}/redemptions"), &json!({})).await;
    let expected = json!({
        "already_member": 1, "granted": 3, "invite_disabled": 1, "invite_exhausted": 1,
        "invite_not_found": 1, "replayed": 1,
    });
    let stats = totals(node, &expected).await;
    assert_eq!(
        stats["invites"],
        json!({
            "active": 2, "scheduled": 0, "exhausted": 1, "expired": 0, "disabled": 1, "uses": 3,
            "remaining": 9, "unlimited": 1,
        })
    );
    let steps = stats["steps"].as_array().unwrap();
    let granted: u64 = steps.iter().filter_map(|step| step["outcomes"]["granted"].as_u64()).sum();
    assert_eq!(granted, 3);
    assert!(stats["sync"]["as_of"].is_string() && stats["sync"]["position"].is_string());
    assert!(steps.iter().all(|step| step["at"].as_str().unwrap().ends_with(":00:00.000Z")));
    let earlier = "from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z";
    let before = node.get(&format!("{STATS}?{earlier}")).await.body;
    assert_eq!((&before["totals"], &before["steps"]), (&json!({}), &json!([])));
    for bad in [
        "step=week",
        "from=yesterday",
        "from=2020-01-02T00:00:00Z&to=2020-01-02T00:00:00Z",
        "from=2020-01-01T00:00:00Z&to=2020-01-03T00:00:00Z",
        "nonsense=1",
    ] {
        let reply = node.get(&format!("{STATS}?{bad}")).await;
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{bad}");
    }
    let nowhere = node.get("/v1/namespaces/unheard-of/stats").await;
    assert_eq!((nowhere.status, nowhere.code()), (404, "namespace_not_found"));

    // A node that comes later counts on, and one that stops has written all of it.
    let [first, second] = nodes;
    assert_eq!(first.stop().await, 0);
    second.redeem("FREE", "frank").await;
    assert_eq!(second.stop().await, 0);
    let later = start().await;
    later.redeem("FREE", "grace").await;
    let mut expected = expected;
    expected["granted"] = json!(5);
    totals(&later, &expected).await;
    let shown = tokio::task::spawn_blocking(move || {
        let mut command = command(later.directory(), &Settings::default());
        command.env("REDEEMER_URL", &later.url).args(["stats", "--step", "day"]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    });
    let shown = shown.await.unwrap();
    assert!(
        shown.contains("all") && shown.contains("granted") && shown.contains("REMAINING"),
        "{shown}"
    );
}
