//! A campaign: a limit that several invites share.

use super::{CampaignName, InviteId, Millis, Namespace};

/// The most campaigns of a namespace.
pub const CAMPAIGNS_MAX: u64 = 1000;

/// Invites of a namespace that share a limit. Each use of one of them is a use of the campaign; an invite may have a
/// limit of its own besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Campaign {
    /// Where.
    pub namespace: Namespace,
    /// What it is called.
    pub name: CampaignName,
    /// How many uses all its invites have together: 1 to [`MAX_USES_MAX`](super::invite::MAX_USES_MAX), or without limit.
    ///
    /// In a namespace that is spread, what may be spent here: by the namespace itself, or by one of its shards.
    pub max_uses: Option<u64>,
    /// In a namespace that is spread, the limit of all shards together, or [`UNLIMITED`](super::spread::UNLIMITED); the
    /// namespace itself alone has it.
    pub total: Option<u64>,
    /// How many of them are spent.
    pub uses: u64,
    /// Counts administrative changes, from 1. Uses do not touch it.
    pub revision: u64,
    /// When it was made, by the clock of Redis.
    pub created_at: Millis,
    /// When it was last changed by an administrator, by the clock of Redis.
    pub updated_at: Millis,
}

/// A campaign at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// As it is.
    pub campaign: Campaign,
    /// How many of its uses that are not spent are held by live reservations.
    pub held: u64,
}

impl Campaign {
    /// By what its uses are known where they move between shards.
    #[must_use]
    pub fn pool(&self) -> InviteId {
        InviteId::of_campaign(&self.namespace, &self.name)
    }

    /// How many uses are left; nothing where there is no limit.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.max_uses.map(|max| max.saturating_sub(self.uses))
    }
}
