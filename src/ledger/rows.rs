//! The rows that the sync brings: whole, with absolute values.

use crate::domain::{
    Campaign, CampaignName, Cursor, Group, Invite, InviteId, Millis, Namespace, Redemption,
    RedemptionId, Reservation, Settings, UserId, change::Moved, reservation::Held,
};

/// What a batch of changes leaves behind, each row at most once. `append` writes them in an order in which every
/// constraint holds at every step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is a table's share")]
pub struct Rows {
    /// Users of earlier batches whose name is another now.
    pub erased: Vec<ErasedRow>,
    pub namespaces: Vec<NamespaceRow>,
    /// Invites that are gone.
    pub deleted_invites: Vec<InviteId>,
    /// Invites that have lost their code to a new one, and with it what was held of them.
    pub displaced_invites: Vec<InviteId>,
    /// Invites that have their code again.
    pub reopened_invites: Vec<InviteId>,
    pub invites: Vec<InviteRow>,
    /// Invites of which only the uses have changed.
    pub uses: Vec<UsesRow>,
    /// What was moved between shards.
    pub moves: Vec<MoveRow>,
    /// Memberships that ended at some point of the batch: what was redeemed for them before counts no more.
    pub released: Vec<EndedRow>,
    /// Memberships that do not exist after the batch.
    pub left: Vec<EndedRow>,
    pub members: Vec<MemberRow>,
    pub redemptions: Vec<RedemptionRow>,
    /// Redemptions of earlier batches that were taken back.
    pub rolled_back: Vec<RolledBackRow>,
    pub reservations: Vec<ReservationRow>,
    pub campaigns: Vec<CampaignRow>,
    /// Campaigns of which only the uses, or what may be spent, have changed.
    pub campaign_uses: Vec<CampaignUsesRow>,
    pub audit: Vec<AuditRow>,
}

/// A namespace and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct NamespaceRow {
    pub name: Namespace,
    pub settings: Settings,
    pub cursor: Cursor,
}

/// An invite.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct InviteRow {
    pub invite: Invite,
    /// Whether its code stands for it.
    pub holds_code: bool,
    pub cursor: Cursor,
}

/// An invite's uses.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct UsesRow {
    pub invite: InviteId,
    /// How many are spent, and how many were ever granted; nothing where that is as it was.
    pub spent: Option<(u64, u64)>,
    /// What may be spent; nothing where that is as it was.
    pub max_uses: Option<u64>,
    pub cursor: Cursor,
}

/// What was ever moved of an invite, or of a campaign, between two participants, as one of them knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct MoveRow {
    pub namespace: Namespace,
    pub invite: InviteId,
    /// The other one.
    pub participant: u16,
    pub moved: Moved,
    pub cursor: Cursor,
}

/// A membership.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct MemberRow {
    pub namespace: Namespace,
    pub user: UserId,
    pub group: Group,
    /// Nothing for one who joined another way.
    pub redemption: Option<RedemptionId>,
    pub joined_at: Millis,
    /// `*` where the rule allows one group.
    pub exclusive_key: Option<String>,
    pub cursor: Cursor,
}

impl MemberRow {
    /// How the audit log speaks of the membership's end.
    pub(super) fn subject(&self) -> String {
        left(&self.user, &self.group)
    }
}

/// What the audit log says of a user who left a group.
#[must_use]
pub fn left(user: &UserId, group: &Group) -> String {
    format!("{user} from {group}")
}

/// A membership that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct EndedRow {
    pub namespace: Namespace,
    pub user: UserId,
    pub group: Group,
    pub cursor: Cursor,
}

/// A redemption; its position says which entry brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct RedemptionRow {
    pub redemption: Redemption,
    /// As the gate stores it.
    pub request: String,
    /// What the rule allows once per user; nothing once the membership has ended.
    pub exclusive_key: Option<String>,
    pub metadata: Option<String>,
    /// When, by whom and why it was taken back, if it was.
    pub rollback: Option<Rollback>,
}

/// How a redemption was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct Rollback {
    pub at: Millis,
    pub actor: String,
    /// Nothing where nobody remembers it.
    pub reason: Option<String>,
}

/// A redemption that was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct RolledBackRow {
    pub redemption: RedemptionId,
    pub rollback: Rollback,
}

/// A reservation, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct ReservationRow {
    pub reservation: Reservation,
    pub held: Held,
    pub cursor: Cursor,
}

/// A campaign.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct CampaignRow {
    pub campaign: Campaign,
    pub cursor: Cursor,
}

/// A user whose name is another now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct ErasedRow {
    pub namespace: Namespace,
    pub user: UserId,
    pub alias: UserId,
    /// That were bound to the user.
    pub invites: Vec<InviteId>,
    /// That have lost their code in the same batch before it, and what was held of them.
    pub displaced: Vec<InviteId>,
    /// When, by the clock of Redis: what the user holds then is held on, by the same name.
    pub at: Millis,
    pub cursor: Cursor,
}

/// A campaign's uses.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct CampaignUsesRow {
    pub namespace: Namespace,
    pub name: CampaignName,
    /// How many are spent; nothing where that is as it was.
    pub uses: Option<u64>,
    /// What may be spent; nothing where that is as it was.
    pub max_uses: Option<u64>,
    pub cursor: Cursor,
}

/// An administrative change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say it")]
pub struct AuditRow {
    pub cursor: Cursor,
    pub at: Millis,
    pub actor: String,
    pub action: &'static str,
    pub namespace: Namespace,
    pub subject: String,
    /// Whom the subject begins with, if it does.
    pub user: Option<UserId>,
}
