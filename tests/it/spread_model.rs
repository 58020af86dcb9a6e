//! The scripts that move uses between the parts of a spread namespace, against `domain::spread`, on random histories: those
//! of an invite, and those of a campaign; and copies of invites.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
};

use proptest::{
    collection::vec,
    prelude::Strategy,
    prop_oneof,
    test_runner::{Config, TestRunner},
};
use redeemer::{
    domain::{
        CampaignName, Code, CodeCase, Cursor, Group, Invite, InviteId, MembershipRule, Millis,
        Namespace, Outcome, Partition, Redemption, RedemptionId, Refusal, RequestId, Reservation,
        Settings, UserId,
        command::{
            Action, CampaignPut, ChangeInvite, Changed, CreateInvite, Created, InvitePatch, Mode,
            PutCampaign, PutNamespace, Redeem, Release, ReleaseAnswer, Rollback, RollbackAnswer,
            Rules,
        },
        spread::{Gave, Given, HOME, Part, Pool},
    },
    gate::{
        Ask, Asked,
        copy_invite::{Copied, CopyInvite},
        copy_namespace::CopyNamespace,
        give_uses::GiveUses,
        redeem::Dry,
        show_invite::{ShowInvite, Which},
        show_namespace::ShowNamespace,
        take_uses::TakeUses,
    },
};
use uuid::Uuid;

use crate::{
    recovery,
    support::{
        bench::{Bench, START, rules},
        effort,
    },
};

const SPREAD: u16 = 3;
const TOTAL: u64 = 12;

/// One step of a history. Participants are counted from 0, the namespace itself.
#[derive(Debug, Clone)]
enum Op {
    /// What the asker knows of what was taken is so many takes old.
    Give {
        giver: u16,
        taker: u16,
        divisor: u64,
        stale: bool,
    },
    /// What was given, or what was given before so many moves.
    Take {
        giver: u16,
        taker: u16,
        back: usize,
    },
    /// By a new user, or by one who holds a use.
    Redeem {
        shard: u16,
        patient: bool,
        holder: bool,
    },
    Reserve {
        shard: u16,
        ttl_s: u64,
    },
    Release {
        back: usize,
    },
    RollBack {
        back: usize,
    },
    /// As the home has it, or as it had it before so many changes.
    Copy {
        shard: u16,
        back: usize,
    },
    /// At the home: more or fewer uses, and the switch.
    Change {
        more: i64,
        disabled: bool,
    },
    Advance {
        ms: i64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let any = || 0..=SPREAD;
    let shard = || 1..=SPREAD;
    prop_oneof![
        8 => (any(), shard(), 0..5u64, proptest::bool::weighted(0.2))
            .prop_map(|(giver, taker, divisor, stale)| Op::Give { giver, taker, divisor, stale }),
        2 => (shard(), 1..4u64).prop_map(|(giver, divisor)| Op::Give { giver, taker: HOME, divisor, stale: false }),
        8 => (any(), any(), prop_oneof![4 => 0..1usize, 1 => 1..4usize])
            .prop_map(|(giver, taker, back)| Op::Take { giver, taker, back }),
        8 => (shard(), proptest::bool::weighted(0.7), proptest::bool::weighted(0.3))
            .prop_map(|(shard, patient, holder)| Op::Redeem { shard, patient, holder }),
        3 => (shard(), 1..90u64).prop_map(|(shard, ttl_s)| Op::Reserve { shard, ttl_s }),
        1 => (0..4usize).prop_map(|back| Op::Release { back }),
        2 => (0..4usize).prop_map(|back| Op::RollBack { back }),
        4 => (shard(), prop_oneof![4 => 0..1usize, 1 => 1..4usize]).prop_map(|(shard, back)| Op::Copy { shard, back }),
        1 => (-6..6i64, proptest::bool::weighted(0.2)).prop_map(|(more, disabled)| Op::Change { more, disabled }),
        4 => (1..40_000i64).prop_map(|ms| Op::Advance { ms }),
        4 => (1..200i64).prop_map(|ms| Op::Advance { ms }),
    ]
}

/// What random histories bring about by luck alone is brought about on purpose.
const RARE: [Op; 14] = [
    Op::Copy { shard: 1, back: 0 },
    Op::Give { giver: HOME, taker: 1, divisor: 1, stale: false },
    Op::Give { giver: HOME, taker: 1, divisor: 1, stale: false },
    Op::Take { giver: HOME, taker: 1, back: 0 },
    Op::Take { giver: HOME, taker: 1, back: 0 },
    Op::Reserve { shard: 1, ttl_s: 60 },
    Op::Release { back: 0 },
    Op::Reserve { shard: 1, ttl_s: 60 },
    Op::Redeem { shard: 1, patient: true, holder: true },
    Op::Redeem { shard: 1, patient: true, holder: false },
    Op::RollBack { back: 0 },
    Op::Change { more: 1, disabled: true },
    Op::Copy { shard: 1, back: 0 },
    Op::Redeem { shard: 1, patient: true, holder: false },
];

/// Every kind of answer that some history must have brought about.
const WORDS: [&str; 16] = [
    "given",
    "given before",
    "nothing",
    "looked",
    "nobody here",
    "taken",
    "taken before",
    "granted",
    "granted of a hold",
    "dry: unknown",
    "not found",
    "held",
    "released",
    "rolled back",
    "copied",
    "limit below used",
];

struct World<'a> {
    bench: &'a Bench,
    home: Namespace,
    id: InviteId,
    code: Code,
    /// Whose uses move: those of the invite, or those of its campaign, which are fewer then.
    pool: Pool,
    parts: Vec<Part>,
    /// Which parts have it.
    is_there: Vec<bool>,
    /// Until when a part gives its last free use to nobody.
    kept_until: Vec<Millis>,
    /// Whether a part has the invite, and whether it is disabled there, with the revision that it has heard of.
    known: Vec<Option<(u64, bool)>>,
    held: Vec<(u16, UserId, Reservation)>,
    granted: Vec<(u16, Redemption)>,
    /// What the home had, the oldest first.
    before: Vec<Invite>,
    /// What was given in every move, the oldest first.
    given: BTreeMap<(u16, u16), Vec<u64>>,
    ids: u128,
    words: &'a mut BTreeSet<&'static str>,
}

impl World<'_> {
    fn place(&self, number: u16) -> Namespace {
        if number == HOME { self.home.clone() } else { self.home.shard(number, SPREAD) }
    }

    fn number(&self, place: u16) -> u16 {
        self.place(place).participant()
    }

    fn part(&mut self, place: u16) -> &mut Part {
        let now = self.bench.now();
        let live = self.held.iter().filter(|(at, _, one)| *at == place && one.until > now);
        let deadlines: Vec<_> = live.map(|(_, _, one)| one.until).collect();
        let is_of_campaign = self.is_of_campaign();
        let is_kept = self.kept_until[usize::from(place)] > now;
        let part = &mut self.parts[usize::from(place)];
        part.held = deadlines.len() as u64;
        part.kept = u64::from(is_kept && part.free() > 0);
        // Nobody is told when a held use of a campaign may be free again.
        part.may_free_at = deadlines.into_iter().min().filter(|_| !is_of_campaign);
        part
    }

    fn next(&mut self) -> u128 {
        self.ids += 1;
        self.ids
    }

    fn is_of_campaign(&self) -> bool {
        matches!(self.pool, Pool::Campaign { .. })
    }

    fn saw(&mut self, word: &'static str) {
        self.words.insert(word);
    }

    /// A part is as the model says, but for what only counts.
    fn assert_same(&mut self, place: u16, said: &Part) {
        if !self.is_there[usize::from(place)] {
            assert!(said.is_absent(), "{said:?}");
            return;
        }
        let number = self.number(place);
        let model = self.part(place).clone();
        assert_eq!(said.shard, number);
        let said = Part { shard: place, epoch: 0, revision: 0, ..said.clone() };
        let by_number = |part: &Part, of: &dyn Fn(u16) -> u16| Part {
            given: part.given.iter().map(|(to, given)| (of(*to), *given)).collect(),
            taken: part.taken.iter().map(|(by, taken)| (of(*by), *taken)).collect(),
            ..part.clone()
        };
        assert_eq!(said, by_number(&model, &|place| self.number(place)));
    }

    async fn redeem(&self, shard: u16, user: &UserId, mode: Mode, patient: bool) -> Asked {
        let request = Redeem {
            namespace: self.place(shard),
            code: self.code.clone(),
            user: Some(user.clone()),
            ip: None,
            email_domain: None,
            caller: "test".to_owned(),
            mode,
        };
        let how = Ask { patient, ..Ask::default() };
        self.bench.gate.ask(request, how).await.unwrap()
    }

    /// What stands in the way of one who asks in a shard, if anything does.
    fn refused(&mut self, shard: u16, patient: bool, holds: bool) -> Option<&'static str> {
        let free = self.part(shard).free() > 0 || holds;
        match (self.known[usize::from(shard)], patient) {
            (None, true) => Some("dry: unknown"),
            (None, false) => Some("not found"),
            (Some((_, true)), _) => Some("disabled"),
            (Some((_, false)), true) if !free && self.is_of_campaign() => {
                Some("dry: campaign exhausted")
            }
            (Some((_, false)), false) if !free && self.is_of_campaign() => {
                Some("campaign exhausted")
            }
            (Some((_, false)), true) if !free => Some("dry: exhausted"),
            (Some((_, false)), false) if !free => Some("exhausted"),
            _ => None,
        }
    }

    fn assert_refused(&mut self, shard: u16, word: &'static str, asked: &Asked) {
        let whole = self.id;
        let is_so = match (word, asked) {
            ("dry: unknown", Asked::Dry { dry: Dry::Unknown, .. }) => true,
            (
                "dry: exhausted",
                Asked::Dry { dry: Dry::Exhausted { invite, campaign: None }, .. },
            ) => invite.of_whole(&self.place(shard)) == whole,
            ("dry: campaign exhausted", Asked::Dry { dry: Dry::CampaignExhausted(name), .. }) => {
                matches!(&self.pool, Pool::Campaign { name: own, .. } if own == name)
            }
            (word, Asked::Answer(answer, _)) => match &answer.outcome {
                Outcome::Refused(Refusal::CampaignExhausted) => word == "campaign exhausted",
                Outcome::Refused(Refusal::NotFound) => word == "not found",
                Outcome::Refused(Refusal::Disabled) => word == "disabled",
                Outcome::Refused(Refusal::Exhausted { may_free_at }) => {
                    word == "exhausted" && {
                        let part = self.part(shard);
                        let expected =
                            if part.uses < part.max_uses { part.may_free_at } else { None };
                        *may_free_at == expected
                    }
                }
                _ => false,
            },
            _ => false,
        };
        assert!(is_so, "{word}: {asked:?}");
        self.saw(word);
    }

    /// A shard that looks for a use of the campaign does not give away its last one of the invite meanwhile.
    async fn assert_kept(&self, shard: u16) {
        let pool = Pool::Invite { id: self.id, code: self.code.clone() };
        let (giver, taker) = (self.place(shard), HOME);
        let look = GiveUses { giver, pool, taker, known: 0, divisor: 0 };
        assert_eq!(look.run(&self.bench.gate).await.unwrap().kept, 1);
    }

    async fn shown(&self) -> Invite {
        let which = Which::Id(self.id);
        let question = ShowInvite { namespace: self.home.clone(), which };
        question.run(&self.bench.gate).await.unwrap().unwrap().invite
    }

    /// Every use is in a share or on its way, and no share is overdrawn.
    fn assert_none_doubled(&mut self) {
        for place in 0..=SPREAD {
            let part = self.part(place);
            assert!(part.uses + part.held <= part.max_uses, "{part:?}");
        }
        let all = || self.parts.iter();
        let shares: u64 = all().map(|part| part.max_uses).sum();
        let given: u64 = all().flat_map(|part| part.given.values()).map(|one| one.amount).sum();
        let taken: u64 = all().flat_map(|part| part.taken.values()).sum();
        assert_eq!(Some(shares + given - taken), self.parts[0].total);
    }

    async fn step(&mut self, op: &Op) {
        match *op {
            Op::Give { giver, taker, .. } | Op::Take { giver, taker, .. } if giver == taker => {}
            Op::Give { giver, taker, divisor, stale } => {
                let taken = self.parts[usize::from(taker)].taken_from(giver);
                let known = if stale { taken / 2 } else { taken };
                let give = GiveUses {
                    giver: self.place(giver),
                    pool: self.pool.clone(),
                    taker: self.number(taker),
                    known,
                    divisor,
                };
                let said = give.run(&self.bench.gate).await.unwrap();
                if !self.is_there[usize::from(giver)] {
                    self.saw("nobody here");
                } else if divisor == 0 {
                    self.saw("looked");
                } else {
                    let at = said.given.get(&self.number(taker)).map(|given| given.at);
                    let before = self.parts[usize::from(giver)].given.get(&taker).copied();
                    let gave = self.part(giver).give(
                        taker,
                        known,
                        divisor,
                        at.unwrap_or(Cursor { epoch: 0, seq: 0 }),
                    );
                    match (gave, before) {
                        (Gave::Nothing, _) => self.saw("nothing"),
                        (Gave::Given(new), Some(old)) if new == old => self.saw("given before"),
                        (Gave::Given(Given { amount, at }), before) => {
                            assert!(before.is_none_or(|before| before.at < at));
                            self.given.entry((giver, taker)).or_default().push(amount);
                            self.saw("given");
                        }
                    }
                }
                self.assert_same(giver, &said);
            }
            Op::Take { giver, taker, back } => {
                let given = self.given.get(&(giver, taker)).map_or(&[][..], Vec::as_slice);
                let Some(&given) = given.iter().rev().nth(back) else { return };
                let take = TakeUses {
                    taker: self.place(taker),
                    pool: self.pool.clone(),
                    giver: self.number(giver),
                    given,
                };
                let said = take.run(&self.bench.gate).await.unwrap();
                if self.is_of_campaign() && !self.is_there[usize::from(taker)] {
                    // A shard that has lost it gets it with its uses.
                    self.is_there[usize::from(taker)] = true;
                    self.saw("made anew");
                }
                if !self.is_there[usize::from(taker)] {
                    self.saw("not here");
                } else if self.part(taker).take(giver, given) {
                    let kept_until = self.bench.now().as_ms() + 100;
                    self.kept_until[usize::from(taker)] = Millis::from_ms(kept_until).unwrap();
                    self.saw("taken");
                } else {
                    self.saw("taken before");
                }
                self.assert_same(taker, &said);
            }
            Op::Redeem { shard, patient, holder } => {
                let now = self.bench.now();
                let live =
                    |(at, _, one): &&(u16, UserId, Reservation)| *at == shard && one.until > now;
                let holder = holder.then(|| self.held.iter().find(live).cloned()).flatten();
                let number = self.next();
                let fresh = UserId::parse(&format!("user-{number}")).unwrap();
                let user = holder.as_ref().map_or(fresh, |(_, user, _)| user.clone());
                let mode = Mode::Redeem {
                    request: RequestId::parse(&format!("request-{number}")).unwrap(),
                    redemption: RedemptionId(Uuid::from_u128(number)),
                    metadata: None,
                    reservation: None,
                };
                let refused = self.refused(shard, patient, holder.is_some());
                let asked = self.redeem(shard, &user, mode, patient).await;
                if let Some(word) = refused {
                    self.assert_refused(shard, word, &asked);
                    if word == "dry: campaign exhausted" {
                        self.assert_kept(shard).await;
                    }
                    return;
                }
                let Asked::Answer(answer, _) = asked else { panic!("{asked:?}") };
                let Outcome::Granted(redemption) = answer.outcome else { panic!("{answer:?}") };
                if holder.is_some() {
                    self.held.retain(|(_, other, _)| *other != user);
                }
                let part = self.part(shard);
                (part.uses, part.granted) = (part.uses + 1, part.granted + 1);
                assert_eq!(redemption.ordinal, part.granted);
                let remaining = part.max_uses - part.uses;
                if self.is_of_campaign() {
                    // Of the invite more are left.
                    assert!(redemption.remaining > Some(remaining));
                } else {
                    assert_eq!(redemption.remaining, Some(remaining));
                }
                self.granted.push((shard, redemption));
                self.saw(if holder.is_some() { "granted of a hold" } else { "granted" });
            }
            Op::Reserve { shard, ttl_s } => {
                let user = UserId::parse(&format!("holder-{}", self.next())).unwrap();
                let refused = self.refused(shard, true, false);
                let mode = Mode::Reserve { ttl_ms: ttl_s * 1000 };
                let asked = self.redeem(shard, &user, mode, true).await;
                if let Some(word) = refused {
                    return self.assert_refused(shard, word, &asked);
                }
                let Asked::Answer(answer, _) = asked else { panic!("{asked:?}") };
                let Outcome::Held { reservation, .. } = answer.outcome else {
                    panic!("{answer:?}")
                };
                self.held.push((shard, user, reservation));
                self.part(shard).holds += 1;
                self.saw("held");
            }
            Op::Release { back } => {
                let Some(place) = self.held.len().checked_sub(back + 1) else { return };
                let (_, _, reservation) = self.held.remove(place);
                let is_live = reservation.until > self.bench.now();
                let release = Release { reservation, actor: "test".to_owned() };
                let said = release.run(&self.bench.gate).await.unwrap();
                assert_eq!(said == ReleaseAnswer::Released, is_live);
                if is_live {
                    self.saw("released");
                }
            }
            Op::RollBack { back } => {
                let Some(place) = self.granted.len().checked_sub(back + 1) else { return };
                let (shard, redemption) = self.granted.remove(place);
                let (reason, actor) = ("test".to_owned(), "test".to_owned());
                let rollback = Rollback { redemption, reason, actor };
                let said = rollback.run(&self.bench.gate).await.unwrap();
                assert!(matches!(said, RollbackAnswer::RolledBack { replayed: false, .. }));
                self.part(shard).uses -= 1;
                self.saw("rolled back");
            }
            Op::Copy { shard, back } => {
                let Some(place) = self.before.len().checked_sub(back + 1) else { return };
                let invite = self.before[place].clone();
                let (revision, disabled) = (invite.revision, invite.disabled);
                let copy = CopyInvite { shard: self.place(shard), invite, is_current: true };
                assert_eq!(copy.run(&self.bench.gate).await.unwrap(), Copied::Copied);
                let known = &mut self.known[usize::from(shard)];
                let is_new = known.is_none();
                if known.is_none_or(|(older, _)| older < revision) {
                    *known = Some((revision, disabled));
                }
                self.is_there[usize::from(shard)] = true;
                if is_new && self.is_of_campaign() {
                    self.have_enough(shard).await;
                }
                self.saw("copied");
            }
            Op::Change { more, .. } if self.is_of_campaign() => {
                let total = self.parts[0].total.unwrap();
                let limit = total.saturating_add_signed(more).max(1);
                let said = put_campaign(self.bench, &self.home, limit).await;
                let home = self.part(HOME);
                if home.free() + limit < total {
                    assert!(matches!(said, CampaignPut::LimitBelowUsed { .. }), "{said:?}");
                    return self.saw("limit below used");
                }
                let CampaignPut::Changed(shown) = said else { panic!("{said:?}") };
                home.max_uses = home.max_uses + limit - total;
                home.total = Some(limit);
                let share = (shown.campaign.max_uses, shown.campaign.total);
                assert_eq!(share, (Some(home.max_uses), home.total));
            }
            Op::Change { more, disabled } => {
                let total = self.parts[0].total.unwrap();
                let limit = total.saturating_add_signed(more).max(1);
                let change = ChangeInvite {
                    id: self.id,
                    namespace: self.home.clone(),
                    change: Uuid::from_u128(self.next()),
                    expected_revision: None,
                    patch: InvitePatch {
                        max_uses: Some(Some(limit)),
                        disabled: Some(disabled),
                        ..InvitePatch::default()
                    },
                    actor: "test".to_owned(),
                };
                let said = change.run(&self.bench.gate).await.unwrap();
                let home = self.part(HOME);
                if home.free() + limit < total {
                    assert!(matches!(said, Changed::LimitBelowUsed { .. }), "{said:?}");
                    return self.saw("limit below used");
                }
                assert!(matches!(said, Changed::Changed(_)), "{said:?}");
                home.max_uses = home.max_uses + limit - total;
                home.total = Some(limit);
                let shown = self.shown().await;
                self.known[0] = Some((shown.revision, disabled));
                self.before.push(shown);
            }
            Op::Advance { ms } => self.bench.advance(ms),
        }
    }
}

impl World<'_> {
    /// Brings so many uses of the invite into a shard that those of its campaign are fewer, always.
    async fn have_enough(&self, shard: u16) {
        let gate = &self.bench.gate;
        let pool = Pool::Invite { id: self.id, code: self.code.clone() };
        let (giver, taker) = (self.place(HOME), self.number(shard));
        let give = GiveUses { giver, pool: pool.clone(), taker, known: 0, divisor: 2 };
        let given = give.run(gate).await.unwrap().given[&taker].amount;
        let take = TakeUses { taker: self.place(shard), pool, giver: HOME, given };
        assert!(take.run(gate).await.unwrap().free() > 1000);
    }
}

fn campaign() -> CampaignName {
    CampaignName::parse("spring").unwrap()
}

async fn put_campaign(bench: &Bench, home: &Namespace, limit: u64) -> CampaignPut {
    let put = PutCampaign {
        namespace: home.clone(),
        name: campaign(),
        max_uses: Some(limit),
        expected_revision: None,
        actor: "test".to_owned(),
    };
    put.run(&bench.gate).await.unwrap()
}

async fn settings(bench: &Bench, home: &Namespace) -> Settings {
    let question = ShowNamespace { namespace: home.clone() };
    question.run(&bench.gate).await.unwrap().unwrap().0
}

/// A namespace that is spread, its shards, and an invite that no shard knows yet.
async fn world<'a>(
    bench: &'a Bench,
    case: u64,
    of_campaign: bool,
    words: &'a mut BTreeSet<&'static str>,
) -> World<'a> {
    let home = Namespace::parse(&format!("case-{case}")).unwrap();
    let put = PutNamespace {
        namespace: home.clone(),
        action: Action::Put(Rules { spread: SPREAD, ..rules(MembershipRule::OnePerInvite) }),
        change: Uuid::from_u128(7),
        expected_revision: None,
        actor: "test".to_owned(),
    };
    put.run(&bench.gate).await.unwrap();
    let settings = settings(bench, &home).await;
    for shard in home.shards(SPREAD) {
        let copy = CopyNamespace { shard, settings: settings.clone() };
        copy.run(&bench.gate).await.unwrap();
    }
    let mut parts: Vec<_> = (0..=SPREAD).map(Part::absent).collect();
    (parts[0].total, parts[0].max_uses) = (Some(TOTAL), TOTAL);
    let mut known = vec![None; parts.len()];
    known[0] = Some((1, false));
    let mut is_there = vec![false; parts.len()];
    is_there[0] = true;
    let id = InviteId(Uuid::from_u128((u128::from(case) << 64) + 5));
    let code = Code::parse("WELCOME", CodeCase::Sensitive).unwrap();
    let pool = if of_campaign {
        let made = put_campaign(bench, &home, TOTAL).await;
        assert!(matches!(made, CampaignPut::Created(_)), "{made:?}");
        Pool::Campaign { namespace: home.clone(), name: campaign() }
    } else {
        Pool::Invite { id, code: code.clone() }
    };
    let mut world = World {
        bench,
        home,
        id,
        code,
        pool,
        parts,
        is_there,
        kept_until: vec![Millis::default(); usize::from(SPREAD) + 1],
        known,
        held: Vec::new(),
        granted: Vec::new(),
        before: Vec::new(),
        given: BTreeMap::new(),
        ids: (u128::from(case) << 64) + 100,
        words,
    };
    let created = create(&world, world.id, None).await;
    assert!(matches!(created, Created::Created(_)), "{created:?}");
    let invite = world.shown().await;
    if !of_campaign {
        assert_eq!((invite.max_uses, invite.total), (Some(TOTAL), Some(TOTAL)));
    }
    world.before.push(invite);
    world
}

async fn create(world: &World<'_>, id: InviteId, exhausted: Option<InviteId>) -> Created {
    let create = CreateInvite {
        id,
        namespace: world.home.clone(),
        code: world.code.clone(),
        group: Group::parse("team").unwrap(),
        max_uses: (!world.is_of_campaign()).then_some(TOTAL),
        max_uses_per_user: None,
        campaign: world.is_of_campaign().then(campaign),
        starts_at: None,
        expires_at: None,
        user: None,
        email_domains: Vec::new(),
        metadata: None,
        exhausted,
        actor: "test".to_owned(),
    };
    create.run(&world.bench.gate).await.unwrap()
}

fn histories(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases: cases * effort(),
        failure_persistence: None,
        ..Config::default()
    })
}

#[test]
fn uses_move_as_the_model_says_on_random_histories() {
    model(false, &["not here", "dry: exhausted", "exhausted", "disabled"]);
}

#[test]
fn uses_of_a_campaign_move_as_the_model_says_on_random_histories() {
    model(true, &["made anew", "dry: campaign exhausted", "campaign exhausted"]);
}

/// Every word, and these, must be brought about.
fn model(of_campaign: bool, more: &[&str]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::start());
    let (words, cases) = (RefCell::new(BTreeSet::new()), AtomicU64::new(0));
    histories(300)
        .run(&vec(op(), 10..90), |mut ops| {
            let case = cases.fetch_add(1, Ordering::SeqCst);
            if case == 0 {
                ops.splice(0..0, RARE);
            }
            runtime.block_on(async {
                let mut seen = words.take();
                bench.clock.store(START, Ordering::SeqCst);
                let mut world = world(&bench, case, of_campaign, &mut seen).await;
                for op in &ops {
                    world.step(op).await;
                    world.assert_none_doubled();
                }
                words.replace(seen);
            });
            Ok(())
        })
        .unwrap();
    let wanted = WORDS.iter().chain(more);
    let missing: Vec<_> = wanted.filter(|word| !words.borrow().contains(*word)).collect();
    assert!(missing.is_empty(), "no history brought about {missing:?}");
}

/// Ends with every key as it was before, built anew from what the ledger got, and no law is broken.
#[test]
fn the_ledger_knows_all_shares_and_moves_on_random_histories() {
    carried(false);
}

#[test]
fn the_ledger_knows_all_shares_and_moves_of_a_campaign_on_random_histories() {
    carried(true);
}

fn carried(of_campaign: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    histories(12)
        .run(&vec(op(), 40..120), |ops| {
            runtime.block_on(async {
                let bench = Bench::start().await;
                let mut words = BTreeSet::new();
                let mut world = world(&bench, 0, of_campaign, &mut words).await;
                for (number, op) in ops.iter().enumerate() {
                    world.step(op).await;
                    if number % 30 == 29 {
                        recovery::carry(&bench).await;
                    }
                }
                recovery::carry(&bench).await;
                let broken = bench.ledger.broken_laws(Partition(0)).await.unwrap();
                assert!(broken.is_empty(), "{broken:?}");
                let before = recovery::contents(&bench).await;
                bench.redis.run::<()>(&["FLUSHALL"]).await;
                bench.admit().await;
                assert_eq!(recovery::contents(&bench).await, before);
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn a_shard_has_the_newest_invite_of_a_code_and_no_more_than_its_home_knows() {
    let bench = Bench::start().await;
    let mut words = BTreeSet::new();
    let world = world(&bench, 0, false, &mut words).await;
    let first = world.shown().await;
    let copy = async |invite: &Invite, is_current| {
        let copy = CopyInvite { shard: world.place(1), invite: invite.clone(), is_current };
        copy.run(&bench.gate).await.unwrap()
    };
    let in_shard = async || {
        let which = Which::Code(world.code.clone());
        let question = ShowInvite { namespace: world.place(1), which };
        question.run(&bench.gate).await.unwrap().map(|shown| shown.invite)
    };
    // What has lost its code at home does not come into a shard that has never heard of it.
    assert_eq!(copy(&first, false).await, Copied::Copied);
    assert_eq!(in_shard().await, None);
    assert_eq!(copy(&first, true).await, Copied::Copied);
    let found = in_shard().await.unwrap();
    assert_eq!((found.max_uses, found.total, found.uses), (Some(0), None, 0));
    assert_eq!(found.id, first.id_in(&world.place(1)));

    // Another one takes the code, in the same millisecond.
    let second = InviteId(Uuid::from_u128(6));
    let ended = Some(first.id);
    let Created::Created(made) = create(&world, second, ended).await else {
        panic!("the first one has ended")
    };
    assert!(made.invite.created_at > first.created_at);
    assert_eq!(copy(&made.invite, true).await, Copied::Copied);
    assert_eq!(in_shard().await.unwrap().id, made.invite.id_in(&world.place(1)));
    // The earlier one is still brought up to date there, and does not get the code back.
    let later = |invite: &Invite| Millis::from_ms(invite.updated_at.as_ms() + 1).unwrap();
    let older = Invite { updated_at: later(&first), disabled: true, ..first.clone() };
    assert_eq!(copy(&older, true).await, Copied::Copied);
    assert_eq!(in_shard().await.unwrap().id, made.invite.id_in(&world.place(1)));
    // A shard that has only heard of the later one does not hear of the earlier one any more.
    let late = |invite: &Invite| CopyInvite {
        shard: world.place(2),
        invite: invite.clone(),
        is_current: true,
    };
    assert_eq!(late(&made.invite).run(&bench.gate).await.unwrap(), Copied::Copied);
    assert_eq!(late(&first).run(&bench.gate).await.unwrap(), Copied::Newer);
    // A shard that is not there has no copies.
    let shard = Namespace::parse("nobody").unwrap().shard(1, SPREAD);
    let nowhere = CopyInvite { shard, invite: first, is_current: true };
    assert_eq!(nowhere.run(&bench.gate).await.unwrap(), Copied::NoShard);
}

#[tokio::test]
async fn a_shard_that_has_neither_says_so_of_the_invite_and_of_its_campaign() {
    let bench = Bench::start().await;
    let mut words = BTreeSet::new();
    let world = world(&bench, 0, true, &mut words).await;
    let copy = CopyInvite { shard: world.place(1), invite: world.shown().await, is_current: true };
    assert_eq!(copy.run(&bench.gate).await.unwrap(), Copied::Copied);
    let dry = async |number: u128| {
        let user = UserId::parse(&format!("user-{number}")).unwrap();
        let mode = Mode::Redeem {
            request: RequestId::parse("one").unwrap(),
            redemption: RedemptionId(Uuid::from_u128(number)),
            metadata: None,
            reservation: None,
        };
        match world.redeem(1, &user, mode, true).await {
            Asked::Dry { dry: Dry::Exhausted { campaign, .. }, .. } => campaign,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(dry(1).await, Some(campaign()));
    let (giver, taker) = (world.place(HOME), world.number(1));
    let give = GiveUses { giver, pool: world.pool.clone(), taker, known: 0, divisor: 2 };
    let given = give.run(&bench.gate).await.unwrap().given[&taker].amount;
    let (taker, pool) = (world.place(1), world.pool.clone());
    TakeUses { taker, pool, giver: HOME, given }.run(&bench.gate).await.unwrap();
    assert_eq!(dry(2).await, None);
}

#[tokio::test]
async fn a_shard_has_the_newest_rules_of_its_namespace() {
    let bench = Bench::start().await;
    let mut words = BTreeSet::new();
    let world = world(&bench, 0, false, &mut words).await;
    let old = settings(&bench, &world.home).await;
    let later = |ms| Millis::from_ms(old.updated_at.as_ms() + ms).unwrap();
    let archived_at = Some(later(1));
    let newer = Settings { updated_at: later(1), revision: 2, archived_at, ..old.clone() };
    let copy = async |settings: &Settings| {
        let (shard, settings) = (world.place(1), settings.clone());
        CopyNamespace { shard, settings }.run(&bench.gate).await.unwrap();
    };
    let archived = async || settings(&bench, &world.place(1)).await.archived_at;
    copy(&newer).await;
    assert_eq!(archived().await, archived_at);
    // One that comes late changes nothing.
    copy(&old).await;
    assert_eq!(archived().await, archived_at);
    // A failover has taken that change back, and another one was made: it has the same number.
    copy(&Settings { updated_at: later(2), revision: 2, ..old.clone() }).await;
    assert_eq!(archived().await, None);
}
