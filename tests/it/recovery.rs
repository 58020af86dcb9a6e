//! Admission and recovery on a real Redis: what opens by itself, what stays closed, and what a rebuild brings back.

use std::{collections::BTreeMap, sync::atomic::AtomicBool, time::Duration};

use redeemer::{
    domain::{
        Acknowledgement, Change, Code, CodeCase, Cursor, Entry, Fence, Group, InviteId,
        MembershipRule, Namespace, Outcome, Partition, Position, Redemption, RedemptionId,
        RequestId, UserId,
        command::{Join, Leave},
    },
    gate::{
        GateError,
        close::{self, Closed},
        create_invite::CreateInvite,
        erase_user::{EraseUser, Erased},
        outbox::Reader,
        rebuild::{Builder, RebuildError},
        redeem::{Mode, Redeem},
        survey,
    },
    ledger::{By, Claimed, Lease, Ledger, PartitionState, Rebuild},
    recovery::Admission,
    sync::{self, plan},
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::{
    bench::{Bench, admit, open_ledger},
    eventually,
    ledger::Sql,
    until_some,
};

/// An open partition with one invite, and users who come one after the other.
pub struct Deployment {
    pub bench: Bench,
    pub namespace: Namespace,
}

impl Deployment {
    pub async fn start() -> Self {
        let bench = Bench::start().await;
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
        Self { bench, namespace }
    }

    async fn redeem(&self, number: u32) -> Result<Outcome, GateError> {
        let request = Redeem {
            namespace: self.namespace.clone(),
            code: Code::parse("WELCOME", CodeCase::Sensitive).unwrap(),
            user: Some(UserId::parse(&format!("user-{number}")).unwrap()),
            ip: None,
            email_domain: None,
            caller: "test".to_owned(),
            mode: Mode::Redeem {
                request: RequestId::parse(&format!("request-{number}")).unwrap(),
                redemption: RedemptionId(Uuid::from_u128(1000 + u128::from(number))),
                metadata: Some("{}".to_owned()),
                reservation: None,
            },
        };
        self.bench.gate.redeem(request).await.map(|answer| answer.outcome)
    }

    pub async fn grant(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            assert!(matches!(self.redeem(number).await.unwrap(), Outcome::Granted(_)));
        }
    }

    pub async fn assert_replayed(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            let outcome = self.redeem(number).await.unwrap();
            assert!(matches!(outcome, Outcome::Replayed(_)), "{number}: {outcome:?}");
        }
    }

    pub async fn ledger_cursor(&self) -> Cursor {
        self.bench.ledger.partition(Partition(0)).await.unwrap().cursor
    }

    async fn gate_cursor(&self) -> Cursor {
        survey::run(&self.bench.gate, Partition(0)).await.unwrap().meta.unwrap().cursor
    }

    async fn redemptions_in_ledger(&self) -> usize {
        let all = redeemer::ledger::RedemptionFilter::default();
        let rows = self.bench.ledger.redemptions(&self.namespace, &all, None, 1000);
        rows.await.unwrap().rows.len()
    }

    /// Closes the gate's eyes and lets recovery look: the reason why it stays closed.
    async fn reason_to_stay_closed(&self) -> String {
        match self.bench.try_admit().await {
            Admission::StaysClosed(reason) => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// An empty ledger of the deployment with this id, and its partition's lease.
pub async fn another_ledger(id: u128) -> (Ledger, redeemer::ledger::Deployment, Lease, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_ledger(&directory).await;
    let deployment = ledger.deployment(1, Uuid::from_u128(id)).await.unwrap();
    let leases = ledger.take_leases("other", Duration::from_mins(10), true).await.unwrap();
    let lease = leases.into_iter().next().unwrap();
    (ledger, deployment, lease, directory)
}

/// Everything in the outbox that the ledger does not have.
pub async fn entries(bench: &Bench) -> Vec<Entry> {
    let none = std::time::Duration::ZERO;
    let mut reader = Reader::connect(&bench.gate, Partition(0), none).await.unwrap();
    let cursor = bench.ledger.partition(Partition(0)).await.unwrap().cursor;
    let read = reader.read(cursor, 1_000_000, none).await.unwrap();
    read.into_iter().map(|read| read.entry.unwrap()).collect()
}

/// Brings the outbox into the ledger, as the sync would, without trimming.
pub async fn carry(bench: &Bench) {
    let entries = entries(bench).await;
    let cursor = bench.ledger.partition(Partition(0)).await.unwrap().cursor;
    let Some(end) = entries.last().map(|entry| entry.cursor) else { return };
    bench.ledger.append(&bench.lease, cursor, end, &plan::plan(&entries)).await.unwrap();
}

/// Every key of the partition and what it holds, but for what a rebuild need not bring back: the state of rate limits,
/// meta and outbox, what makes repeats of administrators' changes recognisable, how often uses were held, moments of
/// joining that a redemption has replaced, and reservations whose deadline has come at some time.
pub async fn contents(bench: &Bench) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let keys: Vec<String> = bench.redis.run(&["KEYS", "*"]).await;
    for key in keys {
        if key.contains(":rate:") || key.ends_with(":meta") || key.ends_with(":outbox") {
            continue;
        }
        let mut fields: BTreeMap<String, String> = if key.contains(":invite-id:") {
            BTreeMap::from([(String::new(), bench.redis.run(&["GET", &key]).await)])
        } else if key.contains(":held:") || key.ends_with(":campaign-held") {
            bench.redis.run(&["ZRANGE", &key, "0", "-1", "WITHSCORES"]).await
        } else {
            bench.redis.run(&["HGETALL", &key]).await
        };
        let is_live = |until: &str| until.parse::<i64>().unwrap() > bench.latest_ms();
        if key.contains(":held:") {
            fields.retain(|_, until| is_live(until));
        } else if key.ends_with(":campaign-held") {
            fields.retain(|member, _| is_live(member.split(':').nth(1).unwrap()));
        }
        fields.remove("last_change");
        for name in ["holds", "kept_until"] {
            fields.remove(name);
        }
        if key.ends_with(":campaigns") {
            let only_counts = [":granted", ":holds", ":kept_until"];
            fields.retain(|name, _| !only_counts.iter().any(|what| name.ends_with(what)));
        }
        let groups: Vec<String> = fields
            .iter()
            .filter(|(name, _)| name.starts_with("group:"))
            .map(|(_, at)| at.clone())
            .collect();
        fields.retain(|name, value| !value.starts_with("joined ") || groups.contains(name));
        if !fields.is_empty() {
            all.insert(key, fields);
        }
    }
    all
}

#[tokio::test]
async fn a_restart_with_all_data_is_adopted() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    carry(&it.bench).await;
    it.grant(5..8).await;
    // Another history of the same data, as after a restart: the fence does not know it.
    it.bench.redis.run::<()>(&["DEBUG", "CHANGE-REPL-ID"]).await;
    assert!(matches!(it.redeem(8).await, Err(GateError::Fenced)));
    it.bench.admit().await;
    assert_eq!(it.gate_cursor().await, Cursor { epoch: 2, seq: 0 });
    assert_eq!(it.redemptions_in_ledger().await, 8, "what the outbox still had has come over");
    it.assert_replayed(0..8).await;
    it.grant(8..9).await;
}

#[tokio::test]
async fn an_emptied_redis_is_rebuilt_from_the_ledger() {
    let it = Deployment::start().await;
    it.grant(0..7).await;
    carry(&it.bench).await;
    let before = contents(&it.bench).await;
    it.bench.redis.run::<()>(&["FLUSHALL"]).await;
    assert!(matches!(it.redeem(0).await, Err(GateError::Fenced)));
    it.bench.admit().await;
    assert_eq!(contents(&it.bench).await, before);
    it.assert_replayed(0..7).await;
    it.grant(7..8).await;
}

#[tokio::test]
async fn a_node_that_was_not_told_of_a_rebuild_is_fenced() {
    let it = Deployment::start().await;
    it.grant(0..3).await;
    // The same server, so deployment and lineage are as before; only the epoch is another one.
    it.bench.ledger.request_rebuild(None, Rebuild::FromLedger, &By::node()).await.unwrap();
    assert!(matches!(it.bench.try_admit().await, Admission::Open(..)));
    assert!(matches!(it.redeem(3).await, Err(GateError::Fenced)));
}

#[tokio::test]
async fn a_gate_that_lost_its_last_changes_is_rebuilt_and_grants_nobody_twice() {
    let it = Deployment::start().await;
    it.grant(0..3).await;
    carry(&it.bench).await;
    // What the gate had then, it has again, on another history: ten grants are missing.
    let dump: Vec<(String, Vec<u8>)> = dump(&it.bench).await;
    it.grant(3..13).await;
    carry(&it.bench).await;
    restore(&it.bench, dump).await;
    it.bench.redis.run::<()>(&["DEBUG", "CHANGE-REPL-ID"]).await;
    it.bench.admit().await;
    it.assert_replayed(0..13).await;
    assert_eq!(it.redemptions_in_ledger().await, 13);
    it.grant(13..14).await;
}

#[tokio::test]
async fn a_gate_that_went_on_without_its_past_is_not_served() {
    let it = Deployment::start().await;
    it.grant(0..3).await;
    carry(&it.bench).await;
    let dump = dump(&it.bench).await;
    it.grant(3..5).await;
    carry(&it.bench).await;
    restore(&it.bench, dump).await;
    // The same lineage and the same numbers, as if other nodes had written on: the ledger has seen these places.
    it.bench.redis.run::<()>(&["DEBUG", "CHANGE-REPL-ID"]).await;
    assert!(
        matches!(it.redeem(9).await, Err(GateError::Fenced)),
        "nothing is written on another history"
    );
}

#[tokio::test]
async fn a_full_gate_with_an_empty_ledger_stays_closed_and_keeps_what_it_has() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    carry(&it.bench).await;
    let before = contents(&it.bench).await;
    // A new ledger that says it is of this deployment.
    let (ledger, deployment, lease, _directory) = another_ledger(1).await;
    let bench = &it.bench;
    let admitted = admit(&bench.gate, &ledger, &deployment, &lease).await;
    let Admission::StaysClosed(reason) = admitted else { panic!("{admitted:?}") };
    assert!(reason.contains("redeemer rebuild --from-ledger --discard-gate"), "{reason}");
    assert_eq!(contents(bench).await, before);
    assert_eq!(ledger.partition(Partition(0)).await.unwrap().reason, Some(reason));
}

#[tokio::test]
async fn another_deployments_gate_stays_closed_until_an_operator_discards_it() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    let before = contents(&it.bench).await;
    let (ledger, deployment, lease, _directory) = another_ledger(2).await;
    let bench = &it.bench;
    let admit = async || admit(&bench.gate, &ledger, &deployment, &lease).await;
    let Admission::StaysClosed(reason) = admit().await else { panic!("it must stay closed") };
    assert!(reason.contains("another deployment"), "{reason}");
    assert_eq!(contents(bench).await, before);
    // Both nodes' owners see it; the first one is still served.
    it.grant(5..6).await;

    assert_eq!(
        ledger.request_rebuild(Some(Partition(0)), Rebuild::FromLedger, &By::node()).await.unwrap(),
        1
    );
    assert!(matches!(admit().await, Admission::Open(..)));
    assert!(contents(bench).await.is_empty(), "the ledger that it was built from is empty");
    assert!(
        matches!(it.redeem(6).await, Err(GateError::Fenced)),
        "the first deployment is shut out"
    );
}

#[tokio::test]
async fn an_older_ledger_whose_missing_changes_are_gone_stays_closed() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    // The outbox was trimmed by a sync whose ledger was then replaced by an older copy.
    let cursor = it.gate_cursor().await;
    it.bench.trim(cursor).await;
    it.bench.redis.run::<()>(&["DEBUG", "CHANGE-REPL-ID"]).await;
    let reason = it.reason_to_stay_closed().await;
    assert!(reason.contains("the ledger is older than the gate"), "{reason}");
    assert_eq!(it.ledger_cursor().await, Cursor { epoch: 1, seq: 0 });
}

async fn dump(bench: &Bench) -> Vec<(String, Vec<u8>)> {
    let keys: Vec<String> = bench.redis.run(&["KEYS", "*"]).await;
    let mut all = Vec::new();
    for key in keys {
        let value = bench.redis.run(&["DUMP", &key]).await;
        all.push((key, value));
    }
    all
}

async fn restore(bench: &Bench, dump: Vec<(String, Vec<u8>)>) {
    bench.redis.run::<()>(&["FLUSHALL"]).await;
    let mut connection = bench.redis.connect().await;
    for (key, value) in dump {
        redis::cmd("RESTORE").arg(key).arg(0).arg(value).exec_async(&mut connection).await.unwrap();
    }
}

#[tokio::test]
async fn a_builder_that_was_paused_can_not_destroy_what_a_later_one_opened() {
    let it = Deployment::start().await;
    it.grant(0..3).await;
    carry(&it.bench).await;
    let bench = &it.bench;
    let lineage = survey::run(&bench.gate, Partition(0)).await.unwrap().lineage;
    // An operator wants the gate discarded. The first leader closes the partition in the ledger, and is paused.
    bench.ledger.request_rebuild(None, Rebuild::FromLedger, &By::node()).await.unwrap();
    let old = bench.ledger.close_partition(&bench.lease, 0, "paused").await.unwrap().unwrap();
    // Another one does the work, and serves.
    bench.admit().await;
    it.grant(3..5).await;
    let before = contents(bench).await;
    // The first one wakes up.
    let next = Fence { deployment: bench.deployment.id.clone(), lineage, epoch: old };
    let closed = close::run(&bench.gate, Partition(0), &next, true).await.unwrap();
    assert!(matches!(closed, Closed::Foreign { .. }), "{closed:?}");
    let alive = AtomicBool::new(true);
    let begun = Builder::begin(&bench.gate, Partition(0), next, "5", true, &alive).await;
    assert!(matches!(begun, Err(RebuildError::Moved)));
    assert_eq!(contents(bench).await, before);
    it.assert_replayed(0..5).await;
    it.grant(5..6).await;
}

#[tokio::test]
async fn an_older_ledger_is_noticed_though_redis_goes_on() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    carry(&it.bench).await;
    let cursor = it.gate_cursor().await;
    it.bench.trim(cursor).await;
    // As if a copy from before had been put in its place: epoch and lineage are the same.
    let mut sql = Sql::connect(&it.bench.ledger_url()).await;
    sql.execute("UPDATE partitions SET cursor_seq = 3").await;
    let reason = it.reason_to_stay_closed().await;
    assert!(reason.contains("the ledger is older than the gate"), "{reason}");
}

/// Appends an entry that nobody understands, as the next change.
async fn poison(bench: &Bench) {
    let keys = bench.gate.keys();
    let (meta, outbox) = (keys.meta(Partition(0)), keys.outbox(Partition(0)));
    bench.redis.append_to_outbox(&meta, &outbox, "1", "nonsense").await;
}

#[tokio::test]
async fn one_bad_entry_is_put_aside_and_several_in_a_row_stop_the_sync() {
    let it = Deployment::start().await;
    it.grant(0..2).await;
    poison(&it.bench).await;
    it.grant(2..4).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let syncing =
        tokio::spawn(sync::run(it.bench.context(Duration::from_millis(500)), stop.clone()));
    eventually("the good ones are in the ledger", async || it.redemptions_in_ledger().await == 4)
        .await;
    assert_eq!(it.bench.ledger.dead_letters(Partition(0)).await.unwrap(), 1);

    for _ in 0..6 {
        poison(&it.bench).await;
    }
    it.grant(4..5).await;
    let reason = until_some("the sync says that it has stopped", async || {
        it.bench.ledger.partition(Partition(0)).await.unwrap().reason
    })
    .await;
    assert!(reason.contains("3 entries in a row"), "{reason}");
    // However often it tries again, it gives up no more than two of them.
    let calls = it.bench.redis.calls("xread").await;
    eventually("it has tried again", async || it.bench.redis.calls("xread").await > calls + 5)
        .await;
    assert_eq!(it.bench.ledger.dead_letters(Partition(0)).await.unwrap(), 3);
    assert_eq!(it.redemptions_in_ledger().await, 4);
    it.grant(5..6).await;
    stop.cancel();
    syncing.await.unwrap();
}

/// While nodes are upgraded one by one, an older one may lead.
#[tokio::test]
async fn an_entry_that_a_newer_version_wrote_is_left_to_a_newer_node() {
    let it = Deployment::start().await;
    let mut sql = Sql::connect(&it.bench.ledger_url()).await;
    sql.execute("UPDATE deployment SET schema = schema + 1").await;
    it.grant(0..2).await;
    poison(&it.bench).await;
    it.grant(2..4).await;
    let stop = tokio_util::sync::CancellationToken::new();
    sql.execute("UPDATE partitions SET lease_owner = NULL, lease_expires_at = 0").await;
    let syncing =
        tokio::spawn(sync::run(it.bench.context(Duration::from_millis(500)), stop.clone()));
    let tokens = "SELECT lease_token FROM partitions";
    let first = sql.number(tokens).await;
    eventually("it lets go of the lease again and again, for one who can read it", async || {
        sql.number(tokens).await > first + 2
    })
    .await;
    let reason = it.bench.ledger.partition(Partition(0)).await.unwrap().reason.unwrap();
    assert!(reason.contains("a newer version wrote the entry at 1-"), "{reason}");
    // What came before is there; nothing was thrown away or put aside, and users are served.
    assert_eq!(it.redemptions_in_ledger().await, 2);
    assert_eq!(it.bench.ledger.dead_letters(Partition(0)).await.unwrap(), 0);
    let outbox = it.bench.gate.keys().outbox(Partition(0));
    assert!(it.bench.redis.run::<u64>(&["XLEN", &outbox]).await >= 3);
    it.grant(4..5).await;
    // As a version that knows the schema, and still not the entry.
    sql.execute("UPDATE deployment SET schema = schema - 1").await;
    eventually("all that can be read is in the ledger", async || {
        it.redemptions_in_ledger().await == 5
    })
    .await;
    stop.cancel();
    syncing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_takes_longer_than_a_lease_comes_to_its_end() {
    const USERS: u32 = 20_000;
    let it = Deployment::start().await;
    it.grant(0..1).await;
    let entries = entries(&it.bench).await;
    let template = entries.last().unwrap().clone();
    let Change::Redeemed { redemption, rule, .. } = template.change.clone() else {
        panic!("a redemption")
    };
    // Many users, as the sync would have brought them.
    let cursor = it.bench.ledger.partition(Partition(0)).await.unwrap().cursor;
    let many = (0..USERS).map(|number| {
        let cursor = Cursor { epoch: 1, seq: u64::from(number) + 10 };
        let redemption = Redemption {
            id: RedemptionId(Uuid::from_u128(5000 + u128::from(number))),
            user: UserId::parse(&format!("many-{number}")).unwrap(),
            ordinal: u64::from(number) + 10,
            position: redeemer::domain::Position { partition: Partition(0), cursor },
            ..redemption.clone()
        };
        let request = format!("request-{number}");
        let change = Change::Redeemed {
            redemption,
            request,
            uses: 1,
            rule,
            metadata: None,
            campaign: None,
            reservation: None,
        };
        Entry { cursor, change, ..template.clone() }
    });
    let all: Vec<Entry> = entries.iter().cloned().chain(many).collect();
    let end = all.last().unwrap().cursor;
    it.bench.ledger.append(&it.bench.lease, cursor, end, &plan::plan(&all)).await.unwrap();
    it.bench.redis.run::<()>(&["FLUSHALL"]).await;
    // The shortest lease that the configuration allows.
    it.bench.ledger.release_lease(&it.bench.lease).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let syncing =
        tokio::spawn(sync::run(it.bench.context(Duration::from_millis(500)), stop.clone()));
    eventually("the partition is open", async || {
        it.bench.ledger.partition(Partition(0)).await.unwrap().state == PartitionState::Open
            && it.bench.redis.run::<u32>(&["DBSIZE"]).await > USERS
    })
    .await;
    stop.cancel();
    syncing.await.unwrap();
}

#[tokio::test]
async fn an_operator_may_take_the_gate_for_the_truth_when_the_ledger_was_lost() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    carry(&it.bench).await;
    it.grant(5..8).await;
    let before = contents(&it.bench).await;
    let (ledger, deployment, lease, _directory) = another_ledger(2).await;
    let bench = &it.bench;
    let admit = async || admit(&bench.gate, &ledger, &deployment, &lease).await;
    let Admission::StaysClosed(reason) = admit().await else { panic!("it must stay closed") };
    assert!(reason.contains("redeemer rebuild --from-gate"), "{reason}");
    ledger.request_rebuild(Some(Partition(0)), Rebuild::FromGate, &By::node()).await.unwrap();
    let admitted = admit().await;
    let Admission::Open(fence, cursor) = admitted else { panic!("{admitted:?}") };
    assert_eq!((fence.deployment.as_str(), cursor.seq), (deployment.id.as_str(), 0));
    assert_eq!(contents(bench).await, before, "the gate keeps what it has");
    // What a rebuild from the new ledger would load is what the gate holds, and the ledger's rows obey the laws.
    assert!(ledger.broken_laws(Partition(0)).await.unwrap().is_empty());
    bench.redis.run::<()>(&["FLUSHALL"]).await;
    assert!(matches!(admit().await, Admission::Open(..)));
    assert_eq!(contents(bench).await, before);
}

#[tokio::test]
async fn an_older_ledger_may_be_brought_up_to_the_gate() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    carry(&it.bench).await;
    it.grant(5..9).await;
    let cursor = it.gate_cursor().await;
    it.bench.trim(cursor).await;
    let before = contents(&it.bench).await;
    it.bench.redis.run::<()>(&["DEBUG", "CHANGE-REPL-ID"]).await;
    let reason = it.reason_to_stay_closed().await;
    assert!(reason.contains("redeemer rebuild --from-gate"), "{reason}");
    it.bench.ledger.request_rebuild(None, Rebuild::FromGate, &By::node()).await.unwrap();
    it.bench.admit().await;
    assert_eq!(it.redemptions_in_ledger().await, 9);
    assert_eq!(contents(&it.bench).await, before);
    assert!(it.bench.ledger.broken_laws(Partition(0)).await.unwrap().is_empty());
    it.assert_replayed(0..9).await;
    it.grant(9..12).await;
    carry(&it.bench).await;
    assert!(it.bench.ledger.broken_laws(Partition(0)).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_gate_that_lacks_what_the_ledger_has_is_never_taken_for_the_truth() {
    let it = Deployment::start().await;
    it.grant(0..5).await;
    let dump = dump(&it.bench).await;
    it.grant(5..8).await;
    carry(&it.bench).await;
    restore(&it.bench, dump).await;
    it.bench.ledger.request_rebuild(None, Rebuild::FromGate, &By::node()).await.unwrap();
    let reason = it.reason_to_stay_closed().await;
    assert!(
        reason.contains("3 redemptions of this partition that Redis does not have"),
        "{reason}"
    );
    assert_eq!(it.redemptions_in_ledger().await, 8);
    // Left to itself it comes right.
    it.bench.admit().await;
    it.assert_replayed(0..8).await;
}

/// What a node had told of a user's redemption, the first after these.
async fn told(it: &Deployment, number: u32, after: Cursor) -> Acknowledgement {
    let ordinal = it.redemptions_in_ledger().await as u64 + 1;
    Acknowledgement {
        redemption: Redemption {
            id: RedemptionId(Uuid::from_u128(u128::from(number) + 9_000_000)),
            namespace: it.namespace.clone(),
            invite: InviteId(Uuid::from_u128(5)),
            code: Code::parse("WELCOME", CodeCase::Sensitive).unwrap(),
            group: Group::parse("team").unwrap(),
            user: UserId::parse(&format!("told-{number}")).unwrap(),
            ordinal,
            remaining: Some(100 - ordinal),
            redeemed_at: it.bench.now(),
            position: Position { partition: Partition(0), cursor: after.next() },
        },
        request: RequestId::parse("told").unwrap(),
        first: true,
        reservation: None,
        rule: MembershipRule::OneGroup,
        email_domain: None,
        metadata: None,
        actor: "test".to_owned(),
    }
}

/// The ledger has the claim, the gate does not, and both are at the same place: whoever goes on must not take the gate
/// as it is.
#[tokio::test]
async fn a_recovery_that_died_after_it_had_written_claims_is_ended_by_a_rebuild() {
    let it = Deployment::start().await;
    it.grant(0..3).await;
    carry(&it.bench).await;
    let bench = &it.bench;
    bench.redis.run::<()>(&["DEBUG", "CHANGE-REPL-ID"]).await;
    let claim = told(&it, 1, it.ledger_cursor().await).await;
    let epoch = bench.ledger.close_partition(&bench.lease, 0, "test").await.unwrap().unwrap();
    let claimed = bench.ledger.claim("node", Partition(0), epoch, std::slice::from_ref(&claim));
    assert_eq!(claimed.await.unwrap(), Claimed::InTime);
    // The rebuild lists the keys first; it dies there.
    bench.redis.run::<()>(&["ACL", "SETUSER", "default", "-scan"]).await;
    let lease = &bench.lease;
    let context = bench.context(Duration::from_mins(10));
    let died = redeemer::recovery::admit(&context, lease, &AtomicBool::new(true)).await;
    assert!(died.is_err(), "{died:?}");
    assert_eq!(it.redemptions_in_ledger().await, 4);
    bench.redis.run::<()>(&["ACL", "SETUSER", "default", "+scan"]).await;
    bench.admit().await;
    it.assert_replayed(0..3).await;
    let member = bench.gate.keys().member(&it.namespace, &claim.redemption.user);
    assert_eq!(bench.redis.run::<u64>(&["EXISTS", &member]).await, 1, "the gate has it too");
    let invite = bench
        .ledger
        .invite(&it.namespace, claim.redemption.invite, bench.now())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((invite.invite.uses, invite.invite.granted), (4, 4));
    assert!(bench.ledger.broken_laws(Partition(0)).await.unwrap().is_empty());
}

/// In Redis nothing is left of somebody who joined without a redemption and left again.
#[tokio::test]
async fn a_gate_that_is_taken_for_the_truth_has_the_word_on_who_left() {
    let it = Deployment::start().await;
    let bench = &it.bench;
    let (user, group) = (UserId::parse("bob").unwrap(), Group::parse("team").unwrap());
    let (namespace, actor) = (it.namespace.clone(), "test".to_owned());
    let join = Join { namespace, user, group, actor };
    join.run(&bench.gate).await.unwrap();
    it.grant(0..3).await;
    carry(bench).await;
    let Join { namespace, user, group, actor } = join;
    Leave { namespace, user, group: Some(group), actor }.run(&bench.gate).await.unwrap();
    it.grant(3..4).await;
    let cursor = it.gate_cursor().await;
    bench.trim(cursor).await;
    let before = contents(bench).await;
    bench.ledger.request_rebuild(None, Rebuild::FromGate, &By::node()).await.unwrap();
    bench.admit().await;
    bench.redis.run::<()>(&["FLUSHALL"]).await;
    bench.admit().await;
    assert_eq!(contents(bench).await, before);
}

/// Of what was before, only the outbox of a gate says that it was about somebody who has another name now.
#[tokio::test]
async fn a_gate_that_is_taken_for_the_truth_has_the_word_on_who_was_forgotten() {
    let it = Deployment::start().await;
    let bench = &it.bench;
    let (user, group) = (UserId::parse("user-0").unwrap(), Group::parse("others").unwrap());
    let (namespace, actor) = (it.namespace.clone(), "test".to_owned());
    let join = Join { namespace, user, group, actor };
    join.run(&bench.gate).await.unwrap();
    let Join { namespace, user, group, actor } = join;
    let leave = Leave { namespace, user, group: Some(group), actor };
    leave.run(&bench.gate).await.unwrap();
    carry(bench).await;
    bench.trim(it.gate_cursor().await).await;
    let mut sql = Sql::connect(&bench.ledger_url()).await;
    let names =
        "SELECT (SELECT COUNT(*) FROM audit_log WHERE user_id = 'user-0' OR subject LIKE 'user-0%')
        + (SELECT COUNT(*) FROM redemptions WHERE user_id = 'user-0' OR metadata IS NOT NULL)";
    assert_eq!(sql.number(names).await, 2);
    it.grant(0..1).await;
    let Leave { namespace, user, actor, .. } = leave;
    let alias = UserId::erased(Uuid::from_u128(7));
    let erase = EraseUser { namespace, user, alias, invites: Vec::new(), actor };
    assert!(matches!(erase.run(&bench.gate).await.unwrap(), Erased::Erased { .. }));
    let before = contents(bench).await;
    bench.ledger.request_rebuild(None, Rebuild::FromGate, &By::node()).await.unwrap();
    bench.admit().await;
    assert_eq!(sql.number(names).await, 0);
    bench.redis.run::<()>(&["FLUSHALL"]).await;
    bench.admit().await;
    assert_eq!(contents(bench).await, before);
}
