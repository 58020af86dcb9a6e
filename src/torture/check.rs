//! Decides from a history and from what was there in the end whether a law was broken. Pure.
//!
//! Nobody leaves a group and no limit is changed in such a history, and no code gets another invite. What is spent is
//! spent until somebody takes it back, and what is held is held until it is spent or given back: nothing runs out. Where a
//! fault may lose what was acknowledged, it may also bring back what had ended.

mod evidence;
mod span;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use self::{
    evidence::{Evidence, Limit, Limited, Pair, UseNumber},
    span::{Crowd, Span, busiest},
};
use super::history::{
    History, HoldTold, InviteRow, Operation, Outcome, RedemptionRow, ReleaseTold, Rollback,
    RollbackTold, Told,
};
use crate::domain::{Durability, InviteId, RedemptionId, RequestId, ReservationId, UserId};

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
pub fn check(history: &History, outcome: &Outcome, may_lose: MayLose) -> Vec<Finding> {
    let mut case =
        Case { evidence: Evidence::new(history, outcome, may_lose), findings: Vec::new() };
    case.no_over_redemption();
    case.no_false_refusal();
    case.one_membership();
    case.known_answer();
    case.nothing_lost();
    case.nothing_held_is_lost();
    case.nothing_taken_back_is_lost();
    case.findings
}

/// How many acknowledged redemptions the outcome lacks.
#[must_use]
pub fn lost(history: &History, outcome: &Outcome) -> usize {
    let there: BTreeSet<RedemptionId> = outcome.redemptions.iter().map(|row| row.id).collect();
    let told: BTreeSet<RedemptionId> =
        history.operations.iter().filter_map(|operation| Some(operation.grant()?.id)).collect();
    told.difference(&there).count()
}

struct Case<'a> {
    evidence: Evidence<'a>,
    findings: Vec<Finding>,
}

/// A refusal of a use, be it to spend or to hold.
struct Refused<'a> {
    pair: Pair<'a>,
    invoked: Duration,
    returned: Duration,
}

impl<'a> Case<'a> {
    fn broken(&mut self, law: Law, what: String) {
        self.findings.push(Finding { law, what });
    }

    fn no_over_redemption(&mut self) {
        let law = Law::NoOverRedemption;
        let mut standing: BTreeMap<InviteId, Vec<(RedemptionId, UseNumber)>> = BTreeMap::new();
        for (id, (_, invite, ordinal)) in self.evidence.standing() {
            standing.entry(invite).or_default().push((id, ordinal));
        }
        let mut live: BTreeMap<InviteId, u64> = BTreeMap::new();
        for row in &self.evidence.outcome.redemptions {
            *live.entry(row.invite).or_default() += u64::from(row.rolled_back_at.is_none());
        }
        for (limited, limit) in self.evidence.limits() {
            let Limit { name, max_uses, uses, held, invites } = limit;
            let rows: u64 = invites.iter().filter_map(|invite| live.get(invite)).sum();
            // A hold whose end was lost stands beside what was granted since and brought back; it is worth nothing then.
            let held = if self.evidence.is_lossy() { 0 } else { held };
            if rows + held > max_uses {
                self.broken(law, format!("{name} has {max_uses} uses, and the ledger has {rows} redemptions of it and {held} are held"));
            }
            if rows != uses {
                self.broken(law, format!("{name} says that {uses} uses are spent, and the ledger has {rows} redemptions of it"));
            }
            let used = invites.iter().flat_map(|invite| self.evidence.pairs_of(*invite));
            let (at, most) = busiest(used.flat_map(|pair| self.evidence.certainly_used(pair)));
            if most as u64 > max_uses {
                self.broken(
                    law,
                    format!(
                        "{name} has {max_uses} uses, and {} {most} of them were spent or held",
                        moment(at)
                    ),
                );
            }
            if let Limited::Invite(invite) = limited {
                let granted = standing.remove(&invite).unwrap_or_default();
                self.ordinals(&granted, &name, max_uses);
            }
        }
    }

    /// The numbers of the redemptions of one invite.
    fn ordinals(&mut self, granted: &[(RedemptionId, UseNumber)], code: &str, max_uses: u64) {
        let law = Law::NoOverRedemption;
        let mut ordinals: BTreeMap<UseNumber, Vec<RedemptionId>> = BTreeMap::new();
        let mut again = 0;
        for (id, ordinal) in granted {
            ordinals.entry(*ordinal).or_default().push(*id);
            again += u64::from(self.evidence.may_be_taken_back(*id));
        }
        // The number of a redemption that was lost is not given out again if nodes brought back later ones.
        let last = if self.evidence.is_lossy() { u64::MAX } else { max_uses + again };
        for ((_, ordinal), ids) in &ordinals {
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
            if !(1..=last).contains(ordinal) {
                self.broken(
                    law,
                    format!(
                        "{} is use {ordinal} of {code}, which has {max_uses}, and {again} were taken back",
                        list(ids)
                    ),
                );
            }
        }
    }

    /// Every answer that all uses are spent or held, by what they are uses of; that is nothing where a campaign was meant
    /// and the invite belongs to none.
    fn exhausted(&self) -> BTreeMap<Option<Limited<'a>>, Vec<Refused<'a>>> {
        let History { operations, holds, .. } = self.evidence.history;
        let operations = operations.iter().filter_map(|one| {
            Some((&one.user, one.invite, one.invoked, one.returned, one.told.used_up()?))
        });
        let holds = holds.iter().filter_map(|one| {
            Some((&one.user, one.invite, one.invoked, one.returned, one.told.used_up()?))
        });
        let mut all: BTreeMap<Option<Limited<'a>>, Vec<Refused<'a>>> = BTreeMap::new();
        for (user, invite, invoked, returned, used_up) in operations.chain(holds) {
            all.entry(self.evidence.limited(invite, used_up)).or_default().push(Refused {
                pair: (user, invite),
                invoked,
                returned,
            });
        }
        all
    }

    fn no_false_refusal(&mut self) {
        let law = Law::NoFalseRefusal;
        let limits = self.evidence.limits();
        for (limited, refused) in self.exhausted() {
            let Some(limit) = limited.and_then(|limited| limits.get(&limited)) else {
                for Refused { pair: (user, invite), returned, .. } in refused {
                    let (code, at) = (self.evidence.code(invite), seconds(returned));
                    self.broken(
                        law,
                        format!("{user} was refused {code} at {at} by a limit that is not there"),
                    );
                }
                continue;
            };
            let Limit { name, max_uses, held, invites, .. } = limit;
            let pairs: Vec<Pair<'a>> =
                invites.iter().flat_map(|invite| self.evidence.pairs_of(*invite)).collect();
            let used: BTreeMap<Pair<'a>, Vec<Span>> =
                pairs.iter().map(|pair| (*pair, self.evidence.may_have_used(*pair))).collect();
            let crowd = Crowd::new(used.values().flatten().copied());
            for Refused { pair, invoked, returned } in &refused {
                // What one holds oneself of this very invite stands in nobody's own way.
                let own = used.get(pair).map_or(&[][..], Vec::as_slice);
                let most = crowd.most(*invoked, *returned, own);
                if (most as u64) < *max_uses {
                    self.broken(law, format!("{} was told at {} that all {max_uses} uses of {name} are spent or held, when at most {most} were", pair.0, seconds(*returned)));
                }
            }
            // After the last of them, uses became free only by being given back.
            let since = refused.iter().map(|one| one.invoked).max().unwrap_or_default();
            let spent = pairs.iter().filter(|pair| self.evidence.has_live_row(**pair));
            let spent = spent.count() as u64;
            let given_back = self.given_back_after(invites, since);
            if spent + held + given_back < *max_uses {
                self.broken(law, format!("at {} all {max_uses} uses of {name} were spent or held, and in the end {spent} are spent and {held} held, when {given_back} may have been given back", seconds(since)));
            }
        }
        self.no_false_membership();
    }

    /// How many uses of some invites may have become free after a moment.
    fn given_back_after(&self, invites: &[InviteId], since: Duration) -> u64 {
        invites.iter().map(|invite| self.given_back_of(*invite, since)).sum()
    }

    /// How many of one of them.
    fn given_back_of(&self, invite: InviteId, since: Duration) -> u64 {
        let evidence = &self.evidence;
        let count = if evidence.is_lossy() {
            // Whoever may have had a use that a fault then took.
            let gone = |pair: &Pair<'a>| {
                !evidence.has_live_row(*pair) && !evidence.may_have_used(*pair).is_empty()
            };
            evidence.pairs_of(invite).filter(gone).count()
        } else {
            let is_later = |known: Option<Duration>| known.is_none_or(|at| at > since);
            let is_gone = |pair: Pair<'a>| {
                let ids = evidence.redemptions_of(pair);
                let rows = ids.filter_map(|id| evidence.rows.get(&id));
                let rows = rows.filter(|row| row.rolled_back_at.is_some());
                rows.filter(|row| is_later(evidence.known_as_taken_back(row.id))).count()
                    + usize::from(evidence.may_have_run_out(pair))
            };
            let released = evidence.released.get(&invite).into_iter().flatten();
            let released = released.filter(|id| is_later(evidence.known_as_released(**id)));
            evidence.pairs_of(invite).map(is_gone).sum::<usize>() + released.count()
        };
        count as u64
    }

    fn no_false_membership(&mut self) {
        let History { operations, holds, .. } = self.evidence.history;
        let operations = operations.iter().filter(|one| one.told == Told::AlreadyMember);
        let refused = operations
            .map(|one| (&one.user, one.invite, one.invoked, one.returned, false))
            // Whoever has redeemed a code has nothing to hold of it.
            .chain(
                holds
                    .iter()
                    .filter(|one| one.told == HoldTold::AlreadyMember)
                    .map(|one| (&one.user, one.invite, one.invoked, one.returned, true)),
            );
        for (user, invite, invoked, returned, or_itself) in refused {
            let invites = self.evidence.invites.get(user).into_iter().flatten();
            let was_member = invites.filter(|other| or_itself || **other != invite).any(|other| {
                let spans = self.evidence.may_have_redeemed((user, *other));
                spans.iter().any(|span| span.meets(invoked, returned))
            });
            if !was_member {
                let code = self.evidence.code(invite);
                let at = seconds(returned);
                self.broken(Law::NoFalseRefusal, format!("{user} was refused {code} at {at} as a member of another group, and was in none"));
            }
        }
    }

    fn one_membership(&mut self) {
        let law = Law::OneMembership;
        let mut by_user: BTreeMap<&UserId, Vec<(RedemptionId, InviteId, Span)>> = BTreeMap::new();
        for (id, (user, invite, _)) in self.evidence.standing() {
            if let Some(span) = self.evidence.certainly_stood(id) {
                by_user.entry(user).or_default().push((id, invite, span));
            }
        }
        for (user, redemptions) in by_user {
            let is_with_another = |(id, _, span): &&(RedemptionId, InviteId, Span)| {
                redemptions.iter().any(|(other, _, its)| other != id && span.overlaps(*its))
            };
            let told: Vec<_> = redemptions
                .iter()
                .filter(is_with_another)
                .map(|(id, invite, _)| format!("{id} of {}", self.evidence.code(*invite)))
                .collect();
            if !told.is_empty() {
                self.broken(
                    law,
                    format!("{user} has {} redemptions: {}", told.len(), told.join(", ")),
                );
            }
        }
        let mut members: BTreeMap<&UserId, Vec<Option<RedemptionId>>> = BTreeMap::new();
        for (user, redemption) in &self.evidence.outcome.members {
            members.entry(user).or_default().push(*redemption);
        }
        for (user, redemptions) in &members {
            if redemptions.len() > 1 {
                self.broken(law, format!("{user} is in {} groups", redemptions.len()));
            }
            for redemption in redemptions {
                let own = redemption.and_then(|id| self.evidence.rows.get(&id));
                if own.is_none_or(|row| row.user != **user || row.rolled_back_at.is_some()) {
                    self.broken(
                        law,
                        format!("{user} is a member, and by no redemption of that user"),
                    );
                }
            }
        }
        for row in &self.evidence.outcome.redemptions {
            let is_member = members.get(&row.user).is_some_and(|all| all.contains(&Some(row.id)));
            if !is_member && row.rolled_back_at.is_none() {
                self.broken(
                    law,
                    format!("{} has the redemption {}, and is no member by it", row.user, row.id),
                );
            }
        }
    }

    fn known_answer(&mut self) {
        let law = Law::KnownAnswer;
        let History { operations, holds, releases, rollbacks } = self.evidence.history;
        for operation in operations {
            if let Told::Unexpected(answer) = &operation.told {
                self.broken(law, format!("{} was answered: {answer}", operation.user));
            }
            if let Some(grant) = operation.grant().filter(|it| it.durability < operation.asked) {
                let (asked, told) = (operation.asked.as_str(), grant.durability.as_str());
                self.broken(
                    law,
                    format!(
                        "{} asked for level {asked} and was told of {} at level {told}",
                        operation.user, grant.id
                    ),
                );
            }
        }
        let holds = holds.iter().filter_map(|one| match &one.told {
            HoldTold::Unexpected(answer) => Some((&one.user, answer)),
            _ => None,
        });
        let releases = releases.iter().filter_map(|one| match &one.told {
            ReleaseTold::Unexpected(answer) => Some((&one.user, answer)),
            _ => None,
        });
        let rollbacks = rollbacks.iter().filter_map(|one| match &one.told {
            RollbackTold::Unexpected(answer) => Some((&one.user, answer)),
            _ => None,
        });
        for (user, answer) in holds.chain(releases).chain(rollbacks) {
            self.broken(law, format!("{user} was answered: {answer}"));
        }
        for (&(user, key), operations) in &self.evidence.by_key.clone() {
            self.one_answer(user, key, operations);
        }
        for (id, grants) in &self.evidence.grants.clone() {
            let new = grants.iter().filter(|(_, grant)| !grant.replayed).count();
            if new > 1 {
                self.broken(law, format!("{id} was told {new} times as newly granted"));
            }
            for (operation, _) in grants.iter().filter(|(_, grant)| grant.replayed) {
                let Operation { user, invite, returned, .. } = *operation;
                let earlier = self.evidence.operations[&(user, *invite)].iter().any(|other| {
                    !std::ptr::eq(*other, *operation)
                        && other.may_have_made(*id)
                        && other.invoked < *returned
                });
                if !earlier {
                    self.broken(law, format!("{user} was told at {} that {id} was granted before, and had not asked for {} before", seconds(*returned), self.evidence.code(*invite)));
                }
            }
        }
        self.what_was_taken_back_stays_so();
    }

    /// The answers that one key of one user got.
    fn one_answer(&mut self, user: &'a UserId, key: &'a RequestId, operations: &[&'a Operation]) {
        let law = Law::KnownAnswer;
        let evidence = &self.evidence;
        let mut findings = Vec::new();
        let ids: BTreeSet<_> = operations
            .iter()
            .filter_map(|operation| Some(operation.grant()?.id))
            .filter(|id| !evidence.may_be_lost(*id) && evidence.maker(*id) == Some(key))
            .collect();
        if ids.len() > 1 {
            let ids: Vec<_> = ids.iter().copied().collect();
            findings.push(format!("the key {key} of {user} was answered with {}", list(&ids)));
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
            findings.push(format!(
                "the key {key} of {user} was unknown at {} and never became known",
                seconds(open.returned)
            ));
        }
        // Once a key has made a redemption and its user knows, it is answered with that for ever.
        let made = operations.iter().filter_map(|one| {
            let grant = one.grant().filter(|grant| evidence.is_firm(grant))?;
            (evidence.maker(grant.id) == Some(key)).then_some((one.returned, grant.id))
        });
        if let Some((since, id)) = made.min_by_key(|(since, _)| *since) {
            for later in operations.iter().filter(|one| one.invoked > since) {
                let at = seconds(later.returned);
                // Who confirms a reservation is told by what that was spent, with whatever key.
                let other = match &later.told {
                    Told::Granted(grant) => Some(grant.id),
                    Told::RolledBack(taken_back) => Some(taken_back.id),
                    _ => None,
                };
                let other = other.filter(|other| *other != id && later.reservation.is_none());
                if let Some(other) = other {
                    findings.push(format!(
                        "the key {key} of {user} had made {id}, and was told of {other} at {at}"
                    ));
                }
                if later.told.is_refusal() {
                    findings.push(format!(
                        "the key {key} of {user} was granted {id}, and refused at {at}"
                    ));
                }
            }
        }
        let definite = operations.iter().filter(|operation| operation.told.is_definite());
        let last = definite.max_by_key(|operation| operation.invoked);
        if let Some(last) = last.filter(|last| last.told.is_refusal() && !evidence.is_lossy()) {
            let mut made = evidence.redemptions_of((user, last.invite));
            let is_later = |id: RedemptionId| {
                self.may_hold_no_more(last)
                    && operations.iter().any(|one| {
                        one.may_have_made(id)
                            && (one.grant().is_none() || one.returned >= last.invoked)
                    })
            };
            let is_its = |id: &RedemptionId| {
                evidence.rows.contains_key(id) && evidence.maker(*id) == Some(key) && !is_later(*id)
            };
            if let Some(id) = made.find(is_its) {
                findings.push(format!("the last answer to the key {key} of {user} was a refusal, and the ledger has {id}"));
            }
        }
        self.findings.extend(findings.into_iter().map(|what| Finding { law, what }));
    }

    /// Whether what a use was refused for may have ended afterwards, so that an earlier request that was still under way
    /// may have got one.
    fn may_hold_no_more(&self, refusal: &Operation) -> bool {
        let Operation { user, invite, invoked, told, .. } = refusal;
        let is_later = |known: Option<Duration>| known.is_none_or(|at| at > *invoked);
        if let Some(used_up) = told.used_up() {
            let limited = self.evidence.limited(*invite, used_up);
            return limited.is_some_and(|limited| {
                self.given_back_after(&self.evidence.counting(limited), *invoked) > 0
            });
        }
        match told {
            Told::AlreadyMember => {
                let invites = self.evidence.invites.get(user).into_iter().flatten();
                let mut ids =
                    invites.flat_map(|other| self.evidence.redemptions_of((user, *other)));
                ids.any(|id| {
                    self.evidence.may_be_taken_back(id)
                        && is_later(self.evidence.known_as_taken_back(id))
                })
            }
            _ => self.evidence.holds.contains_key(&(user, *invite)),
        }
    }

    /// Who is told of a rollback is told what is so, and who asks later is told the same.
    fn what_was_taken_back_stays_so(&mut self) {
        let law = Law::KnownAnswer;
        let mut moments: BTreeMap<RedemptionId, BTreeSet<_>> = BTreeMap::new();
        for rollback in &self.evidence.history.rollbacks {
            if let RollbackTold::RolledBack(at) = rollback.told {
                moments.entry(rollback.redemption).or_default().insert(at);
            }
        }
        for operation in &self.evidence.history.operations {
            let Operation { user, invite, invoked, returned, .. } = operation;
            let (asked_at, told_at) = (*invoked, seconds(*returned));
            match &operation.told {
                Told::RolledBack(told) => {
                    moments.entry(told.id).or_default().insert(told.at);
                    let is_own = |one: &Rollback| {
                        one.user == *user && one.invite == *invite && one.may_have_rolled_back()
                    };
                    let is_asked = self
                        .evidence
                        .rollbacks_of(told.id)
                        .any(|one| is_own(one) && one.invoked < *returned);
                    if !is_asked {
                        self.broken(law, format!("{user} was told at {told_at} that {} was taken back, which nobody had asked for", told.id));
                    }
                }
                Told::Granted(grant) if !self.evidence.is_lossy() => {
                    let known = self.evidence.known_as_taken_back(grant.id);
                    if let Some(at) = known.filter(|at| *at < asked_at) {
                        self.broken(law, format!("{user} was told at {told_at} that {} stands, which was taken back at {}", grant.id, seconds(at)));
                    }
                }
                _ => {}
            }
        }
        if self.evidence.is_lossy() {
            // One that was lost may have been taken back once more.
            return;
        }
        for (id, moments) in moments.into_iter().filter(|(_, moments)| moments.len() > 1) {
            let moments: Vec<_> = moments.iter().map(ToString::to_string).collect();
            self.broken(law, format!("{id} was taken back at {}", moments.join(" and ")));
        }
    }

    fn nothing_lost(&mut self) {
        let law = Law::NothingLost;
        for (id, grants) in &self.evidence.grants.clone() {
            let (operation, grant) = grants[0];
            let code = self.evidence.code(operation.invite);
            let Some(row) = self.evidence.rows.get(id).copied() else {
                if !self.evidence.may_be_lost(*id) {
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
                    rolled_back_at: row.rolled_back_at,
                };
                // What Redis lost and a node could hand in too late only was granted once more, by the same id.
                if self.evidence.is_lossy() && grant.durability != Durability::Ledger {
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
        for row in &self.evidence.outcome.redemptions {
            let asked = self.evidence.operations.get(&(&row.user, row.invite));
            let asked = asked.is_some_and(|all| all.iter().any(|one| one.may_have_made(row.id)));
            if !asked {
                self.broken(
                    law,
                    format!(
                        "the ledger has {}, use {} of {} for {}, which nobody asked for",
                        row.id,
                        row.ordinal,
                        self.evidence.code(row.invite),
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
        if self.evidence.rows.len() != self.evidence.outcome.redemptions.len() {
            self.broken(law, "the ledger lists a redemption twice".to_owned());
        }
        let Outcome { invites, campaigns, .. } = self.evidence.outcome;
        for InviteRow { code, campaign, .. } in invites.values() {
            if let Some(name) = campaign.as_ref().filter(|name| !campaigns.contains_key(*name)) {
                self.broken(
                    law,
                    format!("{code} belongs to the campaign {name}, which is not there"),
                );
            }
        }
    }

    fn nothing_held_is_lost(&mut self) {
        let law = Law::NothingLost;
        let History { operations, holds, releases, .. } = self.evidence.history;
        if !self.evidence.is_lossy() {
            for operation in operations {
                let Operation { user, invite, invoked, returned, reservation, told, .. } =
                    operation;
                let refused = match told {
                    Told::Exhausted => "that no use is left",
                    Told::CampaignExhausted => "that no use of its campaign is left",
                    Told::NotHeld(_) => "that it holds nothing",
                    _ => continue,
                };
                let held = self.evidence.certainly_held((user, *invite));
                // Who names a reservation means that one.
                let of_it = |id: &ReservationId| reservation.is_none_or(|named| named == *id);
                let covers = |span: &Span| span.covers(*invoked, *returned);
                let held = held.iter().find(|(id, span)| of_it(id) && covers(span));
                if let Some((id, span)) = held {
                    let (code, since) = (self.evidence.code(*invite), seconds(span.from));
                    self.broken(law, format!("{user} held a use of {code} since {since}, {id}, and was told at {} {refused}", seconds(*returned)));
                }
            }
            for hold in holds.iter().filter(|hold| hold.told.used_up().is_some()) {
                let held = self.evidence.certainly_held((&hold.user, hold.invite));
                if held.values().any(|span| span.covers(hold.invoked, hold.returned)) {
                    let (code, at) = (self.evidence.code(hold.invite), seconds(hold.returned));
                    self.broken(
                        law,
                        format!(
                            "{} held a use of {code}, and was told at {at} that no use is left",
                            hold.user
                        ),
                    );
                }
            }
        }
        for release in releases {
            let (user, at, id) = (&release.user, seconds(release.returned), release.reservation);
            match release.told {
                ReleaseTold::NotFound if !self.evidence.is_lossy() => self.broken(
                    law,
                    format!("{user} was told at {at} that there is no reservation {id}"),
                ),
                ReleaseTold::Spent(redemption) => {
                    let asked = self.evidence.operations.get(&(user, release.invite));
                    let mut asked = asked.into_iter().flatten();
                    let is_there =
                        self.evidence.is_lossy() || self.evidence.rows.contains_key(&redemption);
                    let is_own = asked
                        .any(|one| one.may_have_made(redemption) && one.invoked < release.returned);
                    if !is_there || !is_own {
                        self.broken(law, format!("{user} was told at {at} that {id} is spent by {redemption}, which the user had not asked for or is not there"));
                    }
                }
                _ => {}
            }
        }
        // Nobody has two of one invite.
        for pair in self.evidence.holds.keys().copied().collect::<Vec<_>>() {
            let held = self.evidence.certainly_held(pair);
            let spans: Vec<_> = held.values().copied().collect();
            if busiest(spans).1 > 1 {
                let ids: Vec<_> = held.keys().map(ToString::to_string).collect();
                let code = self.evidence.code(pair.1);
                self.broken(
                    Law::KnownAnswer,
                    format!("{} held {} uses of {code}: {}", pair.0, ids.len(), ids.join(", ")),
                );
            }
        }
        for (invite, InviteRow { code, held, .. }) in &self.evidence.outcome.invites {
            let (least, most) = self.evidence.held_in_the_end(*invite);
            if !(least..=most).contains(held) {
                self.broken(
                    law,
                    format!(
                        "{least} to {most} uses of {code} must be held in the end, and {held} are"
                    ),
                );
            }
        }
    }

    fn nothing_taken_back_is_lost(&mut self) {
        let law = Law::NothingLost;
        for row in &self.evidence.outcome.redemptions {
            if row.rolled_back_at.is_some() && !self.evidence.may_be_taken_back(row.id) {
                let (id, user) = (row.id, &row.user);
                self.broken(law, format!("{id} of {user} was taken back, which nobody asked for"));
            }
        }
        for rollback in &self.evidence.history.rollbacks {
            let Rollback { user, redemption, invoked, returned, told, .. } = rollback;
            let at = seconds(*returned);
            match told {
                RollbackTold::RolledBack(moment) if !self.evidence.is_lossy() => {
                    let row = self.evidence.rows.get(redemption).copied();
                    if row.is_none_or(|row| row.rolled_back_at != Some(*moment)) {
                        self.broken(law, format!("{user} was told at {at} that {redemption} was taken back at {moment}, and the ledger has {row:?}"));
                    }
                }
                RollbackTold::NotFound => {
                    let grants = self.evidence.grants.get(redemption).into_iter().flatten();
                    let mut known = grants.filter(|(_, grant)| self.evidence.is_firm(grant));
                    if known.any(|(operation, _)| operation.returned < *invoked) {
                        self.broken(law, format!("{user} was told at {at} that there is no redemption {redemption}, and had been granted it"));
                    }
                }
                _ => {}
            }
        }
    }
}

fn list(ids: &[RedemptionId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn seconds(since: Duration) -> String {
    format!("{:.3} s", since.as_secs_f64())
}

fn moment(at: Duration) -> String {
    if at == Duration::MAX { "in the end".to_owned() } else { format!("at {}", seconds(at)) }
}
