//! Webhooks: `POST …/webhooks` names a receiver of the namespace's events and answers with the secret that they are signed
//! with, this once. `…/deliveries` is the log of what was sent, `…/retry` sends one again, `…/rotate-secret` makes a new
//! secret while the old one still signs for a while.

use actix_web::{HttpResponse, http::header, web};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    State,
    body::{Body, Presence},
    guard::IdempotencyKey,
    invites::key_reused,
    page::{Query, single},
    problem::{Code, Problem},
    redemptions::settings_of,
    scope::Scope,
};
use crate::{
    domain::{
        Cursor, Delivery, DeliveryId, DeliveryState, Malformed, Millis, Namespace, Position,
        Positions, Webhook, WebhookId, event,
        webhook::{Secret, WebhookState},
    },
    ledger::{LedgerError, NewWebhook, WebhookPatch},
};

fn missing() -> Problem {
    Problem::new(Code::WebhookNotFound, "No webhook of this namespace has this id.")
}

/// A webhook as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
struct View<'a> {
    id: WebhookId,
    namespace: &'a Namespace,
    #[schema(value_type = String)]
    url: &'a str,
    /// Only these types of events; null means all.
    #[schema(required)]
    event_types: Option<&'a [String]>,
    #[schema(value_type = WebhookState)]
    state: &'static str,
    /// Why the service disabled it.
    #[schema(required)]
    reason: Option<&'a str>,
    #[schema(required)]
    failing_since: Option<Millis>,
    /// Everything up to here has its delivery.
    position: Positions,
    /// The API key that made it.
    created_by: &'a str,
    created_at: Millis,
    updated_at: Millis,
    /// What its messages are signed with: shown once, when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^whsec_", nullable = false)]
    secret: Option<String>,
}

impl<'a> View<'a> {
    fn with(mut self, secret: &Secret) -> Self {
        self.secret = Some(secret.reveal());
        self
    }

    async fn new(state: &State, webhook: &'a Webhook) -> Result<Self, LedgerError> {
        let partition = state.gate.keys().partition_of(&webhook.namespace);
        let mut position = state.ledger.webhook_elsewhere(webhook.id).await?;
        position.set(Position { partition, cursor: webhook.cursor });
        let types = &webhook.event_types;
        Ok(Self {
            id: webhook.id,
            namespace: &webhook.namespace,
            url: &webhook.url,
            event_types: (!types.is_empty()).then_some(types.as_slice()),
            state: webhook.state().as_str(),
            reason: webhook.reason.as_deref(),
            failing_since: webhook.failing_since,
            position,
            created_by: &webhook.created_by,
            created_at: webhook.created_at,
            updated_at: webhook.updated_at,
            secret: None,
        })
    }
}

/// A delivery as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
struct DeliveryView<'a> {
    /// What the receiver gets as webhook-id.
    id: DeliveryId,
    webhook: WebhookId,
    /// The position of the event.
    event: Position,
    r#type: &'a str,
    #[schema(value_type = DeliveryState)]
    state: &'static str,
    attempts: u32,
    /// Null when there will be none.
    #[schema(required)]
    next_attempt_at: Option<Millis>,
    created_at: Millis,
    #[schema(required)]
    attempted_at: Option<Millis>,
    /// Of the last attempt, if it was answered.
    #[schema(required, minimum = 100, maximum = 999)]
    response_status: Option<u16>,
    /// Why the last attempt failed.
    #[schema(required)]
    error: Option<&'a str>,
}

impl<'a> DeliveryView<'a> {
    fn new(state: &State, scope: &Scope, delivery: &'a Delivery) -> Self {
        let home = || state.gate.keys().partition_of(&scope.namespace);
        let partition = delivery.partition.unwrap_or_else(home);
        let waits = delivery.state == DeliveryState::Waiting;
        Self {
            id: delivery.id,
            webhook: delivery.webhook,
            event: Position { partition, cursor: delivery.event },
            r#type: &delivery.kind,
            state: delivery.state.as_str(),
            attempts: delivery.attempts,
            next_attempt_at: waits.then_some(delivery.due_at),
            created_at: delivery.created_at,
            attempted_at: delivery.attempted_at,
            response_status: delivery.response_status,
            error: delivery.error.as_deref(),
        }
    }
}

async fn find(state: &State, scope: &Scope, id: &str) -> Result<Webhook, Problem> {
    let id: WebhookId = id.parse().map_err(|_| missing())?;
    state.ledger.webhook(&scope.namespace, id).await?.ok_or_else(missing)
}

/// The URL of a receiver that may be called.
async fn url(state: &State, body: &mut Body) -> Presence<String> {
    let outbound = &state.webhooks.outbound;
    match body.optional("url", |text| outbound.parse(text)) {
        Presence::Value(url) => match outbound.check(&url).await {
            Ok(()) => Presence::Value(url.to_string()),
            Err(error) => {
                body.wrong("url", Code::InvalidRequest, &error.to_string());
                Presence::Wrong
            }
        },
        Presence::Wrong => Presence::Wrong,
        Presence::Absent => Presence::Absent,
        Presence::Null => Presence::Null,
    }
}

/// The types of events that are wanted; none for all.
fn event_types(body: &mut Body) -> Presence<Vec<String>> {
    body.typed("event_types", |value| {
        let one = |value: &Value| {
            let text = value.as_str().ok_or("must be a list of strings")?;
            event::parse_type(text).map(str::to_owned).map_err(|error| error.0)
        };
        let list = value.as_array().ok_or("must be a list of strings")?;
        let mut types = list.iter().map(one).collect::<Result<Vec<_>, String>>()?;
        types.sort_unstable();
        types.dedup();
        if types.is_empty() {
            Err("must name a type, or be null for all".to_owned())
        } else {
            Ok(types)
        }
    })
}

pub(super) async fn create(
    state: web::Data<State>,
    scope: Scope,
    request: IdempotencyKey,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    settings_of(&state, &scope.namespace).await?;
    let url = url(&state, &mut body).await;
    if matches!(url, Presence::Absent | Presence::Null) {
        body.wrong("url", Code::InvalidRequest, "is needed");
    }
    let event_types = event_types(&mut body).value().unwrap_or_default();
    body.finish()?;
    let Some(url) = url.value() else { return Err(body.problem()) };
    let created_by = scope.caller.actor();
    let parts = state.ledger.parts(&scope.namespace).await?;
    let home = state.gate.keys().partition_of(&scope.namespace);
    let now = state.ledger.cursors().await?;
    let elsewhere = state.partitions_of(&parts).into_iter().filter(|one| *one != home);
    let elsewhere = elsewhere
        .filter_map(|partition| Some(Position { partition, cursor: now.of(partition)? }))
        .collect();
    let new = NewWebhook {
        id: crate::ids::webhook(&scope.namespace, &created_by, request.0.as_ref()),
        namespace: scope.namespace,
        url,
        event_types,
        created_by,
        cursor: now.of(home).unwrap_or(Cursor { epoch: 0, seq: 0 }),
        elsewhere,
        secret: crate::ids::webhook_secret(),
    };
    if !state.ledger.insert_webhook(&new, state.webhooks.namespace_max, &scope.caller.by()).await? {
        let max = state.webhooks.namespace_max;
        return Err(Problem::new(
            Code::TooManyWebhooks,
            format!("A namespace has at most {max} webhooks (webhooks.namespace_max). Delete one."),
        ));
    }
    let made = state.ledger.webhook(&new.namespace, new.id).await?.ok_or_else(missing)?;
    if (&made.url, &made.event_types) != (&new.url, &new.event_types) {
        return Err(key_reused("webhook"));
    }
    state.webhooks.changed.notify_one();
    let location = format!("/v1/namespaces/{}/webhooks/{}", made.namespace, made.id);
    // A repeat, whose first answer was lost, is told the same secret.
    let secret = state.ledger.secrets(made.id).await?.into_iter().next().ok_or_else(missing)?;
    let shown = View::new(&state, &made).await?.with(&secret);
    Ok(HttpResponse::Created().insert_header((header::LOCATION, location)).json(shown))
}

pub(super) async fn list(
    state: web::Data<State>,
    scope: Scope,
    query: Query,
) -> Result<HttpResponse, Problem> {
    let page = query.page()?;
    let mut rows = Vec::new();
    let webhooks = state.ledger.webhooks(&scope.namespace).await?;
    for webhook in &webhooks {
        rows.push(View::new(&state, webhook).await?);
    }
    Ok(page.answer(&rows, None, None))
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let webhook = find(&state, &scope, &path.1).await?;
    Ok(HttpResponse::Ok().json(View::new(&state, &webhook).await?))
}

pub(super) async fn change(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    let url = url(&state, &mut body).await;
    if url == Presence::Null {
        body.wrong("url", Code::InvalidRequest, "can not be removed");
    }
    let event_types = event_types(&mut body).patch().map(Option::unwrap_or_default);
    let disabled = body.typed("disabled", |value| {
        value.as_bool().ok_or_else(|| "must be true or false".to_owned())
    });
    body.finish()?;
    let webhook = find(&state, &scope, &path.1).await?;
    let patch = WebhookPatch { url: url.value(), event_types, disabled: disabled.value() };
    state.ledger.change_webhook(&scope.namespace, webhook.id, &patch, &scope.caller.by()).await?;
    state.webhooks.changed.notify_one();
    let webhook = find(&state, &scope, &path.1).await?;
    Ok(HttpResponse::Ok().json(View::new(&state, &webhook).await?))
}

pub(super) async fn delete(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let id: WebhookId = path.1.parse().map_err(|_| missing())?;
    if state.ledger.delete_webhook(&scope.namespace, id, &scope.caller.by()).await? {
        Ok(HttpResponse::NoContent().finish())
    } else {
        Err(missing())
    }
}

pub(super) async fn rotate_secret(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    body.finish()?;
    let webhook = find(&state, &scope, &path.1).await?;
    let secret = crate::ids::webhook_secret();
    let overlap = state.webhooks.secret_overlap;
    state
        .ledger
        .rotate_secret(&scope.namespace, webhook.id, &secret, overlap, &scope.caller.by())
        .await?;
    let shown = View::new(&state, &webhook).await?.with(&secret);
    Ok(HttpResponse::Ok().json(shown))
}

pub(super) async fn deliveries(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let wanted = query.parameters.optional("state", DeliveryState::parse).value();
    let page = query.page()?;
    let before: Option<DeliveryId> = page.after(|parts| single(parts)?.parse().ok())?;
    let webhook = find(&state, &scope, &path.1).await?;
    let (rows, next) = state.ledger.deliveries(webhook.id, wanted, before, page.limit).await?;
    let rows: Vec<_> =
        rows.iter().map(|delivery| DeliveryView::new(&state, &scope, delivery)).collect();
    let next = next.map(|id| id.to_string());
    let next = next.as_deref().map(|next| [next]);
    Ok(page.answer(&rows, next.as_ref().map(<[_; 1]>::as_slice), None))
}

pub(super) async fn retry(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
    mut body: Body,
) -> Result<HttpResponse, Problem> {
    body.finish()?;
    let missing =
        || Problem::new(Code::DeliveryNotFound, "No delivery of this namespace has this id.");
    let id = path.1.parse().map_err(|_: Malformed| missing())?;
    let delivery = state
        .ledger
        .retry_delivery(&scope.namespace, id, &scope.caller.by())
        .await?
        .ok_or_else(missing)?;
    state.webhooks.changed.notify_one();
    Ok(HttpResponse::Accepted().json(DeliveryView::new(&state, &scope, &delivery)))
}

pub(super) mod docs {
    use super::{DeliveryState, DeliveryView, View};
    use crate::http::{
        openapi::{Fields, GATE, LEDGER, Operation, Tag, flag, reference, word},
        problem::Code,
    };

    pub(in crate::http) fn create() -> Operation {
        let fields = Fields::new()
            .needs("url", reference("ReceiverUrl"), "Where events are sent.")
            .may_be_null("event_types", reference("EventTypes"), "Only these; null means all.");
        Operation::new("create_webhook", Tag::Webhooks, "Have what happens told to a receiver")
            .about("By the rules of Standard Webhooks. The secret is shown this once.")
            .takes(fields)
            .answers::<View>(201, "It is made, now or by an earlier call with the same key.")
            .with(&["Location"])
            .problems(&[
                Code::NamespaceNotFound,
                Code::TooManyWebhooks,
                Code::IdempotencyKeyReused,
                Code::WebhookNotFound,
            ])
            .problems(GATE)
            .problems(LEDGER)
    }

    pub(in crate::http) fn list() -> Operation {
        Operation::new("list_webhooks", Tag::Webhooks, "Webhooks, the oldest first")
            .lists::<View>("All webhooks of the namespace.")
            .problems(LEDGER)
    }

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_webhook", Tag::Webhooks, "One webhook")
            .answers::<View>(200, "The webhook.")
            .problems(&[Code::WebhookNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn change() -> Operation {
        let fields = Fields::new()
            .may_have("url", reference("ReceiverUrl"), "Where events are sent.")
            .may_be_null("event_types", reference("EventTypes"), "Only these; null means all.")
            .may_be_null("disabled", flag(), "Nothing is sent; or it goes on where it stopped.");
        Operation::new("change_webhook", Tag::Webhooks, "Change, disable or enable a webhook")
            .takes(fields)
            .answers::<View>(200, "As it is now.")
            .problems(&[Code::WebhookNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn delete() -> Operation {
        Operation::new("delete_webhook", Tag::Webhooks, "Delete a webhook")
            .answers_nothing(204, "It is gone.")
            .problems(&[Code::WebhookNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn rotate_secret() -> Operation {
        Operation::new("rotate_secret", Tag::Webhooks, "A new secret")
            .about("Those before it sign too for webhooks.secret_overlap_seconds.")
            .takes(Fields::new())
            .answers::<View>(200, "The new secret, shown this once.")
            .problems(&[Code::WebhookNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn deliveries() -> Operation {
        Operation::new("list_deliveries", Tag::Webhooks, "What was sent, the newest first")
            .query("state", word::<DeliveryState>(), "Of this state.")
            .lists::<DeliveryView>("Deliveries of the webhook.")
            .problems(&[Code::WebhookNotFound])
            .problems(LEDGER)
    }

    pub(in crate::http) fn retry() -> Operation {
        Operation::new("retry_delivery", Tag::Webhooks, "Send a delivery again")
            .takes(Fields::new())
            .answers::<DeliveryView>(202, "It is tried at once.")
            .problems(&[Code::DeliveryNotFound])
            .problems(LEDGER)
    }
}
