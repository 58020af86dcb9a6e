//! Namespaces that are spread over several partitions: their uses move, and none is doubled, lost or refused while it is
//! free, whatever dies in the middle.

mod campaigns;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use futures_util::future::join_all;
use redeemer::{
    domain::{
        Code, CodeCase, Fence, InviteId, Namespace, UserId,
        command::DeleteInvite,
        spread::{Given, HOME, Part, Pool},
    },
    gate::{Gate, give_uses::GiveUses, take_uses::TakeUses},
    ledger::{By, Rebuild},
};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    bench::gate_options,
    eventually, ledger,
    ledger::Sql,
    node::{Node, Reply, Settings, json_body, send},
    redis::RedisServer,
    until_some,
};

const BASE: &str = "/v1/namespaces/acme";
const PARTITIONS: u16 = 16;

/// Two nodes that share one Redis and one ledger, and a namespace that is spread.
struct Pair {
    nodes: Arc<[Node; 2]>,
    spread: u16,
    redis: RedisServer,
    ledger: String,
    _directory: TempDir,
}

impl Pair {
    async fn start(spread: u16) -> Self {
        Self::start_with(spread, json!({})).await
    }

    async fn start_with(spread: u16, rules: Value) -> Self {
        // However busy the machine is, everybody gets the last word.
        Self::start_patient(spread, rules, 60_000).await
    }

    /// With nodes that have an answer within so many milliseconds.
    async fn start_patient(spread: u16, mut rules: Value, timeout_ms: u32) -> Self {
        let redis = RedisServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            redis_url: Some(redis.url()),
            ledger: Some(ledger::url_in(directory.path())),
            env: vec![
                ("REDEEMER_GATE__PARTITIONS", PARTITIONS.to_string()),
                ("REDEEMER_RATE_LIMIT__ENABLED", "false".to_owned()),
                ("REDEEMER_HTTP__REQUEST_TIMEOUT_MS", timeout_ms.to_string()),
                ("REDEEMER_GATE__DEADLINE_MS", (timeout_ms - 1000).to_string()),
            ],
        };
        // One after the other: each waits in a thread of its own until it is ready.
        let start = || {
            let settings = settings.clone();
            tokio::task::spawn_blocking(move || Node::start(&settings))
        };
        let nodes = Arc::new([start().await.unwrap(), start().await.unwrap()]);
        rules["spread"] = json!(spread);
        let made = nodes[0].send(Method::PUT, BASE, &rules).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let ledger = settings.ledger.unwrap();
        Self { nodes, spread, redis, ledger, _directory: directory }
    }

    async fn invite(&self, code: &str, max_uses: u64) -> Made {
        self.make(json!({"code": code, "group": "team", "max_uses": max_uses})).await
    }

    async fn make(&self, body: Value) -> Made {
        let made = self.nodes[0].post(&format!("{BASE}/invites"), &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let code = made.body["code"].as_str().unwrap();
        Made {
            id: made.body["id"].as_str().unwrap().parse().unwrap(),
            code: Code::parse(code, CodeCase::Sensitive).unwrap(),
        }
    }

    /// The invite of a batch of one, which no shard has heard of.
    async fn batch(&self, body: &Value) -> Made {
        let batch = self.nodes[0].post(&format!("{BASE}/batches"), body).await;
        assert!(batch.status < 300, "{}", batch.text);
        let shown = until_some("the batch is made", async || {
            let list = self.nodes[0].get(&format!("{BASE}/invites")).await;
            list.body["data"].as_array()?.first().cloned()
        })
        .await;
        Made {
            id: shown["id"].as_str().unwrap().parse().unwrap(),
            code: Code::parse(shown["code"].as_str().unwrap(), CodeCase::Sensitive).unwrap(),
        }
    }

    async fn redeem(&self, node: usize, code: &str, user: &str) -> Reply {
        let body = json!({"code": code, "user": user});
        self.nodes[node].post(&format!("{BASE}/redemptions"), &body).await
    }

    async fn granted(&self, code: &str, user: &str) -> Value {
        let reply = self.redeem(0, code, user).await;
        assert_eq!(reply.status, 201, "{user}: {}", reply.text);
        reply.body
    }

    async fn reserve(&self, code: &str, user: &str, ttl_seconds: u64) -> Reply {
        let body = json!({"code": code, "user": user, "ttl_seconds": ttl_seconds});
        self.nodes[0].post(&format!("{BASE}/reservations"), &body).await
    }

    async fn patch(&self, invite: InviteId, body: &Value) -> Reply {
        self.nodes[0].send(Method::PATCH, &format!("{BASE}/invites/{invite}"), body).await
    }

    async fn show(&self, invite: InviteId) -> Value {
        let shown = self.nodes[1].get(&format!("{BASE}/invites/{invite}")).await;
        assert_eq!(shown.status, 200, "{}", shown.text);
        shown.body
    }

    /// All users of every shard are told this.
    async fn all_hear(&self, code: &str, status: u16, word: &str) {
        for shard in 1..=self.spread {
            let node = usize::from(shard % 2);
            let reply = self.redeem(node, code, &self.user(shard, 999)).await;
            assert_eq!((reply.status, reply.code()), (status, word), "{shard}: {}", reply.text);
        }
    }

    /// The user of this number who belongs to a shard.
    fn user(&self, shard: u16, number: usize) -> String {
        let names = (0..).map(|tried| format!("user-{number}-{tried}"));
        let is_there = |name: &String| {
            let user = UserId::parse(name).unwrap();
            home().shard_of(&user, self.spread).shard_number() == Some((shard, self.spread))
        };
        names.into_iter().find(is_there).unwrap()
    }

    fn shard(&self, number: u16) -> Namespace {
        if number == HOME { home() } else { home().shard(number, self.spread) }
    }

    /// The scripts, as a node runs them.
    async fn gate(&self) -> Gate {
        let mut options = gate_options(&self.redis.url(), None);
        options.partitions = PARTITIONS;
        let (gate, lanes) = Gate::new(options).unwrap();
        tokio::spawn(lanes);
        for partition in gate.keys().partitions() {
            let meta = gate.keys().meta(partition);
            let fence = until_some("the partition is open", async || {
                let words = ["HMGET", &meta, "deployment", "lineage", "epoch"];
                let [deployment, lineage, epoch]: [Option<String>; 3] =
                    self.redis.run::<Vec<_>>(&words).await.try_into().unwrap();
                Some(Fence {
                    deployment: deployment?,
                    lineage: lineage?,
                    epoch: epoch?.parse().unwrap(),
                })
            })
            .await;
            gate.set_fence(partition, Some(fence));
        }
        gate
    }

    async fn give(
        &self,
        gate: &Gate,
        pool: &Pool,
        (giver, taker): (u16, u16),
        known: u64,
        divisor: u64,
    ) -> Part {
        let give = GiveUses {
            giver: self.shard(giver),
            pool: pool.clone(),
            taker: self.shard(taker).participant(),
            known,
            divisor,
        };
        give.run(gate).await.unwrap()
    }

    async fn take(&self, gate: &Gate, pool: &Pool, (giver, taker): (u16, u16), given: u64) -> Part {
        let take = TakeUses {
            taker: self.shard(taker),
            pool: pool.clone(),
            giver: self.shard(giver).participant(),
            given,
        };
        take.run(gate).await.unwrap()
    }

    fn given(&self, part: &Part, taker: u16) -> Given {
        part.given[&self.shard(taker).participant()]
    }

    /// Builds every partition anew from what the ledger has.
    async fn rebuild_all(&self) {
        let ledger = ledger::open(&self.ledger).await;
        for partition in self.gate().await.keys().partitions() {
            let rebuild = Rebuild::FromLedger;
            ledger.request_rebuild(Some(partition), rebuild, &By::node()).await.unwrap();
        }
        eventually("all are open again, in another epoch", async || {
            let sql = "SELECT COUNT(*) FROM partitions WHERE epoch > 1 AND requested IS NULL AND lineage IS NOT NULL";
            Sql::connect(&self.ledger).await.number(sql).await == i64::from(PARTITIONS)
        })
        .await;
    }

    /// Gate and ledger hold the same in every part, and no law is broken.
    async fn assert_consistent(&self) {
        let report = until_some("both sides can be compared", async || {
            let report = self.nodes[0].get(&format!("{BASE}/consistency")).await;
            let compared = report.body["not_compared"].as_array().is_some_and(Vec::is_empty);
            (report.status == 200 && compared).then_some(report)
        })
        .await;
        assert_eq!(report.body["consistent"], true, "{}", report.text);
    }

    /// Every use that is left is found by one user after the other, of this shard alone; then nobody gets one.
    async fn spend_all(&self, made: &Made, shard: u16, left: usize) {
        self.spend_all_or(made, shard, left, "invite_exhausted").await;
    }

    /// The same, where this is what is told in the end.
    async fn spend_all_or(&self, made: &Made, shard: u16, left: usize, word: &str) {
        let code = made.code.as_str();
        // As clients do: while a part of the namespace is being recovered, they ask again.
        let decided = async |node: usize, user: &str| {
            until_some("there is an answer", async || {
                let reply = self.redeem(node, code, user).await;
                (reply.status != 503).then_some(reply)
            })
            .await
        };
        for number in 0..left {
            let reply = decided(number % 2, &self.user(shard, 10_000 + number)).await;
            assert_eq!(reply.status, 201, "{number} of {left}: {}", reply.text);
        }
        for shard in 1..=self.spread {
            let reply = decided(usize::from(shard % 2), &self.user(shard, 999)).await;
            assert_eq!((reply.status, reply.code()), (410, word), "{shard}: {}", reply.text);
        }
    }
}

struct Made {
    id: InviteId,
    code: Code,
}

impl Made {
    fn pool(&self) -> Pool {
        Pool::Invite { id: self.id, code: self.code.clone() }
    }
}

fn home() -> Namespace {
    Namespace::parse("acme").unwrap()
}

/// What one request was told, and when.
struct Told {
    invoked: Instant,
    returned: Instant,
    reply: Reply,
}

async fn rush(spread: u16) {
    let pair = Pair::start(spread).await;
    for uses in [1, 7, 60] {
        let code = format!("RUSH-{uses}");
        let made = pair.invite(&code, uses).await;
        // Each client speaks for three users, so that there are more than uses.
        let clients = (0..40).map(|client| {
            let (nodes, code) = (pair.nodes.clone(), code.clone());
            tokio::spawn(async move {
                let mut told = Vec::new();
                for turn in 0..3 {
                    let body = json!({"code": code, "user": format!("{code}-{client}-{turn}")});
                    let invoked = Instant::now();
                    let path = format!("{BASE}/redemptions");
                    let reply = nodes[client % 2].post(&path, &body).await;
                    told.push(Told { invoked, returned: Instant::now(), reply });
                }
                told
            })
        });
        let told: Vec<Told> =
            join_all(clients).await.into_iter().flat_map(Result::unwrap).collect();
        let (granted, refused): (Vec<_>, Vec<_>) =
            told.iter().partition(|told| told.reply.status == 201);
        // Each partition counts its own.
        let numbers: BTreeSet<(String, u64)> = granted
            .iter()
            .map(|told| (partition(&told.reply), told.reply.body["use"].as_u64().unwrap()))
            .collect();
        assert_eq!((granted.len() as u64, numbers.len() as u64), (uses, uses));
        for refusal in refused {
            let reply = &refusal.reply;
            assert_eq!((reply.status, reply.code()), (410, "invite_exhausted"), "{}", reply.text);
            // Nobody was refused while a use was free.
            let asked_before =
                granted.iter().filter(|grant| grant.invoked < refusal.returned).count() as u64;
            assert_eq!(asked_before, uses);
        }
        let path = format!("{BASE}/redemptions?invite={}&limit=1000", made.id);
        eventually("the ledger has them all", async || {
            pair.nodes[1].get(&path).await.body["data"].as_array().unwrap().len() as u64 == uses
        })
        .await;
    }
    pair.assert_consistent().await;
}

fn partition(reply: &Reply) -> String {
    reply.body["position"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_clients_exactly_n_get_a_use_that_lies_in_two_partitions() {
    rush(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_clients_exactly_n_get_a_use_that_lies_in_three_partitions() {
    rush(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_clients_exactly_n_get_a_use_that_lies_in_sixteen_partitions() {
    rush(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_uses_are_found_wherever_they_are() {
    for spread in [2, 3, 16] {
        let pair = Pair::start(spread).await;
        let made = pair.invite("SKEWED", 24).await;
        // Every shard gets some, and all that is left is wanted by users of one.
        for shard in 1..=spread.min(4) {
            pair.granted("SKEWED", &pair.user(shard, 0)).await;
        }
        pair.spend_all(&made, spread, 24 - usize::from(spread.min(4))).await;
        let shown = pair.show(made.id).await;
        assert_eq!((&shown["uses"], &shown["state"]), (&json!(24), &json!("exhausted")));
        pair.assert_consistent().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_that_is_taken_back_in_one_shard_goes_to_the_next_who_asks_in_another() {
    let pair = Pair::start(3).await;
    pair.invite("BACK", 2).await;
    let first = pair.granted("BACK", &pair.user(1, 0)).await;
    pair.granted("BACK", &pair.user(2, 0)).await;
    pair.all_hear("BACK", 410, "invite_exhausted").await;
    let path = format!("{BASE}/redemptions/{}/rollback", first["id"].as_str().unwrap());
    let taken_back = pair.nodes[1].post(&path, &json!({"reason": "test"})).await;
    assert_eq!(taken_back.status, 200, "{}", taken_back.text);
    pair.granted("BACK", &pair.user(3, 0)).await;
    pair.all_hear("BACK", 410, "invite_exhausted").await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_in_one_shard_is_nobodys_in_another_until_it_ends() {
    let pair = Pair::start(3).await;
    pair.invite("HELD", 2).await;
    let long = pair.reserve("HELD", &pair.user(1, 0), 600).await;
    let short = pair.reserve("HELD", &pair.user(2, 0), 2).await;
    assert_eq!((long.status, short.status), (201, 201), "{} {}", long.text, short.text);
    let refused = pair.redeem(1, "HELD", &pair.user(3, 0)).await;
    if refused.status != 201 {
        assert_eq!((refused.status, refused.code()), (410, "invite_exhausted"), "{}", refused.text);
        assert_eq!(refused.body["may_free_at"], short.body["expires_at"]);
    }
    // It runs out.
    let user = pair.user(3, 0);
    eventually("a held use becomes free for another shard", async || {
        matches!(pair.redeem(1, "HELD", &user).await.status, 200 | 201)
    })
    .await;
    let refused = pair.redeem(0, "HELD", &pair.user(2, 1)).await;
    assert_eq!((refused.status, refused.code()), (410, "invite_exhausted"), "{}", refused.text);
    assert_eq!(refused.body["may_free_at"], long.body["expires_at"]);
    // It is given back.
    let id = long.body["id"].as_str().unwrap();
    let released = pair.nodes[1].delete(&format!("{BASE}/reservations/{id}")).await;
    assert_eq!(released.status, 204, "{}", released.text);
    pair.granted("HELD", &pair.user(2, 2)).await;
    pair.all_hear("HELD", 410, "invite_exhausted").await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_raised_and_lowered_while_users_redeem_and_is_never_passed() {
    let pair = Pair::start(3).await;
    let made = pair.invite("MOVING", 10).await;
    let highest = 60;
    let done = Arc::new(AtomicBool::new(false));
    let clients = (0..8).map(|client| {
        let (nodes, done) = (pair.nodes.clone(), done.clone());
        tokio::spawn(async move {
            let mut granted = 0_u64;
            let mut turn = 0;
            while !done.load(Ordering::SeqCst) {
                let body = json!({"code": "MOVING", "user": format!("mover-{client}-{turn}")});
                let path = format!("{BASE}/redemptions");
                let reply = nodes[client % 2].post(&path, &body).await;
                match (reply.status, reply.code()) {
                    (201, _) => granted += 1,
                    (410, "invite_exhausted") | (503, "overloaded") => {}
                    _ => panic!("{}", reply.text),
                }
                turn += 1;
            }
            granted
        })
    });
    let clients: Vec<_> = clients.collect();
    for limit in [20, 12, 30, 25, 60, 40] {
        let changed = pair.patch(made.id, &json!({"max_uses": limit})).await;
        match changed.status {
            200 => assert_eq!(changed.body["max_uses"], limit, "{}", changed.text),
            503 => assert_eq!(changed.code(), "overloaded", "{}", changed.text),
            _ => {
                assert_eq!((changed.status, changed.code()), (409, "limit_below_used"));
                assert!(changed.body["uses"].as_u64().unwrap() > limit, "{}", changed.text);
            }
        }
        let shown = pair.show(made.id).await;
        let (uses, max_uses) = (&shown["uses"], &shown["max_uses"]);
        assert!(uses.as_u64().unwrap() <= max_uses.as_u64().unwrap(), "{shown}");
    }
    let changed = pair.patch(made.id, &json!({"max_uses": highest})).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    eventually("all are spent", async || pair.show(made.id).await["uses"] == highest).await;
    done.store(true, Ordering::SeqCst);
    let granted: u64 = join_all(clients).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(granted, highest);
    pair.all_hear("MOVING", 410, "invite_exhausted").await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_checked_against_what_is_spent_in_all_shards() {
    let pair = Pair::start(3).await;
    let made = pair.invite("LIMIT", 30).await;
    for shard in 1..=3 {
        for number in 0..3 {
            pair.granted("LIMIT", &pair.user(shard, number)).await;
        }
    }
    let held = pair.reserve("LIMIT", &pair.user(1, 50), 600).await;
    assert_eq!(held.status, 201, "{}", held.text);
    let refused = pair.patch(made.id, &json!({"max_uses": 9})).await;
    assert_eq!((refused.status, refused.code()), (409, "limit_below_used"), "{}", refused.text);
    assert_eq!((&refused.body["uses"], &refused.body["held"]), (&json!(9), &json!(1)));
    let lowered = pair.patch(made.id, &json!({"max_uses": 10})).await;
    assert_eq!((lowered.status, &lowered.body["max_uses"]), (200, &json!(10)), "{}", lowered.text);
    pair.all_hear("LIMIT", 410, "invite_exhausted").await;
    // Without a limit, and back.
    let raised = pair.patch(made.id, &json!({"max_uses": null})).await;
    assert_eq!((raised.status, &raised.body["max_uses"]), (200, &Value::Null), "{}", raised.text);
    for shard in 1..=3 {
        pair.granted("LIMIT", &pair.user(shard, 60)).await;
    }
    let refused = pair.patch(made.id, &json!({"max_uses": 12})).await;
    assert_eq!((refused.status, refused.code()), (409, "limit_below_used"), "{}", refused.text);
    let lowered = pair.patch(made.id, &json!({"max_uses": 15})).await;
    assert_eq!((lowered.status, &lowered.body["uses"]), (200, &json!(12)), "{}", lowered.text);
    pair.spend_all(&made, 2, 2).await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_disabled_is_so_in_every_shard_once_it_is_said() {
    let pair = Pair::start(3).await;
    let made = pair.invite("SWITCH", 30).await;
    pair.granted("SWITCH", &pair.user(1, 0)).await;
    for turn in 0..5 {
        let off = pair.patch(made.id, &json!({"disabled": true})).await;
        assert_eq!(off.status, 200, "{}", off.text);
        pair.all_hear("SWITCH", 410, "invite_disabled").await;
        let on = pair.patch(made.id, &json!({"disabled": false})).await;
        assert_eq!(on.status, 200, "{}", on.text);
        for shard in 1..=3 {
            pair.granted("SWITCH", &pair.user(shard, 100 + turn)).await;
        }
    }
    assert_eq!(pair.show(made.id).await["uses"], 16);
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_whose_invite_has_ended_stands_for_another_one_in_every_shard() {
    let pair = Pair::start(3).await;
    let make = || pair.make(json!({"code": "AGAIN", "group": "team", "max_uses": 6}));
    let first = make().await;
    let body = json!({"code": "AGAIN", "group": "team", "max_uses": 6});
    let taken = pair.nodes[1].post(&format!("{BASE}/invites"), &body).await;
    assert_eq!((taken.status, taken.code()), (409, "code_taken"), "{}", taken.text);
    pair.spend_all(&first, 1, 6).await;
    // Used up.
    let second = make().await;
    for shard in 1..=3 {
        let told = pair.granted("AGAIN", &pair.user(shard, 0)).await;
        assert_eq!(told["invite"], second.id.to_string());
    }
    // Disabled.
    assert_eq!(pair.patch(second.id, &json!({"disabled": true})).await.status, 200);
    let third = make().await;
    for shard in 1..=3 {
        let told = pair.granted("AGAIN", &pair.user(shard, 1)).await;
        assert_eq!(told["invite"], third.id.to_string());
    }
    // Expired.
    let past = json!({"expires_at": "2020-01-01T00:00:00Z"});
    assert_eq!(pair.patch(third.id, &past).await.status, 200);
    let fourth = make().await;
    pair.spend_all(&fourth, 3, 6).await;
    let uses = join_all([&first, &second, &third, &fourth].map(|made| pair.show(made.id))).await;
    let uses: Vec<_> = uses.iter().map(|shown| shown["uses"].as_u64().unwrap()).collect();
    assert_eq!(uses, [6, 3, 3, 6]);
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_deleted_in_every_shard_unless_somebody_has_redeemed_it() {
    let pair = Pair::start(3).await;
    let made = pair.invite("GONE", 9).await;
    // Uses lie in two shards, without a redemption.
    for shard in [1, 2] {
        let held = pair.reserve("GONE", &pair.user(shard, 0), 600).await;
        assert_eq!(held.status, 201, "{}", held.text);
        let path = format!("{BASE}/invites/{}", made.id);
        let refused = pair.nodes[0].delete(&path).await;
        assert_eq!((refused.status, refused.code()), (409, "invite_in_use"), "{}", refused.text);
        let id = held.body["id"].as_str().unwrap();
        let released = pair.nodes[0].delete(&format!("{BASE}/reservations/{id}")).await;
        assert_eq!(released.status, 204, "{}", released.text);
    }
    let gone = pair.nodes[1].delete(&format!("{BASE}/invites/{}", made.id)).await;
    assert_eq!(gone.status, 204, "{}", gone.text);
    pair.all_hear("GONE", 404, "invite_not_found").await;
    pair.assert_consistent().await;
    let anew = pair.invite("GONE", 4).await;
    pair.spend_all(&anew, 2, 4).await;
    let refused = pair.nodes[1].delete(&format!("{BASE}/invites/{}", anew.id)).await;
    assert_eq!((refused.status, refused.code()), (409, "invite_in_use"), "{}", refused.text);
    pair.assert_consistent().await;
}

/// The namespace forgets an invite, and a shard still has its copy: as when it was copied while it was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_invite_that_is_gone_is_not_found() {
    let pair = Pair::start(2).await;
    let made = pair.invite("STALE", 4).await;
    let gate = pair.gate().await;
    let delete = DeleteInvite {
        id: made.id,
        namespace: home(),
        expected_revision: None,
        actor: "test".to_owned(),
    };
    delete.run(&gate).await.unwrap();
    pair.all_hear("STALE", 404, "invite_not_found").await;
    let anew = pair.invite("STALE", 3).await;
    pair.spend_all(&anew, 1, 3).await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_has_one_answer_from_whichever_node() {
    let pair = Pair::start(3).await;
    pair.invite("REPEAT", 5).await;
    let ask = async |node: usize, user: &str, code: &str| {
        let request = pair.nodes[node]
            .request(Method::POST, &format!("{BASE}/redemptions"))
            .header("idempotency-key", format!("key-{user}"));
        send(json_body(request, &json!({"code": code, "user": user}))).await.unwrap()
    };
    for shard in 1..=3 {
        let user = pair.user(shard, 0);
        let (one, two) = tokio::join!(ask(0, &user, "REPEAT"), ask(1, &user, "REPEAT"));
        let mut statuses = [one.status, two.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 201], "{} {}", one.text, two.text);
        assert_eq!(one.body["id"], two.body["id"]);
    }
    pair.granted("REPEAT", &pair.user(1, 1)).await;
    pair.granted("REPEAT", &pair.user(1, 2)).await;
    pair.all_hear("REPEAT", 410, "invite_exhausted").await;
    // When none is left, one's own answer still is.
    for shard in 1..=3 {
        let again = ask(1, &pair.user(shard, 0), "REPEAT").await;
        assert_eq!((again.status, &again.body["replayed"]), (200, &json!(true)), "{}", again.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_a_spread_namespace_who_redeems_two_codes_at_once_joins_one_group() {
    let pair = Pair::start_with(3, json!({"membership": "one_group"})).await;
    let body = |code, group| json!({"code": code, "group": group, "max_uses": 100});
    let (red, blue) = (pair.make(body("RED", "red")).await, pair.make(body("BLUE", "blue")).await);
    for turn in 0..20 {
        let user = format!("user-{turn}");
        let (one, two) = tokio::join!(pair.redeem(0, "RED", &user), pair.redeem(1, "BLUE", &user));
        let mut statuses = [one.status, two.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409], "{} {}", one.text, two.text);
        let member = pair.nodes[0].get(&format!("{BASE}/members/{user}")).await;
        assert_eq!(member.body["memberships"].as_array().unwrap().len(), 1);
    }
    let shown = [pair.show(red.id).await, pair.show(blue.id).await];
    let uses: u64 = shown.iter().map(|shown| shown["uses"].as_u64().unwrap()).sum();
    assert_eq!(uses, 20);
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_repeated_or_comes_late_moves_nothing_more() {
    let pair = Pair::start(3).await;
    let made = pair.invite("LATE", 12).await;
    let gate = pair.gate().await;
    let (to_1, to_2) = ((HOME, 1), (HOME, 2));
    let first = pair.give(&gate, &made.pool(), to_1, 0, 4).await;
    assert_eq!((first.max_uses, pair.given(&first, 1).amount), (9, 3));
    // Nobody has heard of it: it is repeated as it was.
    let again = pair.give(&gate, &made.pool(), to_1, 0, 4).await;
    assert_eq!(pair.given(&again, 1), pair.given(&first, 1));
    assert_eq!(again.max_uses, 9);
    assert_eq!(pair.take(&gate, &made.pool(), to_1, 3).await.max_uses, 3);
    assert_eq!(pair.take(&gate, &made.pool(), to_1, 3).await.max_uses, 3);
    let more = pair.give(&gate, &made.pool(), to_1, 3, 3).await;
    assert_eq!((more.max_uses, pair.given(&more, 1).amount), (4, 8));
    // Who knows an older amount gets nothing new, whatever was taken since.
    assert_eq!(pair.take(&gate, &made.pool(), to_1, 8).await.max_uses, 8);
    for known in [0, 3] {
        assert_eq!(pair.give(&gate, &made.pool(), to_1, known, 1).await.max_uses, 4);
    }
    for late in [3, 1, 8] {
        assert_eq!(pair.take(&gate, &made.pool(), to_1, late).await.max_uses, 8);
    }
    assert_eq!(
        pair.give(&gate, &made.pool(), to_2, 0, 0).await.max_uses,
        4,
        "a look gives nothing"
    );
    pair.spend_all(&made, 2, 12).await;
    pair.assert_consistent().await;
}

/// What a node has left behind that died between the two halves of a move, or between two moves.
#[tokio::test(flavor = "multi_thread")]
async fn uses_that_a_dead_node_left_on_their_way_are_found() {
    let pair = Pair::start(3).await;
    let gate = pair.gate().await;
    for asks in 1..=3 {
        let made = pair.invite(&format!("STRANDED-{asks}"), 12).await;
        // Half to the first shard, half of the rest to the second; nothing is taken. Then some go on from the third.
        pair.give(&gate, &made.pool(), (HOME, 1), 0, 2).await;
        pair.give(&gate, &made.pool(), (HOME, 2), 0, 2).await;
        let given = pair.give(&gate, &made.pool(), (HOME, 3), 0, 1).await;
        eventually("the ledger has what was given", async || {
            let sql = "SELECT COUNT(*) FROM moves WHERE own = 0 AND given > 0";
            Sql::connect(&pair.ledger).await.number(sql).await >= 3 * i64::from(asks)
        })
        .await;
        pair.take(&gate, &made.pool(), (HOME, 3), pair.given(&given, 3).amount).await;
        pair.give(&gate, &made.pool(), (3, 1), 0, 2).await;
        pair.spend_all(&made, asks, 12).await;
    }
    pair.assert_consistent().await;
}

/// A shard whose Redis has lost its copy, or that was never asked before, can have uses on their way to it.
#[tokio::test(flavor = "multi_thread")]
async fn uses_on_their_way_to_a_shard_that_has_no_copy_are_found() {
    let pair = Pair::start(3).await;
    let body = json!({"count": 1, "pattern": "####-####", "group": "team", "max_uses": 6});
    let made = pair.batch(&body).await;
    let gate = pair.gate().await;
    assert!(pair.give(&gate, &made.pool(), (2, 1), 0, 0).await.is_absent());
    pair.give(&gate, &made.pool(), (HOME, 2), 0, 1).await;
    pair.spend_all(&made, 1, 6).await;
    pair.assert_consistent().await;
}

/// The giver forgets what it gave, which the ledger had not: the uses are where they were, and nobody else has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_giver_that_forgets_a_debit_has_credited_nobody() {
    let pair = Pair::start_patient(3, json!({}), 9000).await;
    let made = pair.invite("DEBIT", 8).await;
    eventually("the ledger has the invite", async || {
        let sql = "SELECT COUNT(*) FROM invites WHERE total IS NOT NULL";
        Sql::connect(&pair.ledger).await.number(sql).await == 1
    })
    .await;
    let gate = pair.gate().await;
    let mut sql = Sql::connect(&pair.ledger).await;
    sql.hold().await;
    pair.give(&gate, &made.pool(), (HOME, 1), 0, 1).await;
    // The shard that it went to has nothing before the ledger knows of it.
    let user = pair.user(1, 0);
    let waits = pair.redeem(0, "DEBIT", &user).await;
    assert_eq!((waits.status, waits.code()), (503, "overloaded"), "{}", waits.text);
    pair.redis.run::<()>(&["FLUSHALL"]).await;
    sql.let_go().await;
    drop(sql);
    pair.spend_all(&made, 2, 8).await;
    assert_eq!(pair.show(made.id).await["uses"], 8);
    pair.assert_consistent().await;
}

/// The taker forgets what it got, and what it has told of it: the nodes bring that back, and nothing is got twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_taker_that_forgets_a_credit_gets_it_again_and_keeps_what_it_told() {
    let pair = Pair::start(3).await;
    let made = pair.invite("CREDIT", 9).await;
    let gate = pair.gate().await;
    let given = pair.give(&gate, &made.pool(), (HOME, 1), 0, 1).await;
    let amount = pair.given(&given, 1).amount;
    eventually("the ledger has what was given", async || {
        let sql = "SELECT COUNT(*) FROM moves WHERE own = 0 AND given = 9";
        Sql::connect(&pair.ledger).await.number(sql).await == 1
    })
    .await;
    let mut sql = Sql::connect(&pair.ledger).await;
    sql.hold().await;
    assert_eq!(pair.take(&gate, &made.pool(), (HOME, 1), amount).await.max_uses, 9);
    let mut told = BTreeMap::new();
    for number in 0..5 {
        let user = pair.user(1, number);
        let reply = pair.redeem(number % 2, "CREDIT", &user).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        told.insert(user, reply.body["id"].clone());
    }
    pair.redis.run::<()>(&["FLUSHALL"]).await;
    sql.let_go().await;
    drop(sql);
    for (user, id) in told {
        let again = until_some("there is an answer", async || {
            let reply = pair.redeem(0, "CREDIT", &user).await;
            (reply.status != 503).then_some(reply)
        })
        .await;
        assert_eq!((again.status, &again.body["id"]), (200, &id), "{}", again.text);
    }
    pair.spend_all(&made, 2, 4).await;
    assert_eq!(pair.show(made.id).await["uses"], 9);
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_ledger_can_not_write_a_dry_share_waits_and_others_go_on() {
    let pair = Pair::start_patient(2, json!({}), 9000).await;
    let made = pair.invite("DRY", 12).await;
    // The first shard gets some; the other has none yet.
    pair.granted("DRY", &pair.user(1, 0)).await;
    pair.granted("DRY", &pair.user(1, 1)).await;
    let gate = pair.gate().await;
    let free = pair.give(&gate, &made.pool(), (1, HOME), 0, 0).await.free();
    assert!(free > 0);
    let mut sql = Sql::connect(&pair.ledger).await;
    sql.hold().await;
    let waits = pair.redeem(0, "DRY", &pair.user(2, 0)).await;
    assert_eq!((waits.status, waits.code()), (503, "overloaded"), "{}", waits.text);
    assert_eq!(pair.redeem(1, "DRY", &pair.user(1, 2)).await.status, 201);
    assert_eq!(pair.show(made.id).await["uses"], 3, "nothing was spent");
    sql.let_go().await;
    drop(sql);
    pair.spend_all(&made, 2, 9).await;
    pair.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_partition_is_built_anew_with_its_shares_and_moves() {
    let pair = Pair::start(3).await;
    let made = pair.invite("BUILT", 30).await;
    for shard in 1..=3 {
        for number in 0..3 {
            pair.granted("BUILT", &pair.user(shard, number)).await;
        }
    }
    let gate = pair.gate().await;
    let before = pair.give(&gate, &made.pool(), (1, 2), 0, 2).await;
    eventually("the ledger has all of it", async || {
        let sql = "SELECT COUNT(*) FROM redemptions WHERE rolled_back_at IS NULL";
        Sql::connect(&pair.ledger).await.number(sql).await == 9
    })
    .await;
    eventually("the ledger has what was given too", async || {
        let [own, participant] = [1, 2].map(|number| pair.shard(number).participant());
        let given = pair.given(&before, 2).amount;
        let sql = format!(
            "SELECT COUNT(*) FROM moves WHERE own = {own} AND participant = {participant} AND given = {given}"
        );
        Sql::connect(&pair.ledger).await.number(&sql).await == 1
    })
    .await;
    pair.rebuild_all().await;
    let after = pair.give(&pair.gate().await, &made.pool(), (1, 2), 0, 0).await;
    let after = Part { epoch: before.epoch, kept: before.kept, ..after };
    assert_eq!(after, before);
    pair.spend_all(&made, 3, 21).await;
    pair.assert_consistent().await;
}
