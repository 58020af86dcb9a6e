//! What clients asked and were told, and what was there in the end: all that the laws are decided from.

use std::{collections::BTreeMap, time::Duration};

use reqwest::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    client::{ClientError, Problem, Redemption, Reservation},
    domain::{
        CampaignName, Durability, InviteId, Millis, Position, RedemptionId, RequestId,
        ReservationId, UserId,
    },
};

/// How long a use is held at the least: longer than what any user does in a run.
pub const HELD_FOR: Duration = Duration::from_hours(24);

/// Everything that was asked.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// To spend a use.
    pub operations: Vec<Operation>,
    /// To hold one.
    pub holds: Vec<Hold>,
    /// To give a held one back.
    pub releases: Vec<Release>,
    /// To take a spent one back.
    pub rollbacks: Vec<Rollback>,
}

/// One request to spend a use, and what became of it.
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
    /// What is to be spent, if that and nothing else.
    pub reservation: Option<ReservationId>,
    /// What the answer was to promise.
    pub asked: Durability,
    /// What came of it, as far as the client knows.
    pub told: Told,
}

/// What a client knows after it has asked for a use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// One use is spent, by this request or an earlier one.
    Granted(Grant),
    /// Nothing was spent: all uses are.
    Exhausted,
    /// Nothing was spent: all uses of the invite's campaign are.
    CampaignExhausted,
    /// Nothing was spent: the user is a member already.
    AlreadyMember,
    /// Nothing was spent: the reservation holds nothing.
    NotHeld(String),
    /// One was spent once, and was taken back.
    RolledBack(TakenBack),
    /// Nothing at all: it may have been done, or may yet be.
    Unknown(String),
    /// It was told, or is plain, that nothing was done.
    NothingDone(String),
    /// What nobody who asks properly should be told. It may have been done.
    Unexpected(String),
}

/// Of what all uses are spent or held, as somebody was told who wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsedUp {
    /// The invite.
    Invite,
    /// The campaign that it belongs to.
    Campaign,
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

/// An answer that says that a redemption was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenBack {
    /// Which.
    pub id: RedemptionId,
    /// When, by the clock of Redis.
    pub at: Millis,
}

/// One request to hold a use, and what became of it.
#[derive(Debug, Clone)]
pub struct Hold {
    /// When it was sent, since the run began.
    pub invoked: Duration,
    /// When there was an answer, or nobody waited for one any more.
    pub returned: Duration,
    /// For whom.
    pub user: UserId,
    /// Of which invite.
    pub invite: InviteId,
    /// What came of it, as far as the client knows.
    pub told: HoldTold,
}

/// What a client knows after it has asked to hold a use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldTold {
    /// One is held, by this request or an earlier one.
    Held(ReservationId),
    /// Nothing is held: no use is left.
    Exhausted,
    /// Nothing is held: no use of the invite's campaign is left.
    CampaignExhausted,
    /// Nothing is held: the user is a member already.
    AlreadyMember,
    /// Nothing at all: it may have been done, or may yet be.
    Unknown(String),
    /// It was told, or is plain, that nothing was done.
    NothingDone(String),
    /// What nobody who asks properly should be told. It may have been done.
    Unexpected(String),
}

/// One request to give a held use back, and what became of it.
#[derive(Debug, Clone)]
pub struct Release {
    /// When it was sent, since the run began.
    pub invoked: Duration,
    /// When there was an answer, or nobody waited for one any more.
    pub returned: Duration,
    /// Whose.
    pub user: UserId,
    /// Of which invite.
    pub invite: InviteId,
    /// What was to be given back.
    pub reservation: ReservationId,
    /// What came of it, as far as the client knows.
    pub told: ReleaseTold,
}

/// What a client knows after it has asked to give a held use back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseTold {
    /// It holds nothing, be it since now or before.
    Released,
    /// It is spent.
    Spent(RedemptionId),
    /// There is no such reservation.
    NotFound,
    /// Nothing at all: it may have been done, or may yet be.
    Unknown(String),
    /// It was told, or is plain, that nothing was done.
    NothingDone(String),
    /// What nobody who asks properly should be told. It may have been done.
    Unexpected(String),
}

/// One request to take a redemption back, and what became of it.
#[derive(Debug, Clone)]
pub struct Rollback {
    /// When it was sent, since the run began.
    pub invoked: Duration,
    /// When there was an answer, or nobody waited for one any more.
    pub returned: Duration,
    /// Whose.
    pub user: UserId,
    /// Of which invite.
    pub invite: InviteId,
    /// What was to be taken back.
    pub redemption: RedemptionId,
    /// What came of it, as far as the client knows.
    pub told: RollbackTold,
}

/// What a client knows after it has asked to take a redemption back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RollbackTold {
    /// It is taken back, by this request or an earlier one.
    RolledBack(Millis),
    /// There is no such redemption.
    NotFound,
    /// Nothing at all: it may have been done, or may yet be.
    Unknown(String),
    /// It was told, or is plain, that nothing was done.
    NothingDone(String),
    /// What nobody who asks properly should be told. It may have been done.
    Unexpected(String),
}

/// What was there in the end.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// When it was looked at, since the run began.
    pub at: Duration,
    /// The invites.
    pub invites: BTreeMap<InviteId, InviteRow>,
    /// The campaigns.
    pub campaigns: BTreeMap<CampaignName, CampaignRow>,
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
    /// How many it says are held.
    pub held: u64,
    /// The campaign that it says it belongs to.
    pub campaign: Option<CampaignName>,
}

/// A campaign in the end.
#[derive(Debug, Clone, Copy)]
pub struct CampaignRow {
    /// How many uses all its invites have together.
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
    /// Since when it counts for nothing.
    pub rolled_back_at: Option<Millis>,
}

impl History {
    /// Adds what another one has.
    pub fn extend(&mut self, other: Self) {
        let Self { operations, holds, releases, rollbacks } = other;
        self.operations.extend(operations);
        self.holds.extend(holds);
        self.releases.extend(releases);
        self.rollbacks.extend(rollbacks);
    }

    /// A line for each request.
    #[must_use]
    pub fn lines(&self) -> String {
        let Self { operations, holds, releases, rollbacks } = self;
        let lines = operations.iter().map(|one| format!("{one:?}\n"));
        let lines = lines.chain(holds.iter().map(|one| format!("{one:?}\n")));
        let lines = lines.chain(releases.iter().map(|one| format!("{one:?}\n")));
        lines.chain(rollbacks.iter().map(|one| format!("{one:?}\n"))).collect()
    }
}

impl Outcome {
    /// A line for each invite and each campaign.
    #[must_use]
    pub fn lines(&self) -> String {
        let invites = self.invites.iter().map(|(id, row)| format!("{id}: {row:?}\n"));
        let campaigns = self.campaigns.iter().map(|(name, row)| format!("{name}: {row:?}\n"));
        invites.chain(campaigns).collect()
    }
}

impl Operation {
    /// Whether it may have spent a use, now or before.
    #[must_use]
    pub fn may_have_spent(&self) -> bool {
        use Told::{Granted, RolledBack, Unexpected, Unknown};
        matches!(self.told, Granted(_) | RolledBack(_) | Unknown(_) | Unexpected(_))
    }

    /// Whether it may have made this very redemption, if any did.
    #[must_use]
    pub fn may_have_made(&self, id: RedemptionId) -> bool {
        match &self.told {
            Told::Granted(grant) => grant.id == id,
            Told::RolledBack(taken_back) => taken_back.id == id,
            _ => self.may_have_spent(),
        }
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

impl Hold {
    /// Whether a use may be held by it, now or before.
    #[must_use]
    pub fn may_have_held(&self) -> bool {
        use HoldTold::{Held, Unexpected, Unknown};
        matches!(self.told, Held(_) | Unknown(_) | Unexpected(_))
    }
}

impl Release {
    /// Whether a use may have been given back by it.
    #[must_use]
    pub fn may_have_released(&self) -> bool {
        use ReleaseTold::{Released, Unexpected, Unknown};
        matches!(self.told, Released | Unknown(_) | Unexpected(_))
    }
}

impl Rollback {
    /// Whether a redemption may have been taken back by it.
    #[must_use]
    pub fn may_have_rolled_back(&self) -> bool {
        use RollbackTold::{RolledBack, Unexpected, Unknown};
        matches!(self.told, RolledBack(_) | Unknown(_) | Unexpected(_))
    }
}

/// What an answer that is no success lets a client know.
enum Failed {
    Refused(Box<Problem>),
    Unknown(String),
    NothingDone(String),
    Unexpected(String),
}

/// What a client has after it has sent a request: an answer, why there is none, or nothing since it did not wait.
pub type Answer = Option<Result<Value, ClientError>>;

fn read<T: DeserializeOwned>(answer: Answer) -> Result<T, Failed> {
    match answer {
        None => Err(Failed::Unknown("cancelled".to_owned())),
        Some(Err(error)) => Err(Failed::of(error)),
        Some(Ok(answer)) => serde_json::from_value(answer.clone())
            .map_err(|_| Failed::Unexpected(answer.to_string())),
    }
}

impl Failed {
    fn of(error: ClientError) -> Self {
        let problem = match error {
            ClientError::Problem(problem) => problem,
            ClientError::Transport { .. } | ClientError::Foreign { .. } if error.is_unknown() => {
                return Self::Unknown("no answer".to_owned());
            }
            ClientError::Transport { .. } => return Self::NothingDone("no connection".to_owned()),
            // A connection that was not used for too long. Source: RFC 9110, section 15.5.9.
            ClientError::Foreign { status: StatusCode::REQUEST_TIMEOUT, .. } => {
                return Self::NothingDone("too slow".to_owned());
            }
            ClientError::Foreign { .. } => return Self::Unexpected(error.to_string()),
        };
        match problem.code.as_str() {
            // These say that nothing was done. Source: docs/api.md, "Errors".
            "fenced" | "gate_unavailable" | "overloaded" | "request_timeout" => {
                Self::NothingDone(problem.code)
            }
            // Of the ledger it is only said that it can not be reached.
            "outcome_unknown" | "ledger_unavailable" => Self::Unknown(problem.code),
            _ => Self::Refused(Box::new(problem)),
        }
    }
}

/// The states that all questions have in common, where the answer is none of its own.
macro_rules! otherwise {
    ($told:ident, $failed:expr) => {
        match $failed {
            Failed::Refused(problem) => $told::Unexpected(problem.to_string()),
            Failed::Unknown(why) => $told::Unknown(why),
            Failed::NothingDone(why) => $told::NothingDone(why),
            Failed::Unexpected(what) => $told::Unexpected(what),
        }
    };
}

impl Told {
    /// Whether the client knows what holds.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(self, Self::Granted(_) | Self::RolledBack(_)) || self.is_refusal()
    }

    /// Whether the client was told that it has never been granted anything.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::AlreadyMember | Self::NotHeld(_)) || self.used_up().is_some()
    }

    /// What has no use left, if that is why there is none.
    #[must_use]
    pub fn used_up(&self) -> Option<UsedUp> {
        match self {
            Self::Exhausted => Some(UsedUp::Invite),
            Self::CampaignExhausted => Some(UsedUp::Campaign),
            _ => None,
        }
    }

    /// What an answer, or its absence, lets a client know.
    #[must_use]
    pub fn of(answer: Answer) -> Self {
        let failed = match read(answer) {
            Ok(Redemption { rolled_back_at: Some(at), id, .. }) => {
                return Self::Unexpected(format!("a grant of {id}, which was rolled back at {at}"));
            }
            Ok(Redemption { id, ordinal, replayed, durability, position, .. }) => {
                return match Durability::parse(&durability) {
                    Ok(durability) => {
                        Self::Granted(Grant { id, ordinal, replayed, durability, position })
                    }
                    Err(_) => Self::Unexpected(format!("a grant of durability {durability:?}")),
                };
            }
            Err(failed) => failed,
        };
        if let Failed::Refused(problem) = &failed {
            let Problem { code, redemption, rolled_back_at, .. } = &**problem;
            match (code.as_str(), redemption, rolled_back_at) {
                ("invite_exhausted", ..) => return Self::Exhausted,
                ("campaign_exhausted", ..) => return Self::CampaignExhausted,
                ("already_member", ..) => return Self::AlreadyMember,
                ("reservation_expired" | "reservation_not_found", ..) => {
                    return Self::NotHeld(code.clone());
                }
                ("already_rolled_back", Some(id), Some(at)) => {
                    return Self::RolledBack(TakenBack { id: *id, at: *at });
                }
                _ => {}
            }
        }
        otherwise!(Self, failed)
    }
}

impl HoldTold {
    /// What an answer, or its absence, lets a client know.
    #[must_use]
    pub fn of(answer: Answer) -> Self {
        let failed = match read(answer) {
            Ok(Reservation { id }) => return Self::Held(id),
            Err(failed) => failed,
        };
        if let Failed::Refused(problem) = &failed {
            match problem.code.as_str() {
                "invite_exhausted" => return Self::Exhausted,
                "campaign_exhausted" => return Self::CampaignExhausted,
                "already_member" => return Self::AlreadyMember,
                _ => {}
            }
        }
        otherwise!(Self, failed)
    }

    /// Whether the client knows what holds.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(self, Self::Held(_) | Self::AlreadyMember) || self.used_up().is_some()
    }

    /// What has no use left, if that is why none is held.
    #[must_use]
    pub fn used_up(&self) -> Option<UsedUp> {
        match self {
            Self::Exhausted => Some(UsedUp::Invite),
            Self::CampaignExhausted => Some(UsedUp::Campaign),
            _ => None,
        }
    }
}

impl ReleaseTold {
    /// What an answer, or its absence, lets a client know.
    #[must_use]
    pub fn of(answer: Answer) -> Self {
        let failed = match read(answer) {
            Ok(()) => return Self::Released,
            Err(failed) => failed,
        };
        if let Failed::Refused(problem) = &failed {
            match (problem.code.as_str(), problem.redemption) {
                ("reservation_confirmed", Some(id)) => return Self::Spent(id),
                ("reservation_not_found", _) => return Self::NotFound,
                _ => {}
            }
        }
        otherwise!(Self, failed)
    }

    /// Whether the client knows what holds.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(self, Self::Released | Self::Spent(_) | Self::NotFound)
    }
}

impl RollbackTold {
    /// What an answer, or its absence, lets a client know.
    #[must_use]
    pub fn of(answer: Answer) -> Self {
        let failed = match read(answer) {
            Ok(Redemption { rolled_back_at: Some(at), .. }) => return Self::RolledBack(at),
            Ok(Redemption { id, .. }) => {
                return Self::Unexpected(format!("{id} is said to be taken back and is not"));
            }
            Err(failed) => failed,
        };
        match &failed {
            Failed::Refused(problem) if problem.code == "redemption_not_found" => Self::NotFound,
            _ => otherwise!(Self, failed),
        }
    }

    /// Whether the client knows what holds.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(self, Self::RolledBack(_) | Self::NotFound)
    }
}
