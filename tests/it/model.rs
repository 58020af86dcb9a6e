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
        BatchId, CampaignName, Code, CodeCase, Cursor, EmailDomain, Entry, ErrorDetail, Group,
        InviteId, MembershipRule, Millis, Namespace, Outcome, Partition, Quota, Redemption,
        RedemptionId, Refusal, RequestId, Reservation, UserId,
        command::{
            Action, BatchCreated, CampaignPut, ChangeInvite, Changed, CreateBatch, CreateInvite,
            Created, DeleteInvite, Deleted, EraseUser, Erased, ImportInvites, ImportMembers,
            Imported, ImportedInvite, InviteImport, InvitePatch, Join, Joined, Leave, Left,
            MemberImport, Mode, NamespacePut, PutCampaign, PutNamespace, Redeem, Release,
            ReleaseAnswer, Rollback, RollbackAnswer, Rules, RulesPatch,
        },
        model::Model,
    },
    gate::{
        redeem,
        show_campaign::ShowCampaign,
        show_invite::{ShowInvite, Which},
        show_member::ShowMember,
        show_reservation::ShowReservation,
        survey,
    },
    ledger::{By, Rebuild},
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

/// Namespaces that are spread have tests of their own.
const NOT_SPREAD: &str = "no namespace of these histories is spread";

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
        max_uses_per_user: Option<u64>,
        campaign: Option<u8>,
        window: (Option<i64>, Option<i64>),
        bound: Bound,
    },
    /// Slots, each with the code that it is to have.
    Batch {
        slots: Vec<(u8, u8)>,
        group: u8,
        max_uses: Option<u64>,
        campaign: Option<u8>,
        expires_in: Option<i64>,
    },
    Campaign {
        name: u8,
        max_uses: Option<u64>,
        expected: Option<u64>,
    },
    /// Of one that was granted before, counted back.
    Rollback(u8),
    /// Of one that was held before, counted back.
    Release(u8),
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
    ImportInvites(Vec<InviteLine>),
    /// Lines: user, group, since when.
    ImportMembers(Vec<(u8, u8, Option<i64>)>),
    Join {
        user: u8,
        group: u8,
    },
    Leave {
        user: u8,
        group: Option<u8>,
    },
    Erase(u8),
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

/// Id, code, group, limit, uses (at most the limit), until when, whether it is switched off.
type InviteLine = (u8, u8, u8, Option<u64>, u64, Option<i64>, bool);

#[derive(Debug, Clone)]
struct Ask {
    wanted: Wanted,
    code: u8,
    user: Option<u8>,
    request: u8,
    ip: Option<u8>,
    email: Option<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// Perhaps naming one of the reservations that were made before, counted back.
    Redeem(Option<u8>),
    Validate,
    /// For so many milliseconds.
    Reserve(u64),
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
    max_uses_per_user: Option<Option<u64>>,
    starts_in: Option<Option<i64>>,
    expires_in: Option<Option<i64>>,
    disabled: Option<bool>,
}

fn ask() -> impl Strategy<Value = Ask> {
    let wanted = prop_oneof![
        6 => Just(Wanted::Redeem(None)),
        2 => (0..3u8).prop_map(|back| Wanted::Redeem(Some(back))),
        2 => Just(Wanted::Validate),
        3 => select(vec![1, 1000, 60_000, 3_600_000]).prop_map(Wanted::Reserve),
    ];
    (
        wanted,
        0..4u8,
        proptest::option::weighted(0.9, 0..4u8),
        0..8u8,
        proptest::option::of(0..2u8),
        proptest::option::of(0..3u8),
    )
        .prop_map(|(wanted, code, user, request, ip, email)| Ask {
            wanted: if user.is_some() { wanted } else { Wanted::Validate },
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
    let per_user = || proptest::option::weighted(0.2, 1..3u64);
    let campaign = || proptest::option::weighted(0.8, 0..2u8);
    let patch =
        (
            proptest::option::of(max_uses()),
            proptest::option::weighted(0.2, per_user()),
            proptest::option::weighted(0.3, moment()),
            proptest::option::weighted(0.3, moment()),
            proptest::option::of(any::<bool>()),
        )
            .prop_map(|(max_uses, max_uses_per_user, starts_in, expires_in, disabled)| {
                Patch { max_uses, max_uses_per_user, starts_in, expires_in, disabled }
            });
    let expected = || proptest::option::weighted(0.2, 1..4u64);
    prop_oneof![
        3 => select(vec![0, 1, 999, 20_000, 61_000, 3_700_000, -5_000, -70_000]).prop_map(Op::Advance),
        12 => vec(ask(), 1..5).prop_map(Op::Redeem),
        5 => (0..8u8, 0..3u8, 0..2u8, max_uses(), per_user(), campaign(), (moment(), moment()), bound).prop_map(
            |(id, code, group, max_uses, max_uses_per_user, campaign, window, bound)| {
                Op::Create { id, code, group, max_uses, max_uses_per_user, campaign, window, bound }
            }
        ),
        2 => (vec((0..4u8, 0..6u8), 1..4), 0..2u8, max_uses(), campaign(), moment()).prop_map(
            |(slots, group, max_uses, campaign, expires_in)| Op::Batch { slots, group, max_uses, campaign, expires_in }
        ),
        8 => (0..2u8, prop_oneof![1 => Just(None), 4 => (1..3u64).prop_map(Some)], expected())
            .prop_map(|(name, max_uses, expected)| Op::Campaign { name, max_uses, expected }),
        6 => (0..6u8).prop_map(Op::Rollback),
        2 => (0..3u8).prop_map(Op::Release),
        6 => (0..8u8, 0..20u8, expected(), patch)
            .prop_map(|(id, change, expected, patch)| Op::Change { id, change, expected, patch }),
        1 => (0..8u8, expected()).prop_map(|(id, expected)| Op::Delete { id, expected }),
        3 => vec((0..6u8, 0..4u8, 0..2u8, max_uses(), 0..4u64, moment(), proptest::bool::weighted(0.1)), 1..4)
            .prop_map(Op::ImportInvites),
        2 => vec((0..4u8, 0..2u8, proptest::option::of(select(vec![-5_000_000, -1, 0]))), 1..4)
            .prop_map(Op::ImportMembers),
        2 => (0..4u8, 0..2u8).prop_map(|(user, group)| Op::Join { user, group }),
        3 => (0..4u8, proptest::option::of(0..2u8)).prop_map(|(user, group)| Op::Leave { user, group }),
        1 => (
            0..6u8,
            [proptest::option::of(0..3u8), proptest::option::of(0..3u8), proptest::option::of(0..3u8)],
            proptest::option::weighted(0.5, select(ErrorDetail::ALL.to_vec())),
            expected(),
        )
            .prop_map(|(change, rates, detail, expected)| Op::Patch { change, rates, detail, expected }),
        1 => (0..4u8).prop_map(Op::Erase),
        1 => (0..6u8, rule()).prop_map(|(change, rule)| Op::Put { change, rule }),
        1 => Just(Op::Ensure),
        1 => proptest::bool::weighted(0.2).prop_map(|archive| if archive { Op::Archive } else { Op::Trim }),
        1 => Just(Op::Trim),
    ]
}

/// Histories that bring about what others seldom do, each a good beginning for more.
fn rare() -> Vec<Vec<Op>> {
    let ask = |wanted, user| {
        let ask = Ask { wanted, code: 0, user: Some(user), request: 0, ip: None, email: None };
        Op::Redeem(vec![ask])
    };
    let (redeem, reserve) = (Wanted::Redeem(None), Wanted::Reserve(60_000));
    let invite = |id, max_uses, campaign| Op::Create {
        id,
        code: 0,
        group: 0,
        max_uses,
        max_uses_per_user: None,
        campaign,
        window: (None, None),
        bound: Bound::No,
    };
    let campaign = |max_uses| Op::Campaign { name: 0, max_uses: Some(max_uses), expected: None };
    vec![
        // A campaign's limit below what is spent, and what is taken back twice.
        vec![
            campaign(2),
            invite(0, None, Some(0)),
            ask(redeem, 0),
            ask(redeem, 1),
            campaign(1),
            ask(redeem, 2),
            Op::Rollback(0),
            Op::Rollback(0),
            ask(redeem, 1),
        ],
        // What is held, given back, held by one alone, and named when it holds nothing any more.
        vec![
            invite(0, Some(1), None),
            ask(reserve, 0),
            ask(reserve, 0),
            ask(redeem, 1),
            Op::Release(0),
            Op::Release(0),
            ask(Wanted::Redeem(Some(0)), 0),
        ],
        // In an archived namespace.
        vec![
            invite(0, Some(3), None),
            ask(redeem, 0),
            ask(reserve, 1),
            Op::Archive,
            Op::Release(0),
            Op::Rollback(0),
            campaign(1),
        ],
        // A code that another invite has by now.
        vec![invite(0, Some(1), None), ask(redeem, 0), invite(1, Some(1), None), Op::Rollback(0)],
        // Somebody is erased for whom a use was held until another invite got the code.
        vec![
            invite(0, Some(1), None),
            ask(reserve, 0),
            Op::Change {
                id: 0,
                change: 0,
                expected: None,
                patch: Patch {
                    max_uses: None,
                    max_uses_per_user: None,
                    starts_in: None,
                    expires_in: None,
                    disabled: Some(true),
                },
            },
            invite(1, Some(1), None),
            Op::Erase(0),
        ],
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
    /// What was granted and held so far.
    granted: Vec<Redemption>,
    held: Vec<Reservation>,
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
        let mode = match ask.wanted {
            Wanted::Redeem(named) => Mode::Redeem {
                request: RequestId::parse(&request).unwrap(),
                redemption: self.redemption(),
                metadata: (ask.code == 1).then(|| "{}".to_owned()),
                reservation: named.map(|back| {
                    back_from(&self.held, back).map(|held| held.until).unwrap_or_default()
                }),
            },
            Wanted::Validate => Mode::Validate,
            Wanted::Reserve(ttl_ms) => Mode::Reserve { ttl_ms },
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

fn back_from<T>(all: &[T], back: u8) -> Option<&T> {
    all.iter().rev().nth(usize::from(back))
}

fn campaign(number: u8) -> CampaignName {
    CampaignName::parse(["spring", "spring-2"][usize::from(number)]).unwrap()
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
        assert_eq!(shown, model.show_invite(namespace, id, bench.now()));
    }
    for number in 0..2 {
        let World { bench, namespace, model, .. } = world;
        let question = ShowCampaign { namespace: namespace.clone(), name: campaign(number) };
        let shown = question.run(&bench.gate).await.unwrap();
        assert_eq!(shown, model.show_campaign(namespace, &campaign(number), bench.now()));
    }
    for (number, holder) in (0..3).flat_map(|number| (0..4).map(move |user| (number, user))) {
        let World { bench, namespace, model, .. } = world;
        let (code, user) = (code(number), user(holder));
        let question = ShowReservation { namespace: namespace.clone(), code, user };
        let shown = question.run(&bench.gate).await.unwrap();
        let ShowReservation { namespace, code, user } = &question;
        assert_eq!(shown, model.show_reservation(namespace, code, user, bench.now()));
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
                match meant.outcome {
                    Outcome::Granted(redemption) => world.granted.push(redemption),
                    Outcome::Held { reservation, .. } => world.held.push(reservation),
                    _ => {}
                }
            }
        }
        Op::Rollback(back) => {
            let Some(redemption) = back_from(&world.granted, *back).cloned() else { return };
            let rollback = Rollback { redemption, reason: "a reason".to_owned(), actor };
            let (said, meant) =
                (rollback.run(gate).await.unwrap(), world.model.rollback(&rollback, now));
            world.saw(match meant {
                RollbackAnswer::RolledBack { replayed: false, .. } => "rolled_back",
                RollbackAnswer::RolledBack { replayed: true, .. } => "rollback: already",
                RollbackAnswer::NotFound => "rollback: not_found",
                RollbackAnswer::CodeTaken { .. } => "rollback: code_taken",
                RollbackAnswer::NamespaceNotFound => "rollback: namespace_not_found",
            });
            assert_eq!(said, meant);
        }
        Op::Release(back) => {
            let Some(reservation) = back_from(&world.held, *back).cloned() else { return };
            let release = Release { reservation, actor };
            let (said, meant) =
                (release.run(gate).await.unwrap(), world.model.release(&release, now));
            world.saw(match meant {
                ReleaseAnswer::Released => "released",
                ReleaseAnswer::NotHeld => "not_held",
                ReleaseAnswer::NamespaceNotFound => "release: namespace_not_found",
            });
            assert_eq!(said, meant);
        }
        Op::Campaign { name, max_uses, expected } => {
            let put = PutCampaign {
                namespace,
                name: campaign(*name),
                max_uses: *max_uses,
                expected_revision: *expected,
                actor,
            };
            let (said, meant) = (put.run(gate).await.unwrap(), world.model.put_campaign(&put, now));
            world.saw(match meant {
                CampaignPut::Created(_) => "campaign created",
                CampaignPut::Changed(_) => "campaign changed",
                CampaignPut::PreconditionFailed { .. } => "campaign precondition_failed",
                CampaignPut::LimitBelowUsed { .. } => "campaign limit_below_used",
                CampaignPut::TooMany => "campaign too_many",
                CampaignPut::NamespaceNotFound => "campaign namespace_not_found",
            });
            assert_eq!(said, meant);
        }
        Op::Create {
            id,
            code: number,
            group: group_number,
            max_uses,
            max_uses_per_user,
            campaign: campaign_number,
            window,
            bound,
        } => {
            let create = CreateInvite {
                id: world.id(*id),
                namespace,
                code: code(*number),
                group: group(*group_number),
                max_uses: *max_uses,
                max_uses_per_user: *max_uses_per_user,
                campaign: campaign_number.map(campaign),
                starts_at: world.after(window.0),
                expires_at: world.after(window.1),
                user: if let Bound::User(number) = bound { Some(user(*number)) } else { None },
                email_domains: if let Bound::Domain(number) = bound {
                    vec![domain(*number)]
                } else {
                    Vec::new()
                },
                metadata: (*number == 1).then(|| "{\"a\":1}".to_owned()),
                exhausted: None,
                actor,
            };
            let (said, meant) =
                (create.run(gate).await.unwrap(), world.model.create_invite(&create, now));
            world.saw(match meant {
                Created::Created(_) => "created",
                Created::IdTaken { .. } => "id_taken",
                Created::CodeTaken { .. } => "code_taken",
                Created::CampaignNotFound => "create: campaign_not_found",
                Created::NamespaceNotFound => "create: namespace_not_found",
            });
            assert_eq!(said, meant);
        }
        Op::Batch {
            slots,
            group: group_number,
            max_uses,
            campaign: campaign_number,
            expires_in,
        } => {
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
                max_uses_per_user: None,
                campaign: campaign_number.map(campaign),
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
                BatchCreated::CampaignNotFound => "batch: campaign_not_found",
                BatchCreated::NamespaceNotFound => "batch: namespace_not_found",
            });
            assert_eq!(said, meant);
        }
        Op::Change { id, change, expected, patch } => {
            let patch = InvitePatch {
                max_uses: patch.max_uses,
                max_uses_per_user: patch.max_uses_per_user,
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
                Changed::Changed(_) => "changed",
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
                (delete.run(gate).await.unwrap(), world.model.delete_invite(&delete, now));
            world.saw(match meant {
                Deleted::Deleted => "deleted",
                Deleted::NotFound => "delete: not_found",
                Deleted::InUse { .. } => "in_use",
                Deleted::PreconditionFailed { .. } => "delete: precondition_failed",
                Deleted::UsesElsewhere => unreachable!("{NOT_SPREAD}"),
            });
            assert_eq!(said, meant);
        }
        Op::ImportInvites(lines) => {
            let invite = |(id, number, group_number, max_uses, uses, expires_in, disabled): &(
                _,
                _,
                _,
                Option<u64>,
                u64,
                _,
                _,
            )| {
                ImportedInvite {
                    id: world.id(*id),
                    code: code(*number),
                    group: group(*group_number),
                    max_uses: *max_uses,
                    max_uses_per_user: (*number == 2).then_some(1),
                    uses: max_uses.map_or(*uses, |max| max.min(*uses)),
                    starts_at: None,
                    expires_at: world.after(*expires_in),
                    disabled: *disabled,
                    user: (*number == 3).then(|| user(1)),
                    email_domains: if *number == 0 { vec![domain(1)] } else { Vec::new() },
                    metadata: (*number == 1).then(|| "{\"a\":3}".to_owned()),
                }
            };
            let import =
                ImportInvites { namespace, invites: lines.iter().map(invite).collect(), actor };
            let said = import.run(gate).await.unwrap();
            let meant = world.model.import_invites(&import, now);
            match &meant {
                Imported::Done { told, .. } => {
                    for one in told {
                        world.saw(match one {
                            InviteImport::Imported => "invite imported",
                            InviteImport::Unchanged => "invite unchanged",
                            InviteImport::CodeTaken { .. } => "import: code_taken",
                        });
                    }
                }
                Imported::Overloaded => world.saw("import: overloaded"),
                Imported::NamespaceNotFound => world.saw("import: namespace_not_found"),
            }
            assert_eq!(said, meant);
        }
        Op::ImportMembers(lines) => {
            let member = |(number, group_number, since): &(u8, u8, Option<i64>)| {
                (user(*number), group(*group_number), world.after(*since))
            };
            let import =
                ImportMembers { namespace, members: lines.iter().map(member).collect(), actor };
            let said = import.run(gate).await.unwrap();
            let meant = world.model.import_members(&import, now);
            match &meant {
                Imported::Done { told, .. } => {
                    for one in told {
                        world.saw(match one {
                            MemberImport::Imported => "member imported",
                            MemberImport::Unchanged => "member unchanged",
                            MemberImport::AlreadyMember { .. } => "import: already_member",
                            MemberImport::Elsewhere => unreachable!("{NOT_SPREAD}"),
                        });
                    }
                }
                Imported::Overloaded => world.saw("members: overloaded"),
                Imported::NamespaceNotFound => world.saw("members: namespace_not_found"),
            }
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
                Joined::Elsewhere => unreachable!("{NOT_SPREAD}"),
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
        Op::Erase(number) => {
            // Every invite that may be bound to the user, whether it is or not.
            let invites = (0..8).flat_map(|id| (0..6).map(move |number| (id, number)));
            let invites = invites.map(|(id, number)| (world.id(id), code(number))).collect();
            let alias = UserId::erased(world.redemption().0);
            let erase =
                EraseUser { namespace, user: user(*number), alias: alias.clone(), invites, actor };
            let gate = &world.bench.gate;
            let (said, meant) = (erase.run(gate).await.unwrap(), world.model.erase_user(&erase));
            world.saw(match meant {
                Erased::Erased { .. } => "erased",
                Erased::NamespaceNotFound => "erase: namespace_not_found",
            });
            assert_eq!(said, meant);
            let question = ShowMember { namespace: erase.namespace.clone(), user: alias.clone() };
            let shown = question.run(gate).await.unwrap();
            assert_eq!(shown, world.model.show_member(&erase.namespace, &alias));
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
        Outcome::Held { replayed: false, .. } => "held",
        Outcome::Held { replayed: true, .. } => "held before",
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
            Refusal::AlreadyRolledBack { .. } => "already_rolled_back",
            Refusal::UserLimitReached => "user_limit_reached",
            Refusal::ReservationExpired => "reservation_expired",
            Refusal::Exhausted { may_free_at: None } => "exhausted",
            Refusal::Exhausted { may_free_at: Some(_) } => "exhausted, may free",
            Refusal::CampaignExhausted => "campaign_exhausted",
        },
    }
}

/// Every reply word that a history can bring about.
const WORDS: [&str; 77] = [
    "erased",
    "held",
    "held before",
    "already_rolled_back",
    "user_limit_reached",
    "reservation_expired",
    "exhausted, may free",
    "campaign_exhausted",
    "create: campaign_not_found",
    "batch: campaign_not_found",
    "rolled_back",
    "rollback: already",
    "rollback: code_taken",
    "rollback: namespace_not_found",
    "released",
    "not_held",
    "campaign created",
    "campaign changed",
    "campaign precondition_failed",
    "campaign limit_below_used",
    "batch: created",
    "batch: taken",
    "batch: overloaded",
    "batch: namespace_not_found",
    "invite imported",
    "invite unchanged",
    "import: code_taken",
    "import: overloaded",
    "import: namespace_not_found",
    "member imported",
    "member unchanged",
    "import: already_member",
    "members: overloaded",
    "members: namespace_not_found",
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
    let begin = prop_oneof![20 => Just(Vec::new()), 1 => select(rare())];
    let history = (rule(), begin, vec(op(), 5..60))
        .prop_map(|(rule, begin, ops)| (rule, [begin, ops].concat()));
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
                    granted: Vec::new(),
                    held: Vec::new(),
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

/// What a batch brings depends on what the ledger has before it, so they are cut in two at each place.
#[test]
fn the_ledger_knows_all_of_rare_histories_wherever_batches_end() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for ops in rare() {
        runtime.block_on(async {
            let bench = Bench::start().await;
            play(&bench, 0, MembershipRule::OneGroup, &ops).await;
            let entries = recovery::entries(&bench).await;
            let whole = tables(&entries, &[entries.len()]).await;
            for first in 1..entries.len() {
                assert_eq!(tables(&entries, &[first, entries.len()]).await, whole, "{first}");
            }
        });
    }
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
                play(&bench, case, rule, &ops).await;
                check_ledger(&bench, &cuts).await;
            });
            Ok(())
        })
        .unwrap();
}

/// Brings a history about, and leaves all of it in the outbox.
async fn play(bench: &Bench, case: u64, rule: MembershipRule, ops: &[Op]) {
    let cursor = survey::run(&bench.gate, Partition(0)).await.unwrap().meta.unwrap().cursor;
    let mut words = BTreeSet::new();
    let mut world = World {
        bench,
        namespace: Namespace::parse("acme").unwrap(),
        model: Model::new(Partition(0), cursor, u64::MAX),
        ids: u128::from(case) << 64,
        redemptions: 10_000,
        granted: Vec::new(),
        held: Vec::new(),
        words: &mut words,
        keeps_outbox: true,
    };
    put(&mut world, Action::Put(limited(rule)), 5, None).await;
    run(&mut world, ops).await;
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
    other.request_rebuild(None, Rebuild::FromGate, &By::node()).await.unwrap();
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
    for table in [
        "namespaces",
        "campaigns",
        "invites",
        "reservations",
        "redemptions",
        "members",
        "audit_log",
    ] {
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

/// The columns of a table, from the migrations that make and change it.
fn columns_of(table: &str) -> Vec<&'static str> {
    const MIGRATIONS: [&str; 5] = [
        include_str!("../../migrations/sqlite/0001_ledger.sql"),
        include_str!("../../migrations/sqlite/0002_batches.sql"),
        include_str!("../../migrations/sqlite/0003_reservations.sql"),
        include_str!("../../migrations/sqlite/0006_imports_and_outcomes.sql"),
        include_str!("../../migrations/sqlite/0008_erasing.sql"),
    ];
    let mut columns = Vec::new();
    for migration in MIGRATIONS {
        if let Some((_, definition)) = migration.split_once(&format!("CREATE TABLE {table} (")) {
            let (definition, _) = definition.split_once(") STRICT").unwrap();
            columns.extend(definition.lines().filter_map(|line| line.split_whitespace().next()));
        }
        let added = format!("ALTER TABLE {table} ADD COLUMN ");
        let added = migration.lines().filter_map(|line| line.strip_prefix(&added));
        columns.extend(added.filter_map(|line| line.split_whitespace().next()));
    }
    columns.retain(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    columns
}
