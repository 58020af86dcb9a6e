//! `POST …/redemptions` spends one use of a code for a user, once per Idempotency-Key: 201 for a new redemption, 200
//! with `replayed` for a repeat. `GET …/redemptions` lists what the ledger has, newest first or, for whoever follows, by
//! position. `GET …/redemptions/{id}` finds one, also one that the ledger does not have yet. `POST
//! …/redemptions/{id}/rollback` takes one back.

use std::collections::HashMap;

use actix_web::{HttpResponse, http::header, web};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    State,
    body::{Body, stored_metadata},
    guard::IdempotencyKey,
    page::{Page, Query},
    problem::{Code, Problem, rate_headers},
    scope::{Room, Scope},
};
use crate::{
    domain::{
        Code as InviteCode, Cursor, Durability, EmailDomain, Group, InviteId, Malformed, Millis,
        Namespace, Outcome, Partition, Position, Positions, RateStatus, Redemption, RedemptionId,
        Refusal, ReservationId, Settings, UserId, command::REASON_BYTES_MAX, invite::MAX_USES_MAX,
        reservation::Held,
    },
    gate::{
        GateError,
        outbox::{self, Found},
        redeem::{Mode, Redeem},
        rollback::{Rollback, RollbackAnswer},
        show_namespace::ShowNamespace,
        show_redemption,
        show_reservation::ShowReservation,
    },
    ledger::{RedemptionFilter, RedemptionRecord},
    trace::{self, Span},
};

/// A redemption as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Redemption)]
pub(super) struct View<'a> {
    id: RedemptionId,
    namespace: Namespace,
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
    /// Since when it counts for nothing.
    #[schema(required)]
    rolled_back_at: Option<Millis>,
    /// Why, once the ledger has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    rollback_reason: Option<String>,
}

impl<'a> View<'a> {
    pub(super) fn new(redemption: &'a Redemption, replayed: bool, reached: Durability) -> Self {
        let Redemption { id, namespace, invite, code, group, user, .. } = redemption;
        Self {
            id: *id,
            namespace: namespace.whole(),
            invite: invite.of_whole(namespace),
            code,
            group,
            user,
            ordinal: redemption.ordinal,
            // In a shard of a namespace that is spread an unlimited invite has more than any limit.
            remaining: redemption.remaining.filter(|left| *left <= MAX_USES_MAX),
            redeemed_at: redemption.redeemed_at,
            replayed,
            durability: reached.as_str(),
            position: redemption.position,
            metadata: None,
            rolled_back_at: None,
            rollback_reason: None,
        }
    }

    pub(super) fn rolled_back(mut self, at: Option<Millis>, reason: Option<String>) -> Self {
        (self.rolled_back_at, self.rollback_reason) = (at, reason);
        self
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
    let since = Instant::now();
    let waited = tokio::time::timeout_at(deadline, state.progress.wait(redemption.position)).await;
    metrics::histogram!("redeemer_ledger_wait_seconds").record(since.elapsed());
    match waited {
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

/// What a request asks of the answer.
pub(super) struct Asked {
    /// What it is to promise, if more than the namespace says.
    pub(super) durability: Option<Durability>,
    /// When it is given up.
    pub(super) deadline: Instant,
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
    let reservation = body.optional("reservation", str::parse::<ReservationId>).value();
    let metadata = body.metadata().value();
    let durability = durability(&state, &mut body);
    body.finish()?;
    let (Some(code), Some(user)) = (code, user) else { return Err(body.problem()) };
    let reservation = match reservation {
        Some(id) => Some(deadline_of(&state, &scope.namespace, &code, &user, id).await?),
        None => None,
    };
    let question = Redeem {
        caller: scope.caller.actor(),
        namespace: scope.namespace,
        code,
        user: Some(user),
        ip,
        email_domain,
        mode: Mode::Redeem {
            request: request.0.unwrap_or_else(crate::ids::request),
            redemption: crate::ids::redemption(),
            metadata,
            reservation,
        },
    };
    spend(&state, question, &settings, Asked { durability, deadline }).await
}

/// The deadline of a user's reservation, also of one that was spent so lately that the ledger does not know yet: whoever
/// is told of it answers for that too. For one that holds nothing otherwise a moment that no reservation ever has.
async fn deadline_of(
    state: &State,
    namespace: &Namespace,
    code: &InviteCode,
    user: &UserId,
    id: ReservationId,
) -> Result<Millis, Problem> {
    let namespace = state.spread.shard_of(namespace, user).await?;
    let question = ShowReservation { namespace, code: code.clone(), user: user.clone() };
    let shard = question.namespace.clone();
    if let Some(live) = question.run(&state.gate).await?.filter(|live| live.id == id) {
        return Ok(live.until);
    }
    let ended = outbox::find_reservation(&state.gate, &shard, id).await?;
    let spent = ended.filter(|(one, held)| one.user == *user && matches!(held, Held::Confirmed(_)));
    Ok(spent.map(|(one, _)| one.until).unwrap_or_default())
}

/// A use that was spent, now or before.
pub(super) struct Spent {
    redemption: Redemption,
    /// Whether this user had spent it before.
    pub(super) replayed: bool,
    /// The level that holds.
    reached: Durability,
    rates: Vec<RateStatus>,
}

/// Spends a use, and answers once what was asked of the answer holds.
pub(super) async fn spend(
    state: &State,
    question: Redeem,
    settings: &Settings,
    asked: Asked,
) -> Result<HttpResponse, Problem> {
    let Spent { redemption, replayed, reached, rates } =
        decide(state, question, settings, asked).await?;
    let mut response = if replayed { HttpResponse::Ok() } else { HttpResponse::Created() };
    for header in rate_headers(&rates) {
        response.insert_header(header);
    }
    if !replayed {
        let namespace = redemption.namespace.whole();
        let location = format!("/v1/namespaces/{namespace}/redemptions/{}", redemption.id);
        response.insert_header((header::LOCATION, location));
    }
    Ok(response.json(View::new(&redemption, replayed, reached)))
}

/// Spends a use, and is done once what was asked of the answer holds.
pub(super) async fn decide(
    state: &State,
    question: Redeem,
    settings: &Settings,
    asked: Asked,
) -> Result<Spent, Problem> {
    let span = trace::part("redeem");
    trace::within(&span, decided(state, question, settings, asked, &span)).await
}

async fn decided(
    state: &State,
    question: Redeem,
    settings: &Settings,
    Asked { durability, deadline }: Asked,
    span: &Span,
) -> Result<Spent, Problem> {
    // A request may ask for more than its namespace promises, never for less.
    let level = durability.unwrap_or_default().max(settings.durability);
    let namespace = question.namespace.clone();
    if level == Durability::Replicated && !state.gate.can_replicate() {
        return Err(Problem::new(
            Code::DurabilityUnavailable,
            "The namespace promises the level replicated, and this node waits for no replicas. Ask the operator to set \
             gate.replicas.",
        ));
    }
    let replicated = level == Durability::Replicated;
    let (answer, replicated) = state.spread.redeem(question, replicated, deadline).await?;
    if let Some(word) = outcome_word(&answer.outcome) {
        span.set("redeemer.outcome", word);
        state.outcomes.count(&namespace, word, crate::ids::now());
    }
    // The rules may have changed while it waited, and a grant is decided by the newest. What is known must not wait for
    // Redis again.
    let newest = state.gate.known_settings(&namespace);
    let level = level.max(newest.map_or(level, |settings| settings.durability));
    let (redemption, replayed) = match answer.outcome {
        Outcome::Granted(redemption) => (redemption, false),
        Outcome::Replayed(redemption) => (redemption, true),
        Outcome::Refused(refusal) => {
            return Err(Problem::from(refusal).with_rates(answer.rates));
        }
        Outcome::Allowed | Outcome::Held { .. } => {
            return Err(Problem::unexpected("a redemption was answered like something else"));
        }
    };
    match level {
        Durability::Replicated if !replicated => return Err(not_reached(NOT_REPLICATED)),
        Durability::Gate | Durability::Replicated => {}
        Durability::Ledger => {
            span.event("waits for the ledger");
            wait_for_ledger(state, &redemption, deadline).await?;
            span.event("the ledger has it");
        }
    }
    span.set("redeemer.durability", level.as_str());
    Ok(Spent { redemption, replayed, reached: level, rates: answer.rates })
}

fn missing() -> Problem {
    Problem::new(Code::RedemptionNotFound, "No redemption of this namespace has this id.")
}

/// Where the users of a namespace are; while the gate can not be asked, as far as the ledger knows.
pub(super) async fn shards(
    state: &State,
    namespace: &Namespace,
) -> Result<Vec<Namespace>, Problem> {
    match state.spread.shards(namespace).await {
        Ok(shards) => Ok(shards),
        Err(error @ GateError::Unexpected { .. }) => Err(error.into()),
        Err(_) => Ok(state.ledger.parts(namespace).await?),
    }
}

/// A redemption, also one that the ledger does not have yet, and where it was found.
async fn find(
    state: &State,
    namespace: &Namespace,
    id: RedemptionId,
) -> Result<(RedemptionRecord, Durability), Problem> {
    if let Some(record) = state.ledger.redemption(namespace, id).await? {
        return Ok((record, Durability::Ledger));
    }
    for shard in shards(state, namespace).await? {
        if let Some(found) = outbox::find_redemption(&state.gate, &shard, id).await? {
            let Found { redemption, metadata } = found;
            let (rolled_back_at, rollback_reason) = (None, None);
            let record = RedemptionRecord { redemption, metadata, rolled_back_at, rollback_reason };
            return Ok((record, Durability::Gate));
        }
        gate_is_whole(state, &shard).await?;
    }
    // It may have gone across, and out of the outbox, between the two looks.
    let record = state.ledger.redemption(namespace, id).await?.ok_or_else(missing)?;
    Ok((record, Durability::Ledger))
}

/// Whether the gate is the one that was admitted. If not, what is neither in its outbox nor in the ledger may be what
/// Redis has lost and nodes are about to hand in.
pub(super) async fn gate_is_whole(state: &State, namespace: &Namespace) -> Result<(), Problem> {
    ShowNamespace { namespace: namespace.clone() }.run(&state.gate).await?;
    Ok(())
}

/// A redemption that was made before, told again.
pub(super) async fn replay(
    state: &State,
    settings: &Settings,
    namespace: &Namespace,
    id: RedemptionId,
    Asked { durability, deadline }: Asked,
) -> Result<HttpResponse, Problem> {
    let level = durability.unwrap_or_default().max(settings.durability);
    let (record, mut reached) = find(state, namespace, id).await?;
    if let Some(at) = undone_at(state, &record).await? {
        return Err(Refusal::AlreadyRolledBack { redemption: id, at }.into());
    }
    if reached < level {
        // What the ledger has needs no replica any more.
        wait_for_ledger(state, &record.redemption, deadline).await?;
        reached = Durability::Ledger;
    }
    Ok(HttpResponse::Ok().json(View::new(&record.redemption, true, reached)))
}

/// When a redemption was rolled back, also if the ledger does not know yet. Without the gate, what the ledger knows.
async fn undone_at(state: &State, record: &RedemptionRecord) -> Result<Option<Millis>, Problem> {
    if record.rolled_back_at.is_some() {
        return Ok(record.rolled_back_at);
    }
    match show_redemption::rolled_back_at(&state.gate, &record.redemption).await {
        Ok(at) => Ok(at),
        Err(error @ GateError::Unexpected { .. }) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

pub(super) async fn rollback(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let reason = body.required("reason", |text| {
        let fits = !text.is_empty()
            && text.len() <= REASON_BYTES_MAX
            && !text.chars().any(char::is_control);
        fits.then(|| text.to_owned()).ok_or_else(|| {
            Malformed(format!("must be 1 to {REASON_BYTES_MAX} bytes without control characters"))
        })
    });
    body.finish()?;
    let Some(reason) = reason else { return Err(body.problem()) };
    let id: RedemptionId = path.1.parse().map_err(|_| missing())?;
    let (record, reached) = find(&state, &scope.namespace, id).await?;
    let actor = scope.caller.actor();
    let rollback = Rollback { redemption: record.redemption.clone(), reason, actor };
    match rollback.run(&state.gate).await? {
        RollbackAnswer::RolledBack { at, replayed } => {
            // A repeat changes nothing: whoever was first has said why.
            let reason = if replayed { record.rollback_reason } else { Some(rollback.reason) };
            let view = View::new(&record.redemption, replayed, reached);
            let view = view.with_metadata(record.metadata)?.rolled_back(Some(at), reason);
            Ok(HttpResponse::Ok().json(view))
        }
        RollbackAnswer::NotFound => Err(missing()),
        RollbackAnswer::CodeTaken { by } => Err(Problem::new(
            Code::CodeTaken,
            "The use would re-open the invite, but another one has its code by now. End the membership instead: DELETE \
             …/members/{user}/{group}; the use stays spent.",
        )
        .with("invite", by.of_whole(&record.redemption.namespace).to_string())),
        RollbackAnswer::NamespaceNotFound => Err(Refusal::NamespaceNotFound.into()),
    }
}

/// What the statistics call it; nothing where there is no such namespace.
fn outcome_word(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Granted(_) => Some("granted"),
        Outcome::Replayed(_) => Some("replayed"),
        Outcome::Refused(Refusal::NamespaceNotFound) => None,
        Outcome::Refused(refusal) => Some(Problem::from(refusal.clone()).code.as_str()),
        _ => None,
    }
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let id: RedemptionId = path.1.parse().map_err(|_| missing())?;
    let (record, reached) = find(&state, &scope.namespace, id).await?;
    let undone_at = undone_at(&state, &record).await?;
    let view = View::new(&record.redemption, false, reached).with_metadata(record.metadata)?;
    Ok(HttpResponse::Ok().json(view.rolled_back(undone_at, record.rollback_reason)))
}

pub(super) async fn list(
    state: web::Data<State>,
    scope: Scope,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let parts = state.ledger.parts(&scope.namespace).await?;
    let partitions = state.partitions_of(&parts);
    let parameters = &mut query.parameters;
    let after_position = parameters.optional("after_position", |text| places_in(&partitions, text));
    let filter = RedemptionFilter {
        code: listed_code(&state, &scope.namespace, parameters).await?,
        invite: parameters.optional("invite", str::parse).value(),
        user: parameters.optional("user", UserId::parse).value(),
        group: parameters.optional("group", Group::parse).value(),
        after: parameters.time("after").value(),
        before: parameters.time("before").value(),
        after_position: None,
        oldest_first: parameters.optional("order", is_ascending).value().unwrap_or_default(),
    };
    let page: Page = query.page()?;
    let from = page.after(|lines| places(&parts, lines))?.unwrap_or_default();
    let after_position = after_position.value().unwrap_or_default();
    let in_part = |part: &Namespace| RedemptionFilter {
        invite: filter.invite.map(|id| id.of_whole(part)),
        after_position: after_position.of(state.gate.keys().partition_of(part)),
        ..filter.clone()
    };
    let filters: Vec<_> = parts.iter().map(|part| (part.clone(), in_part(part))).collect();
    let found = state.ledger.redemptions_of(&filters, &from, page.limit).await?;
    let as_of = state.as_of(&parts).await?;
    let rows = found
        .rows
        .iter()
        .map(|record| {
            let RedemptionRecord { redemption, metadata, rolled_back_at, rollback_reason } = record;
            let view = View::new(redemption, false, Durability::Ledger);
            let view = view.rolled_back(*rolled_back_at, rollback_reason.clone());
            view.with_metadata(metadata.clone())
        })
        .collect::<Result<Vec<_>, Problem>>()?;
    let next = found.next.map(|next| lines(&parts, &next));
    let next: Option<Vec<_>> =
        next.as_ref().map(|lines| lines.iter().map(String::as_str).collect());
    Ok(page.answer(&rows, next.as_deref(), as_of))
}

/// Where a page ended in each part of a namespace, as the parts of a cursor: a place in the namespace itself alone, one
/// in a shard behind what its name has besides.
pub(super) fn lines(parts: &[Namespace], places: &HashMap<Namespace, Cursor>) -> Vec<String> {
    let line = |part: &Namespace| {
        let place = places.get(part)?;
        let shard = part.as_str().strip_prefix(parts.first()?.as_str())?;
        Some(if shard.is_empty() { place.to_string() } else { format!("{shard} {place}") })
    };
    parts.iter().filter_map(line).collect()
}

/// What [`lines`] has written.
pub(super) fn places(parts: &[Namespace], lines: &[String]) -> Option<HashMap<Namespace, Cursor>> {
    let place = |line: &String| {
        let (shard, place) = line.split_once(' ').unwrap_or(("", line));
        let name = format!("{}{shard}", parts.first()?);
        let part = parts.iter().find(|part| part.as_str() == name)?;
        Some((part.clone(), place.parse().ok()?))
    };
    lines.iter().map(place).collect()
}

/// The places that positions name, if they are of these partitions: places of two partitions have no order.
fn places_in(partitions: &[Partition], text: &str) -> Result<Positions, Malformed> {
    let positions: Positions = text.parse()?;
    let strange = positions.iter().find(|position| !partitions.contains(&position.partition));
    match strange {
        None => Ok(positions),
        Some(position) => {
            let own: Vec<_> = partitions.iter().map(|own| format!("{own}/")).collect();
            Err(Malformed(format!(
                "{position} is a position of another partition; those of this namespace begin with {}",
                own.join(", ")
            )))
        }
    }
}

fn is_ascending(text: &str) -> Result<bool, Malformed> {
    match text {
        "asc" => Ok(true),
        "desc" => Ok(false),
        _ => Err(Malformed("order is asc or desc".to_owned())),
    }
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
    use serde_json::json;

    use super::{
        Durability, Group, InviteId, Millis, Positions, REASON_BYTES_MAX, ReservationId, UserId,
        View,
    };
    use crate::http::{
        openapi::{Fields, GATE, LEDGER, Operation, Tag, reference, word},
        problem::Code,
    };

    /// Why a use may not be spent or held.
    pub(in crate::http) const REFUSALS: &[Code] = &[
        Code::CodeMalformed,
        Code::UserNotAllowed,
        Code::EmailDomainNotAllowed,
        Code::NotStarted,
        Code::InviteNotFound,
        Code::InviteInvalid,
        Code::NamespaceNotFound,
        Code::AlreadyMember,
        Code::UserLimitReached,
        Code::InviteExhausted,
        Code::CampaignExhausted,
        Code::InviteExpired,
        Code::InviteDisabled,
        Code::RateLimited,
        Code::TooManyAttempts,
    ];

    /// What operations have in common that spend a use.
    pub(in crate::http) fn spent(operation: Operation, fields: Fields) -> Operation {
        let fields = fields.may_be_null("metadata", reference("Metadata"), "Kept in the ledger.");
        operation
            .takes(fields.may_be_null(
                "durability",
                word::<Durability>(),
                "What the answer is to promise, if more than the namespace asks for.",
            ))
            .answers::<View>(201, "A new redemption.")
            .with(&["Location"])
            .leads_to(&[("show_redemption", &["id"]), ("show_member", &["user"])])
            .answers::<View>(200, "This user had spent the use before; `replayed` is true.")
            .rated()
            .problems(REFUSALS)
            .problems(&[
                Code::DurabilityUnavailable,
                Code::IdempotencyKeyReused,
                Code::AlreadyRolledBack,
                Code::ReservationExpired,
            ])
            .problems(GATE)
    }

    pub(in crate::http) fn redeem() -> Operation {
        let fields = Fields::new()
            .needs("code", reference("TypedCode"), "What the person typed.")
            .needs("user", word::<UserId>(), "Your id for the person.")
            .may_be_null("ip", reference("IpAddress"), "The person's address, for rate limits.")
            .may_be_null("email", reference("Email"), "The person's e-mail address.")
            .may_be_null(
                "reservation",
                word::<ReservationId>(),
                "The user's reservation that is to be spent, and nothing else; without it, one is spent if there is one.",
            );
        spent(Operation::new("redeem", Tag::Redemptions, "Spend one use of a code for a user"), fields)
            .about(
                "Send an Idempotency-Key of your own, and repeat the request with it until there is an answer other \
                 than 503: no second use is spent.",
            )
    }

    pub(in crate::http) fn rollback() -> Operation {
        let reason = json!({
            "type": "string", "minLength": 1, "maxLength": REASON_BYTES_MAX, "examples": ["payment failed"],
            "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$",
        });
        Operation::new("roll_back", Tag::Redemptions, "Take a redemption back")
            .about(
                "Its use is free again, and the membership that it made ends. An exhausted invite is open again, one that \
                 has lost its code only if the code is free; a disabled one stays disabled. What was answered stays \
                 remembered: a repeat of the redemption's request is told `already_rolled_back`.",
            )
            .takes(Fields::new().needs("reason", reason, "For the record: at most 256 bytes."))
            .answers::<View>(200, "The redemption; `replayed` is true if it was taken back before.")
            .problems(&[Code::RedemptionNotFound, Code::NamespaceNotFound, Code::CodeTaken])
            .problems(GATE)
            .problems(LEDGER)
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
        Operation::new(
            "list_redemptions",
            Tag::Redemptions,
            "Redemptions, newest first or by position",
        )
        .query("code", reference("TypedCode"), "Of this code.")
        .query("invite", word::<InviteId>(), "Of this invite.")
        .query("user", word::<UserId>(), "Of this user.")
        .query("group", word::<Group>(), "Into this group.")
        .query("after", word::<Millis>(), "From this moment on.")
        .query("before", word::<Millis>(), "Up to this moment.")
        .query(
            "order",
            json!({"type": "string", "enum": ["desc", "asc"]}),
            "The newest first, or the oldest.",
        )
        .query("after_position", word::<Positions>(), "Behind these, each in its own partition.")
        .lists::<View>("Redemptions that the ledger has.")
        .problems(LEDGER)
    }
}
