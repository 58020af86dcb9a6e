//! `error_detail = coarse`: who tries codes learns nothing of one that can not be used, not even whether it exists.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    node::{Node, Reply, json_body, send},
    until_some,
};

const BASE: &str = "/v1/namespaces/public";
/// Codes that can not be used, each for another reason, and last one that nobody has.
const CODES: [&str; 7] =
    ["DISABLED", "EXPIRED", "LATER", "USED-UP", "BOUND", "DOMAIN", "UNHEARD-OF"];

/// A node with these codes in a namespace whose rules are these.
async fn start(rules: Value) -> Node {
    let node = tokio::task::spawn_blocking(Node::embedded).await.unwrap();
    assert_eq!(node.send(Method::PUT, BASE, &rules).await.status, 201);
    for (code, rest) in [
        ("DISABLED", json!({})),
        ("EXPIRED", json!({"expires_at": "2020-01-01T00:00:00Z"})),
        ("LATER", json!({"starts_at": "2100-01-01T00:00:00Z"})),
        ("USED-UP", json!({"max_uses": 1})),
        ("BOUND", json!({"user": "somebody"})),
        ("DOMAIN", json!({"email_domains": ["example.com"]})),
        ("LIVE", json!({"group": "other"})),
    ] {
        let mut body = json!({"code": code, "group": "team", "max_uses": 5});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let made = node.post(&format!("{BASE}/invites"), &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        if code == "DISABLED" {
            let path = format!("{BASE}/invites/{}", made.body["id"].as_str().unwrap());
            let patched = node.send(Method::PATCH, &path, &json!({"disabled": true})).await;
            assert_eq!(patched.status, 200, "{}", patched.text);
        }
    }
    let spent = ask(&node, "redemptions", "USED-UP", "first", 250).await;
    assert_eq!(spent.status, 201, "{}", spent.text);
    node
}

/// Asks about a code for a user at an address.
async fn ask(node: &Node, what: &str, code: &str, user: &str, ip: usize) -> Reply {
    let ip = format!("203.0.113.{ip}");
    let body = json!({"code": code, "user": user, "ip": ip, "email": "x@elsewhere.example"});
    let mut request = node.request(Method::POST, &format!("{BASE}/{what}"));
    request = request.header("x-request-id", "same").header("idempotency-key", "same");
    send(json_body(request, &body)).await.unwrap()
}

/// All that a client sees of an answer, but the date and how long a budget takes to be full again.
fn seen(reply: &Reply) -> (u16, Vec<(String, String)>, String) {
    let untimed = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
        let text = value.to_str().unwrap();
        // Each is "user";r=99;t=1, and t falls while the test runs.
        let parts: Vec<_> =
            text.split(", ").map(|part| part.split(";t=").next().unwrap()).collect();
        (name.to_string(), parts.join(", "))
    };
    let headers = reply.headers.iter().filter(|(name, _)| *name != "date");
    let mut headers: Vec<_> = headers.map(untimed).collect();
    headers.sort();
    (reply.status, headers, reply.text.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_that_can_not_be_used_are_all_refused_alike() {
    for rule in ["one_group", "one_per_group", "one_per_invite", "unlimited"] {
        let limits = json!({
            "error_detail": "coarse", "membership": rule, "rate_user": "100/86400", "rate_ip": "50/86400",
            "rate_guess": "20/86400",
        });
        let node = start(limits).await;
        for (kind, what) in ["redemptions", "validations", "reservations"].into_iter().enumerate() {
            let mut answers = Vec::new();
            for (number, code) in CODES.into_iter().enumerate() {
                // Everybody has budgets of his own; the second attempt finds less in them.
                let ip = number + 10 * kind;
                let user = format!("{what}-{number}");
                let first = ask(&node, what, code, &user, ip).await;
                let again = ask(&node, what, code, &user, ip).await;
                assert_eq!(first.code(), "invite_invalid", "{code}: {}", first.text);
                assert!(
                    first.header("ratelimit").contains("\"guess\";r=19;"),
                    "{:?}",
                    first.headers
                );
                answers.push((seen(&first), seen(&again)));
            }
            let unheard_of = answers.pop().unwrap();
            for (code, answer) in CODES.iter().zip(&answers) {
                assert_eq!(*answer, unheard_of, "{rule}: {what} of {code}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_code_is_a_guess_where_nobody_is_to_know_of_it() {
    let node = start(json!({"error_detail": "coarse", "rate_guess": "2/3600"})).await;
    for (ip, code) in CODES.into_iter().enumerate() {
        for user in ["a", "b"] {
            let told = ask(&node, "validations", code, user, ip).await;
            assert_eq!(told.code(), "invite_invalid", "{code}: {}", told.text);
        }
        let told = ask(&node, "validations", code, "c", ip).await;
        assert_eq!((told.status, told.code()), (429, "too_many_attempts"), "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_learn_of_their_own_and_not_of_codes_that_are_used_up() {
    let node = start(json!({"error_detail": "coarse"})).await;
    // One's own use is told again, though the code is used up.
    let again = ask(&node, "redemptions", "USED-UP", "first", 1).await;
    assert_eq!((again.status, &again.body["replayed"]), (200, &json!(true)), "{}", again.text);
    let by_another_key = node
        .post(&format!("{BASE}/redemptions"), &json!({"code": "USED-UP", "user": "first"}))
        .await;
    assert_eq!(by_another_key.status, 200, "{}", by_another_key.text);
    let other = json!({"code": "LIVE", "user": "first"});
    let told = node.post(&format!("{BASE}/redemptions"), &other).await;
    assert_eq!((told.code(), &told.body["group"]), ("already_member", &json!("team")));
    // Who is in another group is not told so by a code that is used up.
    let joined = node.send(Method::PUT, &format!("{BASE}/members/second/other"), &json!({})).await;
    assert_eq!(joined.status, 201, "{}", joined.text);
    for code in CODES {
        let told = ask(&node, "validations", code, "second", 2).await;
        assert_eq!(told.code(), "invite_invalid", "{code}: {}", told.text);
    }
    let told = ask(&node, "validations", "LIVE", "third", 3).await;
    assert_eq!(told.body, json!({"allowed": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_much_is_told_can_be_changed_at_any_time() {
    let node = start(json!({"rate_user": null})).await;
    let told = async |code: &str| {
        let body = json!({"code": code, "user": "alice"});
        node.post(&format!("{BASE}/redemptions"), &body).await.code().to_owned()
    };
    let full = [
        "invite_disabled",
        "invite_expired",
        "not_started",
        "invite_exhausted",
        "user_not_allowed",
        "email_domain_not_allowed",
        "invite_not_found",
    ];
    for (code, expected) in CODES.into_iter().zip(full) {
        assert_eq!(told(code).await, expected);
    }
    let coarse = node.send(Method::PATCH, BASE, &json!({"error_detail": "coarse"})).await;
    assert_eq!((coarse.status, &coarse.body["error_detail"]), (200, &json!("coarse")));
    for code in CODES {
        assert_eq!(told(code).await, "invite_invalid", "{code}");
    }
    // The ledger knows, and so does what is built from it.
    until_some("the ledger has the setting", async || {
        let listed = node.get("/v1/namespaces").await;
        let rows = listed.body["data"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["name"] == "public" && row["error_detail"] == "coarse")
    })
    .await;
    let full = node.send(Method::PUT, BASE, &json!({})).await;
    assert_eq!(full.body["error_detail"], "full", "{}", full.text);
    assert_eq!(told("DISABLED").await, "invite_disabled");
    for bad in [json!("some"), json!(null), json!(1)] {
        let refused = node.send(Method::PATCH, BASE, &json!({"error_detail": bad})).await;
        assert_eq!(refused.body["errors"][0]["pointer"], "/error_detail", "{}", refused.text);
    }
}
