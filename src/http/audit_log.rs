//! `GET …/audit` and `GET /v1/audit`: who changed what, the newest first, as far as the ledger is. The one shows a
//! namespace, the other everything, also what belongs to no namespace.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

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

/// A line as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditLine)]
struct View<'a> {
    /// Its place in the log: a change's position, or a number.
    #[schema(pattern = "^[0-9]+(/[0-9]+-[0-9]+)?$")]
    id: String,
    at: Millis,
    /// The id of an API key, `cli:` and a name of the system, or `node`.
    actor: &'a str,
    /// What the key is called; null if it is none that is known.
    #[schema(required)]
    actor_name: Option<&'a str>,
    action: &'a str,
    /// Null for what belongs to none.
    #[schema(required)]
    namespace: Option<&'a Namespace>,
    /// What was changed, for people.
    subject: &'a str,
    /// Null for changes of the gate, and for those that no request has made.
    #[schema(required)]
    request_id: Option<&'a str>,
}

impl<'a> View<'a> {
    fn new(state: &'a State, line: &'a AuditLine) -> Self {
        let configured = || state.keys.configured_name(&line.by.actor);
        Self {
            id: line.place.to_string(),
            at: line.at,
            actor: &line.by.actor,
            actor_name: line.actor_name.as_deref().or_else(configured),
            action: &line.action,
            namespace: line.namespace.as_ref(),
            subject: &line.subject,
            request_id: line.by.request_id.as_deref(),
        }
    }
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
        Some(namespace) => state.as_of(&state.ledger.parts(namespace).await?).await?,
        None => None,
    };
    let rows: Vec<_> = found.rows.iter().map(|line| View::new(state, line)).collect();
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

pub(super) mod docs {
    use serde_json::json;

    use super::{Millis, View, WORD_BYTES_MAX};
    use crate::http::openapi::{LEDGER, Operation, Tag, word};

    fn lists(operation: Operation) -> Operation {
        let text = json!({
            "type": "string", "minLength": 1, "maxLength": WORD_BYTES_MAX,
            "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$",
        });
        operation
            .query("actor", text.clone(), "Done by this one: the id of an API key, for instance.")
            .query("action", text, "Only this, such as invite_created.")
            .query("after", word::<Millis>(), "From this moment on.")
            .query("before", word::<Millis>(), "Up to this moment.")
            .lists::<View>("Lines of the audit log, the newest first.")
            .problems(LEDGER)
    }

    pub(in crate::http) fn list() -> Operation {
        lists(Operation::new("list_audit_log", Tag::Audit, "Who changed what in a namespace"))
    }

    pub(in crate::http) fn list_all() -> Operation {
        lists(
            Operation::new("list_whole_audit_log", Tag::Audit, "Who changed what, everywhere")
                .about("Also what belongs to no namespace, such as keys."),
        )
    }
}
