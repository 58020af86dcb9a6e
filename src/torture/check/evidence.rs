//! What a history lets one know of each use: when it may have been taken, and when it certainly was.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    MayLose,
    span::{Span, merged},
};
use crate::{
    domain::{
        CampaignName, Durability, InviteId, Partition, RedemptionId, RequestId, ReservationId,
        UserId,
    },
    torture::history::{
        CampaignRow, Grant, HELD_FOR, History, Hold, HoldTold, InviteRow, Operation, Outcome,
        RedemptionRow, Release, ReleaseTold, Rollback, RollbackTold, Told, UsedUp,
    },
};

/// A user and an invite: under the rule of such a history one has at most one use of the other at a time.
pub(super) type Pair<'a> = (&'a UserId, InviteId);
/// Which use of an invite a redemption is: each partition counts its own.
pub(super) type UseNumber = (Partition, u64);

/// What has only so many uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limited<'a> {
    Invite(InviteId),
    Campaign(&'a CampaignName),
}

/// How many uses there are, and what the outcome says of them.
pub(super) struct Limit {
    /// What has them, for people.
    pub(super) name: String,
    pub(super) max_uses: u64,
    pub(super) uses: u64,
    pub(super) held: u64,
    /// Each of their uses is one.
    pub(super) invites: Vec<InviteId>,
}

/// A history, ordered for the questions that the laws ask.
pub(super) struct Evidence<'a> {
    pub(super) history: &'a History,
    pub(super) outcome: &'a Outcome,
    pub(super) may_lose: MayLose,
    pub(super) rows: BTreeMap<RedemptionId, &'a RedemptionRow>,
    pub(super) grants: BTreeMap<RedemptionId, Vec<(&'a Operation, &'a Grant)>>,
    pub(super) by_key: BTreeMap<(&'a UserId, &'a RequestId), Vec<&'a Operation>>,
    pub(super) operations: BTreeMap<Pair<'a>, Vec<&'a Operation>>,
    pub(super) holds: BTreeMap<Pair<'a>, Vec<&'a Hold>>,
    pub(super) releases: BTreeMap<ReservationId, Vec<&'a Release>>,
    pub(super) rollbacks: BTreeMap<RedemptionId, Vec<&'a Rollback>>,
    /// Everything of an invite that somebody may have given back.
    pub(super) released: BTreeMap<InviteId, BTreeSet<ReservationId>>,
    /// Whose each redemption is that was told or is there.
    redemptions: BTreeMap<Pair<'a>, BTreeSet<RedemptionId>>,
    /// Everybody who asked for something of an invite or has it.
    pub(super) users: BTreeMap<InviteId, BTreeSet<&'a UserId>>,
    /// Every invite of a user.
    pub(super) invites: BTreeMap<&'a UserId, BTreeSet<InviteId>>,
    /// Every invite of a campaign.
    campaigns: BTreeMap<&'a CampaignName, Vec<InviteId>>,
}

impl<'a> Evidence<'a> {
    pub(super) fn new(history: &'a History, outcome: &'a Outcome, may_lose: MayLose) -> Self {
        let mut evidence = Self {
            history,
            outcome,
            may_lose,
            rows: outcome.redemptions.iter().map(|row| (row.id, row)).collect(),
            grants: BTreeMap::new(),
            by_key: BTreeMap::new(),
            operations: BTreeMap::new(),
            holds: BTreeMap::new(),
            releases: BTreeMap::new(),
            rollbacks: BTreeMap::new(),
            released: BTreeMap::new(),
            redemptions: BTreeMap::new(),
            users: BTreeMap::new(),
            invites: BTreeMap::new(),
            campaigns: BTreeMap::new(),
        };
        for (invite, InviteRow { campaign, .. }) in &outcome.invites {
            if let Some(campaign) = campaign {
                evidence.campaigns.entry(campaign).or_default().push(*invite);
            }
        }
        for operation in &history.operations {
            let Operation { user, invite, key, .. } = operation;
            evidence.by_key.entry((user, key)).or_default().push(operation);
            evidence.operations.entry((user, *invite)).or_default().push(operation);
            if let Some(grant) = operation.grant() {
                evidence.grants.entry(grant.id).or_default().push((operation, grant));
                evidence.redemptions.entry((user, *invite)).or_default().insert(grant.id);
            }
        }
        for RedemptionRow { id, user, invite, .. } in &outcome.redemptions {
            evidence.redemptions.entry((user, *invite)).or_default().insert(*id);
        }
        for hold in &history.holds {
            evidence.holds.entry((&hold.user, hold.invite)).or_default().push(hold);
        }
        for release in &history.releases {
            evidence.releases.entry(release.reservation).or_default().push(release);
            if release.may_have_released() {
                let released = evidence.released.entry(release.invite).or_default();
                released.insert(release.reservation);
            }
        }
        for rollback in &history.rollbacks {
            evidence.rollbacks.entry(rollback.redemption).or_default().push(rollback);
        }
        let asked = evidence.operations.keys().chain(evidence.holds.keys());
        for &(user, invite) in asked.chain(evidence.redemptions.keys()) {
            evidence.users.entry(invite).or_default().insert(user);
            evidence.invites.entry(user).or_default().insert(invite);
        }
        evidence
    }

    pub(super) fn is_lossy(&self) -> bool {
        self.may_lose == MayLose::BelowLedger
    }

    pub(super) fn code(&self, invite: InviteId) -> String {
        self.outcome.invites.get(&invite).map_or_else(|| invite.to_string(), |row| row.code.clone())
    }

    /// Every limit: that of each invite, and that of each campaign for all its invites together.
    pub(super) fn limits(&self) -> BTreeMap<Limited<'a>, Limit> {
        let invites = self.outcome.invites.iter().map(|(id, row)| {
            let InviteRow { code, max_uses, uses, held, .. } = row;
            let (name, max_uses, uses, held) = (code.clone(), *max_uses, *uses, *held);
            (Limited::Invite(*id), Limit { name, max_uses, uses, held, invites: vec![*id] })
        });
        let campaigns = self.outcome.campaigns.iter().map(|(name, row)| {
            let (limited, CampaignRow { max_uses, uses }) = (Limited::Campaign(name), *row);
            let invites = self.counting(limited);
            let held = invites.iter().map(|invite| self.outcome.invites[invite].held).sum();
            let name = format!("the campaign {name}");
            (limited, Limit { name, max_uses, uses, held, invites })
        });
        invites.chain(campaigns).collect()
    }

    /// The limit that was said to be reached; nothing where an invite belongs to no campaign.
    pub(super) fn limited(&self, invite: InviteId, used_up: UsedUp) -> Option<Limited<'a>> {
        match used_up {
            UsedUp::Invite => Some(Limited::Invite(invite)),
            UsedUp::Campaign => {
                self.outcome.invites.get(&invite)?.campaign.as_ref().map(Limited::Campaign)
            }
        }
    }

    /// The invites whose uses count there, none where it is not listed.
    pub(super) fn counting(&self, limited: Limited<'_>) -> Vec<InviteId> {
        match limited {
            Limited::Invite(invite) => vec![invite],
            Limited::Campaign(name) => self.campaigns.get(name).cloned().unwrap_or_default(),
        }
    }

    /// Whether no fault of this run may have undone it after it was told.
    pub(super) fn is_firm(&self, grant: &Grant) -> bool {
        !self.is_lossy() || grant.durability == Durability::Ledger
    }

    /// Whether a fault of this run explains that an acknowledged redemption is not there.
    pub(super) fn may_be_lost(&self, id: RedemptionId) -> bool {
        let is_promised = self
            .grants
            .get(&id)
            .is_some_and(|grants| grants.iter().any(|(_, grant)| self.is_firm(grant)));
        self.is_lossy() && !is_promised && !self.rows.contains_key(&id)
    }

    /// Redemptions that were told or are there, but for those that a fault may have lost; also those that were taken
    /// back.
    pub(super) fn standing(&self) -> BTreeMap<RedemptionId, (&'a UserId, InviteId, UseNumber)> {
        let told = self.grants.iter().filter(|(id, _)| !self.may_be_lost(**id)).map(|(id, all)| {
            let (operation, grant) = all[0];
            (*id, (&operation.user, operation.invite, (grant.position.partition, grant.ordinal)))
        });
        let number = |row: &RedemptionRow| (row.position.partition, row.ordinal);
        let there = self.rows.values().map(|row| (row.id, (&row.user, row.invite, number(row))));
        told.chain(there).collect()
    }

    /// Whether a redemption is there in the end and counts.
    pub(super) fn is_live(&self, id: RedemptionId) -> bool {
        self.rows.get(&id).is_some_and(|row| row.rolled_back_at.is_none())
    }

    /// Whether a user has a live redemption of an invite in the end.
    pub(super) fn has_live_row(&self, pair: Pair<'a>) -> bool {
        self.redemptions_of(pair).any(|id| self.is_live(id))
    }

    pub(super) fn redemptions_of(&self, pair: Pair<'a>) -> impl Iterator<Item = RedemptionId> {
        self.redemptions.get(&pair).into_iter().flatten().copied()
    }

    fn operations_of(&self, pair: Pair<'a>) -> impl Iterator<Item = &'a Operation> {
        self.operations.get(&pair).into_iter().flatten().copied()
    }

    fn holds_of(&self, pair: Pair<'a>) -> impl Iterator<Item = &'a Hold> {
        self.holds.get(&pair).into_iter().flatten().copied()
    }

    pub(super) fn rollbacks_of(&self, id: RedemptionId) -> impl Iterator<Item = &'a Rollback> {
        self.rollbacks.get(&id).into_iter().flatten().copied()
    }

    pub(super) fn releases_of(&self, id: ReservationId) -> impl Iterator<Item = &'a Release> {
        self.releases.get(&id).into_iter().flatten().copied()
    }

    /// Since when it is known that a redemption was taken back.
    pub(super) fn known_as_taken_back(&self, id: RedemptionId) -> Option<Duration> {
        let done =
            self.rollbacks_of(id).filter(|one| matches!(one.told, RollbackTold::RolledBack(_)));
        let asked = self.grants.get(&id).map(|grants| grants[0].0).into_iter();
        let told = asked.flat_map(|one| self.operations_of((&one.user, one.invite)));
        let told = told.filter(|one| matches!(&one.told, Told::RolledBack(it) if it.id == id));
        done.map(|one| one.returned).chain(told.map(|one| one.returned)).min()
    }

    /// Whether somebody may have taken a redemption back.
    pub(super) fn may_be_taken_back(&self, id: RedemptionId) -> bool {
        self.rollbacks_of(id).any(Rollback::may_have_rolled_back)
    }

    /// Since when it is known that a reservation was given back.
    pub(super) fn known_as_released(&self, id: ReservationId) -> Option<Duration> {
        let done = self.releases_of(id).filter(|one| one.told == ReleaseTold::Released);
        done.map(|one| one.returned).min()
    }

    /// The key whose request has made a redemption, if no other one can have.
    pub(super) fn maker(&self, id: RedemptionId) -> Option<&'a RequestId> {
        let grants = self.grants.get(&id);
        let new = grants.into_iter().flatten().find(|(_, grant)| !grant.replayed);
        if let Some((operation, _)) = new {
            return Some(&operation.key);
        }
        let row = self.rows.get(&id).map(|row| (&row.user, row.invite));
        let pair = grants.map(|all| (&all[0].0.user, all[0].0.invite)).or(row)?;
        let keys = self.operations_of(pair).filter(|one| one.may_have_made(id));
        let keys: BTreeSet<_> = keys.map(|one| &one.key).collect();
        keys.first().copied().filter(|_| keys.len() == 1)
    }

    /// When a user may have had a redemption of an invite. Where nothing can be lost, what the end does not show never
    /// happened; where something can, whatever ended may have come back.
    pub(super) fn may_have_redeemed(&self, pair: Pair<'a>) -> Vec<Span> {
        if self.is_lossy() {
            let spending = self.operations_of(pair).filter(|one| one.may_have_spent());
            let from = spending.map(|one| one.invoked).min();
            return from.map(|from| Span { from, to: None }).into_iter().collect();
        }
        self.redemptions_of(pair).map(|id| self.may_have_stood(pair, id)).collect()
    }

    fn may_have_stood(&self, pair: Pair<'a>, id: RedemptionId) -> Span {
        let asked = self.operations_of(pair).filter(|one| one.may_have_made(id));
        let from = asked.map(|one| one.invoked).min().unwrap_or_default();
        Span { from, to: self.known_as_taken_back(id) }
    }

    /// When a user may have held or spent a use of an invite.
    pub(super) fn may_have_used(&self, pair: Pair<'a>) -> Vec<Span> {
        let mut spans = self.may_have_redeemed(pair);
        for hold in self.holds_of(pair).filter(|hold| hold.may_have_held()) {
            let released = match hold.told {
                HoldTold::Held(id) => self.known_as_released(id),
                // It may be done yet.
                _ => None,
            };
            // Whoever redeems spends what is held, and a redemption that was taken back leaves nothing held.
            let is_later = |id: &RedemptionId| self.may_have_stood(pair, *id).from > hold.returned;
            let spent = self.redemptions_of(pair).filter(is_later);
            let spent = spent.filter_map(|id| self.known_as_taken_back(id)).min();
            let is_known = matches!(hold.told, HoldTold::Held(_));
            let ended = released.into_iter().chain(spent.filter(|_| is_known)).min();
            spans.push(Span { from: hold.invoked, to: ended.filter(|_| !self.is_lossy()) });
        }
        merged(spans)
    }

    /// When a redemption certainly stood, as its user had been told or as the end shows.
    pub(super) fn certainly_stood(&self, id: RedemptionId) -> Option<Span> {
        let is_live = self.is_live(id);
        if self.is_lossy() {
            let is_there = is_live || !self.rows.contains_key(&id) && !self.may_be_taken_back(id);
            return (is_there && !self.may_be_lost(id)).then_some(Span::IN_THE_END);
        }
        let told = self.grants.get(&id).into_iter().flatten();
        let from = told.map(|(operation, _)| operation.returned).min();
        let undone = self.rollbacks_of(id).filter(|one| one.may_have_rolled_back());
        let to = undone.map(|one| one.invoked).min().filter(|_| !is_live);
        let span = Span { from: from.unwrap_or(Duration::MAX), to };
        to.is_none_or(|to| span.from < to).then_some(span)
    }

    /// The reservations that a user was told of, each with the time when it certainly held a use or that had been spent.
    pub(super) fn certainly_held(&self, pair: Pair<'a>) -> BTreeMap<ReservationId, Span> {
        let mut held: BTreeMap<ReservationId, Span> = BTreeMap::new();
        if self.is_lossy() {
            return held;
        }
        for hold in self.holds_of(pair) {
            let HoldTold::Held(id) = hold.told else { continue };
            let span = held.entry(id).or_insert(Span { from: hold.returned, to: None });
            span.from = span.from.min(hold.returned);
        }
        let run_out = self.holds_of(pair).map(|hold| hold.invoked + HELD_FOR).min();
        let undone = self.redemptions_of(pair).flat_map(|id| self.rollbacks_of(id));
        let undone = undone.filter(|one| one.may_have_rolled_back()).map(|one| one.invoked).min();
        for (id, span) in &mut held {
            let released = self.releases_of(*id).filter(|one| one.may_have_released());
            let released = released.map(|one| one.invoked).min();
            span.to = [released, undone, run_out].into_iter().flatten().min();
        }
        held.retain(|_, span| span.to.is_none_or(|to| span.from < to));
        held
    }

    /// When a user certainly held or had spent a use of an invite.
    pub(super) fn certainly_used(&self, pair: Pair<'a>) -> Vec<Span> {
        let redeemed = self.redemptions_of(pair).filter_map(|id| self.certainly_stood(id));
        merged(redeemed.chain(self.certainly_held(pair).into_values()).collect())
    }

    /// Everybody who asked for something of an invite or has it.
    pub(super) fn pairs_of(&self, invite: InviteId) -> impl Iterator<Item = Pair<'a>> {
        self.users.get(&invite).into_iter().flatten().map(move |user| (*user, invite))
    }

    /// Whether what a user may have held may have run out.
    pub(super) fn may_have_run_out(&self, pair: Pair<'a>) -> bool {
        let mut held = self.holds_of(pair).filter(|hold| hold.may_have_held());
        held.any(|hold| hold.invoked + HELD_FOR <= self.outcome.at)
    }

    /// How many users hold a use in the end, at the least and at the most.
    pub(super) fn held_in_the_end(&self, invite: InviteId) -> (u64, u64) {
        let (mut least, mut most) = (0, 0);
        for pair in self.pairs_of(invite) {
            let may_hold = self.holds_of(pair).any(|hold| match hold.told {
                HoldTold::Held(id) => self.is_lossy() || self.known_as_released(id).is_none(),
                _ => hold.may_have_held(),
            });
            most += u64::from(may_hold && !self.has_live_row(pair));
            let at = self.outcome.at;
            let holds = self.certainly_held(pair).values().any(|span| span.covers(at, at));
            least += u64::from(holds && self.redemptions_of(pair).next().is_none());
        }
        (least, most)
    }
}
