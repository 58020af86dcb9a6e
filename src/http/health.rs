//! `/livez` and `/readyz`: whether this node lives, and should be sent requests.
//!
//! `/livez` is 200 while the process can answer at all; a balancer or an orchestrator restarts what does not.
//! `/readyz` is 200 while requests should be sent here; `?verbose` names each check.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::{State, page::Query, problem::Problem};
use crate::domain::Malformed;

/// Whether this node should be sent requests, and why.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    /// Everything that has to be well.
    pub checks: Vec<Check>,
}

/// One thing that has to be well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether a node without it should be sent no requests.
    pub required: bool,
    /// Whether it is well.
    pub ok: bool,
    /// What is wrong, for an operator.
    #[schema(required)]
    pub detail: Option<String>,
}

/// `/livez` as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Liveness)]
struct LiveView {
    live: bool,
}

/// `/readyz` as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Readiness)]
struct ReadyView {
    ready: bool,
    /// With `?verbose`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    checks: Option<Vec<Check>>,
}

impl Readiness {
    /// Whether everything that is required is well. Nothing has been looked at yet: not ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok || !check.required)
    }
}

pub(super) async fn live() -> HttpResponse {
    HttpResponse::Ok().json(LiveView { live: true })
}

pub(super) async fn ready(
    state: web::Data<State>,
    mut query: Query,
) -> Result<HttpResponse, Problem> {
    let verbose = query.parameters.optional("verbose", |text| match text {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Malformed("verbose is true or false".to_owned())),
    });
    query.parameters.finish()?;
    let mut readiness = state.readiness.borrow().clone();
    if state.is_draining() {
        let detail = Some("this node is stopping".to_owned());
        readiness.checks.push(Check { name: "stopping", required: true, ok: false, detail });
    }
    let mut response =
        if readiness.is_ready() { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    let ready = readiness.is_ready();
    let checks = (verbose.value() == Some(true)).then_some(readiness.checks);
    Ok(response.json(ReadyView { ready, checks }))
}

pub(super) mod docs {
    use serde_json::json;

    use super::{LiveView, ReadyView};
    use crate::http::openapi::{Operation, Tag};

    pub(in crate::http) fn live() -> Operation {
        Operation::new("live", Tag::Service, "Is the process alive?")
            .answers::<LiveView>(200, "It can answer.")
    }

    pub(in crate::http) fn ready() -> Operation {
        let verbose = json!({"type": "string", "enum": ["", "true", "1", "false", "0"]});
        Operation::new("ready", Tag::Service, "Should it be sent requests?")
            .query("verbose", verbose, "Whether to name each check.")
            .answers::<ReadyView>(200, "Yes.")
            .answers::<ReadyView>(503, "No.")
    }
}
