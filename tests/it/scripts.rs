//! What the scripts must do that no history of one node brings about: several nodes, several builders, steps that get
//! lost or come twice, and what is left in memory.

use std::sync::atomic::AtomicBool;

use redeemer::{
    domain::{
        Code, CodeCase, Cursor, Fence, Group, InviteId, MembershipRule, Namespace, Outcome,
        Partition, Quota, RedemptionId, Refusal, RequestId, UserId,
        command::{
            Action, CreateInvite, Join, Joined, Leave, Left, Mode, PutNamespace, Redeem, RulesPatch,
        },
    },
    gate::{
        Gate, GateError, adopt,
        adopt::Adopted,
        audit::{self, Held},
        close,
        close::Closed,
        rebuild::{Builder, RebuildError},
        repair::{self, Repaired},
        script, survey,
    },
};
use uuid::Uuid;

use crate::support::bench::{Bench, gate_options};

const PARTITION: Partition = Partition(0);

/// A namespace with the invite WELCOME.
async fn namespace_with_an_invite(bench: &Bench) -> Namespace {
    let namespace = bench.namespace("acme", MembershipRule::OneGroup).await;
    let create = CreateInvite {
        id: InviteId(Uuid::from_u128(5)),
        namespace: namespace.clone(),
        code: Code::parse("WELCOME", CodeCase::Sensitive).unwrap(),
        group: Group::parse("team").unwrap(),
        max_uses: Some(100),
        max_uses_per_user: None,
        campaign: None,
        starts_at: None,
        expires_at: None,
        user: None,
        email_domains: Vec::new(),
        metadata: None,
        exhausted: None,
        actor: "test".to_owned(),
    };
    create.run(&bench.gate).await.unwrap();
    namespace
}

async fn redeem(gate: &Gate, namespace: &Namespace, user: &str) -> Outcome {
    try_redeem(gate, namespace, user).await.unwrap()
}

async fn try_redeem(gate: &Gate, namespace: &Namespace, user: &str) -> Result<Outcome, GateError> {
    let request = Redeem {
        namespace: namespace.clone(),
        code: Code::parse("WELCOME", CodeCase::Sensitive).unwrap(),
        user: Some(UserId::parse(user).unwrap()),
        ip: None,
        email_domain: None,
        caller: "test".to_owned(),
        mode: Mode::Redeem {
            request: RequestId::parse(user).unwrap(),
            redemption: RedemptionId(Uuid::from_bytes(std::array::from_fn(|i| {
                user.as_bytes()[i % user.len()]
            }))),
            metadata: None,
            reservation: None,
        },
    };
    gate.redeem(request).await.map(|answer| answer.outcome)
}

/// From now on two redemptions in ten minutes.
async fn limit_the_code(bench: &Bench, namespace: &Namespace) {
    let rate_code = Some(Some(Quota::parse("2/600").unwrap()));
    let put = PutNamespace {
        namespace: namespace.clone(),
        action: Action::Patch(RulesPatch { rate_code, ..RulesPatch::default() }),
        change: Uuid::from_u128(8),
        expected_revision: None,
        actor: "test".to_owned(),
    };
    put.run(&bench.gate).await.unwrap();
}

#[tokio::test]
async fn a_node_that_remembers_older_rules_decides_by_the_new_ones() {
    let bench = Bench::start().await;
    let namespace = namespace_with_an_invite(&bench).await;
    let options = gate_options(&bench.redis.url(), Some(bench.clock.clone()));
    let (other, lanes) = Gate::new(options).unwrap();
    tokio::spawn(lanes);
    other.set_fence(PARTITION, bench.gate.fence(PARTITION).map(|fence| Fence::clone(&fence)));
    assert!(matches!(redeem(&other, &namespace, "alice").await, Outcome::Granted(_)));
    limit_the_code(&bench, &namespace).await;
    for user in ["bob", "carol"] {
        assert!(matches!(redeem(&other, &namespace, user).await, Outcome::Granted(_)));
    }
    let limited = redeem(&other, &namespace, "dave").await;
    assert!(matches!(limited, Outcome::Refused(Refusal::RateLimited { .. })), "{limited:?}");
}

#[tokio::test]
async fn a_budget_that_is_full_again_takes_no_memory() {
    let bench = Bench::start().await;
    let namespace = namespace_with_an_invite(&bench).await;
    limit_the_code(&bench, &namespace).await;
    redeem(&bench.gate, &namespace, "alice").await;
    let keys: Vec<String> = bench.redis.run(&["KEYS", "*:rate:*"]).await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    // One of two attempts in ten minutes is made up for in five.
    let left_ms: i64 = bench.redis.run(&["PTTL", &keys[0]]).await;
    assert!((1..=300_000).contains(&left_ms), "{left_ms}");
}

#[tokio::test]
async fn who_joined_without_a_code_and_left_takes_no_memory() {
    let bench = Bench::start().await;
    let namespace = bench.namespace("acme", MembershipRule::OneGroup).await;
    let (user, group) = (UserId::parse("alice").unwrap(), Group::parse("team").unwrap());
    let actor = "test".to_owned();
    let join = Join {
        namespace: namespace.clone(),
        user: user.clone(),
        group: group.clone(),
        actor: actor.clone(),
    };
    assert!(matches!(join.run(&bench.gate).await.unwrap(), Joined::Joined(_)));
    let key = bench.gate.keys().member(&namespace, &user);
    assert_eq!(bench.redis.run::<u32>(&["HLEN", &key]).await, 2);
    let leave = Leave { namespace, user, group: Some(group), actor };
    assert!(matches!(leave.run(&bench.gate).await.unwrap(), Left::Left(_)));
    assert_eq!(bench.redis.run::<u32>(&["EXISTS", &key]).await, 0);
}

/// What comes after the fence that the gate has now.
async fn next_fence(bench: &Bench, ahead: u64) -> Fence {
    let survey = survey::run(&bench.gate, PARTITION).await.unwrap();
    let epoch = survey.meta.unwrap().cursor.epoch + ahead;
    Fence { deployment: bench.deployment.id.clone(), lineage: survey.lineage, epoch }
}

#[tokio::test]
async fn from_the_closing_on_the_outbox_stands_still() {
    let bench = Bench::start().await;
    let namespace = namespace_with_an_invite(&bench).await;
    assert!(matches!(redeem(&bench.gate, &namespace, "alice").await, Outcome::Granted(_)));
    let next = next_fence(&bench, 1).await;
    let closed = close::run(&bench.gate, PARTITION, &next, false).await.unwrap();
    assert!(matches!(closed, Closed::Closed));
    // The server is the same, and so is all that this node knows.
    let bob = try_redeem(&bench.gate, &namespace, "bob").await;
    assert!(matches!(bob, Err(GateError::Fenced)), "{bob:?}");
}

#[tokio::test]
async fn a_recovery_that_was_overtaken_neither_closes_nor_opens() {
    let bench = Bench::start().await;
    let cursor: Cursor = survey::run(&bench.gate, PARTITION).await.unwrap().meta.unwrap().cursor;
    let (early, late) = (next_fence(&bench, 1).await, next_fence(&bench, 2).await);
    let close = async |fence| close::run(&bench.gate, PARTITION, fence, false).await.unwrap();
    assert!(matches!(close(&early).await, Closed::Closed));
    assert!(matches!(close(&late).await, Closed::Closed));
    assert!(matches!(close(&early).await, Closed::Moved));
    let adopted = adopt::run(&bench.gate, PARTITION, &early, cursor).await.unwrap();
    assert!(matches!(adopted, Adopted::Moved));
    let adopted = adopt::run(&bench.gate, PARTITION, &late, cursor).await.unwrap();
    assert!(matches!(adopted, Adopted::Adopted));
    // What the later one has opened stays open.
    assert!(matches!(close(&early).await, Closed::Foreign { .. }));
    assert!(matches!(close(&late).await, Closed::Foreign { .. }));
}

#[tokio::test]
async fn another_deployments_gate_is_left_alone_unless_it_is_to_be_discarded() {
    let bench = Bench::start().await;
    let namespace = namespace_with_an_invite(&bench).await;
    let cursor = survey::run(&bench.gate, PARTITION).await.unwrap().meta.unwrap().cursor;
    let theirs = Fence { deployment: "another".to_owned(), ..next_fence(&bench, 1).await };
    let alive = AtomicBool::new(true);
    let begin = async |discard| {
        Builder::begin(&bench.gate, PARTITION, theirs.clone(), "5", discard, &alive).await
    };
    let closed = close::run(&bench.gate, PARTITION, &theirs, false).await.unwrap();
    assert!(matches!(closed, Closed::Foreign { .. }));
    assert!(matches!(begin(false).await, Err(RebuildError::Foreign { .. })));
    let adopted = adopt::run(&bench.gate, PARTITION, &theirs, cursor).await.unwrap();
    assert!(matches!(adopted, Adopted::Moved));
    assert!(matches!(redeem(&bench.gate, &namespace, "alice").await, Outcome::Granted(_)));

    let closed = close::run(&bench.gate, PARTITION, &theirs, true).await.unwrap();
    assert!(matches!(closed, Closed::Closed));
    begin(true).await.unwrap().finish(cursor).await.unwrap();
    assert_eq!(bench.redis.run::<Vec<String>>(&["KEYS", "*acme*"]).await, Vec::<String>::new());
}

#[tokio::test]
async fn of_two_builders_the_later_one_goes_on() {
    let bench = Bench::start().await;
    let cursor: Cursor = survey::run(&bench.gate, PARTITION).await.unwrap().meta.unwrap().cursor;
    let next = next_fence(&bench, 1).await;
    let closed = close::run(&bench.gate, PARTITION, &next, false).await.unwrap();
    assert!(matches!(closed, Closed::Closed));
    let alive = AtomicBool::new(true);
    let begin = async |token| {
        Builder::begin(&bench.gate, PARTITION, next.clone(), token, false, &alive).await.unwrap()
    };
    let (early, late) = (begin("5").await, begin("6").await);
    assert!(matches!(early.finish(cursor).await, Err(RebuildError::Moved)));
    late.finish(cursor).await.unwrap();
}

#[tokio::test]
async fn a_rebuild_takes_each_chunk_once_and_in_order_and_counts_what_it_loaded() {
    let bench = Bench::start().await;
    let next = next_fence(&bench, 1).await;
    let closed = close::run(&bench.gate, PARTITION, &next, false).await.unwrap();
    assert!(matches!(closed, Closed::Closed));
    let (meta, outbox) = (bench.gate.keys().meta(PARTITION), bench.gate.keys().outbox(PARTITION));
    let epoch = next.epoch.to_string();
    let key = |number: u32| format!("{meta}-{number}");
    let step = async |words: &[&str], key: &[&str]| -> String {
        let count = (2 + key.len()).to_string();
        let mut command = vec!["EVAL", script::REBUILD.source, &count, &meta, &outbox];
        command.extend(key);
        command.extend([next.deployment.as_str(), &next.lineage, &epoch, "5"]);
        command.extend(words);
        let reply: Vec<String> = bench.redis.run(&command).await;
        reply.join(" ")
    };
    assert_eq!(step(&["begin", "1", ""], &[]).await, "done");
    assert_eq!(step(&["load", "2", "string", "1", "two"], &[&key(2)]).await, "moved");
    assert_eq!(step(&["load", "1", "string", "1", "one"], &[&key(1)]).await, "done");
    assert_eq!(step(&["load", "1", "string", "1", "again"], &[&key(1)]).await, "done");
    assert_eq!(bench.redis.run::<String>(&["GET", &key(1)]).await, "one");
    assert_eq!(step(&["load", "3", "string", "1", "three"], &[&key(3)]).await, "moved");
    assert_eq!(step(&["finish", "2", "1", "1-0"], &[]).await, "miscounted 1 1");
    assert_eq!(step(&["finish", "1", "2", "1-0"], &[]).await, "miscounted 1 1");
    assert_eq!(step(&["finish", "1", "1", "1-0"], &[]).await, "done");
    assert_eq!(bench.redis.run::<u32>(&["EXISTS", &key(2), &key(3)]).await, 0);
}

/// An audit looked at a key some time ago; what it holds by now may be right, and must not be written over.
#[tokio::test]
async fn a_repair_touches_no_key_that_has_changed_since_it_was_looked_at() {
    let bench = Bench::start().await;
    let key = bench.gate.keys().pattern(PARTITION).replace('*', "acme:member:alice");
    let held = |pairs: &[(&str, &str)]| -> Held {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let repair = async |seen: &Held, wanted: &Held| {
        repair::run(&bench.gate, PARTITION, &key, seen, wanted).await.unwrap()
    };
    let now = async || {
        audit::read(&bench.gate, PARTITION, std::slice::from_ref(&key))
            .await
            .unwrap()
            .held
            .remove(0)
    };
    let (good, text) = (held(&[("a", "1"), ("b", "2")]), held(&[("", "text")]));
    bench.redis.run::<()>(&["HSET", &key, "a", "1", "b", "2"]).await;
    for stale in [
        held(&[]),
        held(&[("a", "1")]),
        held(&[("a", "1"), ("b", "3")]),
        held(&[("a", "1"), ("c", "2")]),
        held(&[("a", "1"), ("b", "2"), ("c", "3")]),
        text.clone(),
    ] {
        assert_eq!(repair(&stale, &held(&[("x", "y")])).await, Repaired::Changed, "{stale:?}");
        assert_eq!(now().await, good);
    }
    // From a hash to a text, from there to nothing, and to a hash with other fields.
    assert_eq!(repair(&good, &text).await, Repaired::Repaired);
    assert_eq!(now().await, text);
    assert_eq!(repair(&held(&[("", "other")]), &good).await, Repaired::Changed);
    assert_eq!(now().await, text);
    assert_eq!(repair(&text, &held(&[])).await, Repaired::Repaired);
    assert_eq!(now().await, held(&[]));
    assert_eq!(repair(&held(&[]), &good).await, Repaired::Repaired);
    assert_eq!(repair(&good, &held(&[("c", "3")])).await, Repaired::Repaired);
    assert_eq!(now().await, held(&[("c", "3")]), "what it held before is gone");
}
