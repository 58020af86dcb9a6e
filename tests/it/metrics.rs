//! Metrics: that each tells what it says, and none tells of whom.
//!
//! `deploy` asks a real Prometheus whether alerts and dashboard find what they ask for; here it is the values.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
};

use reqwest::Method;
use serde_json::json;

use crate::support::{
    eventually,
    ledger::Sql,
    node::{ADMIN_KEY, Node, Settings, json_body, send},
    proxy::{Fault, Proxy},
    receiver::Receiver,
    redis::RedisServer,
};

const BASE: &str = "/v1/namespaces/default";

async fn start(env: &[(&'static str, &str)], redis_url: Option<String>) -> Node {
    let env = env.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let settings = Settings { redis_url, env, ..Settings::default() };
    tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
}

/// A metric that is there.
async fn value(node: &Node, name: &str, labels: &[&str]) -> f64 {
    let found = node.metric(name, labels).await;
    found.unwrap_or_else(|| panic!("no series of {name} with {labels:?}"))
}

/// Compares as whole numbers: what is counted is.
#[track_caller]
fn assert_is(value: f64, expected: u32, what: &str) {
    assert!((value - f64::from(expected)).abs() < 0.5, "{what} is {value} and not {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_named_by_the_rules_and_their_labels_name_nobody() {
    let node = start(&[("REDEEMER_WEBHOOKS__ALLOW_PRIVATE", "true")], None).await;
    let base = "/v1/namespaces/secret-space";
    assert_eq!(node.send(Method::PUT, base, &json!({"rate_user": "3/60"})).await.status, 201);
    let invite = json!({"code": "SECRETCODE", "group": "secret-group", "max_uses": 2});
    assert_eq!(node.post(&format!("{base}/invites"), &invite).await.status, 201);
    let hook = Receiver::start().await;
    let hook = json!({"url": hook.url.replace("/hook", "/secret-hook")});
    assert_eq!(node.post(&format!("{base}/webhooks"), &hook).await.status, 201);
    for number in 0..6 {
        let body = json!({
            "code": if number % 2 == 0 { "SECRETCODE" } else { "SECRETGUESS" }, "user": "secret-user",
            "email": "a@secret-mail.example", "ip": "203.0.113.77", "metadata": {"secret": 1},
        });
        node.post(&format!("{base}/redemptions"), &body).await;
        node.post(&format!("{base}/validations"), &json!({"code": "SECRETCODE"})).await;
    }
    for path in ["members/secret-user", "invites/by-code/SECRETCODE", "secret-nothing"] {
        node.get(&format!("{base}/{path}")).await;
    }
    send(node.bare(Method::GET, "/i/secret-space/SECRETCODE")).await.unwrap();
    send(node.bare("SECRETMETHOD".parse().unwrap(), base)).await.unwrap();
    let nobody = json!({"url": "http://127.0.0.1:9/secret-hook"});
    assert_eq!(node.post(&format!("{base}/webhooks"), &nobody).await.status, 201);
    assert_eq!(node.delete(&format!("{base}/members/secret-user")).await.status, 204);
    for result in ["result=\"delivered\"", "result=\"failed\""] {
        node.until_metric("redeemer_webhook_attempts_total", &[result], |n| n > 0.5).await;
    }

    let text = node.get("/metrics").await.text;
    let lower = text.to_lowercase();
    for word in ["secret", "203.0.113", ADMIN_KEY, "aaaaaaaaaaaaaaaa"] {
        assert!(!lower.contains(word), "{word} is in {text}");
    }
    // Each of these has few values: see the words beside their names in docs/api.md.
    let known = BTreeSet::from([
        "check",
        "code",
        "how",
        "kind",
        "le",
        "method",
        "outcome",
        "partition",
        "policy",
        "result",
        "route",
        "state",
        "status",
        "version",
    ]);
    let series = text.lines().filter(|line| !line.starts_with('#'));
    for line in series.filter_map(|line| line.split_once('{')?.1.rsplit_once('}')) {
        for label in line.0.split("\",") {
            let (name, _) = label.split_once('=').unwrap();
            assert!(known.contains(name), "{name} in {line:?}");
        }
    }
    let routes: BTreeSet<_> = redeemer::http::endpoints().map(|(_, path, _)| path).collect();
    for part in text.split("route=\"").skip(1) {
        let route = part.split('"').next().unwrap();
        assert!(route == "none" || routes.contains(route), "{route}");
    }

    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut child = promtool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_requests_end_is_counted_and_who_was_refused_by_which_limit() {
    let node = start(&[], None).await;
    let limits = json!({"rate_user": "2/3600", "rate_guess": "1/3600", "rate_ip": "5/3600"});
    assert_eq!(node.send(Method::PATCH, BASE, &limits).await.status, 200);
    // What can happen is there before it happens.
    for policy in ["user", "ip", "code", "namespace", "guess"] {
        let policy = format!("policy=\"{policy}\"");
        assert_is(value(&node, "redeemer_rate_limited_total", &[&policy]).await, 0, &policy);
    }
    node.invite("ONE", "team", 1).await;
    for (user, status) in [("alice", 201), ("alice", 200), ("bob", 410), ("bob", 410), ("bob", 429)]
    {
        let reply = node.redeem("ONE", user).await;
        assert_eq!(reply.status, status, "{}", reply.text);
    }
    let path = format!("{BASE}/redemptions");
    let from = |user: &str| json!({"code": "NONE", "user": user, "ip": "203.0.113.1"});
    assert_eq!(node.post(&path, &from("carol")).await.status, 404);
    assert_eq!(node.post(&path, &from("dora")).await.code(), "too_many_attempts");
    for (name, label, expected) in [
        ("redeemer_redemptions_total", "outcome=\"granted\"", 1),
        ("redeemer_redemptions_total", "outcome=\"replayed\"", 1),
        ("redeemer_redemptions_total", "outcome=\"invite_exhausted\"", 2),
        ("redeemer_redemptions_total", "outcome=\"rate_limited\"", 1),
        ("redeemer_redemptions_total", "outcome=\"invite_not_found\"", 1),
        ("redeemer_redemptions_total", "outcome=\"too_many_attempts\"", 1),
        ("redeemer_rate_limited_total", "policy=\"user\"", 1),
        ("redeemer_rate_limited_total", "policy=\"guess\"", 1),
        ("redeemer_rate_limited_total", "policy=\"ip\"", 0),
        ("redeemer_problems_total", "code=\"invite_exhausted\"", 2),
        ("redeemer_problems_total", "code=\"outcome_unknown\"", 0),
    ] {
        assert_is(value(&node, name, &[label]).await, expected, &format!("{name} {label}"));
    }
    let route = "route=\"/v1/namespaces/{ns}/redemptions\"";
    for (status, expected) in [("201", 1), ("200", 1), ("410", 2), ("429", 2), ("404", 1)] {
        let labels = ["method=\"POST\"", route, &format!("status=\"{status}\"")];
        let counted = value(&node, "redeemer_http_requests_total", &labels).await;
        assert_is(counted, expected, status);
    }
    assert_is(value(&node, "redeemer_http_request_seconds_count", &[route]).await, 7, "their time");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_stage_of_a_redemption_is_timed_in_buckets() {
    let node = start(&[], None).await;
    node.invite("STAGES", "team", 100).await;
    let stages = [
        "redeemer_gate_queue_seconds",
        "redeemer_gate_call_seconds",
        "redeemer_gate_batch_requests",
        "redeemer_ledger_wait_seconds",
        "redeemer_sync_batch_entries",
        "redeemer_sync_commit_seconds",
        "redeemer_sync_lag_seconds",
    ];
    let mut before = Vec::new();
    for stage in stages {
        before.push(node.metric(&format!("{stage}_count"), &[]).await.unwrap_or_default());
    }
    let asked = (0..8).map(async |number| {
        let body =
            json!({"code": "STAGES", "user": format!("user-{number}"), "durability": "ledger"});
        let request = node.request(Method::POST, &format!("{BASE}/redemptions"));
        assert_eq!(send(json_body(request, &body)).await.unwrap().status, 201);
    });
    futures_util::future::join_all(asked).await;
    for (stage, before) in stages.into_iter().zip(before) {
        let count = format!("{stage}_count");
        node.until_metric(&count, &[], |now| now > before).await;
        let all = value(&node, &count, &[]).await;
        let bucket = value(&node, &format!("{stage}_bucket"), &["le=\"+Inf\""]).await;
        assert!(bucket >= all, "{stage}: {bucket} in all buckets, {all} in all");
        assert!(value(&node, &format!("{stage}_sum"), &[]).await > 0.0, "{stage}");
    }
    // Each request once, however many went together.
    let queued = value(&node, "redeemer_gate_queue_seconds_count", &[]).await;
    let sent = value(&node, "redeemer_gate_batch_requests_sum", &[]).await;
    assert_is(queued, 8, "requests that waited");
    assert_is(sent, 8, "requests of all batches");
    assert_is(value(&node, "redeemer_ledger_wait_seconds_count", &[]).await, 8, "answers");
    // The namespace, the invite, and eight redemptions.
    node.until_metric("redeemer_sync_entries_total", &[], |n| n > 9.5).await;
    assert_is(value(&node, "redeemer_sync_entries_total", &[]).await, 10, "changes");
    assert_is(value(&node, "redeemer_partitions", &["state=\"open\""]).await, 16, "open ones");
    assert_is(value(&node, "redeemer_partitions_led", &[]).await, 16, "led ones");
    assert_is(value(&node, "redeemer_check_ok", &["check=\"redis\""]).await, 1, "Redis");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_in_a_lane_and_calls_without_an_answer_are_seen() {
    let redis = RedisServer::plain().await;
    let proxy = Proxy::start(redis.socket()).await;
    let quick = [("REDEEMER_GATE__BATCH_MAX", "1"), ("REDEEMER_REDIS__REPLY_TIMEOUT_MS", "1000")];
    let node = start(&quick, Some(proxy.url())).await;
    node.invite("LANE", "team", 100).await;
    assert_eq!(node.redeem("LANE", "warm").await.status, 201);
    let waiting = "redeemer_gate_waiting_requests";
    assert_is(value(&node, waiting, &[]).await, 0, waiting);
    proxy.set(Fault::SwallowReplies);
    let users: Vec<_> = (0..10).map(|number| format!("user-{number}")).collect();
    let asked = futures_util::future::join_all(users.iter().map(|user| node.redeem("LANE", user)));
    let watched = async {
        node.until_metric(waiting, &[], |n| n > 0.0).await;
        let lost = ["kind=\"unknown\""];
        node.until_metric("redeemer_gate_call_failures_total", &lost, |n| n > 0.0).await;
        proxy.set(Fault::None);
    };
    tokio::join!(asked, watched);
    node.until_metric(waiting, &[], |n| n < 0.5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ledger_lacks_is_seen_by_its_length_and_its_age() {
    let node = start(&[], None).await;
    node.invite("BEHIND", "team", 100).await;
    let (entries, age) = ("redeemer_outbox_entries", "redeemer_outbox_age_seconds");
    node.until_metric(entries, &[], |n| n < 0.5).await;
    let mut writer = Sql::connect(&node.ledger_url()).await;
    writer.hold().await;
    for number in 0..5 {
        assert_eq!(node.redeem("BEHIND", &format!("user-{number}")).await.status, 201);
    }
    node.until_metric(entries, &[], |n| n > 3.5).await;
    node.until_metric(age, &[], |seconds| seconds > 0.5).await;
    writer.let_go().await;
    node.until_metric(entries, &[], |n| n < 0.5).await;
    node.until_metric(age, &[], |seconds| seconds < 0.5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_lost_histories_dead_letters_and_holes_are_counted() {
    let mut redis = RedisServer::start().await;
    let env = [("REDEEMER_SYNC__AUDIT_EVERY_SECONDS", "1"), ("REDEEMER_GATE__PARTITIONS", "1")];
    let node = start(&env, Some(redis.url())).await;
    let (adopted, rebuilt) = (["how=\"adopted\""], ["how=\"rebuilt\""]);
    let recoveries = "redeemer_recoveries_total";
    // A first start has no history to lose.
    assert_is(value(&node, recoveries, &[]).await, 0, recoveries);
    node.invite("WELL", "team", 100).await;
    assert_eq!(node.redeem("WELL", "alice").await.status, 201);

    let invites: Vec<String> = redis.run(&["KEYS", "*:default:invite:WELL"]).await;
    node.until_metric("redeemer_drift", &[], |n| n < 0.5).await;
    redis.run::<()>(&["HSET", &invites[0], "uses", "77"]).await;
    node.until_metric("redeemer_drift", &[], |n| n > 0.5).await;
    redis.run::<()>(&["HSET", &invites[0], "uses", "1"]).await;
    node.until_metric("redeemer_drift", &[], |n| n < 0.5).await;

    redis.run::<()>(&["SAVE"]).await;
    redis.kill();
    redis.restart().await;
    node.until_metric(recoveries, &adopted, |n| n > 0.5).await;
    assert_is(value(&node, recoveries, &rebuilt).await, 0, "rebuilds before");
    redis.run::<()>(&["FLUSHALL"]).await;
    node.until_metric(recoveries, &rebuilt, |n| n > 0.5).await;
    eventually("alice gets her answer", async || node.redeem("WELL", "alice").await.status == 200)
        .await;

    let stem = invites[0].split(":default").next().unwrap();
    let (meta, outbox) = (format!("{stem}:meta"), format!("{stem}:outbox"));
    let append = async |step: &str| {
        redis.append_to_outbox(&meta, &outbox, step, "nonsense").await;
    };
    assert_is(value(&node, "redeemer_dead_letters_total", &[]).await, 0, "letters before");
    append("1").await;
    node.until_metric("redeemer_dead_letters_total", &[], |n| n > 0.5).await;
    assert_is(value(&node, "redeemer_sync_gaps_total", &[]).await, 0, "holes before");
    append("2").await;
    node.until_metric("redeemer_sync_gaps_total", &[], |n| n > 0.5).await;
    node.until_metric("redeemer_partitions", &["state=\"stuck\""], |n| n > 0.5).await;
}
