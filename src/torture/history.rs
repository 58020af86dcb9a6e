//! What clients asked and were told, and what was there in the end: all that the laws are decided from.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    client::{ClientError, Redemption},
    domain::{Durability, InviteId, Position, RedemptionId, RequestId, UserId},
};

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Operation {
    /// When it was sent, since the run began.
    pub invoked: Duration,
    /// When there was an answer, or nobody waited for one any more.
    pub returned: Duration,
    /// For whom.
    pub user: UserId,
    /// Whose code.
    pub invite: InviteId,
    /// What makes a repeat recognisable.
    pub key: RequestId,
    /// What the answer was to promise.
    pub asked: Durability,
    /// What came of it, as far as the client knows.
    pub told: Told,
}

/// What a client knows after it has asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// One use is spent, by this request or an earlier one.
    Granted(Grant),
    /// Nothing was spent: all uses are.
    Exhausted,
    /// Nothing was spent: the user is a member already.
    AlreadyMember,
    /// Nothing at all: it may have been done, or may yet be.
    Unknown(String),
    /// It was told, or is plain, that nothing was done.
    NothingDone(String),
    /// What nobody who asks properly should be told. It may have been done.
    Unexpected(String),
}

/// An answer that says that a use is spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Of which redemption.
    pub id: RedemptionId,
    /// Which use of the invite.
    pub ordinal: u64,
    /// Whether an earlier request had spent it.
    pub replayed: bool,
    /// What the answer promises.
    pub durability: Durability,
    /// Where it stands among the changes.
    pub position: Position,
}

/// What was there in the end.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The invites.
    pub invites: BTreeMap<InviteId, InviteRow>,
    /// The redemptions that the ledger lists.
    pub redemptions: Vec<RedemptionRow>,
    /// The members that it lists, and by which redemption each is one.
    pub members: Vec<(UserId, Option<RedemptionId>)>,
}

/// An invite in the end.
#[derive(Debug, Clone)]
pub struct InviteRow {
    /// Its code, for people.
    pub code: String,
    /// How many uses it has.
    pub max_uses: u64,
    /// How many it says are spent.
    pub uses: u64,
}

/// A redemption in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedemptionRow {
    /// Its id.
    pub id: RedemptionId,
    /// Who.
    pub user: UserId,
    /// Of which invite.
    pub invite: InviteId,
    /// Which use of it.
    pub ordinal: u64,
    /// Where it stands among the changes.
    pub position: Position,
}

impl Operation {
    /// Whether it may have spent a use, now or before.
    #[must_use]
    pub fn may_have_spent(&self) -> bool {
        matches!(self.told, Told::Granted(_) | Told::Unknown(_) | Told::Unexpected(_))
    }

    /// The answer that says so, if it was granted.
    #[must_use]
    pub fn grant(&self) -> Option<&Grant> {
        match &self.told {
            Told::Granted(grant) => Some(grant),
            _ => None,
        }
    }
}

impl Told {
    /// Whether the client knows what holds.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(self, Self::Granted(_) | Self::Exhausted | Self::AlreadyMember)
    }

    /// What an answer, or its absence, lets a client know.
    #[must_use]
    pub fn of(answer: Result<Redemption, ClientError>) -> Self {
        let problem = match answer {
            Ok(Redemption { id, ordinal, replayed, durability, position, .. }) => {
                return match Durability::parse(&durability) {
                    Ok(durability) => {
                        Self::Granted(Grant { id, ordinal, replayed, durability, position })
                    }
                    Err(_) => Self::Unexpected(format!("a grant of durability {durability:?}")),
                };
            }
            Err(ClientError::Problem(problem)) => problem,
            Err(error) if error.is_unknown() => return Self::Unknown("no answer".to_owned()),
            Err(ClientError::Transport { .. }) => {
                return Self::NothingDone("no connection".to_owned());
            }
            Err(error @ ClientError::Foreign { .. }) => return Self::Unexpected(error.to_string()),
        };
        match problem.code.as_str() {
            "invite_exhausted" => Self::Exhausted,
            "already_member" => Self::AlreadyMember,
            // These say that nothing was done. Source: docs/api.md, "Errors".
            "fenced" | "gate_unavailable" | "overloaded" => Self::NothingDone(problem.code),
            // Of the ledger it is only said that it can not be reached.
            "outcome_unknown" | "ledger_unavailable" => Self::Unknown(problem.code),
            _ => Self::Unexpected(problem.to_string()),
        }
    }
}
