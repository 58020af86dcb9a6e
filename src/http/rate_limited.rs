//! `GET …/rate-limited`: whom this node has refused lately for a rate limit, from its memory.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::{State, scope::Scope};
use crate::{
    domain::{Millis, Policy},
    gate::limited::{Refused, Subject},
};

/// Those who were refused, as clients see them.
#[derive(Serialize, ToSchema)]
#[schema(as = RateLimited)]
struct View<'a> {
    /// The node that answers: each knows its own.
    node: &'a str,
    /// The last first.
    #[schema(max_items = 200)]
    data: Vec<RefusedView<'a>>,
}

/// One of them.
#[derive(Serialize, ToSchema)]
#[schema(as = RateLimitedSubject)]
struct RefusedView<'a> {
    policy: Policy,
    /// What the subject is: user, ip, code, namespace or key (an API key).
    #[schema(pattern = "^(user|ip|code|namespace|key)$")]
    kind: &'a str,
    /// By whom or what the limit counts; of an IPv6 address its /64.
    subject: &'a str,
    /// How often it was refused.
    #[schema(minimum = 1)]
    refused: u64,
    first_at: Millis,
    last_at: Millis,
    /// From when on an attempt passes the limit.
    free_at: Millis,
}

impl<'a> RefusedView<'a> {
    fn new((subject, refused): &'a (Subject, Refused)) -> Self {
        let Subject { policy, kind, name } = subject;
        let Refused { count, first_at, last_at, free_at } = *refused;
        Self { policy: *policy, kind, subject: name, refused: count, first_at, last_at, free_at }
    }
}

pub(super) async fn show(state: web::Data<State>, scope: Scope) -> HttpResponse {
    let found = state.gate.limited().of(&scope.namespace);
    let data = found.iter().map(RefusedView::new).collect();
    HttpResponse::Ok().json(View { node: &state.node, data })
}

pub(super) mod docs {
    use super::View;
    use crate::http::openapi::{Operation, Tag};

    pub(in crate::http) fn show() -> Operation {
        Operation::new("show_rate_limited", Tag::Namespaces, "Whom rate limits have refused lately")
            .about(
                "Of this node, since its start, at most 200, each for an hour after its last refusal; kept in memory alone.",
            )
            .answers::<View>(200, "The last first.")
    }
}
