//! An invite: what a code stands for.

use super::{
    BatchId, CampaignName, Code, EmailDomain, Group, InviteId, Millis, Namespace, UserId,
    name::Malformed,
};

/// The most uses that can be asked for; scripts count in doubles, which are exact far beyond it.
pub const MAX_USES_MAX: u64 = 1_000_000_000_000;

/// The longest metadata of an invite or a redemption, in bytes of JSON.
pub const METADATA_BYTES_MAX: usize = 4096;

/// The most e-mail domains that one invite may list.
pub const EMAIL_DOMAINS_MAX: usize = 32;

/// What a code stands for. Gate and ledger keep exactly these fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Never reused, unlike the code.
    pub id: InviteId,
    /// Where it lives.
    pub namespace: Namespace,
    /// What a person types. Unique only among the live invites of the namespace.
    pub code: Code,
    /// What a redemption lets the user into.
    pub group: Group,
    /// How many uses there are: 1 to [`MAX_USES_MAX`], or without limit.
    pub max_uses: Option<u64>,
    /// In a namespace that is spread, how many uses there are in all its shards ([`UNLIMITED`](super::spread::UNLIMITED) without limit), and
    /// `max_uses` is what may be spent here. Copies in shards have none.
    pub total: Option<u64>,
    /// How many of them one user may spend: 1 to [`MAX_USES_MAX`], or without limit. Those that were rolled back do not
    /// count.
    pub max_uses_per_user: Option<u64>,
    /// The campaign whose uses its uses are too, if it belongs to one.
    pub campaign: Option<CampaignName>,
    /// How many are spent.
    pub uses: u64,
    /// How many of them were spent elsewhere, before it was imported: they have no redemptions here.
    pub imported: u64,
    /// How many were ever granted: the ordinal of the latest redemption, which never goes back.
    pub granted: u64,
    /// Before this moment nobody may redeem.
    pub starts_at: Option<Millis>,
    /// From this moment on nobody may redeem.
    pub expires_at: Option<Millis>,
    /// Switched off by hand.
    pub disabled: bool,
    /// The only user who may redeem, if it is bound to one.
    pub user: Option<UserId>,
    /// The only e-mail domains whose users may redeem, if any are named.
    pub email_domains: Vec<EmailDomain>,
    /// The application's own JSON object, as text; at most [`METADATA_BYTES_MAX`] bytes.
    pub metadata: Option<String>,
    /// With what it was made, if it was made in bulk.
    pub batch: Option<BatchId>,
    /// Counts administrative changes, from 1. Uses do not touch it.
    pub revision: u64,
    /// When it was made, by the clock of Redis.
    pub created_at: Millis,
    /// When it was last changed by an administrator, by the clock of Redis.
    pub updated_at: Millis,
}

/// An invite at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// As it is.
    pub invite: Invite,
    /// How many of its uses that are not spent are held by live reservations.
    pub held: u64,
    /// The clock of Redis.
    pub now: Millis,
}

/// What an invite is now. Derived from its fields and the time, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InviteState {
    /// It can be redeemed.
    Active,
    /// Its window has not begun.
    Scheduled,
    /// All uses are spent.
    Exhausted,
    /// Its window is over.
    Expired,
    /// It was switched off by hand.
    Disabled,
}

impl InviteState {
    /// Every state, in the order that the documentation lists them.
    pub const ALL: [Self; 5] =
        [Self::Active, Self::Scheduled, Self::Exhausted, Self::Expired, Self::Disabled];

    /// The word used in JSON and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Scheduled => "scheduled",
            Self::Exhausted => "exhausted",
            Self::Expired => "expired",
            Self::Disabled => "disabled",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is none of the five words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            Malformed("state is active, scheduled, exhausted, expired or disabled".to_owned())
        })
    }

    /// Whether such an invite has ended: its code is free for a new one.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Exhausted | Self::Expired | Self::Disabled)
    }
}

impl Invite {
    /// The id that this invite has in a shard of its namespace, or in the namespace itself.
    #[must_use]
    pub fn id_in(&self, namespace: &Namespace) -> InviteId {
        self.id.of_whole(&self.namespace).of_whole(namespace)
    }

    /// What this invite is at `now`. When several hold, the one named first here wins: disabled, expired, exhausted,
    /// scheduled, active.
    #[must_use]
    pub fn state(&self, now: Millis) -> InviteState {
        if self.disabled {
            InviteState::Disabled
        } else if self.expires_at.is_some_and(|end| now >= end) {
            InviteState::Expired
        } else if self.max_uses.is_some_and(|max| self.uses >= max) {
            InviteState::Exhausted
        } else if self.starts_at.is_some_and(|start| now < start) {
            InviteState::Scheduled
        } else {
            InviteState::Active
        }
    }

    /// How many uses are left; nothing where there is no limit.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.max_uses.map(|max| max.saturating_sub(self.uses))
    }
}
