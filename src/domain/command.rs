//! What can be asked of the gate, and what it answers: pure values. How they get there is the gate's business.

use std::net::IpAddr;

use uuid::Uuid;

use super::{
    BatchId, CampaignName, Code, CodeCase, Cursor, Durability, EmailDomain, ErrorDetail, Group,
    InviteId, Member, MembershipRule, Millis, Namespace, Quota, Redemption, RedemptionId,
    RequestId, Reservation, Settings, UserId, campaign, invite,
};

/// What is wanted of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Spend a use.
    Redeem {
        /// What makes a repeat recognisable.
        request: RequestId,
        /// The id that a grant will have.
        redemption: RedemptionId,
        /// The application's own JSON object, as text; for the ledger only.
        metadata: Option<String>,
        /// The deadline of the user's own reservation that is to be spent, and nothing else. It draws on no limit any
        /// more, and the e-mail address was checked when it was made. Without it, one's own reservation is spent where
        /// there is one.
        reservation: Option<Millis>,
    },
    /// Hold a use.
    Reserve {
        /// For how long, in milliseconds: 1 to [`TTL_SECONDS_MAX`](super::reservation::TTL_SECONDS_MAX) × 1000.
        ttl_ms: u64,
    },
    /// Say what a redemption would be told; spend nothing but the guessing budget.
    Validate,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redeem {
    /// Where.
    pub namespace: Namespace,
    /// What was typed, normalised by the namespace's rules.
    pub code: Code,
    /// Who. A validation may leave it out, and is then told nothing that depends on the user; a redemption may not.
    pub user: Option<UserId>,
    /// The person's address, as the caller knows it.
    pub ip: Option<IpAddr>,
    /// The domain of the person's e-mail address, as the caller knows it.
    pub email_domain: Option<EmailDomain>,
    /// The id of the API key that asks: who is charged for a miss when neither address nor user is known.
    pub caller: String,
    /// What is wanted.
    pub mode: Mode,
}

/// The invite to make. Repeating it with the same `id` makes nothing new.
#[derive(Debug, Clone)]
pub struct CreateInvite {
    /// Its id, made by the node.
    pub id: InviteId,
    /// Where.
    pub namespace: Namespace,
    /// Normalised by the namespace's rules.
    pub code: Code,
    /// What a redemption lets the user into.
    pub group: Group,
    /// Nothing means without limit.
    pub max_uses: Option<u64>,
    /// How many of them one user may spend; nothing means without limit.
    pub max_uses_per_user: Option<u64>,
    /// The campaign that it is to belong to.
    pub campaign: Option<CampaignName>,
    /// Before this moment nobody may redeem.
    pub starts_at: Option<Millis>,
    /// From this moment on nobody may redeem; later than `starts_at`.
    pub expires_at: Option<Millis>,
    /// The only user who may redeem.
    pub user: Option<UserId>,
    /// The only e-mail domains whose users may redeem; empty means any.
    pub email_domains: Vec<EmailDomain>,
    /// The application's own JSON object, as text.
    pub metadata: Option<String>,
    /// In a namespace that is spread, the ended invite of the code that was seen to have no use left in any shard.
    pub exhausted: Option<InviteId>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The invite stands, made now or by an earlier call with the same id.
    Created(invite::Shown),
    /// An invite of this id exists, with another code.
    IdTaken {
        /// That one.
        code: Code,
    },
    /// A live invite has this code.
    CodeTaken {
        /// Which.
        by: InviteId,
    },
    /// There is no such campaign.
    CampaignNotFound,
    /// The namespace does not exist or was archived.
    NamespaceNotFound,
}

/// Some invites of a batch. Repeating it with the same ids makes nothing new.
#[derive(Debug, Clone)]
pub struct CreateBatch {
    /// With what they are made.
    pub batch: BatchId,
    /// Where.
    pub namespace: Namespace,
    /// Their ids, and their codes, normalised by the namespace's rules.
    pub invites: Vec<(InviteId, Code)>,
    /// What a redemption lets the user into.
    pub group: Group,
    /// Nothing means without limit.
    pub max_uses: Option<u64>,
    /// How many of them one user may spend; nothing means without limit.
    pub max_uses_per_user: Option<u64>,
    /// The campaign that it is to belong to.
    pub campaign: Option<CampaignName>,
    /// Before this moment nobody may redeem.
    pub starts_at: Option<Millis>,
    /// From this moment on nobody may redeem; later than `starts_at`.
    pub expires_at: Option<Millis>,
    /// The only e-mail domains whose users may redeem; empty means any.
    pub email_domains: Vec<EmailDomain>,
    /// The application's own JSON object, as text.
    pub metadata: Option<String>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchCreated {
    /// The invites stand, made now or by an earlier call with the same ids.
    Created {
        /// Those that do not stand, as places in the list: another invite has the code.
        taken: Vec<usize>,
        /// The place of the last change of the partition: once the ledger is there, it has them.
        cursor: Cursor,
    },
    /// The outbox is full.
    Overloaded,
    /// There is no such campaign.
    CampaignNotFound,
    /// The namespace does not exist or was archived.
    NamespaceNotFound,
}

/// Invites that were made elsewhere.
#[derive(Debug, Clone)]
pub struct ImportInvites {
    /// Where to.
    pub namespace: Namespace,
    /// The invites.
    pub invites: Vec<ImportedInvite>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// An invite that was made elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of Invite")]
pub struct ImportedInvite {
    /// It follows from all the rest, so that the same invite again makes nothing new.
    pub id: InviteId,
    pub code: Code,
    pub group: Group,
    pub max_uses: Option<u64>,
    pub max_uses_per_user: Option<u64>,
    /// How many were spent elsewhere: at most `max_uses`.
    pub uses: u64,
    pub starts_at: Option<Millis>,
    pub expires_at: Option<Millis>,
    pub disabled: bool,
    pub user: Option<UserId>,
    pub email_domains: Vec<EmailDomain>,
    pub metadata: Option<String>,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported<T> {
    /// Each line has its answer.
    Done {
        /// In the order of the lines.
        told: Vec<T>,
        /// The place of the last change of the partition: once the ledger is there, it has them.
        cursor: Cursor,
    },
    /// The outbox is full.
    Overloaded,
    /// The namespace does not exist or was archived.
    NamespaceNotFound,
}

/// What became of an invite that was made elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InviteImport {
    /// It stands.
    Imported,
    /// It has stood since an earlier import.
    Unchanged,
    /// Another invite has its code.
    CodeTaken {
        /// Which.
        by: InviteId,
    },
}

/// Members who joined elsewhere.
#[derive(Debug, Clone)]
pub struct ImportMembers {
    /// Where to.
    pub namespace: Namespace,
    /// Who, what, and since when; nothing means since now.
    pub members: Vec<(UserId, Group, Option<Millis>)>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What became of a member who joined elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberImport {
    /// The user is a member.
    Imported,
    /// The user has been one since an earlier import, or joined at that very moment.
    Unchanged,
    /// The user is not known in this shard, and nobody new comes in here any more.
    Elsewhere,
    /// The rule allows no more, or the user came into the group otherwise.
    AlreadyMember {
        /// The group that the user is in.
        group: Group,
        /// By which redemption, if by one.
        redemption: Option<RedemptionId>,
    },
}

/// What to change; an outer `None` leaves a field as it is, an inner one removes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InvitePatch {
    /// Nothing inside means without limit.
    pub max_uses: Option<Option<u64>>,
    /// Nothing inside means without limit.
    pub max_uses_per_user: Option<Option<u64>>,
    /// The start of the window.
    pub starts_at: Option<Option<Millis>>,
    /// The end of the window.
    pub expires_at: Option<Option<Millis>>,
    /// The switch.
    pub disabled: Option<bool>,
    /// The only user who may redeem.
    pub user: Option<Option<UserId>>,
    /// The only e-mail domains whose users may redeem; empty means any.
    pub email_domains: Option<Vec<EmailDomain>>,
    /// The application's own JSON object, as text.
    pub metadata: Option<Option<String>>,
}

/// A change of one invite. Repeating it with the same `change` id changes nothing more.
#[derive(Debug, Clone)]
pub struct ChangeInvite {
    /// Which.
    pub id: InviteId,
    /// Where.
    pub namespace: Namespace,
    /// What makes a repeat recognisable.
    pub change: Uuid,
    /// Change only this revision (`If-Match`).
    pub expected_revision: Option<u64>,
    /// What to change.
    pub patch: InvitePatch,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// The invite as it is now.
    Changed(invite::Shown),
    /// No invite has this id.
    NotFound,
    /// Somebody else changed it meanwhile.
    PreconditionFailed {
        /// What it is now.
        revision: u64,
    },
    /// More uses are spent or held than the new limit allows.
    LimitBelowUsed {
        /// How many are spent.
        uses: u64,
        /// How many are held.
        held: u64,
    },
    /// The change would re-open the invite, but a new one has its code.
    CodeTaken {
        /// Which.
        by: InviteId,
    },
    /// The window would end before it begins.
    WindowReversed,
}

/// The invite to delete.
#[derive(Debug, Clone)]
pub struct DeleteInvite {
    /// Which.
    pub id: InviteId,
    /// Where.
    pub namespace: Namespace,
    /// Delete only this revision (`If-Match`).
    pub expected_revision: Option<u64>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Deleted,
    /// No invite has this id.
    NotFound,
    /// It has redemptions, or uses that are held; disable it instead.
    InUse {
        /// How many are spent.
        uses: u64,
        /// How many are held.
        held: u64,
    },
    /// Some of its uses are in another shard of the namespace.
    UsesElsewhere,
    /// Somebody else changed it meanwhile.
    PreconditionFailed {
        /// What it is now.
        revision: u64,
    },
}

/// The redemption to take back. Repeating it changes nothing more.
#[derive(Debug, Clone)]
pub struct Rollback {
    /// Which.
    pub redemption: Redemption,
    /// Why, for the record: 1 to [`REASON_BYTES_MAX`] bytes.
    pub reason: String,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// The longest reason of a rollback, in bytes.
pub const REASON_BYTES_MAX: usize = 256;

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RollbackAnswer {
    /// The use is given back, and the membership that it had made has ended.
    RolledBack {
        /// When, by the clock of Redis.
        at: Millis,
        /// Whether that was done before.
        replayed: bool,
    },
    /// The gate knows no such redemption.
    NotFound,
    /// The use would re-open the invite, but a new one has its code.
    CodeTaken {
        /// Which.
        by: InviteId,
    },
    /// The namespace does not exist or was archived.
    NamespaceNotFound,
}

/// The reservation to end.
#[derive(Debug, Clone)]
pub struct Release {
    /// Which.
    pub reservation: Reservation,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseAnswer {
    /// It held a use, and does no more.
    Released,
    /// It holds nothing: it was released or confirmed, or has expired.
    NotHeld,
    /// The namespace does not exist or was archived.
    NamespaceNotFound,
}

/// What a campaign should be like. Repeating it changes nothing more.
#[derive(Debug, Clone)]
pub struct PutCampaign {
    /// Where.
    pub namespace: Namespace,
    /// Which.
    pub name: CampaignName,
    /// Nothing means without limit.
    pub max_uses: Option<u64>,
    /// Change only this revision (`If-Match`).
    pub expected_revision: Option<u64>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CampaignPut {
    /// It was made.
    Created(campaign::Shown),
    /// It stands as asked.
    Changed(campaign::Shown),
    /// Somebody else changed it meanwhile.
    PreconditionFailed {
        /// What it is now.
        revision: u64,
    },
    /// More uses are spent or held than the new limit allows.
    LimitBelowUsed {
        /// How many are spent.
        uses: u64,
        /// How many are held.
        held: u64,
    },
    /// The namespace has [`CAMPAIGNS_MAX`](campaign::CAMPAIGNS_MAX) campaigns.
    TooMany,
    /// The namespace does not exist or was archived.
    NamespaceNotFound,
}

/// The user to forget.
#[derive(Debug, Clone)]
pub struct EraseUser {
    /// Where.
    pub namespace: Namespace,
    /// Who.
    pub user: UserId,
    /// What is put in the user's place: nobody's id.
    pub alias: UserId,
    /// The invites that are bound to the user.
    pub invites: Vec<(InviteId, Code)>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erased {
    /// Nothing has the user's id any more, once the ledger has come to this place.
    Erased {
        /// The last change of the partition.
        cursor: Cursor,
    },
    /// The namespace does not exist.
    NamespaceNotFound,
}

/// The membership to make. The namespace's rule holds as it does for redemptions.
#[derive(Debug, Clone)]
pub struct Join {
    /// Where.
    pub namespace: Namespace,
    /// Who.
    pub user: UserId,
    /// What.
    pub group: Group,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// The user is a member, since now.
    Joined(Member),
    /// The user was a member of this group already.
    Already(Member),
    /// The rule allows no second group.
    AlreadyMember {
        /// The group that the user is in.
        group: Group,
        /// By which redemption, if by one.
        redemption: Option<RedemptionId>,
    },
    /// The user is not known in this shard, and nobody new comes in here any more.
    Elsewhere,
    /// The namespace does not exist or was archived.
    NamespaceNotFound,
}

/// The memberships to end.
#[derive(Debug, Clone)]
pub struct Leave {
    /// Where.
    pub namespace: Namespace,
    /// Who.
    pub user: UserId,
    /// Which group; nothing means all of the user's groups.
    pub group: Option<Group>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// The user left these groups.
    Left(Vec<Group>),
    /// The user was in no such group.
    NotMember,
    /// The namespace does not exist or was archived.
    NamespaceNotFound,
}

/// What a namespace should be like. Repeating it with the same `change` id changes nothing more.
#[derive(Debug, Clone)]
pub struct PutNamespace {
    /// Which.
    pub namespace: Namespace,
    /// What to do.
    pub action: Action,
    /// What makes a repeat recognisable.
    pub change: Uuid,
    /// Change only this revision (`If-Match`).
    pub expected_revision: Option<u64>,
    /// Who does it: the id of an API key.
    pub actor: String,
}

/// What to do with a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make it like this; when it exists, give it these rules, the fixed ones being equal. Brings an archived one back.
    Put(Rules),
    /// Make it like this unless it exists or was archived; then leave it alone.
    Ensure(Rules),
    /// Change what is named.
    Patch(RulesPatch),
    /// Let it answer nobody from now on.
    Archive,
}

/// The rules that an administrator chooses; see [`Settings`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of Settings")]
pub struct Rules {
    pub membership: MembershipRule,
    pub code_case: CodeCase,
    pub code_check: bool,
    pub durability: Durability,
    pub error_detail: ErrorDetail,
    pub rate_user: Option<Quota>,
    pub rate_ip: Option<Quota>,
    pub rate_code: Option<Quota>,
    pub rate_namespace: Option<Quota>,
    pub rate_guess: Option<Quota>,
    pub spread: u16,
}

/// What to change of the rules; an outer `None` leaves a rule as it is, an inner one switches a limit off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of Settings")]
pub struct RulesPatch {
    pub durability: Option<Durability>,
    pub error_detail: Option<ErrorDetail>,
    pub rate_user: Option<Option<Quota>>,
    pub rate_ip: Option<Option<Quota>>,
    pub rate_code: Option<Option<Quota>>,
    pub rate_namespace: Option<Option<Quota>>,
    pub rate_guess: Option<Option<Quota>>,
    pub spread: Option<Spreading>,
}

/// Another spread for a namespace: it follows from the rules of one revision, and goes with that one alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spreading {
    /// Over how many partitions new users are to be spread.
    pub spread: u16,
    /// The spreads before it, the oldest first.
    pub layouts: Vec<u16>,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespacePut {
    /// It was made.
    Created {
        /// Its rules.
        settings: Settings,
        /// The clock of Redis.
        now: Millis,
    },
    /// It stands as asked (changed, brought back, archived, or already so).
    Changed {
        /// Its rules.
        settings: Settings,
        /// The clock of Redis.
        now: Millis,
    },
    /// It does not exist, or was archived.
    NotFound,
    /// Somebody else changed it meanwhile.
    PreconditionFailed {
        /// What it is now.
        revision: u64,
    },
    /// Membership rule or what is a code differ from what they were fixed to.
    FixedRules {
        /// What they are.
        settings: Settings,
    },
}
