//! Membership: which users are in which groups, and how many they may be in.

use super::{Cursor, Group, Millis, Namespace, Redemption, RedemptionId, UserId, name::Malformed};

/// How many memberships a user of a namespace may hold. Fixed when the namespace is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum MembershipRule {
    /// One group at a time: the original rule.
    #[default]
    OneGroup,
    /// Any number of groups, each once.
    OnePerGroup,
    /// Each invite once, also several of one group.
    OnePerInvite,
    /// No limit: each request spends a use.
    Unlimited,
}

impl MembershipRule {
    /// Every rule.
    pub const ALL: [Self; 4] =
        [Self::OneGroup, Self::OnePerGroup, Self::OnePerInvite, Self::Unlimited];

    /// The word used in Redis, SQL and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OneGroup => "one_group",
            Self::OnePerGroup => "one_per_group",
            Self::OnePerInvite => "one_per_invite",
            Self::Unlimited => "unlimited",
        }
    }

    /// # Errors
    /// [`Malformed`] when the text is none of the four words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == text).ok_or_else(|| {
            Malformed(
                "membership is one_group, one_per_group, one_per_invite or unlimited".to_owned(),
            )
        })
    }
}

/// A user in a group.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Member {
    /// Where the group lives.
    pub namespace: Namespace,
    /// Who.
    pub user: UserId,
    /// In what.
    pub group: Group,
    /// The redemption that made the user a member; nothing for one who joined another way.
    pub redemption: Option<RedemptionId>,
    /// Since when, by the clock of Redis.
    pub joined_at: Millis,
}

/// All that is remembered of a user of a namespace: what a rebuild of the gate carries over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// Where.
    pub namespace: Namespace,
    /// Who.
    pub user: UserId,
    /// The rule of the namespace.
    pub rule: MembershipRule,
    /// The groups that the user is in, where each membership began, and since when if not by a redemption.
    pub memberships: Vec<(Group, Cursor, Option<Millis>)>,
    /// What the user has redeemed.
    pub redemptions: Vec<Remembered>,
}

/// A redemption, as it is remembered of its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The redemption.
    pub redemption: Redemption,
    /// Its request id, as it is stored.
    pub request: String,
    /// Whether it counts under the rule of the namespace.
    pub counts: bool,
    /// When it was rolled back, if it was.
    pub rolled_back_at: Option<Millis>,
}
