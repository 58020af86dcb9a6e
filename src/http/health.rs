//! `/livez`, `/readyz` and `/metrics`: whether this node lives, should be sent requests, and how it does.
//!
//! `/livez` is 200 while the process can answer at all; a balancer or an orchestrator restarts what does not.
//! `/readyz` is 200 while requests should be sent here; `?verbose` names each check. `/metrics` is Prometheus text.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use serde_json::json;

use super::{State, page::Query, problem::Problem};
use crate::domain::Malformed;

/// Whether this node should be sent requests, and why.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Readiness {
    /// Everything that has to be well.
    pub checks: Vec<Check>,
}

/// One thing that has to be well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether a node without it should be sent no requests.
    pub required: bool,
    /// Whether it is well.
    pub ok: bool,
    /// What is wrong, for an operator.
    pub detail: Option<String>,
}

impl Readiness {
    /// Whether everything that is required is well. Nothing has been looked at yet: not ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok || !check.required)
    }
}

pub(super) async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({"live": true}))
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
    let readiness = state.readiness.borrow().clone();
    let mut response =
        if readiness.is_ready() { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    Ok(match verbose.value() {
        Some(true) => {
            response.json(json!({"ready": readiness.is_ready(), "checks": readiness.checks}))
        }
        _ => response.json(json!({"ready": readiness.is_ready()})),
    })
}

pub(super) async fn metrics(state: web::Data<State>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(state.metrics.render())
}
