//! What the API promises, resource by resource, on a running service.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    eventually,
    ledger::{self, Sql},
    node::{Node, Reply, Settings, json_body, send},
    proxy::{Fault, Proxy},
    redis::RedisServer,
};

const DEFAULT: &str = "/v1/namespaces/default";

async fn node() -> Node {
    tokio::task::spawn_blocking(Node::embedded).await.unwrap()
}

async fn with_header(
    node: &Node,
    verb: Method,
    path: &str,
    header: (&str, &str),
    body: &Value,
) -> Reply {
    send(json_body(node.request(verb, path).header(header.0, header.1), body)).await.unwrap()
}

fn assert_is(reply: &Reply, status: u16, code: &str) {
    assert_eq!((reply.status, reply.code()), (status, code), "{}", reply.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_lives_changes_and_ends() {
    let node = node().await;
    let invites = format!("{DEFAULT}/invites");
    let body =
        json!({"code": "life", "group": "team", "max_uses": 2, "metadata": {"campaign": "spring"}});
    let made = node.post(&invites, &body).await;
    assert_eq!((made.status, made.header("etag")), (201, "\"1\""), "{}", made.text);
    let path = made.header("location").to_owned();
    assert_eq!(made.body["metadata"], json!({"campaign": "spring"}));

    // A change counts as a revision, a use does not.
    assert_eq!(node.redeem("LIFE", "alice").await.status, 201);
    let raised =
        with_header(&node, Method::PATCH, &path, ("if-match", "\"1\""), &json!({"max_uses": 3}))
            .await;
    assert_eq!(
        (raised.status, raised.header("etag"), &raised.body["uses"]),
        (200, "\"2\"", &json!(1)),
        "{}",
        raised.text
    );
    let stale =
        with_header(&node, Method::PATCH, &path, ("if-match", "\"1\""), &json!({"max_uses": 9}))
            .await;
    assert_is(&stale, 412, "precondition_failed");
    assert_eq!(stale.body["revision"], 2);
    assert_eq!(node.redeem("LIFE", "bob").await.status, 201);
    let lowered = node.send(Method::PATCH, &path, &json!({"max_uses": 1})).await;
    assert_is(&lowered, 409, "limit_below_used");
    assert_eq!(lowered.body["uses"], 2);
    let in_use = node.delete(&path).await;
    assert_is(&in_use, 409, "invite_in_use");

    // Switched off and on again.
    assert_eq!(
        node.send(Method::PATCH, &path, &json!({"disabled": true})).await.body["state"],
        "disabled"
    );
    assert_is(&node.redeem("LIFE", "carol").await, 410, "invite_disabled");
    assert_eq!(
        node.send(Method::PATCH, &path, &json!({"disabled": false})).await.body["state"],
        "active"
    );
    // A window in the future, then one in the past.
    let future = json!({"starts_at": "2099-01-01T00:00:00+01:00"});
    assert_eq!(
        node.send(Method::PATCH, &path, &future).await.body["starts_at"],
        "2098-12-31T23:00:00.000Z"
    );
    let early = node.redeem("LIFE", "carol").await;
    assert_is(&early, 403, "not_started");
    assert_eq!(early.body["starts_at"], "2098-12-31T23:00:00.000Z");
    let past = json!({"starts_at": null, "expires_at": "2020-01-01T00:00:00Z"});
    assert_eq!(node.send(Method::PATCH, &path, &past).await.body["state"], "expired");
    assert_is(&node.redeem("LIFE", "carol").await, 410, "invite_expired");
    let reversed = json!({"starts_at": "2021-01-01T00:00:00Z"});
    assert_is(&node.send(Method::PATCH, &path, &reversed).await, 400, "invalid_request");
    let open = json!({"expires_at": null, "max_uses": null, "metadata": null});
    let unlimited = node.send(Method::PATCH, &path, &open).await;
    assert_eq!(
        (&unlimited.body["max_uses"], &unlimited.body["remaining"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(node.redeem("LIFE", "carol").await.body["remaining"], Value::Null);

    // One that nobody has redeemed can go, and its code is free.
    let made = node.post(&invites, &json!({"code": "GONE", "group": "team", "max_uses": 1})).await;
    let path = made.header("location").to_owned();
    let wrong =
        send(node.request(Method::DELETE, &path).header("if-match", "\"7\"")).await.unwrap();
    assert_is(&wrong, 412, "precondition_failed");
    assert_eq!(node.delete(&path).await.status, 204);
    assert_is(&node.get(&path).await, 404, "invite_not_found");
    assert_is(&node.redeem("GONE", "dave").await, 404, "invite_not_found");
    node.invite("GONE", "team", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_creation_makes_one_invite() {
    let node = node().await;
    let invites = format!("{DEFAULT}/invites");
    let make = |key: &'static str, body: Value| {
        let (node, invites) = (&node, &invites);
        async move { with_header(node, Method::POST, invites, ("idempotency-key", key), &body).await }
    };
    let named = json!({"code": "ONCE", "group": "team", "max_uses": 1});
    let first = make("key-1", named.clone()).await;
    assert_eq!(first.body["id"], make("key-1", named).await.body["id"]);
    assert_is(
        &make("key-1", json!({"code": "TWICE", "group": "team", "max_uses": 1})).await,
        422,
        "idempotency_key_reused",
    );
    let made_up = json!({"group": "team", "max_uses": 1});
    let first = make("key-2", made_up.clone()).await;
    let again = make("key-2", made_up).await;
    assert_eq!(
        (first.status, &first.body["id"], &first.body["code"]),
        (201, &again.body["id"], &again.body["code"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_may_be_for_one_user_or_for_some_domains() {
    let node = node().await;
    let make = async |code: &str, field: &str, value: Value| {
        let mut body = json!({"code": code, "group": code, "max_uses": 5});
        body[field] = value;
        assert_eq!(node.post(&format!("{DEFAULT}/invites"), &body).await.status, 201);
    };
    make("ALICE", "user", json!("alice")).await;
    make("STAFF", "email_domains", json!(["example.com", "Example.ORG"])).await;
    let redeem = async |code: &str, user: &str, email: Option<&str>| {
        let mut body = json!({"code": code, "user": user});
        if let Some(email) = email {
            body["email"] = json!(email);
        }
        node.post(&format!("{DEFAULT}/redemptions"), &body).await
    };
    assert_is(&redeem("ALICE", "bob", None).await, 403, "user_not_allowed");
    assert_eq!(redeem("ALICE", "alice", None).await.status, 201);
    assert_is(&redeem("STAFF", "bob", None).await, 403, "email_domain_not_allowed");
    assert_is(
        &redeem("STAFF", "bob", Some("bob@example.net")).await,
        403,
        "email_domain_not_allowed",
    );
    assert_eq!(redeem("STAFF", "bob", Some("Bob@EXAMPLE.org")).await.status, 201);
    // Nothing of the address is kept.
    let all = node.get(&format!("{DEFAULT}/redemptions")).await;
    assert!(!all.text.contains("bob@") && !all.text.contains("Bob@"), "{}", all.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redemption_is_found_at_once_and_stays_as_it_was() {
    let node = node().await;
    let id = node.invite("FOUND", "team", 5).await;
    let body = json!({"code": "found", "user": "alice", "metadata": {"plan": "pro"}});
    let made = node.post(&format!("{DEFAULT}/redemptions"), &body).await;
    assert_eq!((made.status, made.header("location").is_empty()), (201, false));
    let shown = node.get(made.header("location")).await;
    assert_eq!((shown.status, &shown.body["metadata"]), (200, &json!({"plan": "pro"})));
    eventually("the ledger has it", async || {
        node.get(made.header("location")).await.body["durability"] == "ledger"
    })
    .await;
    let later = node.get(made.header("location")).await;
    for field in
        ["id", "invite", "code", "group", "user", "use", "remaining", "redeemed_at", "position"]
    {
        assert_eq!(later.body[field], made.body[field], "{field}");
    }
    assert_eq!(later.body["invite"], json!(id));
    assert_is(&node.get(&format!("{DEFAULT}/redemptions/{id}")).await, 404, "redemption_not_found");
    let again = node.try_redeem("FOUND", "alice", "another-key").await.unwrap();
    assert_eq!(
        (again.status, &again.body["id"]),
        (200, &made.body["id"]),
        "one per user under this rule"
    );
    assert_is(
        &with_header(
            &node,
            Method::POST,
            &format!("{DEFAULT}/redemptions"),
            ("idempotency-key", "k"),
            &json!({"code": "NOBODY", "user": "bob"}),
        )
        .await,
        404,
        "invite_not_found",
    );
    node.invite("OTHER", "team", 1).await;
    let first = node.try_redeem("FOUND", "carol", "carols-key").await.unwrap();
    assert_eq!(first.status, 201);
    assert_is(
        &node.try_redeem("OTHER", "carol", "carols-key").await.unwrap(),
        422,
        "idempotency_key_reused",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validation_says_what_a_redemption_would_be_told_and_spends_nothing() {
    let node = node().await;
    let id = node.invite("ASK", "team", 1).await;
    let ask = async |body: Value| node.post(&format!("{DEFAULT}/validations"), &body).await;
    assert_eq!(ask(json!({"code": "ask"})).await.body, json!({"allowed": true}));
    assert_eq!(ask(json!({"code": "ask", "user": "alice"})).await.body["allowed"], true);
    assert_eq!(node.redeem("ASK", "alice").await.status, 201);
    assert_eq!(
        ask(json!({"code": "ask", "user": "alice"})).await.body["allowed"],
        true,
        "it would be replayed"
    );
    let bob = ask(json!({"code": "ask", "user": "bob"})).await;
    assert_eq!(
        (bob.status, &bob.body["allowed"], &bob.body["code"]),
        (200, &json!(false), &json!("invite_exhausted"))
    );
    let missing = ask(json!({"code": "missing", "user": "bob"})).await;
    assert_eq!((missing.status, &missing.body["code"]), (200, &json!("invite_not_found")));
    assert_eq!(node.get(&format!("{DEFAULT}/invites/{id}")).await.body["uses"], 1);
    assert_is(
        &node.post("/v1/namespaces/unheard-of/validations", &json!({"code": "x"})).await,
        404,
        "namespace_not_found",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_say_what_is_left_and_when_to_come_back() {
    let node = node().await;
    let base = "/v1/namespaces/limited";
    let rules = json!({"rate_user": "2/3600", "rate_ip": "3/3600", "rate_guess": "2/3600"});
    assert_eq!(node.send(Method::PUT, base, &rules).await.status, 201);
    assert_eq!(
        node.post(
            &format!("{base}/invites"),
            &json!({"code": "LIMITED", "group": "g", "max_uses": 100})
        )
        .await
        .status,
        201
    );
    let redeem = async |code: &str, user: &str, ip: &str| {
        node.post(&format!("{base}/redemptions"), &json!({"code": code, "user": user, "ip": ip}))
            .await
    };
    let first = redeem("LIMITED", "alice", "203.0.113.1").await;
    assert_eq!(first.status, 201);
    assert_eq!(
        first.header("ratelimit-policy"),
        "\"user\";q=2;w=3600, \"ip\";q=3;w=3600, \"guess\";q=2;w=3600"
    );
    assert!(
        first
            .header("ratelimit")
            .starts_with("\"user\";r=1;t=1800, \"ip\";r=2;t=1200, \"guess\";r=2;t=0"),
        "{}",
        first.header("ratelimit")
    );
    // A repeat costs nothing.
    assert_eq!(redeem("LIMITED", "alice", "203.0.113.1").await.header("ratelimit"), "");
    redeem("LIMITED", "bob", "203.0.113.1").await;
    redeem("LIMITED", "carol", "203.0.113.1").await;
    let fourth = redeem("LIMITED", "dave", "203.0.113.1").await;
    assert_is(&fourth, 429, "rate_limited");
    assert_eq!(fourth.body["policy"], "ip");
    assert!(
        (1100..=1200).contains(&fourth.header("retry-after").parse::<u32>().unwrap()),
        "{}",
        fourth.header("retry-after")
    );
    assert_eq!(
        redeem("LIMITED", "dave", "203.0.113.2").await.status,
        201,
        "another address is not concerned"
    );

    for code in ["GUESS-1", "GUESS-2"] {
        assert_is(&redeem(code, "eve", "203.0.113.3").await, 404, "invite_not_found");
    }
    let guess = redeem("LIMITED", "frank", "203.0.113.3").await;
    assert_is(&guess, 429, "too_many_attempts");
    assert_eq!(guess.body["policy"], "guess");
    let asked = node
        .post(&format!("{base}/validations"), &json!({"code": "LIMITED", "ip": "203.0.113.3"}))
        .await;
    assert_is(&asked, 429, "too_many_attempts");
    // New rules count at once.
    assert_eq!(
        node.send(Method::PATCH, base, &json!({"rate_guess": null, "rate_ip": null})).await.status,
        200
    );
    assert_eq!(redeem("LIMITED", "frank", "203.0.113.3").await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_and_leave_another_way_under_the_same_rule() {
    let node = node().await;
    let put = async |path: &str| {
        send(node.request(Method::PUT, &format!("{DEFAULT}/members/{path}"))).await.unwrap()
    };
    let joined = put("alice%2F1/red").await;
    assert_eq!(
        (joined.status, &joined.body["user"], &joined.body["redemption"]),
        (201, &json!("alice/1"), &Value::Null),
        "{}",
        joined.text
    );
    assert_eq!(put("alice%2F1/red").await.status, 200);
    let second = put("alice%2F1/blue").await;
    assert_is(&second, 409, "already_member");
    assert_eq!(second.body["group"], "red");
    node.invite("BLUE", "blue", 5).await;
    let refused = node.redeem("BLUE", "alice/1").await;
    assert_is(&refused, 409, "already_member");
    assert_eq!(refused.body["redemption"], Value::Null);
    let shown = node.get(&format!("{DEFAULT}/members/alice%2F1/red")).await;
    assert_eq!((shown.status, &shown.body), (200, &joined.body));
    assert_is(
        &node.get(&format!("{DEFAULT}/members/alice%2F1/blue")).await,
        404,
        "member_not_found",
    );
    assert_eq!(node.delete(&format!("{DEFAULT}/members/alice%2F1")).await.status, 204);
    assert_is(&node.delete(&format!("{DEFAULT}/members/alice%2F1")).await, 404, "member_not_found");
    assert_eq!(node.redeem("BLUE", "alice/1").await.status, 201);
    assert_is(
        &send(node.request(Method::PUT, "/v1/namespaces/unheard-of/members/a/b")).await.unwrap(),
        404,
        "namespace_not_found",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_membership_rule_allows_what_it_says() {
    let node = node().await;
    // Second invite of the same group; invite of another group; the same invite again with another key.
    for (rule, same_group, other_group, same_invite) in [
        ("one_group", 409, 409, 200),
        ("one_per_group", 409, 201, 200),
        ("one_per_invite", 201, 201, 200),
        ("unlimited", 201, 201, 201),
    ] {
        let base = format!("/v1/namespaces/{}", rule.replace('_', "-"));
        let made =
            node.send(Method::PUT, &base, &json!({"membership": rule, "rate_user": null})).await;
        assert_eq!((made.status, &made.body["membership"]), (201, &json!(rule)), "{}", made.text);
        for (code, group) in [("FIRST", "a"), ("SECOND", "a"), ("THIRD", "b")] {
            node.post(
                &format!("{base}/invites"),
                &json!({"code": code, "group": group, "max_uses": 9}),
            )
            .await;
        }
        let redeem = async |code: &str| {
            node.post(&format!("{base}/redemptions"), &json!({"code": code, "user": "alice"}))
                .await
                .status
        };
        assert_eq!(redeem("FIRST").await, 201, "{rule}");
        assert_eq!(redeem("FIRST").await, same_invite, "{rule}");
        assert_eq!(redeem("SECOND").await, same_group, "{rule}");
        assert_eq!(redeem("THIRD").await, other_group, "{rule}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_made_changed_archived_and_brought_back() {
    let node = node().await;
    let base = "/v1/namespaces/acme";
    let rules = json!({"membership": "unlimited", "code_case": "sensitive", "rate_user": null});
    let made = node.send(Method::PUT, base, &rules).await;
    assert_eq!(
        (made.status, &made.body["rate_user"], &made.body["rate_guess"]),
        (201, &Value::Null, &json!("20/3600")),
        "{}",
        made.text
    );
    assert_eq!(node.send(Method::PUT, base, &rules).await.status, 200);
    // What it leaves out and is fixed stays as it is.
    assert_eq!(node.send(Method::PUT, base, &json!({})).await.body["membership"], "unlimited");
    let fixed = node.send(Method::PUT, base, &json!({"membership": "one_group"})).await;
    assert_is(&fixed, 400, "invalid_request");
    let stale = with_header(
        &node,
        Method::PATCH,
        base,
        ("if-match", "\"1\""),
        &json!({"rate_user": "5/60"}),
    )
    .await;
    assert_is(&stale, 412, "precondition_failed");
    for code in ["Case", "CASE"] {
        let invite = node
            .post(&format!("{base}/invites"), &json!({"code": code, "group": code, "max_uses": 1}))
            .await;
        assert_eq!((invite.status, &invite.body["code"]), (201, &json!(code)));
    }
    let path = format!("{base}/redemptions");
    let early = json!({"code": "CASE", "user": "bob"});
    let first = with_header(&node, Method::POST, &path, ("idempotency-key", "early"), &early).await;
    assert_eq!(first.status, 201, "{}", first.text);
    assert_eq!(node.delete(base).await.status, 204);
    // Nobody gets in any more, but a late repeat still gets the truth.
    let late = with_header(&node, Method::POST, &path, ("idempotency-key", "early"), &early).await;
    assert_eq!((late.status, &late.body["id"]), (200, &first.body["id"]), "{}", late.text);
    assert_is(
        &node.post(&format!("{base}/redemptions"), &json!({"code": "Case", "user": "alice"})).await,
        404,
        "namespace_not_found",
    );
    assert!(!node.get(base).await.body["archived_at"].is_null());
    assert_eq!(node.send(Method::PUT, base, &rules).await.body["archived_at"], Value::Null);
    assert_eq!(
        node.post(&format!("{base}/redemptions"), &json!({"code": "Case", "user": "alice"}))
            .await
            .status,
        201
    );
    eventually("the ledger lists both", async || {
        node.get("/v1/namespaces").await.body["data"].as_array().unwrap().len() == 2
    })
    .await;
    let tied =
        node.post("/v1/keys", &json!({"name": "t", "role": "read", "namespaces": ["acme"]})).await;
    let request =
        node.bare(Method::GET, "/v1/namespaces").bearer_auth(tied.body["key"].as_str().unwrap());
    let seen = send(request).await.unwrap();
    assert_eq!(
        (seen.body["data"].as_array().unwrap().len(), &seen.body["data"][0]["name"]),
        (1, &json!("acme"))
    );
    let both = json!({"name": "t", "role": "read", "namespaces": ["default", "acme"]});
    let both = node.post("/v1/keys", &both).await.body["key"].as_str().unwrap().to_owned();
    let mut path = "/v1/namespaces?limit=1".to_owned();
    for name in ["acme", "default"] {
        let page = send(node.bare(Method::GET, &path).bearer_auth(&both)).await.unwrap();
        assert_eq!(page.body["data"][0]["name"], name, "{}", page.text);
        assert_eq!(page.body["data"].as_array().unwrap().len(), 1, "{}", page.text);
        assert_eq!(page.header("link").is_empty(), name == "default", "{:?}", page.headers);
        path = format!(
            "/v1/namespaces?limit=1&cursor={}",
            page.body["next_cursor"].as_str().unwrap_or_default()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_that_lead_on_and_can_be_filtered() {
    let node = node().await;
    for number in 0..5 {
        node.invite(&format!("PAGE-{number}"), if number < 2 { "few" } else { "many" }, 1).await;
        assert_eq!(
            node.redeem(&format!("PAGE-{number}"), &format!("user-{number}")).await.status,
            201
        );
    }
    node.invite("FREE", "many", 1).await;
    let count = async |path: &str| {
        node.get(&format!("{DEFAULT}{path}")).await.body["data"].as_array().unwrap().len()
    };
    eventually("the ledger has all", async || {
        count("/redemptions").await == 5 && count("/invites").await == 6
    })
    .await;
    for (path, expected) in [
        ("/invites?state=exhausted", 5),
        ("/invites?state=active", 1),
        ("/invites?group=few", 2),
        ("/invites?prefix=page", 5),
        ("/redemptions?code=page-3", 1),
        ("/redemptions?user=user-2", 1),
        ("/redemptions?group=many", 3),
        ("/redemptions?after=2099-01-01T00:00:00Z", 0),
        ("/redemptions?before=2099-01-01T00:00:00Z", 5),
        ("/members?group=few", 2),
        ("/members?user=user-4", 1),
    ] {
        assert_eq!(count(path).await, expected, "{path}");
    }
    for (path, expected) in [("/redemptions", 5), ("/invites?prefix=PAGE", 5), ("/members", 5)] {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut seen = Vec::new();
        let mut next = format!("{DEFAULT}{path}{separator}limit=2");
        loop {
            let page = node.get(&next).await;
            assert!(!page.body["as_of"].is_null());
            seen.extend(page.body["data"].as_array().unwrap().clone());
            let link = page.header("link").to_owned();
            assert_eq!(link.is_empty(), page.body["next_cursor"].is_null());
            if link.is_empty() {
                break;
            }
            next = link.trim_start_matches('<').split('>').next().unwrap().to_owned();
        }
        assert_eq!(seen.len(), expected, "{path}");
        seen.dedup();
        assert_eq!(seen.len(), expected, "{path}");
    }
    let newest = node.get(&format!("{DEFAULT}/redemptions?limit=1")).await;
    assert_eq!(newest.body["data"][0]["user"], "user-4", "newest first");
    let keys = node.get("/v1/keys?limit=1").await;
    assert_eq!(keys.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn redemptions_are_followed_by_position_and_none_is_seen_twice_or_missed() {
    let node = Node::embedded();
    node.invite("FOLLOW", "team", 100).await;
    let mut told = Vec::new();
    for number in 0..7 {
        let redeemed = node.redeem("FOLLOW", &format!("user-{number}")).await;
        told.push(redeemed.body["position"].as_str().unwrap().to_owned());
    }
    let list = format!("{DEFAULT}/redemptions?order=asc&limit=2");
    // Whoever follows has read up to somewhere, and asks what is behind it, until he has all that was told.
    let mut seen: Vec<String> = Vec::new();
    eventually("all are listed", async || {
        let after = seen.last().map(|last| format!("&after_position={last}")).unwrap_or_default();
        let page = node.get(&format!("{list}{after}")).await;
        assert_eq!(page.status, 200, "{}", page.text);
        let rows = page.body["data"].as_array().unwrap();
        seen.extend(rows.iter().map(|row| row["position"].as_str().unwrap().to_owned()));
        seen.len() >= told.len()
    })
    .await;
    assert_eq!(seen, told);
    let end = format!("&after_position={}", told[6]);
    assert_eq!(node.get(&format!("{list}{end}")).await.body["data"], json!([]));
    // The pages go the same way, and the filters narrow them.
    let mut paged = Vec::new();
    let mut next = format!("{list}&after_position={}&group=team", told[0]);
    loop {
        let page = node.get(&next).await;
        let rows = page.body["data"].as_array().unwrap();
        paged.extend(rows.iter().map(|row| row["position"].as_str().unwrap().to_owned()));
        let Some(cursor) = page.body["next_cursor"].as_str() else { break };
        next = format!("{list}&after_position={}&group=team&cursor={cursor}", told[0]);
    }
    assert_eq!(paged, told[1..]);
    // Newest first, it bounds the end of the list.
    let newest =
        node.get(&format!("{DEFAULT}/redemptions?order=desc&after_position={}", told[4])).await;
    let rows = newest.body["data"].as_array().unwrap();
    let newest: Vec<_> = rows.iter().map(|row| row["position"].as_str().unwrap()).collect();
    assert_eq!(newest, [&told[6], &told[5]]);
    let (partition, cursor) = told[0].split_once('/').unwrap();
    let other = (partition.parse::<u16>().unwrap() + 1) % 16;
    for bad in [
        "order=up".to_owned(),
        "after_position=7".to_owned(),
        "after_position=x/1-2".to_owned(),
        format!("after_position={other}/{cursor}"),
    ] {
        let reply = node.get(&format!("{DEFAULT}/redemptions?{bad}")).await;
        assert_eq!((reply.status, reply.code()), (400, "invalid_request"), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_gate_is_down_reads_come_from_the_ledger_and_say_so() {
    let redis = RedisServer::plain().await;
    let proxy = Proxy::start(redis.socket()).await;
    let env = vec![("REDEEMER_GATE__DEADLINE_MS", "1000".to_owned())];
    let settings = Settings { redis_url: Some(proxy.url()), env, ..Settings::default() };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    let id = node.invite("STALE", "team", 5).await;
    let made = node.redeem("STALE", "alice").await;
    assert_eq!(made.status, 201, "{}", made.text);
    eventually("the ledger has it", async || {
        node.get(made.header("location")).await.body["durability"] == "ledger"
    })
    .await;
    assert_eq!(node.get(&format!("{DEFAULT}/invites/{id}")).await.body["stale"], Value::Null);
    proxy.set(Fault::Refuse);
    for path in [
        format!("/invites/{id}"),
        "/invites/by-code/stale".to_owned(),
        "/members/alice".to_owned(),
        "/members/alice/team".to_owned(),
        String::new(),
    ] {
        let shown = node.get(&format!("{DEFAULT}{path}")).await;
        assert_eq!(
            (shown.status, &shown.body["stale"]),
            (200, &json!(true)),
            "{path}: {}",
            shown.text
        );
    }
    assert_eq!(node.get(made.header("location")).await.status, 200);
    let missing = node.get(&format!("{DEFAULT}/redemptions/{id}")).await;
    assert_is(&missing, 503, "gate_unavailable");
    let detail = node.get("/readyz?verbose").await;
    eventually("readiness says what is wrong", async || {
        let readiness = node.get("/readyz?verbose").await;
        readiness.body["checks"][0]["ok"] == false
    })
    .await;
    assert_eq!(detail.body["checks"][0]["name"], "redis");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_finishes_and_leaves_the_ledger_complete() {
    let directory = tempfile::Builder::new().prefix("rdm-stop-").tempdir().unwrap();
    let path = directory.path().to_owned();
    let node = tokio::task::spawn_blocking(move || Node::start_at(&path, &Settings::default()))
        .await
        .unwrap();
    node.invite("STOP", "team", 1000).await;
    for number in 0..50 {
        assert_eq!(node.redeem("STOP", &format!("user-{number}")).await.status, 201);
    }
    assert_eq!(node.stop().await, 0);
    assert!(!directory.path().join("redis/redis.sock").exists(), "the embedded Redis has ended");
    let mut sql = Sql::connect(&ledger::sqlite_url_in(directory.path())).await;
    let rows = sql.number("SELECT COUNT(*) FROM redemptions").await;
    let leases = sql.number("SELECT COUNT(*) FROM partitions WHERE lease_owner IS NOT NULL").await;
    assert_eq!((rows, leases), (50, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_redis_of_its_owner_stops_and_leaves_that_running() {
    let redis = RedisServer::start().await;
    let settings = Settings { redis_url: Some(redis.url()), ..Settings::default() };
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap();
    node.invite("STOP", "team", 10).await;
    assert_eq!(node.stop().await, 0);
    assert_eq!(redis.run::<String>(&["PING"]).await, "PONG");
}
