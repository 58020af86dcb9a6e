//! What a redemption is, and every answer that asking for one can have.

use super::{
    Code, EmailDomain, Group, InviteId, MembershipRule, Millis, Namespace, Policy, Position,
    RateStatus, RedemptionId, RequestId, Reservation, UserId,
};

/// One use spent by one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// A UUID v7 made by the node that was asked.
    pub id: RedemptionId,
    /// Where it happened.
    pub namespace: Namespace,
    /// Whose use was spent.
    pub invite: InviteId,
    /// What was typed, normalised.
    pub code: Code,
    /// What the user got into.
    pub group: Group,
    /// Who.
    pub user: UserId,
    /// Which use of the invite this was: an ordinal from 1 that never goes back.
    pub ordinal: u64,
    /// Uses left right after it; nothing where there is no limit.
    pub remaining: Option<u64>,
    /// When, by the clock of Redis.
    pub redeemed_at: Millis,
    /// Where it stands among the changes of its partition.
    pub position: Position,
}

impl Redemption {
    /// The use that its user had held until this moment, and that it has spent.
    #[must_use]
    pub fn reservation(&self, until: Millis) -> Reservation {
        Reservation::new(&self.namespace, self.invite, &self.code, &self.user, until)
    }
}

/// A redemption that somebody was told of, with everything that it takes to write it down or to ask for it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// What was told.
    pub redemption: Redemption,
    /// The request that it answered.
    pub request: RequestId,
    /// Whether this request got it; else it was told again, perhaps to another request of the same user.
    pub first: bool,
    /// The deadline of the reservation that was named and that it has spent.
    pub reservation: Option<Millis>,
    /// The rule under which it was granted.
    pub rule: MembershipRule,
    /// The domain of the person's e-mail address, if one was given.
    pub email_domain: Option<EmailDomain>,
    /// The application's own JSON object, as text.
    pub metadata: Option<String>,
    /// Who asked.
    pub actor: String,
}

/// The gate's answer to one request. A refusal is an answer, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What was decided.
    pub outcome: Outcome,
    /// What is left of the budgets that were checked.
    pub rates: Vec<RateStatus>,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// One use was spent, now.
    Granted(Redemption),
    /// This user had already spent it; nothing was spent now.
    Replayed(Redemption),
    /// A use is held for this user.
    Held {
        /// Until when, and which.
        reservation: Reservation,
        /// Whether it was held before; nothing was held now then.
        replayed: bool,
    },
    /// A validation: a redemption would be granted or replayed.
    Allowed,
    /// Nothing was spent.
    Refused(Refusal),
}

/// Why nothing was spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The namespace does not exist, or was archived.
    NamespaceNotFound,
    /// The request id was used by this user for another code.
    RequestIdReused,
    /// The redemption that this request was granted has been rolled back since.
    AlreadyRolledBack {
        /// Which.
        redemption: RedemptionId,
        /// When, by the clock of Redis.
        at: Millis,
    },
    /// The outbox has reached its limit; the ledger must catch up first.
    Overloaded,
    /// A rate limit is spent.
    RateLimited {
        /// Which.
        policy: Policy,
        /// Until an attempt fits, in milliseconds.
        retry_after_ms: u64,
    },
    /// Too many codes that do not exist were tried.
    TooManyAttempts {
        /// Until an attempt fits, in milliseconds.
        retry_after_ms: u64,
    },
    /// No invite has this code.
    NotFound,
    /// No invite has this code, or not one that may be used here and now: all that a namespace with
    /// [`ErrorDetail::Coarse`](super::ErrorDetail::Coarse) tells.
    Invalid,
    /// Switched off by hand.
    Disabled,
    /// The window has not begun.
    NotStarted {
        /// When it begins.
        starts_at: Millis,
    },
    /// The window is over.
    Expired {
        /// When it ended.
        expires_at: Millis,
    },
    /// The invite is bound to another user.
    UserNotAllowed,
    /// The invite is for other e-mail domains.
    EmailDomainNotAllowed,
    /// The membership rule allows no more.
    AlreadyMember {
        /// Of what.
        group: Group,
        /// By which redemption; nothing for one who joined another way.
        redemption: Option<RedemptionId>,
    },
    /// This user has spent as many uses of the invite as one user may.
    UserLimitReached,
    /// The reservation that was named holds nothing any more.
    ReservationExpired,
    /// All uses are spent or held.
    Exhausted {
        /// Where some are only held: when the first of them may be free again.
        may_free_at: Option<Millis>,
    },
    /// All uses of the invite's campaign are spent or held.
    CampaignExhausted,
}
