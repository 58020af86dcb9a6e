//! Reservations: `POST` holds a use for a user while a form or a payment completes, `…/confirm` spends it, `DELETE` gives
//! it back. From its deadline on a reservation counts for nothing, without waiting for anybody to clear it away.

use actix_web::{HttpResponse, http::header, web};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    State,
    body::Body,
    guard::IdempotencyKey,
    problem::{Code, Problem, rate_headers},
    redemptions::{self, Asked, settings_of},
    scope::{Room, Scope},
};
use crate::{
    domain::{
        Code as InviteCode, EmailDomain, InviteId, Millis, Namespace, Outcome, RedemptionId,
        Refusal, Reservation, ReservationId, UserId,
        reservation::{Held, TTL_SECONDS_DEFAULT, TTL_SECONDS_MAX},
    },
    gate::{
        GateError, outbox,
        redeem::{Mode, Redeem},
        release::{Release, ReleaseAnswer},
        show_reservation::ShowReservation,
    },
};

/// What a reservation is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ReservationState)]
enum Now {
    /// It holds a use.
    Held,
    /// Its time is over.
    Expired,
    /// It has become a redemption.
    Confirmed,
    /// It was given back.
    Released,
}

/// A reservation as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Reservation)]
struct View<'a> {
    id: ReservationId,
    namespace: Namespace,
    invite: InviteId,
    code: &'a InviteCode,
    user: &'a UserId,
    state: Now,
    /// From this moment on it counts for nothing; never after the invite's own end.
    expires_at: Millis,
    /// What it has become.
    #[schema(required)]
    redemption: Option<RedemptionId>,
    /// Whether the user held it before.
    replayed: bool,
}

impl<'a> View<'a> {
    fn new(reservation: &'a Reservation, state: Now) -> Self {
        let Reservation { id, namespace, invite, code, user, until } = reservation;
        Self {
            id: *id,
            namespace: namespace.whole(),
            invite: invite.of_whole(namespace),
            code,
            user,
            state,
            expires_at: *until,
            redemption: None,
            replayed: false,
        }
    }
}

fn missing() -> Problem {
    Problem::new(Code::ReservationNotFound, "No reservation of this namespace has this id.")
}

pub(super) async fn create(
    state: web::Data<State>,
    scope: Scope,
    _room: Room,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let settings = settings_of(&state, &scope.namespace).await?;
    let code = body.code(|text| settings.code(text));
    let user = body.required("user", UserId::parse);
    let ip = body.ip();
    let email_domain = body.optional("email", EmailDomain::of_address).value();
    let ttl_seconds = body.count("ttl_seconds", TTL_SECONDS_MAX).value();
    body.finish()?;
    let (Some(code), Some(user)) = (code, user) else { return Err(body.problem()) };
    let question = Redeem {
        namespace: scope.namespace,
        code,
        user: Some(user),
        ip,
        email_domain,
        caller: scope.caller.actor(),
        mode: Mode::Reserve { ttl_ms: ttl_seconds.unwrap_or(TTL_SECONDS_DEFAULT) * 1000 },
    };
    let deadline = Instant::now() + state.request_timeout;
    let (answer, _) = state.spread.redeem(question, false, deadline).await?;
    let (reservation, replayed) = match answer.outcome {
        Outcome::Held { reservation, replayed } => (reservation, replayed),
        Outcome::Refused(refusal) => return Err(Problem::from(refusal).with_rates(answer.rates)),
        Outcome::Granted(_) | Outcome::Replayed(_) | Outcome::Allowed => {
            return Err(Problem::unexpected("a reservation was answered like something else"));
        }
    };
    let mut response = if replayed { HttpResponse::Ok() } else { HttpResponse::Created() };
    for header in rate_headers(&answer.rates) {
        response.insert_header(header);
    }
    let Reservation { id, namespace, .. } = &reservation;
    let location = format!("/v1/namespaces/{}/reservations/{id}", namespace.whole());
    response.insert_header((header::LOCATION, location));
    Ok(response.json(View { replayed, ..View::new(&reservation, Now::Held) }))
}

/// A reservation and what became of it, also when the ledger does not have that yet. Without the gate, what the ledger
/// has.
async fn find(
    state: &State,
    namespace: &Namespace,
    id: &str,
) -> Result<(Reservation, Held), Problem> {
    let id: ReservationId = id.parse().map_err(|_| missing())?;
    // The outbox first: what is in neither at two moments was never there, since it goes from the one to the other.
    let shards = redemptions::shards(state, namespace).await?;
    let mut asked = Ok(());
    for shard in &shards {
        match outbox::find_reservation(&state.gate, shard, id).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error @ GateError::Unavailable { .. }) => asked = Err(error),
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(found) = state.ledger.reservation(namespace, id).await? {
        return Ok(found);
    }
    // The gate may have it, and could not be asked.
    asked?;
    for shard in &shards {
        redemptions::gate_is_whole(state, shard).await?;
    }
    state.ledger.reservation(namespace, id).await?.ok_or_else(missing)
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let (mut reservation, mut held) = find(&state, &scope.namespace, &path.1).await?;
    if held == Held::Held && !is_live(&state, &reservation).await? {
        // Its time is over, or it has just been ended.
        (reservation, held) = find(&state, &scope.namespace, &path.1).await?;
        if held == Held::Held {
            return Ok(HttpResponse::Ok().json(View::new(&reservation, Now::Expired)));
        }
    }
    let view = match held {
        Held::Held => View::new(&reservation, Now::Held),
        Held::Released => View::new(&reservation, Now::Released),
        Held::Confirmed(redemption) => {
            View { redemption: Some(redemption), ..View::new(&reservation, Now::Confirmed) }
        }
    };
    Ok(HttpResponse::Ok().json(view))
}

/// Whether a reservation holds a use now.
async fn is_live(state: &State, reservation: &Reservation) -> Result<bool, Problem> {
    let Reservation { namespace, code, user, .. } = reservation.clone();
    let live = ShowReservation { namespace, code, user }.run(&state.gate).await?;
    Ok(live.is_some_and(|live| live.id == reservation.id))
}

pub(super) async fn release(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let (reservation, _) = find(&state, &scope.namespace, &path.1).await?;
    let release = Release { reservation, actor: scope.caller.actor() };
    match release.run(&state.gate).await? {
        ReleaseAnswer::Released => Ok(HttpResponse::NoContent().finish()),
        ReleaseAnswer::NamespaceNotFound => Err(Refusal::NamespaceNotFound.into()),
        ReleaseAnswer::NotHeld => match find(&state, &scope.namespace, &path.1).await? {
            (_, Held::Confirmed(redemption)) => Err(confirmed(redemption)),
            // It holds nothing, which is what was asked for.
            (_, Held::Held | Held::Released) => Ok(HttpResponse::NoContent().finish()),
        },
    }
}

fn confirmed(redemption: RedemptionId) -> Problem {
    Problem::new(
        Code::ReservationConfirmed,
        "The use is spent. Roll the redemption back to get it back.",
    )
    .with("redemption", redemption.to_string())
}

pub(super) async fn confirm(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    request: IdempotencyKey,
    _room: Room,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let deadline = Instant::now() + state.request_timeout;
    let settings = settings_of(&state, &scope.namespace).await?;
    let metadata = body.metadata().value();
    let durability = redemptions::durability(&state, &mut body);
    body.finish()?;
    let (reservation, held) = find(&state, &scope.namespace, &path.1).await?;
    if let Held::Confirmed(redemption) = held {
        let asked = Asked { durability, deadline };
        return redemptions::replay(&state, &settings, &scope.namespace, redemption, asked).await;
    }
    let question = Redeem {
        namespace: scope.namespace,
        code: reservation.code,
        user: Some(reservation.user),
        ip: None,
        email_domain: None,
        caller: scope.caller.actor(),
        mode: Mode::Redeem {
            request: request.0.unwrap_or_else(crate::ids::request),
            redemption: crate::ids::redemption(),
            metadata,
            reservation: Some(reservation.until),
        },
    };
    redemptions::spend(&state, question, &settings, Asked { durability, deadline }).await
}

pub(super) mod docs {
    use super::{TTL_SECONDS_DEFAULT, TTL_SECONDS_MAX, UserId, View};
    use crate::http::{
        openapi::{Fields, GATE, LEDGER, Operation, Tag, count, reference, word},
        problem::Code,
        redemptions::docs::{REFUSALS, spent},
    };

    pub(in crate::http) fn create() -> Operation {
        let mut ttl = count(TTL_SECONDS_MAX);
        ttl["default"] = TTL_SECONDS_DEFAULT.into();
        Operation::new("reserve", Tag::Reservations, "Hold a use of a code for a user")
            .about(
                "A user holds at most one use of an invite: a repeat gets the same reservation, with the deadline that it \
                 has.",
            )
            .takes(
                Fields::new()
                    .needs("code", reference("TypedCode"), "What the person typed.")
                    .needs("user", word::<UserId>(), "Your id for the person.")
                    .may_be_null("ip", reference("IpAddress"), "The person's address, for rate limits.")
                    .may_be_null("email", reference("Email"), "The person's e-mail address.")
                    .may_be_null("ttl_seconds", ttl, "For how long."),
            )
            .answers::<View>(201, "A new reservation.")
            .with(&["Location"])
            .answers::<View>(200, "The user held it before; `replayed` is true.")
            .with(&["Location"])
            .rated()
            .problems(REFUSALS)
            .problems(GATE)
    }

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_reservation", Tag::Reservations, "One reservation")
            .answers::<View>(200, "The reservation as it is now.")
            .problems(&[Code::ReservationNotFound])
            .problems(GATE)
            .problems(LEDGER)
    }

    pub(in crate::http) fn release() -> Operation {
        Operation::new("release_reservation", Tag::Reservations, "Give a held use back")
            .answers_nothing(204, "It holds nothing, be it since now or before.")
            .problems(&[
                Code::ReservationNotFound,
                Code::NamespaceNotFound,
                Code::ReservationConfirmed,
            ])
            .problems(GATE)
            .problems(LEDGER)
    }

    pub(in crate::http) fn confirm() -> Operation {
        let fields = Fields::new();
        spent(Operation::new("confirm_reservation", Tag::Reservations, "Spend a held use"), fields)
            .about("Draws on no rate limit: that was done when the use was reserved.")
            .problems(&[Code::ReservationNotFound, Code::RedemptionNotFound])
            .problems(LEDGER)
    }
}
