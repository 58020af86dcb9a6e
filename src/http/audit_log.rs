//! `GET …/audit` and `GET /v1/audit`: who changed what, the newest first, as far as the ledger is. The one shows a
//! namespace, the other everything, also what belongs to no namespace.

use actix_web::{HttpResponse, web};
use serde_json::{Value, json};

use super::{
    State,
    body::Body,
    page::{Query, pair},
    problem::Problem,
    scope::Scope,
};
use crate::{
    domain::{Malformed, Millis, Namespace},
    ledger::{AuditFilter, AuditLine, AuditPlace},
};

/// The longest actor or action that is looked for, in bytes; all there are are shorter.
const WORD_BYTES_MAX: usize = 128;

fn view(state: &State, line: &AuditLine) -> Value {
    let configured = || state.keys.configured_name(&line.by.actor);
    json!({
        "id": line.place.to_string(),
        "at": line.at,
        "actor": line.by.actor,
        "actor_name": line.actor_name.as_deref().or_else(configured),
        "action": line.action,
        "namespace": line.namespace,
        "subject": line.subject,
        "request_id": line.by.request_id,
    })
}

fn word(text: &str) -> Result<String, Malformed> {
    if (1..=WORD_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(Malformed(format!("must be 1 to {WORD_BYTES_MAX} bytes of text")))
    }
}

fn filter(parameters: &mut Body, namespace: Option<Namespace>) -> AuditFilter {
    AuditFilter {
        namespace,
        actor: parameters.optional("actor", word).value(),
        action: parameters.optional("action", word).value(),
        after: parameters.time("after").value(),
        before: parameters.time("before").value(),
    }
}

/// The moment and the place that a page ended with.
fn place(parts: &[String]) -> Option<(Millis, AuditPlace)> {
    let (at, place) = pair(parts)?;
    Some((Millis::from_ms(at.parse().ok()?).ok()?, place.parse().ok()?))
}

async fn answer(
    state: &State,
    query: Query,
    filter: &AuditFilter,
) -> Result<HttpResponse, Problem> {
    let page = query.page()?;
    let from = page.after(place)?;
    let found = state.ledger.audit_log(filter, from, page.limit).await?;
    let as_of = match &filter.namespace {
        Some(namespace) => {
            state.ledger.synced_at(state.gate.keys().partition_of(namespace)).await?
        }
        None => None,
    };
    let rows: Vec<_> = found.rows.iter().map(|line| view(state, line)).collect();
    let next = found.next.map(|(at, place)| [at.as_ms().to_string(), place.to_string()]);
    let next = next.as_ref().map(|[at, place]| [at.as_str(), place.as_str()]);
    Ok(page.answer(&rows, next.as_ref().map(<[_; 2]>::as_slice), as_of))
}

pub(super) async fn list(
    state: web::Data<State>,
    scope: Scope,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let filter = filter(&mut query.parameters, Some(scope.namespace));
    answer(&state, query, &filter).await
}

pub(super) async fn list_all(
    state: web::Data<State>,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let filter = filter(&mut query.parameters, None);
    answer(&state, query, &filter).await
}
