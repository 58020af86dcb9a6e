//! What happened, as it is told to those who follow a namespace: by server-sent events and by webhooks.

use super::{Malformed, Millis, Namespace, Position, Redemption};

/// The type of the event that a redemption is.
pub const REDEEMED: &str = "redeemed";

/// Every type of event: a redemption, and what the audit log calls the other changes.
pub const TYPES: [&str; 15] = [
    REDEEMED,
    "redemption_rolled_back",
    "reserved",
    "reservation_released",
    "campaign_put",
    "user_erased",
    "invite_created",
    "invite_imported",
    "invite_changed",
    "invite_deleted",
    "invites_created",
    "joined",
    "left",
    "namespace_put",
    "namespace_archived",
];

/// A type of event.
///
/// # Errors
/// [`Malformed`] when there is none of this name.
pub fn parse_type(text: &str) -> Result<&'static str, Malformed> {
    let known = TYPES.into_iter().find(|known| *known == text);
    known.ok_or_else(|| Malformed(format!("{text:?} is no type of event: {}", TYPES.join(", "))))
}

/// One change of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place among all changes: no two events have the same.
    pub position: Position,
    /// What it is.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A use was spent.
    Redeemed {
        /// The redemption.
        redemption: Redemption,
        /// The application's own JSON object, as text.
        metadata: Option<String>,
    },
    /// Anything else, as the audit log has it.
    Changed {
        /// What was done.
        action: String,
        /// To what.
        subject: String,
        /// By whom: the id of an API key, or a part of this program.
        actor: String,
        /// Where.
        namespace: Namespace,
        /// When, by the clock of Redis.
        at: Millis,
    },
}

impl Event {
    /// Its type: one of [`TYPES`], or a newer version's.
    #[must_use]
    pub fn kind(&self) -> &str {
        match &self.what {
            What::Redeemed { .. } => REDEEMED,
            What::Changed { action, .. } => action,
        }
    }

    /// When it happened, by the clock of Redis.
    #[must_use]
    pub fn at(&self) -> Millis {
        match &self.what {
            What::Redeemed { redemption, .. } => redemption.redeemed_at,
            What::Changed { at, .. } => *at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_one_of_those_that_there_are() {
        assert_eq!(parse_type("joined").unwrap(), "joined");
        assert!(parse_type("Joined").unwrap_err().0.contains("invites_created"));
    }
}
