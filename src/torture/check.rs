//! Decides from a history and from what was there in the end whether a law was broken. Pure.
//!
//! Nobody leaves a group and no limit is changed in such a history. So a use that is spent stays spent, a member stays
//! a member, and a refusal that was right once is right for ever, unless a fault may lose what was acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::history::{Grant, InviteRow, Operation, Outcome, RedemptionRow, Told};
use crate::domain::{Durability, InviteId, RedemptionId, RequestId, UserId};

/// What must hold: the first six of docs/reliability.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Law {
    /// Never more redemptions than uses.
    NoOverRedemption,
    /// Nobody is refused as long as a use is free.
    NoFalseRefusal,
    /// One membership per user.
    OneMembership,
    /// Every key has one answer, in the end.
    KnownAnswer,
    /// What was acknowledged is there, and nothing else is.
    NothingLost,
    /// Gate and ledger hold the same.
    BothSidesAgree,
}

impl Law {
    /// Every law, in order.
    pub const ALL: [Self; 6] = [
        Self::NoOverRedemption,
        Self::NoFalseRefusal,
        Self::OneMembership,
        Self::KnownAnswer,
        Self::NothingLost,
        Self::BothSidesAgree,
    ];

    /// Its number and its words.
    #[must_use]
    pub fn title(self) -> (u8, &'static str) {
        match self {
            Self::NoOverRedemption => (1, "no over-redemption"),
            Self::NoFalseRefusal => (2, "no false refusal"),
            Self::OneMembership => (3, "one membership"),
            Self::KnownAnswer => (4, "a known answer"),
            Self::NothingLost => (5, "nothing acknowledged is lost, nothing unasked appears"),
            Self::BothSidesAgree => (6, "both sides agree"),
        }
    }
}

/// What the faults of a run may lose of what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayLose {
    /// Nothing.
    Nothing,
    /// Answers below level `ledger`.
    BelowLedger,
}

/// How a law was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub law: Law,
    /// By what, for people.
    pub what: String,
}

/// Every breach of the laws 1 to 5 that no reading of the history explains.
#[must_use]
pub fn check(history: &[Operation], outcome: &Outcome, may_lose: MayLose) -> Vec<Finding> {
    let mut case = Case::new(history, outcome, may_lose);
    case.no_over_redemption();
    case.no_false_refusal();
    case.one_membership();
    case.known_answer();
    case.nothing_lost();
    case.findings
}

/// How many acknowledged redemptions the outcome lacks.
#[must_use]
pub fn lost(history: &[Operation], outcome: &Outcome) -> usize {
    let there: BTreeSet<RedemptionId> = outcome.redemptions.iter().map(|row| row.id).collect();
    let told: BTreeSet<RedemptionId> =
        history.iter().filter_map(|operation| Some(operation.grant()?.id)).collect();
    told.difference(&there).count()
}

/// A history, ordered for the questions that the laws ask.
struct Case<'a> {
    history: &'a [Operation],
    outcome: &'a Outcome,
    may_lose: MayLose,
    rows: BTreeMap<RedemptionId, &'a RedemptionRow>,
    rows_of: BTreeMap<(&'a UserId, InviteId), &'a RedemptionRow>,
    grants: BTreeMap<RedemptionId, Vec<(&'a Operation, &'a Grant)>>,
    by_key: BTreeMap<(&'a UserId, &'a RequestId), Vec<&'a Operation>>,
    by_user_and_invite: BTreeMap<(&'a UserId, InviteId), Vec<&'a Operation>>,
    /// Whoever may hold a use of an invite, and since when at the earliest.
    holders: BTreeMap<InviteId, BTreeMap<&'a UserId, Duration>>,
    findings: Vec<Finding>,
}

impl<'a> Case<'a> {
    fn new(history: &'a [Operation], outcome: &'a Outcome, may_lose: MayLose) -> Self {
        let mut case = Self {
            history,
            outcome,
            may_lose,
            rows: outcome.redemptions.iter().map(|row| (row.id, row)).collect(),
            rows_of: outcome.redemptions.iter().map(|row| ((&row.user, row.invite), row)).collect(),
            grants: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_user_and_invite: BTreeMap::new(),
            holders: BTreeMap::new(),
            findings: Vec::new(),
        };
        for operation in history {
            let Operation { user, invite, key, .. } = operation;
            case.by_key.entry((user, key)).or_default().push(operation);
            case.by_user_and_invite.entry((user, *invite)).or_default().push(operation);
            if let Some(grant) = operation.grant() {
                case.grants.entry(grant.id).or_default().push((operation, grant));
            }
        }
        case.find_holders();
        case
    }

    /// Where nothing can be lost, what the end does not show never happened.
    fn find_holders(&mut self) {
        for (&(user, invite), operations) in &self.by_user_and_invite {
            let holds = self.rows_of.contains_key(&(user, invite))
                || operations.iter().any(|operation| operation.grant().is_some())
                || self.may_lose == MayLose::BelowLedger;
            let spending = operations.iter().filter(|operation| operation.may_have_spent());
            if let Some(since) = spending.map(|operation| operation.invoked).min().filter(|_| holds)
            {
                self.holders.entry(invite).or_default().insert(user, since);
            }
        }
    }

    fn broken(&mut self, law: Law, what: String) {
        self.findings.push(Finding { law, what });
    }

    fn code(&self, invite: InviteId) -> String {
        self.outcome.invites.get(&invite).map_or_else(|| invite.to_string(), |row| row.code.clone())
    }

    /// Whether a fault of this run explains that an acknowledged redemption is not there.
    fn may_be_lost(&self, id: RedemptionId) -> bool {
        let is_promised = self.grants.get(&id).is_some_and(|grants| {
            grants.iter().any(|(_, grant)| grant.durability == Durability::Ledger)
        });
        self.may_lose == MayLose::BelowLedger && !is_promised && !self.rows.contains_key(&id)
    }

    /// Redemptions that were told or are there, but for those that a fault may have lost.
    fn standing(&self) -> BTreeMap<RedemptionId, (&'a UserId, InviteId, u64)> {
        let told = self.grants.iter().filter(|(id, _)| !self.may_be_lost(**id)).map(|(id, all)| {
            let (operation, grant) = all[0];
            (*id, (&operation.user, operation.invite, grant.ordinal))
        });
        let there = self.rows.values().map(|row| (row.id, (&row.user, row.invite, row.ordinal)));
        told.chain(there).collect()
    }

    fn no_over_redemption(&mut self) {
        let law = Law::NoOverRedemption;
        let standing = self.standing();
        for (invite, InviteRow { code, max_uses, uses }) in &self.outcome.invites {
            let of_it = |row: &&RedemptionRow| row.invite == *invite;
            let rows = self.outcome.redemptions.iter().filter(of_it).count() as u64;
            if rows > *max_uses {
                self.broken(
                    law,
                    format!(
                        "{code} has {max_uses} uses, and the ledger has {rows} redemptions of it"
                    ),
                );
            }
            if rows != *uses {
                self.broken(law, format!("{code} says that {uses} uses are spent, and the ledger has {rows} redemptions of it"));
            }
            let mut ordinals: BTreeMap<u64, Vec<RedemptionId>> = BTreeMap::new();
            for (id, (_, of, ordinal)) in &standing {
                if of == invite {
                    ordinals.entry(*ordinal).or_default().push(*id);
                }
            }
            let granted: usize = ordinals.values().map(Vec::len).sum();
            if granted as u64 > *max_uses {
                self.broken(
                    law,
                    format!(
                        "{code} has {max_uses} uses, and {granted} redemptions of it were granted"
                    ),
                );
            }
            for (ordinal, ids) in &ordinals {
                if ids.len() > 1 {
                    self.broken(
                        law,
                        format!(
                            "use {ordinal} of {code} was granted {} times: {}",
                            ids.len(),
                            list(ids)
                        ),
                    );
                }
                // The number of a redemption that was lost is not given out again if nodes brought back later ones.
                let last = if self.may_lose == MayLose::Nothing { *max_uses } else { u64::MAX };
                if !(1..=last).contains(ordinal) {
                    self.broken(
                        law,
                        format!("{} is use {ordinal} of {code}, which has {max_uses}", list(ids)),
                    );
                }
            }
        }
    }

    fn no_false_refusal(&mut self) {
        let law = Law::NoFalseRefusal;
        for operation in self.history {
            let Operation { user, invite, returned, .. } = operation;
            let code = self.code(*invite);
            let at = seconds(*returned);
            if operation.told == Told::Exhausted {
                let max_uses =
                    self.outcome.invites.get(invite).map_or(u64::MAX, |row| row.max_uses);
                let held =
                    self.holders.get(invite).map_or(0, |holders| {
                        holders.values().filter(|since| *since < returned).count()
                    }) as u64;
                if held < max_uses {
                    self.broken(law, format!("{user} was told at {at} that all {max_uses} uses of {code} are spent, when at most {held} were asked for by those who got one"));
                }
            }
            if operation.told == Told::AlreadyMember {
                let elsewhere = self.holders.iter().any(|(other, holders)| {
                    other != invite && holders.get(user).is_some_and(|since| since < returned)
                });
                if !elsewhere {
                    self.broken(law, format!("{user} was refused {code} at {at} as a member of another group, and was in none"));
                }
            }
        }
        for (invite, InviteRow { code, max_uses, .. }) in &self.outcome.invites {
            let spent = self.rows.values().filter(|row| row.invite == *invite).count() as u64;
            // Whoever was told a definite answer and is in no other group.
            let eligible: BTreeSet<_> = self
                .history
                .iter()
                .filter(|operation| operation.invite == *invite)
                .filter(|operation| matches!(operation.told, Told::Granted(_) | Told::Exhausted))
                .map(|operation| &operation.user)
                .collect();
            let slack = if self.may_lose == MayLose::Nothing {
                0
            } else {
                // Whoever may have held a use that a fault then took.
                let gone = |user: &&&UserId| !self.rows_of.contains_key(&(**user, *invite));
                self.holders.get(invite).map_or(0, |holders| holders.keys().filter(gone).count())
            };
            let expected = (eligible.len() as u64).min(*max_uses);
            if spent + (slack as u64) < expected {
                self.broken(law, format!("{} users could have had the {max_uses} uses of {code}, and {spent} are spent", eligible.len()));
            }
        }
    }

    fn one_membership(&mut self) {
        let law = Law::OneMembership;
        let mut by_user: BTreeMap<&UserId, Vec<(RedemptionId, InviteId)>> = BTreeMap::new();
        for (id, (user, invite, _)) in self.standing() {
            by_user.entry(user).or_default().push((id, invite));
        }
        for (user, redemptions) in by_user {
            if redemptions.len() > 1 {
                let told: Vec<_> = redemptions
                    .iter()
                    .map(|(id, invite)| format!("{id} of {}", self.code(*invite)))
                    .collect();
                self.broken(
                    law,
                    format!("{user} has {} redemptions: {}", told.len(), told.join(", ")),
                );
            }
        }
        let mut members: BTreeMap<&UserId, Vec<Option<RedemptionId>>> = BTreeMap::new();
        for (user, redemption) in &self.outcome.members {
            members.entry(user).or_default().push(*redemption);
        }
        for (user, redemptions) in &members {
            if redemptions.len() > 1 {
                self.broken(law, format!("{user} is in {} groups", redemptions.len()));
            }
            for redemption in redemptions {
                let own = redemption.and_then(|id| self.rows.get(&id));
                if own.is_none_or(|row| row.user != **user) {
                    self.broken(
                        law,
                        format!("{user} is a member, and by no redemption of that user"),
                    );
                }
            }
        }
        for row in &self.outcome.redemptions {
            let is_member = members.get(&row.user).is_some_and(|all| all.contains(&Some(row.id)));
            if !is_member {
                self.broken(
                    law,
                    format!("{} has the redemption {}, and is no member by it", row.user, row.id),
                );
            }
        }
    }

    fn known_answer(&mut self) {
        let law = Law::KnownAnswer;
        for operation in self.history {
            if let Told::Unexpected(answer) = &operation.told {
                self.broken(law, format!("{} was answered: {answer}", operation.user));
            }
        }
        for (&(user, key), operations) in &self.by_key.clone() {
            self.one_answer(user, key, operations);
        }
        for (id, grants) in &self.grants.clone() {
            let new = grants.iter().filter(|(_, grant)| !grant.replayed).count();
            if new > 1 {
                self.broken(law, format!("{id} was told {new} times as newly granted"));
            }
            for (operation, _) in grants.iter().filter(|(_, grant)| grant.replayed) {
                let Operation { user, invite, returned, .. } = *operation;
                let earlier = self.by_user_and_invite[&(user, *invite)].iter().any(|other| {
                    !std::ptr::eq(*other, *operation)
                        && other.may_have_spent()
                        && other.invoked < *returned
                });
                if !earlier {
                    self.broken(law, format!("{user} was told at {} that {id} was granted before, and had not asked for {} before", seconds(*returned), self.code(*invite)));
                }
            }
        }
    }

    /// The answers that one key of one user got.
    fn one_answer(&mut self, user: &UserId, key: &RequestId, operations: &[&Operation]) {
        let law = Law::KnownAnswer;
        let ids: BTreeSet<_> = operations
            .iter()
            .filter_map(|operation| Some(operation.grant()?.id))
            .filter(|id| !self.may_be_lost(*id))
            .collect();
        if ids.len() > 1 {
            let ids: Vec<_> = ids.into_iter().collect();
            self.broken(law, format!("the key {key} of {user} was answered with {}", list(&ids)));
        }
        let settled = |since: Duration| {
            operations
                .iter()
                .any(|operation| operation.told.is_definite() && operation.invoked >= since)
        };
        let open = operations
            .iter()
            .find(|one| matches!(one.told, Told::Unknown(_)) && !settled(one.returned));
        if let Some(open) = open {
            self.broken(
                law,
                format!(
                    "the key {key} of {user} was unknown at {} and never became known",
                    seconds(open.returned)
                ),
            );
        }
        let is_refusal = |one: &&&Operation| one.told.is_definite() && one.grant().is_none();
        let granted_before = operations.iter().filter(is_refusal).find_map(|refusal| {
            operations.iter().find_map(|one| {
                let grant = one.grant().filter(|grant| !self.may_be_lost(grant.id))?;
                (one.returned < refusal.invoked).then_some((grant.id, refusal))
            })
        });
        if let Some((id, refusal)) = granted_before {
            self.broken(
                law,
                format!(
                    "the key {key} of {user} was granted {id}, and refused at {}",
                    seconds(refusal.returned)
                ),
            );
        }
        let last = operations
            .iter()
            .filter(|operation| operation.told.is_definite())
            .max_by_key(|operation| operation.invoked);
        if let Some(last) = last.filter(|last| last.grant().is_none())
            && let Some(row) = self.rows_of.get(&(user, last.invite)).copied()
        {
            let id = row.id;
            self.broken(law, format!("the last answer to the key {key} of {user} was a refusal, and the ledger has {id}"));
        }
    }

    fn nothing_lost(&mut self) {
        let law = Law::NothingLost;
        for (id, grants) in &self.grants.clone() {
            let (operation, grant) = grants[0];
            let code = self.code(operation.invite);
            let Some(row) = self.rows.get(id).copied() else {
                if !self.may_be_lost(*id) {
                    let strongest = grants.iter().map(|(_, grant)| grant.durability).max();
                    let level = strongest.unwrap_or_default().as_str();
                    self.broken(law, format!("{} was told at {}, at level {level}, that {id} is use {} of {code}, and it is not there", operation.user, seconds(operation.returned), grant.ordinal));
                }
                continue;
            };
            for (operation, grant) in grants {
                let mut told = RedemptionRow {
                    id: *id,
                    user: operation.user.clone(),
                    invite: operation.invite,
                    ordinal: grant.ordinal,
                    position: grant.position,
                };
                // What Redis lost and a node could hand in too late only was granted once more, by the same id.
                if self.may_lose == MayLose::BelowLedger && grant.durability != Durability::Ledger {
                    (told.ordinal, told.position) = (row.ordinal, row.position);
                }
                if told != *row {
                    self.broken(
                        law,
                        format!(
                            "{} was told of {told:?}, and the ledger has {row:?}",
                            operation.user
                        ),
                    );
                    break;
                }
            }
        }
        let mut positions = BTreeMap::new();
        for row in &self.outcome.redemptions {
            let asked = self.by_user_and_invite.get(&(&row.user, row.invite));
            let asked = asked.is_some_and(|all| {
                all.iter().any(|one| {
                    one.may_have_spent() && one.grant().is_none_or(|grant| grant.id == row.id)
                })
            });
            if !asked {
                self.broken(
                    law,
                    format!(
                        "the ledger has {}, use {} of {} for {}, which nobody asked for",
                        row.id,
                        row.ordinal,
                        self.code(row.invite),
                        row.user
                    ),
                );
            }
            if let Some(other) = positions.insert(row.position, row.id) {
                self.broken(
                    law,
                    format!("{} and {other} stand at the same position, {}", row.id, row.position),
                );
            }
        }
        if self.rows.len() != self.outcome.redemptions.len() {
            self.broken(law, "the ledger lists a redemption twice".to_owned());
        }
    }
}

fn list(ids: &[RedemptionId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn seconds(since: Duration) -> String {
    format!("{:.3} s", since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Cursor, Partition, Position};

    fn invite(number: u64) -> InviteId {
        InviteId(Uuid::from_u128(u128::from(number)))
    }

    fn redemption(number: u64) -> RedemptionId {
        RedemptionId(Uuid::from_u128(1_000_000 + u128::from(number)))
    }

    fn user(number: u64) -> UserId {
        UserId::parse(&format!("user-{number}")).unwrap()
    }

    fn position(seq: u64) -> Position {
        Position { partition: Partition(0), cursor: Cursor { epoch: 1, seq } }
    }

    /// A service without a flaw that does one thing after the other, and a history of what it told.
    struct Simulation {
        max_uses: Vec<u64>,
        rows: Vec<RedemptionRow>,
        history: Vec<Operation>,
        now: u64,
    }

    impl Simulation {
        fn new(max_uses: &[u64]) -> Self {
            Self { max_uses: max_uses.to_vec(), rows: Vec::new(), history: Vec::new(), now: 0 }
        }

        fn decide(&mut self, who: u64, which: u64) -> Told {
            let told = |row: &RedemptionRow, replayed| {
                Told::Granted(Grant {
                    id: row.id,
                    ordinal: row.ordinal,
                    replayed,
                    durability: Durability::Ledger,
                    position: row.position,
                })
            };
            if let Some(row) = self.rows.iter().find(|row| row.user == user(who)) {
                let is_own = row.invite == invite(which);
                return if is_own { told(row, true) } else { Told::AlreadyMember };
            }
            let uses = self.rows.iter().filter(|row| row.invite == invite(which)).count() as u64;
            if uses == self.max_uses[usize::try_from(which).unwrap()] {
                return Told::Exhausted;
            }
            let seq = self.rows.len() as u64 + 1;
            let row = RedemptionRow {
                id: redemption(seq),
                user: user(who),
                invite: invite(which),
                ordinal: uses + 1,
                position: position(seq),
            };
            let told = told(&row, false);
            self.rows.push(row);
            told
        }

        fn tell(&mut self, who: u64, which: u64, told: Told, early: u64, late: u64) {
            self.now += 1;
            self.history.push(Operation {
                invoked: Duration::from_millis((self.now * 10).saturating_sub(early)),
                returned: Duration::from_millis(self.now * 10 + 1 + late),
                user: user(who),
                invite: invite(which),
                key: RequestId::parse(&format!("{who}-{which}")).unwrap(),
                asked: Durability::Ledger,
                told,
            });
        }

        /// One request, decided and answered.
        fn ask(&mut self, who: u64, which: u64) -> Told {
            let told = self.decide(who, which);
            self.tell(who, which, told.clone(), 0, 0);
            told
        }

        fn outcome(&self) -> Outcome {
            let row = |(number, max_uses): (usize, &u64)| {
                let id = invite(number as u64);
                let uses = self.rows.iter().filter(|row| row.invite == id).count() as u64;
                (id, InviteRow { code: format!("CODE-{number}"), max_uses: *max_uses, uses })
            };
            Outcome {
                invites: self.max_uses.iter().enumerate().map(row).collect(),
                redemptions: self.rows.clone(),
                members: self.rows.iter().map(|row| (row.user.clone(), Some(row.id))).collect(),
            }
        }

        /// The findings, where nothing may be lost.
        fn check(&self) -> Vec<Finding> {
            check(&self.history, &self.outcome(), MayLose::Nothing)
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
        };
        simulation.rows.push(row.clone());
        row
    }

    fn granted(row: &RedemptionRow, durability: Durability) -> Told {
        Told::Granted(Grant {
            id: row.id,
            ordinal: row.ordinal,
            replayed: false,
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
        simulation.tell(2, 0, granted(&row, Durability::Gate), 0, 0);
        let findings = simulation.check();
        assert_found(&findings, Law::NoOverRedemption, "CODE-0 has 1 uses, and the ledger has 2");
        // Also when the ledger has lost one of the two.
        simulation.rows.pop();
        let findings = simulation.check();
        assert_found(&findings, Law::NoOverRedemption, "2 redemptions of it were granted");
    }

    #[test]
    fn a_use_that_was_granted_twice_is_found() {
        let mut simulation = Simulation::new(&[5]);
        simulation.ask(1, 0);
        let row = add(&mut simulation, 2, 0, 1);
        simulation.tell(2, 0, granted(&row, Durability::Gate), 0, 0);
        assert_found(
            &simulation.check(),
            Law::NoOverRedemption,
            "use 1 of CODE-0 was granted 2 times",
        );
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
        simulation.tell(1, 0, granted(&row, Durability::Gate), 0, 0);
        simulation.rows.clear();
        simulation.ask(2, 0);
        let outcome = simulation.outcome();
        assert_eq!(check(&simulation.history, &outcome, MayLose::BelowLedger), []);
        assert_eq!(lost(&simulation.history, &outcome), 1);
        let findings = check(&simulation.history, &outcome, MayLose::Nothing);
        assert_found(&findings, Law::NothingLost, "at level gate");
        assert_found(&findings, Law::NoOverRedemption, "2 redemptions of it were granted");
    }

    #[test]
    fn a_double_membership_is_found() {
        let mut simulation = Simulation::new(&[2, 2]);
        simulation.ask(1, 0);
        let row = add(&mut simulation, 1, 1, 1);
        simulation.tell(1, 1, granted(&row, Durability::Gate), 0, 0);
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
        assert_found(
            &simulation.check(),
            Law::NoFalseRefusal,
            "user-2 was told at 0.011 s that all 1",
        );
    }

    #[test]
    fn uses_that_are_left_though_enough_have_asked_are_found() {
        let mut simulation = Simulation::new(&[2]);
        simulation.ask(1, 0);
        simulation.tell(2, 0, Told::Exhausted, 0, 0);
        assert_found(&simulation.check(), Law::NoFalseRefusal, "2 users could have had the 2 uses");
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
        simulation.tell(1, 0, granted(&row, Durability::Ledger), 0, 0);
        assert_found(
            &simulation.check(),
            Law::KnownAnswer,
            "the key 1-0 of user-1 was answered with",
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
        simulation.decide(1, 0);
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

    /// What a client knows of one request of a random history.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Answered,
        ReplyLost,
        NeverArrived,
        Refused,
    }

    fn requests() -> impl Strategy<Value = Vec<(u64, u64, Fate, u64, u64)>> {
        let fate = prop_oneof![
            6 => Just(Fate::Answered),
            2 => Just(Fate::ReplyLost),
            1 => Just(Fate::NeverArrived),
            1 => Just(Fate::Refused),
        ];
        vec((0..12_u64, 0..3_u64, fate, 0..100_u64, 0..100_u64), 1..80)
    }

    /// A legal history: what overlaps and what is unknown is so for the clients alone.
    fn legal(requests: &[(u64, u64, Fate, u64, u64)]) -> Simulation {
        let mut simulation = Simulation::new(&[2, 3, 1]);
        for &(who, which, fate, early, late) in requests {
            let unknown = || Told::Unknown("cut".to_owned());
            let told = match fate {
                Fate::Answered => simulation.decide(who, which),
                Fate::ReplyLost => {
                    simulation.decide(who, which);
                    unknown()
                }
                Fate::NeverArrived => unknown(),
                Fate::Refused => Told::NothingDone("fenced".to_owned()),
            };
            simulation.tell(who, which, told, early, late);
        }
        // In the end every key that was unknown is asked for again, when all else is over.
        simulation.now += 20;
        for &(who, which, fate, ..) in requests {
            if matches!(fate, Fate::ReplyLost | Fate::NeverArrived) {
                simulation.ask(who, which);
            }
        }
        simulation
    }

    /// Makes one thing of a legal history wrong; whether there was something to make wrong.
    fn corrupt(simulation: &mut Simulation, outcome: &mut Outcome, how: usize, at: Index) -> bool {
        let history = &mut simulation.history;
        let choose = |found: Vec<usize>| (!found.is_empty()).then(|| *at.get(&found));
        let granted: Vec<_> =
            (0..history.len()).filter(|number| history[*number].grant().is_some()).collect();
        match how {
            // Somebody has what nobody asked for.
            0 => {
                let row = add(simulation, 99, 0, 1);
                outcome.redemptions.push(row.clone());
                outcome.members.push((row.user, Some(row.id)));
            }
            // An early refusal.
            1 => {
                let mut early = history[0].clone();
                early.invoked = Duration::ZERO;
                early.returned = Duration::ZERO;
                early.user = user(98);
                early.told = Told::Exhausted;
                history.push(early);
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
                let id = history[number].grant().unwrap().id;
                let lost = history[number].invite;
                outcome.redemptions.retain(|row| row.id != id);
                outcome.members.retain(|(_, redemption)| *redemption != Some(id));
                outcome.invites.get_mut(&lost).unwrap().uses -= 1;
            }
            // One answer names another redemption.
            4 => {
                let Some(number) = choose(granted) else { return false };
                let Told::Granted(grant) = &mut history[number].told else { return false };
                grant.id = redemption(777);
            }
            // A second membership of one user.
            5 => {
                let Some(row) = outcome.redemptions.first().cloned() else { return false };
                let other = invite(u64::from(row.invite == invite(0)));
                let second = RedemptionRow { id: redemption(888), invite: other, ..row };
                outcome.redemptions.push(second);
            }
            // A refusal becomes a grant.
            6 => {
                let refused = |number: &usize| history[*number].told == Told::Exhausted;
                let Some(number) = choose((0..history.len()).filter(refused).collect()) else {
                    return false;
                };
                let (who, which) = (history[number].user.clone(), history[number].invite);
                let row = RedemptionRow {
                    id: redemption(999),
                    user: who,
                    invite: which,
                    ordinal: outcome.invites[&which].max_uses + 1,
                    position: position(999),
                };
                history[number].told = super::tests::granted(&row, Durability::Gate);
                outcome.invites.get_mut(&which).unwrap().uses += 1;
                outcome.members.push((row.user.clone(), Some(row.id)));
                outcome.redemptions.push(row);
            }
            // A key that was unknown is never asked for again.
            _ => {
                let unknown = |one: &Operation| matches!(one.told, Told::Unknown(_));
                let Some(key) = history.iter().find(|one| unknown(one)).map(|one| one.key.clone())
                else {
                    return false;
                };
                history.retain(|one| one.key != key || unknown(one));
            }
        }
        true
    }

    proptest! {
        #[test]
        fn legal_histories_are_accepted(requests in requests()) {
            prop_assert_eq!(legal(&requests).check(), []);
        }

        #[test]
        fn one_thing_wrong_in_a_legal_history_is_found(
            requests in requests(),
            how in 0..8_usize,
            at in any::<Index>(),
        ) {
            let mut simulation = legal(&requests);
            let mut outcome = simulation.outcome();
            if corrupt(&mut simulation, &mut outcome, how, at) {
                let findings = check(&simulation.history, &outcome, MayLose::Nothing);
                prop_assert!(!findings.is_empty(), "corruption {how} was not found");
            }
        }
    }
}
