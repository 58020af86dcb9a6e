//! The gate in pure Rust: what the scripts under `lua/` mean, one operation after the other.
//!
//! It is the oracle that the scripts are tested against on random histories, and the shortest way to read what they
//! do. Each operation takes its arguments and the time, changes the partition, and returns what the script would say.
//! What it leaves out is what the scripts need only because they run on Redis: fences, keys, and batches, which mean
//! the same as their requests one by one.

use std::collections::BTreeMap;

use super::{
    Answer, Code, Cursor, ErrorDetail, Group, Invite, InviteId, Member, MembershipRule, Millis,
    Namespace, Outcome, Partition, Policy, Position, Quota, RateStatus, Redemption, Refusal,
    Settings, UserId,
    command::{
        Action, BatchCreated, ChangeInvite, Changed, CreateBatch, CreateInvite, Created,
        DeleteInvite, Deleted, InvitePatch, Join, Joined, Leave, Left, Mode, NamespacePut,
        PutNamespace, Redeem, Rules, RulesPatch,
    },
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
    /// Until when each budget is not full, in microseconds since 1970.
    budgets: BTreeMap<(Policy, String), u64>,
}

/// An invite and what makes a repeat of its last change recognisable.
#[derive(Debug, Clone)]
struct Kept {
    invite: Invite,
    last_change: Option<uuid::Uuid>,
}

/// What is known of a user. Answers stay for ever; memberships come and go.
#[derive(Debug, Clone, Default)]
struct User {
    groups: BTreeMap<Group, Membership>,
    /// The live redemption of each invite, under [`MembershipRule::OnePerInvite`].
    invites: BTreeMap<InviteId, Redemption>,
    /// What each request was answered.
    requests: BTreeMap<String, Redemption>,
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
        let user = request.user.as_ref().and_then(|user| space.users.get(user));
        if let Mode::Redeem { request: id, .. } = &request.mode
            && let Some(before) = user.and_then(|user| user.requests.get(&*id.stored()))
        {
            return if before.code == request.code {
                told(Outcome::Replayed(before.clone()))
            } else {
                refused(Refusal::RequestIdReused, Vec::new())
            };
        }
        if space.settings.archived_at.is_some() {
            return refused(Refusal::NamespaceNotFound, Vec::new());
        }
        let invite = space.current.get(&request.code).map(|kept| &kept.invite);
        if let Some(own) = own_redemption(space.settings.membership, user, invite) {
            return told(match request.mode {
                Mode::Redeem { .. } => Outcome::Replayed(own.clone()),
                Mode::Validate => Outcome::Allowed,
            });
        }

        // 2. Backpressure.
        let redeeming = matches!(request.mode, Mode::Redeem { .. });
        if redeeming && !room {
            return refused(Refusal::Overloaded, Vec::new());
        }

        // 3. Rate limits: all are checked, none is charged yet.
        let budgets = space.budgets_of(request);
        if let Some(refusal) = budgets.iter().find_map(|budget| space.spent(budget, now)) {
            let rates = space.rates(&budgets, now);
            return refused(refusal, rates);
        }

        // 4. to 6. The invite, the membership, the uses. Where nothing is told of a code that can not be used, a member
        // is not told of the membership by one that is used up.
        let is_coarse = space.settings.error_detail == ErrorDetail::Coarse;
        let refusal = match invite {
            None => Some(Refusal::NotFound),
            Some(invite) => {
                let of_uses = || (invite.remaining() == Some(0)).then_some(Refusal::Exhausted);
                refusal_of_invite(request, invite, now)
                    .or_else(|| is_coarse.then(of_uses).flatten())
                    .or_else(|| {
                        refusal_of_membership(space.settings.membership, user, &invite.group)
                    })
                    .or_else(of_uses)
            }
        };
        let refusal = refusal.map(|refusal| if is_coarse { folded(refusal) } else { refusal });

        // 7. Whoever passed the limits is charged; a miss also charges the guessing budget.
        let missed = matches!(refusal, Some(Refusal::NotFound | Refusal::Invalid));
        for budget in &budgets {
            if if budget.policy == Policy::Guess { missed } else { redeeming } {
                space.charge(budget, now);
            }
        }
        let rates = space.rates(&budgets, now);
        if let Some(refusal) = refusal {
            return refused(refusal, rates);
        }
        let (Mode::Redeem { request: id, redemption, .. }, Some(user)) =
            (&request.mode, &request.user)
        else {
            return Answer { outcome: Outcome::Allowed, rates };
        };
        let (id, redemption, user) = (id.stored().into_owned(), *redemption, user.clone());
        let cursor = self.cursor.next();
        let Some(kept) = space.current.get_mut(&request.code) else {
            return refused(Refusal::NotFound, rates);
        };
        kept.invite.uses += 1;
        kept.invite.granted += 1;
        let granted = Redemption {
            id: redemption,
            namespace: request.namespace.clone(),
            invite: kept.invite.id,
            code: request.code.clone(),
            group: kept.invite.group.clone(),
            user: user.clone(),
            ordinal: kept.invite.granted,
            remaining: kept.invite.remaining(),
            redeemed_at: now,
            position: Position { partition: self.partition, cursor },
        };
        let rule = space.settings.membership;
        let known = space.users.entry(user).or_default();
        known.groups.insert(granted.group.clone(), Membership::Redeemed(granted.clone()));
        known.requests.insert(id, granted.clone());
        if rule == MembershipRule::OnePerInvite {
            known.invites.insert(granted.invite, granted.clone());
        }
        self.record(1);
        Answer { outcome: Outcome::Granted(granted), rates }
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
                return Created::Created { invite: kept.invite.clone(), now };
            }
        }
        if let Some(holder) = space.current.get(&create.code) {
            let by = holder.invite.id;
            if !holder.invite.state(now).has_ended() {
                return Created::CodeTaken { by };
            }
            if let Some(ended) = space.current.remove(&create.code) {
                space.retired.insert(by, ended);
            }
        }
        let invite = Invite {
            id: create.id,
            namespace: create.namespace.clone(),
            code: create.code.clone(),
            group: create.group.clone(),
            max_uses: create.max_uses,
            uses: 0,
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
        let kept = Kept { invite: invite.clone(), last_change: None };
        space.current.insert(create.code.clone(), kept);
        self.record(1);
        Created::Created { invite, now }
    }

    /// `lua/create_batch.lua`.
    pub fn create_batch(&mut self, create: &CreateBatch, now: Millis) -> BatchCreated {
        let Some(space) = live(&mut self.spaces, &create.namespace) else {
            return BatchCreated::NamespaceNotFound;
        };
        if self.outbox_len >= self.outbox_max {
            return BatchCreated::Overloaded;
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
                uses: 0,
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
            space.current.insert(code.clone(), Kept { invite, last_change: None });
            made = true;
        }
        if made {
            self.record(1);
        }
        BatchCreated::Created { taken, cursor: self.cursor }
    }

    /// `lua/change_invite.lua`.
    pub fn change_invite(&mut self, change: &ChangeInvite, now: Millis) -> Changed {
        let Some(space) = live(&mut self.spaces, &change.namespace) else {
            return Changed::NotFound;
        };
        let Some(kept) = space.find(change.id).cloned() else { return Changed::NotFound };
        if kept.last_change == Some(change.change) {
            return Changed::Changed { invite: kept.invite, now };
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
        if invite.max_uses.is_some_and(|max| max < invite.uses) {
            return Changed::LimitBelowUsed { uses: invite.uses };
        }
        // One whose code is another's by now can come back only if that code is free.
        let was_retired = space.retired.contains_key(&change.id);
        let reopens = was_retired && !invite.state(now).has_ended();
        if reopens && let Some(holder) = space.current.get(&invite.code) {
            return Changed::CodeTaken { by: holder.invite.id };
        }
        invite.revision += 1;
        invite.updated_at = now;
        let kept = Kept { invite: invite.clone(), last_change: Some(change.change) };
        if was_retired && !reopens {
            space.retired.insert(change.id, kept);
        } else {
            space.retired.remove(&change.id);
            space.current.insert(invite.code.clone(), kept);
        }
        self.record(1);
        Changed::Changed { invite, now }
    }

    /// `lua/delete_invite.lua`.
    pub fn delete_invite(&mut self, delete: &DeleteInvite) -> Deleted {
        let Some(space) = live(&mut self.spaces, &delete.namespace) else {
            return Deleted::NotFound;
        };
        let Some(Kept { invite, .. }) = space.find(delete.id) else { return Deleted::NotFound };
        let Invite { revision, uses, granted, .. } = *invite;
        let code = invite.code.clone();
        if delete.expected_revision.is_some_and(|expected| expected != revision) {
            return Deleted::PreconditionFailed { revision };
        }
        if granted > 0 {
            return Deleted::InUse { uses };
        }
        if space.retired.remove(&delete.id).is_none() {
            space.current.remove(&code);
        }
        space.codes.remove(&delete.id);
        self.record(1);
        Deleted::Deleted
    }

    /// `lua/show_invite.lua`, by id.
    #[must_use]
    pub fn show_invite(&mut self, namespace: &Namespace, id: InviteId) -> Option<Invite> {
        let space = live(&mut self.spaces, namespace)?;
        space.find(id).map(|kept| kept.invite.clone())
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
            budgets: BTreeMap::new(),
        }
    }

    fn find(&self, id: InviteId) -> Option<&Kept> {
        let current = self.codes.get(&id).and_then(|code| self.current.get(code));
        current.filter(|kept| kept.invite.id == id).or_else(|| self.retired.get(&id))
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
        | Refusal::Exhausted => Refusal::Invalid,
        other => other,
    }
}

fn refusal_of_invite(request: &Redeem, invite: &Invite, now: Millis) -> Option<Refusal> {
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
    let redeeming = matches!(request.mode, Mode::Redeem { .. });
    if invite.user.is_some() && (redeeming || request.user.is_some()) && invite.user != request.user
    {
        return Some(Refusal::UserNotAllowed);
    }
    if !invite.email_domains.is_empty() && (redeeming || request.email_domain.is_some()) {
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
    let InvitePatch { max_uses, starts_at, expires_at, disabled, user, email_domains, metadata } =
        patch.clone();
    Invite {
        max_uses: max_uses.unwrap_or(invite.max_uses),
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
        ..settings.clone()
    }
}
