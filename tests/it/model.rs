//! The scripts against `domain::model`, on random histories with a clock that goes where it likes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use futures_util::future::join_all;
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any},
    prop_oneof,
    sample::select,
    test_runner::{Config, TestRunner},
};
use redeemer::{
    domain::{
        BatchId, Code, CodeCase, Cursor, EmailDomain, Entry, ErrorDetail, Group, InviteId,
        MembershipRule, Millis, Namespace, Outcome, Partition, Quota, RedemptionId, Refusal,
        RequestId, UserId,
        command::{
            Action, BatchCreated, ChangeInvite, Changed, CreateBatch, CreateInvite, Created,
            DeleteInvite, Deleted, InvitePatch, Join, Joined, Leave, Left, Mode, NamespacePut,
            PutNamespace, Redeem, Rules, RulesPatch,
        },
        model::Model,
    },
    gate::{
        redeem,
        show_invite::{ShowInvite, Which},
        show_member::ShowMember,
        survey,
    },
    ledger::Rebuild,
    recovery::Admission,
    sync::plan,
};
use uuid::Uuid;

use crate::{
    recovery,
    support::{
        bench::{Bench, START, admit, open_ledger, rules},
        effort,
        ledger::{self, Sql},
    },
};

/// Small, so that histories fill it.
const OUTBOX_MAX: u64 = 12;

/// One step of a history, in small numbers that name things.
#[derive(Debug, Clone)]
enum Op {
    Advance(i64),
    Redeem(Vec<Ask>),
    Create {
        id: u8,
        code: u8,
        group: u8,
        max_uses: Option<u64>,
        window: (Option<i64>, Option<i64>),
        bound: Bound,
    },
    /// Slots, each with the code that it is to have.
    Batch {
        slots: Vec<(u8, u8)>,
        group: u8,
        max_uses: Option<u64>,
        expires_in: Option<i64>,
    },
    Change {
        id: u8,
        change: u8,
        expected: Option<u64>,
        patch: Patch,
    },
    Delete {
        id: u8,
        expected: Option<u64>,
    },
    Join {
        user: u8,
        group: u8,
    },
    Leave {
        user: u8,
        group: Option<u8>,
    },
    Patch {
        change: u8,
        rates: [Option<u8>; 3],
        detail: Option<ErrorDetail>,
        expected: Option<u64>,
    },
    Put {
        change: u8,
        rule: MembershipRule,
    },
    Ensure,
    Archive,
    Trim,
}

#[derive(Debug, Clone)]
struct Ask {
    redeem: bool,
    code: u8,
    user: Option<u8>,
    request: u8,
    ip: Option<u8>,
    email: Option<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    No,
    User(u8),
    Domain(u8),
}

#[derive(Debug, Clone)]
struct Patch {
    max_uses: Option<Option<u64>>,
    starts_in: Option<Option<i64>>,
    expires_in: Option<Option<i64>>,
    disabled: Option<bool>,
}

fn ask() -> impl Strategy<Value = Ask> {
    (
        0..10u8,
        0..4u8,
        proptest::option::weighted(0.9, 0..4u8),
        0..8u8,
        proptest::option::of(0..2u8),
        proptest::option::of(0..3u8),
    )
        .prop_map(|(redeem, code, user, request, ip, email)| Ask {
            redeem: redeem > 1 && user.is_some(),
            code,
            user,
            request,
            ip,
            email,
        })
}

fn op() -> impl Strategy<Value = Op> {
    let max_uses = || prop_oneof![1 => Just(None), 4 => (1..4u64).prop_map(Some)];
    let moment = || proptest::option::weighted(0.3, select(vec![-1, 0, 1, 1000, 70_000]));
    let bound = prop_oneof![
        8 => Just(Bound::No),
        1 => (0..4u8).prop_map(Bound::User),
        1 => (0..2u8).prop_map(Bound::Domain),
    ];
    let patch = (
        proptest::option::of(max_uses()),
        proptest::option::weighted(0.3, moment()),
        proptest::option::weighted(0.3, moment()),
        proptest::option::of(any::<bool>()),
    )
        .prop_map(|(max_uses, starts_in, expires_in, disabled)| Patch {
            max_uses,
            starts_in,
            expires_in,
            disabled,
        });
    let expected = || proptest::option::weighted(0.2, 1..4u64);
    prop_oneof![
        3 => select(vec![0, 1, 999, 20_000, 61_000, 3_700_000, -5_000, -70_000]).prop_map(Op::Advance),
        12 => vec(ask(), 1..5).prop_map(Op::Redeem),
        5 => (0..8u8, 0..3u8, 0..2u8, max_uses(), (moment(), moment()), bound).prop_map(
            |(id, code, group, max_uses, window, bound)| Op::Create { id, code, group, max_uses, window, bound }
        ),
        2 => (vec((0..4u8, 0..6u8), 1..4), 0..2u8, max_uses(), moment()).prop_map(
            |(slots, group, max_uses, expires_in)| Op::Batch { slots, group, max_uses, expires_in }
        ),
        6 => (0..8u8, 0..20u8, expected(), patch)
            .prop_map(|(id, change, expected, patch)| Op::Change { id, change, expected, patch }),
        1 => (0..8u8, expected()).prop_map(|(id, expected)| Op::Delete { id, expected }),
        2 => (0..4u8, 0..2u8).prop_map(|(user, group)| Op::Join { user, group }),
        3 => (0..4u8, proptest::option::of(0..2u8)).prop_map(|(user, group)| Op::Leave { user, group }),
        1 => (
            0..6u8,
            [proptest::option::of(0..3u8), proptest::option::of(0..3u8), proptest::option::of(0..3u8)],
            proptest::option::weighted(0.5, select(ErrorDetail::ALL.to_vec())),
            expected(),
        )
            .prop_map(|(change, rates, detail, expected)| Op::Patch { change, rates, detail, expected }),
        1 => (0..6u8, rule()).prop_map(|(change, rule)| Op::Put { change, rule }),
        1 => Just(Op::Ensure),
        1 => proptest::bool::weighted(0.2).prop_map(|archive| if archive { Op::Archive } else { Op::Trim }),
        1 => Just(Op::Trim),
    ]
}

fn rule() -> impl Strategy<Value = MembershipRule> {
    select(MembershipRule::ALL.to_vec())
}

/// What the numbers of one history stand for.
struct World<'a> {
    bench: &'a Bench,
    namespace: Namespace,
    model: Model,
    /// The first of the ids that belong to this history.
    ids: u128,
    redemptions: u128,
    words: &'a mut BTreeSet<&'static str>,
    /// Whether the outbox keeps everything.
    keeps_outbox: bool,
}

impl World<'_> {
    fn now(&self) -> Millis {
        self.bench.now()
    }

    fn after(&self, ms: Option<i64>) -> Option<Millis> {
        ms.map(|ms| Millis::from_ms(self.now().as_ms() + ms).unwrap())
    }

    fn batch(&self) -> BatchId {
        BatchId(Uuid::from_u128(self.ids + (9 << 32)))
    }

    /// Of an invite by itself, or of one that a batch may make.
    fn id(&self, number: u8) -> InviteId {
        if number >= 6 {
            return self.batch().invite(u32::from(number - 6));
        }
        InviteId(Uuid::from_u128(self.ids + 1000 + u128::from(number)))
    }

    fn change(&self, number: u8) -> Uuid {
        Uuid::from_u128(self.ids + 2000 + u128::from(number))
    }

    fn redemption(&mut self) -> RedemptionId {
        self.redemptions += 1;
        RedemptionId(Uuid::from_u128(self.ids + self.redemptions))
    }

    fn request(&mut self, ask: &Ask) -> Redeem {
        let request = match ask.request {
            0 => "short".to_owned(),
            // Long ones are kept as a digest.
            number => format!("{number}-{}", "x".repeat(usize::from(number) * 10)),
        };
        let mode = if ask.redeem {
            let request = RequestId::parse(&request).unwrap();
            Mode::Redeem {
                request,
                redemption: self.redemption(),
                metadata: (ask.code == 1).then(|| "{}".to_owned()),
            }
        } else {
            Mode::Validate
        };
        Redeem {
            namespace: self.namespace.clone(),
            code: code(ask.code),
            user: ask.user.map(user),
            ip: ask.ip.map(|ip| IpAddr::from([203, 0, 113, ip])),
            email_domain: ask.email.map(domain),
            caller: "caller".to_owned(),
            mode,
        }
    }

    fn saw(&mut self, word: &'static str) {
        self.words.insert(word);
    }
}

fn code(number: u8) -> Code {
    let codes = ["ONE", "TWO", "THREE", "NONE", "FIVE", "SIX"];
    Code::parse(codes[usize::from(number)], CodeCase::Sensitive).unwrap()
}

fn user(number: u8) -> UserId {
    UserId::parse(["alice", "bob", "group:a", "invite:x y"][usize::from(number)]).unwrap()
}

fn group(number: u8) -> Group {
    Group::parse(["a", "b c:d"][usize::from(number)]).unwrap()
}

fn domain(number: u8) -> EmailDomain {
    EmailDomain::parse(["example.com", "example.org", "ample.com"][usize::from(number)]).unwrap()
}

/// Windows are so long that nothing of a budget runs out in real time while a case runs.
fn quota(number: u8) -> Option<Quota> {
    [None, Quota::parse("3/600").ok(), Quota::parse("2/3600").ok()][usize::from(number)]
}

/// Runs one history on both sides; what they say must be the same at each step.
async fn run(world: &mut World<'_>, ops: &[Op]) {
    for op in ops {
        step(world, op).await;
    }
    for number in 0..8 {
        let id = world.id(number);
        let World { bench, namespace, model, .. } = world;
        let which = Which::Id(id);
        let shown =
            ShowInvite { namespace: namespace.clone(), which }.run(&bench.gate).await.unwrap();
        assert_eq!(shown.map(|(invite, _)| invite), model.show_invite(namespace, id));
    }
    let World { bench, namespace, model, .. } = world;
    for number in 0..4 {
        let question = ShowMember { namespace: namespace.clone(), user: user(number) };
        let shown = question.run(&bench.gate).await.unwrap();
        assert_eq!(shown, model.show_member(namespace, &user(number)));
    }
    let survey = survey::run(&bench.gate, Partition(0)).await.unwrap();
    assert_eq!(survey.meta.unwrap().cursor, model.cursor());
}

#[expect(clippy::too_many_lines, reason = "one arm for each operation")]
async fn step(world: &mut World<'_>, op: &Op) {
    let (namespace, now, actor) = (world.namespace.clone(), world.now(), "actor".to_owned());
    let gate = &world.bench.gate;
    match op {
        Op::Advance(ms) => {
            if world.now().as_ms() + ms >= START {
                world.bench.advance(*ms);
            }
        }
        Op::Trim if world.keeps_outbox => {}
        Op::Trim => {
            let survey = survey::run(gate, Partition(0)).await.unwrap();
            world.bench.trim(survey.meta.unwrap().cursor).await;
            world.model.trim();
        }
        Op::Redeem(asks) => {
            let requests: Vec<_> = asks.iter().map(|ask| world.request(ask)).collect();
            // They go in one call, for nothing else runs on this thread until all of them wait in the lane.
            let settings = gate.settings(&namespace).await.unwrap().unwrap();
            let said = join_all(requests.iter().map(|request| gate.redeem(request.clone()))).await;
            let asked: Vec<_> = requests.iter().map(|request| (request, &*settings)).collect();
            for place in redeem::order(&asked) {
                let (request, said) = (&requests[place], said[place].as_ref().unwrap());
                let meant = world.model.redeem(request, now);
                world.words.insert(word(&meant.outcome));
                assert_eq!(*said, meant, "{request:?}");
            }
        }
        Op::Create { id, code: number, group: group_number, max_uses, window, bound } => {
            let create = CreateInvite {
                id: world.id(*id),
                namespace,
                code: code(*number),
                group: group(*group_number),
                max_uses: *max_uses,
                starts_at: world.after(window.0),
                expires_at: world.after(window.1),
                user: if let Bound::User(number) = bound { Some(user(*number)) } else { None },
                email_domains: if let Bound::Domain(number) = bound {
                    vec![domain(*number)]
                } else {
                    Vec::new()
                },
                metadata: (*number == 1).then(|| "{\"a\":1}".to_owned()),
                actor,
            };
            let (said, meant) =
                (create.run(gate).await.unwrap(), world.model.create_invite(&create, now));
            world.saw(match meant {
                Created::Created { .. } => "created",
                Created::IdTaken { .. } => "id_taken",
                Created::CodeTaken { .. } => "code_taken",
                Created::NamespaceNotFound => "create: namespace_not_found",
            });
            assert_eq!(said, meant);
        }
        Op::Batch { slots, group: group_number, max_uses, expires_in } => {
            let batch = world.batch();
            // A slot comes once in a call; what it asks for is its own.
            let slots: BTreeMap<_, _> = slots.iter().copied().collect();
            let invites =
                slots.iter().map(|(slot, number)| (batch.invite(u32::from(*slot)), code(*number)));
            let create = CreateBatch {
                batch,
                namespace,
                invites: invites.collect(),
                group: group(*group_number),
                max_uses: *max_uses,
                starts_at: None,
                expires_at: world.after(*expires_in),
                email_domains: vec![domain(0)],
                metadata: Some("{\"a\":2}".to_owned()),
                actor,
            };
            let (said, meant) =
                (create.run(gate).await.unwrap(), world.model.create_batch(&create, now));
            world.saw(match &meant {
                BatchCreated::Created { taken, .. } if taken.is_empty() => "batch: created",
                BatchCreated::Created { .. } => "batch: taken",
                BatchCreated::Overloaded => "batch: overloaded",
                BatchCreated::NamespaceNotFound => "batch: namespace_not_found",
            });
            assert_eq!(said, meant);
        }
        Op::Change { id, change, expected, patch } => {
            let patch = InvitePatch {
                max_uses: patch.max_uses,
                starts_at: patch.starts_in.map(|after| world.after(after)),
                expires_at: patch.expires_in.map(|after| world.after(after)),
                disabled: patch.disabled,
                ..InvitePatch::default()
            };
            let change = ChangeInvite {
                id: world.id(*id),
                namespace,
                change: world.change(*change),
                expected_revision: *expected,
                patch,
                actor,
            };
            let (said, meant) =
                (change.run(gate).await.unwrap(), world.model.change_invite(&change, now));
            world.saw(match meant {
                Changed::Changed { .. } => "changed",
                Changed::NotFound => "change: not_found",
                Changed::PreconditionFailed { .. } => "change: precondition_failed",
                Changed::LimitBelowUsed { .. } => "limit_below_used",
                Changed::CodeTaken { .. } => "change: code_taken",
                Changed::WindowReversed => "window_reversed",
            });
            assert_eq!(said, meant);
        }
        Op::Delete { id, expected } => {
            let delete =
                DeleteInvite { id: world.id(*id), namespace, expected_revision: *expected, actor };
            let (said, meant) =
                (delete.run(gate).await.unwrap(), world.model.delete_invite(&delete));
            world.saw(match meant {
                Deleted::Deleted => "deleted",
                Deleted::NotFound => "delete: not_found",
                Deleted::InUse { .. } => "in_use",
                Deleted::PreconditionFailed { .. } => "delete: precondition_failed",
            });
            assert_eq!(said, meant);
        }
        Op::Join { user: user_number, group: group_number } => {
            let join =
                Join { namespace, user: user(*user_number), group: group(*group_number), actor };
            let (said, meant) = (join.run(gate).await.unwrap(), world.model.join(&join, now));
            world.saw(match meant {
                Joined::Joined(_) => "joined",
                Joined::Already(_) => "already",
                Joined::AlreadyMember { .. } => "join: already_member",
                Joined::NamespaceNotFound => "join: namespace_not_found",
            });
            assert_eq!(said, meant);
        }
        Op::Leave { user: number, group: group_number } => {
            let leave =
                Leave { namespace, user: user(*number), group: group_number.map(group), actor };
            let (said, meant) = (leave.run(gate).await.unwrap(), world.model.leave(&leave));
            world.saw(match meant {
                Left::Left(_) => "left",
                Left::NotMember => "not_member",
                Left::NamespaceNotFound => "leave: namespace_not_found",
            });
            assert_eq!(said, meant);
        }
        Op::Patch { change, rates, detail, expected } => {
            let [rate_user, rate_ip, rate_guess] = rates.map(|rate| rate.map(quota));
            let error_detail = *detail;
            let patch = RulesPatch {
                error_detail,
                rate_user,
                rate_ip,
                rate_guess,
                ..RulesPatch::default()
            };
            put(world, Action::Patch(patch), *change, *expected).await;
        }
        Op::Put { change, rule } => put(world, Action::Put(limited(*rule)), *change, None).await,
        Op::Ensure => put(world, Action::Ensure(limited(MembershipRule::OneGroup)), 5, None).await,
        Op::Archive => put(world, Action::Archive, 4, None).await,
    }
}

async fn put(world: &mut World<'_>, action: Action, change: u8, expected: Option<u64>) {
    let put = PutNamespace {
        namespace: world.namespace.clone(),
        action,
        change: world.change(change),
        expected_revision: expected,
        actor: "actor".to_owned(),
    };
    let now = world.now();
    let (said, meant) =
        (put.run(&world.bench.gate).await.unwrap(), world.model.put_namespace(&put, now));
    world.saw(match meant {
        NamespacePut::Created { .. } => "namespace created",
        NamespacePut::Changed { .. } => "namespace changed",
        NamespacePut::NotFound => "namespace not_found",
        NamespacePut::PreconditionFailed { .. } => "namespace precondition_failed",
        NamespacePut::FixedRules { .. } => "fixed_rules",
    });
    assert_eq!(said, meant);
}

/// Rules with limits that histories reach.
fn limited(membership: MembershipRule) -> Rules {
    Rules {
        rate_user: Quota::parse("6/600").ok(),
        rate_guess: Quota::parse("2/3600").ok(),
        rate_code: Quota::parse("9/600").ok(),
        rate_namespace: Quota::parse("30/600").ok(),
        ..rules(membership)
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Granted(_) => "granted",
        Outcome::Replayed(_) => "replayed",
        Outcome::Allowed => "allowed",
        Outcome::Refused(refusal) => match refusal {
            Refusal::NamespaceNotFound => "namespace_not_found",
            Refusal::RequestIdReused => "request_id_reused",
            Refusal::Overloaded => "overloaded",
            Refusal::RateLimited { .. } => "rate_limited",
            Refusal::TooManyAttempts { .. } => "too_many_attempts",
            Refusal::NotFound => "not_found",
            Refusal::Invalid => "invalid",
            Refusal::Disabled => "disabled",
            Refusal::NotStarted { .. } => "not_started",
            Refusal::Expired { .. } => "expired",
            Refusal::UserNotAllowed => "user_not_allowed",
            Refusal::EmailDomainNotAllowed => "email_domain_not_allowed",
            Refusal::AlreadyMember { .. } => "already_member",
            Refusal::Exhausted => "exhausted",
        },
    }
}

/// Every reply word that a history can bring about.
const WORDS: [&str; 47] = [
    "batch: created",
    "batch: taken",
    "batch: overloaded",
    "batch: namespace_not_found",
    "granted",
    "replayed",
    "allowed",
    "namespace_not_found",
    "request_id_reused",
    "overloaded",
    "rate_limited",
    "too_many_attempts",
    "not_found",
    "invalid",
    "disabled",
    "not_started",
    "expired",
    "user_not_allowed",
    "email_domain_not_allowed",
    "already_member",
    "exhausted",
    "created",
    "id_taken",
    "code_taken",
    "create: namespace_not_found",
    "changed",
    "change: not_found",
    "change: precondition_failed",
    "limit_below_used",
    "change: code_taken",
    "window_reversed",
    "deleted",
    "delete: not_found",
    "in_use",
    "delete: precondition_failed",
    "joined",
    "already",
    "join: already_member",
    "join: namespace_not_found",
    "left",
    "not_member",
    "leave: namespace_not_found",
    "namespace created",
    "namespace changed",
    "namespace not_found",
    "namespace precondition_failed",
    "fixed_rules",
];

/// So many cases, times TEST_EFFORT.
fn config(cases: u32) -> Config {
    Config { cases: cases * effort(), failure_persistence: None, ..Config::default() }
}

#[test]
fn the_scripts_do_what_the_model_says_on_random_histories() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::start_with(|options| options.outbox_max = OUTBOX_MAX));
    let words = std::cell::RefCell::new(BTreeSet::new());
    let cases = AtomicU64::new(0);
    let history = (rule(), vec(op(), 5..60));
    let mut runner = TestRunner::new(config(2000));
    runner
        .run(&history, |(rule, ops)| {
            let case = cases.fetch_add(1, Ordering::SeqCst);
            runtime.block_on(async {
                let mut seen = words.take();
                bench.clock.store(START, Ordering::SeqCst);
                let cursor =
                    survey::run(&bench.gate, Partition(0)).await.unwrap().meta.unwrap().cursor;
                bench.trim(cursor).await;
                let mut world = World {
                    bench: &bench,
                    namespace: Namespace::parse(&format!("case-{case}")).unwrap(),
                    model: Model::new(Partition(0), cursor, OUTBOX_MAX),
                    ids: u128::from(case) << 64,
                    redemptions: 10_000,
                    words: &mut seen,
                    keeps_outbox: false,
                };
                put(&mut world, Action::Put(limited(rule)), 5, None).await;
                run(&mut world, &ops).await;
                words.replace(seen);
            });
            Ok(())
        })
        .unwrap();
    let missing: Vec<_> = WORDS.iter().filter(|word| !words.borrow().contains(*word)).collect();
    assert!(missing.is_empty(), "no history brought about {missing:?}");
}

/// Ends with every key of the partition as it was before, built anew from what the ledger got of the outbox; and the
/// ledger is the same, however the outbox is cut into batches.
#[test]
fn the_ledger_knows_all_that_the_gate_knows_on_random_histories() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cases = AtomicU64::new(0);
    let history = (rule(), vec(op(), 40..120), vec(1..9usize, 1..20));
    let mut runner = TestRunner::new(config(24));
    runner
        .run(&history, |(rule, ops, cuts)| {
            let case = cases.fetch_add(1, Ordering::SeqCst);
            runtime.block_on(async {
                let bench = Bench::start().await;
                let cursor =
                    survey::run(&bench.gate, Partition(0)).await.unwrap().meta.unwrap().cursor;
                let mut words = BTreeSet::new();
                let mut world = World {
                    bench: &bench,
                    namespace: Namespace::parse("acme").unwrap(),
                    model: Model::new(Partition(0), cursor, u64::MAX),
                    ids: u128::from(case) << 64,
                    redemptions: 10_000,
                    words: &mut words,
                    keeps_outbox: true,
                };
                put(&mut world, Action::Put(limited(rule)), 5, None).await;
                run(&mut world, &ops).await;
                check_ledger(&bench, &cuts).await;
            });
            Ok(())
        })
        .unwrap();
}

async fn check_ledger(bench: &Bench, cuts: &[usize]) {
    let entries = recovery::entries(bench).await;
    // In one batch, one by one, and cut as the case says.
    let whole = tables(&entries, &[entries.len().max(1)]).await;
    assert_eq!(tables(&entries, &[1]).await, whole);
    assert_eq!(tables(&entries, cuts).await, whole);

    recovery::carry(bench).await;
    let before = recovery::contents(bench).await;
    bench.redis.run::<()>(&["FLUSHALL"]).await;
    bench.admit().await;
    assert_eq!(recovery::contents(bench).await, before);

    // A new ledger that takes the gate for the truth holds as much as one that saw every change.
    let (other, deployment, lease, _directory) = recovery::another_ledger(9).await;
    other.request_rebuild(None, Rebuild::FromGate).await.unwrap();
    for _ in 0..2 {
        let admitted = admit(&bench.gate, &other, &deployment, &lease).await;
        assert!(matches!(admitted, Admission::Open(..)), "{admitted:?}");
        assert!(other.broken_laws(Partition(0)).await.unwrap().is_empty());
        assert_eq!(recovery::contents(bench).await, before);
        bench.redis.run::<()>(&["FLUSHALL"]).await;
    }
}

/// What the tables hold after these entries, in batches of these lengths, over and over.
async fn tables(entries: &[Entry], lengths: &[usize]) -> Vec<(&'static str, Vec<String>)> {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_ledger(&directory).await;
    ledger.deployment(1, Uuid::from_u128(1)).await.unwrap();
    let lease = ledger
        .take_leases("test", std::time::Duration::from_mins(10), true)
        .await
        .unwrap()
        .remove(0);
    let epoch = ledger.close_partition(&lease, 0, "test").await.unwrap().unwrap();
    ledger.open_partition(&lease, epoch, "lineage", None).await.unwrap();
    let mut cursor = Cursor { epoch, seq: 0 };
    let mut rest = entries;
    for length in lengths.iter().cycle() {
        let (batch, more) = rest.split_at((*length).min(rest.len()));
        let Some(end) = batch.last().map(|entry| entry.cursor) else { break };
        ledger.append(&lease, cursor, end, &plan::plan(batch)).await.unwrap();
        (cursor, rest) = (end, more);
    }
    ledger.close().await;
    let mut sql = Sql::connect(&ledger::url_in(directory.path())).await;
    let mut all = Vec::new();
    for table in ["namespaces", "invites", "redemptions", "members", "audit_log"] {
        // Both databases show a row as text, each in its own way.
        let columns = columns_of(table);
        let shown: Vec<_> =
            columns.iter().map(|name| format!("COALESCE(CAST({name} AS TEXT), 'null')")).collect();
        let rows = sql
            .texts(&format!("SELECT {} AS row FROM {table} ORDER BY 1", shown.join(" || '|' || ")))
            .await;
        all.push((table, rows));
    }
    all
}

/// The columns of a table, from the migration that makes it.
fn columns_of(table: &str) -> Vec<&'static str> {
    let migration = include_str!("../../migrations/sqlite/0001_ledger.sql");
    let (_, definition) = migration.split_once(&format!("CREATE TABLE {table} (")).unwrap();
    let (definition, _) = definition.split_once(") STRICT").unwrap();
    let first_words = definition.lines().filter_map(|line| line.split_whitespace().next());
    first_words.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect()
}
