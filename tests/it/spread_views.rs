//! A namespace that is spread over three partitions, seen as one: lists, exports, imports, statistics, the audit log,
//! events, webhooks, and forgetting a person.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    events::Stream,
    support::{
        eventually, ledger,
        ledger::Sql,
        node::{Node, Settings, command, json_body, send},
        receiver::Receiver,
        redis::RedisServer,
        until_some,
    },
};

const BASE: &str = "/v1/namespaces/acme";
const USERS: usize = 60;

struct Deployment {
    node: Node,
    settings: Settings,
    _redis: RedisServer,
    _directory: TempDir,
}

impl Deployment {
    /// A node with the namespace `acme`, spread over three partitions.
    async fn start() -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            redis_url: Some(redis.url()),
            ledger: Some(ledger::url_in(directory.path())),
            env: vec![
                ("REDEEMER_WEBHOOKS__ALLOW_PRIVATE", "true".to_owned()),
                ("REDEEMER_WEBHOOKS__RETRY_FIRST_MS", "10".to_owned()),
            ],
        };
        let start = settings.clone();
        let node = tokio::task::spawn_blocking(move || Node::start(&start)).await.unwrap();
        let made = node.send(Method::PUT, BASE, &json!({"spread": 3})).await;
        assert_eq!((made.status, &made.body["spread"]), (201, &json!(3)), "{}", made.text);
        eventually("the ledger has the namespace", async || {
            let all = node.get("/v1/namespaces").await.body["data"].clone();
            all.as_array().unwrap().iter().any(|one| one["name"] == "acme")
        })
        .await;
        Self { node, settings, _redis: redis, _directory: directory }
    }

    /// With an invite that so many users have redeemed, all of it in the ledger; returns the invite and the redemptions
    /// in the order in which they were made.
    async fn with_users() -> (Self, String, Vec<Value>) {
        let it = Self::start().await;
        let invite = it.invite(json!({"code": "RUSH", "group": "team", "max_uses": 100})).await;
        let mut made = Vec::new();
        for number in 0..USERS {
            let reply = it.redeem("RUSH", &user(number)).await;
            made.push(reply);
        }
        it.until_redeemed(USERS).await;
        (it, invite, made)
    }

    async fn invite(&self, body: Value) -> String {
        let made = self.node.post(&format!("{BASE}/invites"), &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.body["id"].as_str().unwrap().to_owned()
    }

    async fn redeem(&self, code: &str, user: &str) -> Value {
        let path = format!("{BASE}/redemptions");
        let reply = self.node.post(&path, &json!({"code": code, "user": user})).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        reply.body
    }

    async fn list(&self, path: &str) -> Vec<Value> {
        let reply = self.node.get(&format!("{BASE}{path}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.body["data"].as_array().unwrap().clone()
    }

    async fn until_redeemed(&self, count: usize) {
        eventually("the ledger has all redemptions", async || {
            self.list("/redemptions?limit=1000").await.len() == count
        })
        .await;
    }

    /// All pages of a list.
    async fn pages(&self, path: &str, limit: usize) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let mark = if path.contains('?') { '&' } else { '?' };
            let url = format!("{BASE}{path}{mark}limit={limit}{cursor}");
            let page = self.node.get(&url).await;
            assert_eq!(page.status, 200, "{}", page.text);
            let rows = page.body["data"].as_array().unwrap().clone();
            assert!(rows.len() <= limit);
            assert!(page.body["as_of"].as_str().unwrap().ends_with('Z'));
            all.extend(rows);
            match page.body["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }

    async fn export(&self, what: &str, query: &str) -> Vec<Value> {
        let path = format!("{BASE}/export/{what}?format=ndjson{query}");
        let reply = self.node.get(&path).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn import(&self, what: &str, lines: &[Value]) -> Value {
        let body = lines.iter().fold(String::new(), |text, line| text + &line.to_string() + "\n");
        let request = self.node.request(Method::POST, &format!("{BASE}/import/{what}"));
        let request = request.header("content-type", "application/x-ndjson").body(body);
        let reply = send(request).await.unwrap();
        let last = reply.text.lines().last().unwrap();
        serde_json::from_str::<Value>(last).unwrap()["summary"].clone()
    }

    async fn run(&self, args: &[&str]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let mut command = command(directory.path(), &self.settings);
        command.args(args).env("REDEEMER_URL", &self.node.url);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

fn user(number: usize) -> String {
    format!("user-{number:02}")
}

/// What tells one from the others, in order.
fn column(rows: &[Value], name: &str) -> Vec<String> {
    rows.iter().map(|row| row[name].as_str().unwrap().to_owned()).collect()
}

fn partitions(redemptions: &[Value]) -> BTreeSet<String> {
    let positions = column(redemptions, "position").into_iter();
    positions.map(|position| position.split('/').next().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_exports_have_everything_once_and_in_order() {
    let (it, invite, made) = Deployment::with_users().await;
    assert_eq!(partitions(&made).len(), 3, "users are in all partitions");
    let ids = column(&made, "id");
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    for limit in [1, 7, 60, 61] {
        assert_eq!(column(&it.pages("/redemptions", limit).await, "id"), newest_first);
        assert_eq!(column(&it.pages("/redemptions?order=asc", limit).await, "id"), ids);
    }
    for row in it.list("/redemptions?limit=1000").await {
        assert_eq!((&row["namespace"], &row["invite"]), (&json!("acme"), &json!(invite)));
    }
    let of_invite = it.pages(&format!("/redemptions?invite={invite}"), 9).await;
    assert_eq!(column(&of_invite, "id"), newest_first);
    let one = it.list("/redemptions?user=user-07").await;
    assert_eq!(column(&one, "id"), [ids[7].clone()]);
    let shown = it.node.get(&format!("{BASE}/redemptions/{}", ids[7])).await.body;
    assert_eq!(shown, one[0]);

    // While more is redeemed, a list that was begun stays as it was.
    let first = it.node.get(&format!("{BASE}/redemptions?limit=5")).await.body;
    it.redeem("RUSH", "late").await;
    it.until_redeemed(USERS + 1).await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = it.list(&format!("/redemptions?limit=1000&cursor={cursor}")).await;
    assert_eq!(column(&rest, "id"), newest_first[5..]);

    // Positions of all partitions, each in its own.
    let half = &made[..USERS / 2];
    let mut places = BTreeMap::new();
    for position in column(half, "position") {
        places.insert(position.split('/').next().unwrap().to_owned(), position);
    }
    let places: Vec<_> = places.into_values().collect();
    let behind = format!("/redemptions?order=asc&after_position={}", places.join(","));
    assert_eq!(column(&it.pages(&behind, 8).await, "id")[..USERS / 2], ids[USERS / 2..]);
    let strange = (0..16).find(|n| !partitions(&made).contains(&n.to_string())).unwrap();
    let bad = format!("{BASE}/redemptions?after_position={strange}/1-1");
    assert_eq!(it.node.get(&bad).await.status, 400);

    let mut users: Vec<_> = (0..USERS).map(user).collect();
    users.insert(0, "late".to_owned());
    for limit in [1, 7, 61, 1000] {
        assert_eq!(column(&it.pages("/members", limit).await, "user"), users);
    }
    assert_eq!(it.list("/members?user=user-03&group=team").await.len(), 1);
    assert!(it.list("/members?group=other").await.is_empty());

    // Exports are the lists, and go on where one was.
    let redemptions = it.export("redemptions", "").await;
    assert_eq!(redemptions, it.list("/redemptions?limit=1000").await);
    let page = it.node.get(&format!("{BASE}/redemptions?limit=20")).await.body;
    let cursor = page["next_cursor"].as_str().unwrap();
    assert_eq!(it.export("redemptions", &format!("&cursor={cursor}")).await, redemptions[20..]);
    assert_eq!(it.export("members", "").await, it.list("/members?limit=1000").await);
    let invites = it.export("invites", "").await;
    assert_eq!((invites.len(), &invites[0]["id"]), (1, &json!(invite)));
    let counted = ["uses", "remaining", "max_uses"].map(|name| invites[0][name].clone());
    assert_eq!(json!(counted), json!([USERS + 1, 100 - USERS - 1, 100]));
    assert_eq!(invites, it.list("/invites").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_is_found_wherever_it_is() {
    let it = Deployment::start().await;
    it.invite(json!({"code": "HOLD", "group": "team", "max_uses": 10})).await;
    for number in 0..6 {
        let body = json!({"code": "HOLD", "user": user(number)});
        let held = it.node.post(&format!("{BASE}/reservations"), &body).await;
        assert_eq!(held.status, 201, "{}", held.text);
        let path = format!("{BASE}/reservations/{}", held.body["id"].as_str().unwrap());
        assert_eq!(it.node.get(&path).await.body, held.body);
        eventually("the log has it", async || {
            it.list("/audit?action=reserved").await.len() == number + 1
        })
        .await;
        assert_eq!(it.node.get(&path).await.body, held.body, "from the ledger too");
        if number % 2 == 0 {
            let confirmed = it.node.post(&format!("{path}/confirm"), &json!({})).await;
            assert_eq!(confirmed.status, 201, "{}", confirmed.text);
        } else {
            assert_eq!(it.node.delete(&path).await.status, 204);
        }
    }
    it.until_redeemed(3).await;
    eventually("the log has the last of them", async || {
        it.list("/audit?action=reservation_released").await.len() == 3
    })
    .await;
    let invite = &it.list("/invites").await[0];
    assert_eq!((&invite["uses"], &invite["held"]), (&json!(3), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_log_and_comparison_are_of_all_parts() {
    let (it, invite, _) = Deployment::with_users().await;
    it.invite(json!({"code": "FREE", "group": "other", "max_uses": null})).await;
    assert_eq!(it.redeem("FREE", "user-01-too").await["remaining"], Value::Null);
    it.until_redeemed(USERS + 1).await;
    for state in ["active", "exhausted"] {
        let listed = it.list(&format!("/invites?state={state}")).await;
        assert_eq!(listed.len(), if state == "active" { 2 } else { 0 }, "{state}");
    }
    let stats = until_some("nothing is behind", async || {
        let stats = it.node.get(&format!("{BASE}/stats")).await.body;
        let done = stats["sync"]["behind"] == 0 && stats["invites"]["active"] == 2;
        done.then_some(stats)
    })
    .await;
    assert_eq!(
        stats["invites"],
        json!({"active": 2, "scheduled": 0, "exhausted": 0, "expired": 0, "disabled": 0,
            "uses": USERS + 1, "remaining": 100 - USERS, "unlimited": 1})
    );
    assert_eq!(stats["sync"]["position"].as_str().unwrap().split(',').count(), 3);

    // Everything that was done, once, and nothing of how it is done inside.
    let log = it.pages("/audit", 2).await;
    let actions = column(&log, "action");
    assert_eq!(actions, ["invite_created", "invite_created", "namespace_put"]);
    assert!(log.iter().all(|line| line["namespace"] == "acme"));
    assert_eq!(log[1]["subject"], json!(invite));
    assert!(it.list("/audit?action=invite_copied").await.is_empty());
    let whole = it.node.get("/v1/audit?limit=1000").await.text;
    assert!(!whole.contains('+') && !whole.contains("copied"), "{whole}");
    let told = it.run(&["audit-log", "--namespace", "acme", "--output", "json"]).await;
    assert_eq!(serde_json::from_str::<Vec<Value>>(&told).unwrap().len(), 3);

    let report = it.node.get(&format!("{BASE}/consistency")).await.body;
    assert_eq!(report["consistent"], true, "{report}");
    assert_eq!(report["partitions"].as_array().unwrap().len(), 3);
    let names = it.node.get("/v1/namespaces").await.body["data"].clone();
    assert_eq!(column(names.as_array().unwrap(), "name"), ["acme", "default"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_what_happens_in_all_partitions() {
    let (it, invite, made) = Deployment::with_users().await;
    let events = format!("{BASE}/events");
    let all = 2 + USERS;
    let mut stream = Stream::of(&it.node, &format!("{events}?after=start"), None).await;
    let told = stream.take(all).await;
    let kinds = |kind: &str| told.iter().filter(|event| event.kind == kind).count();
    assert_eq!((kinds("redeemed"), kinds("namespace_put"), kinds("invite_created")), (USERS, 1, 1));
    assert!(told.iter().all(|event| event.data["namespace"] == "acme"));
    let redeemed: BTreeMap<_, _> = told
        .iter()
        .filter(|event| event.kind == "redeemed")
        .map(|event| (event.data["id"].as_str().unwrap(), &event.data))
        .collect();
    for one in &made {
        let told = redeemed[one["id"].as_str().unwrap()];
        assert_eq!((&told["invite"], &told["position"]), (&json!(invite), &one["position"]));
    }
    // Users see their own in order, and each id goes on right behind its event.
    for cut in [0, 1, all / 2, all - 1] {
        let id = &told[cut].id;
        assert_eq!(id.split(',').count(), 3);
        let mut again = Stream::of(&it.node, &events, Some(id)).await;
        let rest = again.take(all - 1 - cut).await;
        let ids = |events: &[crate::events::Event]| -> BTreeSet<String> {
            events.iter().map(|event| event.data["position"].to_string()).collect()
        };
        assert_eq!(ids(&rest), ids(&told[cut + 1..]), "behind {id}");
    }
    // What comes next is told to those who wait, in whichever partition it is.
    let mut now = Stream::of(&it.node, &events, None).await;
    for number in 0..6 {
        let user = format!("next-{number}");
        it.redeem("RUSH", &user).await;
        assert_eq!(now.next().await.unwrap().data["user"], json!(user));
    }
    let strange = (0..16).find(|n| !partitions(&made).contains(&n.to_string())).unwrap();
    let bad = it.node.get(&format!("{events}?after={strange}/1-1")).await;
    assert_eq!((bad.status, bad.code()), (400, "invalid_request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_follow_a_namespace_follow_it_to_new_partitions() {
    let it = Deployment::start().await;
    let base = "/v1/namespaces/grows";
    assert_eq!(it.node.send(Method::PUT, base, &json!({})).await.status, 201);
    let invite = json!({"code": "RUSH", "group": "team", "max_uses": 100});
    assert_eq!(it.node.post(&format!("{base}/invites"), &invite).await.status, 201);
    let redeem = async |from: usize, to: usize| {
        for number in from..to {
            let body = json!({"code": "RUSH", "user": user(number)});
            let reply = it.node.post(&format!("{base}/redemptions"), &body).await;
            assert_eq!(reply.status, 201, "{}", reply.text);
        }
    };
    let receiver = Receiver::start().await;
    let body = json!({"url": receiver.url, "event_types": ["redeemed"]});
    assert_eq!(it.node.post(&format!("{base}/webhooks"), &body).await.status, 201);
    let events = format!("{base}/events");
    let mut stream = Stream::of(&it.node, &format!("{events}?after=start"), None).await;
    redeem(0, 10).await;
    let before = stream.take(12).await;
    assert!(before.iter().all(|event| !event.id.contains(',')));
    let (mut partitions_seen, mut count) = (0, 10);
    for spread in [3, 2] {
        let changed = it.node.send(Method::PATCH, base, &json!({"spread": spread})).await;
        assert_eq!((changed.status, &changed.body["spread"]), (200, &json!(spread)));
        redeem(count, count + 20).await;
        count += 20;
        let told = stream.take(21).await;
        let users: BTreeSet<_> =
            told.iter().filter_map(|event| event.data["user"].as_str()).collect();
        assert_eq!(
            users,
            (count - 20..count).map(user).collect::<Vec<_>>().iter().map(String::as_str).collect()
        );
        let seen = stream.last.split(',').count();
        assert!(seen > partitions_seen, "{}", stream.last);
        partitions_seen = seen;
    }
    // One who was away meanwhile hears of all of it.
    let mut again = Stream::of(&it.node, &events, Some(&before[11].id)).await;
    let told = again.take(42).await;
    let users: BTreeSet<_> = told.iter().filter_map(|event| event.data["user"].as_str()).collect();
    assert_eq!((users.len(), told.len()), (40, 42));
    eventually("the receiver has all", async || receiver.received().len() >= count).await;
    let told = receiver.received();
    let users: BTreeSet<_> =
        told.iter().map(|message| message.body()["data"]["user"].to_string()).collect();
    assert_eq!((users.len(), told.len()), (count, count), "each once");
    let listed = it.node.get(&format!("{base}/redemptions?limit=1000")).await.body["data"].clone();
    let expected: Vec<_> = (0..count).rev().map(user).collect();
    assert_eq!(column(listed.as_array().unwrap(), "user"), expected);
    let listed = it.node.get(&format!("{base}/invites")).await.body["data"][0].clone();
    assert_eq!(listed["uses"], json!(count));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_told_of_all_partitions_once() {
    let it = Deployment::start().await;
    let receiver = Receiver::start().await;
    it.invite(json!({"code": "RUSH", "group": "team", "max_uses": 100})).await;
    it.redeem("RUSH", "before").await;
    it.until_redeemed(1).await;
    let hooks = format!("{BASE}/webhooks");
    let body = json!({"url": receiver.url, "event_types": ["redeemed", "left"]});
    let made = it.node.post(&hooks, &body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let hook = format!("{hooks}/{}", made.body["id"].as_str().unwrap());
    let mut expected = BTreeSet::new();
    for number in 0..30 {
        let made = it.redeem("RUSH", &user(number)).await;
        expected.insert(made["position"].as_str().unwrap().to_owned());
    }
    assert_eq!(it.node.delete(&format!("{BASE}/members/user-04")).await.status, 204);
    let log = format!("{}/deliveries", hook.strip_prefix(BASE).unwrap());
    let deliveries = until_some("all are delivered", async || {
        let all = it.list(&format!("{log}?limit=1000")).await;
        let done = all.iter().all(|delivery| delivery["state"] == "delivered");
        (done && all.len() == 31).then_some(all)
    })
    .await;
    let told = receiver.received();
    let ids: BTreeSet<_> = told.iter().map(|message| message.id().to_owned()).collect();
    assert_eq!((told.len(), ids.len()), (31, 31), "each once");
    assert_eq!(ids, column(&deliveries, "id").into_iter().collect());
    let events: BTreeSet<_> = column(&deliveries, "event").into_iter().collect();
    assert!(expected.is_subset(&events));
    let shown = it.node.get(&hook).await.body;
    assert_eq!(shown["position"].as_str().unwrap().split(',').count(), 3);
    // One is sent again, as it was.
    let redeemed = deliveries.iter().find(|one| one["type"] == "redeemed").unwrap();
    let id = redeemed["id"].as_str().unwrap();
    let retry = it.node.post(&format!("{BASE}/deliveries/{id}/retry"), &json!({})).await;
    assert_eq!((retry.status, &retry.body["event"]), (202, &redeemed["event"]));
    eventually("it is told again", async || receiver.received().len() == 32).await;
    let again = receiver.received().pop().unwrap();
    let first = told.iter().find(|message| message.id() == id).unwrap();
    assert_eq!((again.id(), &again.text), (id, &first.text));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_goes_where_it_belongs() {
    let it = Deployment::start().await;
    let members: Vec<_> =
        (0..50).map(|number| json!({"user": user(number), "group": "team"})).collect();
    let summary = it.import("members", &members).await;
    assert_eq!(
        (&summary["imported"], &summary["complete"]),
        (&json!(50), &json!(true)),
        "{summary}"
    );
    assert_eq!(summary["position"].as_str().unwrap().split(',').count(), 3);
    assert_eq!(it.list("/members?limit=1000").await.len(), 50);
    assert_eq!(it.import("members", &members).await["unchanged"], 50);
    // The gate knows them in the shard that a redemption goes to.
    let invites = [
        json!({"code": "OLD", "group": "other", "max_uses": 9, "uses": 4}),
        json!({"code": "SPENT", "group": "other", "max_uses": 4, "uses": 4}),
    ];
    let summary = it.import("invites", &invites).await;
    assert_eq!(summary["imported"], 2, "{summary}");
    let body = json!({"code": "OLD", "user": user(3)});
    let refused = it.node.post(&format!("{BASE}/redemptions"), &body).await;
    assert_eq!(refused.code(), "already_member", "{}", refused.text);
    for number in 0..5 {
        it.redeem("OLD", &format!("new-{number}")).await;
    }
    for (code, user) in [("OLD", "new-5"), ("SPENT", "new-6")] {
        let path = format!("{BASE}/redemptions");
        let refused = it.node.post(&path, &json!({"code": code, "user": user})).await;
        assert_eq!(refused.code(), "invite_exhausted", "{}", refused.text);
    }
    it.until_redeemed(5).await;
    let stats = it.node.get(&format!("{BASE}/stats")).await.body["invites"].clone();
    assert_eq!((&stats["uses"], &stats["exhausted"]), (&json!(13), &json!(2)), "{stats}");
    assert_eq!(it.list("/invites?state=exhausted").await.len(), 2);
    let report = it.node.get(&format!("{BASE}/consistency")).await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_forgotten_in_every_part() {
    let it = Deployment::start().await;
    it.invite(json!({"code": "ALL", "group": "team", "max_uses": 50})).await;
    it.invite(json!({"code": "MINE", "group": "own", "max_uses": 2, "user": "zoe-*"})).await;
    it.invite(json!({"code": "HELD", "group": "held", "max_uses": 2})).await;
    it.redeem("ALL", "zoe-*").await;
    let body = json!({"code": "HELD", "user": "zoe-*"});
    // She is a member already, and the rule of the namespace allows one group.
    assert_eq!(it.node.post(&format!("{BASE}/reservations"), &body).await.status, 409);
    let other = it.redeem("ALL", "zoe-*-2").await;
    let path = format!("{BASE}/users/zoe-*");
    let erased = it.node.delete(&path).await;
    assert_eq!(erased.status, 200, "{}", erased.text);
    let alias = erased.body["alias"].as_str().unwrap();
    let mut sql = Sql::connect(it.settings.ledger.as_ref().unwrap()).await;
    for (table, column) in [
        ("redemptions", "user_id"),
        ("members", "user_id"),
        ("invites", "COALESCE(user_id, '')"),
        ("audit_log", "subject"),
    ] {
        let rows = sql.texts(&format!("SELECT {column} AS row FROM {table}")).await;
        let rows = rows.join("\n").replace("zoe-*-2", "");
        assert!(!rows.contains("zoe"), "{table}: {rows}");
    }
    let bound = it.node.get(&format!("{BASE}/invites/by-code/MINE")).await;
    assert_eq!(bound.body["user"], json!(alias), "{}", bound.text);
    assert_eq!(it.list(&format!("/members?user={alias}")).await.len(), 1);
    let still = it.node.get(&format!("{BASE}/redemptions/{}", other["id"].as_str().unwrap())).await;
    assert_eq!(still.body["user"], "zoe-*-2");
    assert_eq!(it.list("/audit?action=user_erased").await.len(), 1);
    assert_eq!(it.node.delete(&path).await.status, 404);
    // The same id is a new person.
    it.redeem("ALL", "zoe-*").await;
    let body = json!({"code": "MINE", "user": "zoe-*"});
    let refused = it.node.post(&format!("{BASE}/redemptions"), &body).await;
    assert_eq!(refused.code(), "user_not_allowed");
    let report = it.node.get(&format!("{BASE}/consistency")).await;
    assert_eq!(report.body["consistent"], true, "{}", report.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_by_user_are_exact() {
    let it = Deployment::start().await;
    let free = "/v1/namespaces/free";
    let settings = json!({"spread": 3, "membership": "unlimited"});
    assert_eq!(it.node.send(Method::PUT, free, &settings).await.status, 201);
    let twice = json!({"code": "TWICE", "group": "g", "max_uses": null, "max_uses_per_user": 2});
    assert_eq!(it.node.post(&format!("{free}/invites"), &twice).await.status, 201);
    for number in 0..4 {
        for (turn, code) in ["", "", "user_limit_reached"].into_iter().enumerate() {
            let request = it.node.request(Method::POST, &format!("{free}/redemptions"));
            let request = request.header("idempotency-key", format!("{number}-{turn}"));
            let body = json!({"code": "TWICE", "user": user(number)});
            let reply = send(json_body(request, &body)).await.unwrap();
            assert_eq!(if reply.status == 201 { "" } else { reply.code() }, code, "{}", reply.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_all_parts() {
    let it = Deployment::start().await;
    it.invite(json!({"code": "LOOK", "group": "team", "max_uses": 9})).await;
    let redeemed = it.redeem("LOOK", "alice").await;
    let look = ["inspect", "--namespace", "acme", "--output", "json", "--code", "look"];
    let shown = it.run(&[&look[..], &["--user", "alice"]].concat()).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let replies = shown["commands"].as_array().unwrap();
    let keys = |what: &str| -> Vec<&Value> {
        let is = |one: &&Value| one["command"][1].as_str().unwrap().contains(what);
        replies.iter().filter(is).map(|one| &one["reply"]).collect()
    };
    // The namespace itself and its three shards; the user is in one.
    let invites = keys(":invite:LOOK");
    assert_eq!((invites.len(), &invites[0]["total"]), (4, &json!("9")), "{shown}");
    assert_eq!(keys(":moves:").len(), 4);
    let members = keys(":member:alice");
    assert_eq!(members.len(), 1);
    let position = redeemed["position"].as_str().unwrap().split('/').nth(1).unwrap();
    assert!(members[0][position].is_string(), "{}", members[0]);
    assert!(shown["dry_run"]["keys"][0].is_string());
    let of_user = it.run(&["inspect", "-n", "acme", "--output", "json", "--user", "alice"]).await;
    assert!(!of_user.contains(":invite:") && of_user.contains(":member:alice"), "{of_user}");

    let made = it.run(&["namespace", "create", "rush", "--spread", "2", "--output", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&made).unwrap()["spread"], 2);
    let proven = it.run(&["demo", "--spread", "3", "--users", "200", "--uses", "50"]).await;
    assert!(proven.contains("yes") && !proven.contains("NO"), "{proven}");
    assert!(it.run(&["audit"]).await.contains("everything agrees"));
}
