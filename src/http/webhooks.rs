//! Webhooks: `POST …/webhooks` names a receiver of the namespace's events and answers with the secret that they are signed
//! with, this once. `…/deliveries` is the log of what was sent, `…/retry` sends one again, `…/rotate-secret` makes a new
//! secret while the old one still signs for a while.

use actix_web::{HttpResponse, http::header, web};
use serde_json::{Value, json};

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
        Cursor, Delivery, DeliveryState, Malformed, Position, Webhook, WebhookId, event, webhook,
    },
    ledger::{NewWebhook, WebhookPatch},
};

fn missing() -> Problem {
    Problem::new(Code::WebhookNotFound, "No webhook of this namespace has this id.")
}

fn view(state: &State, webhook: &Webhook) -> Value {
    let partition = state.gate.keys().partition_of(&webhook.namespace);
    let how = match (webhook.disabled, webhook.failing_since) {
        (true, _) => "disabled",
        (false, Some(_)) => "failing",
        (false, None) => "active",
    };
    json!({
        "id": webhook.id,
        "namespace": webhook.namespace,
        "url": webhook.url,
        "event_types": (!webhook.event_types.is_empty()).then_some(&webhook.event_types),
        "state": how,
        "reason": webhook.reason,
        "failing_since": webhook.failing_since,
        "position": Position { partition, cursor: webhook.cursor },
        "created_by": webhook.created_by,
        "created_at": webhook.created_at,
        "updated_at": webhook.updated_at,
    })
}

fn delivery_view(state: &State, scope: &Scope, delivery: &Delivery) -> Value {
    let partition = state.gate.keys().partition_of(&scope.namespace);
    let waits = delivery.state == DeliveryState::Waiting;
    json!({
        "id": delivery.id,
        "webhook": delivery.webhook,
        "event": Position { partition, cursor: delivery.event },
        "type": delivery.kind,
        "state": delivery.state.as_str(),
        "attempts": delivery.attempts,
        "next_attempt_at": waits.then_some(delivery.due_at),
        "created_at": delivery.created_at,
        "attempted_at": delivery.attempted_at,
        "response_status": delivery.response_status,
        "error": delivery.error,
    })
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
    let partition = state.gate.keys().partition_of(&scope.namespace);
    let created_by = scope.caller.actor();
    let new = NewWebhook {
        id: crate::ids::webhook(&scope.namespace, &created_by, request.0.as_ref()),
        namespace: scope.namespace,
        url,
        event_types,
        created_by,
        cursor: state.ledger.partition(partition).await?.cursor,
        secret: crate::ids::webhook_secret(),
    };
    if !state.ledger.insert_webhook(&new, state.webhooks.namespace_max).await? {
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
    let mut shown = view(&state, &made);
    // A repeat, whose first answer was lost, is told the same secret.
    let secret = state.ledger.secrets(made.id).await?.into_iter().next();
    shown["secret"] = json!(secret.as_ref().map(webhook::Secret::reveal));
    Ok(HttpResponse::Created().insert_header((header::LOCATION, location)).json(shown))
}

pub(super) async fn list(
    state: web::Data<State>,
    scope: Scope,
    query: Query,
) -> Result<HttpResponse, Problem> {
    let page = query.page()?;
    let rows = state.ledger.webhooks(&scope.namespace).await?;
    let rows: Vec<_> = rows.iter().map(|webhook| view(&state, webhook)).collect();
    Ok(page.answer(&rows, None, None))
}

pub(super) async fn show(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(view(&state, &find(&state, &scope, &path.1).await?)))
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
    state.ledger.change_webhook(&scope.namespace, webhook.id, &patch).await?;
    state.webhooks.changed.notify_one();
    Ok(HttpResponse::Ok().json(view(&state, &find(&state, &scope, &path.1).await?)))
}

pub(super) async fn delete(
    state: web::Data<State>,
    scope: Scope,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Problem> {
    let id: WebhookId = path.1.parse().map_err(|_| missing())?;
    if state.ledger.delete_webhook(&scope.namespace, id).await? {
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
    state.ledger.rotate_secret(webhook.id, &secret, overlap).await?;
    let mut shown = view(&state, &webhook);
    shown["secret"] = json!(secret.reveal());
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
    let before: Option<Cursor> = page.after(|parts| single(parts)?.parse().ok())?;
    let webhook = find(&state, &scope, &path.1).await?;
    let (rows, next) = state.ledger.deliveries(webhook.id, wanted, before, page.limit).await?;
    let rows: Vec<_> =
        rows.iter().map(|delivery| delivery_view(&state, &scope, delivery)).collect();
    let next = next.map(|cursor| cursor.to_string());
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
    let delivery = state.ledger.retry_delivery(&scope.namespace, id).await?.ok_or_else(missing)?;
    state.webhooks.changed.notify_one();
    Ok(HttpResponse::Accepted().json(delivery_view(&state, &scope, &delivery)))
}
