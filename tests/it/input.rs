//! Bad input, on every route: a clear 4xx, and nothing has changed.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    input::{assert_problem, filled},
    node::{Node, Settings, json_body, send},
    redis::RedisServer,
};

struct Service {
    node: Node,
    redis: RedisServer,
}

impl Service {
    async fn start() -> Self {
        let redis = RedisServer::start().await;
        let settings = Settings { redis_url: Some(redis.url()), ..Settings::default() };
        let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
        Self { node, redis }
    }

    /// Everything that Redis holds, but for rate limits, whose budgets misses are charged to.
    async fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let keys: Vec<String> = self.redis.run(&["KEYS", "*"]).await;
        let mut all = BTreeMap::new();
        for key in keys {
            // An outbox is emptied by the sync; meta holds the count of all changes.
            if !key.contains(":rate:") && !key.ends_with(":outbox") {
                all.insert(key.clone(), self.redis.run(&["DUMP", &key]).await);
            }
        }
        all
    }
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_change_nothing_on_any_route() {
    let service = Service::start().await;
    let node = &service.node;
    node.invite("WELCOME", "team", 5).await;
    node.redeem("WELCOME", "alice").await;
    let before = service.contents().await;
    let deep = format!("{{\"code\":{}1{}}}", "[".repeat(2000), "]".repeat(2000));
    let raw: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"WELCOME\"".to_vec(),
        b"{\"code\":\"A\",\"code\":\"B\"}".to_vec(),
        b"{\"user\":\"\xff\xfe\"}".to_vec(),
        b"{\"user\":\"a\\ud800\"}".to_vec(),
        b"{\"max_uses\":1e400}".to_vec(),
        b"\x00".to_vec(),
        deep.into_bytes(),
    ];
    for (name, path, _) in redeemer::http::endpoints() {
        // PUT of a member has no body, an import reads lines, and the page for people a form.
        let has_none =
            path.ends_with("{group}") || path.contains("/import/") || path.starts_with("/i/");
        if !["POST", "PUT", "PATCH"].contains(&name) || has_none {
            continue;
        }
        let path = filled(path, "default");
        let what = format!("{name} {path}");
        for body in &raw {
            let request =
                node.request(method(name), &path).header("content-type", "application/json");
            let reply = send(request.body(body.clone())).await.unwrap();
            assert_problem(
                &reply,
                400..401,
                &format!("{what} {:?}", String::from_utf8_lossy(body)),
            );
        }
        let unknown = node.send(method(name), &path, &json!({"nonsense": 1})).await;
        assert_problem(&unknown, 400..401, &what);
        let pointers: Vec<_> = unknown.body["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| &error["pointer"])
            .collect();
        assert!(pointers.contains(&&json!("/nonsense")), "{what}: {}", unknown.text);
        let request = node.request(method(name), &path).header("content-type", "text/plain");
        assert_problem(&send(request.body("{}")).await.unwrap(), 415..416, &what);
        let reply = send(node.request(method(name), &path).body("{}")).await.unwrap();
        assert_problem(&reply, 415..416, &what);
        assert_eq!(reply.code(), "unsupported_media_type");
        let request = node.request(method(name), &path).header("content-type", "application/json");
        let reply =
            send(request.body(format!("{{\"code\":\"{}\"}}", "A".repeat(20_000)))).await.unwrap();
        assert_problem(&reply, 413..414, &what);
        assert_eq!(reply.code(), "body_too_large");
    }
    assert_eq!(service.contents().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_fields_are_told_with_their_pointers_and_change_nothing() {
    let service = Service::start().await;
    let node = &service.node;
    node.invite("WELCOME", "team", 5).await;
    let before = service.contents().await;
    let redemption = json!({"code": "WELCOME", "user": "alice"});
    let invite = json!({"code": "NEW", "group": "team", "max_uses": 5});
    let settings = json!({});
    let key = json!({"name": "x", "role": "read"});
    let long = "x".repeat(10_000);
    let code = "code_malformed";
    let invalid = "invalid_request";
    let base = "/v1/namespaces/default";
    for (path, verb, good, field, bad, expected) in [
        ("/redemptions", "POST", &redemption, "code", json!(""), code),
        ("/redemptions", "POST", &redemption, "code", json!("A".repeat(65)), code),
        ("/redemptions", "POST", &redemption, "code", json!(long), code),
        ("/redemptions", "POST", &redemption, "code", json!("WELCOME:held"), code),
        ("/redemptions", "POST", &redemption, "code", json!("rdm:{06a}:meta"), code),
        ("/redemptions", "POST", &redemption, "code", json!("A\u{0}B"), code),
        ("/redemptions", "POST", &redemption, "code", json!("A\r\nB"), code),
        ("/redemptions", "POST", &redemption, "code", json!("ＷELCOME"), code),
        ("/redemptions", "POST", &redemption, "code", json!(5), invalid),
        ("/redemptions", "POST", &redemption, "code", json!(null), invalid),
        ("/redemptions", "POST", &redemption, "user", json!(""), invalid),
        ("/redemptions", "POST", &redemption, "user", json!("a\u{0}b"), invalid),
        ("/redemptions", "POST", &redemption, "user", json!("a\nb"), invalid),
        ("/redemptions", "POST", &redemption, "user", json!("x".repeat(129)), invalid),
        ("/redemptions", "POST", &redemption, "user", json!(7), invalid),
        ("/redemptions", "POST", &redemption, "user", json!(["alice"]), invalid),
        ("/redemptions", "POST", &redemption, "ip", json!("999.1.1.1"), invalid),
        ("/redemptions", "POST", &redemption, "email", json!("not an address"), invalid),
        ("/redemptions", "POST", &redemption, "metadata", json!([1]), invalid),
        ("/redemptions", "POST", &redemption, "metadata", json!({"a": "x".repeat(4096)}), invalid),
        ("/redemptions", "POST", &redemption, "durability", json!("certainly"), invalid),
        (
            "/redemptions",
            "POST",
            &redemption,
            "durability",
            json!("replicated"),
            "durability_unavailable",
        ),
        ("/validations", "POST", &redemption, "code", json!("A B"), code),
        ("/validations", "POST", &redemption, "user", json!(""), invalid),
        ("/invites", "POST", &invite, "code", json!("A{B}"), code),
        ("/invites", "POST", &invite, "group", json!(""), invalid),
        ("/invites", "POST", &invite, "max_uses", json!(0), invalid),
        ("/invites", "POST", &invite, "max_uses", json!(-1), invalid),
        ("/invites", "POST", &invite, "max_uses", json!(1.5), invalid),
        ("/invites", "POST", &invite, "max_uses", json!("5"), invalid),
        ("/invites", "POST", &invite, "max_uses", json!(10_u64.pow(13)), invalid),
        ("/invites", "POST", &invite, "starts_at", json!("tomorrow"), invalid),
        ("/invites", "POST", &invite, "starts_at", json!("2026-01-01T00:00:00"), invalid),
        ("/invites", "POST", &invite, "expires_at", json!(5), invalid),
        ("/invites", "POST", &invite, "email_domains", json!("example.com"), invalid),
        ("/invites", "POST", &invite, "email_domains", json!(["a..b"]), invalid),
        ("/invites", "POST", &invite, "email_domains", json!(vec!["example.com"; 33]), invalid),
        ("", "PUT", &settings, "membership", json!("two_groups"), invalid),
        ("", "PUT", &settings, "membership", json!("unlimited"), invalid),
        ("", "PATCH", &settings, "membership", json!("one_group"), invalid),
        ("", "PATCH", &settings, "code_case", json!("sensitive"), invalid),
        ("", "PATCH", &settings, "rate_user", json!("ten"), invalid),
        ("", "PATCH", &settings, "rate_user", json!("0/60"), invalid),
        ("", "PATCH", &settings, "durability", json!("replicated"), "durability_unavailable"),
        ("keys", "POST", &key, "role", json!("root"), invalid),
        ("keys", "POST", &key, "name", json!(""), invalid),
        ("keys", "POST", &key, "namespaces", json!([]), invalid),
        ("keys", "POST", &key, "namespaces", json!(["A:B"]), invalid),
    ] {
        let path = if path == "keys" { "/v1/keys".to_owned() } else { format!("{base}{path}") };
        let mut body = good.clone();
        body[field] = bad.clone();
        let reply = node.send(method(verb), &path, &body).await;
        let what = format!(
            "{verb} {path} {field} = {}",
            bad.to_string().chars().take(50).collect::<String>()
        );
        assert_problem(&reply, 400..401, &what);
        assert_eq!(reply.code(), expected, "{what}: {}", reply.text);
        let errors = reply.body["errors"].as_array().unwrap();
        assert!(
            errors.iter().any(|error| error["pointer"] == format!("/{field}")),
            "{what}: {}",
            reply.text
        );
    }
    // All at once.
    let reply = node
        .post(&format!("{base}/redemptions"), &json!({"code": 1, "user": "", "ip": "x", "y": 1}))
        .await;
    assert_eq!(reply.body["errors"].as_array().unwrap().len(), 4, "{}", reply.text);
    let window = json!({"group": "g", "max_uses": 1, "starts_at": "2027-01-02T00:00:00Z", "expires_at": "2027-01-01T00:00:00Z"});
    assert_eq!(node.post(&format!("{base}/invites"), &window).await.status, 400);
    let admin = json!({"name": "x", "role": "admin", "namespaces": ["default"]});
    assert_eq!(node.post("/v1/keys", &admin).await.status, 400);
    let missing = node.post(&format!("{base}/invites"), &json!({"group": "g"})).await;
    assert_eq!(missing.body["errors"][0]["pointer"], "/max_uses", "{}", missing.text);
    assert_eq!(service.contents().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_paths_queries_and_headers_are_refused() {
    let service = Service::start().await;
    let node = &service.node;
    node.invite("WELCOME", "team", 5).await;
    let before = service.contents().await;
    let long = "x".repeat(200);
    for (path, status, code) in [
        ("/", 404, "route_not_found"),
        ("/v1", 404, "route_not_found"),
        ("/v1/namespaces/default/nothing", 404, "route_not_found"),
        ("/v1/namespaces/default/invites/", 404, "route_not_found"),
        ("/v1/namespaces/A:B/invites", 400, "invalid_request"),
        ("/v1/namespaces/%00/invites", 400, "invalid_request"),
        ("/v1/namespaces/%7B07%7D/invites", 400, "invalid_request"),
        ("/v1/namespaces/unheard-of", 404, "namespace_not_found"),
        ("/v1/namespaces/unheard-of/invites/by-code/WELCOME", 404, "namespace_not_found"),
        ("/v1/namespaces/default/invites/not-an-id", 404, "invite_not_found"),
        ("/v1/namespaces/default/invites/by-code/NOBODY", 404, "invite_not_found"),
        ("/v1/namespaces/default/invites/by-code/A%3AB", 400, "code_malformed"),
        ("/v1/namespaces/default/redemptions/not-an-id", 404, "redemption_not_found"),
        ("/v1/namespaces/default/webhooks/not-an-id", 404, "webhook_not_found"),
        ("/v1/namespaces/default/webhooks/not-an-id/deliveries", 404, "webhook_not_found"),
        ("/v1/namespaces/default/members/nobody", 404, "member_not_found"),
        ("/v1/namespaces/default/members/a%00b", 400, "invalid_request"),
        ("/v1/namespaces/default/members/%ff", 400, "invalid_request"),
        (&format!("/v1/namespaces/default/members/{long}"), 400, "invalid_request"),
        ("/v1/namespaces/default/members?limit=0", 400, "invalid_request"),
        ("/v1/namespaces/default/members?limit=1001", 400, "invalid_request"),
        ("/v1/namespaces/default/members?limit=1&limit=2", 400, "invalid_request"),
        ("/v1/namespaces/default/members?nonsense=1", 400, "invalid_request"),
        ("/v1/namespaces/default/members?cursor=*", 400, "invalid_request"),
        ("/v1/namespaces/default/members?cursor=YQ", 400, "invalid_request"),
        ("/v1/namespaces/default/members?user=%00", 400, "invalid_request"),
        ("/v1/namespaces/default/invites?state=sleeping", 400, "invalid_request"),
        ("/v1/namespaces/default/invites?prefix=A:B", 400, "invalid_request"),
        ("/v1/namespaces/default/redemptions?after=yesterday", 400, "invalid_request"),
        ("/v1/namespaces/default/redemptions?invite=x", 400, "invalid_request"),
        ("/readyz?verbose=perhaps", 400, "invalid_request"),
    ] {
        let reply = node.get(path).await;
        assert_problem(&reply, status..status + 1, path);
        assert_eq!(reply.code(), code, "{path}: {}", reply.text);
    }
    for (verb, path, allow) in [
        ("GET", "/v1/namespaces/default/validations", "POST"),
        ("DELETE", "/v1/namespaces", "GET"),
        ("PUT", "/v1/namespaces/default/redemptions", "POST, GET"),
    ] {
        let reply = send(node.request(method(verb), path)).await.unwrap();
        assert_problem(&reply, 405..406, path);
        assert_eq!((reply.code(), reply.header("allow")), ("method_not_allowed", allow), "{path}");
    }
    let head = send(node.bare(Method::HEAD, "/livez")).await.unwrap();
    assert_eq!((head.status, head.text.as_str()), (200, ""), "HEAD is GET without a body");
    let redemptions = "/v1/namespaces/default/redemptions";
    let two = node.request(Method::POST, redemptions);
    let two = two.header("idempotency-key", "one").header("idempotency-key", "two");
    assert_eq!(
        send(json_body(two, &json!({"code": "WELCOME", "user": "a"}))).await.unwrap().status,
        400
    );
    let body = json!({"code": "WELCOME", "user": "alice"});
    for (header, value, status, code) in [
        ("accept", "text/html", 406, "not_acceptable"),
        ("idempotency-key", "with a space", 400, "invalid_request"),
        ("idempotency-key", "", 400, "invalid_request"),
        ("idempotency-key", &"x".repeat(256), 400, "invalid_request"),
    ] {
        let request = node.request(Method::POST, redemptions).header(header, value);
        let reply = send(json_body(request, &body)).await.unwrap();
        assert_problem(&reply, status..status + 1, header);
        assert_eq!(reply.code(), code, "{header}: {}", reply.text);
    }
    for bad in ["3", "\"x\"", "\"-1\""] {
        let id = node.get("/v1/namespaces/default/invites/by-code/WELCOME").await.body["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let request = node
            .request(Method::PATCH, &format!("/v1/namespaces/default/invites/{id}"))
            .header("if-match", bad);
        let reply = send(json_body(request, &json!({"max_uses": 9}))).await.unwrap();
        assert_problem(&reply, 400..401, bad);
    }
    assert_eq!(service.contents().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_a_caller_gives_a_request_comes_back_unless_it_is_nonsense() {
    let service = Service::start().await;
    let ask = |id: &'static str| {
        send(service.node.request(Method::GET, "/v1/namespaces").header("x-request-id", id))
    };
    assert_eq!(ask("abc-123").await.unwrap().header("x-request-id"), "abc-123");
    let made_up = ask("a b").await.unwrap();
    assert_eq!(made_up.header("x-request-id").len(), 36);
    assert_eq!(made_up.header("x-content-type-options"), "nosniff");
    assert_eq!(made_up.header("cache-control"), "no-store");
    assert_eq!(made_up.body["next_cursor"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_arrive_is_given_up() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let env = vec![
        ("REDEEMER_HTTP__REQUEST_TIMEOUT_MS", "200".to_owned()),
        ("REDEEMER_GATE__DEADLINE_MS", "100".to_owned()),
    ];
    let settings = Settings { env, ..Settings::default() };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    let address = node.url.trim_start_matches("http://");
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/namespaces/default/redemptions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{\"code\":",
        crate::support::node::ADMIN_KEY
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("\"code\":") {
        let mut bytes = [0; 4096];
        let read = connection.read(&mut bytes).await.unwrap();
        assert!(read > 0, "closed after {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..read]);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let problem: Value = serde_json::from_str(body).unwrap();
    assert!(head.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(problem["code"], "request_timeout");
}
