//! Histories without a flaw are accepted, and histories that are wrong on purpose are not.

use std::collections::BTreeMap;

use proptest::{
    collection::vec, prelude::*, sample::Index, strategy::ValueTree as _, test_runner::TestRunner,
};
use uuid::Uuid;

use super::*;
use crate::{
    domain::{CampaignName, Cursor, Millis, Partition, Position},
    torture::history::{CampaignRow, Grant, Hold, Release, TakenBack, UsedUp},
};

fn invite(number: u64) -> InviteId {
    InviteId(Uuid::from_u128(u128::from(number)))
}

fn redemption(number: u64) -> RedemptionId {
    RedemptionId(Uuid::from_u128(1_000_000 + u128::from(number)))
}

fn reservation(number: u64) -> ReservationId {
    ReservationId(Uuid::from_u128(2_000_000 + u128::from(number)))
}

fn user(number: u64) -> UserId {
    UserId::parse(&format!("user-{number}")).unwrap()
}

fn campaign() -> CampaignName {
    CampaignName::parse("spring").unwrap()
}

fn position(seq: u64) -> Position {
    Position { partition: Partition(0), cursor: Cursor { epoch: 1, seq } }
}

fn at(number: u64) -> Millis {
    Millis::default().plus_ms(number)
}

/// One request to redeem: which key, and what it names.
#[derive(Debug, Clone, Copy)]
struct Redeem {
    who: u64,
    which: u64,
    key: u64,
    named: Option<ReservationId>,
    /// Whether it asks for the reservation by its id, not for the code.
    confirms: bool,
}

impl Redeem {
    fn plain(who: u64, which: u64) -> Self {
        Self { who, which, key: 0, named: None, confirms: false }
    }
}

/// A service without a flaw that does one thing after the other, and a history of what it told.
struct Simulation {
    max_uses: Vec<u64>,
    /// How many uses the campaign has, and the invites that belong to it.
    campaign: Option<(u64, Vec<u64>)>,
    rows: Vec<RedemptionRow>,
    /// What each key has made.
    made: BTreeMap<(u64, u64, u64), RedemptionId>,
    held: BTreeMap<(u64, u64), ReservationId>,
    spent: BTreeMap<ReservationId, RedemptionId>,
    /// Every reservation of a user, the last one last.
    reserved: BTreeMap<(u64, u64), Vec<ReservationId>>,
    history: History,
    now: u64,
    changes: u64,
    /// What the ledger has.
    saved: Saved,
}

/// What a fault that loses the rest leaves.
#[derive(Debug, Clone, Default)]
struct Saved {
    rows: Vec<RedemptionRow>,
    made: BTreeMap<(u64, u64, u64), RedemptionId>,
    held: BTreeMap<(u64, u64), ReservationId>,
    spent: BTreeMap<ReservationId, RedemptionId>,
}

impl Simulation {
    fn new(max_uses: &[u64]) -> Self {
        Self {
            max_uses: max_uses.to_vec(),
            campaign: None,
            rows: Vec::new(),
            made: BTreeMap::new(),
            held: BTreeMap::new(),
            spent: BTreeMap::new(),
            reserved: BTreeMap::new(),
            history: History::default(),
            now: 0,
            changes: 0,
            saved: Saved::default(),
        }
    }

    /// Where some of the invites belong to a campaign of so many uses.
    fn with_campaign(max_uses: &[u64], of_campaign: u64, invites: &[u64]) -> Self {
        Self { campaign: Some((of_campaign, invites.to_vec())), ..Self::new(max_uses) }
    }

    fn row(&self, id: RedemptionId) -> &RedemptionRow {
        self.rows.iter().find(|row| row.id == id).unwrap()
    }

    fn live(&self) -> impl Iterator<Item = &RedemptionRow> {
        self.rows.iter().filter(|row| row.rolled_back_at.is_none())
    }

    fn again(&self, id: RedemptionId) -> Told {
        let row = self.row(id);
        match row.rolled_back_at {
            Some(at) => Told::RolledBack(TakenBack { id, at }),
            None => granted(row, Durability::Ledger, true),
        }
    }

    /// How many uses of some invites are spent, and how many are held.
    fn used(&self, invites: &[u64]) -> (u64, u64) {
        let is_of = |row: &&RedemptionRow| invites.iter().any(|which| row.invite == invite(*which));
        let held = self.held.keys().filter(|(_, which)| invites.contains(which));
        (self.live().filter(is_of).count() as u64, held.count() as u64)
    }

    /// What limits the uses of an invite, itself first: how many there are, and the invites whose uses count.
    fn limits(&self, which: u64) -> impl Iterator<Item = (UsedUp, u64, Vec<u64>)> {
        let own = (UsedUp::Invite, self.max_uses[usize::try_from(which).unwrap()], vec![which]);
        let campaign = self.campaign.clone().filter(|(_, invites)| invites.contains(&which));
        let campaign = campaign.map(|(max_uses, invites)| (UsedUp::Campaign, max_uses, invites));
        std::iter::once(own).chain(campaign)
    }

    /// Why a user can have no use.
    fn used_up(&self, who: u64, which: u64) -> Option<UsedUp> {
        let own = self.held.contains_key(&(who, which));
        let is_full = |(_, max_uses, invites): &(UsedUp, u64, Vec<u64>)| {
            let (uses, held) = self.used(invites);
            uses >= *max_uses || !own && uses + held >= *max_uses
        };
        self.limits(which).find(is_full).map(|(used_up, ..)| used_up)
    }

    fn decide(&mut self, redeem: Redeem) -> Told {
        self.changes += 1;
        self.decide_as(redeem, redemption(self.changes))
    }

    /// Decides, and grants by this id if it does.
    fn decide_as(&mut self, redeem: Redeem, new: RedemptionId) -> Told {
        let Redeem { who, which, key, named, confirms } = redeem;
        if let Some(id) = named.filter(|_| confirms).and_then(|named| self.spent.get(&named)) {
            return self.again(*id);
        }
        if let Some(id) = self.made.get(&(who, which, key)) {
            return self.again(*id);
        }
        if let Some(row) = self.live().find(|row| row.user == user(who)) {
            let is_own = row.invite == invite(which);
            return if is_own { self.again(row.id) } else { Told::AlreadyMember };
        }
        if named.is_some() && self.held.get(&(who, which)) != named.as_ref() {
            return Told::NotHeld("reservation_expired".to_owned());
        }
        match self.used_up(who, which) {
            Some(UsedUp::Invite) => return Told::Exhausted,
            Some(UsedUp::Campaign) => return Told::CampaignExhausted,
            None => {}
        }
        self.changes += 1;
        let last = self.rows.iter().filter(|row| row.invite == invite(which));
        let last = last.map(|row| row.ordinal).max().unwrap_or_default();
        let row = RedemptionRow {
            id: new,
            user: user(who),
            invite: invite(which),
            ordinal: last + 1,
            position: position(self.changes),
            rolled_back_at: None,
        };
        self.made.insert((who, which, key), row.id);
        if let Some(spent) = self.held.remove(&(who, which)) {
            self.spent.insert(spent, row.id);
        }
        let told = granted(&row, Durability::Ledger, false);
        self.rows.push(row);
        told
    }

    fn decide_hold(&mut self, who: u64, which: u64) -> HoldTold {
        if self.live().any(|row| row.user == user(who) && row.invite == invite(which)) {
            return HoldTold::AlreadyMember;
        }
        if let Some(id) = self.held.get(&(who, which)) {
            return HoldTold::Held(*id);
        }
        if self.live().any(|row| row.user == user(who)) {
            return HoldTold::AlreadyMember;
        }
        match self.used_up(who, which) {
            Some(UsedUp::Invite) => return HoldTold::Exhausted,
            Some(UsedUp::Campaign) => return HoldTold::CampaignExhausted,
            None => {}
        }
        self.changes += 1;
        let id = reservation(self.changes);
        self.held.insert((who, which), id);
        self.reserved.entry((who, which)).or_default().push(id);
        HoldTold::Held(id)
    }

    fn decide_release(&mut self, who: u64, which: u64, id: ReservationId) -> ReleaseTold {
        if let Some(redemption) = self.spent.get(&id) {
            return ReleaseTold::Spent(*redemption);
        }
        if self.held.get(&(who, which)) == Some(&id) {
            self.held.remove(&(who, which));
        }
        ReleaseTold::Released
    }

    fn decide_rollback(&mut self, id: RedemptionId) -> RollbackTold {
        self.changes += 1;
        let now = at(self.changes);
        let row = self.rows.iter_mut().find(|row| row.id == id).unwrap();
        RollbackTold::RolledBack(*row.rolled_back_at.get_or_insert(now))
    }

    /// The ledger gets everything.
    fn save(&mut self) {
        let Self { rows, made, held, spent, .. } = self;
        let (rows, made, held, spent) = (rows.clone(), made.clone(), held.clone(), spent.clone());
        self.saved = Saved { rows, made, held, spent };
    }

    /// What the ledger does not have is lost, but for the grants that somebody was told of if nodes bring them back:
    /// where there is room. Returns those that are lost for now.
    fn lose(&mut self, nodes_live: bool) -> Vec<(Redeem, RedemptionId)> {
        let lost: Vec<_> = self
            .rows
            .iter()
            .filter(|row| !self.saved.rows.iter().any(|it| it.id == row.id))
            .cloned()
            .collect();
        let made = std::mem::take(&mut self.made);
        Saved { rows: self.rows, made: self.made, held: self.held, spent: self.spent } =
            self.saved.clone();
        let mut late = Vec::new();
        for row in lost {
            let is_told = self
                .history
                .operations
                .iter()
                .any(|one| one.grant().is_some_and(|grant| grant.id == row.id));
            let Some((&key, _)) = made.iter().find(|(_, id)| **id == row.id).filter(|_| is_told)
            else {
                continue;
            };
            let (who, which, key) = key;
            let mut limits = self.limits(which);
            let has_room = limits.all(|(_, max_uses, invites)| self.used(&invites).0 < max_uses);
            drop(limits);
            if nodes_live && has_room && self.live().all(|it| it.user != row.user) {
                self.made.insert((who, which, key), row.id);
                if let Some(held) = self.held.remove(&(who, which)) {
                    self.spent.insert(held, row.id);
                }
                self.rows.push(RedemptionRow { rolled_back_at: None, ..row });
            } else if !nodes_live {
                late.push((Redeem { key, ..Redeem::plain(who, which) }, row.id));
            }
        }
        self.save();
        late
    }

    /// When a request was asked and answered that is told of now.
    fn times(&mut self, early: u64, late: u64) -> (Duration, Duration) {
        self.now += 1;
        let invoked = Duration::from_millis((self.now * 10).saturating_sub(early));
        (invoked, Duration::from_millis(self.now * 10 + 1 + late))
    }

    fn tell_of(&mut self, redeem: Redeem, told: Told, (early, late): (u64, u64)) {
        let Redeem { who, which, key, named, .. } = redeem;
        let (invoked, returned) = self.times(early, late);
        self.history.operations.push(Operation {
            invoked,
            returned,
            user: user(who),
            invite: invite(which),
            key: RequestId::parse(&format!("{who}-{which}-{key}")).unwrap(),
            reservation: named,
            asked: Durability::Gate,
            told,
        });
    }

    fn tell(&mut self, who: u64, which: u64, told: Told, early: u64, late: u64) {
        self.tell_of(Redeem::plain(who, which), told, (early, late));
    }

    fn tell_hold(&mut self, who: u64, which: u64, told: HoldTold, (early, late): (u64, u64)) {
        let (invoked, returned) = self.times(early, late);
        let (user, invite) = (user(who), invite(which));
        self.history.holds.push(Hold { invoked, returned, user, invite, told });
    }

    fn tell_release(
        &mut self,
        who: u64,
        which: u64,
        reservation: ReservationId,
        told: ReleaseTold,
        (early, late): (u64, u64),
    ) {
        let (invoked, returned) = self.times(early, late);
        let (user, invite) = (user(who), invite(which));
        self.history.releases.push(Release { invoked, returned, user, invite, reservation, told });
    }

    fn tell_rollback(&mut self, id: RedemptionId, told: RollbackTold, (early, late): (u64, u64)) {
        let (invoked, returned) = self.times(early, late);
        let RedemptionRow { user, invite, .. } = self.row(id).clone();
        self.history.rollbacks.push(Rollback {
            invoked,
            returned,
            user,
            invite,
            redemption: id,
            told,
        });
    }

    /// One request, decided and answered.
    fn ask(&mut self, who: u64, which: u64) -> Told {
        self.ask_for(Redeem::plain(who, which))
    }

    fn ask_for(&mut self, redeem: Redeem) -> Told {
        let told = self.decide(redeem);
        self.tell_of(redeem, told.clone(), (0, 0));
        told
    }

    /// One use that is held, as is told.
    fn hold(&mut self, who: u64, which: u64) -> ReservationId {
        let told = self.decide_hold(who, which);
        self.tell_hold(who, which, told.clone(), (0, 0));
        let HoldTold::Held(id) = told else { panic!("{told:?}") };
        id
    }

    fn release(&mut self, who: u64, which: u64, id: ReservationId) {
        let told = self.decide_release(who, which, id);
        self.tell_release(who, which, id, told, (0, 0));
    }

    /// A redemption that is granted and then taken back, as is told.
    fn granted_and_taken_back(&mut self, who: u64, which: u64) -> RedemptionId {
        let told = self.ask(who, which);
        let Told::Granted(grant) = told else { panic!("{told:?}") };
        self.roll_back(grant.id);
        grant.id
    }

    fn roll_back(&mut self, id: RedemptionId) {
        let told = self.decide_rollback(id);
        self.tell_rollback(id, told, (0, 0));
    }

    fn outcome(&self) -> Outcome {
        let row = |(number, max_uses): (usize, &u64)| {
            let which = number as u64;
            let (uses, held) = self.used(&[which]);
            let belongs = self.campaign.as_ref().is_some_and(|(_, all)| all.contains(&which));
            let campaign = belongs.then(campaign);
            let (code, max_uses) = (format!("CODE-{number}"), *max_uses);
            (invite(which), InviteRow { code, max_uses, uses, held, campaign })
        };
        let of_campaign = |(max_uses, invites): &(u64, Vec<u64>)| {
            (campaign(), CampaignRow { max_uses: *max_uses, uses: self.used(invites).0 })
        };
        Outcome {
            at: Duration::from_millis((self.now + 50) * 10),
            invites: self.max_uses.iter().enumerate().map(row).collect(),
            campaigns: self.campaign.iter().map(of_campaign).collect(),
            redemptions: self.rows.clone(),
            members: self.live().map(|row| (row.user.clone(), Some(row.id))).collect(),
        }
    }

    /// The findings, where nothing may be lost.
    fn check(&self) -> Vec<Finding> {
        check(&self.history, &self.outcome(), MayLose::Nothing)
    }

    /// The findings, where what the ledger does not have may be lost.
    fn check_lossy(&self) -> Vec<Finding> {
        check(&self.history, &self.outcome(), MayLose::BelowLedger)
    }
}

/// Adds a redemption as the ledger would, whether it may be or not.
fn add(simulation: &mut Simulation, who: u64, which: u64, ordinal: u64) -> RedemptionRow {
    let seq = simulation.rows.len() as u64 + 500;
    let row = RedemptionRow {
        id: redemption(seq),
        user: user(who),
        invite: invite(which),
        ordinal,
        position: position(seq),
        rolled_back_at: None,
    };
    simulation.rows.push(row.clone());
    row
}

fn granted(row: &RedemptionRow, durability: Durability, replayed: bool) -> Told {
    Told::Granted(Grant {
        id: row.id,
        ordinal: row.ordinal,
        replayed,
        durability,
        position: row.position,
    })
}

#[track_caller]
fn assert_found(findings: &[Finding], law: Law, words: &str) {
    let found = findings.iter().any(|one| one.law == law && one.what.contains(words));
    assert!(found, "{words:?} is not among {findings:#?}");
}

#[test]
fn a_history_without_a_flaw_is_accepted() {
    let mut simulation = Simulation::new(&[2, 1]);
    for (who, which) in [(1, 0), (1, 0), (2, 1), (2, 0), (3, 0), (4, 0), (4, 1)] {
        simulation.ask(who, which);
    }
    assert_eq!(simulation.check(), []);
}

#[test]
fn one_redemption_too_many_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.ask(1, 0);
    let row = add(&mut simulation, 2, 0, 2);
    simulation.tell(2, 0, granted(&row, Durability::Gate, false), 0, 0);
    let findings = simulation.check();
    assert_found(&findings, Law::NoOverRedemption, "CODE-0 has 1 uses, and the ledger has 2");
    // Also when the ledger has lost one of the two.
    simulation.rows.pop();
    let findings = simulation.check();
    assert_found(&findings, Law::NoOverRedemption, "2 of them were spent or held");
}

#[test]
fn a_use_that_was_granted_twice_is_found() {
    let mut simulation = Simulation::new(&[5]);
    simulation.ask(1, 0);
    let row = add(&mut simulation, 2, 0, 1);
    simulation.tell(2, 0, granted(&row, Durability::Gate, false), 0, 0);
    assert_found(&simulation.check(), Law::NoOverRedemption, "use 1 of CODE-0 was granted 2 times");
}

#[test]
fn a_lost_acknowledgement_is_found() {
    let mut simulation = Simulation::new(&[2]);
    simulation.ask(1, 0);
    simulation.rows.clear();
    assert_found(&simulation.check(), Law::NothingLost, "at level ledger");
    // What the ledger has promised is never lost.
    let outcome = simulation.outcome();
    let findings = check(&simulation.history, &outcome, MayLose::BelowLedger);
    assert_found(&findings, Law::NothingLost, "it is not there");
}

#[test]
fn an_answer_of_the_gate_may_be_lost_by_a_fault_that_may_lose_it_and_by_no_other() {
    let mut simulation = Simulation::new(&[1]);
    let row = add(&mut simulation, 1, 0, 1);
    simulation.tell(1, 0, granted(&row, Durability::Gate, false), 0, 0);
    simulation.rows.clear();
    simulation.ask(2, 0);
    let outcome = simulation.outcome();
    assert_eq!(check(&simulation.history, &outcome, MayLose::BelowLedger), []);
    assert_eq!(lost(&simulation.history, &outcome), 1);
    let findings = check(&simulation.history, &outcome, MayLose::Nothing);
    assert_found(&findings, Law::NothingLost, "at level gate");
    assert_found(&findings, Law::NoOverRedemption, "2 of them were spent or held");
}

#[test]
fn a_double_membership_is_found() {
    let mut simulation = Simulation::new(&[2, 2]);
    simulation.ask(1, 0);
    let row = add(&mut simulation, 1, 1, 1);
    simulation.tell(1, 1, granted(&row, Durability::Gate, false), 0, 0);
    let findings = simulation.check();
    assert_found(&findings, Law::OneMembership, "user-1 has 2 redemptions");
    assert_found(&findings, Law::OneMembership, "user-1 is in 2 groups");
}

#[test]
fn a_member_without_a_redemption_and_a_redemption_without_a_member_are_found() {
    let mut simulation = Simulation::new(&[2]);
    simulation.ask(1, 0);
    let mut outcome = simulation.outcome();
    outcome.members[0].0 = user(2);
    let findings = check(&simulation.history, &outcome, MayLose::Nothing);
    assert_found(&findings, Law::OneMembership, "by no redemption of that user");
    assert_found(&findings, Law::OneMembership, "is no member by it");
}

#[test]
fn a_phantom_is_found() {
    let mut simulation = Simulation::new(&[2]);
    simulation.ask(1, 0);
    add(&mut simulation, 9, 0, 2);
    assert_found(&simulation.check(), Law::NothingLost, "user-9, which nobody asked for");
}

#[test]
fn a_redemption_whose_request_was_said_to_have_done_nothing_is_a_phantom() {
    let mut simulation = Simulation::new(&[2]);
    simulation.tell(1, 0, Told::NothingDone("fenced".to_owned()), 0, 0);
    add(&mut simulation, 1, 0, 1);
    assert_found(&simulation.check(), Law::NothingLost, "which nobody asked for");
}

#[test]
fn a_refusal_while_a_use_is_free_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.tell(2, 0, Told::Exhausted, 0, 0);
    simulation.ask(1, 0);
    assert_found(&simulation.check(), Law::NoFalseRefusal, "user-2 was told at 0.011 s that all 1");
}

#[test]
fn uses_that_are_left_though_enough_have_asked_are_found() {
    let mut simulation = Simulation::new(&[2]);
    simulation.ask(1, 0);
    simulation.tell(2, 0, Told::Exhausted, 0, 0);
    assert_found(&simulation.check(), Law::NoFalseRefusal, "in the end 1 are spent and 0 held");
}

#[test]
fn a_member_of_nothing_who_is_refused_as_a_member_is_found() {
    let mut simulation = Simulation::new(&[2, 2]);
    simulation.tell(1, 0, Told::AlreadyMember, 0, 0);
    assert_found(&simulation.check(), Law::NoFalseRefusal, "and was in none");
}

#[test]
fn a_key_that_is_answered_with_two_ids_is_found() {
    let mut simulation = Simulation::new(&[3]);
    simulation.ask(1, 0);
    let row = add(&mut simulation, 1, 0, 2);
    simulation.tell(1, 0, granted(&row, Durability::Ledger, false), 0, 0);
    assert_found(
        &simulation.check(),
        Law::KnownAnswer,
        "the key 1-0-0 of user-1 was answered with",
    );
}

#[test]
fn a_key_that_is_granted_and_then_refused_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.ask(1, 0);
    simulation.tell(1, 0, Told::Exhausted, 0, 0);
    let findings = simulation.check();
    assert_found(&findings, Law::KnownAnswer, "and refused at");
    assert_found(&findings, Law::KnownAnswer, "was a refusal, and the ledger has");
}

#[test]
fn a_key_that_stays_unknown_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.tell(1, 0, Told::Unknown("cut".to_owned()), 0, 0);
    assert_found(&simulation.check(), Law::KnownAnswer, "never became known");
}

#[test]
fn a_replay_of_what_nobody_asked_for_before_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.decide(Redeem::plain(1, 0));
    simulation.tell(1, 0, Told::NothingDone("fenced".to_owned()), 0, 0);
    simulation.ask(1, 0);
    assert_found(&simulation.check(), Law::KnownAnswer, "had not asked for CODE-0 before");
}

#[test]
fn an_answer_that_nobody_should_get_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.tell(1, 0, Told::Unexpected("internal".to_owned()), 0, 0);
    assert_found(&simulation.check(), Law::KnownAnswer, "was answered: internal");
}

#[test]
fn a_level_that_was_asked_for_and_not_reached_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.ask(1, 0);
    let operation = &mut simulation.history.operations[0];
    operation.asked = Durability::Ledger;
    if let Told::Granted(grant) = &mut operation.told {
        grant.durability = Durability::Gate;
    }
    assert_found(&simulation.check(), Law::KnownAnswer, "asked for level ledger");
}

#[test]
fn holds_and_rollbacks_without_a_flaw_are_accepted() {
    let mut simulation = Simulation::new(&[1, 2]);
    let held = simulation.hold(1, 0);
    assert_eq!(simulation.ask(2, 0), Told::Exhausted);
    simulation.ask_for(Redeem { named: Some(held), ..Redeem::plain(1, 0) });
    simulation.ask_for(Redeem { named: Some(held), confirms: true, key: 1, ..Redeem::plain(1, 0) });
    let id = simulation.granted_and_taken_back(3, 1);
    assert!(matches!(simulation.ask(3, 1), Told::RolledBack(it) if it.id == id));
    simulation.ask_for(Redeem { key: 1, ..Redeem::plain(3, 1) });
    let held = simulation.hold(4, 1);
    simulation.release(4, 1, held);
    simulation.hold(5, 1);
    assert_eq!(simulation.check(), []);
    assert_eq!(simulation.check_lossy(), []);
}

#[test]
fn a_hold_that_is_given_to_another_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.hold(1, 0);
    // Whether the hold is still there in the end or not.
    for held in [true, false] {
        if !held {
            simulation.held.clear();
        }
        let row = add(&mut simulation, 2, 0, 1);
        simulation.tell(2, 0, granted(&row, Durability::Gate, false), 0, 0);
        assert_found(&simulation.check(), Law::NoOverRedemption, "2 of them were spent or held");
        simulation.rows.clear();
        simulation.history.operations.clear();
    }
}

#[test]
fn a_use_that_is_held_for_two_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.hold(1, 0);
    simulation.tell_hold(2, 0, HoldTold::Held(reservation(99)), (0, 0));
    assert_found(&simulation.check(), Law::NoOverRedemption, "2 of them were spent or held");
}

#[test]
fn a_use_that_was_granted_while_all_were_held_is_found_also_if_that_is_over() {
    let mut simulation = Simulation::new(&[1]);
    let held = simulation.hold(1, 0);
    let row = add(&mut simulation, 2, 0, 1);
    simulation.tell(2, 0, granted(&row, Durability::Gate, false), 0, 0);
    simulation.release(1, 0, held);
    assert_found(&simulation.check(), Law::NoOverRedemption, "at 0.021 s 2 of them");
    // Had somebody asked to give it back before, it might be.
    simulation.history.releases[0].invoked = Duration::from_millis(15);
    simulation.history.releases[0].told = ReleaseTold::Unknown("cut".to_owned());
    assert_eq!(simulation.check(), []);
}

#[test]
fn a_use_that_was_granted_before_another_was_taken_back_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.ask(1, 0);
    let row = add(&mut simulation, 2, 0, 2);
    simulation.tell(2, 0, granted(&row, Durability::Gate, false), 0, 0);
    let first = simulation.rows[0].id;
    simulation.roll_back(first);
    assert_found(&simulation.check(), Law::NoOverRedemption, "at 0.021 s 2 of them");
}

#[test]
fn a_number_that_was_given_out_again_and_one_too_high_are_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.granted_and_taken_back(1, 0);
    simulation.ask(2, 0);
    assert_eq!(simulation.check(), []);
    for (ordinal, words) in
        [(1, "use 1 of CODE-0 was granted 2 times"), (3, "which has 1, and 1 were taken back")]
    {
        simulation.rows[1].ordinal = ordinal;
        assert_found(&simulation.check(), Law::NoOverRedemption, words);
    }
}

#[test]
fn a_refusal_after_the_only_use_was_given_back_is_found() {
    let mut simulation = Simulation::new(&[1]);
    let held = simulation.hold(1, 0);
    simulation.tell(2, 0, Told::Exhausted, 0, 0);
    simulation.release(1, 0, held);
    assert_eq!(simulation.check(), []);
    simulation.tell(3, 0, Told::Exhausted, 0, 0);
    assert_found(&simulation.check(), Law::NoFalseRefusal, "when at most 0 were");

    let mut simulation = Simulation::new(&[1]);
    simulation.granted_and_taken_back(1, 0);
    simulation.tell_hold(2, 0, HoldTold::Exhausted, (0, 0));
    assert_found(&simulation.check(), Law::NoFalseRefusal, "when at most 0 were");
}

#[test]
fn a_refusal_by_what_one_holds_oneself_is_found() {
    let mut simulation = Simulation::new(&[1]);
    simulation.hold(1, 0);
    simulation.tell(1, 0, Told::Exhausted, 0, 0);
    let findings = simulation.check();
    assert_found(&findings, Law::NoFalseRefusal, "when at most 0 were");
    assert_found(&findings, Law::NothingLost, "and was told at 0.021 s that no use is left");
}

#[test]
fn a_use_that_is_free_in_the_end_though_nobody_gave_it_back_is_found() {
    let mut simulation = Simulation::new(&[2]);
    simulation.ask(1, 0);
    let told = simulation.decide_hold(2, 0);
    simulation.tell_hold(2, 0, HoldTold::Unknown("cut".to_owned()), (0, 0));
    assert!(matches!(told, HoldTold::Held(_)));
    assert_eq!(simulation.ask(3, 0), Told::Exhausted);
    assert_eq!(simulation.check(), []);
    simulation.held.clear();
    let findings = simulation.check();
    assert_found(&findings, Law::NoFalseRefusal, "1 are spent and 0 held, when 0 may");
}

#[test]
fn a_refusal_as_a_member_by_what_was_taken_back_is_found() {
    let mut simulation = Simulation::new(&[2, 2]);
    simulation.granted_and_taken_back(1, 0);
    simulation.tell(1, 1, Told::AlreadyMember, 0, 0);
    assert_found(&simulation.check(), Law::NoFalseRefusal, "and was in none");
    // It may be so as long as the rollback may not be done yet.
    simulation.history.rollbacks[0].returned = Duration::from_millis(35);
    assert_eq!(simulation.check(), []);
}

#[test]
fn two_redemptions_since_one_that_was_taken_back_has_come_back_are_found() {
    let mut simulation = Simulation::new(&[2, 2]);
    simulation.granted_and_taken_back(1, 0);
    simulation.ask(1, 1);
    assert_eq!(simulation.check(), []);
    simulation.rows[0].rolled_back_at = None;
    let findings = simulation.check();
    assert_found(&findings, Law::OneMembership, "user-1 has 2 redemptions");
    assert_found(&findings, Law::NothingLost, "and the ledger has Some(RedemptionRow");
    // A fault may lose the rollback; that both stand is wrong all the same.
    assert_found(&simulation.check_lossy(), Law::OneMembership, "user-1 has 2 redemptions");
}

#[test]
fn a_second_redemption_before_the_first_was_taken_back_is_found() {
    let mut simulation = Simulation::new(&[2, 2]);
    simulation.ask(1, 0);
    let row = add(&mut simulation, 1, 1, 1);
    simulation.tell(1, 1, granted(&row, Durability::Gate, false), 0, 0);
    let first = simulation.rows[0].id;
    simulation.roll_back(first);
    assert_found(&simulation.check(), Law::OneMembership, "user-1 has 2 redemptions");
}

#[test]
fn a_member_by_what_was_taken_back_is_found() {
    let mut simulation = Simulation::new(&[2]);
    let id = simulation.granted_and_taken_back(1, 0);
    let mut outcome = simulation.outcome();
    outcome.members.push((user(1), Some(id)));
    let findings = check(&simulation.history, &outcome, MayLose::Nothing);
    assert_found(&findings, Law::OneMembership, "by no redemption of that user");
}

#[test]
fn a_rollback_that_is_lost_is_found_unless_a_fault_may_lose_it() {
    let mut simulation = Simulation::new(&[2]);
    simulation.granted_and_taken_back(1, 0);
    simulation.rows[0].rolled_back_at = None;
    assert_found(&simulation.check(), Law::NothingLost, "was taken back at 1970");
    assert_eq!(simulation.check_lossy(), []);
    // What was lost may be told as standing again.
    simulation.made.clear();
    let told = granted(&simulation.rows[0], Durability::Ledger, true);
    simulation.tell(1, 0, told, 0, 0);
    assert_eq!(simulation.check_lossy(), []);
}

#[test]
fn a_rollback_that_nobody_asked_for_is_found() {
    let mut simulation = Simulation::new(&[2]);
    simulation.ask(1, 0);
    simulation.rows[0].rolled_back_at = Some(at(1));
    for findings in [simulation.check(), simulation.check_lossy()] {
        assert_found(&findings, Law::NothingLost, "was taken back, which nobody asked for");
    }
    // Nor by one of which it was said that nothing was done.
    let id = simulation.rows[0].id;
    simulation.tell_rollback(id, RollbackTold::NothingDone("fenced".to_owned()), (0, 0));
    assert_found(&simulation.check(), Law::NothingLost, "which nobody asked for");
    simulation.tell_rollback(id, RollbackTold::Unknown("cut".to_owned()), (0, 0));
    assert_eq!(simulation.check(), []);
}

#[test]
fn an_answer_that_something_was_taken_back_which_nobody_asked_for_is_found() {
    let mut simulation = Simulation::new(&[2]);
    let Told::Granted(Grant { id, .. }) = simulation.ask(1, 0) else { panic!() };
    simulation.tell(1, 0, Told::RolledBack(TakenBack { id, at: at(1) }), 0, 0);
    for findings in [simulation.check(), simulation.check_lossy()] {
        assert_found(&findings, Law::KnownAnswer, "which nobody had asked for");
    }
}

#[test]
fn a_redemption_that_is_told_as_standing_after_it_was_taken_back_is_found() {
    let mut simulation = Simulation::new(&[2]);
    simulation.granted_and_taken_back(1, 0);
    let told = granted(&simulation.rows[0], Durability::Ledger, true);
    simulation.tell(1, 0, told, 0, 0);
    assert_found(&simulation.check(), Law::KnownAnswer, "which was taken back at 0.021 s");
}

#[test]
fn a_key_that_is_granted_anew_after_a_rollback_is_found() {
    let mut simulation = Simulation::new(&[2]);
    let id = simulation.granted_and_taken_back(1, 0);
    simulation.made.clear();
    simulation.ask(1, 0);
    let findings = simulation.check();
    assert_found(&findings, Law::KnownAnswer, "the key 1-0-0 of user-1 was answered with");
    // Also when the new one is told as if another key might have made it, and when the key is refused.
    let other = Redeem { key: 1, ..Redeem::plain(1, 0) };
    simulation.tell_of(other, Told::Unknown("cut".to_owned()), (30, 0));
    let Told::Granted(grant) = &mut simulation.history.operations[1].told else { panic!() };
    grant.replayed = true;
    assert_found(&simulation.check(), Law::KnownAnswer, &format!("had made {id}, and was told of"));
    simulation.rows.pop();
    simulation.history.operations[1].told = Told::AlreadyMember;
    assert_found(&simulation.check(), Law::KnownAnswer, "and refused at");
}

#[test]
fn a_rollback_with_two_moments_is_found() {
    let mut simulation = Simulation::new(&[2]);
    let id = simulation.granted_and_taken_back(1, 0);
    simulation.tell_rollback(id, RollbackTold::RolledBack(at(77)), (0, 0));
    let findings = simulation.check();
    assert_found(&findings, Law::KnownAnswer, "was taken back at 1970-01-01T00:00:00.003Z and");
    assert_found(&findings, Law::NothingLost, "was taken back at 1970-01-01T00:00:00.077Z, and");
}

#[test]
fn a_redemption_that_is_not_there_to_be_taken_back_is_found() {
    let mut simulation = Simulation::new(&[2]);
    let Told::Granted(Grant { id, .. }) = simulation.ask(1, 0) else { panic!() };
    simulation.tell_rollback(id, RollbackTold::NotFound, (0, 0));
    for findings in [simulation.check(), simulation.check_lossy()] {
        assert_found(&findings, Law::NothingLost, "that there is no redemption");
    }
    let Told::Granted(grant) = &mut simulation.history.operations[0].told else { panic!() };
    grant.durability = Durability::Gate;
    assert_eq!(simulation.check_lossy(), []);
}

#[test]
fn a_hold_that_holds_nothing_when_it_is_confirmed_is_found_unless_a_fault_may_lose_it() {
    let mut simulation = Simulation::new(&[2]);
    let held = simulation.hold(1, 0);
    simulation.held.clear();
    let confirm = Redeem { named: Some(held), ..Redeem::plain(1, 0) };
    assert_eq!(simulation.ask_for(confirm), Told::NotHeld("reservation_expired".to_owned()));
    assert_found(&simulation.check(), Law::NothingLost, "that it holds nothing");
    assert_eq!(simulation.check_lossy(), []);
    // One who has asked to give it back may have done so.
    simulation.tell_release(1, 0, held, ReleaseTold::Unknown("cut".to_owned()), (25, 0));
    assert_eq!(simulation.check(), []);
}

#[test]
fn a_hold_that_nobody_ended_and_is_not_there_in_the_end_is_found_unless_a_fault_may_lose_it() {
    let mut simulation = Simulation::new(&[2]);
    simulation.hold(1, 0);
    simulation.held.clear();
    assert_found(&simulation.check(), Law::NothingLost, "1 to 1 uses of CODE-0 must be held");
    assert_eq!(simulation.check_lossy(), []);
    // It may also run out.
    let mut outcome = simulation.outcome();
    outcome.at += crate::torture::history::HELD_FOR;
    assert_eq!(check(&simulation.history, &outcome, MayLose::Nothing), []);
}

#[test]
fn a_hold_that_nobody_asked_for_and_one_that_was_given_back_are_found() {
    let mut simulation = Simulation::new(&[2]);
    simulation.held.insert((1, 0), reservation(1));
    for findings in [simulation.check(), simulation.check_lossy()] {
        assert_found(&findings, Law::NothingLost, "0 to 0 uses of CODE-0 must be held");
    }
    simulation.held.clear();
    let held = simulation.hold(1, 0);
    simulation.release(1, 0, held);
    simulation.held.insert((1, 0), held);
    assert_found(&simulation.check(), Law::NothingLost, "0 to 0 uses of CODE-0 must be held");
    assert_eq!(simulation.check_lossy(), []);
}

#[test]
fn two_reservations_of_one_user_are_found() {
    let mut simulation = Simulation::new(&[5]);
    simulation.hold(1, 0);
    simulation.tell_hold(1, 0, HoldTold::Held(reservation(99)), (0, 0));
    assert_found(&simulation.check(), Law::KnownAnswer, "user-1 held 2 uses of CODE-0");
}

#[test]
fn a_release_that_is_answered_with_a_redemption_of_nobodys_or_with_nothing_is_found() {
    let mut simulation = Simulation::new(&[5]);
    let held = simulation.hold(1, 0);
    simulation.tell_release(1, 0, held, ReleaseTold::Spent(redemption(9)), (0, 0));
    assert_found(&simulation.check(), Law::NothingLost, "which the user had not asked for");
    simulation.history.releases[0].told = ReleaseTold::NotFound;
    assert_found(&simulation.check(), Law::NothingLost, "that there is no reservation");
    assert_eq!(simulation.check_lossy(), []);
}

#[test]
fn a_refusal_while_an_earlier_request_of_the_same_key_is_under_way_may_be_followed_by_its_grant() {
    let mut simulation = Simulation::new(&[1]);
    let Told::Granted(Grant { id, .. }) = simulation.ask(1, 0) else { panic!() };
    assert_eq!(simulation.ask(2, 0), Told::Exhausted);
    simulation.roll_back(id);
    let told = simulation.decide(Redeem::plain(2, 0));
    simulation.tell(2, 0, told, 30, 0);
    assert_eq!(simulation.check(), []);
    // Not so if nothing became free after the refusal.
    simulation.history.operations[1].invoked = Duration::from_millis(35);
    assert_found(&simulation.check(), Law::KnownAnswer, "was a refusal, and the ledger has");
}

/// Two invites of three uses each that belong to a campaign of three, and one that belongs to none.
fn sharing() -> Simulation {
    Simulation::with_campaign(&[3, 3, 1], 3, &[0, 1])
}

#[test]
fn a_campaign_without_a_flaw_is_accepted() {
    let mut simulation = sharing();
    let held = simulation.hold(1, 0);
    let Told::Granted(Grant { id, .. }) = simulation.ask(2, 0) else { panic!() };
    simulation.ask(3, 1);
    assert_eq!(simulation.ask(4, 0), Told::CampaignExhausted);
    assert_eq!(simulation.ask(5, 1), Told::CampaignExhausted);
    let told = simulation.decide_hold(6, 1);
    assert_eq!(told, HoldTold::CampaignExhausted);
    simulation.tell_hold(6, 1, told, (0, 0));
    assert!(matches!(simulation.ask(7, 2), Told::Granted(_)));
    simulation.roll_back(id);
    assert!(matches!(simulation.ask(5, 1), Told::Granted(_)));
    let spent = Redeem { named: Some(held), ..Redeem::plain(1, 0) };
    assert!(matches!(simulation.ask_for(spent), Told::Granted(_)));
    assert_eq!(simulation.ask(8, 1), Told::CampaignExhausted);
    assert_eq!(simulation.check(), []);
    assert_eq!(simulation.check_lossy(), []);
}

#[test]
fn one_use_of_a_campaign_too_many_is_found() {
    let mut simulation = sharing();
    for (who, which) in [(1, 0), (2, 0), (3, 1)] {
        simulation.ask(who, which);
    }
    let row = add(&mut simulation, 4, 1, 2);
    simulation.tell(4, 1, granted(&row, Durability::Ledger, false), 0, 0);
    for findings in [simulation.check(), simulation.check_lossy()] {
        assert_found(
            &findings,
            Law::NoOverRedemption,
            "the campaign spring has 3 uses, and the ledger has 4 redemptions of it and 0 are held",
        );
        assert_found(&findings, Law::NoOverRedemption, "4 of them were spent or held");
        assert_eq!(findings.len(), 2, "{findings:#?}");
    }
    // Also when one of them has been taken back since.
    let first = simulation.rows[0].id;
    simulation.roll_back(first);
    let findings = simulation.check();
    assert_found(
        &findings,
        Law::NoOverRedemption,
        "the campaign spring has 3 uses, and at 0.041 s 4 of them were spent or held",
    );
    assert_eq!(findings.len(), 1, "{findings:#?}");
    // Had that been asked for before, it might be.
    simulation.history.rollbacks[0].invoked = Duration::from_millis(35);
    assert_eq!(simulation.check(), []);
}

#[test]
fn a_use_of_a_campaign_that_is_held_for_one_too_many_is_found() {
    let mut simulation = sharing();
    for (who, which) in [(1, 0), (2, 0)] {
        simulation.ask(who, which);
    }
    simulation.hold(3, 1);
    simulation.held.insert((4, 1), reservation(99));
    simulation.tell_hold(4, 1, HoldTold::Held(reservation(99)), (0, 0));
    let findings = simulation.check();
    assert_found(
        &findings,
        Law::NoOverRedemption,
        "the campaign spring has 3 uses, and the ledger has 2 redemptions of it and 2 are held",
    );
    assert_found(&findings, Law::NoOverRedemption, "at 0.041 s 4 of them were spent or held");
    assert_eq!(findings.len(), 2, "{findings:#?}");
}

#[test]
fn a_campaign_that_counts_wrong_is_found() {
    let mut simulation = sharing();
    simulation.ask(1, 0);
    simulation.ask(2, 2);
    let mut outcome = simulation.outcome();
    outcome.campaigns.get_mut(&campaign()).unwrap().uses += 1;
    for may_lose in [MayLose::Nothing, MayLose::BelowLedger] {
        let findings = check(&simulation.history, &outcome, may_lose);
        assert_found(
            &findings,
            Law::NoOverRedemption,
            "the campaign spring says that 2 uses are spent, and the ledger has 1 redemptions",
        );
        assert_eq!(findings.len(), 1, "{findings:#?}");
    }
}

#[test]
fn a_refusal_by_a_campaign_that_has_a_use_left_is_found() {
    let mut simulation = sharing();
    simulation.ask(1, 0);
    simulation.hold(2, 1);
    simulation.tell(4, 0, Told::CampaignExhausted, 0, 0);
    simulation.tell_hold(5, 1, HoldTold::CampaignExhausted, (0, 0));
    simulation.ask(3, 0);
    for findings in [simulation.check(), simulation.check_lossy()] {
        for told in ["user-4 was told at 0.031 s", "user-5 was told at 0.041 s"] {
            let words = format!(
                "{told} that all 3 uses of the campaign spring are spent or held, when at most 2"
            );
            assert_found(&findings, Law::NoFalseRefusal, &words);
        }
        assert_eq!(findings.len(), 2, "{findings:#?}");
    }
    // Had the third one asked before, it might be so.
    simulation.history.operations[2].invoked = Duration::from_millis(25);
    assert_eq!(simulation.check(), []);
}

#[test]
fn a_refusal_after_a_use_of_the_campaign_was_given_back_is_found() {
    let mut simulation = sharing();
    let held = simulation.hold(1, 0);
    let Told::Granted(Grant { id, .. }) = simulation.ask(2, 1) else { panic!() };
    simulation.ask(3, 1);
    assert_eq!(simulation.ask(4, 0), Told::CampaignExhausted);
    simulation.release(1, 0, held);
    assert_eq!(simulation.check(), []);
    simulation.tell(5, 0, Told::CampaignExhausted, 0, 0);
    assert_found(&simulation.check(), Law::NoFalseRefusal, "when at most 2 were");
    simulation.roll_back(id);
    simulation.tell(6, 0, Told::CampaignExhausted, 0, 0);
    assert_found(&simulation.check(), Law::NoFalseRefusal, "when at most 1 were");
}

#[test]
fn a_refusal_by_a_campaign_of_which_one_holds_a_use_oneself_is_found() {
    let mut simulation = sharing();
    simulation.hold(1, 0);
    for (who, which) in [(2, 0), (3, 1)] {
        simulation.ask(who, which);
    }
    simulation.tell(1, 0, Told::CampaignExhausted, 0, 0);
    let findings = simulation.check();
    assert_found(&findings, Law::NoFalseRefusal, "when at most 2 were");
    assert_found(&findings, Law::NothingLost, "at 0.041 s that no use of its campaign is left");
    simulation.history.operations.pop();
    // What one holds of another of its invites is of no use here.
    assert_eq!(simulation.ask(1, 1), Told::CampaignExhausted);
    assert_eq!(simulation.check(), []);
    // Who has one held and asks again is told of that one.
    simulation.tell_hold(1, 0, HoldTold::CampaignExhausted, (0, 0));
    assert_found(&simulation.check(), Law::NothingLost, "was told at 0.061 s that no use is left");
}

#[test]
fn a_use_of_a_campaign_that_is_free_in_the_end_though_nobody_gave_it_back_is_found() {
    let mut simulation = sharing();
    for (who, which) in [(1, 0), (2, 1)] {
        simulation.ask(who, which);
    }
    let told = simulation.decide_hold(3, 1);
    simulation.tell_hold(3, 1, HoldTold::Unknown("cut".to_owned()), (0, 0));
    assert!(matches!(told, HoldTold::Held(_)));
    assert_eq!(simulation.ask(4, 0), Told::CampaignExhausted);
    assert_eq!(simulation.check(), []);
    simulation.held.clear();
    let findings = simulation.check();
    assert_found(
        &findings,
        Law::NoFalseRefusal,
        "all 3 uses of the campaign spring were spent or held, and in the end 2 are spent and 0 held, when 0 may",
    );
    assert_eq!(findings.len(), 1, "{findings:#?}");
    // A fault may have taken it.
    assert_eq!(simulation.check_lossy(), []);
}

#[test]
fn a_campaign_that_is_not_the_invites_or_not_there_is_found() {
    let mut simulation = sharing();
    simulation.tell(1, 2, Told::CampaignExhausted, 0, 0);
    let words = "user-1 was refused CODE-2 at 0.011 s by a limit that is not there";
    assert_found(&simulation.check(), Law::NoFalseRefusal, words);
    let mut outcome = sharing().outcome();
    outcome.campaigns.clear();
    let findings = check(&History::default(), &outcome, MayLose::BelowLedger);
    assert_found(&findings, Law::NothingLost, "CODE-1 belongs to the campaign spring, which is");
}

#[test]
fn a_key_that_is_granted_and_then_refused_by_the_campaign_is_found() {
    let mut simulation = sharing();
    simulation.ask(1, 0);
    simulation.tell(1, 0, Told::CampaignExhausted, 0, 0);
    let findings = simulation.check();
    assert_found(&findings, Law::KnownAnswer, "and refused at");
    assert_found(&findings, Law::KnownAnswer, "was a refusal, and the ledger has");
}

#[test]
fn a_refusal_by_a_campaign_may_be_followed_by_a_grant_once_another_of_its_invites_has_given_back() {
    let mut simulation = Simulation::with_campaign(&[3, 3], 1, &[0, 1]);
    let Told::Granted(Grant { id, .. }) = simulation.ask(1, 0) else { panic!() };
    assert_eq!(simulation.ask(2, 1), Told::CampaignExhausted);
    simulation.roll_back(id);
    let told = simulation.decide(Redeem::plain(2, 1));
    simulation.tell(2, 1, told, 30, 0);
    assert_eq!(simulation.check(), []);
    // Not so if the invite itself was used up, and not if nothing became free after the refusal.
    simulation.history.operations[1].told = Told::Exhausted;
    assert_found(&simulation.check(), Law::KnownAnswer, "was a refusal, and the ledger has");
    simulation.history.operations[1].told = Told::CampaignExhausted;
    simulation.history.operations[1].invoked = Duration::from_millis(35);
    assert_found(&simulation.check(), Law::KnownAnswer, "was a refusal, and the ledger has");
}

/// What a client knows of one request of a random history.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Answered,
    ReplyLost,
    /// Nobody waits for it any more when it is done.
    Late,
    NeverArrived,
    Refused,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// With which of the user's keys, and whether naming a reservation, by its id or with the code.
    Redeem {
        key: u64,
        named: Option<bool>,
    },
    Hold,
    Release,
    RollBack,
    /// Redis forgets what the ledger does not have; whether the nodes that told of it live.
    Forget {
        nodes_live: bool,
    },
}

type Request = (u64, u64, Act, Fate, u64, u64);

fn requests(may_forget: bool) -> impl Strategy<Value = Vec<Request>> {
    let fate = prop_oneof![
        6 => Just(Fate::Answered),
        2 => Just(Fate::ReplyLost),
        1 => Just(Fate::Late),
        1 => Just(Fate::NeverArrived),
        1 => Just(Fate::Refused),
    ];
    let act = prop_oneof![
        6 => (0..2_u64, proptest::option::weighted(0.3, any::<bool>()))
            .prop_map(|(key, named)| Act::Redeem { key, named }),
        3 => Just(Act::Hold),
        2 => Just(Act::Release),
        3 => Just(Act::RollBack),
        u32::from(may_forget) => any::<bool>().prop_map(|nodes_live| Act::Forget { nodes_live }),
    ];
    vec((0..12_u64, 0..3_u64, act, fate, 0..100_u64, 0..100_u64), 1..100)
}

/// A request whose objects are known.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Redeem(Redeem),
    Hold(u64, u64),
    Release(u64, u64, ReservationId),
    RollBack(RedemptionId),
    /// By a node that was away when what it had told was lost.
    GrantAgain(Redeem, RedemptionId),
}

impl Simulation {
    /// Nothing, where there is nothing to give back.
    fn asked(&self, (who, which, act, ..): Request) -> Option<Asked> {
        let reserved = self.reserved.get(&(who, which)).and_then(|all| all.last()).copied();
        Some(match act {
            Act::Redeem { key, named } => Asked::Redeem(Redeem {
                who,
                which,
                key,
                named: reserved.filter(|_| named.is_some()),
                confirms: named == Some(true),
            }),
            Act::Hold => Asked::Hold(who, which),
            Act::Release => Asked::Release(who, which, reserved?),
            Act::RollBack => {
                let is_own =
                    |row: &&RedemptionRow| row.user == user(who) && row.invite == invite(which);
                Asked::RollBack(self.rows.iter().rev().find(is_own)?.id)
            }
            Act::Forget { .. } => return None,
        })
    }

    /// Does what is asked, or not; tells what came of it, or not.
    fn act(&mut self, asked: Asked, fate: Fate, times: (u64, u64)) {
        let is_done = matches!(fate, Fate::Answered | Fate::ReplyLost);
        macro_rules! told {
            ($told:ident, $decided:expr) => {{
                let decided = is_done.then(|| $decided);
                match (fate, decided) {
                    (Fate::Answered, Some(told)) => told,
                    (Fate::Refused, _) => $told::NothingDone("fenced".to_owned()),
                    _ => $told::Unknown("cut".to_owned()),
                }
            }};
        }
        match asked {
            Asked::Redeem(redeem) => {
                let mut told = told!(Told, self.decide(redeem));
                if let Told::Granted(grant) = &mut told {
                    // Some ask for no more than the gate.
                    if times.0.is_multiple_of(2) {
                        grant.durability = Durability::Gate;
                    } else {
                        self.save();
                    }
                }
                self.tell_of(redeem, told, times);
            }
            Asked::Hold(who, which) => {
                let told = told!(HoldTold, self.decide_hold(who, which));
                self.tell_hold(who, which, told, times);
            }
            Asked::Release(who, which, id) => {
                let told = told!(ReleaseTold, self.decide_release(who, which, id));
                self.tell_release(who, which, id, told, times);
            }
            Asked::RollBack(id) => {
                let told = told!(RollbackTold, self.decide_rollback(id));
                self.tell_rollback(id, told, times);
            }
            Asked::GrantAgain(..) => self.act_late(asked),
        }
    }

    /// Does what nobody waits for.
    fn act_late(&mut self, asked: Asked) {
        match asked {
            Asked::Redeem(redeem) => drop(self.decide(redeem)),
            Asked::Hold(who, which) => drop(self.decide_hold(who, which)),
            Asked::Release(who, which, id) => drop(self.decide_release(who, which, id)),
            // It may be lost by now.
            Asked::RollBack(id) if self.rows.iter().any(|row| row.id == id) => {
                drop(self.decide_rollback(id));
            }
            Asked::RollBack(_) => {}
            Asked::GrantAgain(redeem, id) => drop(self.decide_as(redeem, id)),
        }
    }
}

/// A legal history: what overlaps and what is unknown is so for the clients alone. Two of the invites belong to a campaign
/// of so many uses.
fn legal(of_campaign: u64, requests: &[Request]) -> Simulation {
    let mut simulation = Simulation::with_campaign(&[2, 3, 1], of_campaign, &[0, 1]);
    let mut under_way = Vec::new();
    let mut unknown = BTreeMap::new();
    for (number, request) in requests.iter().enumerate() {
        // Some time later.
        under_way.retain(|(done, asked)| {
            let is_due = *done == number;
            if is_due {
                simulation.act_late(*asked);
            }
            !is_due
        });
        let &(.., act, fate, early, late) = request;
        let later = number + 1 + usize::try_from(late / 5).unwrap();
        if let Act::Forget { nodes_live } = act {
            let lost = simulation.lose(nodes_live).into_iter();
            under_way.extend(lost.map(|(redeem, id)| (later, Asked::GrantAgain(redeem, id))));
        }
        let Some(asked) = simulation.asked(*request) else { continue };
        simulation.act(asked, fate, (early, late));
        let is_unknown = matches!(fate, Fate::ReplyLost | Fate::Late | Fate::NeverArrived);
        if let Asked::Redeem(redeem) = asked
            && is_unknown
        {
            unknown.insert((redeem.who, redeem.which, redeem.key), redeem);
        }
        if matches!(fate, Fate::Late) {
            under_way.push((later, asked));
        }
    }
    for (_, asked) in under_way {
        simulation.act_late(asked);
    }
    // In the end every key that was unknown is asked for again, when all else is over.
    simulation.now += 20;
    for (_, redeem) in unknown {
        simulation.ask_for(redeem);
    }
    simulation
}

/// How many ways there are to make one thing of a legal history wrong.
const CORRUPTIONS: usize = 17;

/// Adds to the uses that an invite and its campaign say are spent.
fn recount(outcome: &mut Outcome, which: InviteId, more: i64) {
    let row = outcome.invites.get_mut(&which).unwrap();
    row.uses = row.uses.checked_add_signed(more).unwrap();
    if let Some(name) = &row.campaign {
        let row = outcome.campaigns.get_mut(name).unwrap();
        row.uses = row.uses.checked_add_signed(more).unwrap();
    }
}

/// Makes one thing of a legal history wrong; whether there was something to make wrong.
fn corrupt(simulation: &mut Simulation, outcome: &mut Outcome, how: usize, at: Index) -> bool {
    let choose = |found: Vec<usize>| (!found.is_empty()).then(|| *at.get(&found));
    let operations = &mut simulation.history.operations;
    let granted: Vec<_> =
        (0..operations.len()).filter(|number| operations[*number].grant().is_some()).collect();
    let rollbacks = &mut simulation.history.rollbacks;
    let is_done = |one: &Rollback| matches!(one.told, RollbackTold::RolledBack(_));
    let done = (0..rollbacks.len()).filter(|number| is_done(&rollbacks[*number])).collect();
    match how {
        // Somebody has what nobody asked for.
        0 => {
            let row = add(simulation, 99, 0, 1);
            outcome.redemptions.push(row.clone());
            outcome.members.push((row.user, Some(row.id)));
        }
        // An early refusal, by an invite or by the campaign.
        1 | 15 => {
            let Some(first) = operations.first() else { return false };
            let mut early = first.clone();
            early.invoked = Duration::ZERO;
            early.returned = Duration::ZERO;
            early.user = user(98);
            early.told = Told::Exhausted;
            if how == 15 {
                (early.invite, early.told) = (invite(0), Told::CampaignExhausted);
            }
            operations.push(early);
            let others = simulation.history.holds.iter().map(|one| one.invoked);
            let mut others = others.chain(operations.iter().rev().skip(1).map(|one| one.invoked));
            return others.all(|invoked| invoked > Duration::ZERO);
        }
        // A count that is wrong.
        2 => {
            let Some(row) = outcome.invites.get_mut(&invite(at.index(3) as u64)) else {
                return false;
            };
            row.uses += 1;
        }
        // An acknowledged redemption is lost.
        3 => {
            let Some(number) = choose(granted) else { return false };
            let id = operations[number].grant().unwrap().id;
            outcome.redemptions.retain(|row| row.id != id);
            outcome.members.retain(|(_, redemption)| *redemption != Some(id));
        }
        // One answer names another redemption.
        4 => {
            let Some(number) = choose(granted) else { return false };
            let Told::Granted(grant) = &mut operations[number].told else { return false };
            grant.id = redemption(777);
        }
        // A second membership of one user.
        5 => {
            let mut live = outcome.redemptions.iter().filter(|row| row.rolled_back_at.is_none());
            let Some(row) = live.next().cloned() else { return false };
            let other = invite(u64::from(row.invite == invite(0)));
            let second = RedemptionRow { id: redemption(888), invite: other, ..row };
            outcome.redemptions.push(second);
        }
        // A refusal becomes a grant.
        6 => {
            let refused = |number: &usize| operations[*number].told == Told::Exhausted;
            let Some(number) = choose((0..operations.len()).filter(refused).collect()) else {
                return false;
            };
            let (who, which) = (operations[number].user.clone(), operations[number].invite);
            let row = RedemptionRow {
                id: redemption(999),
                user: who,
                invite: which,
                ordinal: outcome.redemptions.len() as u64 + outcome.invites[&which].max_uses + 1,
                position: position(999),
                rolled_back_at: None,
            };
            operations[number].told = super::tests::granted(&row, Durability::Gate, false);
            recount(outcome, which, 1);
            outcome.members.push((row.user.clone(), Some(row.id)));
            outcome.redemptions.push(row);
        }
        // A rollback is lost.
        7 => {
            let Some(number) = choose(done) else { return false };
            let id = rollbacks[number].redemption;
            let row = outcome.redemptions.iter_mut().find(|row| row.id == id).unwrap();
            row.rolled_back_at = None;
            let which = row.invite;
            outcome.members.push((row.user.clone(), Some(id)));
            recount(outcome, which, 1);
        }
        // One happens that nobody asked for.
        8 => {
            let is_asked = |id| rollbacks.iter().any(|rollback| rollback.redemption == id);
            let mut rows = outcome.redemptions.iter_mut();
            let Some(row) = rows.find(|row| !is_asked(row.id)) else { return false };
            row.rolled_back_at = Some(self::at(1));
            let (id, which) = (row.id, row.invite);
            outcome.members.retain(|(_, redemption)| *redemption != Some(id));
            recount(outcome, which, -1);
        }
        // One is told with another moment.
        9 => {
            let Some(number) = choose(done) else { return false };
            rollbacks[number].told = RollbackTold::RolledBack(self::at(777_777));
        }
        // A grant is told as taken back, which nobody asked for.
        10 => {
            let is_asked = |id| rollbacks.iter().any(|rollback| rollback.redemption == id);
            let stands = |number: &usize| !is_asked(operations[*number].grant().unwrap().id);
            let Some(number) = choose(granted.into_iter().filter(stands).collect()) else {
                return false;
            };
            let id = operations[number].grant().unwrap().id;
            operations[number].told = Told::RolledBack(TakenBack { id, at: self::at(1) });
        }
        // More is held than anybody asked for.
        11 => {
            let Some(row) = outcome.invites.get_mut(&invite(at.index(3) as u64)) else {
                return false;
            };
            row.held += 13;
        }
        // What a user holds all the time, as nobody gave back or spent anything, is not there.
        12 => {
            let holds = &simulation.history.holds;
            let is_certain = |one: &&Hold| {
                matches!(one.told, HoldTold::Held(_))
                    && holds.iter().filter(|other| other.invite == one.invite).all(|other| {
                        matches!(other.told, HoldTold::Held(_)) || !other.may_have_held()
                    })
            };
            let Some(hold) = holds.iter().find(is_certain) else { return false };
            let row = outcome.invites.get_mut(&hold.invite).unwrap();
            if row.held == 0
                || simulation.history.releases.iter().any(|one| one.invite == hold.invite)
            {
                return false;
            }
            row.held = 0;
            // A use that was spent meanwhile leaves nothing certain.
            return !outcome.redemptions.iter().any(|row| row.invite == hold.invite);
        }
        // A count of a campaign that is wrong.
        13 => outcome.campaigns.get_mut(&campaign()).unwrap().uses += 1,
        // One more gets a use of an invite that has one left, when its campaign has none.
        14 => {
            let is_free = |which: &u64| simulation.used_up(97, *which) == Some(UsedUp::Campaign);
            let Some(which) = [0, 1].into_iter().find(is_free) else { return false };
            let last = simulation.rows.iter().filter(|row| row.invite == invite(which));
            let row = RedemptionRow {
                id: redemption(999),
                user: user(97),
                invite: invite(which),
                ordinal: last.map(|row| row.ordinal).max().unwrap_or_default() + 1,
                position: position(simulation.changes + 1),
                rolled_back_at: None,
            };
            let told = super::tests::granted(&row, Durability::Gate, false);
            simulation.tell(97, which, told, 0, 0);
            outcome.members.push((row.user.clone(), Some(row.id)));
            outcome.redemptions.push(row);
            recount(outcome, invite(which), 1);
        }
        // A key that was unknown is never asked for again.
        _ => {
            let unknown = |one: &Operation| matches!(one.told, Told::Unknown(_));
            let Some(key) = operations.iter().find(|one| unknown(one)).map(|one| one.key.clone())
            else {
                return false;
            };
            operations.retain(|one| one.key != key || unknown(one));
        }
    }
    true
}

#[test]
fn random_histories_have_every_refusal_and_can_be_made_wrong_in_every_way() {
    let mut runner = TestRunner::deterministic();
    let histories = (1..=5_u64, requests(false), any::<Index>());
    let (mut refusals, mut wrong) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..500 {
        let (of_campaign, requests, at) = histories.new_tree(&mut runner).unwrap().current();
        let History { operations, holds, .. } = legal(of_campaign, &requests).history;
        let operations = operations.iter().filter(|one| one.told.is_refusal());
        refusals.extend(operations.map(|one| format!("{:?}", one.told)));
        let holds = holds.iter().filter(|one| one.told.used_up().is_some());
        refusals.extend(holds.map(|one| format!("{:?} to hold", one.told)));
        for how in 0..CORRUPTIONS {
            let mut simulation = legal(of_campaign, &requests);
            let mut outcome = simulation.outcome();
            if corrupt(&mut simulation, &mut outcome, how, at) {
                wrong.insert(how);
            }
        }
    }
    assert_eq!(wrong, (0..CORRUPTIONS).collect());
    let all = [
        "AlreadyMember",
        "CampaignExhausted",
        "CampaignExhausted to hold",
        "Exhausted",
        "Exhausted to hold",
        "NotHeld(\"reservation_expired\")",
    ];
    assert_eq!(refusals, all.map(str::to_owned).into());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn legal_histories_are_accepted(of_campaign in 1..=5_u64, requests in requests(false)) {
        let simulation = legal(of_campaign, &requests);
        prop_assert_eq!(simulation.check(), []);
        prop_assert_eq!(simulation.check_lossy(), []);
    }

    #[test]
    fn what_a_fault_may_lose_explains_what_follows_from_it(
        of_campaign in 1..=5_u64,
        requests in requests(true),
    ) {
        prop_assert_eq!(legal(of_campaign, &requests).check_lossy(), []);
    }

    #[test]
    fn one_thing_wrong_in_a_legal_history_is_found(
        of_campaign in 1..=5_u64,
        requests in requests(false),
        how in 0..CORRUPTIONS,
        at in any::<Index>(),
    ) {
        let mut simulation = legal(of_campaign, &requests);
        let mut outcome = simulation.outcome();
        if corrupt(&mut simulation, &mut outcome, how, at) {
            let findings = check(&simulation.history, &outcome, MayLose::Nothing);
            prop_assert!(!findings.is_empty(), "corruption {how} was not found");
        }
    }
}
