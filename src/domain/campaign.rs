//! A campaign: a limit that several invites share.

use super::{CampaignName, Millis, Namespace};

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
    pub max_uses: Option<u64>,
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
    /// How many uses are left; nothing where there is no limit.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.max_uses.map(|max| max.saturating_sub(self.uses))
    }
}
