//! Server-sent events: each change once, in order, from any node, also after a break.

use std::collections::BTreeSet;

use redeemer::domain::event;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    eventually, ledger,
    node::{Node, Settings, send},
    redis::RedisServer,
};

const EVENTS: &str = "/v1/namespaces/default/events";

/// A stream that is being read.
pub struct Stream {
    response: reqwest::Response,
    read: String,
    /// The last id, also one without an event.
    pub last: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: String,
    pub kind: String,
    pub data: Value,
}

impl Stream {
    async fn open(node: &Node, query: &str, last: Option<&str>) -> Self {
        Self::of(node, &format!("{EVENTS}{query}"), last).await
    }

    /// Opens the stream of any namespace.
    pub async fn of(node: &Node, path: &str, last: Option<&str>) -> Self {
        let mut request = node.request(Method::GET, path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, read: String::new(), last: String::new() }
    }

    /// The next event; nothing once the stream has ended.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.read.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                let field = |name: &str| {
                    let start = format!("{name}: ");
                    let line = block.lines().find_map(|line| line.strip_prefix(&start));
                    line.map(str::to_owned)
                };
                self.last = field("id").unwrap();
                if let Some(data) = field("data") {
                    return Some(Event {
                        id: self.last.clone(),
                        kind: field("event").unwrap(),
                        data: serde_json::from_str(&data).unwrap(),
                    });
                }
            }
            let piece = self.response.chunk().await.ok()??;
            self.read.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    pub async fn take(&mut self, count: usize) -> Vec<Event> {
        let mut all = Vec::new();
        while all.len() < count {
            all.push(self.next().await.unwrap());
        }
        all
    }
}

async fn deployment() -> (RedisServer, Settings, TempDir) {
    let redis = RedisServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        redis_url: Some(redis.url()),
        ledger: Some(ledger::url_in(directory.path())),
        env: vec![("REDEEMER_SYNC__LEASE_TTL_MS", "1000".to_owned())],
    };
    (redis, settings, directory)
}

async fn start(settings: &Settings) -> Node {
    let settings = settings.clone();
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    // Or that it was made is the first that a stream tells.
    node.until_ledger_has_default().await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn redemptions_and_changes_are_told_in_order_by_every_node() {
    let (_redis, settings, _directory) = deployment().await;
    let nodes = [start(&settings).await, start(&settings).await];
    // Whoever leads the partition, one of the two does not.
    let mut streams =
        [Stream::open(&nodes[0], "", None).await, Stream::open(&nodes[1], "", None).await];
    let invite = nodes[0].invite("WELCOME", "team", 5).await;
    let body = json!({"code": "WELCOME", "user": "alice", "metadata": {"a": 1}});
    let redeemed = nodes[1].post("/v1/namespaces/default/redemptions", &body).await.body;
    nodes[0].delete("/v1/namespaces/default/members/alice").await;
    nodes[0].send(Method::PUT, "/v1/namespaces/default/members/bob/team", &json!({})).await;
    let patch = json!({"disabled": true});
    let path = format!("/v1/namespaces/default/invites/{invite}");
    nodes[0].send(Method::PATCH, &path, &patch).await;
    // Another namespace's are not told.
    nodes[0].send(Method::PUT, "/v1/namespaces/other", &json!({})).await;
    nodes[0].send(Method::PATCH, "/v1/namespaces/default", &json!({"rate_ip": "9/60"})).await;

    let told = streams[0].take(6).await;
    assert_eq!(streams[1].take(6).await, told);
    let kinds: Vec<_> = told.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["invite_created", "redeemed", "left", "joined", "invite_changed", "namespace_put"]
    );
    assert!(kinds.iter().all(|kind| event::TYPES.contains(kind)));
    // A redemption is told as the API shows it.
    let shown = format!("/v1/namespaces/default/redemptions/{}", redeemed["id"].as_str().unwrap());
    let mut shown = nodes[0].get(&shown).await.body;
    assert_eq!(told[1].data["metadata"], json!({"a": 1}));
    shown["durability"] = json!("ledger");
    assert_eq!(told[1].data, shown);
    assert_eq!(told[1].id, redeemed["position"]);
    assert_eq!(
        (&told[0].data["action"], &told[0].data["subject"], &told[0].data["position"]),
        (&json!("invite_created"), &json!(invite), &json!(told[0].id))
    );
    assert_eq!(told[2].data["subject"], "alice from team");
    assert_eq!(told[3].data["actor"], "aaaaaaaaaaaaaaaa");
    assert!(told[3].data["at"].as_str().unwrap().ends_with('Z'));

    // From anywhere on, by header or by parameter, each of the rest comes once.
    for (place, event) in told.iter().enumerate() {
        let rest = &told[place + 1..];
        let mut by_header = Stream::open(&nodes[1], "?after=start", Some(&event.id)).await;
        assert_eq!(by_header.take(rest.len()).await, rest);
        let mut by_parameter = Stream::open(&nodes[0], &format!("?after={}", event.id), None).await;
        assert_eq!(by_parameter.take(rest.len()).await, rest);
    }
    let mut all = Stream::open(&nodes[0], "?after=start", None).await;
    assert_eq!(all.take(1).await[0].kind, "namespace_put", "that the namespace was made");
    assert_eq!(all.take(6).await, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_comes_back_again_and_again_during_a_rush_hears_of_each_once() {
    const COUNT: usize = 600;
    let (_redis, settings, _directory) = deployment().await;
    let nodes = [start(&settings).await, start(&settings).await];
    nodes[0].invite("RUSH", "team", COUNT as u64).await;
    // Before anything has happened, so that the first place is one without an event.
    let first = Stream::open(&nodes[1], "", None);
    let mut stream = first.await;
    let rush = async {
        let redeem = |n: usize| {
            let node = &nodes[n % 2];
            async move { assert_eq!(node.redeem("RUSH", &format!("user-{n}")).await.status, 201) }
        };
        let all = futures_util::stream::iter((0..COUNT).map(redeem));
        futures_util::StreamExt::for_each_concurrent(all, 20, |one| one).await;
    };
    let listen = async {
        let mut heard = Vec::new();
        for turn in 0.. {
            let events = stream.take((COUNT - heard.len()).min(37)).await;
            heard.extend(events.into_iter().filter(|event| event.kind == "redeemed"));
            if heard.len() == COUNT {
                return heard;
            }
            let last = stream.last.clone();
            stream = Stream::open(&nodes[turn % 2], "", Some(&last)).await;
        }
        unreachable!("it ends when all are heard")
    };
    let ((), heard) = tokio::join!(rush, listen);
    let ordinals: Vec<_> = heard.iter().map(|event| event.data["use"].as_u64().unwrap()).collect();
    assert!(ordinals.is_sorted(), "in the order in which they were granted");
    assert_eq!(ordinals.iter().collect::<BTreeSet<_>>().len(), COUNT);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_bounded_and_end_with_their_key_and_with_the_node() {
    let (_redis, mut settings, _directory) = deployment().await;
    settings.env.push(("REDEEMER_EVENTS__STREAMS_MAX", "2".to_owned()));
    let node = start(&settings).await;
    for (query, last) in [
        ("?after=yesterday", None),
        ("?after=1-2", None),
        ("?after=255/1-1", None),
        ("?nonsense=1", None),
        ("", Some("nonsense")),
        ("", Some("255/1-1")),
    ] {
        let mut request = node.request(Method::GET, &format!("{EVENTS}{query}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let reply = send(request).await.unwrap();
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{query} {last:?}");
    }
    let head = send(node.request(Method::HEAD, EVENTS)).await.unwrap();
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    let nowhere = node.get("/v1/namespaces/unheard-of/events").await;
    assert_eq!((nowhere.status, nowhere.code()), (404, "namespace_not_found"));
    let made = node.post("/v1/keys", &json!({"name": "x", "role": "read"})).await.body;
    let request = node.bare(Method::GET, EVENTS).bearer_auth(made["key"].as_str().unwrap());
    let response = request.send().await.unwrap();
    let mut with_key = Stream { response, read: String::new(), last: String::new() };
    let mut stream = Stream::open(&node, "", None).await;
    let third = node.get(EVENTS).await;
    assert_eq!((third.status, third.code()), (503, "overloaded"));
    node.delete(&format!("/v1/keys/{}", made["id"].as_str().unwrap())).await;
    assert_eq!(with_key.next().await, None, "its key is revoked");
    // Its place is free again.
    eventually("another one is served", async || {
        let request = node.request(Method::GET, EVENTS).send().await.unwrap();
        request.status() == 200
    })
    .await;
    let stopped = tokio::spawn(node.stop());
    assert_eq!(stream.next().await, None, "the node stops");
    assert_eq!(stopped.await.unwrap(), 0);
    assert!(!stream.last.is_empty(), "it knows where to go on");
}
