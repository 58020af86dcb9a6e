//! A reservation: a use that is held for a user until a deadline.

use super::{Code, InviteId, Millis, Namespace, RedemptionId, ReservationId, UserId};

/// How long a use is held unless the request says otherwise, in seconds.
pub const TTL_SECONDS_DEFAULT: u64 = 600;

/// The longest that a use can be held, in seconds.
pub const TTL_SECONDS_MAX: u64 = 86_400;

/// A use that is held for a user: nobody else gets it before the deadline, and from the deadline on it counts for
/// nothing. A user holds at most one use of an invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Follows from the other fields.
    pub id: ReservationId,
    /// Where.
    pub namespace: Namespace,
    /// Whose use is held.
    pub invite: InviteId,
    /// What was typed, normalised.
    pub code: Code,
    /// For whom.
    pub user: UserId,
    /// The deadline, by the clock of Redis; never after the end of the invite's window.
    pub until: Millis,
}

impl Reservation {
    /// The use of an invite that a user holds until this moment.
    #[must_use]
    pub fn new(
        namespace: &Namespace,
        invite: InviteId,
        code: &Code,
        user: &UserId,
        until: Millis,
    ) -> Self {
        Self {
            id: ReservationId::of(namespace, invite, user, until),
            namespace: namespace.clone(),
            invite,
            code: code.clone(),
            user: user.clone(),
            until,
        }
    }
}

/// What became of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nobody has ended it: it holds a use until its deadline.
    Held,
    /// The use was spent, by this redemption.
    Confirmed(RedemptionId),
    /// It was given back, or its invite lost the code.
    Released,
}
