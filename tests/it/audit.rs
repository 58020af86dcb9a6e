//! The audit finds what is wrong, and nothing that is not.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use redeemer::{
    audit::{self, Mend, Report},
    domain::{
        Code, CodeCase, Group, InviteId, MembershipRule, Namespace, Outcome, Partition,
        RedemptionId, RequestId, UserId,
    },
    gate::{
        create_invite::CreateInvite,
        redeem::{Mode, Redeem},
        release::{Release, ReleaseAnswer},
    },
    sync::{
        self,
        progress::{self, Progress},
    },
};
use serde_json::Value;
use uuid::Uuid;

use crate::support::{
    bench::Bench,
    eventually,
    ledger::Sql,
    node::{Node, Settings, command},
};

struct Audited {
    bench: Bench,
    namespace: Namespace,
    progress: Progress,
    stop: tokio_util::sync::CancellationToken,
}

impl Audited {
    /// A partition with a sync and some users.
    async fn start() -> Self {
        let bench = Bench::start().await;
        let namespace = bench.namespace("acme", MembershipRule::OneGroup).await;
        let progress = Progress::new(1);
        let mut context = bench.context(std::time::Duration::from_secs(1));
        context.progress = progress.clone();
        let stop = tokio_util::sync::CancellationToken::new();
        tokio::spawn(sync::run(context, stop.clone()));
        tokio::spawn(progress::look(progress.clone(), bench.ledger.clone()));
        let it = Self { bench, namespace, progress, stop };
        let code = Code::parse("WELCOME", CodeCase::Sensitive).unwrap();
        it.invite(code, InviteId(Uuid::from_u128(5))).run(&it.bench.gate).await.unwrap();
        for number in 0..20 {
            it.redeem(number).await;
        }
        it
    }

    fn invite(&self, code: Code, id: InviteId) -> CreateInvite {
        CreateInvite {
            id,
            namespace: self.namespace.clone(),
            code,
            group: Group::parse("team").unwrap(),
            max_uses: None,
            max_uses_per_user: None,
            campaign: None,
            starts_at: None,
            expires_at: None,
            user: None,
            email_domains: Vec::new(),
            metadata: Some("{\"a\":1}".to_owned()),
            exhausted: None,
            actor: "test".to_owned(),
        }
    }

    async fn redeem(&self, number: u64) {
        let id = u128::from(number);
        let request = Redeem {
            namespace: self.namespace.clone(),
            code: Code::parse("WELCOME", CodeCase::Sensitive).unwrap(),
            user: Some(UserId::parse(&format!("user-{number}")).unwrap()),
            ip: None,
            email_domain: None,
            caller: "test".to_owned(),
            mode: Mode::Redeem {
                request: RequestId::from_uuid(Uuid::from_u128(id)),
                redemption: RedemptionId(Uuid::from_u128(id + 1_000_000)),
                metadata: None,
                reservation: None,
            },
        };
        self.bench.gate.redeem(request).await.unwrap();
    }

    /// An invite of its own, of which this user's use alone is held, and then is not.
    async fn hold_and_give_back(&self, number: u128, turn: i64) {
        let code = Code::parse(&format!("HELD-{number}"), CodeCase::Sensitive).unwrap();
        if turn == 0 {
            let invite = self.invite(code.clone(), InviteId(Uuid::from_u128(100 + number)));
            invite.run(&self.bench.gate).await.unwrap();
        }
        // Each time until another moment, as clocks have it.
        self.bench.clock.fetch_add(1, Ordering::Relaxed);
        let request = Redeem {
            namespace: self.namespace.clone(),
            code,
            user: Some(UserId::parse(&format!("holder-{number}")).unwrap()),
            ip: None,
            email_domain: None,
            caller: "test".to_owned(),
            mode: Mode::Reserve { ttl_ms: 600_000 },
        };
        let answer = self.bench.gate.redeem(request).await.unwrap();
        let Outcome::Held { reservation, .. } = answer.outcome else { panic!("{answer:?}") };
        let release = Release { reservation, actor: "test".to_owned() };
        assert_eq!(release.run(&self.bench.gate).await.unwrap(), ReleaseAnswer::Released);
    }

    async fn audit(&self) -> Report {
        self.audit_and(Mend::No).await
    }

    async fn audit_and(&self, mend: Mend) -> Report {
        audit::run(&self.bench.gate, &self.bench.ledger, &self.progress, Partition(0), mend)
            .await
            .unwrap()
    }

    fn key(&self, rest: &str) -> String {
        self.bench.gate.keys().pattern(Partition(0)).replace('*', &format!("acme:{rest}"))
    }
}

impl Drop for Audited {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn what_agrees_is_clean() {
    let it = Audited::start().await;
    let report = it.audit().await;
    assert!(report.is_clean(), "{report:?}");
    // Settings, the invite and its id, twenty users.
    assert_eq!((report.compared, report.busy.len()), (23, 0));
}

#[tokio::test]
async fn each_kind_of_drift_in_redis_is_found() {
    let it = Audited::start().await;
    let redis = &it.bench.redis;
    redis.run::<()>(&["HINCRBY", &it.key("invite:WELCOME"), "uses", "-1"]).await;
    redis.run::<()>(&["DEL", &it.key("member:user-3")]).await;
    redis.run::<()>(&["HSET", &it.key("member:intruder"), "group:team", "1-3"]).await;
    redis.run::<()>(&["HDEL", &it.key("member:user-4"), "group:team"]).await;
    redis
        .run::<()>(&["SET", &it.key("invite-id:00000000-0000-0000-0000-000000000009"), "GHOST"])
        .await;
    let report = it.audit().await;
    let found: Vec<&str> =
        report.differences.iter().map(|difference| difference.key.as_str()).collect();
    let mut planted = [
        it.key("invite:WELCOME"),
        it.key("invite-id:00000000-0000-0000-0000-000000000009"),
        it.key("member:intruder"),
        it.key("member:user-3"),
        it.key("member:user-4"),
    ];
    planted.sort();
    assert_eq!(found, planted);
    let uses = report
        .differences
        .iter()
        .find(|difference| difference.key.ends_with(":invite:WELCOME"))
        .unwrap();
    assert_eq!(
        (uses.gate["uses"].as_str(), uses.ledger["uses"].as_str(), uses.gate.len()),
        ("19", "20", 1)
    );
    assert!(report.broken.is_empty(), "{report:?}");
}

#[tokio::test]
async fn what_can_not_be_in_the_ledger_is_found() {
    let it = Audited::start().await;
    eventually("the ledger has all", async || it.audit().await.is_clean()).await;
    let mut sql = Sql::connect(&it.bench.ledger_url()).await;
    sql.execute("DELETE FROM redemptions WHERE user_id = 'user-7'").await;
    let report = it.audit().await;
    assert_eq!(report.broken.len(), 2, "a use without its redemption, and a gap: {report:?}");
    assert!(
        report.differences.iter().any(|difference| difference.key.ends_with("member:user-7")),
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_nothing_looks_like_drift() {
    let it = Arc::new(Audited::start().await);
    for round in 1..4_u64 {
        // Four users at a time while the audit looks; how many there are is what bounds the load.
        let load = (0..4_u64).map(|task| {
            let it = it.clone();
            tokio::spawn(async move {
                for number in 0..200 {
                    it.redeem(round * 10_000 + task * 1000 + number).await;
                }
            })
        });
        let load: Vec<_> = load.collect();
        let report = it.audit().await;
        assert!(report.is_clean(), "{report:?}");
        assert!(report.busy.iter().all(|key| key.ends_with(":invite:WELCOME")), "{report:?}");
        for task in load {
            task.await.unwrap();
        }
    }
    let report = it.audit().await;
    assert!(report.is_clean() && report.busy.is_empty(), "{report:?}");
}

/// What is held and given back between two looks leaves Redis as if nothing had been.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_and_given_back_while_the_audit_looks_is_no_drift() {
    let it = Arc::new(Audited::start().await);
    let done = Arc::new(AtomicBool::new(false));
    let holders = (0..4).map(|number| {
        let (it, done) = (it.clone(), done.clone());
        tokio::spawn(async move {
            for turn in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                it.hold_and_give_back(number, turn).await;
            }
        })
    });
    let holders: Vec<_> = holders.collect();
    for _ in 0..50 {
        let report = it.audit().await;
        assert!(report.is_clean(), "{report:?}");
    }
    done.store(true, Ordering::Relaxed);
    for holder in holders {
        holder.await.unwrap();
    }
}

#[test]
fn the_command_tells_by_its_exit_code() {
    let node = Node::embedded();
    let run = |args: &[&str]| {
        command(node.directory(), &Settings::default()).args(args).output().unwrap()
    };
    let clean = run(&["audit"]);
    let said = String::from_utf8(clean.stdout).unwrap();
    assert!(clean.status.success() && said.contains("everything agrees"), "{said}");
    let socket = node.directory().join("redis/redis.sock");
    let hset = |key: &str| {
        let done = std::process::Command::new("redis-cli")
            .arg("-s")
            .arg(&socket)
            .args(["HSET", key, "rate_user", "1/1"])
            .output();
        assert!(done.unwrap().status.success());
    };
    hset("rdm:{06rd}:default:settings");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let seen = runtime.block_on(node.get("/v1/namespaces/default/consistency"));
    assert_eq!((seen.status, &seen.body["consistent"]), (200, &false.into()), "{}", seen.text);
    assert_eq!(seen.body["differences"][0]["ledger"]["rate_user"], "10/60");
    let elsewhere = runtime.block_on(node.get("/v1/namespaces/spring-2027/consistency"));
    assert_eq!(
        (elsewhere.status, &elsewhere.body["consistent"]),
        (200, &true.into()),
        "the same partition"
    );
    let drift = run(&["audit", "--output", "json"]);
    assert_eq!(drift.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&drift.stdout).unwrap();
    assert_eq!(
        (&report["clean"], &report["partitions"][6]["differences"][0]["gate"]["rate_user"]),
        (&false.into(), &"1/1".into()),
        "{report}"
    );
}

/// Whatever somebody did to Redis by hand comes right again, while users go on redeeming.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_makes_every_key_hold_what_the_ledger_says_also_under_load() {
    let it = Audited::start().await;
    eventually("the ledger has all", async || it.audit().await.is_clean()).await;
    let run = async |command: &[&str]| {
        it.bench.redis.run::<redis::Value>(command).await;
    };
    let keys: Vec<String> = it.bench.redis.run(&["KEYS", "*"]).await;
    let key = |ending: &str| keys.iter().find(|key| key.ends_with(ending)).unwrap().clone();
    let invite = keys.iter().find(|key| key.contains(":invite:")).unwrap().clone();
    let stray = key(":member:user-7").replace("user-7", "user-stray");
    let spoil = async || {
        run(&["HSET", &invite, "uses", "1"]).await;
        run(&["DEL", &key(":member:user-3")]).await;
        run(&["HSET", &key(":member:user-4"), "group:other", "1-1"]).await;
        run(&["HDEL", &key(":settings"), "membership"]).await;
        run(&["HSET", &stray, "group:team", "1-9"]).await;
    };
    spoil().await;
    let report = it.audit_and(Mend::Yes).await;
    assert_eq!((report.repaired.len(), report.differences.len()), (5, 0), "{report:?}");
    let report = it.audit().await;
    assert!(report.is_clean() && report.busy.is_empty(), "{report:?}");

    let load = async {
        for number in 10_000..10_200 {
            it.redeem(number).await;
        }
    };
    let mend = async {
        for _ in 0..5 {
            run(&["DEL", &key(":member:user-3")]).await;
            run(&["HSET", &key(":member:user-4"), "group:other", "1-1"]).await;
            it.audit_and(Mend::Yes).await;
        }
    };
    tokio::join!(load, mend);
    eventually("both sides agree", async || it.audit_and(Mend::Yes).await.is_clean()).await;
    let report = it.audit().await;
    assert!(report.is_clean() && report.busy.is_empty(), "{report:?}");
}
