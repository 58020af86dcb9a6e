//! What happened: the content of an outbox entry, which the sync carries from the gate to the ledger.
//!
//! Entries carry whole rows with absolute values, never differences, so that applying one twice changes nothing and
//! the ledger's constraints hold at every step.

use std::collections::BTreeMap;

use super::{
    BatchId, Campaign, CampaignName, Cursor, Group, Invite, InviteId, MembershipRule, Millis,
    Namespace, Redemption, RedemptionId, Reservation, Settings, UserId, spread::Given,
};

/// One change of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the partition, and its id in the outbox.
    pub cursor: Cursor,
    /// Where it happened.
    pub namespace: Namespace,
    /// When, by the clock of Redis.
    pub at: Millis,
    /// Who did it: the id of an API key, or of the part of this program that acted.
    pub actor: String,
    /// What.
    pub change: Change,
}

/// What happened to an invite by an administrator's hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InviteAction {
    /// It was made.
    Created,
    /// It was made elsewhere and taken over.
    Imported,
    /// A shard has got it from its namespace, or has heard of a change there.
    Copied,
    /// Its limit, window, restrictions, metadata or switch was changed.
    Changed,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A namespace was made, changed or archived; this is its row now.
    Namespace(Settings),
    /// An invite was made or changed; this is its row now.
    Invite {
        /// Which of the two.
        action: InviteAction,
        /// The row.
        invite: Invite,
        /// Whether its code stands for it now.
        holds_code: bool,
        /// The ended invite that lost its code to this one.
        displaced: Option<InviteId>,
    },
    /// Invites were made in bulk; these are their rows.
    InvitesCreated {
        /// With what.
        batch: BatchId,
        /// The rows.
        invites: Vec<Invite>,
    },
    /// An invite that nobody had redeemed was deleted.
    InviteDeleted {
        /// Which.
        id: InviteId,
    },
    /// A shard has the rules of its namespace; this is its row now.
    NamespaceCopied(Settings),
    /// Uses have moved between two participants of a namespace that is spread.
    Moved {
        /// Of which invite, by its id here; or what stands for a campaign.
        invite: InviteId,
        /// Of which campaign, if it is not an invite's.
        campaign: Option<CampaignName>,
        /// The other participant.
        participant: u16,
        /// Which way.
        moved: Moved,
        /// What may be spent here right after it.
        max_uses: u64,
    },
    /// A use was spent.
    Redeemed {
        /// The row.
        redemption: Redemption,
        /// The request id, as it is stored.
        request: String,
        /// The invite's uses right after it.
        uses: u64,
        /// The rule under which it was granted.
        rule: MembershipRule,
        /// The application's own JSON object, as text.
        metadata: Option<String>,
        /// The invite's campaign, and its uses right after it.
        campaign: Option<(CampaignName, u64)>,
        /// The reservation that held the use until now.
        reservation: Option<Reservation>,
    },
    /// A redemption was taken back.
    RolledBack(RolledBack),
    /// A use is held for a user.
    Reserved {
        /// The row.
        reservation: Reservation,
        /// The invite's campaign.
        campaign: Option<CampaignName>,
    },
    /// A use is held no more.
    Released {
        /// The row.
        reservation: Reservation,
        /// The invite's campaign.
        campaign: Option<CampaignName>,
    },
    /// A user was forgotten: another name stands in the place of the id, everywhere.
    Erased {
        /// Who it was.
        user: UserId,
        /// What stands there now.
        alias: UserId,
        /// The invites that were bound to the user.
        invites: Vec<InviteId>,
    },
    /// A campaign was made or changed; this is its row now.
    Campaign(Campaign),
    /// A shard has got a campaign, or the namespace itself has got its total; this is its row now.
    CampaignCopied(Campaign),
    /// A user joined another way.
    Joined {
        /// Who.
        user: UserId,
        /// What.
        group: Group,
        /// The rule under which the user joined.
        rule: MembershipRule,
        /// Since when.
        since: Millis,
    },
    /// A user left; the use stays spent.
    Left {
        /// Who.
        user: UserId,
        /// What.
        group: Group,
    },
}

/// A move of uses, as one of its two sides sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// So many were ever given to the other participant.
    Given(u64),
    /// So many were ever got from it.
    Taken(u64),
}

/// What was ever moved of an invite, or of a campaign, as one participant knows it: whole, and only growing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moves {
    /// Where.
    pub namespace: Namespace,
    /// Which, by its id there.
    pub invite: InviteId,
    /// By who got it.
    pub given: BTreeMap<u16, Given>,
    /// By who gave it.
    pub taken: BTreeMap<u16, u64>,
}

/// A redemption that was taken back, and what that leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    /// Which.
    pub redemption: RedemptionId,
    /// Why, as its author says.
    pub reason: String,
    /// Whose use it was.
    pub invite: InviteId,
    /// The invite's uses right after it.
    pub uses: u64,
    /// How many were ever granted.
    pub granted: u64,
    /// Whether that gave the invite its code again, which had lost it.
    pub reopened: bool,
    /// The invite's campaign, and its uses right after it.
    pub campaign: Option<(CampaignName, u64)>,
    /// Who had redeemed.
    pub user: UserId,
    /// What the user had got into.
    pub group: Group,
    /// What becomes of that membership.
    pub membership: MembershipLeft,
}

/// What a rollback leaves of the user's membership of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MembershipLeft {
    /// It was made by something else, or had ended before: it stays as it is.
    Untouched,
    /// It has ended.
    Ended,
    /// It goes on by another redemption of the user, made at this place and time.
    By(RedemptionId, Cursor, Millis),
}

/// What may exist only once per user under a rule: the ledger keeps it unique, as the backstop of the gate's own check.
///
/// Nothing where the rule sets no bound. A direct membership has no invite, so under
/// [`MembershipRule::OnePerInvite`] it has no key.
#[must_use]
pub fn exclusive_key(
    rule: MembershipRule,
    group: &Group,
    invite: Option<InviteId>,
) -> Option<String> {
    match rule {
        MembershipRule::OneGroup => Some("*".to_owned()),
        MembershipRule::OnePerGroup => Some(format!("group:{group}")),
        MembershipRule::OnePerInvite => invite.map(|id| format!("invite:{id}")),
        MembershipRule::Unlimited => None,
    }
}
