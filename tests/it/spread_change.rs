//! The spread of a namespace is changed while people redeem: nobody is in two places, no use is spent twice, none is lost.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::support::{
    eventually,
    ledger::{self, Sql},
    node::{Node, Settings, json_body, send},
    redis::RedisServer,
};

const NAMESPACE: &str = "/v1/namespaces/acme";

/// Two nodes that share one Redis and one ledger, and a namespace without limits by user.
struct Pair {
    nodes: Arc<[Node; 2]>,
    sql: Sql,
    _redis: RedisServer,
    _directory: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let url = ledger::url_in(directory.path());
        let settings = Settings {
            redis_url: Some(redis.url()),
            ledger: Some(url.clone()),
            // However busy the machine is, everybody gets the last word, and the operator too.
            env: vec![
                ("REDEEMER_HTTP__REQUEST_TIMEOUT_MS", "60000".to_owned()),
                ("REDEEMER_GATE__DEADLINE_MS", "59000".to_owned()),
            ],
        };
        let start = || {
            let settings = settings.clone();
            tokio::task::spawn_blocking(move || Node::start(&settings))
        };
        let nodes = Arc::new([start().await.unwrap(), start().await.unwrap()]);
        let made = nodes[0].send(Method::PUT, NAMESPACE, &json!({"rate_user": null})).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let sql = Sql::connect(&url).await;
        Self { nodes, sql, _redis: redis, _directory: directory }
    }

    async fn invite(&self, code: &str, group: &str, max_uses: u64) -> String {
        let body = json!({"code": code, "group": group, "max_uses": max_uses});
        let made = self.nodes[0].post(&format!("{NAMESPACE}/invites"), &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.body["id"].as_str().unwrap().to_owned()
    }

    async fn spread(&self, spread: u16) {
        let changed =
            self.nodes[0].send(Method::PATCH, NAMESPACE, &json!({"spread": spread})).await;
        assert_eq!(
            (changed.status, &changed.body["spread"]),
            (200, &json!(spread)),
            "{}",
            changed.text
        );
    }

    async fn assert_sound(&mut self) {
        eventually("both sides agree", async || {
            let found = self.nodes[1].get(&format!("{NAMESPACE}/consistency")).await;
            found.status == 200 && found.body["consistent"] == true
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_spread_changes_nobody_comes_into_two_places_and_exactly_n_uses_are_spent() {
    let mut pair = Pair::start().await;
    let (red, blue) = (pair.invite("RED", "red", 60).await, pair.invite("BLUE", "blue", 60).await);
    let (asked, changed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    // Each person wants into both groups at once, by different nodes, and each of them again later.
    let nodes = &pair.nodes;
    let person = async |number: usize| {
        let user = format!("user-{number}");
        let ask = async |node: usize, code: &str| {
            let body = json!({"code": code, "user": user});
            let path = format!("{NAMESPACE}/redemptions");
            let mut before = None;
            loop {
                let request = nodes[node].request(Method::POST, &path);
                let request = request.header("Idempotency-Key", format!("{user}-{code}"));
                let told = send(json_body(request, &body)).await.unwrap();
                if told.status != 503 {
                    // Who did not know before learns of the use by a repeat.
                    let is_late = told.status == 200 && before.is_some();
                    return (if is_late { 201 } else { told.status }, told.text);
                }
                before = Some(told);
            }
        };
        let ((one, said), (two, also_said)) =
            tokio::join!(ask(number % 2, "RED"), ask((number + 1) % 2, "BLUE"));
        asked.fetch_add(1, Ordering::SeqCst);
        let mut statuses = [one, two];
        statuses.sort_unstable();
        let won = statuses[0] == 201;
        assert!(
            statuses == [201, 409] || statuses == [410, 410] || statuses == [201, 410],
            "{said} {also_said}"
        );
        u64::from(won)
    };
    // So many have asked when the operator begins with each change.
    let changes = [(3, 20), (5, 50), (2, 80), (4, 100)];
    let people = async {
        let mut won = 0;
        for round in 0..16 {
            // Twenty at most come meanwhile, so that some are left for the next one.
            let due = changes.iter().filter(|(_, after)| after + 20 <= round * 10).count();
            while changed.load(Ordering::SeqCst) < due {
                tokio::task::yield_now().await;
            }
            let ten = (0..10).map(|number| person(round * 10 + number));
            won += join_all(ten).await.into_iter().sum::<u64>();
        }
        done.store(true, Ordering::SeqCst);
        won
    };
    let operator = async {
        for (spread, after) in changes {
            while asked.load(Ordering::SeqCst) < after && !done.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
            pair.spread(spread).await;
            changed.fetch_add(1, Ordering::SeqCst);
        }
    };
    let (won, ()) = tokio::join!(people, operator);
    assert_eq!(won, 120);
    let mut uses = 0;
    for id in [red, blue] {
        let invite = pair.nodes[1].get(&format!("{NAMESPACE}/invites/{id}")).await;
        assert_eq!(invite.body["state"], "exhausted", "{}", invite.text);
        uses += invite.body["uses"].as_u64().unwrap();
    }
    assert_eq!(uses, 120);
    pair.assert_sound().await;
    let twice =
        pair.sql.texts("SELECT user_id FROM members GROUP BY user_id HAVING COUNT(*) > 1").await;
    assert_eq!(twice, Vec::<String>::new(), "these are in two places");
    assert_eq!(pair.sql.number("SELECT COUNT(*) FROM members").await, 120);
    let places = pair.sql.number("SELECT COUNT(DISTINCT namespace) FROM members").await;
    assert!(places > 8, "the changes of spread came too late to matter: {places} places");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_came_before_a_change_of_spread_is_recognised_after_it() {
    let mut pair = Pair::start().await;
    pair.invite("OLD", "team", 100).await;
    let redeem = async |user: &str, key: &str| {
        let path = format!("{NAMESPACE}/redemptions");
        let request = pair.nodes[1].request(Method::POST, &path).header("Idempotency-Key", key);
        let body = json!({"code": "OLD", "user": user});
        crate::support::node::send(crate::support::node::json_body(request, &body)).await.unwrap()
    };
    let first = redeem("alice", "key-1").await;
    pair.spread(4).await;
    let second = redeem("bob", "key-2").await;
    pair.spread(7).await;
    for (user, key, before) in [("alice", "key-1", first), ("bob", "key-2", second)] {
        assert_eq!(before.status, 201, "{}", before.text);
        let again = redeem(user, key).await;
        assert_eq!((again.status, &again.body["id"]), (200, &before.body["id"]), "{}", again.text);
        let other = redeem(user, "key-3").await;
        assert_eq!((other.status, &other.body["id"]), (200, &before.body["id"]), "{}", other.text);
        let joined = pair.nodes[0]
            .send(Method::PUT, &format!("{NAMESPACE}/members/{user}/other"), &json!({}))
            .await;
        assert_eq!((joined.status, joined.code()), (409, "already_member"), "{}", joined.text);
        let path =
            format!("{NAMESPACE}/redemptions/{}/rollback", before.body["id"].as_str().unwrap());
        let undone = pair.nodes[0].post(&path, &json!({"reason": "test"})).await;
        assert_eq!(undone.status, 200, "{}", undone.text);
    }
    // Who was let go is remembered where they were.
    let back = redeem("alice", "key-4").await;
    assert_eq!(back.status, 201, "{}", back.text);
    pair.assert_sound().await;
    let places =
        pair.sql.texts("SELECT DISTINCT namespace FROM redemptions ORDER BY namespace").await;
    assert_eq!(places.len(), 2, "{places:?}");
    // A number that was there before would mean the same shards again, in which people are already.
    let again = pair.nodes[0].send(Method::PATCH, NAMESPACE, &json!({"spread": 4})).await;
    assert_eq!((again.status, again.code()), (400, "invalid_request"), "{}", again.text);
}
