//! Traces: what a collector is sent, and what it never is.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message as _;
use reqwest::Method;
use serde_json::json;

use crate::support::{
    eventually,
    node::{Node, Reply, Settings, json_body, send, signal},
    receiver::{Answer, Receiver},
    until_some,
};

const NAMESPACE: &str = "/v1/namespaces/default";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const SPANS: &str = "redeemer_trace_spans_total";

/// A node whose spans go to a collector.
struct Traced {
    node: Node,
    collector: Receiver,
}

impl Traced {
    async fn start(ratio: &str) -> Self {
        let collector = Receiver::start().await;
        let env = vec![
            ("REDEEMER_TRACE__ENDPOINT", collector.url.replace("/hook", "/")),
            ("REDEEMER_TRACE__SAMPLE_RATIO", ratio.to_owned()),
            ("REDEEMER_WEBHOOKS__ALLOW_PRIVATE", "true".to_owned()),
        ];
        let settings = Settings { env, ..Settings::default() };
        let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
        Self { node, collector }
    }

    /// Asks with a `traceparent` whose caller has decided so.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: &serde_json::Value,
        sampled: bool,
    ) -> Reply {
        let flags = if sampled { "01" } else { "00" };
        let request = self.node.request(method, path);
        let request = request.header("traceparent", format!("00-{TRACE}-{CALLER}-{flags}"));
        send(json_body(request.header("idempotency-key", "secret-key-1"), body)).await.unwrap()
    }

    /// Stops the node; returns all spans that the collector was sent, and all bytes.
    async fn stop(self) -> (Vec<Span>, Vec<u8>) {
        assert_eq!(self.node.stop().await, 0);
        spans(&self.collector)
    }
}

fn spans(collector: &Receiver) -> (Vec<Span>, Vec<u8>) {
    let (mut spans, mut bytes) = (Vec::new(), Vec::new());
    for message in collector.received() {
        assert_eq!(message.path, "/v1/traces");
        assert_eq!(message.headers["content-type"], "application/x-protobuf");
        bytes.extend_from_slice(&message.bytes);
        let request = ExportTraceServiceRequest::decode(&*message.bytes).unwrap();
        for resource in request.resource_spans {
            let attributes = texts(&resource.resource.unwrap().attributes);
            assert_eq!(attributes["service.name"], "redeemer");
            assert!(attributes.contains_key("service.instance.id"), "{attributes:?}");
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    (spans, bytes)
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    };
    let pair = |attribute: &KeyValue| Some((attribute.key.clone(), text(attribute)?));
    attributes.iter().filter_map(pair).collect()
}

#[track_caller]
fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
    assert_eq!(found.len(), 1, "{name} in {names:?}");
    found[0]
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redemption_is_traced_from_its_caller_to_script_and_ledger_and_tells_no_secret() {
    let it = Traced::start("0").await;
    it.node.invite("SECRETCODE", "secret-group", 5).await;
    let body = json!({"code": "SECRETCODE", "user": "secret-user", "email": "a@secret-mail.example", "durability": "ledger"});
    let redeemed = it.ask(Method::POST, &format!("{NAMESPACE}/redemptions"), &body, true).await;
    assert_eq!(redeemed.status, 201, "{}", redeemed.text);
    let shown = format!("{NAMESPACE}/redemptions/{}", redeemed.body["id"].as_str().unwrap());
    assert_eq!(it.ask(Method::GET, &shown, &json!({}), true).await.status, 200);
    let members = format!("{NAMESPACE}/members/secret-user");
    assert_eq!(it.ask(Method::GET, &members, &json!({}), true).await.status, 200);
    let (spans, bytes) = it.stop().await;

    let server = only(&spans, "POST /v1/namespaces/{ns}/redemptions");
    assert_eq!((hex(&server.trace_id), hex(&server.parent_span_id)), (TRACE.into(), CALLER.into()));
    assert_eq!(server.kind(), SpanKind::Server);
    let told = texts(&server.attributes);
    assert_eq!(told["http.request.method"], "POST");
    assert_eq!(told["http.route"], "/v1/namespaces/{ns}/redemptions");
    assert_eq!((&*told["http.response.status_code"], &*told["url.scheme"]), ("201", "http"));
    assert_eq!(told["redeemer.request_id"], redeemed.header("x-request-id"));

    let redeem = only(&spans, "redeem");
    assert_eq!(redeem.parent_span_id, server.span_id);
    let told = texts(&redeem.attributes);
    assert_eq!((&*told["redeemer.outcome"], &*told["redeemer.durability"]), ("granted", "ledger"));
    let events: Vec<_> = redeem.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(events, ["waits in line", "waits for the ledger", "the ledger has it"]);

    let batch = only(&spans, "batch");
    assert_eq!(batch.parent_span_id, redeem.span_id);
    assert_eq!(texts(&batch.attributes)["redeemer.batch.requests"], "1");
    let script = only(&spans, "EVALSHA redeem");
    assert_eq!((script.kind(), &script.parent_span_id), (SpanKind::Client, &batch.span_id));
    assert_eq!(texts(&script.attributes)["db.system.name"], "redis");
    assert_eq!(texts(&script.attributes)["db.stored_procedure.name"], "redeem");

    let get = only(&spans, "GET /v1/namespaces/{ns}/redemptions/{id}");
    // The redemption may have looked there too, for its own row.
    let is_its =
        |span: &&Span| span.name == "SELECT redemptions" && span.parent_span_id == get.span_id;
    let sql = spans.iter().find(is_its).unwrap();
    assert_eq!(sql.kind(), SpanKind::Client);
    assert_eq!(texts(&sql.attributes)["db.system.name"], "sqlite");

    for span in &spans {
        assert_eq!(hex(&span.trace_id), TRACE, "{span:?}");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
    }
    let all = String::from_utf8_lossy(&bytes).to_lowercase();
    assert!(all.contains("redemptions") && !all.contains("secret"), "{all}");
    assert!(!all.contains("rdm_"), "an API key is in a span");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asked_to_trace_and_what_strangers_ask_is_not_traced() {
    let it = Traced::start("0").await;
    it.node.invite("CODE", "team", 5).await;
    let body = json!({"code": "CODE", "user": "alice"});
    assert_eq!(
        it.ask(Method::POST, &format!("{NAMESPACE}/redemptions"), &body, false).await.status,
        201
    );
    assert_eq!(it.node.redeem("CODE", "bob").await.status, 201);
    let stranger = it.node.bare(Method::GET, "/v1/namespaces");
    let stranger = stranger.header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    assert_eq!(send(stranger).await.unwrap().status, 401);
    let nonsense = it.node.request(Method::GET, "/v1/namespaces").header("traceparent", "nonsense");
    assert_eq!(send(nonsense).await.unwrap().status, 200);
    let (spans, _) = it.stop().await;
    assert!(spans.is_empty(), "{spans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_what_comes_without_a_decision_is_traced_and_failures_are_marked() {
    let it = Traced::start("1").await;
    assert_eq!(it.node.redeem("NONE", "alice").await.status, 404);
    it.node.get("/livez").await;
    assert_eq!(it.ask(Method::GET, "/v1/keys", &json!({}), false).await.status, 200);
    let (spans, _) = it.stop().await;
    let server = only(&spans, "POST /v1/namespaces/{ns}/redemptions");
    assert!(server.parent_span_id.is_empty(), "{server:?}");
    assert_eq!(texts(&server.attributes)["redeemer.problem"], "invite_not_found");
    // A refusal is an answer like any other.
    let status = server.status.clone().unwrap_or_default();
    assert_eq!(status.code(), StatusCode::Unset);
    assert!(spans.iter().all(|span| !span.name.contains("livez") && !span.name.contains("keys")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhooks_receiver_is_told_of_the_trace() {
    let it = Traced::start("1").await;
    let hook = Receiver::start().await;
    let body = json!({"url": hook.url, "event_types": ["redeemed"]});
    let made = it.node.post(&format!("{NAMESPACE}/webhooks"), &body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    it.node.invite("CODE", "team", 5).await;
    assert_eq!(it.node.redeem("CODE", "alice").await.status, 201);
    let sent =
        until_some("the receiver is called", async || hook.received().first().cloned()).await;
    // A node that stops does not wait for the answer.
    let delivered = ["result=\"delivered\""];
    it.node.until_metric("redeemer_webhook_attempts_total", &delivered, |n| n > 0.5).await;
    let (spans, _) = it.stop().await;
    let call = only(&spans, "POST");
    assert_eq!(call.kind(), SpanKind::Client);
    let traceparent = format!("00-{}-{}-01", hex(&call.trace_id), hex(&call.span_id));
    assert_eq!(sent.headers["traceparent"], traceparent);
    let told = texts(&call.attributes);
    assert_eq!(
        (&*told["server.address"], &*told["http.response.status_code"]),
        ("127.0.0.1", "204")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_an_error_of_few_kinds() {
    let it = Traced::start("1").await;
    let hook = Receiver::start().await;
    hook.answer(Answer::Status(503));
    let body = json!({"url": hook.url, "event_types": ["redeemed"]});
    assert_eq!(it.node.post(&format!("{NAMESPACE}/webhooks"), &body).await.status, 201);
    it.node.invite("CODE", "team", 5).await;
    assert_eq!(it.node.redeem("CODE", "alice").await.status, 201);
    until_some("the receiver is called", async || hook.received().first().cloned()).await;
    let redis = std::fs::read_to_string(it.node.directory().join("redis/redis.pid")).unwrap();
    let redis: u32 = redis.trim().parse().unwrap();
    signal(redis, "STOP");
    let refused = it.node.redeem("CODE", "bob").await;
    signal(redis, "CONT");
    assert_eq!(refused.status, 503, "{}", refused.text);
    eventually("it serves again", async || it.node.redeem("CODE", "bob").await.status < 300).await;
    let (spans, _) = it.stop().await;
    let failed: Vec<_> = spans
        .iter()
        .filter(|span| span.status.clone().unwrap_or_default().code() == StatusCode::Error)
        .collect();
    let kind = |span: &Span| texts(&span.attributes)["error.type"].clone();
    let call = failed.iter().find(|span| span.name == "POST").unwrap();
    assert_eq!(kind(call), "503");
    let server = failed.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
    assert_eq!(kind(server), refused.code());
    let script = failed.iter().find(|span| span.name == "EVALSHA redeem").unwrap();
    assert_eq!(kind(script), "_OTHER");
    // An error's own words may hold anything.
    assert!(failed.iter().all(|span| span.status.clone().unwrap().message.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_gone_or_says_no_disturbs_nobody() {
    let it = Traced::start("1").await;
    it.collector.answer(Answer::Status(503));
    it.node.invite("CODE", "team", 5).await;
    eventually("the spans have failed", async || {
        it.node.metric(SPANS, &["result=\"failed\""]).await.unwrap() > 0.0
    })
    .await;
    assert!(it.node.metric(SPANS, &["result=\"sent\""]).await.unwrap() < 0.5);
    assert_eq!(it.node.redeem("CODE", "alice").await.status, 201);
    it.collector.answer(Answer::Silence);
    assert_eq!(it.node.redeem("CODE", "bob").await.status, 201);
    let told = "spans can not be sent";
    eventually("that is told", async || it.node.log().contains(told)).await;
    let log = it.node.whole_log().await;
    assert_eq!(log.matches(told).count(), 1, "{log}");
    assert_eq!(it.node.redeem("CODE", "carol").await.status, 201);
    it.collector.answer(Answer::Status(200));
    eventually("they are sent again", async || {
        it.node.metric(SPANS, &["result=\"sent\""]).await.unwrap() > 0.0
    })
    .await;
    it.stop().await;
}
