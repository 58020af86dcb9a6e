//! `POST …/redemptions` spends one use of a code for a user, once per Idempotency-Key: 201 for a new redemption, 200
//! with `replayed` for a repeat. `GET …/redemptions` lists what the ledger has, newest first. `GET …/redemptions/{id}`
//! finds one, also one that the ledger does not have yet.

use actix_web::{HttpResponse, http::header, web};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    State,
    body::{Body, stored_metadata},
    guard::IdempotencyKey,
    page::{Page, Query, single},
    problem::{Code, Problem, rate_headers},
    scope::{Room, Scope},
};
use crate::{
    domain::{
        Code as InviteCode, Cursor, Durability, EmailDomain, Group, InviteId, Malformed, Millis,
        Namespace, Outcome, Position, Redemption, RedemptionId, Settings, UserId,
    },
    gate::{
        outbox,
        redeem::{Mode, Redeem},
    },
    ledger::{RedemptionFilter, RedemptionRecord},
};

/// A redemption as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Redemption)]
pub(super) struct View<'a> {
    id: RedemptionId,
    namespace: &'a Namespace,
    invite: InviteId,
    code: &'a InviteCode,
    group: &'a Group,
    user: &'a UserId,
    /// Numbers the invite's redemptions from 1, and never goes back.
    #[serde(rename = "use")]
    #[schema(minimum = 1)]
    ordinal: u64,
    /// Uses left right after it; null without limit.
    #[schema(required)]
    remaining: Option<u64>,
    redeemed_at: Millis,
    /// Whether this user had spent the use before.
    replayed: bool,
    /// The strongest level that is known to hold it.
    #[schema(value_type = Durability)]
    durability: &'static str,
    position: Position,
    /// Your own JSON object, on reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, nullable = false)]
    metadata: Option<Box<RawValue>>,
}

impl<'a> View<'a> {
    pub(super) fn new(redemption: &'a Redemption, replayed: bool, reached: Durability) -> Self {
        let Redemption { id, namespace, invite, code, group, user, .. } = redemption;
        Self {
            id: *id,
            namespace,
            invite: *invite,
            code,
            group,
            user,
            ordinal: redemption.ordinal,
            remaining: redemption.remaining,
            redeemed_at: redemption.redeemed_at,
            replayed,
            durability: reached.as_str(),
            position: redemption.position,
            metadata: None,
        }
    }

    pub(super) fn with_metadata(mut self, metadata: Option<String>) -> Result<Self, Problem> {
        self.metadata = stored_metadata(metadata)?;
        Ok(self)
    }
}

/// The rules of a namespace, which say what its codes are.
pub(super) async fn settings_of(
    state: &State,
    namespace: &Namespace,
) -> Result<std::sync::Arc<Settings>, Problem> {
    state.gate.settings(namespace).await?.ok_or_else(|| {
        Problem::new(Code::NamespaceNotFound, "There is no such namespace, or it was archived.")
    })
}

/// A durability level that this node can promise.
pub(super) fn durability(state: &State, body: &mut Body) -> Option<Durability> {
    let asked = body.optional("durability", Durability::parse).value()?;
    if asked == Durability::Replicated && !state.gate.can_replicate() {
        let detail = "this service waits for no replicas (gate.replicas)";
        body.wrong("durability", Code::DurabilityUnavailable, detail);
    }
    Some(asked)
}

/// What a client is told whose redemption only the gate has so far.
const NOT_LEDGER: &str = "The gate has granted it, and the ledger is not known to have it yet. Repeat the request with the \
                       same Idempotency-Key; nothing is spent twice.";

/// What a client is told whose redemption the replicas are not known to have.
const NOT_REPLICATED: &str = "The gate has granted it, and not enough replicas are known to have it. Repeat the request \
                              with the same Idempotency-Key; nothing is spent twice.";

/// A redemption that has not reached the level that was asked for.
fn not_reached(detail: &str) -> Problem {
    Problem::new(Code::OutcomeUnknown, detail).with("reached", Durability::Gate.as_str())
}

/// Waits until the ledger has a redemption that the gate has granted, until `deadline`.
async fn wait_for_ledger(
    state: &State,
    redemption: &Redemption,
    deadline: Instant,
) -> Result<(), Problem> {
    let known = || state.ledger.redemption(&redemption.namespace, redemption.id);
    match tokio::time::timeout_at(deadline, state.progress.wait(redemption.position)).await {
        Ok(true) => return Ok(()),
        // The ledger has passed the place; only the row itself says that it is in it.
        Ok(false) => {}
        Err(_) => return Err(not_reached(NOT_LEDGER)),
    }
    match tokio::time::timeout_at(deadline, known()).await {
        Ok(Ok(Some(_))) => Ok(()),
        Ok(Ok(None)) => Err(not_reached(
            "The gate had granted it, and the ledger could not take it. Repeat the request with the same \
             Idempotency-Key to learn what holds.",
        )),
        Ok(Err(error)) => Err(not_reached(NOT_LEDGER).caused_by(&error)),
        Err(_) => Err(not_reached(NOT_LEDGER)),
    }
}

pub(super) async fn redeem(
    state: web::Data<State>,
    scope: Scope,
    request: IdempotencyKey,
    _room: Room,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let deadline = Instant::now() + state.request_timeout;
    let settings = settings_of(&state, &scope.namespace).await?;
    let code = body.code(|text| settings.code(text));
    let user = body.required("user", UserId::parse);
    let ip = body.ip();
    let email_domain = body.optional("email", EmailDomain::of_address).value();
    let metadata = body.metadata().value();
    let asked = durability(&state, &mut body);
    body.finish()?;
    let (Some(code), Some(user)) = (code, user) else { return Err(body.problem()) };
    // A request may ask for more than its namespace promises, never for less.
    let level = asked.unwrap_or_default().max(settings.durability);
    let request = request.0.unwrap_or_else(crate::ids::request);
    let mode = Mode::Redeem { request, redemption: crate::ids::redemption(), metadata };
    let caller = scope.caller.actor();
    let namespace = scope.namespace.clone();
    let question = Redeem {
        namespace: scope.namespace,
        code,
        user: Some(user),
        ip,
        email_domain,
        caller,
        mode,
    };
    if level == Durability::Replicated && !state.gate.can_replicate() {
        return Err(Problem::new(
            Code::DurabilityUnavailable,
            "The namespace promises the level replicated, and this node waits for no replicas. Ask the operator to set \
             gate.replicas.",
        ));
    }
    let (answer, replicated) = if level == Durability::Replicated {
        state.gate.redeem_replicated(question).await?
    } else {
        (state.gate.redeem(question).await?, false)
    };
    // The rules may have changed while it waited, and a grant is decided by the newest. What is known must not wait for
    // Redis again.
    let newest = state.gate.known_settings(&namespace);
    let level = level.max(newest.map_or(level, |settings| settings.durability));
    let (mut response, redemption, replayed) = match &answer.outcome {
        Outcome::Granted(redemption) => (HttpResponse::Created(), redemption, false),
        Outcome::Replayed(redemption) => (HttpResponse::Ok(), redemption, true),
        Outcome::Refused(refusal) => {
            return Err(Problem::from(refusal.clone()).with_rates(answer.rates));
        }
        Outcome::Allowed => {
            return Err(Problem::unexpected("a redemption was answered like a validation"));
        }
    };
    match level {
        Durability::Replicated if !replicated => return Err(not_reached(NOT_REPLICATED)),
        Durability::Gate | Durability::Replicated => {}
        Durability::Ledger => wait_for_ledger(&state, redemption, deadline).await?,
    }
    for header in rate_headers(&answer.rates) {
        response.insert_header(header);
    }
    if !replayed {
        let location =
            format!("/v1/namespaces/{}/redemptions/{}", redemption.namespace, redemption.id);
        response.insert_header((header::LOCATION, location));
    }
    Ok(response.json(View::new(redemption, replayed, level)))
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let missing =
        || Problem::new(Code::RedemptionNotFound, "No redemption of this namespace has this id.");
    let id: RedemptionId = path.1.parse().map_err(|_| missing())?;
    let answer = |redemption: &Redemption, metadata, reached| {
        Ok(HttpResponse::Ok().json(View::new(redemption, false, reached).with_metadata(metadata)?))
    };
    if let Some(RedemptionRecord { redemption, metadata }) =
        state.ledger.redemption(&scope.namespace, id).await?
    {
        return answer(&redemption, metadata, Durability::Ledger);
    }
    if let Some(found) = outbox::find_redemption(&state.gate, &scope.namespace, id).await? {
        return answer(&found.redemption, found.metadata, Durability::Gate);
    }
    // It may have gone across, and out of the outbox, between the two looks.
    match state.ledger.redemption(&scope.namespace, id).await? {
        Some(RedemptionRecord { redemption, metadata }) => {
            answer(&redemption, metadata, Durability::Ledger)
        }
        None => Err(missing()),
    }
}

pub(super) async fn list(
    state: web::Data<State>,
    scope: Scope,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let parameters = &mut query.parameters;
    let filter = RedemptionFilter {
        code: listed_code(&state, &scope.namespace, parameters).await?,
        invite: parameters.optional("invite", str::parse).value(),
        user: parameters.optional("user", UserId::parse).value(),
        group: parameters.optional("group", Group::parse).value(),
        after: parameters.time("after").value(),
        before: parameters.time("before").value(),
    };
    let page: Page = query.page()?;
    let before: Option<Cursor> = page.after(|parts| single(parts)?.parse().ok())?;
    let found = state.ledger.redemptions(&scope.namespace, &filter, before, page.limit).await?;
    let as_of = state.ledger.synced_at(state.gate.keys().partition_of(&scope.namespace)).await?;
    let rows = found
        .rows
        .iter()
        .map(|RedemptionRecord { redemption, metadata }| {
            View::new(redemption, false, Durability::Ledger).with_metadata(metadata.clone())
        })
        .collect::<Result<Vec<_>, Problem>>()?;
    let next = found.next.map(|cursor| cursor.to_string());
    Ok(page.answer(
        &rows,
        next.as_deref().map(|next| [next]).as_ref().map(<[_; 1]>::as_slice),
        as_of,
    ))
}

/// The parameter `code`, folded as the namespace says; taken as it is where the ledger does not know the namespace.
async fn listed_code(
    state: &State,
    namespace: &Namespace,
    parameters: &mut Body,
) -> Result<Option<InviteCode>, Problem> {
    let case = state
        .ledger
        .namespace(namespace)
        .await?
        .map(|settings| settings.code_case)
        .unwrap_or_default();
    Ok(parameters
        .optional("code", |text| InviteCode::parse(text, case).map_err(|error: Malformed| error))
        .value())
}

pub(super) mod docs {
    use super::{Durability, Group, InviteId, Millis, UserId, View};
    use crate::http::{
        openapi::{Fields, GATE, LEDGER, Operation, Tag, reference, word},
        problem::Code,
    };

    pub(in crate::http) fn redeem() -> Operation {
        Operation::new("redeem", Tag::Redemptions, "Spend one use of a code for a user")
            .about(
                "Send an Idempotency-Key of your own, and repeat the request with it until there is an answer other \
                 than 503: no second use is spent.",
            )
            .takes(
                Fields::new()
                    .needs("code", reference("TypedCode"), "What the person typed.")
                    .needs("user", word::<UserId>(), "Your id for the person.")
                    .may_be_null("ip", reference("IpAddress"), "The person's address, for rate limits.")
                    .may_be_null("email", reference("Email"), "The person's e-mail address.")
                    .may_be_null("metadata", reference("Metadata"), "Kept in the ledger.")
                    .may_be_null(
                        "durability",
                        word::<Durability>(),
                        "What the answer is to promise, if more than the namespace asks for.",
                    ),
            )
            .answers::<View>(201, "A new redemption.")
            .with(&["Location"])
            .answers::<View>(200, "This user had spent the use before; `replayed` is true.")
            .rated()
            .problems(&[
                Code::CodeMalformed,
                Code::DurabilityUnavailable,
                Code::UserNotAllowed,
                Code::EmailDomainNotAllowed,
                Code::NotStarted,
                Code::InviteNotFound,
                Code::NamespaceNotFound,
                Code::AlreadyMember,
                Code::InviteExhausted,
                Code::InviteExpired,
                Code::InviteDisabled,
                Code::IdempotencyKeyReused,
                Code::RateLimited,
                Code::TooManyAttempts,
            ])
            .problems(GATE)
    }

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_redemption", Tag::Redemptions, "One redemption")
            .about("Finds it right after its 201, before the ledger has it.")
            .answers::<View>(200, "The redemption.")
            .problems(&[Code::RedemptionNotFound])
            .problems(GATE)
            .problems(LEDGER)
    }

    pub(in crate::http) fn list() -> Operation {
        Operation::new("list_redemptions", Tag::Redemptions, "Redemptions, newest first")
            .query("code", reference("TypedCode"), "Of this code.")
            .query("invite", word::<InviteId>(), "Of this invite.")
            .query("user", word::<UserId>(), "Of this user.")
            .query("group", word::<Group>(), "Into this group.")
            .query("after", word::<Millis>(), "From this moment on.")
            .query("before", word::<Millis>(), "Up to this moment.")
            .lists::<View>("Redemptions that the ledger has.")
            .problems(LEDGER)
    }
}
