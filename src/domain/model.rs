//! The gate in pure Rust: what the scripts under `lua/` mean, one operation after the other.
//!
//! It is the oracle that the scripts are tested against on random histories, and the shortest way to read what they
//! do. Each operation takes its arguments and the time, changes the partition, and returns what the script would say.
//! What it leaves out is what the scripts need only because they run on Redis: fences, keys, and batches, which mean
//! the same as their requests one by one.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Answer, Campaign, CampaignName, Code, Cursor, ErrorDetail, Group, Invite, InviteId, Member,
    MembershipRule, Millis, Namespace, Outcome, Partition, Policy, Position, Quota, RateStatus,
    Redemption, RedemptionId, Refusal, Reservation, Settings, UserId, campaign,
    command::{
        Action, BatchCreated, CampaignPut, ChangeInvite, Changed, CreateBatch, CreateInvite,
        Created, DeleteInvite, Deleted, EraseUser, Erased, ImportInvites, ImportMembers, Imported,
        InviteImport, InvitePatch, Join, Joined, Leave, Left, MemberImport, Mode, NamespacePut,
        PutCampaign, PutNamespace, Redeem, Release, ReleaseAnswer, Rollback, RollbackAnswer, Rules,
        RulesPatch,
    },
    invite,
    rate_limit::{self, Verdict},
};

/// One partition.
#[derive(Debug, Clone)]
pub struct Model {
    partition: Partition,
    /// The place of the last change.
    cursor: Cursor,
    /// Changes that the ledger does not have yet.
    outbox_len: u64,
    /// The outbox's length from which on nothing is granted.
    outbox_max: u64,
    spaces: BTreeMap<Namespace, Space>,
}

/// One namespace.
#[derive(Debug, Clone)]
struct Space {
    settings: Settings,
    /// What makes a repeat of the last change recognisable.
    last_change: uuid::Uuid,
    /// The current invite of each code.
    current: BTreeMap<Code, Kept>,
    /// Ended invites whose code a new one has taken.
    retired: BTreeMap<InviteId, Kept>,
    codes: BTreeMap<InviteId, Code>,
    users: BTreeMap<UserId, User>,
    campaigns: BTreeMap<CampaignName, Campaign>,
    /// What is held of each campaign, by deadline; here too what has run out stays until somebody asks.
    campaign_held: BTreeMap<CampaignName, BTreeSet<(Millis, Code, UserId)>>,
    /// Until when each budget is not full, in microseconds since 1970.
    budgets: BTreeMap<(Policy, String), u64>,
}

/// An invite and what makes a repeat of its last change recognisable.
#[derive(Debug, Clone)]
struct Kept {
    invite: Invite,
    /// Until when each user holds a use, also past its end until somebody asks.
    held: BTreeMap<UserId, Millis>,
    last_change: Option<uuid::Uuid>,
}

impl Kept {
    fn new(invite: Invite) -> Self {
        Self { invite, held: BTreeMap::new(), last_change: None }
    }

    fn shown(&self, now: Millis) -> invite::Shown {
        let held = self.held.values().filter(|until| **until > now).count() as u64;
        invite::Shown { invite: self.invite.clone(), held, now }
    }
}

/// What is known of a user. Answers stay for ever; memberships come and go.
#[derive(Debug, Clone, Default)]
struct User {
    groups: BTreeMap<Group, Membership>,
    /// The live redemption of each invite, under [`MembershipRule::OnePerInvite`].
    invites: BTreeMap<InviteId, Redemption>,
    /// What each request was answered, and when that was taken back.
    requests: BTreeMap<String, (Redemption, Option<Millis>)>,
}

impl User {
    /// How many uses of an invite the user has spent and not got back.
    fn uses_of(&self, invite: InviteId) -> u64 {
        let holds = |(redemption, undone): &&(Redemption, Option<Millis>)| {
            redemption.invite == invite && undone.is_none()
        };
        self.requests.values().filter(holds).count() as u64
    }

    fn rename(&mut self, to: &UserId) {
        let memberships = self.groups.values_mut().filter_map(|membership| match membership {
            Membership::Redeemed(redemption) => Some(redemption),
            Membership::Joined(_) => None,
        });
        let answers = self.requests.values_mut().map(|(redemption, _)| redemption);
        for redemption in memberships.chain(self.invites.values_mut()).chain(answers) {
            redemption.user = to.clone();
        }
    }

    /// A redemption ceases to hold, and the membership ends if it was this redemption's. Where each invite counts by
    /// itself, another one of the same group may still stand for it: the latest.
    fn take_back(&mut self, redemption: &Redemption, now: Millis) {
        for (known, undone) in self.requests.values_mut() {
            if known.id == redemption.id {
                *undone = Some(now);
            }
        }
        self.invites.retain(|_, live| live.id != redemption.id);
        let made_by = self.groups.get(&redemption.group).and_then(Membership::redemption);
        if made_by.is_some_and(|made_by| made_by.id == redemption.id) {
            let others = self.invites.values().filter(|live| live.group == redemption.group);
            let latest = others.max_by_key(|live| live.position.cursor).cloned();
            match latest {
                Some(latest) => {
                    self.groups.insert(redemption.group.clone(), Membership::Redeemed(latest));
                }
                None => {
                    self.groups.remove(&redemption.group);
                }
            }
        }
    }
}

/// How a user came to be in a group.
#[derive(Debug, Clone)]
enum Membership {
    Redeemed(Redemption),
    Joined(Millis),
}

impl Membership {
    fn redemption(&self) -> Option<&Redemption> {
        match self {
            Self::Redeemed(redemption) => Some(redemption),
            Self::Joined(_) => None,
        }
    }

    fn since(&self) -> Millis {
        match self {
            Self::Redeemed(redemption) => redemption.redeemed_at,
            Self::Joined(at) => *at,
        }
    }
}

/// A policy that applies to a request: whose budget, and how large it is.
struct Budget {
    policy: Policy,
    quota: Quota,
    subject: String,
}

impl Model {
    /// A partition without namespaces, whose last change was at `cursor` and whose outbox is empty.
    #[must_use]
    pub fn new(partition: Partition, cursor: Cursor, outbox_max: u64) -> Self {
        Self { partition, cursor, outbox_len: 0, outbox_max, spaces: BTreeMap::new() }
    }

    /// The place of the last change.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The ledger has everything.
    pub fn trim(&mut self) {
        self.outbox_len = 0;
    }

    /// `lua/redeem.lua` for one request.
    pub fn redeem(&mut self, request: &Redeem, now: Millis) -> Answer {
        let refused = |refusal, rates| Answer { outcome: Outcome::Refused(refusal), rates };
        let told = |outcome| Answer { outcome, rates: Vec::new() };
        let room = self.outbox_len < self.outbox_max;
        let Some(space) = self.spaces.get_mut(&request.namespace) else {
            return refused(Refusal::NamespaceNotFound, Vec::new());
        };

        // 1. Replay, before every other check, also in a namespace that was archived since; it charges
        // nothing.
        let user = request.user.as_ref().and_then(|user| space.users.get(user)).cloned();
        if let Mode::Redeem { request: id, .. } = &request.mode
            && let Some((before, undone)) =
                user.as_ref().and_then(|user| user.requests.get(&*id.stored()))
        {
            return match undone {
                _ if before.code != request.code => refused(Refusal::RequestIdReused, Vec::new()),
                Some(at) => {
                    let redemption = before.id;
                    refused(Refusal::AlreadyRolledBack { redemption, at: *at }, Vec::new())
                }
                None => told(Outcome::Replayed(before.clone())),
            };
        }
        if space.settings.archived_at.is_some() {
            return refused(Refusal::NamespaceNotFound, Vec::new());
        }
        let rule = space.settings.membership;
        let invite = space.current.get(&request.code).map(|kept| kept.invite.clone());
        if let Some(own) = own_redemption(rule, user.as_ref(), invite.as_ref()) {
            return match request.mode {
                Mode::Redeem { .. } => told(Outcome::Replayed(own.clone())),
                Mode::Validate => told(Outcome::Allowed),
                Mode::Reserve { .. } => {
                    let (group, redemption) = (own.group.clone(), Some(own.id));
                    refused(Refusal::AlreadyMember { group, redemption }, Vec::new())
                }
            };
        }
        space.sweep(&request.code, now);
        let kept = space.current.get(&request.code);
        let own = kept.and_then(|kept| kept.held.get(request.user.as_ref()?)).copied();
        if let (Mode::Reserve { .. }, Some(until), Some(invite), Some(user)) =
            (&request.mode, own, &invite, &request.user)
        {
            let Redeem { namespace, code, .. } = request;
            let reservation = Reservation::new(namespace, invite.id, code, user, until);
            return told(Outcome::Held { reservation, replayed: true });
        }
        let named = match &request.mode {
            Mode::Redeem { reservation, .. } => *reservation,
            Mode::Reserve { .. } | Mode::Validate => None,
        };
        let is_named = named.is_some() && named == own;

        // 2. Backpressure.
        let binding = !matches!(request.mode, Mode::Validate);
        if binding && !room {
            return refused(Refusal::Overloaded, Vec::new());
        }

        // 3. Rate limits: all are checked, none is charged yet. What a reservation is for was charged when it was made.
        let budgets = if is_named { Vec::new() } else { space.budgets_of(request) };
        if let Some(refusal) = budgets.iter().find_map(|budget| space.spent(budget, now)) {
            let rates = space.rates(&budgets, now);
            return refused(refusal, rates);
        }

        // 4. to 6. The invite, the membership, the uses. Where nothing is told of a code that can not be used, a member
        // is not told of the membership by one that is used up.
        let is_coarse = space.settings.error_detail == ErrorDetail::Coarse;
        let refusal = match &invite {
            None => Some(Refusal::NotFound),
            Some(invite) => refusal_of_invite(request, invite, is_named, now)
                .or_else(|| is_coarse.then(|| space.refusal_of_uses(request, own, now)).flatten())
                .or_else(|| refusal_of_membership(rule, user.as_ref(), &invite.group))
                .or_else(|| (named.is_some() && !is_named).then_some(Refusal::ReservationExpired))
                .or_else(|| space.refusal_of_uses(request, own, now)),
        };
        let refusal = refusal.map(|refusal| if is_coarse { folded(refusal) } else { refusal });

        // 7. Whoever passed the limits is charged; a miss also charges the guessing budget.
        let missed = matches!(refusal, Some(Refusal::NotFound | Refusal::Invalid));
        for budget in &budgets {
            if if budget.policy == Policy::Guess { missed } else { binding } {
                space.charge(budget, now);
            }
        }
        let rates = space.rates(&budgets, now);
        if let Some(refusal) = refusal {
            return refused(refusal, rates);
        }
        let outcome = match &request.mode {
            Mode::Validate => return Answer { outcome: Outcome::Allowed, rates },
            Mode::Reserve { ttl_ms } => space.hold(request, *ttl_ms, now),
            Mode::Redeem { request: id, redemption, .. } => {
                let position = Position { partition: self.partition, cursor: self.cursor.next() };
                space.grant(request, &id.stored(), *redemption, position, now)
            }
        };
        self.record(1);
        match outcome {
            Some(outcome) => Answer { outcome, rates },
            // It was there a moment ago.
            None => refused(Refusal::NotFound, rates),
        }
    }

    /// `lua/create_invite.lua`.
    pub fn create_invite(&mut self, create: &CreateInvite, now: Millis) -> Created {
        let Some(space) = live(&mut self.spaces, &create.namespace) else {
            return Created::NamespaceNotFound;
        };
        if let Some(code) = space.codes.get(&create.id) {
            if *code != create.code {
                return Created::IdTaken { code: code.clone() };
            }
            if let Some(kept) = space.find(create.id) {
                return Created::Created(kept.shown(now));
            }
        }
        if let Some(campaign) = &create.campaign
            && !space.campaigns.contains_key(campaign)
        {
            return Created::CampaignNotFound;
        }
        if let Some(holder) = space.current.get(&create.code) {
            let by = holder.invite.id;
            if !holder.invite.state(now).has_ended() {
                return Created::CodeTaken { by };
            }
            if let Some(mut ended) = space.current.remove(&create.code) {
                // What was held of it is held no more.
                let held = std::mem::take(&mut ended.held);
                space.forget_held(&ended.invite, held);
                space.retired.insert(by, ended);
            }
        }
        let invite = Invite {
            id: create.id,
            namespace: create.namespace.clone(),
            code: create.code.clone(),
            group: create.group.clone(),
            max_uses: create.max_uses,
            total: None,
            max_uses_per_user: create.max_uses_per_user,
            campaign: create.campaign.clone(),
            uses: 0,
            imported: 0,
            granted: 0,
            starts_at: create.starts_at,
            expires_at: create.expires_at,
            disabled: false,
            user: create.user.clone(),
            email_domains: create.email_domains.clone(),
            metadata: create.metadata.clone(),
            batch: None,
            revision: 1,
            created_at: now,
            updated_at: now,
        };
        space.codes.insert(create.id, create.code.clone());
        let kept = Kept::new(invite);
        let shown = kept.shown(now);
        space.current.insert(create.code.clone(), kept);
        self.record(1);
        Created::Created(shown)
    }

    /// `lua/create_batch.lua`.
    pub fn create_batch(&mut self, create: &CreateBatch, now: Millis) -> BatchCreated {
        let Some(space) = live(&mut self.spaces, &create.namespace) else {
            return BatchCreated::NamespaceNotFound;
        };
        if self.outbox_len >= self.outbox_max {
            return BatchCreated::Overloaded;
        }
        if let Some(campaign) = &create.campaign
            && !space.campaigns.contains_key(campaign)
        {
            return BatchCreated::CampaignNotFound;
        }
        let mut taken = Vec::new();
        let mut made = false;
        for (place, (id, code)) in create.invites.iter().enumerate() {
            if space.codes.contains_key(id) {
                continue;
            }
            // Also one that has ended keeps its code: there are others.
            if space.current.contains_key(code) {
                taken.push(place);
                continue;
            }
            let invite = Invite {
                id: *id,
                namespace: create.namespace.clone(),
                code: code.clone(),
                group: create.group.clone(),
                max_uses: create.max_uses,
                total: None,
                max_uses_per_user: create.max_uses_per_user,
                campaign: create.campaign.clone(),
                uses: 0,
                imported: 0,
                granted: 0,
                starts_at: create.starts_at,
                expires_at: create.expires_at,
                disabled: false,
                user: None,
                email_domains: create.email_domains.clone(),
                metadata: create.metadata.clone(),
                batch: Some(create.batch),
                revision: 1,
                created_at: now,
                updated_at: now,
            };
            space.codes.insert(*id, code.clone());
            space.current.insert(code.clone(), Kept::new(invite));
            made = true;
        }
        if made {
            self.record(1);
        }
        BatchCreated::Created { taken, cursor: self.cursor }
    }

    /// `lua/import_invites.lua`.
    pub fn import_invites(
        &mut self,
        import: &ImportInvites,
        now: Millis,
    ) -> Imported<InviteImport> {
        let Some(space) = live(&mut self.spaces, &import.namespace) else {
            return Imported::NamespaceNotFound;
        };
        if self.outbox_len >= self.outbox_max {
            return Imported::Overloaded;
        }
        let mut told = Vec::new();
        let mut changes = 0;
        for one in &import.invites {
            if space.codes.contains_key(&one.id) {
                told.push(InviteImport::Unchanged);
            } else if let Some(holder) = space.current.get(&one.code) {
                told.push(InviteImport::CodeTaken { by: holder.invite.id });
            } else {
                let invite = Invite {
                    id: one.id,
                    namespace: import.namespace.clone(),
                    code: one.code.clone(),
                    group: one.group.clone(),
                    max_uses: one.max_uses,
                    total: None,
                    max_uses_per_user: one.max_uses_per_user,
                    campaign: None,
                    uses: one.uses,
                    imported: one.uses,
                    granted: one.uses,
                    starts_at: one.starts_at,
                    expires_at: one.expires_at,
                    disabled: one.disabled,
                    user: one.user.clone(),
                    email_domains: one.email_domains.clone(),
                    metadata: one.metadata.clone(),
                    batch: None,
                    revision: 1,
                    created_at: now,
                    updated_at: now,
                };
                space.codes.insert(one.id, one.code.clone());
                space.current.insert(one.code.clone(), Kept::new(invite));
                told.push(InviteImport::Imported);
                changes += 1;
            }
        }
        self.record(changes);
        Imported::Done { told, cursor: self.cursor }
    }

    /// `lua/import_members.lua`.
    pub fn import_members(
        &mut self,
        import: &ImportMembers,
        now: Millis,
    ) -> Imported<MemberImport> {
        let Some(space) = live(&mut self.spaces, &import.namespace) else {
            return Imported::NamespaceNotFound;
        };
        if self.outbox_len >= self.outbox_max {
            return Imported::Overloaded;
        }
        let rule = space.settings.membership;
        let mut told = Vec::new();
        let mut changes = 0;
        for (user, group, since) in &import.members {
            let groups = &mut space.users.entry(user.clone()).or_default().groups;
            let found = groups
                .get_key_value(group)
                .or_else(|| groups.first_key_value().filter(|_| rule == MembershipRule::OneGroup));
            told.push(match found {
                Some((found, Membership::Joined(at)))
                    if found == group && since.is_none_or(|since| since == *at) =>
                {
                    MemberImport::Unchanged
                }
                Some((found, membership)) => MemberImport::AlreadyMember {
                    group: found.clone(),
                    redemption: membership.redemption().map(|redemption| redemption.id),
                },
                None => {
                    groups.insert(group.clone(), Membership::Joined(since.unwrap_or(now)));
                    changes += 1;
                    MemberImport::Imported
                }
            });
        }
        self.record(changes);
        Imported::Done { told, cursor: self.cursor }
    }

    /// `lua/change_invite.lua`.
    pub fn change_invite(&mut self, change: &ChangeInvite, now: Millis) -> Changed {
        let Some(space) = live(&mut self.spaces, &change.namespace) else {
            return Changed::NotFound;
        };
        if let Some(code) = space.find(change.id).map(|kept| kept.invite.code.clone())
            && !space.retired.contains_key(&change.id)
        {
            space.sweep(&code, now);
            space.sweep_campaign_of(&code, now);
        }
        let Some(mut kept) = space.find(change.id).cloned() else { return Changed::NotFound };
        if kept.last_change == Some(change.change) {
            return Changed::Changed(kept.shown(now));
        }
        let revision = kept.invite.revision;
        if change.expected_revision.is_some_and(|expected| expected != revision) {
            return Changed::PreconditionFailed { revision };
        }
        let mut invite = patched(&kept.invite, &change.patch);
        if let (Some(start), Some(end)) = (invite.starts_at, invite.expires_at)
            && start >= end
        {
            return Changed::WindowReversed;
        }
        let (uses, held) = (invite.uses, kept.held.len() as u64);
        if invite.max_uses.is_some_and(|max| max < uses + held) {
            return Changed::LimitBelowUsed { uses, held };
        }
        // One whose code is another's by now can come back only if that code is free.
        let was_retired = space.retired.contains_key(&change.id);
        let reopens = was_retired && !invite.state(now).has_ended();
        if reopens && let Some(holder) = space.current.get(&invite.code) {
            return Changed::CodeTaken { by: holder.invite.id };
        }
        invite.revision += 1;
        invite.updated_at = now;
        let code = invite.code.clone();
        kept.invite = invite;
        kept.last_change = Some(change.change);
        let shown = kept.shown(now);
        if was_retired && !reopens {
            space.retired.insert(change.id, kept);
        } else {
            space.retired.remove(&change.id);
            space.current.insert(code, kept);
        }
        self.record(1);
        Changed::Changed(shown)
    }

    /// `lua/delete_invite.lua`.
    pub fn delete_invite(&mut self, delete: &DeleteInvite, now: Millis) -> Deleted {
        let Some(space) = live(&mut self.spaces, &delete.namespace) else {
            return Deleted::NotFound;
        };
        let Some(shown) = space.find(delete.id).map(|kept| kept.shown(now)) else {
            return Deleted::NotFound;
        };
        let (held, code) = (shown.held, shown.invite.code.clone());
        let Invite { revision, uses, granted, .. } = shown.invite;
        if delete.expected_revision.is_some_and(|expected| expected != revision) {
            return Deleted::PreconditionFailed { revision };
        }
        if granted > 0 || held > 0 {
            return Deleted::InUse { uses, held };
        }
        if space.retired.remove(&delete.id).is_none()
            && let Some(Kept { invite, held, .. }) = space.current.remove(&code)
        {
            space.forget_held(&invite, held);
        }
        space.codes.remove(&delete.id);
        self.record(1);
        Deleted::Deleted
    }

    /// `lua/show_invite.lua`, by id.
    #[must_use]
    pub fn show_invite(
        &mut self,
        namespace: &Namespace,
        id: InviteId,
        now: Millis,
    ) -> Option<invite::Shown> {
        let space = live(&mut self.spaces, namespace)?;
        space.find(id).map(|kept| kept.shown(now))
    }

    /// `lua/rollback.lua`.
    pub fn rollback(&mut self, rollback: &Rollback, now: Millis) -> RollbackAnswer {
        let Rollback { redemption, .. } = rollback;
        let Some(space) = live(&mut self.spaces, &redemption.namespace) else {
            return RollbackAnswer::NamespaceNotFound;
        };
        let user = space.users.get_mut(&redemption.user);
        let mut requests = user.into_iter().flat_map(|user| user.requests.values_mut());
        let Some((_, undone)) = requests.find(|(known, _)| known.id == redemption.id) else {
            return RollbackAnswer::NotFound;
        };
        if let Some(at) = *undone {
            return RollbackAnswer::RolledBack { at, replayed: true };
        }
        let Some(mut kept) = space.find(redemption.invite).cloned() else {
            return RollbackAnswer::NotFound;
        };
        kept.invite.uses -= 1;
        let was_retired = space.retired.contains_key(&redemption.invite);
        let reopens = was_retired && !kept.invite.state(now).has_ended();
        if reopens && let Some(holder) = space.current.get(&redemption.code) {
            return RollbackAnswer::CodeTaken { by: holder.invite.id };
        }
        if let Some(campaign) =
            kept.invite.campaign.as_ref().and_then(|name| space.campaigns.get_mut(name))
        {
            campaign.uses -= 1;
        }
        if was_retired && !reopens {
            space.retired.insert(redemption.invite, kept);
        } else {
            space.retired.remove(&redemption.invite);
            space.current.insert(redemption.code.clone(), kept);
        }
        if let Some(user) = space.users.get_mut(&redemption.user) {
            user.take_back(redemption, now);
        }
        self.record(1);
        RollbackAnswer::RolledBack { at: now, replayed: false }
    }

    /// `lua/release.lua`.
    pub fn release(&mut self, release: &Release, now: Millis) -> ReleaseAnswer {
        let Release { reservation, .. } = release;
        let Some(space) = self.spaces.get_mut(&reservation.namespace) else {
            return ReleaseAnswer::NamespaceNotFound;
        };
        let kept = space.current.get_mut(&reservation.code);
        let Some(kept) = kept.filter(|kept| kept.invite.id == reservation.invite) else {
            return ReleaseAnswer::NotHeld;
        };
        if kept.held.get(&reservation.user) != Some(&reservation.until) {
            return ReleaseAnswer::NotHeld;
        }
        kept.held.remove(&reservation.user);
        let invite = kept.invite.clone();
        space.forget_held(&invite, [(reservation.user.clone(), reservation.until)]);
        // What has run out is nobody's; it needs no entry to be gone.
        if reservation.until <= now {
            return ReleaseAnswer::NotHeld;
        }
        self.record(1);
        ReleaseAnswer::Released
    }

    /// `lua/show_reservation.lua`.
    #[must_use]
    pub fn show_reservation(
        &mut self,
        namespace: &Namespace,
        code: &Code,
        user: &UserId,
        now: Millis,
    ) -> Option<Reservation> {
        let kept = live(&mut self.spaces, namespace)?.current.get(code)?;
        let until = *kept.held.get(user).filter(|until| **until > now)?;
        Some(Reservation::new(namespace, kept.invite.id, code, user, until))
    }

    /// `lua/put_campaign.lua`.
    pub fn put_campaign(&mut self, put: &PutCampaign, now: Millis) -> CampaignPut {
        let Some(space) = live(&mut self.spaces, &put.namespace) else {
            return CampaignPut::NamespaceNotFound;
        };
        let held = space.held_of(&put.name, now);
        let known = space.campaigns.get(&put.name).cloned();
        let (uses, revision) = known.as_ref().map_or((0, 0), |known| (known.uses, known.revision));
        if let Some(campaign) = known.clone().filter(|known| known.max_uses == put.max_uses) {
            return CampaignPut::Changed(campaign::Shown { campaign, held });
        }
        if put.expected_revision.is_some_and(|expected| expected != revision) {
            return CampaignPut::PreconditionFailed { revision };
        }
        if known.is_some() && put.max_uses.is_some_and(|max| max < uses + held) {
            return CampaignPut::LimitBelowUsed { uses, held };
        }
        if known.is_none() && space.campaigns.len() as u64 >= campaign::CAMPAIGNS_MAX {
            return CampaignPut::TooMany;
        }
        let campaign = Campaign {
            namespace: put.namespace.clone(),
            name: put.name.clone(),
            max_uses: put.max_uses,
            total: None,
            uses,
            revision: revision + 1,
            created_at: known.as_ref().map_or(now, |known| known.created_at),
            updated_at: now,
        };
        space.campaigns.insert(put.name.clone(), campaign.clone());
        self.record(1);
        let shown = campaign::Shown { campaign, held };
        if known.is_some() { CampaignPut::Changed(shown) } else { CampaignPut::Created(shown) }
    }

    /// `lua/show_campaign.lua`.
    #[must_use]
    pub fn show_campaign(
        &mut self,
        namespace: &Namespace,
        name: &CampaignName,
        now: Millis,
    ) -> Option<campaign::Shown> {
        let space = live(&mut self.spaces, namespace)?;
        let campaign = space.campaigns.get(name)?.clone();
        Some(campaign::Shown { campaign, held: space.held_of(name, now) })
    }

    /// `lua/join.lua`.
    pub fn join(&mut self, join: &Join, now: Millis) -> Joined {
        let Some(space) = live(&mut self.spaces, &join.namespace) else {
            return Joined::NamespaceNotFound;
        };
        let rule = space.settings.membership;
        let known = space.users.entry(join.user.clone()).or_default();
        let member = |membership: &Membership| Member {
            namespace: join.namespace.clone(),
            user: join.user.clone(),
            group: join.group.clone(),
            redemption: membership.redemption().map(|redemption| redemption.id),
            joined_at: membership.since(),
        };
        if let Some(membership) = known.groups.get(&join.group) {
            return Joined::Already(member(membership));
        }
        if rule == MembershipRule::OneGroup
            && let Some((group, membership)) = known.groups.first_key_value()
        {
            let redemption = membership.redemption().map(|redemption| redemption.id);
            return Joined::AlreadyMember { group: group.clone(), redemption };
        }
        let membership = Membership::Joined(now);
        let joined = member(&membership);
        known.groups.insert(join.group.clone(), membership);
        self.record(1);
        Joined::Joined(joined)
    }

    /// `lua/leave.lua`.
    pub fn leave(&mut self, leave: &Leave) -> Left {
        let Some(space) = live(&mut self.spaces, &leave.namespace) else {
            return Left::NamespaceNotFound;
        };
        let known = space.users.entry(leave.user.clone()).or_default();
        let groups = known
            .groups
            .keys()
            .filter(|group| leave.group.as_ref().is_none_or(|only| only == *group));
        let groups: Vec<Group> = groups.cloned().collect();
        if groups.is_empty() {
            return Left::NotMember;
        }
        for group in &groups {
            known.groups.remove(group);
            known.invites.retain(|_, redemption| redemption.group != *group);
        }
        self.record(groups.len() as u64);
        Left::Left(groups)
    }

    /// `lua/erase_user.lua`.
    pub fn erase_user(&mut self, erase: &EraseUser) -> Erased {
        let Some(space) = self.spaces.get_mut(&erase.namespace) else {
            return Erased::NamespaceNotFound;
        };
        if let Some(mut user) = space.users.remove(&erase.user) {
            // Request ids are the application's own words.
            let answers = std::mem::take(&mut user.requests).into_values();
            user.requests =
                answers.map(|(answer, undone)| (answer.id.to_string(), (answer, undone))).collect();
            user.rename(&erase.alias);
            space.users.insert(erase.alias.clone(), user);
        }
        for kept in space.current.values_mut().chain(space.retired.values_mut()) {
            let invite = &mut kept.invite;
            if invite.user.as_ref() == Some(&erase.user)
                && erase.invites.iter().any(|(id, _)| *id == invite.id)
            {
                invite.user = Some(erase.alias.clone());
            }
        }
        space.budgets.remove(&(Policy::User, erase.user.to_string()));
        space.budgets.remove(&(Policy::Guess, format!("user:{}", erase.user)));
        self.record(1);
        Erased::Erased { cursor: self.cursor }
    }

    /// `lua/show_member.lua`.
    #[must_use]
    pub fn show_member(&mut self, namespace: &Namespace, user: &UserId) -> Vec<Member> {
        let known = live(&mut self.spaces, namespace).and_then(|space| space.users.get(user));
        let groups = known.into_iter().flat_map(|known| &known.groups);
        groups
            .map(|(group, membership)| Member {
                namespace: namespace.clone(),
                user: user.clone(),
                group: group.clone(),
                redemption: membership.redemption().map(|redemption| redemption.id),
                joined_at: membership.since(),
            })
            .collect()
    }

    /// `lua/put_namespace.lua`.
    pub fn put_namespace(&mut self, put: &PutNamespace, now: Millis) -> NamespacePut {
        let Some(space) = self.spaces.get_mut(&put.namespace) else {
            let (Action::Put(rules) | Action::Ensure(rules)) = &put.action else {
                return NamespacePut::NotFound;
            };
            if put.expected_revision.is_some() {
                return NamespacePut::PreconditionFailed { revision: 0 };
            }
            let settings = new_settings(rules, now);
            self.spaces.insert(put.namespace.clone(), Space::new(settings.clone(), put.change));
            self.record(1);
            return NamespacePut::Created { settings, now };
        };
        let settings = space.settings.clone();
        let is_archived = settings.archived_at.is_some();
        let unchanged = space.last_change == put.change
            || matches!(put.action, Action::Ensure(_))
            || put.action == Action::Archive && is_archived;
        if unchanged {
            return NamespacePut::Changed { settings, now };
        }
        if is_archived && matches!(put.action, Action::Patch(_)) {
            return NamespacePut::NotFound;
        }
        let revision = settings.revision;
        if put.expected_revision.is_some_and(|expected| expected != revision) {
            return NamespacePut::PreconditionFailed { revision };
        }
        let changed = match &put.action {
            Action::Put(rules) | Action::Ensure(rules) => {
                if (rules.membership, rules.code_case, rules.code_check)
                    != (settings.membership, settings.code_case, settings.code_check)
                {
                    return NamespacePut::FixedRules { settings };
                }
                Settings { created_at: settings.created_at, ..new_settings(rules, now) }
            }
            Action::Patch(patch) => patched_settings(&settings, patch),
            Action::Archive => Settings { archived_at: Some(now), ..settings },
        };
        space.settings = Settings { revision: revision + 1, updated_at: now, ..changed };
        space.last_change = put.change;
        let settings = space.settings.clone();
        self.record(1);
        NamespacePut::Changed { settings, now }
    }

    fn record(&mut self, changes: u64) {
        self.cursor.seq += changes;
        self.outbox_len += changes;
    }
}

impl Space {
    fn new(settings: Settings, last_change: uuid::Uuid) -> Self {
        Self {
            settings,
            last_change,
            current: BTreeMap::new(),
            retired: BTreeMap::new(),
            codes: BTreeMap::new(),
            users: BTreeMap::new(),
            campaigns: BTreeMap::new(),
            campaign_held: BTreeMap::new(),
            budgets: BTreeMap::new(),
        }
    }

    fn find(&self, id: InviteId) -> Option<&Kept> {
        let current = self.codes.get(&id).and_then(|code| self.current.get(code));
        current.filter(|kept| kept.invite.id == id).or_else(|| self.retired.get(&id))
    }

    /// How many uses of a campaign are held.
    fn held_of(&self, campaign: &CampaignName, now: Millis) -> u64 {
        let held = self.campaign_held.get(campaign).into_iter().flatten();
        held.filter(|(until, ..)| *until > now).count() as u64
    }

    /// Whoever looks at a code takes away what has run out of it, and of its campaign: it counts no more, also if the
    /// clock goes back.
    fn sweep(&mut self, code: &Code, now: Millis) {
        let Some(kept) = self.current.get_mut(code) else { return };
        let before = kept.held.len();
        kept.held.retain(|_, until| *until > now);
        if kept.held.len() < before {
            self.sweep_campaign_of(code, now);
        }
    }

    fn sweep_campaign_of(&mut self, code: &Code, now: Millis) {
        let campaign = self.current.get(code).and_then(|kept| kept.invite.campaign.as_ref());
        if let Some(held) = campaign.and_then(|name| self.campaign_held.get_mut(name)) {
            held.retain(|(until, ..)| *until > now);
        }
    }

    /// What was held of an invite is not held of its campaign any more.
    fn forget_held(&mut self, invite: &Invite, held: impl IntoIterator<Item = (UserId, Millis)>) {
        let campaign = invite.campaign.as_ref();
        let Some(of_campaign) = campaign.and_then(|name| self.campaign_held.get_mut(name)) else {
            return;
        };
        for (user, until) in held {
            of_campaign.remove(&(until, invite.code.clone(), user));
        }
    }

    /// Whether there is a use for this request; `own` is the deadline of the one that its user holds, which counts for
    /// nobody else.
    fn refusal_of_uses(
        &mut self,
        request: &Redeem,
        own: Option<Millis>,
        now: Millis,
    ) -> Option<Refusal> {
        let kept = self.current.get(&request.code)?;
        let Invite { id, max_uses, uses, max_uses_per_user, .. } = kept.invite;
        let user = request.user.as_ref().and_then(|user| self.users.get(user));
        let spent = user.map_or(0, |user| user.uses_of(id));
        if request.user.is_some() && max_uses_per_user.is_some_and(|max| spent >= max) {
            return Some(Refusal::UserLimitReached);
        }
        let held = if own.is_some() { 0 } else { kept.held.len() as u64 };
        if max_uses.is_some_and(|max| uses >= max || uses + held >= max) {
            let held_only = max_uses.is_some_and(|max| uses < max);
            let may_free_at = kept.held.values().min().filter(|_| held_only).copied();
            return Some(Refusal::Exhausted { may_free_at });
        }
        let campaign = kept.invite.campaign.clone()?;
        self.sweep_campaign_of(&request.code, now);
        let mine = own.zip(request.user.clone()).is_some_and(|(until, user)| {
            let held = self.campaign_held.get(&campaign);
            held.is_some_and(|held| held.contains(&(until, request.code.clone(), user)))
        });
        let held = if mine { 0 } else { self.held_of(&campaign, now) };
        let Campaign { uses, max_uses, .. } = *self.campaigns.get(&campaign)?;
        max_uses
            .is_some_and(|max| uses >= max || uses + held >= max)
            .then_some(Refusal::CampaignExhausted)
    }

    /// Holds a use for the user of a request, never past the end of the invite's window.
    fn hold(&mut self, request: &Redeem, ttl_ms: u64, now: Millis) -> Option<Outcome> {
        let kept = self.current.get_mut(&request.code)?;
        let user = request.user.clone()?;
        let asked = Millis::from_ms(now.as_ms().checked_add_unsigned(ttl_ms)?).ok()?;
        let until = kept.invite.expires_at.map_or(asked, |end| asked.min(end));
        kept.held.insert(user.clone(), until);
        if let Some(campaign) = &kept.invite.campaign {
            let held = self.campaign_held.entry(campaign.clone()).or_default();
            held.insert((until, request.code.clone(), user.clone()));
        }
        let Redeem { namespace, code, .. } = request;
        let reservation = Reservation::new(namespace, kept.invite.id, code, &user, until);
        Some(Outcome::Held { reservation, replayed: false })
    }

    /// Spends a use for the user of a request, the one that the user holds if there is one.
    fn grant(
        &mut self,
        request: &Redeem,
        id: &str,
        redemption: RedemptionId,
        position: Position,
        now: Millis,
    ) -> Option<Outcome> {
        let rule = self.settings.membership;
        let user = request.user.clone()?;
        let kept = self.current.get_mut(&request.code)?;
        kept.invite.uses += 1;
        kept.invite.granted += 1;
        let own = kept.held.remove(&user);
        let invite = kept.invite.clone();
        if let Some(until) = own {
            self.forget_held(&invite, [(user.clone(), until)]);
        }
        if let Some(campaign) =
            invite.campaign.as_ref().and_then(|name| self.campaigns.get_mut(name))
        {
            campaign.uses += 1;
        }
        let granted = Redemption {
            id: redemption,
            namespace: request.namespace.clone(),
            invite: invite.id,
            code: request.code.clone(),
            group: invite.group.clone(),
            user: user.clone(),
            ordinal: invite.granted,
            remaining: invite.remaining(),
            redeemed_at: now,
            position,
        };
        let known = self.users.entry(user).or_default();
        known.groups.insert(granted.group.clone(), Membership::Redeemed(granted.clone()));
        known.requests.insert(id.to_owned(), (granted.clone(), None));
        if rule == MembershipRule::OnePerInvite {
            known.invites.insert(granted.invite, granted.clone());
        }
        Some(Outcome::Granted(granted))
    }

    /// The budgets that a request draws on: of the policies that are on, those whose subject it names.
    fn budgets_of(&self, request: &Redeem) -> Vec<Budget> {
        let ip = request.ip.map(rate_limit::address_subject);
        let user = request.user.as_ref().map(ToString::to_string);
        let subject = |policy| match policy {
            Policy::User => user.clone(),
            Policy::Ip => ip.clone(),
            Policy::Code => Some(request.code.to_string()),
            Policy::Namespace => Some("all".to_owned()),
            Policy::Guess => Some(match (&ip, &user) {
                (Some(ip), _) => format!("ip:{ip}"),
                (None, Some(user)) => format!("user:{user}"),
                (None, None) => format!("key:{}", request.caller),
            }),
        };
        let budget = |policy: &Policy| {
            let quota = self.settings.quota(*policy)?;
            Some(Budget { policy: *policy, quota, subject: subject(*policy)? })
        };
        Policy::ALL.iter().filter_map(budget).collect()
    }

    fn stored(&self, budget: &Budget) -> Option<u64> {
        self.budgets.get(&(budget.policy, budget.subject.clone())).copied()
    }

    fn spent(&self, budget: &Budget, now: Millis) -> Option<Refusal> {
        match rate_limit::check(budget.quota, self.stored(budget), micros(now)) {
            Verdict::Fits { .. } => None,
            Verdict::Wait { retry_after_ms } if budget.policy == Policy::Guess => {
                Some(Refusal::TooManyAttempts { retry_after_ms })
            }
            Verdict::Wait { retry_after_ms } => {
                Some(Refusal::RateLimited { policy: budget.policy, retry_after_ms })
            }
        }
    }

    fn charge(&mut self, budget: &Budget, now: Millis) {
        if let Verdict::Fits { tat_us } =
            rate_limit::check(budget.quota, self.stored(budget), micros(now))
        {
            self.budgets.insert((budget.policy, budget.subject.clone()), tat_us);
        }
    }

    fn rates(&self, budgets: &[Budget], now: Millis) -> Vec<RateStatus> {
        let now_us = micros(now);
        let rate = |budget: &Budget| {
            let tat_us = rate_limit::clamp(budget.quota, self.stored(budget), now_us);
            rate_limit::status(budget.policy, budget.quota, tat_us - now_us)
        };
        budgets.iter().map(rate).collect()
    }
}

/// The namespace, if it exists and is not archived.
fn live<'a>(
    spaces: &'a mut BTreeMap<Namespace, Space>,
    namespace: &Namespace,
) -> Option<&'a mut Space> {
    spaces.get_mut(namespace).filter(|space| space.settings.archived_at.is_none())
}

fn micros(now: Millis) -> u64 {
    now.as_ms().unsigned_abs() * 1000
}

/// This user's live redemption of this very invite, where the rule allows only one.
fn own_redemption<'a>(
    rule: MembershipRule,
    user: Option<&'a User>,
    invite: Option<&Invite>,
) -> Option<&'a Redemption> {
    let (user, invite) = (user?, invite?);
    let redemption = match rule {
        MembershipRule::Unlimited => None,
        MembershipRule::OnePerInvite => user.invites.get(&invite.id),
        MembershipRule::OneGroup | MembershipRule::OnePerGroup => {
            user.groups.get(&invite.group).and_then(Membership::redemption)
        }
    };
    redemption.filter(|redemption| redemption.invite == invite.id)
}

/// What a namespace tells that hides which codes exist: of a code that can not be used, always the same.
fn folded(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::NotFound
        | Refusal::Disabled
        | Refusal::NotStarted { .. }
        | Refusal::Expired { .. }
        | Refusal::UserNotAllowed
        | Refusal::EmailDomainNotAllowed
        | Refusal::Exhausted { .. }
        | Refusal::CampaignExhausted => Refusal::Invalid,
        other => other,
    }
}

/// `is_named`: the request names its user's live reservation, for which the e-mail address was asked when it was made.
fn refusal_of_invite(
    request: &Redeem,
    invite: &Invite,
    is_named: bool,
    now: Millis,
) -> Option<Refusal> {
    if invite.disabled {
        return Some(Refusal::Disabled);
    }
    if let Some(starts_at) = invite.starts_at.filter(|start| now < *start) {
        return Some(Refusal::NotStarted { starts_at });
    }
    if let Some(expires_at) = invite.expires_at.filter(|end| now >= *end) {
        return Some(Refusal::Expired { expires_at });
    }
    // A validation that leaves out the user or the e-mail address is told nothing that depends on them.
    let binding = !matches!(request.mode, Mode::Validate);
    if invite.user.is_some() && (binding || request.user.is_some()) && invite.user != request.user {
        return Some(Refusal::UserNotAllowed);
    }
    if !invite.email_domains.is_empty() && !is_named && (binding || request.email_domain.is_some())
    {
        let allowed = |domain| invite.email_domains.contains(domain);
        if !request.email_domain.as_ref().is_some_and(allowed) {
            return Some(Refusal::EmailDomainNotAllowed);
        }
    }
    None
}

fn refusal_of_membership(
    rule: MembershipRule,
    user: Option<&User>,
    group: &Group,
) -> Option<Refusal> {
    let groups = &user?.groups;
    let found = match rule {
        MembershipRule::OnePerInvite | MembershipRule::Unlimited => None,
        MembershipRule::OnePerGroup => groups.get_key_value(group),
        MembershipRule::OneGroup => {
            groups.get_key_value(group).or_else(|| groups.first_key_value())
        }
    };
    let (group, membership) = found?;
    let redemption = membership.redemption().map(|redemption| redemption.id);
    Some(Refusal::AlreadyMember { group: group.clone(), redemption })
}

fn patched(invite: &Invite, patch: &InvitePatch) -> Invite {
    let InvitePatch {
        max_uses,
        max_uses_per_user,
        starts_at,
        expires_at,
        disabled,
        user,
        email_domains,
        metadata,
    } = patch.clone();
    Invite {
        max_uses: max_uses.unwrap_or(invite.max_uses),
        max_uses_per_user: max_uses_per_user.unwrap_or(invite.max_uses_per_user),
        starts_at: starts_at.unwrap_or(invite.starts_at),
        expires_at: expires_at.unwrap_or(invite.expires_at),
        disabled: disabled.unwrap_or(invite.disabled),
        user: user.unwrap_or_else(|| invite.user.clone()),
        email_domains: email_domains.unwrap_or_else(|| invite.email_domains.clone()),
        metadata: metadata.unwrap_or_else(|| invite.metadata.clone()),
        ..invite.clone()
    }
}

fn new_settings(rules: &Rules, now: Millis) -> Settings {
    Settings {
        membership: rules.membership,
        code_case: rules.code_case,
        code_check: rules.code_check,
        durability: rules.durability,
        error_detail: rules.error_detail,
        rate_user: rules.rate_user,
        rate_ip: rules.rate_ip,
        rate_code: rules.rate_code,
        rate_namespace: rules.rate_namespace,
        rate_guess: rules.rate_guess,
        spread: rules.spread,
        layouts: Vec::new(),
        sealed: false,
        revision: 1,
        created_at: now,
        updated_at: now,
        archived_at: None,
    }
}

fn patched_settings(settings: &Settings, patch: &RulesPatch) -> Settings {
    Settings {
        durability: patch.durability.unwrap_or(settings.durability),
        error_detail: patch.error_detail.unwrap_or(settings.error_detail),
        rate_user: patch.rate_user.unwrap_or(settings.rate_user),
        rate_ip: patch.rate_ip.unwrap_or(settings.rate_ip),
        rate_code: patch.rate_code.unwrap_or(settings.rate_code),
        rate_namespace: patch.rate_namespace.unwrap_or(settings.rate_namespace),
        rate_guess: patch.rate_guess.unwrap_or(settings.rate_guess),
        spread: patch.spread.as_ref().map_or(settings.spread, |to| to.spread),
        layouts: patch.spread.as_ref().map_or(settings.layouts.clone(), |to| to.layouts.clone()),
        sealed: patch.spread.as_ref().map_or(settings.sealed, |to| to.layouts.contains(&1)),
        ..settings.clone()
    }
}
