//! Webhooks: signed as Standard Webhooks says, at least once whatever is killed, and never to where they must not go.

use std::{collections::BTreeSet, process::Command};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    eventually, ledger,
    node::{Node, Reply, Settings, json_body, send},
    receiver::{Answer, Message, Receiver},
    redis::RedisServer,
    until_some,
};

const WEBHOOKS: &str = "/v1/namespaces/default/webhooks";

struct Deployment {
    settings: Settings,
    _redis: RedisServer,
    _directory: TempDir,
}

impl Deployment {
    async fn start(env: &[(&'static str, &str)]) -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let mut all = vec![
            ("REDEEMER_SYNC__LEASE_TTL_MS", "1000".to_owned()),
            ("REDEEMER_WEBHOOKS__ALLOW_PRIVATE", "true".to_owned()),
            ("REDEEMER_WEBHOOKS__RETRY_FIRST_MS", "10".to_owned()),
        ];
        all.extend(env.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let settings = Settings {
            redis_url: Some(redis.url()),
            ledger: Some(ledger::url_in(directory.path())),
            env: all,
        };
        Self { settings, _redis: redis, _directory: directory }
    }

    async fn node(&self) -> Node {
        let settings = self.settings.clone();
        let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
        // Or that it was made is the first that a webhook hears.
        node.until_ledger_has_default().await;
        node
    }
}

/// Makes a webhook; returns it with its secret.
async fn create(node: &Node, url: &str, types: Value) -> Value {
    let made = node.post(WEBHOOKS, &json!({"url": url, "event_types": types})).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert!(made.header("location").ends_with(made.body["id"].as_str().unwrap()));
    made.body
}

fn path(webhook: &Value, rest: &str) -> String {
    format!("{WEBHOOKS}/{}{rest}", webhook["id"].as_str().unwrap())
}

/// The deliveries of a webhook, once they are so many and none waits.
async fn settled(node: &Node, webhook: &Value, count: usize) -> Vec<Value> {
    until_some("the deliveries come to an end", async || {
        let all = node.get(&path(webhook, "/deliveries")).await.body["data"].clone();
        let all = all.as_array().unwrap().clone();
        let done = all.iter().all(|delivery| delivery["state"] != "waiting");
        (done && all.len() == count).then_some(all)
    })
    .await
}

/// The signature of a message, as somebody else computes it.
fn signed(secret: &Value, message: &Message) -> String {
    let program = "
import base64, hashlib, hmac, os, sys
key = base64.b64decode(os.environ['SECRET'].removeprefix('whsec_'))
text = (os.environ['ID'] + '.' + os.environ['AT'] + '.').encode() + os.environ['BODY'].encode()
print('v1,' + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode(), end='')";
    let output = Command::new("python3")
        .args(["-c", program])
        .env("SECRET", secret.as_str().unwrap())
        .env("ID", message.id())
        .env("AT", &message.headers["webhook-timestamp"])
        .env("BODY", &message.text)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn wait_for(receiver: &Receiver, count: usize) -> Vec<Message> {
    until_some("the receiver hears of it", async || {
        let all = receiver.received();
        (all.len() >= count).then_some(all)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_wants_is_told_once_and_signed() {
    let deployment = Deployment::start(&[]).await;
    let node = deployment.node().await;
    let receiver = Receiver::start().await;
    node.invite("BEFORE", "team", 5).await;
    node.redeem("BEFORE", "nobody").await;
    eventually("it is in the ledger", async || {
        node.get("/v1/namespaces/default/redemptions").await.body["data"][0] != Value::Null
    })
    .await;
    let webhook = create(&node, &receiver.url, json!(["redeemed", "left"])).await;
    assert!(webhook["secret"].as_str().unwrap().starts_with("whsec_"));
    assert_eq!(
        (&webhook["state"], &webhook["event_types"]),
        (&json!("active"), &json!(["left", "redeemed"]))
    );

    node.invite("WELCOME", "team", 5).await;
    let metadata = json!({"code": "WELCOME", "user": "älice", "metadata": {"quote": "\"'"}});
    let redeemed = node.post("/v1/namespaces/default/redemptions", &metadata).await.body;
    node.delete(&format!("/v1/namespaces/default/members/{}", "%C3%A4lice")).await;
    let log = settled(&node, &webhook, 2).await;
    let told = receiver.received();
    assert_eq!(told.len(), 2, "each once, and what it does not want not at all");
    let by_kind = |kind: &str| told.iter().find(|one| one.body()["type"] == kind).unwrap();
    let (grant, left) = (by_kind("redeemed"), by_kind("left"));
    assert_eq!(grant.body()["data"]["id"], redeemed["id"]);
    assert_eq!(grant.body()["data"]["metadata"], metadata["metadata"]);
    assert_eq!(grant.body()["timestamp"], redeemed["redeemed_at"]);
    assert_eq!(left.body()["data"]["subject"], "älice from team");
    for message in &told {
        assert_eq!(message.headers["webhook-signature"], signed(&webhook["secret"], message));
        assert_eq!(message.headers["content-type"], "application/json");
        let at: i64 = message.headers["webhook-timestamp"].parse().unwrap();
        assert!((at - redeemer::ids::now().as_ms() / 1000).abs() < 60);
    }
    // The log has them, the newest first, and page by page.
    assert_eq!((&log[0]["type"], &log[0]["id"]), (&json!("left"), &json!(left.id())));
    assert_eq!((&log[1]["event"], &log[1]["id"]), (&redeemed["position"], &json!(grant.id())));
    assert_eq!((&log[1]["attempts"], &log[1]["response_status"]), (&json!(1), &json!(204)));
    let page = node.get(&path(&webhook, "/deliveries?state=delivered&limit=1")).await;
    assert_eq!(page.body["data"], json!([log[0]]));
    let next = page.body["next_cursor"].as_str().unwrap();
    let page = node.get(&path(&webhook, &format!("/deliveries?limit=1&cursor={next}"))).await;
    assert_eq!((&page.body["data"], &page.body["next_cursor"]), (&json!([log[1]]), &Value::Null));
    let nothing = node.get(&path(&webhook, "/deliveries?state=failed")).await;
    assert_eq!(nothing.body["data"], json!([]));
    // The secret was shown this once, and is in no log.
    let secret = webhook["secret"].as_str().unwrap();
    for shown in [node.get(&path(&webhook, "")).await, node.get(WEBHOOKS).await] {
        assert!(!shown.text.contains("whsec_"), "{}", shown.text);
    }
    assert!(!node.whole_log().await.contains(secret));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_tried_again_until_the_receiver_takes_it() {
    let env =
        [("REDEEMER_WEBHOOKS__TIMEOUT_MS", "2000"), ("REDEEMER_WEBHOOKS__ATTEMPTS_MAX", "20")];
    let deployment = Deployment::start(&env).await;
    let node = deployment.node().await;
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    receiver.answer(Answer::Status(500));
    let webhook = create(&node, &receiver.url, json!(null)).await;
    node.invite("WELCOME", "team", 5).await;
    wait_for(&receiver, 2).await;
    assert_eq!(node.get(&path(&webhook, "")).await.body["state"], "failing");
    receiver.answer(Answer::Status(200));
    let log = settled(&node, &webhook, 1).await;
    assert_eq!((&log[0]["state"], &log[0]["error"]), (&json!("delivered"), &Value::Null));
    assert!(log[0]["attempts"].as_u64().unwrap() >= 3, "{log:?}");
    assert_eq!(node.get(&path(&webhook, "")).await.body["state"], "active");

    // A redirect is not followed, and an answer that does not come is not waited for.
    let id = log[0]["id"].as_str().unwrap();
    let failed = async |needle: &str| {
        eventually("it has failed so", async || {
            // By hand, or the waits would grow.
            node.post(&format!("/v1/namespaces/default/deliveries/{id}/retry"), &json!({})).await;
            let log = node.get(&path(&webhook, "/deliveries")).await.body;
            log["data"][0]["error"].as_str().is_some_and(|error| error.contains(needle))
        })
        .await;
    };
    receiver.answer(Answer::Redirect(elsewhere.url.clone()));
    failed("redirects are not followed").await;
    receiver.answer(Answer::Silence);
    failed("no answer in time").await;
    // What hangs there keeps nobody waiting here.
    assert_eq!(node.redeem("WELCOME", "alice").await.status, 201);
    receiver.answer(Answer::Status(200));
    eventually("both are there", async || {
        node.post(&format!("/v1/namespaces/default/deliveries/{id}/retry"), &json!({})).await;
        let log = node.get(&path(&webhook, "/deliveries?state=delivered")).await.body;
        log["data"].as_array().unwrap().len() == 2
    })
    .await;
    assert!(elsewhere.received().is_empty());
    let ids: BTreeSet<_> = receiver.received().iter().map(|one| one.id().to_owned()).collect();
    assert_eq!(ids.len(), 2, "an attempt is known by its id");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_can_be_sent_again_by_hand() {
    let deployment = Deployment::start(&[("REDEEMER_WEBHOOKS__ATTEMPTS_MAX", "2")]).await;
    let node = deployment.node().await;
    let receiver = Receiver::start().await;
    receiver.answer(Answer::Status(503));
    let webhook = create(&node, &receiver.url, json!(null)).await;
    node.invite("WELCOME", "team", 5).await;
    let log = settled(&node, &webhook, 1).await;
    assert_eq!((&log[0]["state"], &log[0]["attempts"]), (&json!("failed"), &json!(2)));
    let id = log[0]["id"].as_str().unwrap().to_owned();
    let retry = async |namespace: &str, id: &str| -> Reply {
        let path = format!("/v1/namespaces/{namespace}/deliveries/{id}/retry");
        node.post(&path, &json!({})).await
    };
    let again = retry("default", &id).await;
    assert_eq!((again.status, &again.body["id"]), (202, &json!(id)), "{}", again.text);
    eventually("it has failed again", async || {
        let log = settled(&node, &webhook, 1).await;
        log[0]["attempts"] == 3
    })
    .await;
    receiver.answer(Answer::Status(200));
    retry("default", &id).await;
    let log = settled(&node, &webhook, 1).await;
    assert_eq!((&log[0]["state"], &log[0]["attempts"]), (&json!("delivered"), &json!(4)));
    assert!(receiver.received().iter().all(|message| message.id() == id));
    let lines = node.get("/v1/audit?action=delivery_retried").await;
    assert_eq!(lines.body["data"].as_array().unwrap().len(), 2, "{}", lines.text);
    for (namespace, id) in [
        ("other", id.as_str()),
        ("default", "nonsense"),
        ("default", webhook["id"].as_str().unwrap()),
    ] {
        let reply = retry(namespace, id).await;
        assert_eq!((reply.status, reply.code()), (404, "delivery_not_found"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_gone_or_fails_for_long_is_disabled_and_goes_on_where_it_stopped() {
    let env = [
        ("REDEEMER_WEBHOOKS__FAILING_MAX_SECONDS", "1"),
        ("REDEEMER_WEBHOOKS__ATTEMPTS_MAX", "20"),
    ];
    let deployment = Deployment::start(&env).await;
    let node = deployment.node().await;
    let receivers = [Receiver::start().await, Receiver::start().await];
    receivers[0].answer(Answer::Status(410));
    receivers[1].answer(Answer::Status(500));
    let gone = create(&node, &receivers[0].url, json!(["redeemed"])).await;
    let fails = create(&node, &receivers[1].url, json!(["redeemed"])).await;
    node.invite("WELCOME", "team", 5).await;
    node.redeem("WELCOME", "alice").await;
    let disabled = async |webhook: &Value, why: &str| {
        eventually("it is disabled", async || {
            let shown = node.get(&path(webhook, "")).await.body;
            shown["state"] == "disabled" && shown["reason"].as_str().unwrap().contains(why)
        })
        .await;
    };
    disabled(&gone, "410 Gone").await;
    disabled(&fails, "every attempt has failed").await;
    assert_eq!(receivers[0].received().len(), 1);
    let lines = node.get("/v1/audit?action=webhook_disabled&actor=node").await;
    assert_eq!(lines.body["data"].as_array().unwrap().len(), 2, "{}", lines.text);
    // What happens meanwhile is not lost.
    node.redeem("WELCOME", "bob").await;
    for (webhook, receiver) in [(&gone, &receivers[0]), (&fails, &receivers[1])] {
        receiver.answer(Answer::Status(204));
        let enabled =
            node.send(Method::PATCH, &path(webhook, ""), &json!({"disabled": false})).await;
        assert_eq!((enabled.status, &enabled.body["state"]), (200, &json!("active")));
        let log = settled(&node, webhook, 2).await;
        assert!(log.iter().all(|delivery| delivery["state"] == "delivered"), "{log:?}");
    }
    // By hand, too; and one that is deleted is told nothing more.
    node.send(Method::PATCH, &path(&gone, ""), &json!({"disabled": true})).await;
    assert_eq!(node.delete(&path(&fails, "")).await.status, 204);
    assert_eq!(node.delete(&path(&fails, "")).await.code(), "webhook_not_found");
    let before: Vec<_> = receivers.iter().map(|one| one.received().len()).collect();
    let other = Receiver::start().await;
    let witness = create(&node, &other.url, json!(["redeemed"])).await;
    node.redeem("WELCOME", "carol").await;
    settled(&node, &witness, 1).await;
    let after: Vec<_> = receivers.iter().map(|one| one.received().len()).collect();
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_both_secrets_sign_for_a_while() {
    let deployment =
        Deployment::start(&[("REDEEMER_WEBHOOKS__SECRET_OVERLAP_SECONDS", "3600")]).await;
    let node = deployment.node().await;
    let receiver = Receiver::start().await;
    let webhook = create(&node, &receiver.url, json!(null)).await;
    let mut secrets = vec![webhook["secret"].clone()];
    for count in 1..=3 {
        node.invite(&format!("CODE-{count}"), "team", 5).await;
        let told = wait_for(&receiver, count).await;
        let message = told.last().unwrap();
        let signatures: BTreeSet<_> = message.headers["webhook-signature"].split(' ').collect();
        let expected: Vec<_> = secrets.iter().map(|secret| signed(secret, message)).collect();
        assert_eq!(signatures, expected.iter().map(String::as_str).collect());
        settled(&node, &webhook, count).await;
        let rotated = node.post(&path(&webhook, "/rotate-secret"), &json!({})).await;
        assert_eq!(rotated.status, 200, "{}", rotated.text);
        assert!(!secrets.contains(&rotated.body["secret"]));
        secrets.push(rotated.body["secret"].clone());
    }
    let missing = node.post(&format!("{WEBHOOKS}/nonsense/rotate-secret"), &json!({})).await;
    assert_eq!((missing.status, missing.code()), (404, "webhook_not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_private_address_is_called_whatever_its_name() {
    let deployment = Deployment::start(&[]).await;
    let receiver = Receiver::start().await;
    let port = receiver.url.trim_end_matches("/hook").rsplit(':').next().unwrap();
    let node = deployment.node().await;
    let webhook = create(&node, &format!("http://localhost:{port}/"), json!(null)).await;
    let direct = create(&node, &receiver.url, json!(null)).await;
    assert_eq!(node.stop().await, 0);

    // What was allowed is not any more: it counts when it is called.
    let mut strict = deployment.settings.clone();
    strict.env.retain(|(name, _)| *name != "REDEEMER_WEBHOOKS__ALLOW_PRIVATE");
    let node = tokio::task::spawn_blocking(move || Node::start(&strict)).await.unwrap();
    let tls = format!("https://localhost:{port}/");
    for url in [
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://10.1.2.3/",
        "https://169.254.169.254/latest/meta-data/",
        tls.as_str(),
    ] {
        for (verb, path) in
            [(Method::POST, WEBHOOKS.to_owned()), (Method::PATCH, path(&webhook, ""))]
        {
            let reply = node.send(verb, &path, &json!({"url": url})).await;
            assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{url}");
            let detail = reply.body["errors"][0]["detail"].as_str().unwrap();
            assert!(detail.contains("no address of the public internet"), "{url}: {detail}");
        }
    }
    for (url, needle) in [
        ("http://example.com/", "must be https"),
        ("https://user:hush@example.com/", "no user or password"),
        ("https://nowhere.invalid/", "can not be resolved"),
        ("nonsense", "must be a URL"),
    ] {
        let reply = node.post(WEBHOOKS, &json!({"url": url})).await;
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{url}");
        assert!(
            reply.body["errors"][0]["detail"].as_str().unwrap().contains(needle),
            "{}",
            reply.text
        );
    }
    // Those that were made before are not called either. With TLS, since http alone is refused before anybody looks.
    let mut sql = ledger::Sql::connect(deployment.settings.ledger.as_ref().unwrap()).await;
    sql.execute(&format!(
        "UPDATE webhooks SET url = '{tls}' WHERE id = '{}'",
        webhook["id"].as_str().unwrap()
    ))
    .await;
    sql.execute(&format!(
        "UPDATE webhooks SET url = 'https://127.0.0.1:{port}/' WHERE id = '{}'",
        direct["id"].as_str().unwrap()
    ))
    .await;
    node.invite("WELCOME", "team", 5).await;
    for webhook in [&webhook, &direct] {
        eventually("the call is refused", async || {
            let log = node.get(&path(webhook, "/deliveries")).await.body;
            let error = log["data"][0]["error"].as_str().unwrap_or_default().to_owned();
            error.contains("no address of the public internet")
        })
        .await;
    }
    assert!(receiver.received().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_node_that_calls_is_killed_another_one_goes_on() {
    let deployment = Deployment::start(&[("REDEEMER_WEBHOOKS__TIMEOUT_MS", "60000")]).await;
    let mut nodes = vec![deployment.node().await, deployment.node().await];
    let receiver = Receiver::start().await;
    receiver.answer(Answer::Silence);
    let webhook = create(&nodes[0], &receiver.url, json!(["redeemed"])).await;
    nodes[0].invite("WELCOME", "team", 50).await;
    for user in 0..20 {
        assert_eq!(nodes[0].redeem("WELCOME", &format!("user-{user}")).await.status, 201);
    }
    // It hangs in a call at least; how many there are at once depends on how many were in the ledger when it looked.
    wait_for(&receiver, 1).await;
    let mut sql = ledger::Sql::connect(deployment.settings.ledger.as_ref().unwrap()).await;
    let owner = sql.texts("SELECT lease_owner FROM webhooks").await.remove(0);
    let works = |node: &Node| owner.starts_with(&format!("{}-", node.pid()));
    let worker = nodes.iter().position(works).unwrap();
    nodes.remove(worker).kill();
    receiver.answer(Answer::Status(200));
    let node = nodes.remove(0);
    let log = settled(&node, &webhook, 20).await;
    assert!(log.iter().all(|delivery| delivery["state"] == "delivered"), "{log:?}");
    let users: BTreeSet<_> =
        receiver.received().iter().map(|one| one.body()["data"]["user"].to_string()).collect();
    assert_eq!(users.len(), 20);
    // What was sent twice has the same id both times.
    let ids: BTreeSet<_> = receiver.received().iter().map(|one| one.id().to_owned()).collect();
    assert_eq!(ids.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_bounded_and_checked() {
    let deployment = Deployment::start(&[("REDEEMER_WEBHOOKS__NAMESPACE_MAX", "2")]).await;
    let node = deployment.node().await;
    let receiver = Receiver::start().await;
    let place = async |url: &str| -> Reply {
        let request = node.request(Method::POST, WEBHOOKS).header("idempotency-key", "one");
        send(json_body(request, &json!({"url": url}))).await.unwrap()
    };
    let first = place(&receiver.url).await;
    let again = place(&receiver.url).await;
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.body, again.body, "a repeat makes no second one, and is told the same secret");
    let other = place(&format!("{}/other", receiver.url)).await;
    assert_eq!((other.status, other.code()), (422, "idempotency_key_reused"));
    create(&node, &receiver.url, json!(null)).await;
    let third = node.post(WEBHOOKS, &json!({"url": receiver.url})).await;
    assert_eq!((third.status, third.code()), (409, "too_many_webhooks"));
    assert_eq!(node.get(WEBHOOKS).await.body["data"].as_array().unwrap().len(), 2);
    for (field, bad) in [
        ("event_types", json!([])),
        ("event_types", json!(["redeemd"])),
        ("event_types", json!("redeemed")),
        ("url", json!(null)),
        ("url", json!(5)),
        ("disabled", json!("yes")),
    ] {
        let reply = node.send(Method::PATCH, &path(&first.body, ""), &json!({field: bad})).await;
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{field}");
        assert_eq!(reply.body["errors"][0]["pointer"], format!("/{field}"), "{}", reply.text);
    }
    let nowhere =
        node.post("/v1/namespaces/unheard-of/webhooks", &json!({"url": receiver.url})).await;
    assert_eq!((nowhere.status, nowhere.code()), (404, "namespace_not_found"));
    // Another namespace's are not to be seen.
    node.send(Method::PUT, "/v1/namespaces/other", &json!({})).await;
    let elsewhere = path(&first.body, "").replace("/default/", "/other/");
    for reply in [node.get(&elsewhere).await, node.delete(&elsewhere).await] {
        assert_eq!((reply.status, reply.code()), (404, "webhook_not_found"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_managed_on_the_command_line_and_every_change_has_its_line() {
    let deployment = Deployment::start(&[]).await;
    let node = deployment.node().await;
    let receiver = Receiver::start().await;
    let run = |args: &[&str]| -> Value {
        let mut command = crate::support::node::command(node.directory(), &Settings::default());
        let command = command.env("REDEEMER_URL", &node.url).arg("webhook").args(args);
        let output = command.args(["--output", "json"]).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let create = ["create", &receiver.url, "--event-type", "redeemed", "--idempotency-key", "one"];
    let made = run(&create);
    assert_eq!(run(&create), made);
    assert!(made["secret"].as_str().unwrap().starts_with("whsec_"), "{made}");
    let id = made["id"].as_str().unwrap();
    node.invite("WELCOME", "team", 5).await;
    node.redeem("WELCOME", "alice").await;
    let delivery = until_some("it is delivered", async || {
        let sent = run(&["deliveries", id, "--state", "delivered"]);
        sent[0]["id"].as_str().map(str::to_owned)
    })
    .await;
    assert_eq!(run(&["retry", &delivery])["id"], delivery);
    assert_eq!(run(&["change", id, "--all-events"])["event_types"], Value::Null);
    let elsewhere = format!("{}/other", receiver.url);
    let changed = run(&["change", id, "--to", &elsewhere, "--event-type", "redeemed"]);
    assert_eq!(
        (&changed["url"], &changed["event_types"]),
        (&json!(elsewhere), &json!(["redeemed"]))
    );
    assert_eq!(run(&["disable", id])["state"], "disabled");
    assert_eq!(run(&["enable", id])["state"], "active");
    assert_ne!(run(&["rotate-secret", id])["secret"], made["secret"]);
    assert_eq!((&run(&["list"])[0]["id"], &run(&["show", id])["id"]), (&json!(id), &json!(id)));
    assert_eq!(run(&["delete", id])["deleted"], id);
    assert_eq!(run(&["list"]), json!([]));

    let lines = node.get("/v1/namespaces/default/audit").await;
    let lines = lines.body["data"].as_array().unwrap();
    let of_webhook =
        lines.iter().filter(|line| line["subject"] == id || line["subject"] == delivery);
    let actions: Vec<_> = of_webhook.map(|line| line["action"].as_str().unwrap()).collect();
    let changed = ["webhook_changed"; 4];
    let expected = [
        &["webhook_deleted", "webhook_secret_rotated"][..],
        &changed,
        &["delivery_retried", "webhook_created"],
    ];
    assert_eq!(actions, expected.concat());
    let documented = include_str!("../../docs/api.md");
    for action in actions {
        assert!(documented.contains(&format!("`{action}`")), "docs/api.md lacks {action}");
    }
}
