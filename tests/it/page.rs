//! The page for people at `/i/{namespace}/{code}`: looking never redeems, and only a token of the host application does.

use std::process::Command;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::{
    docs::blocks_of,
    support::{
        eventually,
        haproxy::Balancer,
        lasting_port, ledger,
        node::{Node, Reply, Settings, http_client, json_body, send},
        proxy::{Fault, Proxy},
        redis::RedisServer,
        until_some,
    },
};

const SECRET: &str = "a secret of the tests, which nobody else has";
const OLD_SECRET: &str = "the secret of the tests before that one was made";
const PAGE: &str = "/i/default/WELCOME";

/// A node whose namespace `default` has the page, with these settings besides.
async fn start_with(env: &[(&'static str, &str)], redis_url: Option<String>) -> Node {
    let mut all = vec![
        ("REDEEMER_PAGE__NAMESPACES", "default,public"),
        ("REDEEMER_PAGE__TOKEN_SECRET", SECRET),
        ("REDEEMER_PAGE__TOKEN_SECRET_PREVIOUS", OLD_SECRET),
        ("REDEEMER_PAGE__SIGN_IN_URL", "https://app.example/join?ns={namespace}&code={code}"),
        ("REDEEMER_PAGE__DONE_URL", "https://app.example/home"),
        ("REDEEMER_PAGE__PROXIES", "1"),
    ];
    all.extend(env);
    let env = all.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
    let settings = Settings { redis_url, env, ..Settings::default() };
    tokio::task::spawn_blocking(move || Node::start(&settings)).await.unwrap()
}

async fn start() -> Node {
    start_with(&[], None).await
}

fn signed(header: &Value, claims: &Value, secret: &str) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let text = format!("{}.{}", part(header), part(claims));
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    let mac = mac.chain_update(text.as_bytes()).finalize().into_bytes();
    format!("{text}.{}", BASE64URL_NOPAD.encode(&mac))
}

fn claims(user: &str, jti: &str) -> Value {
    let now = redeemer::ids::now().as_ms() / 1000;
    json!({"sub": user, "aud": "redeemer/default", "exp": now + 300, "jti": jti})
}

/// A token for a user; the same attempt has the same `jti`.
fn token(user: &str, jti: &str) -> String {
    signed(&json!({"alg": "HS256", "typ": "JWT"}), &claims(user, jti), SECRET)
}

/// What a browser sends when a form is submitted.
fn form(request: RequestBuilder, fields: &[(&str, &str)]) -> RequestBuilder {
    let encoded = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let pairs: Vec<_> = fields.iter().map(|(n, v)| format!("{n}={}", encoded(v))).collect();
    request.header("content-type", "application/x-www-form-urlencoded").body(pairs.join("&"))
}

async fn submit(node: &Node, path: &str, token: &str) -> Reply {
    send(form(node.bare(Method::POST, path), &[("token", token)])).await.unwrap()
}

async fn look(node: &Node, path: &str) -> Reply {
    send(node.bare(Method::GET, path)).await.unwrap()
}

/// As whoever comes from this address.
async fn look_from(node: &Node, path: &str, hops: &str) -> Reply {
    send(node.bare(Method::GET, path).header("x-forwarded-for", hops)).await.unwrap()
}

async fn uses(node: &Node, code: &str) -> u64 {
    let found = node.get(&format!("/v1/namespaces/default/invites/by-code/{code}")).await;
    found.body["uses"].as_u64().unwrap()
}

fn heading_of(reply: &Reply) -> &str {
    reply.text.split("<h1>").nth(1).unwrap_or_default().split("</h1>").next().unwrap()
}

/// A page as every page must be, with this status and this in its heading.
fn assert_page(reply: &Reply, status: u16, heading: &str) {
    assert_eq!(reply.status, status, "{}", reply.text);
    assert_eq!(heading_of(reply), heading, "{}", reply.text);
    for (header, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-robots-tag", "noindex, nofollow"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-opener-policy", "same-origin"),
        ("set-cookie", ""),
    ] {
        assert_eq!(reply.header(header), value, "{header}");
    }
    let policy: Vec<_> = reply.header("content-security-policy").split("; ").collect();
    for part in [
        "default-src 'none'",
        "style-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(&part), "{policy:?}");
    }
    assert_eq!(policy.len(), 5, "{policy:?}");
    // Nothing that the policy would have to allow, and nothing from anywhere else.
    for bad in ["<script", "<style", "style=", "src=", "onload", "javascript:"] {
        assert!(!reply.text.contains(bad), "{bad}: {}", reply.text);
    }
    assert_eq!(reply.text.matches("rel=\"stylesheet\" href=\"/i/page.css\"").count(), 1);
}

/// The token that the button of a page sends again.
fn kept_token(reply: &Reply) -> &str {
    let rest = reply.text.split("name=\"token\" value=\"").nth(1);
    rest.unwrap_or_else(|| panic!("no button: {}", reply.text)).split('"').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_page_unless_the_operator_wants_one() {
    let node = tokio::task::spawn_blocking(Node::embedded).await.unwrap();
    node.invite("WELCOME", "team", 5).await;
    assert_page(&look(&node, PAGE).await, 404, "There is nothing here");
    let refused = submit(&node, PAGE, &token("alice", "1")).await;
    assert_page(&refused, 404, "There is nothing here");
    let refused = send(json_body(node.bare(Method::POST, PAGE), &json!({}))).await.unwrap();
    assert_page(&refused, 404, "There is nothing here");
    drop(node);

    let node = start().await;
    node.invite("WELCOME", "team", 5).await;
    assert_page(&look(&node, PAGE).await, 200, "You are invited");
    // A namespace that is not named, and one that does not exist.
    assert_eq!(node.send(Method::PUT, "/v1/namespaces/other", &json!({})).await.status, 201);
    for path in ["/i/other/WELCOME", "/i/public/WELCOME", "/i/A:B/WELCOME"] {
        assert_page(&look(&node, path).await, 404, "There is nothing here");
    }
    // Where codes may be guessed without end there is none either.
    let free = json!({"rate_guess": null});
    let changed = node.send(Method::PATCH, "/v1/namespaces/default", &free).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    assert_page(&look(&node, PAGE).await, 404, "There is nothing here");
    assert_page(&submit(&node, PAGE, &token("alice", "1")).await, 404, "There is nothing here");
    let log = node.whole_log().await;
    assert!(log.contains("rate_guess"), "{log}");
    assert_eq!(uses(&node, "WELCOME").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_only_looks_redeems_nothing() {
    let node = start().await;
    node.invite("WELCOME", "team", 5).await;
    let token = token("alice", "1");
    let paths = [PAGE.to_owned(), format!("{PAGE}?token={token}"), "/i/default/welcome".to_owned()];
    let agents = ["Mozilla/5.0", "Slackbot-LinkExpanding 1.0", "WhatsApp/2.23", "Googlebot/2.1"];
    for path in &paths {
        for agent in agents {
            for (name, value) in [("purpose", "prefetch"), ("sec-purpose", "prefetch;prerender")] {
                let request = node.bare(Method::GET, path).header("user-agent", agent);
                let page = send(request.header(name, value)).await.unwrap();
                assert_page(&page, 200, "You are invited");
            }
            let request = node.bare(Method::HEAD, path).header("user-agent", agent);
            let head = send(request).await.unwrap();
            assert_eq!((head.status, head.text.as_str()), (200, ""));
            assert_eq!(head.header("x-robots-tag"), "noindex, nofollow");
        }
    }
    let page = look(&node, PAGE).await;
    let link = "href=\"https://app.example/join?ns=default&amp;code=WELCOME\"";
    assert!(page.text.contains(link), "{}", page.text);
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        let refused = send(node.bare(method, PAGE)).await.unwrap();
        assert_eq!((refused.status, refused.header("allow")), (405, "GET, POST"));
    }
    assert_eq!(uses(&node, "WELCOME").await, 0);
    let members = node.get("/v1/namespaces/default/members/alice").await;
    assert_eq!(members.code(), "member_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_again_spends_one_use() {
    let node = start().await;
    // Where a user may redeem as often as it likes, only the token can tell a double click.
    let rules = json!({"membership": "unlimited", "rate_user": null});
    assert_eq!(node.send(Method::PUT, "/v1/namespaces/public", &rules).await.status, 201);
    let body = json!({"code": "MANY", "group": "team", "max_uses": 100});
    assert_eq!(node.post("/v1/namespaces/public/invites", &body).await.status, 201);
    let of_public = |jti: &str| {
        let mut claims = claims("alice", jti);
        claims["aud"] = json!("redeemer/public");
        signed(&json!({"alg": "HS256"}), &claims, SECRET)
    };
    for (round, jti) in ["first", "second"].into_iter().enumerate() {
        let token = of_public(jti);
        let clicks = (0..20).map(|_| submit(&node, "/i/public/many", &token));
        let pages = futures_util::future::join_all(clicks).await;
        let made = pages.iter().filter(|page| page.status == 201).count();
        assert_eq!(made, 1, "{jti}");
        for page in &pages {
            assert_page(page, page.status, "You are in");
            assert!(page.status == 201 || page.text.contains("already"), "{}", page.text);
            assert!(page.text.contains("href=\"https://app.example/home\""), "{}", page.text);
        }
        let shown = node.get("/v1/namespaces/public/invites/by-code/MANY").await;
        assert_eq!(shown.body["uses"], round + 1, "{}", shown.text);
    }
    // A page that is loaded anew when the token has expired meanwhile spends nothing either.
    let mut late = claims("alice", "first");
    late["aud"] = json!("redeemer/public");
    late["exp"] = json!(late["exp"].as_i64().unwrap() - 301);
    let late = signed(&json!({"alg": "HS256"}), &late, SECRET);
    assert_page(&submit(&node, "/i/public/MANY", &late).await, 403, "Please begin anew");
    // The application may ask by the API what became of it: the key is that of the token.
    let request = node.request(Method::POST, "/v1/namespaces/public/redemptions");
    let request = request.header("idempotency-key", "page:first");
    let told = send(json_body(request, &json!({"code": "MANY", "user": "alice"}))).await.unwrap();
    assert_eq!((told.status, &told.body["replayed"]), (200, &json!(true)), "{}", told.text);
    // The same attempt is none for another invite.
    let other = json!({"code": "OTHER", "group": "team", "max_uses": 100});
    assert_eq!(node.post("/v1/namespaces/public/invites", &other).await.status, 201);
    let reused = submit(&node, "/i/public/OTHER", &of_public("first")).await;
    assert_page(&reused, 422, "Please begin anew");
    assert!(reused.text.contains("idempotency_key_reused"), "{}", reused.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_token_that_the_application_has_signed_for_this_namespace_redeems() {
    let node = start().await;
    node.invite("WELCOME", "team", 5).await;
    let good = json!({"alg": "HS256", "typ": "JWT"});
    let with = |name: &str, value: Value| {
        let mut claims = claims("alice", "1");
        claims[name] = value;
        signed(&good, &claims, SECRET)
    };
    let now = redeemer::ids::now().as_ms() / 1000;
    let token = token("alice", "1");
    let (text, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = text.split_once('.').unwrap();
    let none = BASE64URL_NOPAD.encode(br#"{"alg":"none"}"#);
    let forged = BASE64URL_NOPAD.encode(claims("mallory", "1").to_string().as_bytes());
    for (what, bad) in [
        ("expired", with("exp", json!(now - 1))),
        ("without an end", with("exp", json!(now + 86_400))),
        ("of another namespace", with("aud", json!("redeemer/public"))),
        ("for something else", with("aud", json!("default"))),
        ("without a user", with("sub", json!(""))),
        ("without a name", with("jti", json!(null))),
        ("not to be used yet", with("nbf", json!(now + 3600))),
        ("signed with another secret", signed(&good, &claims("alice", "1"), &"x".repeat(40))),
        ("without a signature", format!("{none}.{payload}.")),
        ("none with a signature", format!("{none}.{payload}.{signature}")),
        ("of another user", format!("{header}.{forged}.{signature}")),
        ("cut", token[..token.len() - 1].to_owned()),
        ("nothing", String::new()),
        ("nonsense", "<script>alert(1)</script>".to_owned()),
        ("long", "x".repeat(5000)),
    ] {
        let refused = submit(&node, PAGE, &bad).await;
        assert_page(&refused, 403, "Please begin anew");
        assert!(refused.text.contains("user_token_invalid"), "{what}: {}", refused.text);
        assert!(refused.text.contains(refused.header("x-request-id")), "{what}");
        assert!(!refused.text.contains("name=\"token\""), "{what}: {}", refused.text);
    }
    for fields in [&[][..], &[("user", "alice")], &[("token", &*token), ("token", &*token)]] {
        let refused = send(form(node.bare(Method::POST, PAGE), fields)).await.unwrap();
        assert_page(&refused, 400, "That did not work");
    }
    let cross = node.bare(Method::POST, PAGE).header("authorization", format!("Bearer {token}"));
    assert_page(&send(cross).await.unwrap(), 415, "That did not work");
    let plain = node.bare(Method::POST, PAGE).header("content-type", "text/plain");
    let plain = send(plain.body(format!("token={token}"))).await.unwrap();
    assert_page(&plain, 415, "That did not work");
    let long = submit(&node, PAGE, &"x".repeat(20_000)).await;
    assert_page(&long, 413, "That did not work");
    assert_eq!(uses(&node, "WELCOME").await, 0);
    // Nothing of it stands in the log.
    let log = node.whole_log().await;
    for secret in [signature, payload, "WELCOME", "alice", SECRET] {
        assert!(!log.contains(secret), "{log}");
    }
    // One that the secret of before has signed counts, until that is taken away.
    let old = signed(&good, &claims("alice", "1"), OLD_SECRET);
    assert_page(&submit(&node, PAGE, &old).await, 201, "You are in");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_has_a_page_of_its_own() {
    let node = start().await;
    let base = "/v1/namespaces/default";
    let limits = json!({"rate_user": "2/3600", "rate_ip": null});
    assert_eq!(node.send(Method::PATCH, base, &limits).await.status, 200);
    for (code, rest) in [
        ("EXPIRED", json!({"expires_at": "2020-01-02T03:04:00Z"})),
        ("LATER", json!({"starts_at": "2100-12-01T09:00:00Z"})),
        ("USED-UP", json!({"max_uses": 1})),
        ("HELD", json!({"max_uses": 1})),
        ("DISABLED", json!({})),
        ("BOUND", json!({"user": "somebody"})),
        ("DOMAIN", json!({"email_domains": ["example.com"]})),
        ("OPEN", json!({})),
        ("OTHER", json!({"group": "others"})),
    ] {
        let mut body = json!({"code": code, "group": "team", "max_uses": 5});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let made = node.post(&format!("{base}/invites"), &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        if code == "DISABLED" {
            let path = format!("{base}/invites/{}", made.body["id"].as_str().unwrap());
            let off = node.send(Method::PATCH, &path, &json!({"disabled": true})).await;
            assert_eq!(off.status, 200);
        }
    }
    assert_eq!(node.redeem("USED-UP", "first").await.status, 201);
    let held = json!({"code": "HELD", "user": "second"});
    assert_eq!(node.post(&format!("{base}/reservations"), &held).await.status, 201);

    for (code, status, heading, text) in [
        ("OPEN", 200, "You are invited", "Continue to accept it."),
        ("BOUND", 200, "You are invited", "Continue to accept it."),
        ("EXPIRED", 410, "This invitation has ended", "on 2 January 2020 at 03:04 UTC"),
        ("LATER", 403, "Not open yet", "opens on 1 December 2100 at 09:00 UTC"),
        ("USED-UP", 410, "No place is left", "Ask for a new one."),
        ("HELD", 410, "No place is left just now", "may be free on "),
        ("DISABLED", 410, "This invitation was withdrawn", "Ask for a new one."),
        ("NOBODY", 404, "There is no such invitation", "typing mistakes"),
        ("A%20B", 400, "There is no such invitation", "typing mistakes"),
    ] {
        let page = look(&node, &format!("/i/default/{code}")).await;
        assert_page(&page, status, heading);
        assert!(page.text.contains(text), "{code}: {}", page.text);
        // Whoever is early may look again, whoever is late may not.
        let again = page.text.contains("Try again");
        assert_eq!(again, code == "LATER", "{code}: {}", page.text);
    }
    let as_user = async |code: &str, user: &str, jti: &str| {
        submit(&node, &format!("/i/default/{code}"), &token(user, jti)).await
    };
    let bound = as_user("BOUND", "carol", "1").await;
    assert_page(&bound, 403, "This invitation is for somebody else");
    let domain = as_user("DOMAIN", "dora", "1").await;
    assert_page(&domain, 403, "This invitation is for others");
    let mut named = claims("dora", "2");
    named["email"] = json!("dora@example.com");
    let named = signed(&json!({"alg": "HS256"}), &named, SECRET);
    assert_page(&submit(&node, "/i/default/DOMAIN", &named).await, 201, "You are in");
    assert_page(&as_user("OPEN", "alice", "1").await, 201, "You are in");
    let member = as_user("OTHER", "alice", "2").await;
    assert_page(&member, 409, "You are a member already");
    assert!(member.text.contains("https://app.example/home"), "{}", member.text);
    let limited = as_user("OTHER", "alice", "3").await;
    assert_page(&limited, 429, "Too many attempts");
    assert!(!limited.header("retry-after").is_empty() && limited.text.contains("minutes"));
    assert_eq!(kept_token(&limited).split('.').count(), 3);
    // One that was taken back is over for this token, and not for the next.
    let path = format!("{base}/redemptions?user=dora");
    let id = until_some("the ledger has it", async || {
        node.get(&path).await.body["data"][0]["id"].as_str().map(str::to_owned)
    });
    let path = format!("{base}/redemptions/{}/rollback", id.await);
    assert_eq!(node.post(&path, &json!({"reason": "left"})).await.status, 200);
    let undone = submit(&node, "/i/default/DOMAIN", &named).await;
    assert_page(&undone, 409, "Your place was taken back");
    assert!(undone.text.contains("https://app.example/join"), "{}", undone.text);
    // And what nobody is to learn, the page does not tell.
    let coarse = json!({"error_detail": "coarse"});
    assert_eq!(node.send(Method::PATCH, base, &coarse).await.status, 200);
    for code in ["EXPIRED", "LATER", "USED-UP", "HELD", "DISABLED", "NOBODY"] {
        let page = look_from(&node, &format!("/i/default/{code}"), "203.0.113.77").await;
        assert_page(&page, 404, "This invitation can not be used");
        let page = as_user(code, "erin", code).await;
        if page.status != 429 {
            assert_page(&page, 404, "This invitation can not be used");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_are_charged_to_the_address_of_whoever_looks() {
    let node = start().await;
    node.invite("WELCOME", "team", 5).await;
    let limit = json!({"rate_guess": "3/3600"});
    assert_eq!(node.send(Method::PATCH, "/v1/namespaces/default", &limit).await.status, 200);
    let guess = async |hops: &str| look_from(&node, "/i/default/NOBODY", hops).await.status;
    for number in 0..3 {
        // What stands further left is what the person wrote.
        assert_eq!(guess(&format!("198.51.100.{number}, 203.0.113.1")).await, 404);
    }
    assert_eq!(guess("198.51.100.9, 203.0.113.1").await, 429);
    let known = look_from(&node, PAGE, "203.0.113.1").await;
    assert_page(&known, 429, "Too many attempts");
    assert!(known.text.contains("too_many_attempts"), "{}", known.text);
    let head = node.bare(Method::HEAD, PAGE).header("x-forwarded-for", "203.0.113.1");
    assert_eq!(send(head).await.unwrap().status, 429);
    // Others are as free as before, and the API too.
    assert_eq!(look_from(&node, PAGE, "203.0.113.2").await.status, 200);
    assert_eq!(node.redeem("WELCOME", "alice").await.status, 201);
    // Somebody with a token can not guess on.
    let request = node.bare(Method::POST, "/i/default/NOBODY");
    let request = request.header("x-forwarded-for", "203.0.113.1");
    let page = send(form(request, &[("token", &token("bob", "1"))])).await.unwrap();
    assert_page(&page, 429, "Too many attempts");
    drop(node);

    // Without a proxy it is the connection that counts, whatever is said.
    let node = start_with(&[("REDEEMER_PAGE__PROXIES", "0")], None).await;
    assert_eq!(node.send(Method::PATCH, "/v1/namespaces/default", &limit).await.status, 200);
    for number in 0..4 {
        let reply = look_from(&node, "/i/default/NOBODY", &format!("203.0.113.{number}")).await;
        assert_eq!(reply.status, if number < 3 { 404 } else { 429 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_balancer_says_who_asks() {
    let node = start().await;
    node.invite("WELCOME", "team", 5).await;
    let limit = json!({"rate_guess": "3/3600"});
    assert_eq!(node.send(Method::PATCH, "/v1/namespaces/default", &limit).await.status, 200);
    let address = node.url.trim_start_matches("http://").to_owned();
    let nowhere = || format!("127.0.0.1:{}", lasting_port());
    let balancer = Balancer::start(&[address, nowhere(), nowhere()]).await;
    balancer.until_up(1).await;
    let client = http_client();
    let url = |path: &str| format!("{}{path}", balancer.url);
    let token = token("alice", "1");
    for status in [201, 200] {
        let page = form(client.post(url(PAGE)), &[("token", &token)]);
        assert_page(&send(page).await.unwrap(), status, "You are in");
    }
    // Whatever somebody says of himself, the balancer says where he comes from.
    for number in 0..4 {
        let request = client.get(url("/i/default/NOBODY"));
        let request = request.header("x-forwarded-for", format!("203.0.113.{number}"));
        let status = send(request).await.unwrap().status;
        assert_eq!(status, if number < 3 { 404 } else { 429 });
    }
    assert_eq!(look_from(&node, PAGE, "127.0.0.1").await.status, 429);
    assert_eq!(look_from(&node, PAGE, "203.0.113.1").await.status, 200);
    eventually("the log has them", async || balancer.log().contains(" GET 429 ")).await;
    assert!(!balancer.log().contains("WELCOME") && !balancer.log().contains("NOBODY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_comes_from_outside_is_taken_for_html() {
    let title = "<b>\"Tom\" & 'Jerry'</b>";
    let url = "https://app.example/?a=\"><script>alert(1)</script>&code={code}";
    let settings = [("REDEEMER_PAGE__TITLE", title), ("REDEEMER_PAGE__SIGN_IN_URL", url)];
    let node = start_with(&settings, None).await;
    node.invite("WELCOME", "team", 5).await;
    let page = look(&node, PAGE).await;
    assert_page(&page, 200, "You are invited");
    let told = "&lt;b&gt;&quot;Tom&quot; &amp; &#39;Jerry&#39;&lt;/b&gt;";
    assert!(page.text.contains(told), "{}", page.text);
    let evil = "%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E";
    for path in [format!("/i/default/{evil}"), format!("/i/{evil}/X"), "/i/default/%ff".to_owned()]
    {
        let page = look(&node, &path).await;
        assert!([400, 404].contains(&page.status));
        assert_page(&page, page.status, heading_of(&page));
        assert!(!page.text.contains("alert(1)"), "{}", page.text);
    }
    let request = node.bare(Method::GET, "/i/default/A%20B").header("x-request-id", "\"><i>");
    let page = send(request).await.unwrap();
    assert!(
        page.text.contains("&quot;&gt;&lt;i&gt;") && !page.text.contains("<i>"),
        "{}",
        page.text
    );
    let refused = submit(&node, PAGE, "\"><script>alert(1)</script>").await;
    assert_page(&refused, 403, "Please begin anew");
    let named = signed(&json!({"alg": "HS256"}), &json!({"sub": "<script>"}), SECRET);
    assert_page(&submit(&node, PAGE, &named).await, 403, "Please begin anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_button_of_a_page_that_does_not_know_asks_with_the_same_token() {
    let redis = RedisServer::plain().await;
    let proxy = Proxy::start(redis.socket()).await;
    let deadlines =
        [("REDEEMER_GATE__DEADLINE_MS", "2000"), ("REDEEMER_REDIS__REPLY_TIMEOUT_MS", "1000")];
    let node = start_with(&deadlines, Some(proxy.url())).await;
    node.invite("WELCOME", "team", 5).await;
    proxy.set(Fault::SwallowReplies);
    let page = submit(&node, PAGE, &token("alice", "1")).await;
    assert_page(&page, 503, "One moment, please");
    assert!(page.text.contains("nothing is used twice"), "{}", page.text);
    assert!(page.text.contains("<form method=\"post\" action=\"/i/default/WELCOME\">"));
    let kept = kept_token(&page).to_owned();
    // Who looks meanwhile may look again.
    let looked = look(&node, PAGE).await;
    assert_page(&looked, 503, "One moment, please");
    assert!(
        looked.text.contains("class=\"button\" href=\"/i/default/WELCOME\""),
        "{}",
        looked.text
    );
    proxy.set(Fault::None);
    let mut last = None;
    eventually("the page knows", async || {
        let page = submit(&node, PAGE, &kept).await;
        let knows = page.status < 300;
        assert!(knows || page.status == 503, "{}", page.text);
        last = Some(page);
        knows
    })
    .await;
    let page = last.unwrap();
    assert_page(&page, page.status, "You are in");
    assert_eq!(uses(&node, "WELCOME").await, 1);
    drop(redis);
}

/// A node that has just started does not know the rules of a namespace, and asks the gate for them first.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_knows_no_rules_yet_keeps_the_token_too() {
    let redis = RedisServer::plain().await;
    let proxy = Proxy::start(redis.socket()).await;
    let directory = tempfile::tempdir().unwrap();
    let ledger = [("REDEEMER_LEDGER__URL", &*ledger::url_in(directory.path()))];
    let other = start_with(&ledger, Some(redis.url())).await;
    other.invite("WELCOME", "team", 5).await;
    let node = start_with(&ledger, Some(proxy.url())).await;
    proxy.set(Fault::Refuse);
    let token = token("alice", "1");
    let page = submit(&node, PAGE, &token).await;
    assert_page(&page, 503, "One moment, please");
    assert_eq!(kept_token(&page), token);
    let looked = look(&node, PAGE).await;
    assert_page(&looked, 503, "One moment, please");
    assert!(looked.text.contains("href=\"/i/default/WELCOME\""), "{}", looked.text);
    proxy.set(Fault::None);
    eventually("alice is in", async || submit(&node, PAGE, &token).await.status < 300).await;
    assert_eq!(uses(&other, "WELCOME").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stylesheet_is_part_of_the_program() {
    let node = start().await;
    let style = look(&node, "/i/page.css").await;
    assert_eq!((style.status, style.header("content-type")), (200, "text/css; charset=utf-8"));
    assert!(style.text.contains("prefers-color-scheme: dark"));
    assert!(!style.text.contains("url(") && !style.text.contains("@import"));
}

#[test]
fn the_application_of_the_document_signs_people_in() {
    let document = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/page.md");
    let document = std::fs::read_to_string(document).unwrap();
    let program = blocks_of(&document, "The host application", "python").remove(0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = runtime.block_on(start());
    runtime.block_on(node.invite("WELCOME", "team", 5));
    let run = |rest: &str| {
        let output = Command::new("python3")
            .args(["-c", &format!("{program}\n{rest}")])
            .env("REDEEMER_PAGE__TOKEN_SECRET", SECRET)
            .env("REDEEMER_PUBLIC_URL", &node.url)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8(output.stderr).unwrap());
        String::from_utf8(output.stdout).unwrap()
    };
    let form =
        run("print(join_form('default', 'welcome', 'alice', 'alice@example.com', 'session-1'))");
    let action = form.split("action=\"").nth(1).unwrap().split('"').next().unwrap();
    let token = form.split("value=\"").nth(1).unwrap().split('"').next().unwrap();
    let path = action.strip_prefix(&node.url).unwrap();
    assert_page(&runtime.block_on(submit(&node, path, token)), 201, "You are in");
    assert_page(&runtime.block_on(submit(&node, path, token)), 200, "You are in");
    assert_eq!(runtime.block_on(uses(&node, "WELCOME")), 1);
    let form = run("print(join_form('default', '\"><script>', 'bob', None, 'session-2'))");
    assert!(!form.contains("<script>"), "{form}");
}

/// What stands at the end of the page is for whoever helps the person: it leads to the line of the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_names_the_line_of_the_log() {
    let node = start().await;
    let request = node.bare(Method::GET, "/i/default/NOBODY").header("x-request-id", "ask-7");
    let page = send(request).await.unwrap();
    assert!(page.text.contains("<footer>invite_not_found · ask-7</footer>"), "{}", page.text);
    let log = node.whole_log().await;
    let line = log.lines().find(|line| line.contains("ask-7")).unwrap();
    assert!(line.contains("invite_not_found") && line.contains("/i/{ns}/{code}"), "{line}");
    assert!(!log.contains("NOBODY"), "{log}");
}
